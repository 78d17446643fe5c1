"""What is to be done with a tree that was scanned, and what would be left."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cygwin.values import NamedTuple
from rebaser.options import Options, Request
from rebaser.plan.overlap import groups
from rebaser.plan.placement import NoRoomError, Plan, make_plan
from rebaser.plan.reserved import in_tree, reservations
from rebaser.plan.survey import Survey, spans, survey
from rebaser.report import Group, Move
from rebaser.scan.skip import globs_of_tree
from rebaser.scan.snapshot import Snapshot
from rebaser.scan.walk import Scan
from rebaser.tree import Tree


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
        self._options = options._replace(excludes=globs_of_tree(options.excludes, tree.scope))
        self._request = request
        self._top = top

    def propose(self, found: Scan, before: Snapshot) -> Proposal:
        """Survey and plan a tree that was scanned; `before` is what the last run saw."""
        images = self.survey(found.snapshot, before)
        return Proposal(found, images, self.plan(images))

    def survey(
        self, now: Snapshot, before: Snapshot, may_move: Callable[[str], bool] | None = None
    ) -> Survey:
        """Sort out the files of a scan; None: what was asked for may move."""
        return survey(
            now,
            before,
            self._options,
            may_move=may_move or self._request.names,
            database_slots=self.reserved.database_slots,
            top=self._top,
        )

    def plan(self, images: Survey) -> Plan:
        """Plan what was surveyed. Raises NoRoomError."""
        return make_plan(images.images.values(), self._options.arenas, self.reserved.ranges)

    def without(self, proposal: Proposal, fixed: Collection[str]) -> Proposal:
        """Plan anew, with these images as obstacles."""
        images = dict(proposal.survey.images)
        for path in fixed:
            images[path] = images[path]._replace(fixed=True)
        images_now = proposal.survey._replace(images=images)
        return proposal._replace(survey=images_now, plan=self.plan(images_now))

    def left(
        self, images: Survey, moved: Collection[Move] = (), gone: Collection[str] = ()
    ) -> tuple[tuple[Group, ...], int]:
        """Return the overlaps that are left, and how many other DLLs a run for all would move.

        The overlaps are those that concern what may move. What is in `gone` changed under our
        hands: it may lie elsewhere by now, and is told by itself.
        """
        asked = {
            path
            for path, source in images.sources.items()
            if any(map(self._request.names, source.names))
        }
        found = groups(
            spans(images.images, images.dlls.difference(gone), moved),
            {one.path for one in images.skipped},
            asked,
        )
        ours = tuple(group for group in found if not asked.isdisjoint(group.paths))
        others = sum(
            len(group.paths) for group in found if group.cure and asked.isdisjoint(group.paths)
        )
        return ours, others

    def stays(self, seen: Snapshot, busy: Collection[str] = ()) -> tuple[Group, ...] | None:
        """Return the overlaps that no run cures, or None where a run for all has something to do.

        What is `busy` can do nothing either, for as long as it is.
        """
        images = self.survey(seen, seen, lambda name: name not in busy)
        try:
            if self.plan(images).moves:
                return None
        except NoRoomError:
            return None
        return tuple(groups(spans(images.images, images.dlls), (), ()))
