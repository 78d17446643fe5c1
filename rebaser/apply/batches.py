"""Apply: carry out a plan, batch by batch, each staged whole before its first commit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from rebaser.apply.commit import commit, with_all_names
from rebaser.apply.in_use import users_of
from rebaser.apply.stage import Replacement, StagingFolders, stage
from rebaser.job import Job
from rebaser.plan.proposal import Proposal
from rebaser.report import Applied
from rebaser.scan.snapshot import is_racy
from rebaser.state.folder import FileSystemTime
from rebaser.state.lock import LockLostError, TreeLock
from rebaser.tree import Tree

# The disk must hold the copies of one batch, of this many bytes, beside the tree.
BATCH = 256 << 20


def apply(job: Job, lock: TreeLock, found: Proposal, scan_time: FileSystemTime) -> Applied:
    """Carry out what was planned, less what is in use: that is an obstacle for the others.

    Planned anew, others may move, which may be in use too. What was racy at `scan_time` is read
    again; what the scan has kept open of what moves is taken over and closed. `lock` is asked
    before each rename: where it was lost, LockLostError says what was done until then.
    """
    applied = Applied()
    while used := users_of((move.path for move in found.plan.moves), job.tree, lock.rebasers):
        for name, user in used.items():
            applied.note_in_use(name, user)
        found = job.planner().without(found, used)
    items = _replacements(job, found, scan_time)
    job.progress.phase("moving", len(items), sum(item.source.seen.size for item in items))
    folders = StagingFolders(job.tree)
    try:
        # All at once where the engine starts processes: once a DLL that our own Python has loaded
        # is replaced, Cygwin's fork fails in this process.
        in_one = job.engine().starts_processes
        for batch in [items] if in_one else _batches(items, job.tree):
            folders.remove_copies()
            with job.timed("stage"):
                ready = stage(batch, folders, job, applied)
            with job.timed("commit"):
                commit(ready, folders.targets, job, lock, applied)
        lock.demand()  # what is kept of this run lies where others may be at work by now
    except LockLostError as error:
        raise LockLostError(
            f"{error} when {len(applied.moved)} of {len(items)} DLLs were moved; each file is "
            "whole, old or new: run rebaser again"
        ) from error
    finally:
        for item in items:
            item.close()
    return applied


def _replacements(job: Job, found: Proposal, scan_time: FileSystemTime) -> list[Replacement]:
    moves, scan = found.plan.moves, found.scan
    sources = with_all_names(job, moves, found.survey.sources)
    items = []
    for move in moves:
        source, image = sources[move.path], scan.images.get(move.path)
        if is_racy(source.seen[1:5], scan_time.nanoseconds, scan_time.device):
            image = None
        items.append(Replacement(move, source, image, job.open_files.pop(move.path, None)))
    return items


def _batches(items: Sequence[Replacement], tree: Tree) -> Iterator[Sequence[Replacement]]:
    """Divide what is to be staged so that each file system can hold its copies."""
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
    try:
        st = os.statvfs(os.path.dirname(target))
    except OSError:  # its folder is gone, so nothing of it will be staged
        return 0
    return st.f_bavail * st.f_frsize
