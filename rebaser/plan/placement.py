"""The planner: which images stay, which move, and where to; it is pure and touches no file."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from operator import attrgetter

from cygwin.address_space import ARENA, GRANULARITY, RUNTIME, Range, machine_name
from cygwin.values import NamedTuple
from rebaser.errors import RebaserError
from rebaser.plan.overlap import Span
from rebaser.report import Move
from rebaser.text import address, address_size, names, plural


class Placed(NamedTuple):
    """An image where it lies, and what may be done with it.

    `base` is an address, `slot_size` (SizeOfImage rounded up to 64 KiB) and `file_size` are bytes.
    """

    path: str
    machine: int
    base: int
    slot_size: int
    file_size: int
    fixed: bool = False
    """It cannot or may not be moved: an obstacle for the others."""
    clear_dynamic_base: bool = False
    """DYNAMIC_BASE is set and is to be cleared, even if the image keeps its base."""
    known: bool = False
    """The last run saw it at this base: it stays before newcomers."""
    database_slot: Range | None = None
    """The slot that Cygwin's database keeps for this file alone."""

    @property
    def end(self) -> int:
        """The address after the slot."""
        return self.base + self.slot_size

    def moved(self, new_base: int, reason: str) -> Move:
        """Return the move to a new base, or one that only clears DYNAMIC_BASE."""
        size, clear = self.slot_size, self.clear_dynamic_base
        return Move(self.path, self.machine, self.base, new_base, size, reason, clear)


class Plan(NamedTuple):
    """The moves, in order of path, and how many images keep base and flags."""

    moves: tuple[Move, ...]
    kept: int


class NoRoomError(RebaserError):
    """The address range (arena) cannot take all images that must move; nothing was changed."""


# The least that is reserved, by machine: into what is, no image is moved.
OF_RUNTIME = {
    machine: tuple(Span(*one, "the range of the Cygwin runtime") for one in ranges)
    for machine, ranges in RUNTIME.items()
}


def make_plan(
    images: Iterable[Placed],
    arenas: Mapping[int, Range] = ARENA,
    reserved: Mapping[int, Sequence[Span]] = OF_RUNTIME,
) -> Plan:
    """Decide which images move, and where to; `arenas` and `reserved` are by machine.

    Each machine is planned by itself; an image whose machine has no arena stays. An image stays
    if it lies in its arena, at a multiple of 64 KiB, and overlaps nothing. Of images that overlap,
    known ones stay before newcomers, then the larger file, then by path. What moves goes, in order
    of path, to the lowest free slot, and never to where any image lay before: so after any prefix
    of the moves there is no overlap that was not there at the start.

    Raises NoRoomError before anything is changed.
    """
    by_machine: dict[int, list[Placed]] = {}
    for image in images:
        by_machine.setdefault(image.machine, []).append(image)
    moves: list[Move] = []
    for machine, members in by_machine.items():
        if machine in arenas:
            moves += _moves(members, arenas[machine], reserved.get(machine, ()))
    return Plan(tuple(sorted(moves)), sum(map(len, by_machine.values())) - len(moves))


def must_move(base: int, slot_size: int, arena: Range) -> str | None:
    """Return why an image cannot stay where it is, whatever lies around it, or None."""
    if base % GRANULARITY:
        return "not at a multiple of 64 KiB"
    if not arena.low <= base or not base + slot_size <= arena.high:
        return "outside the address range for moved DLLs"
    return None


