"""The picture: what falls into which row, and what is said beside it."""

from __future__ import annotations

from address_maps import ARENA_64, LOW, THE_RUNTIME, image, made
from hypothesis import given
from hypothesis import strategies as st

from cygwin.address_space import ARENA, GRANULARITY, I386, RUNTIME, X86_64
from rebaser.plan.overlap import Span
from rebaser.text import address_size
from rebaser.view import AddressMap, Kind, Line, Row, Style, picture, within


def drawn(found: AddressMap, most: int = 18) -> list[Line | Row]:
    return list(picture("/opt/tree", [found], cells=64, most_rows=most))


def rows_of(found: AddressMap) -> list[Row]:
    return [line for line in drawn(found) if isinstance(line, Row)]


def texts_of(found: AddressMap, *styles: Style) -> list[str]:
    return [one.text for one in drawn(found) if isinstance(one, Line) and one.style in styles]


class TestRows:
    def test_the_finest_scale_that_fits(self) -> None:
        (row,) = rows_of(made(*map(image, range(20))))
        assert row.size == 64 * GRANULARITY
        assert len(rows_of(made(image(0), image(131_000)))) == 2
        assert 8 < len(rows_of(made(*(image(n * 700) for n in range(180))))) <= 18

    def test_neighbours_differ_and_free_addresses_show(self) -> None:
        (row,) = rows_of(made(image(0, 2), image(2), image(6)))
        assert [(box.kind, (box.low - LOW) // GRANULARITY) for box in row.parts] == [
            (Kind.FREE, 0),  # not the slot below the floor
            (Kind.IMAGE, 0),
            (Kind.NEXT_IMAGE, 2),
            (Kind.IMAGE, 6),
        ]

    def test_one_overlap_among_thousands_is_there(self) -> None:
        images = [image(2 * n, 2) for n in range(5000)]
        rows = rows_of(made(*images, image(4321, 1, "new.dll")))
        (row,) = [row for row in rows if row.overlaps]
        (overlap,) = [part for part in row.parts if part.kind is Kind.OVERLAP]
        assert "new.dll" in [one.path for one in overlap.owners]

    def test_what_is_left_out_is_said(self) -> None:
        gaps = texts_of(made(image(5), image(131_000)), Style.GAP)
        assert gaps == ["... 8.0 GiB free ...", "... 4 MiB free ..."]
        kept = [Span(*one, "runtime") for one in RUNTIME[I386]]
        low = image(5, base=ARENA[I386].low)
        gaps = texts_of(AddressMap(I386, ARENA[I386], [low], kept), Style.GAP)
        assert gaps == ["... 892 MiB free or kept for the runtime ..."]

    def test_what_is_kept_for_the_runtime_alone_makes_no_rows(self) -> None:
        assert rows_of(made()) == []
        assert not [text for text in texts_of(made(), Style.ZONE) if "runtime" in text]

    @given(st.lists(st.tuples(st.integers(0, 131_000), st.integers(1, 60)), max_size=60))
    def test_every_image_is_in_a_row(self, images: list[tuple[int, int]]) -> None:
        found = made(*(image(at, size, f"{n}") for n, (at, size) in enumerate(images)))
        arena = [row for row in rows_of(found) if row.low < found.arena.high]
        assert len(arena) <= 18
        drawn = [part for row in arena for part in row.parts if part.owners]
        inside = within(found.parts, *found.arena)
        for kind in Kind:
            sizes = [
                sum(part.high - part.low for part in some if part.kind is kind)
                for some in (drawn, inside)
            ]
            assert sizes[0] == sizes[1], kind
        assert {one.path for part in drawn for one in part.owners} == {
            one.path for one in found.images if one.low < found.arena.high
        }
        for row in arena:
            assert all(row.low <= box.low < box.high <= row.low + row.size for box in row.parts)


class TestWords:
    def test_what_lies_in_an_address_range_is_counted(self) -> None:
        wheels = [Span(0x1_8000_0000, 0x1_8001_0000, f"{n}.pyd") for n in range(3)]
        own = Span(0x1_8004_0000, 0x1_8034_0000, "bin/cygwin1.dll")
        zone = "0x180000000-0x200000000 kept for the Cygwin runtime: "
        for images, held in ((wheels, "3 DLLs"), ([own], "1 DLL"), ([own, *wheels], "4 DLLs")):
            assert f"{zone}{held}" in texts_of(made(*images), Style.ZONE)

    def test_the_verdict_counts_dlls(self) -> None:
        found = made(*(image(0, 2, f"{n}.dll") for n in range(20)), image(9))
        assert texts_of(found, Style.ALARM)[0] == "x86_64: 21 DLLs, 20 OVERLAPPING"
        assert texts_of(found, Style.NAME) == [
            "0x200010000-0x200030000: 20 DLLs",
            "  0x200010000-0x200030000 0.dll",
            "  0x200010000-0x200030000 1.dll",
            "  0x200010000-0x200030000 10.dll",
            "  and 17 more here",
            "rebaser run /opt/tree moves them apart",
        ]

    def test_what_no_run_moves_is_not_promised(self) -> None:
        images = image(0, 2, "a"), image(0, 2, "b")
        stuck = AddressMap(X86_64, ARENA_64, images, (), {"a", "b"})
        assert texts_of(stuck, Style.NAME)[-1] == "No run moves these; 'rebaser check' says why"

    def test_the_runtime_is_named_where_a_dll_lies_on_its_range(self) -> None:
        found = made(Span(0x1_8000_0000, 0x1_8001_0000, "x.pyd"))
        assert f"  0x180000000-0x200000000 {THE_RUNTIME.path}" in texts_of(found, Style.NAME)


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
    assert {size: address_size(size) for size in sizes} == sizes
