"""A look at a tree's address space, without its lock: nothing is written, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cygwin.address_space import X86_64
from rebaser.address_map import AddressMap, Kind, Region, address_map
from rebaser.options import Options
from rebaser.plan.reserved import Reservations, in_tree, reservations
from rebaser.plan.survey import survey
from rebaser.scan.walk import scan
from rebaser.state.folder import State
from rebaser.tree import Tree


@dataclass(frozen=True)
class Look:
    """What was found. `maps` has the machines that the tree has DLLs of; x86_64 if it has none.

    `skipped` and `failed` are (path, reason), the paths relative to the root.
    """

    maps: tuple[AddressMap, ...]
    skipped: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]


def look(
    tree: Tree,
    options: Options,
    *,
    warn: Callable[[str], None],
    progress: Callable[[int], None] | None = None,
) -> Look:
    """Look at the whole tree. What the last run saw and what has not changed is not read again.

    Raises UsageError where an --avoid path does not exist.
    """
    before = State(tree.state_dir, tree.root).load_snapshot(warn)
    found = scan(tree.root, options.rules, before, progress=progress)
    images = survey(found.snapshot, before, may_move=lambda path: True)
    others = _others(tree, options, warn)
    regions: dict[int, list[Region]] = {}
    for path in images.dlls:
        image = images.images[path]
        regions.setdefault(image.machine, []).append(Region(image.base, image.end, path))
    return Look(
        maps=tuple(
            address_map(
                machine, options.arenas[machine], regions.get(machine, ()), others.get(machine, ())
            )
            for machine in sorted(regions, reverse=True) or [X86_64]
        ),
        skipped=tuple((one.path, one.reason) for one in images.skipped),
        failed=tuple(found.failed),
    )


def _others(tree: Tree, options: Options, warn: Callable[[str], None]) -> dict[int, list[Region]]:
    """Return what is reserved, by machine."""

    def known(avoid: tuple[str, ...]) -> Reservations:
        return reservations(in_tree(tree), options._replace(avoid=avoid), warn)

    without = known(())
    found = {
        machine: [
            Region(
                one.range.low,
                one.range.high,
                one.owner,
                Kind.RUNTIME if one.is_runtime else Kind.DATABASE,
            )
            for one in ranges
        ]
        for machine, ranges in without.ranges.items()
    }
    if options.avoid:
        for machine, ranges in known(options.avoid).ranges.items():
            # The ranges of --avoid follow those that are there without it.
            for one in ranges[len(without.ranges.get(machine, ())) :]:
                region = Region(one.range.low, one.range.high, one.owner, Kind.AVOID)
                found.setdefault(machine, []).append(region)
    return found
