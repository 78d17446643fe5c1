"""What lies where in the address space of a tree, and how a picture of it falls into rows; pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from cygwin.address_space import GRANULARITY, I386, RUNTIME, X86_64, Range, is_runtime
from rebaser.plan.overlap import Span, clusters


class Kind(Enum):
    """Who has a range of addresses."""

    IMAGE = "DLL"
    RUNTIME = "Cygwin runtime"
    DATABASE = "Cygwin's database"
    AVOID = "--avoid"


@dataclass(frozen=True)
class Region(Span):
    """A span and whose it is; `path` is the image's, or says what the range is kept for."""

    kind: Kind = Kind.IMAGE


@dataclass(frozen=True)
class Zone:
    """A part of the address space with one purpose; `free` says what its empty addresses are."""

    low: int
    high: int
    name: str
    free: str
    is_arena: bool = False


@dataclass(frozen=True)
class Use:
    """How the arena is used, in bytes: by DLLs, by others alone, and not at all."""

    images: int
    others: int
    free: int
    largest_gap: Range | None


@dataclass(frozen=True)
class AddressMap:
    """The address space of one machine.

    `images` and `others` are sorted by address. `collisions` are the addresses that two have,
    `groups` the regions that share them: in each what is reserved, then the DLLs by address.
    """

    machine: int
    arena: Range
    images: tuple[Region, ...]
    others: tuple[Region, ...]
    collisions: tuple[Range, ...]
    groups: tuple[Sequence[Region], ...]

    @property
    def colliding(self) -> int:
        """The number of DLLs that share an address with another one or with a reserved range."""
        return sum(region.kind is Kind.IMAGE for group in self.groups for region in group)


def address_map(
    machine: int, arena: Range, images: Iterable[Region], others: Iterable[Region]
) -> AddressMap:
    """Sort out who lies where. The runtime's own DLL in the runtime's range is no collision."""
    placed = tuple(sorted(images, key=_by_address))
    kept = tuple(sorted(others, key=_by_address))
    collisions = tuple(_collisions(placed, kept))
    highs = [part.high for part in collisions]

    def collides(span: Span) -> bool:
        index = bisect_right(highs, span.low)
        return index < len(collisions) and collisions[index].low < span.high

    # In order of address, but what is reserved first: a reader of a long group must see it.
    groups = (
        sorted(
            (span for span in cluster if isinstance(span, Region) and collides(span)),
            key=lambda region: region.kind is Kind.IMAGE,
        )
        for cluster in clusters((*placed, *kept))
    )
    return AddressMap(
        machine, arena, placed, kept, collisions, tuple(group for group in groups if group)
    )


def use_of(found: AddressMap) -> Use:
    """Return how much of the arena is used and free."""
    arena = found.arena
    by_images = _merged(found.images, arena)
    by_all = _merged((*found.images, *found.others), arena)
    images = sum(part.high - part.low for part in by_images)
    used = sum(part.high - part.low for part in by_all)
    return Use(
        images=images,
        others=used - images,
        free=arena.high - arena.low - used,
        largest_gap=max(
            _gaps(by_all, arena), key=lambda gap: (gap.high - gap.low, -gap.low), default=None
        ),
    )


def extent(found: AddressMap, group: Sequence[Region]) -> tuple[int, int]:
    """Return the first address that two of a group have, and the one after the last."""
    images = [region for region in group if region.kind is Kind.IMAGE]
    low, high = min(image.low for image in images), max(image.high for image in images)
    shared = [part for part in found.collisions if part.low < high and part.high > low]
    return shared[0].low, shared[-1].high


def zones(machine: int, arena: Range) -> tuple[Zone, ...]:
    """Return the parts of the address space of a machine, upward, the arena cut out of the rest."""
    whole = [Zone(arena.low, arena.high, "the arena", "free", is_arena=True)]
    for zone in _ZONES.get(machine, (Zone(0, 1 << 64, "other addresses", "empty"),)):
        for low, high in (
            (zone.low, min(zone.high, arena.low)),
            (max(zone.low, arena.high), zone.high),
        ):
            # The arena does not begin with the first slot of its zone: that is no zone by itself.
            if high - low > GRANULARITY:
                whole.append(Zone(low, high, zone.name, zone.free))
    return tuple(sorted(whole, key=lambda zone: zone.low))


