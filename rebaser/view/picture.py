"""The picture of a tree's address space as lines of text and rows of rectangles, for a painter."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from cygwin.address_space import GRANULARITY, machine_name
from cygwin.values import NamedTuple
from rebaser.report import Group
from rebaser.text import address, address_size, plural, printable
from rebaser.view.address_map import AddressMap, Kind, Part, Region, Zone, within, zones

# So many overlaps, and so many names of each, are listed below a picture.
LISTED = 10
NAMED = 3


class Style(Enum):
    """What a line of text is."""

    TITLE = "the tree"
    MACHINE = "a machine"
    ALARM = "a machine with overlaps, or the heading of what overlaps"
    ZONE = "an address range"
    NOTE = "more of it"
    GAP = "rows left out because nothing is in them"
    NAME = "more of what overlaps"


class Line(NamedTuple):
    """A line of text, fit to be printed."""

    text: str
    style: Style


class Row(NamedTuple):
    """The `size` addresses from `low` on. Behind the others lies what is FREE, the first part."""

    low: int
    size: int
    parts: Sequence[Part]

    @property
    def overlaps(self) -> bool:
        """Whether any of its addresses are two's."""
        return any(part.kind is Kind.OVERLAP for part in self.parts)


def picture(
    root: str, maps: Iterable[AddressMap], *, cells: int, most_rows: int, every_name: bool = False
) -> Iterator[Line | Row]:
    """Yield the picture from the top down.

    A row has `cells` cells, each of at least one slot of 64 KiB. The scale is the finest, by powers
    of two, at which no more than `most_rows` rows of the arena have something in them, and a
    third of that elsewhere. `every_name` lists all that overlaps.
    """
    yield Line(printable(root), Style.TITLE)
    for found in maps:
        yield Line(summary(found), Style.ALARM if found.colliding else Style.MACHINE)
        for zone in zones(found.machine, found.arena):
            most = most_rows if zone.is_arena else most_rows // 3
            yield from _zone(found, zone, cells * GRANULARITY, most)
        yield from _overlaps(root, found, every_name)


def summary(found: AddressMap) -> str:
    """Return the verdict on a machine's DLLs."""
    name = machine_name(found.machine)
    if not found.images:
        return f"{name}: no DLLs"
    verdict = f"{found.colliding:,} OVERLAPPING" if found.colliding else "no overlap"
    return f"{name}: {plural(len(found.images), 'DLL')}, {verdict}"


def room(found: AddressMap) -> tuple[str, str]:
    """Return what of the arena is used and free, and its largest gap."""
    use = found.use()
    others = use.kept_for_others
    kept = f", {address_size(others)} kept for others" if others else ""
    used = f"{address_size(use.used)} used{kept}, {address_size(use.free)} free"
    gap = use.largest_gap
    if gap is None:
        return used, "no gap"
    return used, f"largest gap {address_size(gap.high - gap.low)} at {address(gap.low)}"


def _zone(found: AddressMap, zone: Zone, row_size: int, most_rows: int) -> Iterator[Line | Row]:
    """Yield a heading and the rows; nothing for an address range other than the arena without."""
    parts = within(found.parts, zone.low, zone.high)
    # The runtime's range is that large that nothing else would be seen beside it.
    shown = [part for part in parts if part.kind is not Kind.RUNTIME]
    while len(numbers := _rows(shown, row_size, most_rows)) > most_rows:
        row_size *= 2
    if not (zone.is_arena or numbers):
        return
    count = sum(zone.low <= one.low < zone.high for one in found.images)
    held = plural(count, "DLL") if count else "no DLLs"
    yield Line(f"{_extent(zone)} {zone.purpose}: {held}", Style.ZONE)
    notes = [*(room(found) if zone.is_arena else ())]
    notes += [f"a row is {address_size(row_size)}"] if numbers else []
    yield from (Line(text, Style.NOTE) for text in notes)
    end = zone.low
    for row in [*(number * row_size for number in numbers), zone.high]:
        if row > end:
            what = ["free"] if zone.is_arena else []
            if within(parts, end, row):
                what.append("kept for the runtime")  # all else has rows
            size = address_size(row - end)
            yield Line(f"... {size} {' or '.join(what) or 'empty'} ...", Style.GAP)
        if row < zone.high:
            low, high = max(row, zone.low), min(row + row_size, zone.high)
            free = [Part(low, high, Kind.FREE)] if zone.is_arena else []
            yield Row(row, row_size, [*free, *within(parts, low, high)])
        end = row + row_size


def _rows(covered: Iterable[Part], row_size: int, most: int) -> list[int]:
    """Return the numbers of the rows that hold any of `covered`; one more than `most` suffice."""
    rows: list[int] = []
    for part in covered:
        first, last = part.low // row_size, (part.high - 1) // row_size
        if rows and rows[-1] == first:
            first += 1
        rows += range(first, min(last, first + most) + 1)
        if len(rows) > most:
            break
    return rows


def _overlaps(root: str, found: AddressMap, every_name: bool) -> Iterator[Line]:
    """Yield what overlaps, and what moves it apart."""
    groups = found.groups
    if not groups:
        return
    yield Line("Overlaps: a process that loads two of these cannot fork", Style.ALARM)
    listed, named = (sys.maxsize, sys.maxsize) if every_name else (LISTED, NAMED)
    for group in groups[:listed]:
        count = plural(sum(one.is_image for one in group), "DLL")
        yield Line(f"{_extent(found.told(group))}: {count}", Style.NAME)
        for region in group[:named]:
            yield Line(f"  {_extent(region)} {printable(region.path)}", Style.NAME)
        if len(group) > named:
            yield Line(f"  and {len(group) - named:,} more here", Style.NAME)
    if len(groups) > listed:
        yield Line(f"and {plural(len(groups) - listed, 'more place')}", Style.NAME)
    if any(found.told(group).cure for group in groups):
        yield Line(f"rebaser run {printable(root)} moves them apart", Style.NAME)
    else:
        yield Line("No run moves these; 'rebaser check' says why", Style.NAME)


def _extent(one: Group | Region | Zone) -> str:
    end = f"-{address(one.high)}" if one.high < 1 << 47 else " and up"
    return f"{address(one.low)}{end}"
