"""What lies where in the address space of a tree; pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from itertools import cycle

from cygwin.address_space import GRANULARITY, I386, RUNTIME, X86_64, Range, is_runtime
from cygwin.named_tuple import NamedTuple
from rebaser.plan.overlap import Span, clusters


class Kind(Enum):
    """What a range of addresses is, as a legend says it."""

    IMAGE = "DLL"
    NEXT_IMAGE = "next DLL"
    PARTLY = "DLLs and free space"
    OVERLAP = "OVERLAP"
    FREE = "free"
    RUNTIME = "kept for the Cygwin runtime"
    OTHERS = "kept for others"


class Region(NamedTuple):
    """A span and whose it is; `path` is the image's, or says what the range is kept for."""

    low: int
    high: int
    path: str
    kind: Kind = Kind.IMAGE

    @property
    def is_image(self) -> bool:
        """Whether a DLL lies here."""
        return self.kind in (Kind.IMAGE, Kind.NEXT_IMAGE)


class Zone(NamedTuple):
    """A part of the address space with one purpose."""

    low: int
    high: int
    purpose: str
    is_arena: bool = False


class Use(NamedTuple):
    """How the arena is used, in bytes: by DLLs, by others alone, and not at all."""

    images: int
    others: int
    free: int
    largest_gap: Range | None


class AddressMap(NamedTuple):
    """The address space of one machine.

    `images`, every other one a NEXT_IMAGE, and `others` are sorted by address. `collisions` are
    the addresses that two have, `groups` the regions that share them: in each what is reserved,
    then the DLLs by address. No run moves the images whose paths are in `stuck`.
    """

    machine: int
    arena: Range
    images: tuple[Region, ...]
    others: tuple[Region, ...]
    collisions: tuple[Range, ...]
    groups: tuple[Sequence[Region], ...]
    stuck: Collection[str] = ()

    @property
    def colliding(self) -> int:
        """The number of DLLs that share an address with another one or with a reserved range."""
        return sum(region.is_image for group in self.groups for region in group)

    def cure(self, group: Sequence[Region]) -> str | None:
        """Return "run" where a run moves a DLL of a group, else None."""
        free = any(one.is_image and one.path not in self.stuck for one in group)
        return "run" if free else None

    def extent(self, group: Sequence[Region]) -> Range:
        """Return the addresses from the first to the last that two of a group have."""
        images = [region for region in group if region.is_image]
        low, high = min(image.low for image in images), max(image.high for image in images)
        shared = [part for part in self.collisions if part.low < high and part.high > low]
        return Range(shared[0].low, shared[-1].high)

    def use(self) -> Use:
        """Return how much of the arena is used and free."""
        arena = self.arena
        images = sum(part.high - part.low for part in merged(self.images, arena))
        by_all = merged((*self.images, *self.others), arena)
        used = sum(part.high - part.low for part in by_all)
        free = zip([arena.low, *(part.high for part in by_all)], [*by_all, Range(arena.high, 0)])
        gaps = [Range(low, part.low) for low, part in free if part.low > low]
        return Use(
            images=images,
            others=used - images,
            free=arena.high - arena.low - used,
            largest_gap=max(gaps, key=lambda gap: (gap.high - gap.low, -gap.low), default=None),
        )


def address_map(
    machine: int,
    arena: Range,
    images: Iterable[Span],
    others: Iterable[Region],
    stuck: Collection[str] = (),
) -> AddressMap:
    """Sort out who lies where. The runtime's own DLL in the runtime's range is no collision."""
    turns = cycle((Kind.IMAGE, Kind.NEXT_IMAGE))
    placed = tuple(
        Region(one.low, one.high, one.path, kind)
        for one, kind in zip(sorted(images, key=_by_address), turns)
    )
    kept = tuple(sorted(others, key=_by_address))
    collisions = tuple(_collisions(placed, kept))
    highs = [part.high for part in collisions]

    def collides(span: Region) -> bool:
        index = bisect_right(highs, span.low)
        return index < len(collisions) and collisions[index].low < span.high

    # In order of address, but what is reserved first: a reader of a long group must see it.
    clustered = clusters((*placed, *kept))
    groups = (sorted(filter(collides, one), key=lambda r: r.is_image) for one in clustered)
    return AddressMap(machine, arena, placed, kept, collisions, tuple(filter(None, groups)), stuck)


def zones(machine: int, arena: Range) -> list[Zone]:
    """Return the parts of the address space of a machine, upward, the arena cut out of the rest."""
    found = [Zone(*arena, "for rebased DLLs", is_arena=True)]
    parts = _PARTS.get(machine, ((0, "all others"),))
    for (start, purpose), end in zip(parts, [*(part[0] for part in parts[1:]), 1 << 64]):
        for low, high in ((start, min(end, arena.low)), (max(start, arena.high), end)):
            # The arena does not begin with the first slot of its zone: that is no zone by itself.
            if high - low > GRANULARITY:
                found.append(Zone(low, high, purpose))
    return sorted(found, key=lambda zone: zone.low)


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


def _by_address(region: Span | Region) -> tuple[int, int, str]:
    return region.low, region.high, region.path


def merged(regions: Iterable[Region], within: Range) -> list[Range]:
    """Return the addresses that any of `regions` has, within a range, as few ranges as possible."""
    found: list[Range] = []
    for region in sorted(regions, key=_by_address):
        low, high = max(region.low, within.low), min(region.high, within.high)
        if low >= high:
            continue
        if found and low <= found[-1].high:
            found[-1] = Range(found[-1].low, max(found[-1].high, high))
        else:
            found.append(Range(low, high))
    return found


def _collisions(images: Iterable[Region], others: Iterable[Region]) -> list[Range]:
    """Return the addresses that two images have, or an image and somebody else."""
    reach = {"image": 0, "runtime": 0, "others": 0}  # how far those that began below reach
    shared = []
    for region in sorted((*images, *others), key=_by_address):
        # The runtime's own images lie in its range by right.
        own = "runtime" if is_runtime(region.path) else "image"
        kind = own if region.is_image else "others"
        low, high = region.low, min(region.high, max(reach[one] for one in _AGAINST[kind]))
        if high > low:
            shared.append(Region(low, high, ""))
        reach[kind] = max(reach[kind], region.high)
    return merged(shared, Range(0, 1 << 64))


# Who is in whose way.
_AGAINST = {
    "image": ("image", "runtime", "others"),
    "runtime": ("image", "runtime"),
    "others": ("image",),
}
