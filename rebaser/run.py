"""The main job: scan, plan, apply, report, under one lock."""

from __future__ import annotations

import os
import time

from rebaser.errors import suppress
from rebaser.files import on_cygwin
from rebaser.job import Job
from rebaser.options import Options
from rebaser.progress import Progress
from rebaser.remember import before_the_scan, remember_look, remember_work, settled_report
from rebaser.report import Applied, Report, Seconds
from rebaser.scan import LOCK, STATE
from rebaser.scan.skip import Stay
from rebaser.scan.walk import Scan, has_times, scan
from rebaser.state import records
from rebaser.state.lock import TreeLock
from rebaser.state.records import Asked
from rebaser.tree import Tree, lock_and_state

# A run with nothing to do imports nothing but the above: planning and applying are imported where
# they are needed.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.plan.proposal import Proposal
    from rebaser.scan.snapshot import Seen, Snapshot
    from rebaser.scan.walk import AtFirstWork
    from rebaser.state.records import Record


class OuterTreeError(Exception):
    """The tree turned out to be part of another one, which is the argument."""


class NotAloneError(Exception):
    """There is work, and somebody else holds the lock."""


def run(
    tree: Tree,
    options: Options | None = None,
    *,
    only: frozenset[str] | None = None,
    wait: float | None = None,
    dry_run: bool = False,
    strict: bool = False,
    coordinator: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Make a tree fork-safe; return what was done.

    `only` are the paths, relative to the tree's root, that may move (None: all). `wait` is how
    many seconds the lock may take (None: any number). `strict`: what no run cures counts for the
    exit status too. `coordinator` is the URL of a server that keeps the lock for other machines
    too (docs/several-machines.md). Raises RebaserError where nothing could be done; then nothing
    was changed; and LockLostError, which says what was, where that server let go of the lock.
    """
    job = Job(tree, (options or Options()).in_tree(tree.scope), only, progress)
    began = time.monotonic()
    report = None
    try:
        if job.options.engine != "auto":
            job.engine()  # one that is named and cannot run is an error, work or no work
        while report is None:
            try:
                report = _dry_run(job) if dry_run else _run(job, wait, coordinator)
            except OuterTreeError as outer:
                job.close_files()
                job = job.inside(*outer.args)
    finally:
        job.close_files()
        job.progress.close()
    job.seconds["total"] = time.monotonic() - began
    # What stays is told where it was asked for, or overlaps what was.
    overlapping = {path for group in report.overlaps for path in group.paths}
    skipped = (o for o in report.skipped if job.request.asks_for(o.path) or o.path in overlapping)
    return report._replace(skipped=tuple(skipped), seconds=Seconds(**job.seconds), strict=strict)


def _dry_run(job: Job) -> Report:
    """Report the plan, and what it would leave; change nothing, and take no lock."""
    found = _plan(job, job.state.load_snapshot(job.tell))
    return _report(job, found, Applied(found.plan.moves))._replace(bytes_written=0, planned=True)


def _run(job: Job, wait: float | None, coordinator: str | None) -> Report:
    asked = Asked(records.newest_number(job.state), time.monotonic())
    with TreeLock(
        job.tree.lock_file, job.state, wait=wait, tell=job.tell, coordinator=coordinator
    ) as lock:
        try:
            found = _look(job, lock, asked)
            if isinstance(found, Report):
                return found
            if found is None:
                job.close_files()
                lock.exclude()
                if done := records.covering(job.state, job.request, asked):
                    return _covered(job, done)
            with job.timed("exclusive"):
                return _work(job, lock, found)
        finally:
            job.seconds["wait"] = lock.seconds_waited
            if lock.is_ours():
                job.state.clear_staging()


def _look(job: Job, lock: TreeLock, asked: Asked) -> Report | Proposal | None:
    """Look at the tree with the lock shared, which waits for no installer.

    Return the report where nothing is to be done, else what is, with the lock held exclusively.
    That is taken at the first sign of work if nobody else holds the lock, and the look goes on; if
    somebody does it ends, for whoever gets the lock must look once more: None. So of twenty that
    look at the same moment only one sees everything.
    """

    def alone() -> bool:
        # flock(2) drops the shared lock first; who came between wrote a record before all else.
        return lock.upgrade() and records.newest_number(job.state) == asked.newest

    def at_first_work(name: str, seen: Seen) -> bool:
        is_work = job.is_certain_to_move(name, seen)
        if is_work and not alone():
            raise NotAloneError
        return is_work

    lock.share()
    if not os.path.lexists(job.state.snapshot_file) or job.state.was_left():
        # Nothing is known, or a killed run's copies are in the way: there is work for certain.
        # Nothing was looked at yet, so it does not matter who came between.
        if lock.upgrade():
            job.state.make()
        else:
            lock.share()
    if done := records.covering(job.state, job.request, asked):
        return _covered(job, done)
    before = job.state.load_snapshot(job.tell)
    try:
        found = _scan(job, before, None if lock.is_exclusive else at_first_work)
    except NotAloneError:
        return None
    if report := settled_report(job, lock, found):
        return report
    proposal = _plan(job, before, found)
    if proposal.plan.moves:
        return proposal if lock.is_exclusive or alone() else None
    report = _report(job, proposal)
    remember_look(job, lock, proposal, report)
    return report


def _work(job: Job, lock: TreeLock, found: Proposal | None) -> Report:
    """Scan, plan, apply, report: with the exclusive lock held."""
    lock.exclude_other_machines()
    job.state.make()
    # A run on an inner tree and one on the outer make their states before they look for the
    # other's, so that of two at once one sees the other.
    tree = job.tree.find_again()
    if tree.root != job.tree.root:
        raise OuterTreeError(tree)
    record = records.begin(job.state, job.request, job.scan_began if found else time.monotonic())
    outdated = found is not None and _is_outdated(job, found)
    # Who began when the tree had no `var` yet holds another lock.
    before_var = job.tree.path(f"{STATE}/{LOCK}")
    outdated |= job.tree.lock_file != before_var and lock.exclude_from(before_var)
    found = found or _plan(job, job.state.load_snapshot(job.tell))
    scan_time = before_the_scan(job)
    # Who began in a tree inside before this one was a tree may have been at work while we looked.
    inner = (lock_and_state(job.tree.path(name))[0] for name in found.scan.inner)
    waited = [lock.exclude_from(lock_file) for lock_file in inner]
    if outdated or any(waited) or (waited and record.number == 1):
        found = _plan(job, found.scan.snapshot)
    applied = None
    if found.plan.moves:
        from rebaser.apply.batches import apply

        applied = apply(job, lock, found, scan_time)
    report = _report(job, found, applied)._replace(run=record.number if applied else None)
    remember_work(job, record, scan_time, found, applied, report)
    return report


def _is_outdated(job: Job, found: Proposal) -> bool:
    """Return whether an installer, who held the lock shared as we did, changed what is to move."""
    tree, sources = job.tree, found.survey.sources
    with suppress(OSError):
        paths = [move.path for move in found.plan.moves]
        return not all(has_times(os.lstat(tree.path(p)), sources[p].seen) for p in paths)
    return True  # one is gone


def _plan(job: Job, before: Snapshot, found: Scan | None = None) -> Proposal:
    """Plan what a scan has found; without one, scan first."""
    found = found or _scan(job, before)
    with job.timed("plan"):
        return job.planner().propose(found, before)


def _scan(job: Job, before: Snapshot, at_first_work: AtFirstWork | None = None) -> Scan:
    job.progress.phase("looking at the tree")
    job.close_files()
    job.scan_began = time.monotonic()
    with job.timed("scan"):
        return scan(
            job.tree.root,
            job.options.rules,
            before,
            at_first_work=at_first_work,
            progress=job.progress.advance,
            # What a process has open, even one that waits for the lock, others may fail to replace
            # there: Wine refuses it, and Cygwin's rename(2) then loses the file.
            open_files=None if on_cygwin() else job.open_files,
        )


def _report(job: Job, found: Proposal, applied: Applied | None = None) -> Report:
    """Return what was found, done and left; without `applied` nothing was done."""
    survey, applied = found.survey, applied or Applied()
    moved = tuple(sorted(applied.moved))
    skipped = {one.path: one for one in (*survey.skipped, *applied.skipped.values())}
    failed = {**dict(found.scan.failed), **applied.failed}
    overlaps, others = job.planner().left(survey, moved, applied.changed)
    concerns, sources = job.request.concerns, survey.sources
    engine = job.engine() if moved else None
    return Report(
        root=job.tree.root,
        engine=engine.name if engine else None,
        engine_version=engine.version if engine else None,
        scanned=survey.files,
        images=len(survey.images),
        kept=len(survey.images) - len(moved),
        moved=moved,
        skipped=tuple(sorted(skipped.values())),
        failed=tuple(
            (path, why)
            for path, why in sorted(failed.items())
            if concerns(path) or (path in sources and any(map(concerns, sources[path].names)))
        ),
        # What was removed is done with, unless another file lies there by now.
        unfinished=tuple(
            name
            for name in sorted(applied.changed)
            if skipped[name].cause is Stay.CHANGED or os.path.lexists(job.tree.path(name))
        ),
        overlaps=overlaps,
        others=others,
        bytes_written=sum(survey.sources[move.path].seen.size for move in moved),
    )


def _covered(job: Job, record: Record) -> Report:
    """Return the report of a run whose work another has done: what that left of our images."""
    asks = job.request.asks_for
    return Report(
        root=job.tree.root,
        engine=record.engine,
        covered_by=record.number,
        failed=tuple(pair for pair in record.failed if job.request.concerns(pair[0])),
        unfinished=tuple(filter(asks, record.unfinished)),
        overlaps=tuple(group for group in record.overlaps if any(map(asks, group.paths))),
        others=record.others,
    )