class _Slots:
    """The slots of an arena, one byte each: taken or free."""

    def __init__(self, arena: Range, spans: Iterable[Span]) -> None:
        self.low, self.high = arena
        self.taken = bytearray((arena.high - arena.low) // GRANULARITY)
        self.lowest_fit: dict[int, int] = {}
        for span in spans:
            self.take(span.low, span.high)

    def take(self, low: int, high: int) -> None:
        if high > self.low and low < self.high:
            first, end = self._indices(low, high)
            self.taken[first:end] = b"\1" * (end - first)

    def is_free(self, low: int, high: int) -> bool:
        return self.taken.find(1, *self._indices(low, high)) < 0

    def _indices(self, low: int, high: int) -> tuple[int, int]:
        """Return the first slot that the range touches and the one after its last."""
        first = (low - self.low) // GRANULARITY
        return max(first, 0), -((self.low - high) // GRANULARITY)

    def lowest(self, size: int) -> int | None:
        """Return the lowest address where `size` bytes are free."""
        count = size // GRANULARITY
        # Slots are only ever taken, so the lowest fit for a size never goes down.
        found = self.taken.find(bytes(count), self.lowest_fit.get(count, 0))
        if found < 0:
            return None
        self.lowest_fit[count] = found
        return self.low + found * GRANULARITY


class Obstacles:
    """Spans; finds one that overlaps a given range."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = sorted(spans)
        self.lows = [span.low for span in self.spans]
        # The span that reaches highest of all that start at or below each one.
        self.highest = list(accumulate(self.spans, partial(max, key=attrgetter("high"))))

    def overlapping(self, low: int, high: int) -> str | None:
        """Return the owner of one that overlaps `[low, high)`, or None."""
        index = bisect_left(self.lows, high) - 1
        span = self.highest[index] if index >= 0 else None
        return span.path if span and span.high > low else None


def _moves(images: Collection[Placed], arena: Range, reserved: Sequence[Span]) -> list[Move]:
    lie = [Span(image.base, image.end, image.path) for image in images]
    obstacles = Obstacles([*reserved, *(span for span, one in zip(lie, images) if one.fixed)])
    # What Cygwin's database keeps is free for one file only.
    kept = Obstacles(Span(*one.database_slot, one.path) for one in images if one.database_slot)
    reasons = _reasons_to_move(images, arena, obstacles, kept)
    occupied = _Slots(arena, [*reserved, *lie])
    free_for_all = _Slots(arena, [*reserved, *lie, *kept.spans]) if kept.spans else occupied
    moves: list[Move] = []
    unplaced: list[Placed] = []
    for image in sorted(images, key=attrgetter("path")):
        reason = reasons.get(image.path)
        if reason is None:
            if image.clear_dynamic_base and not image.fixed:
                moves.append(image.moved(image.base, "DYNAMIC_BASE is set"))
            continue
        new_base = _new_base(image, arena, occupied, free_for_all)
        if new_base is None:
            unplaced.append(image)
            continue
        for slots in (occupied, free_for_all):
            slots.take(new_base, new_base + image.slot_size)
        moves.append(image.moved(new_base, reason))
    if unplaced:
        raise NoRoomError(_no_room(unplaced, arena, free_for_all))
    return moves


def _reasons_to_move(
    images: Iterable[Placed], arena: Range, obstacles: Obstacles, database_slots: Obstacles
) -> dict[str, str]:
    free = [image for image in images if not image.fixed]
    reasons = {i.path: why for i in free if (why := must_move(i.base, i.slot_size, arena))}
    candidates = (image for image in free if image.path not in reasons)
    staying = _Slots(arena, ())
    stayed: list[Span] = []
    crowded_out = []
    for image in sorted(candidates, key=lambda i: (not i.known, -i.file_size, i.path)):
        owner = obstacles.overlapping(image.base, image.end)
        if database_slots.spans:
            owner = owner or _other_database_slot(image, database_slots)
        if owner is not None:
            reasons[image.path] = f"overlaps {owner}"
        elif staying.is_free(image.base, image.end):
            staying.take(image.base, image.end)
            stayed.append(Span(image.base, image.end, image.path))
        else:
            crowded_out.append(image)
    kept = Obstacles(stayed)
    for image in crowded_out:
        reasons[image.path] = f"overlaps {kept.overlapping(image.base, image.end)}"
    return reasons


def _new_base(image: Placed, arena: Range, occupied: _Slots, free_for_all: _Slots) -> int | None:
    own = image.database_slot
    if (
        own is not None
        and image.slot_size <= own.high - own.low
        and must_move(own.low, own.high - own.low, arena) is None
        and occupied.is_free(*own)
    ):
        return own.low
    return free_for_all.lowest(image.slot_size)


def _other_database_slot(image: Placed, database_slots: Obstacles) -> str | None:
    """Return in whose database slot the image lies, if that is not its own."""
    own = image.database_slot or Range(image.end, image.end)
    for low, high in ((image.base, own.low), (own.high, image.end)):
        low, high = max(low, image.base), min(high, image.end)
        if low < high and (owner := database_slots.overlapping(low, high)):
            return f"the addresses that Cygwin's database keeps for {owner}"
    return None


def _no_room(unplaced: Sequence[Placed], arena: Range, slots: _Slots) -> str:
    missing = sum(image.slot_size for image in unplaced)
    free = slots.taken.count(0) * GRANULARITY
    largest = max(map(len, bytes(slots.taken).split(b"\1"))) * GRANULARITY
    return (
        f"no room left for {plural(len(unplaced), 'DLL')} ({address_size(missing)}: "
        f"{names([image.path for image in unplaced])}) in the address range "
        f"{address(arena.low)}-{address(arena.high)} for {machine_name(unplaced[0].machine)}: "
        f"{address_size(free)} are free, {address_size(largest)} in one piece. "
        "Nothing was changed; give a larger range with --arena LOW-HIGH"
    )
