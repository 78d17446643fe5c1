"""The address space of a tree: what lies where, as values, and its picture for painters; pure."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import cycle

from cygwin.address_space import GRANULARITY, I386, RUNTIME, X86_64, Range, is_runtime, machine_name
from cygwin.values import NamedTuple
from rebaser.plan.overlap import Span, clusters, told
from rebaser.report import Group
from rebaser.text import address, address_size, plural, printable


class Kind(Enum):
    """What a range of addresses is, as a legend says it."""

    IMAGE = "DLL"
    NEXT_IMAGE = "next DLL"
    PARTLY = "DLLs and free space"
    OVERLAP = "OVERLAP"
    FREE = "free"
    RUNTIME = "kept for the Cygwin runtime"
    OTHERS = "kept for others"


class Part(NamedTuple):
    """Addresses `[low, high)` that are of one kind, and whose they are."""

    low: int
    high: int
    kind: Kind
    owners: Sequence[Span] = ()


class Use(NamedTuple):
    """How the arena, `range`, is used, in bytes: by DLLs, by others alone, and not at all."""

    range: Range
    used: int
    kept_for_others: int
    free: int
    largest_gap: Range | None


class AddressMap:
    """The address space of one machine. No run moves the images whose paths are in `stuck`.

    `images` and `others`, what is kept for somebody, are sorted by address. `parts` are the
    addresses that anybody has, cut up by whose they are, upward. `groups` are what hangs together
    by overlaps, upward too; in each what is kept, then the DLLs. `colliding` is the number of these
    DLLs. The runtime's own DLL in the runtime's range is no overlap.
    """

    def __init__(
        self,
        machine: int,
        arena: Range,
        images: Iterable[Span],
        others: Iterable[Span],
        stuck: Collection[str] = (),
    ) -> None:
        self.machine, self.arena, self.stuck = machine, arena, stuck
        self.images = sorted(images)
        self.others = sorted(one._replace(is_image=False) for one in others)
        kinds = dict(zip(self.images, cycle((Kind.IMAGE, Kind.NEXT_IMAGE))))
        for one in self.others:
            of_runtime = one[:2] in RUNTIME.get(machine, ())
            kinds[one] = Kind.RUNTIME if of_runtime else Kind.OTHERS
        self.parts = list(_parts(kinds))
        shared = {one for part in self.parts if part.kind is Kind.OVERLAP for one in part.owners}
        self.groups = [sorted(some, key=lambda one: one.is_image) for some in clusters(shared)]
        self.colliding = sum(one.is_image for group in self.groups for one in group)

    def told(self, group: Sequence[Span]) -> Group:
        """Return a group as a run and a check tell it."""
        return told(self.machine, group, self.stuck, [one.path for one in group])

    def use(self) -> Use:
        """Return how much of the arena is used and free."""
        parts = within(self.parts, *self.arena)
        edges = [self.arena.low, *(edge for part in parts for edge in part[:2]), self.arena.high]
        gaps = list(map(Range, edges[::2], edges[1::2]))
        others = _size(part for part in parts if part.kind in (Kind.RUNTIME, Kind.OTHERS))
        largest = max(gaps, key=lambda gap: gap.high - gap.low) if _size(gaps) else None
        return Use(self.arena, _size(parts) - others, others, _size(gaps), largest)


def _size(some: Iterable[Part | Range]) -> int:
    return sum(one.high - one.low for one in some)


def _parts(kinds: Mapping[Span, Kind]) -> Iterator[Part]:
    """Cut the addresses wherever a span begins or ends."""
    here: list[Span] = []
    to_come = sorted(kinds, reverse=True)
    edges = sorted({edge for one in kinds for edge in one[:2]})
    for low, high in zip(edges, edges[1:]):
        here = [one for one in here if one.high > low]
        while to_come and to_come[-1].low == low:
            here.append(to_come.pop())
        images = [one for one in here if one.is_image]
        # The runtime's own images lie in its range by right.
        alone = len(images) == 1 and (len(here) == 1 or is_runtime(images[0].path))
        if here:
            kind = Kind.OVERLAP if images and not alone else kinds[(images or here)[-1]]
            yield Part(low, high, kind, here)


def within(parts: Iterable[Part], low: int, high: int) -> list[Part]:
    """Return what of the parts lies in an address range."""
    return [
        part._replace(low=max(part.low, low), high=min(part.high, high))
        for part in parts
        if part.low < high and part.high > low
    ]


def zones(machine: int, arena: Range) -> list[tuple[Range, str]]:
    """Return the address space of a machine by purpose, upward, the arena cut out of the rest."""
    found = [(arena, "for rebased DLLs")]
    parts = _PARTS.get(machine, ((0, "all others"),))
    for (start, purpose), end in zip(parts, [*(part[0] for part in parts[1:]), 1 << 64]):
        rest = Range(start, min(end, arena.low)), Range(max(start, arena.high), end)
        # The arena does not begin with the first slot of its zone: that is no zone by itself.
        found += [(one, purpose) for one in rest if one.high - one.low > GRANULARITY]
    return sorted(found)


# Cygwin's winsup/cygwin/local_includes/memory_layout.h; i386: cygwin.address_space. 0x1_8000_0000
# is also where the linkers of Microsoft and LLVM put a 64-bit DLL that they are not told about.
_PARTS = {
    X86_64: (
        (0, "for programs"),
        (RUNTIME[X86_64][0].low, Kind.RUNTIME.value),
        (0x2_0000_0000, "for rebased DLLs elsewhere"),
        (0x4_0000_0000, "where the linker puts DLLs"),
        (0x6_0000_0000, "for stacks and heap"),
    ),
    I386: (
        (0, "for programs and heap"),
        (0x3800_0000, "for rebased DLLs elsewhere"),
        (0x7000_0000, "for DLLs of Windows"),
    ),
}


# Where the rows begin, after their addresses: columns of a terminal, units of an SVG.
COLUMNS, LEFT = 12, 112


class Style(Enum):
    """What a line of text is, and so how it looks.

    On a terminal: what stands before it, its colour (SGR parameters). In an SVG: its class, where
    it begins, the space above it.
    """

    TITLE = ("", "1", "big", 12, 0)
    MACHINE = ("\n", "1", "head", 12, 12)
    ALARM = ("\n", "1;31", "alarm", 12, 12)  # a machine with overlaps, and the heading of these
    ZONE = ("\n", "1", "head", LEFT, 10)
    NOTE = (" " * COLUMNS, "", "", LEFT, 0)
    GAP = (" " * COLUMNS, "2", "soft", LEFT, 0)  # rows left out because nothing is in them
    NAME = ("", "", "", 12, 0)


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
        for zone, purpose in zones(found.machine, found.arena):
            most = most_rows if zone == found.arena else most_rows // 3
            yield from _zone(found, zone, purpose, cells * GRANULARITY, most)
        yield from _overlaps(root, found, every_name)


def summary(found: AddressMap) -> str:
    """Return the verdict on a machine's DLLs."""
    name = machine_name(found.machine)
    if not found.images:
        return f"{name}: no DLLs"
    verdict = f"{found.colliding:,} OVERLAPPING" if found.colliding else "no overlap"
    return f"{name}: {plural(len(found.images), 'DLL')}, {verdict}"