# Cygwin's winsup/cygwin/local_includes/memory_layout.h; i386: cygwin.address_space.
_RUNTIME_64 = RUNTIME[X86_64][0]
_ZONES = {
    X86_64: (
        Zone(0, _RUNTIME_64.low, "programs", "empty"),
        Zone(_RUNTIME_64.low, _RUNTIME_64.high, "the Cygwin runtime", "kept for the runtime"),
        Zone(0x2_0000_0000, 0x4_0000_0000, "rebased DLLs", "empty"),
        Zone(0x4_0000_0000, 0x6_0000_0000, "DLLs as the linker left them", "empty"),
        Zone(0x6_0000_0000, 1 << 64, "stacks and heap", "empty"),
    ),
    I386: (
        Zone(0, 0x3800_0000, "programs and heap", "empty"),
        Zone(0x3800_0000, 0x7000_0000, "rebased DLLs", "empty"),
        Zone(0x7000_0000, 1 << 32, "DLLs of Windows", "empty"),
    ),
}


# Rows of a picture.


@dataclass(frozen=True)
class Row:
    """The addresses from `low` on, one row of the picture; `parts` are the regions in it."""

    low: int
    parts: tuple[Region, ...]
    collisions: tuple[Range, ...]


@dataclass(frozen=True)
class Gap:
    """Rows left out because nothing is in them: addresses `[low, high)`."""

    low: int
    high: int


@dataclass(frozen=True)
class Drawing:
    """A zone in rows of `row_size` bytes each."""

    zone: Zone
    row_size: int
    lines: tuple[Row | Gap, ...]


def draw(found: AddressMap, zone: Zone, *, cells: int, most_rows: int) -> Drawing:
    """Lay a zone out in rows of `cells` cells, each of at least one slot.

    The scale is the finest, by powers of two, at which no more than `most_rows` rows have
    something in them. Empty rows are left out. A zone with nothing in it has no lines.
    """
    # What a zone as a whole is kept for does not make a row of it worth drawing.
    regions = [
        region
        for region in (*found.images, *found.others)
        if region.low < zone.high
        and region.high > zone.low
        and not (region.low <= zone.low and zone.high <= region.high)
    ]
    covered = _merged(regions, Range(zone.low, zone.high))
    row_size = cells * GRANULARITY
    while len(rows := _rows(covered, row_size, most_rows)) > most_rows:
        row_size *= 2
    if not rows:
        return Drawing(zone, row_size, ())
    parts: dict[int, list[Region]] = {row: [] for row in rows}
    for region in sorted((*found.images, *found.others), key=_by_address):
        low, high = max(region.low, zone.low), min(region.high, zone.high)
        if low < high:
            # A region that covers the whole zone touches rows that are left out.
            first, last = low // row_size, (high - 1) // row_size
            wanted = rows if last - first > most_rows else range(first, last + 1)
            for row in wanted:
                if row in parts:
                    parts[row].append(region)
    lines: list[Row | Gap] = []
    end = zone.low
    for row in rows:
        low = row * row_size
        if low > end:
            lines.append(Gap(end, low))
        end = low + row_size
        inside = tuple(c for c in found.collisions if c.low < end and c.high > low)
        lines.append(Row(low, tuple(parts[row]), inside))
    if zone.high > end:
        lines.append(Gap(end, zone.high))
    return Drawing(zone, row_size, tuple(lines))


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


class Cell(Enum):
    """What one cell of a picture made of characters holds."""

    OUTSIDE = "nothing"
    FREE = "free"
    IMAGE = "a DLL"
    NEXT_IMAGE = "the next DLL"
    PARTLY = "DLLs and free space"
    RUNTIME = "Cygwin runtime"
    DATABASE = "Cygwin's database"
    AVOID = "--avoid"
    COLLISION = "overlap"


