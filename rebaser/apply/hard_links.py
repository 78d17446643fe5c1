"""The names of a moved file that the scan does not look at: hard links with other suffixes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from rebaser.plan.survey import Source
from rebaser.report import Move
from rebaser.scan.walk import PRUNED_NAME


def with_all_names(
    root: str, moves: Collection[Move], sources: Mapping[str, Source]
) -> Mapping[str, Source]:
    """Return `sources` with every name in the tree of what is moved.

    The tree is walked once, and only if a file has more links than the scan has found.
    """
    missing = {
        (sources[move.path].seen.device, sources[move.path].seen.inode): move.path
        for move in moves
        if sources[move.path].seen.links > len(sources[move.path].names)
    }
    if not missing:
        return sources
    inodes = {inode for _, inode in missing}
    found = dict(sources)
    top = root.rstrip("/") + "/"
    for folder, folders, _ in os.walk(top):
        folders[:] = [name for name in folders if name != PRUNED_NAME]
        try:
            entries = list(os.scandir(folder))
        except OSError:
            continue
        for entry in entries:
            # The inode comes with the name; the device takes a look at the file.
            if entry.inode() not in inodes or not entry.is_file(follow_symlinks=False):
                continue
            path = missing.get((entry.stat(follow_symlinks=False).st_dev, entry.inode()))
            name = entry.path[len(top) :]
            if path is not None and name not in found[path].names:
                source = found[path]
                found[path] = source._replace(names=(*source.names, name))
    return found
