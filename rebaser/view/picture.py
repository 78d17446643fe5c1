"""The picture of a tree's address space as lines of text and rows of rectangles, for a painter."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum

from cygwin.address_space import GRANULARITY, Range, is_runtime, machine_name
from cygwin.named_tuple import NamedTuple
from rebaser.text import address, address_size, plural, printable
from rebaser.view.address_map import AddressMap, Kind, Region, Zone, merged, zones

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


class Box(NamedTuple):
    """A rectangle of a row: addresses `[low, high)`, and whose they are."""

    low: int
    high: int
    kind: Kind
    owners: Sequence[Region] = ()


class Row(NamedTuple):
    """The `size` addresses from `low` on; what overlaps comes last, to be painted over the rest."""

    low: int
    size: int
    boxes: tuple[Box, ...]

    @property
    def overlaps(self) -> bool:
        """Whether any of its addresses are two's."""
        return bool(self.boxes) and self.boxes[-1].kind is Kind.OVERLAP


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
    kept = f", {address_size(use.others)} kept for others" if use.others else ""
    used = f"{address_size(use.images)} used{kept}, {address_size(use.free)} free"
    gap = use.largest_gap
    if gap is None:
        return used, "no gap"
    return used, f"largest gap {address_size(gap.high - gap.low)} at {address(gap.low)}"


def _zone(found: AddressMap, zone: Zone, row_size: int, most_rows: int) -> Iterator[Line | Row]:
    """Yield a heading and the rows; nothing for an address range other than the arena without."""
    # The runtime's range is that large that nothing else would be seen beside it.
    regions = [one for one in (*found.others, *found.images) if one.kind is not Kind.RUNTIME]
    covered = merged(regions, Range(zone.low, zone.high))
    while len(numbers := _rows(covered, row_size, most_rows)) > most_rows:
        row_size *= 2
    if not (zone.is_arena or numbers):
        return
    yield Line(f"{_extent(zone)} {zone.purpose}: {_held(found, zone)}", Style.ZONE)
    notes = [*(room(found) if zone.is_arena else ())]
    notes += [f"a row is {address_size(row_size)}"] if numbers else []
    yield from (Line(text, Style.NOTE) for text in notes)
    end = zone.low
    for row in [*(number * row_size for number in numbers), zone.high]:
        if row > end:
            what = ["free"] if zone.is_arena else []
            if any(one.low < row and one.high > end for one in found.others):
                what.append("kept for the runtime")  # others have rows
            size = address_size(row - end)
            yield Line(f"... {size} {' or '.join(what) or 'empty'} ...", Style.GAP)
        if row < zone.high:
            within = Range(max(row, zone.low), min(row + row_size, zone.high))
            yield Row(row, row_size, tuple(_boxes(found, zone, within)))
        end = row + row_size


def _rows(covered: Iterable[Range], row_size: int, most: int) -> list[int]:
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


def _boxes(found: AddressMap, zone: Zone, within: Range) -> Iterator[Box]:
    def inside(one: Range | Region) -> bool:
        return one.low < within.high and one.high > within.low

    here = [region for region in (*found.others, *found.images) if inside(region)]
    boxes = [Box(*within, Kind.FREE)] if zone.is_arena else []
    boxes += [Box(one.low, one.high, one.kind, [one]) for one in here]
    for part in filter(inside, found.collisions):
        sharers = [one for one in here if one.low < part.high and one.high > part.low]
        boxes.append(Box(*part, Kind.OVERLAP, sharers))
    for box in boxes:
        yield box._replace(low=max(box.low, within.low), high=min(box.high, within.high))


def _overlaps(root: str, found: AddressMap, every_name: bool) -> Iterator[Line]:
    """Yield what overlaps, and what moves it apart."""
    if not found.groups:
        return
    yield Line("Overlaps: a process that loads two of these cannot fork", Style.ALARM)
    listed = len(found.groups) if every_name else LISTED
    for group in found.groups[:listed]:
        count = plural(sum(one.is_image for one in group), "DLL")
        yield Line(f"{_extent(found.extent(group))}: {count}", Style.NAME)
        named = len(group) if every_name else NAMED
        for region in group[:named]:
            yield Line(f"  {_extent(region)} {printable(region.path)}", Style.NAME)
        if len(group) > named:
            yield Line(f"  and {len(group) - named:,} more here", Style.NAME)
    if len(found.groups) > listed:
        yield Line(f"and {plural(len(found.groups) - listed, 'more place')}", Style.NAME)
    if any(map(found.cure, found.groups)):
        yield Line(f"rebaser run {printable(root)} moves them apart", Style.NAME)
    else:
        yield Line("No run moves these; 'rebaser check' says why", Style.NAME)


def _extent(one: Range | Region | Zone) -> str:
    end = f"-{address(one.high)}" if one.high < 1 << 47 else " and up"
    return f"{address(one.low)}{end}"


def _held(found: AddressMap, zone: Zone) -> str:
    """Return what lies in an address range, the runtime told from DLLs that only lie there too."""
    paths = [one.path for one in found.images if zone.low <= one.low < zone.high]
    own = sum(map(is_runtime, paths))
    count = plural(len(paths) - own, "other DLL" if own else "DLL") if paths else "no DLLs"
    if not own:
        return count
    return f"it and {count}" if len(paths) > own else "the runtime"
