"""Planning for one tree: what to keep off, what is to be done with it, and what would be left."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from cygwin.address_space import GRANULARITY, Range, slot_size
from cygwin.database import DatabaseError, read_database
from cygwin.paths import database_files, host_path, root_of
from cygwin.values import NamedTuple
from rebaser.errors import UsageError, suppress
from rebaser.options import Options, Request
from rebaser.plan.overlap import Span, groups
from rebaser.plan.placement import OF_RUNTIME, NoRoomError, Plan, make_plan
from rebaser.plan.survey import Survey, spans, survey
from rebaser.report import Group, Move
from rebaser.scan.skip import not_images
from rebaser.scan.snapshot import Seen, Snapshot
from rebaser.scan.walk import Rules, Scan, look_at_one, scan
from rebaser.tree import Tree, posix_name


class Proposal(NamedTuple):
    """A tree as it was found, and what is to be done with it."""

    scan: Scan
    survey: Survey
    plan: Plan


class Planner:
    """Plans for one tree and one request; `reserved` is what must be kept off, read once.

    `ours` names a file of the tree, as in `reservations`; `top` is put before all paths.
    """

    def __init__(
        self,
        tree: Tree,
        options: Options,
        request: Request,
        tell: Callable[[str], None],
        *,
        ours: Callable[[str], str | None] | None = None,
        top: str = "",
    ) -> None:
        self.reserved = reservations(ours or in_tree(tree), options, tell)
        self._options = options
        self._request = request
        self._top = top

    def propose(self, found: Scan, before: Snapshot) -> Proposal:
        """Survey and plan a tree that was scanned; `before` is what the last run saw."""
        surveyed = self.survey(found.snapshot, before)
        return Proposal(found, surveyed, self.plan(surveyed))

    def survey(
        self, now: Snapshot, before: Snapshot, may_move: Callable[[str], bool] | None = None
    ) -> Survey:
        """Sort out the files of a scan; without `may_move`, what was asked for may move."""
        return survey(
            now,
            before,
            self._options,
            may_move=may_move or self._request.asks_for,
            database_slots=self.reserved.database_slots,
            top=self._top,
        )

    def plan(self, surveyed: Survey) -> Plan:
        """Plan what was surveyed. Raises NoRoomError."""
        return make_plan(surveyed.images.values(), self._options.arenas, self.reserved.ranges)

    def without(self, proposal: Proposal, fixed: Collection[str]) -> Proposal:
        """Plan anew, with these images as obstacles."""
        images = dict(proposal.survey.images)
        for path in fixed:
            images[path] = images[path]._replace(fixed=True)
        surveyed = proposal.survey._replace(images=images)
        return proposal._replace(survey=surveyed, plan=self.plan(surveyed))

    def left(
        self, surveyed: Survey, moved: Collection[Move] = (), gone: Collection[str] = ()
    ) -> tuple[tuple[Group, ...], int]:
        """Return the overlaps that are left, and how many other DLLs a run for all would move.

        The overlaps are those that concern what may move. What is in `gone` changed under our
        hands: it may lie elsewhere by now, and is told by itself.
        """
        asks = self._request.asks_for
        asked = {path for path, one in surveyed.sources.items() if any(map(asks, one.names))}
        left = spans(surveyed.images, surveyed.dlls.difference(gone), moved)
        stuck = {one.path for one in surveyed.skipped}
        found = groups(left, stuck, asked)
        ours = tuple(group for group in found if not asked.isdisjoint(group.paths))
        others = [group for group in found if group.cure and asked.isdisjoint(group.paths)]
        return ours, sum(len(set(group.paths) - stuck) for group in others)

    def settled_overlaps(
        self, seen: Snapshot, pending: Collection[str] = ()
    ) -> tuple[Group, ...] | None:
        """Return the overlaps that no run cures, or None where a run for all has something to do.

        What is `pending` is in use, and no run moves it for as long as it is.
        """
        surveyed = self.survey(seen, seen, lambda name: name not in pending)
        with suppress(NoRoomError):
            if not self.plan(surveyed).moves:
                return tuple(groups(spans(surveyed.images, surveyed.dlls), (), ()))
        return None


class Reservations(NamedTuple):
    """The reserved ranges by machine, and the slots kept for files of the tree by path."""

    ranges: Mapping[int, Sequence[Span]]
    database_slots: Mapping[str, Range]


def in_tree(tree: Tree) -> Callable[[str], str | None]:
    """Return what tells a file of the tree: its path relative to the root, for a host's path."""
    # On Cygwin /usr/lib and /lib are one folder, and the database may say either.
    tops = {tree.root, host_path(tree.root) or tree.root}

    def ours(path: str) -> str | None:
        inside = (Tree(top, "", "").relative(path) for top in tops)
        return next((one for one in inside if one and os.path.lexists(tree.path(one))), None)

    return ours


def reservations(
    ours: Callable[[str], str | None], options: Options, warn: Callable[[str], None]
) -> Reservations:
    """Collect what is reserved: by the runtime, Cygwin's database, and --avoid.

    `ours` returns the name that a host's path has among our images, or None. The system's own
    database is left out, with a warning, where it cannot be read. Raises UsageError for one that
    was asked for and cannot be read, and for an --avoid path that does not exist.
    """
    ranges = {machine: list(of_machine) for machine, of_machine in OF_RUNTIME.items()}
    database_slots: dict[str, Range] = {}
    if (root := options.cygwin_root) and not os.path.isdir(root):
        raise UsageError(f"--cygwin-root {root}: no such folder; nothing was changed")
    for path in database_files(options.database, options.cygwin_root):
        try:
            found = read_database(path)
        except DatabaseError as error:
            if options.database:
                raise UsageError(f"--database {error}; nothing was changed") from None
            warn(f"{error}; the addresses that it keeps are not known, so none is left free")
            continue
        root = root_of(path, options.cygwin_root)
        for entry in found.entries:
            slot = Range(entry.base, entry.base + entry.slot_size)
            file = host_path(entry.path, root)
            if file and (name := ours(file)):
                database_slots[name] = slot
            else:
                owner = f"{entry.path} of Cygwin's database"
                ranges.setdefault(found.machine, []).append(Span(*slot, owner))
    for path in options.avoid:
        for file, seen in _avoided(path, options.rules, warn):
            if not ours(file):  # an image of the tree itself is none of the others'
                low = seen.base // GRANULARITY * GRANULARITY
                span = Span(low, seen.base + slot_size(seen.image_size), file)
                ranges.setdefault(seen.machine, []).append(span)
    return Reservations(ranges, database_slots)


def _avoided(path: str, rules: Rules, warn: Callable[[str], None]) -> Iterator[tuple[str, Seen]]:
    """Yield the images at or below a path that is to be avoided."""
    if not (os.path.isdir(path) or os.path.isfile(path)):
        raise UsageError(f"--avoid {path}: no such file or folder; nothing was changed")
    top = path = os.path.realpath(posix_name(path))
    if os.path.isdir(path):
        (found, failed), fatal = scan(path, rules)[:2], "."
    else:
        top, fatal = os.path.split(path)
        found, failed = look_at_one(top, fatal)
        for _, reason in not_images(found):
            warn(f"{path}: {reason}; nothing is kept free for it (--avoid)")
    for name, reason in failed:
        if name == fatal:
            raise UsageError(f"--avoid {path}: {reason}")
        warn(f"{top}/{name} {reason} (--avoid)")
    yield from ((f"{top}/{name}", seen) for name, seen in found.files() if seen.base_width)
