"""The main job: scan, plan, apply, report, under one lock."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rebaser.files import on_cygwin
from rebaser.options import Options
from rebaser.plan.databases import database_files
from rebaser.plan.request import Request
from rebaser.progress import Progress, Quiet
from rebaser.report import Report, Seconds
from rebaser.scan import snapshot as snapshots
from rebaser.scan.skip import count_images, globs_of_tree
from rebaser.scan.snapshot import Seen, Snapshot
from rebaser.scan.walk import Scan, scan, scan_folders, scan_for_work
from rebaser.state import records
from rebaser.state.folder import FileSystemTime, State, StateError
from rebaser.state.lock import LockError, TreeLock
from rebaser.state.records import Record
from rebaser.tree import Tree

# A run with nothing to do imports nothing but the above: planning and applying are imported where
# they are needed.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from cygwin.fault import Fault
    from cygwin.image import Image
    from rebaser.apply.batches import Applied
    from rebaser.apply.engines import Engine
    from rebaser.early import Work
    from rebaser.plan.placement import Move
    from rebaser.plan.proposal import Look, Planning


def run(
    tree: Tree,
    options: Options | None = None,
    *,
    only: frozenset[str] | None = None,
    wait: float | None = None,
    dry_run: bool = False,
    strict: bool = False,
    jobs: int = 8,
    progress: Progress | None = None,
) -> Report:
    """Make a tree fork-safe; return what was done.

    `only` are the paths, relative to the tree's root, that may move (None: all). `wait` is how
    many seconds the lock may take (None: any number), `jobs` the number of threads. Raises
    RebaserError where nothing could be done; then nothing was changed.
    """
    job = _Run(tree, options or Options(), only, jobs, progress or Quiet())
    began = time.monotonic()
    try:
        report = job.dry_run() if dry_run else job.run(wait)
    finally:
        job.progress.close()
    job.seconds["total"] = time.monotonic() - began
    return report._replace(seconds=Seconds(**job.seconds), strict=strict)


class _Run:
    def __init__(
        self,
        tree: Tree,
        options: Options,
        only: frozenset[str] | None,
        jobs: int,
        progress: Progress,
    ) -> None:
        self.tree = tree
        self.options = options
        # Another user's run may have failed where ours would not, and several trees may have been
        # given one state folder: neither covers ours.
        # Nor do globs that are relative to another folder.
        globs = tree.scope if options.excludes else ""
        whose = f"root={tree.root!r} user={os.geteuid()} globs={globs!r}"
        self.request = Request(f"{whose} {options.key()}", tree.scope, only)
        self.rules = options.rules
        self.jobs = jobs
        self.progress = progress
        self.state = State(tree.state_dir, tree.root)
        self.seconds: dict[str, float] = {}
        self._made_planning: Planning | None = None
        self._early: Work | None = None
        self._told: set[str] = set()
        self._chosen: Engine | None = None

    def dry_run(self) -> Report:
        """Report the plan, and what it would leave; change nothing, and take no lock."""
        from rebaser.apply.batches import Applied

        self._engine()
        look = self._look(self._memory())
        as_planned = Applied(moved=list(look.plan.moves))
        return self._report(look, as_planned)._replace(bytes_written=0, planned=True)

    def run(self, wait: float | None) -> Report:
        """Look, and where there is work, do it."""
        if self.options.engine != "auto":
            self._engine()  # a named engine that cannot run is an error, work or no work
        asked_after = records.newest_number(self.state)
        lock = TreeLock(self.tree.lock_file, self.state, wait=wait, tell=self.tell)
        try:
            with lock.shared():
                began = time.monotonic()
                report, outdated = self._look_for_work()
            if report is not None:
                if outdated is not None:
                    self._remember_if_free(outdated, began, report, lock)
                return report
            with lock.exclusive(), self._timed("exclusive"):
                done = records.covering(self.state, self.request, asked_after)
                return self._covered(done) if done else self._work(lock)
        finally:
            self.seconds["wait"] = lock.seconds_waited

    def _look_for_work(self) -> tuple[Report | None, Scan | None]:
        """Return a report if there is nothing to do, and a scan that is worth remembering.

        The look ends at the first image that shows work: whoever gets the lock scans again, and
        of twenty that look at once only one needs to see everything.
        """
        if self.state.was_left():
            return None, None
        before = self._memory()
        found = self._scan_until_work(before)
        if found is None:
            return None, None
        if found.unchanged and before.settled and before.settled == self._settled_key():
            files, images, skipped = count_images(
                found.snapshot,
                force_signed=self.options.force_signed,
                excludes=globs_of_tree(self.options.excludes, self.tree.scope),
            )
            report = Report(
                root=self.tree.root,
                engine=self._engine_name(),
                scanned=files,
                images=images,
                kept=images,
                skipped=tuple((one.path, one.reason) for one in skipped),
            )
            return report, None
        look = self._plan(found, before)
        if look.plan.moves:
            return None, None
        report = self._report(look)
        # An unchanged tree is planned where the options or Cygwin's database are other ones than
        # last time; not once more, if the next look has the same.
        settles = self.request.is_for_all and not (
            report.exit_status or report.overlaps or self.options.avoid
        )
        return report, None if found.unchanged and not settles else found

    def _work(self, lock: TreeLock) -> Report:
        """Scan, plan, apply, report: with the exclusive lock held."""
        self.state.make()
        try:
            record = records.begin(self.state, self.request)
            now = self._time_before_anything()
            look = self._look(self._memory())
            applied = self._apply(look, lock, now) if look.plan.moves else None
            report = self._report(look, applied)._replace(run=record.number if applied else None)
            if applied and applied.moved:
                self._remember_moves(look, applied, now, report)
            else:
                self._remember(look.scan.snapshot, now, report, done=not look.plan.moves)
            self._finish(record, report)
            return report
        finally:
            self.state.clear_staging()

    def _time_before_anything(self) -> FileSystemTime:
        try:
            return self.state.time()
        except StateError as error:
            raise StateError(f"{error}; nothing was changed") from error

    @property
    def _planning(self) -> Planning:
        if self._made_planning is None:
            from rebaser.plan.proposal import Planning

            self._made_planning = Planning(self.tree, self.options, self.request, self.tell)
        return self._made_planning

    def _look(self, before: Snapshot) -> Look:
        return self._plan(self._scan(before), before)

    def _plan(self, found: Scan, before: Snapshot) -> Look:
        with self._timed("plan"):
            return self._planning.look(found, before)

    def _scan(self, before: Snapshot) -> Scan:
        self.progress.phase("looking at the tree")
        with self._timed("scan"):
            return scan(self.tree.root, self.rules, before, progress=self.progress.advance)

    def _scan_until_work(self, before: Snapshot) -> Scan | None:
        self.progress.phase("looking at the tree")
        with self._timed("scan"):
            return scan_for_work(
                self._shows_work,
                self.tree.root,
                self.rules,
                before,
                progress=self.progress.advance,
            )

    def _shows_work(self, path: str, seen: Seen, fault: Fault | None) -> bool | None:
        if self._early is None:
            from rebaser.early import Work

            self._early = Work(self.options, self.request)
        return False if self._early.is_shown_by(path, seen) else None

    def _apply(self, look: Look, lock: TreeLock, began: FileSystemTime) -> Applied:
        """Carry out the plan, less what is in use: that is an obstacle for the others."""
        from rebaser.apply.batches import Applied, apply
        from rebaser.apply.commit import in_use_reason
        from rebaser.apply.hard_links import with_all_names
        from rebaser.apply.in_use import users_of

        applied = Applied()
        while True:
            targets = {self.tree.path(move.path): move.path for move in look.plan.moves}
            used = {targets[t]: user for t, user in users_of(targets, lock.rebasers).items()}
            if not used:
                break
            applied.skipped.update({path: in_use_reason(user) for path, user in used.items()})
            look = self._planning.without(look, used)
        moves = look.plan.moves
        try:
            apply(
                moves,
                with_all_names(self.tree.root, moves, look.survey.sources),
                self._images(look, began),
                self.tree,
                self.state,
                self._engine(),
                applied,
                touch=self.options.touch,
                jobs=self.jobs,
                rebasers=lock.rebasers,
                progress=self.progress,
            )
        finally:
            for stage, seconds in applied.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        return applied

    def _images(self, look: Look, began: FileSystemTime) -> dict[str, Image]:
        """Return the images that the scan read and that need not be read again to be moved."""
        images = {}
        for path, image in look.scan.images.items():
            source = look.survey.sources.get(path)
            if source is not None:
                seen = source.seen
                times = seen.mtime_ns, seen.ctime_ns, seen.device
                if not snapshots.is_racy(*times, began.nanoseconds, began.device):
                    images[path] = image
        return images

    # What was found and done, as a report.

    def _report(self, look: Look, applied: Applied | None = None) -> Report:
        skipped = {one.path: one.reason for one in look.survey.skipped}
        failed = dict(look.scan.failed)
        moved: tuple[Move, ...] = ()
        if applied:
            skipped.update(applied.skipped)
            failed.update(applied.failed)
            moved = tuple(sorted(applied.moved, key=lambda move: move.path))
        changed = applied.changed if applied else set()
        overlaps, others = self._planning.left(look, moved, changed)
        return Report(
            root=self.tree.root,
            engine=self._engine_name(),
            engine_version=self._chosen.version if self._chosen else None,
            scanned=look.survey.files,
            images=len(look.survey.images),
            kept=len(look.survey.images) - len(moved),
            moved=moved,
            skipped=tuple(sorted(skipped.items())),
            failed=tuple(pair for pair in sorted(failed.items()) if self.request.concerns(pair[0])),
            unfinished=tuple(p for p in sorted(changed) if os.path.lexists(self.tree.path(p))),
            overlaps=overlaps,
            others=others,
            bytes_written=sum(look.survey.sources[move.path].seen.size for move in moved),
        )

    def _covered(self, record: Record) -> Report:
        """Return the report of a run whose work another has done, with our own images' status."""
        return Report(
            root=self.tree.root,
            engine=record.engine,
            covered_by=record.number,
            failed=tuple(pair for pair in record.failed if self.request.concerns(pair[0])),
            unfinished=tuple(filter(self.request.names, record.unfinished)),
            overlaps=tuple(g for g in record.overlaps if any(map(self.request.names, g.paths))),
        )

    # What is kept for the next run.

    def _memory(self) -> Snapshot:
        return self.state.load_snapshot(self.tell)

    def _remember(
        self, seen: Snapshot, now: FileSystemTime, report: Report, done: bool = True
    ) -> None:
        """Save what was seen; failing to costs the next run time, and is only told.

        `done`: nothing is left of what this run was asked for.
        """
        if not (report.exit_status or report.overlaps) and (
            (done and self.request.is_for_all) or self._planning.is_settled(seen)
        ):
            seen = seen._replace(settled=self._settled_key())
        try:
            self.state.save_snapshot(seen, now)
        except StateError as error:
            self.tell(f"{error}; the next run reads every image again")

    def _remember_moves(
        self, look: Look, applied: Applied, began: FileSystemTime, report: Report
    ) -> None:
        """Look at the folders that were committed to, and save what is known of the tree now.

        What was racy when the scan began stays so.
        """
        from rebaser.plan.survey import with_moves

        before = snapshots.trusted(look.scan.snapshot, began.nanoseconds, began.device)
        expected = with_moves(before, look.survey.sources, applied)
        try:
            now = self.state.time()
        except StateError as error:
            self.tell(f"{error}; the next run reads every image again")
            return
        with self._timed("scan"):
            folders = applied.folders & expected.folders.keys()
            seen = scan_folders(self.tree.root, self.rules, expected, folders)
        done = (
            set(applied.moved) == set(look.plan.moves)
            and seen.folders.keys() == expected.folders.keys()
            and all(seen.folders[each][1:] == expected.folders[each][1:] for each in folders)
        )
        self._remember(seen, now, report, done)

    def _remember_if_free(self, found: Scan, began: float, report: Report, lock: TreeLock) -> None:
        """Save what a look has seen, if nobody else holds the lock at this moment."""
        try:
            with lock.exclusive_if_free() as free:
                if free:
                    self._remember_look(found, began, report)
        except (LockError, StateError) as error:
            self.tell(f"{error}; the next run reads every image again")

    def _remember_look(self, found: Scan, began: float, report: Report) -> None:
        try:
            self.state.make()
            now = self.state.time().before(time.monotonic() - began)
            self._remember(found.snapshot, now, report)
        finally:
            self.state.clear_staging()

    def _settled_key(self) -> str:
        """Return what decides whether there is something to do, beside the tree itself."""
        if self.options.avoid:
            return f"never: {time.time_ns()}"  # those trees are not watched
        stats = []
        for path in database_files(self.options.database, self.options.cygwin_root):
            try:
                st = os.stat(path)
                stats.append((path, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino))
            except OSError:
                stats.append((path, 0, 0, 0, 0))
        return f"{self.options.key()} {stats}"

    def _finish(self, record: Record, report: Report) -> None:
        record = record._replace(
            engine=report.engine,
            moved=len(report.moved),
            bytes_written=report.bytes_written,
            failed=report.failed,
            unfinished=report.unfinished,
            overlaps=report.overlaps,
        )
        try:
            records.finish(self.state, record)
        except StateError as error:
            self.tell(str(error))

    # Small things.

    def _engine(self) -> Engine:
        if self._chosen is None:
            from rebaser.apply.engines.choose import choose_engine

            self._chosen = choose_engine(self.options.engine, self.tell)
        return self._chosen

    def _engine_name(self) -> str:
        """Return the engine that was taken, or would be; no program is looked for to say so."""
        if self._chosen is not None:
            return self._chosen.name
        if self.options.engine == "auto" and not on_cygwin():
            return "builtin"
        return self.options.engine

    def tell(self, text: str) -> None:
        """Tell something, once."""
        if text not in self._told:
            self._told.add(text)
            self.progress.tell(text)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began
