"""Apply: carry out a plan, batch by batch, each staged whole before its first commit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

from cygwin.image import Image
from rebaser.apply.commit import commit, with_all_names
from rebaser.apply.engines import Engine
from rebaser.apply.stage import Replacement, StagingFolders, stage
from rebaser.options import Options
from rebaser.plan.proposal import Proposal
from rebaser.progress import Progress
from rebaser.report import Applied
from rebaser.state.lock import TreeLock
from rebaser.tree import Tree

# The disk must hold the copies of one batch, of this many bytes, beside the tree.
BATCH = 256 << 20


def apply(
    tree: Tree,
    options: Options,
    found: Proposal,
    engine: Engine,
    applied: Applied,
    *,
    images: Mapping[str, Image],
    lock: TreeLock,
    progress: Progress,
    timed: Callable[[str], AbstractContextManager[None]],
) -> None:
    """Stage and commit what was planned; what was done is in `applied`, also when interrupted.

    `images` are those that were read and need not be read again. What the scan has kept open of
    what moves is taken over and closed. `lock` is asked before each rename, which is the end of it
    all where it was lost (LockLostError). `timed` takes the time of a stage.
    """
    folders = StagingFolders(tree)
    moves = found.plan.moves
    sources = with_all_names(tree.root, moves, found.survey.sources)
    items = []
    for move in moves:
        kept = images.get(move.path), found.scan.open_files.pop(move.path, None)
        items.append(Replacement(move, sources[move.path], *kept))
    progress.phase("moving", len(items), sum(item.source.seen.size for item in items))
    try:
        for batch in _batches(items, tree, in_one=engine.starts_processes):
            folders.remove_copies()
            with timed("stage"):
                ready = stage(batch, folders, engine, applied, options.touch, progress.copied)
            with timed("commit"):
                commit(ready, tree, folders.targets, applied, lock, progress.advance)
    finally:
        for item in items:
            item.close()


def _batches(
    items: Sequence[Replacement], tree: Tree, *, in_one: bool
) -> Iterator[Sequence[Replacement]]:
    """Divide what is to be staged so that each file system can hold its copies.

    All of it at once (`in_one`) where the engine starts processes: once a DLL that our own Python
    has loaded is replaced, Cygwin's fork fails in this process.
    """
    if in_one:
        yield items
        return
    batch: list[Replacement] = []
    room: dict[int, int] = {}  # bytes that the batch may still take, by device
    for item in items:
        device, size = item.source.seen.device, item.source.seen.size
        if batch and size > room.get(device, size):
            yield batch
            batch, room = [], {}
        if device not in room:
            room[device] = min(BATCH, _free_bytes(tree.path(item.name)) // 2)
        batch.append(item)
        room[device] -= size
    if batch:
        yield batch


def _free_bytes(target: str) -> int:
    """Return the free space of the file system that a file lies on."""
    try:
        st = os.statvfs(os.path.dirname(target))
    except OSError:  # its folder is gone, so nothing of it will be staged
        return 0
    return st.f_bavail * st.f_frsize
