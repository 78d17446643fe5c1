"""The address map: who collides, what is free, and how it falls into rows."""

from __future__ import annotations

from address_maps import ARENA_64, LOW, image, made
from hypothesis import given
from hypothesis import strategies as st

from cygwin.address_space import ARENA, GRANULARITY, I386, X86_64, Range
from rebaser.plan.overlap import Span
from rebaser.view import AddressMap, Kind, zones


class TestCollisions:
    def test_neighbours_do_not_collide(self) -> None:
        found = made(image(0, 2), image(2, 3), image(5))
        assert [part.kind for part in found.parts if part.low >= LOW] == [
            Kind.IMAGE,
            Kind.NEXT_IMAGE,
            Kind.IMAGE,
        ]
        assert found.colliding == 0

    def test_a_shared_slot(self) -> None:
        found = made(image(0, 2, "a"), image(1, 3, "b"), image(9, 1, "c"))
        (shared,) = [part for part in found.parts if part.kind is Kind.OVERLAP]
        assert (shared.low, shared.high) == (LOW + GRANULARITY, LOW + 2 * GRANULARITY)
        assert [[r.path for r in group] for group in found.groups] == [["a", "b"]]
        assert found.colliding == 2
        told = found.told(found.groups[0])
        assert (told.low, told.high, told.paths) == (LOW, LOW + 4 * GRANULARITY, ("a", "b"))

    def test_an_image_on_a_reserved_range(self) -> None:
        kept = Span(LOW, LOW + 8 * GRANULARITY, "theirs")
        found = made(image(3), others=(kept,))
        assert [[r.path for r in group] for group in found.groups] == [["theirs", "x3.dll"]]
        assert found.colliding == 1

    def test_what_a_run_cures(self) -> None:
        images = [image(0, 2, "a"), image(1, 3, "b"), image(9, 2, "c"), image(10, 1, "d")]
        found = AddressMap(X86_64, ARENA_64, images, (), stuck={"a", "b", "c"})
        assert [found.told(group).cure for group in found.groups] == [None, "run"]

    def test_reserved_ranges_may_overlap_each_other(self) -> None:
        kept = [Span(LOW, LOW + 8 * GRANULARITY, name) for name in "ab"]
        assert made(image(9), others=tuple(kept)).groups == []

    def test_the_runtime_in_its_own_range_is_none(self) -> None:
        assert made(Span(0x1_8004_0000, 0x1_8034_0000, "bin/cygwin1.dll")).groups == []
        other = Span(0x1_8034_0000, 0x1_8035_0000, "bin/other.dll")
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
            Span(one.low, one.high, one.path, is_image=False)
            for one in (image(at, size, f"kept {n}") for n, (at, size) in enumerate(others))
        ]
        found = AddressMap(X86_64, ARENA_64, placed, kept)
        of_slot: dict[int, tuple[int, int]] = {}
        for region in (*placed, *kept):
            for low in range(region.low, region.high, GRANULARITY):
                counts = of_slot.get(low, (0, 0))
                is_image = region.is_image
                of_slot[low] = counts[0] + is_image, counts[1] + (not is_image)
        plain = {low for low, (some, rest) in of_slot.items() if some > 1 or (some and rest)}
        slots = {
            low
            for part in found.parts
            if part.kind is Kind.OVERLAP
            for low in range(part.low, part.high, GRANULARITY)
        }
        assert slots == plain
        named = {region.path for group in found.groups for region in group}
        assert named == {
            region.path
            for region in (*placed, *kept)
            if any(region.low <= low < region.high for low in plain)
        }
        use = found.use()
        taken = {low for low in of_slot if ARENA_64.low <= low < ARENA_64.high}
        assert use.free == ARENA_64.high - ARENA_64.low - len(taken) * GRANULARITY
        assert use.used == GRANULARITY * sum(some > 0 for some, _ in of_slot.values())


class TestUse:
    def test_an_empty_arena(self) -> None:
        use = made().use()
        assert (use.used, use.kept_for_others) == (0, 0)
        assert use.largest_gap == ARENA_64
        assert use.free == ARENA_64.high - ARENA_64.low

    def test_a_full_arena(self) -> None:
        use = made(Span(0x1_0000_0000, 0x5_0000_0000, "vast.dll")).use()
        assert use.largest_gap is None
        assert use.free == 0

    def test_gaps(self) -> None:
        kept = Span(LOW + 0x100_0000, ARENA_64.high, "theirs")
        use = made(image(0), image(4), others=(kept,)).use()
        assert use.largest_gap == Range(LOW + 5 * GRANULARITY, LOW + 0x100_0000)
        assert use.kept_for_others == ARENA_64.high - LOW - 0x100_0000


class TestZones:
    def test_they_cover_all_addresses_once(self) -> None:
        for machine in (X86_64, I386):
            found = zones(machine, ARENA[machine])
            ranges = [zone for zone, _ in found]
            assert ranges[0].low == 0
            assert ranges[-1].high == 1 << 64
            for lower, upper in zip(ranges, ranges[1:]):
                assert 0 <= upper.low - lower.high <= GRANULARITY
            assert ranges.count(ARENA[machine]) == 1

    def test_another_arena_is_cut_out(self) -> None:
        found = zones(X86_64, Range(0x4_8000_0000, 0x4_9000_0000))
        names = [purpose for _, purpose in found]
        assert names.count("where the linker puts DLLs") == 2
        assert "for rebased DLLs" in names
