"""What a run keeps for the next one: what it saw, and what is left when nothing is to be done."""

from __future__ import annotations

import os
import time

from cygwin.paths import database_files
from rebaser.errors import suppress
from rebaser.job import Job
from rebaser.report import Applied, Group, Report
from rebaser.scan import snapshot as snapshots
from rebaser.scan.skip import Skipped, Stay, files_of
from rebaser.scan.snapshot import Snapshot
from rebaser.scan.walk import Scan
from rebaser.state import records
from rebaser.state.folder import FileSystemTime, StateError
from rebaser.state.lock import LockError, TreeLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.plan.proposal import Proposal


def settled_report(job: Job, lock: TreeLock, found: Scan) -> Report | None:
    """Return the report of a tree whose DLLs have not changed since nothing was to be done.

    Nothing is planned for it. None: it has to be planned.
    """
    before = found.snapshot
    if before.settled != _key(job):
        return None
    files = files_of(before)
    images = sum(bool(seen.base_width) for _, seen in files)
    skipped = [
        Skipped(min(names), cause, before.details[seen.detail])
        for names, seen in files
        if (cause := job.options.skip_cause(names, seen))
    ]
    if before.pending:
        from rebaser.apply.in_use import users_of

        used = users_of(before.pending, job.tree)
        if len(used) < len(before.pending):
            return None
        skipped += [Skipped(name, Stay.IN_USE, used[name]) for name in before.pending]
    if not found.unchanged:  # a folder, though none of its DLLs
        _save_alone(job, lock, before)
    asks, pending = job.request.asks_for, frozenset(before.pending)
    seen = files if before.overlaps else []
    asked = {min(names) for names, _ in seen if any(map(asks, names))}
    left = []
    for group in before.overlaps:
        waits = pending.intersection(group.paths)  # until nobody uses them
        if not asked.isdisjoint(group.paths):
            ours = not asked.isdisjoint(waits)
            left.append(group._replace(cure="run" if waits else None, ours=ours))
    return Report(
        root=job.tree.root,
        engine=None,
        scanned=len(files),
        images=images,
        kept=images,
        skipped=tuple(sorted(skipped)),
        overlaps=tuple(left),
    )


def remember_look(job: Job, lock: TreeLock, found: Proposal, report: Report) -> None:
    """Save what a look has seen that found nothing to do, if nobody else holds the lock now."""
    seen = found.scan.snapshot
    if job.request.is_for_all:
        seen = _settled(job, seen, found, report)
    if not found.scan.unchanged or seen.settled != found.scan.snapshot.settled:
        _save_alone(job, lock, seen)


def _save_alone(job: Job, lock: TreeLock, seen: Snapshot) -> None:
    try:
        if lock.upgrade():
            job.state.make()
            job.state.save_snapshot(seen, before_the_scan(job))
    except (LockError, StateError) as error:
        job.tell(f"{error}; the next run reads every DLL again")


def remember_work(
    job: Job,
    record: records.Record,
    scan_time: FileSystemTime,
    found: Proposal,
    applied: Applied | None,
    report: Report,
) -> None:
    """Save what is known of the tree after a run, whose scan began at `scan_time`, and its record.

    The next run lists the folders that were committed to: their times are others by now.
    """
    seen, now = found.scan.snapshot, scan_time
    try:
        if applied and applied.moved:
            from rebaser.plan.survey import with_moves

            # What was racy when the scan began is so; what has moved must not be.
            before = snapshots.trusted(seen, now.nanoseconds, now.device)
            seen = with_moves(before, found.survey.sources, applied.now)
            now = job.state.time()
        job.state.save_snapshot(_settled(job, seen, found, report), now)
    except StateError as error:
        job.tell(f"{error}; the next run reads every DLL again")
    try:
        records.finish(job.state, record, report)
    except StateError as error:
        job.tell(str(error))


def before_the_scan(job: Job) -> FileSystemTime:
    """Return the file system's time when the scan began, or an earlier one. Raises StateError."""
    return job.state.time().before(time.monotonic() - job.scan_began)


def _settled(job: Job, seen: Snapshot, found: Proposal, report: Report) -> Snapshot:
    """Return what was seen, settled where nothing is left that anybody could do."""
    if report.failed or report.unfinished or job.options.avoid:
        return seen
    overlaps: tuple[Group, ...] | None = report.overlaps
    pending = tuple(one.path for one in report.skipped if one.cause is Stay.IN_USE)
    done = len(report.moved) + len(pending)
    if not job.request.is_for_all or done < len(found.plan.moves):
        overlaps = job.planner().settled_overlaps(seen, pending)
    if overlaps is None:
        return seen
    return seen._replace(settled=_key(job), overlaps=overlaps, pending=pending)


def _key(job: Job) -> str:
    """Return what decides whether there is something to do, beside the tree itself."""
    databases = database_files(job.options.database, job.options.cygwin_root)
    stats: dict[str, tuple[int, ...]] = dict.fromkeys(databases, ())
    for path in stats:
        with suppress(OSError):
            stats[path] = snapshots.of_stat(os.stat(path))
    return f"{job.options.key()} {stats}"