_OF_OTHERS = {
    Kind.RUNTIME: Cell.RUNTIME,
    Kind.DATABASE: Cell.DATABASE,
    Kind.AVOID: Cell.AVOID,
}


def cells_of(row: Row, drawing: Drawing, cells: int) -> list[Cell]:
    """Return a row as cells. A cell with a collision in it shows nothing else, however small."""
    zone = drawing.zone
    size = drawing.row_size // cells
    found = [Cell.OUTSIDE] * cells
    if zone.is_arena:
        for index in _indices(zone.low, zone.high, row.low, size, cells):
            found[index] = Cell.FREE
    for region in row.parts:
        if region.kind is not Kind.IMAGE:
            for index in _indices(region.low, region.high, row.low, size, cells):
                found[index] = _OF_OTHERS[region.kind]
    filled = [0] * cells
    several: set[int] = set()
    turn = 0
    for region in row.parts:
        if region.kind is Kind.IMAGE:
            turn += 1
            for index in _indices(region.low, region.high, row.low, size, cells):
                start = row.low + index * size
                if filled[index]:
                    several.add(index)
                filled[index] += min(region.high, start + size) - max(region.low, start)
                if filled[index] < size:
                    found[index] = Cell.PARTLY
                else:
                    odd = turn % 2 and index not in several
                    found[index] = Cell.NEXT_IMAGE if odd else Cell.IMAGE
    for part in row.collisions:
        for index in _indices(part.low, part.high, row.low, size, cells):
            found[index] = Cell.COLLISION
    return found


def _indices(low: int, high: int, start: int, size: int, cells: int) -> range:
    return range(max(0, (low - start) // size), min(cells, -((start - high) // size)))


# Arithmetic with ranges.


def _by_address(region: Region) -> tuple[int, int, str]:
    return region.low, region.high, region.path


def _merged(regions: Iterable[Region | Range], within: Range) -> list[Range]:
    """Return the addresses that any of `regions` has, within a range, as few ranges as possible."""
    found: list[Range] = []
    for region in sorted(regions, key=lambda r: (r.low, r.high)):
        low, high = max(region.low, within.low), min(region.high, within.high)
        if low >= high:
            continue
        if found and low <= found[-1].high:
            found[-1] = Range(found[-1].low, max(found[-1].high, high))
        else:
            found.append(Range(low, high))
    return found


def _gaps(merged: Iterable[Range], within: Range) -> list[Range]:
    found = []
    low = within.low
    for part in merged:
        if part.low > low:
            found.append(Range(low, part.low))
        low = part.high
    if within.high > low:
        found.append(Range(low, within.high))
    return found


def _collisions(images: Iterable[Region], others: Iterable[Region]) -> list[Range]:
    """Return the addresses that two images have, or an image and somebody else."""
    # Counters: images; the runtime's own images, which lie in its range by right; others.
    steps: list[tuple[int, int, int]] = []
    for image in images:
        which = 1 if is_runtime(image.path) else 0
        steps += [(image.low, 1, which), (image.high, -1, which)]
    for other in others:
        steps += [(other.low, 1, 2), (other.high, -1, 2)]
    steps.sort()
    open_ = [0, 0, 0]
    found: list[Range] = []
    began: int | None = None
    for at, step, which in steps:
        open_[which] += step
        collide = open_[0] + open_[1] > 1 or (open_[0] > 0 and open_[2] > 0)
        if collide and began is None:
            began = at
        elif not collide and began is not None:
            if at > began:
                found.append(Range(began, at))
            began = None
    return found


def binary_size(size: int) -> str:
    """Return a size of address space in bytes for people, in binary units: `64 KiB`, `7.9 GiB`."""
    value = float(size)
    names = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(names) > 1:
        value /= 1024
        del names[0]
    return f"{value:.{0 if value == int(value) or value >= 100 else 1}f} {names[0]}"
