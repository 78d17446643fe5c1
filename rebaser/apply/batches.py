"""Apply: carry out a plan, batch by batch, each staged whole before its first commit."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rebaser.apply.commit import commit
from rebaser.apply.engines import Engine
from rebaser.apply.stage import StagingFolders, Wanted, stage
from rebaser.plan.placement import Move
from rebaser.plan.survey import Source
from rebaser.progress import Progress
from rebaser.state.folder import State
from rebaser.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cygwin.image import Image

# The disk must hold the copies of one batch, of this many bytes, beside the tree.
BATCH = 256 << 20


@dataclass
class Applied:
    """What became of a plan's moves: those carried out, and {path: reason} of the others.

    `now` is the stat of each moved file's new self, `folders` those that were committed to;
    `changed` are the paths of `skipped` at which another file lies by now, or none.
    """

    moved: list[Move] = field(default_factory=list)
    now: dict[str, os.stat_result] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)


def apply(
    moves: Sequence[Move],
    sources: Mapping[str, Source],
    images: Mapping[str, Image],
    tree: Tree,
    state: State,
    engine: Engine,
    applied: Applied,
    *,
    touch: bool,
    jobs: int,
    rebasers: Callable[[], Collection[int]],
    progress: Progress,
) -> None:
    """Stage and commit `moves`; what was done is in `applied`, also when this is interrupted."""
    folders = StagingFolders(tree, state)
    wanted = [
        Wanted(move, tree.path(move.path), sources[move.path].seen, images.get(move.path))
        for move in moves
    ]
    progress.phase("moving", len(wanted), sum(item.seen.size for item in wanted))
    for batch in _batches(wanted, in_one=engine.starts_processes):
        folders.remove_copies()
        with _timed(applied, "stage"):
            staging = stage(batch, folders, engine, touch=touch, jobs=jobs, advance=progress.copied)
            applied.skipped.update(staging.changed)
            applied.changed.update(staging.changed)
            applied.failed.update(staging.failed)
        with _timed(applied, "commit"):
            commit(
                staging.ready,
                tree,
                sources,
                applied,
                rebasers=rebasers,
                advance=progress.advance,
            )


def _batches(wanted: Sequence[Wanted], *, in_one: bool) -> Iterator[Sequence[Wanted]]:
    """Divide what is to be staged so that each file system can hold its copies.

    All of it at once (`in_one`) where the engine starts processes: once a DLL that our own Python
    has loaded is replaced, Cygwin's fork fails in this process.
    """
    if in_one:
        yield wanted
        return
    batch: list[Wanted] = []
    room: dict[int, int] = {}  # bytes that the batch may still take, by device
    for item in wanted:
        device, size = item.seen.device, item.seen.size
        if batch and size > room.get(device, size):
            yield batch
            batch, room = [], {}
        if device not in room:
            room[device] = min(BATCH, _free_bytes(item.target) // 2)
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


@contextmanager
def _timed(applied: Applied, stage: str) -> Iterator[None]:
    began = time.monotonic()
    try:
        yield
    finally:
        applied.seconds[stage] = applied.seconds.get(stage, 0.0) + time.monotonic() - began