def room(use: Use) -> tuple[str, str]:
    """Return what of the arena is used and free, and its largest gap."""
    others = use.kept_for_others
    kept = f", {address_size(others)} kept for others" if others else ""
    used = f"{address_size(use.used)} used{kept}, {address_size(use.free)} free"
    if gap := use.largest_gap:
        return used, f"largest gap {address_size(gap.high - gap.low)} at {address(gap.low)}"
    return used, "no gap"


def _zone(
    found: AddressMap, zone: Range, purpose: str, row_size: int, most_rows: int
) -> Iterator[Line | Row]:
    """Yield a heading and the rows; nothing for an address range other than the arena without."""
    is_arena = zone == found.arena
    parts = within(found.parts, *zone)
    # The runtime's range is that large that nothing else would be seen beside it.
    shown = [part for part in parts if part.kind is not Kind.RUNTIME]
    while len(numbers := _rows(shown, row_size, most_rows)) > most_rows:
        row_size *= 2
    if not (is_arena or numbers):
        return
    count = sum(zone.low <= one.low < zone.high for one in found.images)
    held = plural(count, "DLL") if count else "no DLLs"
    yield Line(f"{extent(zone)} {purpose}: {held}", Style.ZONE)
    for text in room(found.use()) if is_arena else ():
        yield Line(text, Style.NOTE)
    if numbers:
        yield Line(f"a row is {address_size(row_size)}", Style.NOTE)
    end = zone.low
    for row in [*(number * row_size for number in numbers), zone.high]:
        if row > end:
            what = ["free"] if is_arena else []
            if within(parts, end, row):
                what.append("kept for the runtime")  # all else has rows
            size = address_size(row - end)
            yield Line(f"... {size} {' or '.join(what) or 'empty'} ...", Style.GAP)
        if row < zone.high:
            low, high = max(row, zone.low), min(row + row_size, zone.high)
            free = [Part(low, high, Kind.FREE)] if is_arena else []
            yield Row(row, row_size, [*free, *within(parts, low, high)])
        end = row + row_size


def _rows(covered: Iterable[Part], row_size: int, most: int) -> list[int]:
    """Return the numbers of the rows that hold any of `covered`; one more than `most` suffice."""
    rows: set[int] = set()
    for part in covered:
        first, last = part.low // row_size, (part.high - 1) // row_size
        rows.update(range(first, min(last, first + most) + 1))
        if len(rows) > most:
            break
    return sorted(rows)


def _overlaps(root: str, found: AddressMap, every_name: bool) -> Iterator[Line]:
    groups = found.groups
    if not groups:
        return
    yield Line("Overlaps: a process that loads two of these cannot fork", Style.ALARM)
    listed, named = (sys.maxsize, sys.maxsize) if every_name else (10, 3)
    for group in groups[:listed]:
        count = plural(sum(one.is_image for one in group), "DLL")
        yield Line(f"{extent(found.told(group))}: {count}", Style.NAME)
        for region in group[:named]:
            yield Line(f"  {extent(region)} {printable(region.path)}", Style.NAME)
        if len(group) > named:
            yield Line(f"  and {len(group) - named:,} more here", Style.NAME)
    if len(groups) > listed:
        yield Line(f"and {plural(len(groups) - listed, 'more place')}", Style.NAME)
    if any(found.told(group).cure for group in groups):
        yield Line(f"rebaser run {printable(root)} moves them apart", Style.NAME)
    else:
        yield Line("No run moves these; 'rebaser check' says why", Style.NAME)


def extent(one: Group | Part | Range | Span) -> str:
    """Return from where to where something lies."""
    end = f"-{address(one.high)}" if one.high < 1 << 47 else " and up"
    return f"{address(one.low)}{end}"
