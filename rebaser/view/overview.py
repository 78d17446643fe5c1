"""A look at a tree's address space, without its lock: nothing is written, and nobody waits."""

from __future__ import annotations

from cygwin.address_space import X86_64
from cygwin.named_tuple import NamedTuple
from rebaser.options import Options
from rebaser.plan.proposal import Planner
from rebaser.plan.survey import spans
from rebaser.progress import Progress
from rebaser.request import Request
from rebaser.scan.walk import scan
from rebaser.tree import Tree
from rebaser.view.address_map import AddressMap, Kind, Region, address_map


class Overview(NamedTuple):
    """What was found. `maps` has the machines that the tree has DLLs of; x86_64 if it has none.

    `skipped` and `failed` are (path, reason), the paths relative to the root.
    """

    maps: tuple[AddressMap, ...]
    skipped: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]


def overview(tree: Tree, options: Options, progress: Progress) -> Overview:
    """Look at the whole tree. What the last run saw and what has not changed is not read again.

    Raises UsageError where an --avoid path does not exist.
    """
    progress.phase("looking at the tree")
    before = tree.state.load_snapshot(progress.tell)
    try:
        found = scan(tree.root, options.rules, before, progress=progress.advance)
        planner = Planner(tree, options, Request(""), progress.tell)
    finally:
        progress.close()
    surveyed = planner.survey(found.snapshot, before)
    placed = spans(surveyed.images, surveyed.dlls)
    stuck = {path for path, image in surveyed.images.items() if image.fixed}

    def map_of(machine: int) -> AddressMap:
        others = [
            Region(*one.range, one.owner, Kind.RUNTIME if one.is_runtime else Kind.OTHERS)
            for one in planner.reserved.ranges.get(machine, ())
        ]
        arena = options.arenas[machine]
        return address_map(machine, arena, placed.get(machine, ()), others, stuck)

    return Overview(
        maps=tuple(map(map_of, sorted(placed, reverse=True) or [X86_64])),
        skipped=tuple((one.path, one.reason) for one in surveyed.skipped),
        failed=tuple(found.failed),
    )
