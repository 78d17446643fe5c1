"""The names of a moved file that the scan does not look at: hard links with other suffixes."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping

from rebaser.errors import suppress
from rebaser.plan.survey import Source
from rebaser.report import Move
from rebaser.scan import STATE


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
    stack = [top]
    while stack:
        with suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack += [entry.path] if entry.name != STATE else []
                elif entry.inode() in inodes:
                    # The inode comes with the name; the device takes a look at the file.
                    device = os.lstat(entry.path).st_dev
                    path, name = missing.get((device, entry.inode())), entry.path[len(top) :]
                    if path is not None and name not in found[path].names:
                        names = (*found[path].names, name)
                        found[path] = found[path]._replace(names=names)
    return found
