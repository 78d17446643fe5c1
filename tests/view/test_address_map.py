"""The address map: who collides, what is free, and how it falls into rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cygwin.address_space import ARENA, GRANULARITY, I386, RUNTIME, X86_64, Range
from rebaser.address_map import (
    AddressMap,
    Cell,
    Gap,
    Kind,
    Region,
    Row,
    address_map,
    binary_size,
    cells_of,
    draw,
    extent,
    use_of,
    zones,
)

ARENA_64 = ARENA[X86_64]
LOW = ARENA_64.low
THE_RUNTIME = Region(RUNTIME[X86_64][0].low, RUNTIME[X86_64][0].high, "runtime", Kind.RUNTIME)


def image(slot: int, slots: int = 1, path: str | None = None, base: int = LOW) -> Region:
    """Return an image so many slots above the floor of the arena."""
    low = base + slot * GRANULARITY
    return Region(low, low + slots * GRANULARITY, path or f"x{slot}.dll")


def made(*images: Region, others: tuple[Region, ...] = (THE_RUNTIME,)) -> AddressMap:
    return address_map(X86_64, ARENA_64, images, others)


def arena_of(found: AddressMap) -> object:
    return next(zone for zone in zones(found.machine, found.arena) if zone.is_arena)


def rows_of(found: AddressMap, most: int = 16) -> list[list[Cell]]:
    drawing = draw(found, arena_of(found), cells=64, most_rows=most)  # type: ignore[arg-type]
    return [cells_of(line, drawing, 64) for line in drawing.lines if isinstance(line, Row)]


class TestCollisions:
    def test_neighbours_do_not_collide(self) -> None:
        found = made(image(0, 2), image(2, 3), image(5))
        assert found.collisions == ()
        assert found.colliding == 0

    def test_a_shared_slot(self) -> None:
        found = made(image(0, 2, "a"), image(1, 3, "b"), image(9, 1, "c"))
        assert found.collisions == (Range(LOW + GRANULARITY, LOW + 2 * GRANULARITY),)
        assert [[r.path for r in group] for group in found.groups] == [["a", "b"]]
        assert found.colliding == 2
        assert extent(found, found.groups[0]) == (LOW + GRANULARITY, LOW + 2 * GRANULARITY)

    def test_an_image_on_a_reserved_range(self) -> None:
        kept = Region(LOW, LOW + 8 * GRANULARITY, "theirs", Kind.DATABASE)
        found = made(image(3), others=(kept,))
        assert [[r.path for r in group] for group in found.groups] == [["theirs", "x3.dll"]]
        assert found.colliding == 1

    def test_reserved_ranges_may_overlap_each_other(self) -> None:
        kept = [Region(LOW, LOW + 8 * GRANULARITY, name, Kind.AVOID) for name in "ab"]
        assert made(image(9), others=tuple(kept)).groups == ()

    def test_the_runtime_in_its_own_range_is_none(self) -> None:
        assert made(Region(0x1_8004_0000, 0x1_8034_0000, "bin/cygwin1.dll")).groups == ()
        other = Region(0x1_8034_0000, 0x1_8035_0000, "bin/other.dll")
        assert made(other).colliding == 1

    @given(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=12),
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=4),
    )
    def test_as_the_plain_way_finds_them(
        self, images: list[tuple[int, int]], others: list[tuple[int, int]]
    ) -> None:
        placed = [image(at, size, f"{n}.dll") for n, (at, size) in enumerate(images)]
        kept = [
            Region(one.low, one.high, one.path, Kind.AVOID)
            for one in (image(at, size, f"kept {n}") for n, (at, size) in enumerate(others))
        ]
        found = address_map(X86_64, ARENA_64, placed, kept)
        of_slot: dict[int, tuple[int, int]] = {}
        for region in (*placed, *kept):
            for low in range(region.low, region.high, GRANULARITY):
                counts = of_slot.get(low, (0, 0))
                is_image = region.kind is Kind.IMAGE
                of_slot[low] = counts[0] + is_image, counts[1] + (not is_image)
        plain = {low for low, (some, rest) in of_slot.items() if some > 1 or (some and rest)}
        slots = {
            low for part in found.collisions for low in range(part.low, part.high, GRANULARITY)
        }
        assert slots == plain
        named = {region.path for group in found.groups for region in group}
        assert named == {
            region.path
            for region in (*placed, *kept)
            if any(region.low <= low < region.high for low in plain)
        }
        use = use_of(found)
        taken = {low for low in of_slot if ARENA_64.low <= low < ARENA_64.high}
        assert use.free == ARENA_64.high - ARENA_64.low - len(taken) * GRANULARITY
        assert use.images == GRANULARITY * sum(some > 0 for some, _ in of_slot.values())


class TestUse:
    def test_an_empty_arena(self) -> None:
        use = use_of(made())
        assert (use.images, use.others) == (0, 0)
        assert use.largest_gap == ARENA_64
        assert use.free == ARENA_64.high - ARENA_64.low

    def test_a_full_arena(self) -> None:
        use = use_of(made(Region(0x1_0000_0000, 0x5_0000_0000, "vast.dll")))
        assert use.largest_gap is None
        assert use.free == 0

    def test_gaps(self) -> None:
        kept = Region(LOW + 0x100_0000, ARENA_64.high, "theirs", Kind.DATABASE)
        use = use_of(made(image(0), image(4), others=(kept,)))
        assert use.largest_gap == Range(LOW + 5 * GRANULARITY, LOW + 0x100_0000)
        assert use.others == ARENA_64.high - LOW - 0x100_0000


class TestZones:
    def test_they_cover_all_addresses_once(self) -> None:
        for machine, top in ((X86_64, 1 << 64), (I386, 1 << 32)):
            found = zones(machine, ARENA[machine])
            assert found[0].low == 0
            assert found[-1].high == top
            for lower, upper in zip(found, found[1:]):
                assert 0 <= upper.low - lower.high <= GRANULARITY
            assert [zone.is_arena for zone in found].count(True) == 1

    def test_another_arena_is_cut_out(self) -> None:
        found = zones(X86_64, Range(0x4_8000_0000, 0x4_9000_0000))
        names = [zone.name for zone in found]
        assert names.count("DLLs as the linker left them") == 2
        assert "rebased DLLs" in names


class TestRows:
    def test_the_finest_scale_that_fits(self) -> None:
        few = draw(made(*map(image, range(20))), arena_of(made()), cells=64, most_rows=16)  # type: ignore[arg-type]
        assert few.row_size == 64 * GRANULARITY
        far = made(image(0), image(131_000))
        assert len(rows_of(far)) == 2
        scattered = made(*(image(n * 700) for n in range(180)))
        assert 8 < len(rows_of(scattered)) <= 16

    def test_neighbours_differ_and_free_slots_show(self) -> None:
        (row,) = rows_of(made(image(0, 2), image(2), image(3), image(6)))
        assert row[0] is Cell.OUTSIDE  # the slot below the floor of the arena
        assert row[1] is row[2]
        assert row[2] is not row[3] is not row[4]
        assert row[5:7] == [Cell.FREE, Cell.FREE]

    def test_one_collision_among_thousands_is_seen(self) -> None:
        images = [image(2 * n, 2) for n in range(5000)]
        found = made(*images, image(4321, 1, "new.dll"))
        cells = [cell for row in rows_of(found) for cell in row]
        assert cells.count(Cell.COLLISION) == 1

    def test_what_is_left_out_and_what_is_drawn_is_everything(self) -> None:
        found = made(image(5), image(70_000, 3), image(131_000))
        zone = arena_of(found)
        drawing = draw(found, zone, cells=64, most_rows=16)  # type: ignore[arg-type]
        end = ARENA_64.low
        for line in drawing.lines:
            assert line.low <= end or isinstance(line, Row)
            end = line.high if isinstance(line, Gap) else line.low + drawing.row_size
        assert end >= ARENA_64.high

    def test_a_range_as_large_as_its_zone_makes_no_rows(self) -> None:
        found = made(image(0))
        runtime = next(zone for zone in zones(X86_64, ARENA_64) if "runtime" in zone.name)
        assert draw(found, runtime, cells=64, most_rows=6).lines == ()

    @given(st.lists(st.tuples(st.integers(0, 131_000), st.integers(1, 60)), max_size=60))
    def test_every_image_is_in_a_row(self, images: list[tuple[int, int]]) -> None:
        found = made(*(image(at, size, f"{n}") for n, (at, size) in enumerate(images)))
        drawing = draw(found, arena_of(found), cells=64, most_rows=16)  # type: ignore[arg-type]
        rows = [line for line in drawing.lines if isinstance(line, Row)]
        assert len(rows) <= 16
        drawn = {part.path for row in rows for part in row.parts}
        inside = {one.path for one in found.images if one.low < ARENA_64.high}
        assert drawn == inside
        for row in rows:
            cells = cells_of(row, drawing, 64)
            assert (Cell.COLLISION in cells) == bool(row.collisions)
            assert any(cell not in (Cell.FREE, Cell.OUTSIDE) for cell in cells)


def test_sizes_for_people() -> None:
    sizes = {
        0: "0 bytes",
        0x10000: "64 KiB",
        0x18000: "96 KiB",
        0x18000 * 16: "1.5 MiB",
        0x2_0000_0000: "8 GiB",
        1 << 47: "128 TiB",
        1 << 64: "16777216 TiB",
    }
    assert {size: binary_size(size) for size in sizes} == sizes
