"""The planner: what it promises, for any set of images."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cygwin.address_space import ARENA, ARM64, GRANULARITY, I386, X86_64, Range
from rebaser.plan.overlap import Span
from rebaser.plan.placement import NoRoomError, Placed, Plan, make_plan
from rebaser.report import Move

LOW = 0x2_0001_0000
SMALL = {X86_64: Range(LOW, LOW + 0x40_0000), I386: Range(0x3800_0000, 0x3840_0000)}
SLOTS = 0x40_0000 // GRANULARITY


def image(path: str, base: int, slots: int = 1, **fields: object) -> Placed:
    """Return an x86_64 image of so many slots."""
    placed = Placed(path, X86_64, base, slots * GRANULARITY, slots * 50_000)
    return placed._replace(**fields)  # type: ignore[arg-type]


def plan(
    images: Iterable[Placed],
    reserved: Mapping[int, Sequence[Span]] | None = None,
    arenas: Mapping[int, Range] = ARENA,
) -> dict[str, Move]:
    """Return the moves by path."""
    return {move.path: move for move in make_plan(images, arenas, reserved or {}).moves}


def shared(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two ranges share an address."""
    return one[0] < other[1] and other[0] < one[1]


# What lies where: inside the small arena, at its edges, outside, unaligned.
ADDRESSES = st.one_of(
    st.integers(0, SLOTS - 1).map(lambda n: LOW + n * GRANULARITY),
    st.integers(-3, SLOTS + 3).map(lambda n: LOW + n * GRANULARITY),
    st.integers(0, 0x40_0000).map(lambda n: LOW + n // 0x1000 * 0x1000),
    st.sampled_from([0x1_8000_0000, 0x4_0000_0000, 0x5_1234_0000]),
)


@st.composite
def some_images(draw: st.DrawFn) -> list[Placed]:
    """Return a few images that are likely to collide, of two machines, in any order of path."""
    found = []
    for number in range(draw(st.integers(0, 12))):
        machine = draw(st.sampled_from([X86_64, X86_64, X86_64, I386, ARM64]))
        base = draw(ADDRESSES)
        slots = draw(st.integers(1, 4))
        found.append(
            Placed(
                path=draw(st.sampled_from("abcdef")) + str(number),
                machine=machine,
                base=base - LOW + 0x3800_0000 if machine == I386 else base,
                slot_size=slots * GRANULARITY,
                file_size=draw(st.integers(1, 4)) * 1000,
                fixed=draw(st.booleans()) and draw(st.booleans()),
                clear_dynamic_base=draw(st.booleans()),
                known=draw(st.booleans()),
            )
        )
    return found


RESERVED = st.lists(
    st.tuples(st.integers(0, SLOTS), st.integers(1, 6)).map(
        lambda at: Span(LOW + at[0] * GRANULARITY, LOW + (at[0] + at[1]) * GRANULARITY, "others")
    ),
    max_size=3,
)


@settings(max_examples=200, deadline=None)
@given(some_images(), RESERVED, st.randoms(use_true_random=False))
def test_promises(images: list[Placed], reserved: list[Span], random: object) -> None:
    ranges = {X86_64: reserved}
    moves = plan(images, ranges, SMALL)

    for move in moves.values():
        old = next(i for i in images if i.path == move.path)
        assert not old.fixed
        arena = SMALL[old.machine]
        assert move.reason
        assert (move.machine, move.old_base, move.slot_size) == (
            old.machine,
            old.base,
            old.slot_size,
        )
        if move.new_base == old.base:
            assert old.clear_dynamic_base, "nothing to do for it"
            continue
        new = (move.new_base, move.new_base + old.slot_size)
        assert arena.low <= new[0]
        assert new[1] <= arena.high
        assert new[0] % GRANULARITY == 0
        for other in images:
            if other.machine == old.machine:
                assert not shared(new, (other.base, other.end)), "it was occupied at the scan"
        if old.machine == X86_64:
            for span in reserved:
                assert not shared(new, (span.low, span.high))

    def at(one: Placed, done: Iterable[str]) -> tuple[int, int]:
        base = moves[one.path].new_base if one.path in done else one.base
        return base, base + one.slot_size

    for one, other in combinations(images, 2):
        if one.machine != other.machine or one.machine not in SMALL:
            continue
        before = shared(at(one, ()), at(other, ()))
        # No subset of the moves adds an overlap: of a pair, neither, either or both have moved.
        for done in ((one.path,), (other.path,), (one.path, other.path)):
            if shared(at(one, moves.keys() & set(done)), at(other, moves.keys() & set(done))):
                assert before
        if not (one.fixed and other.fixed):
            assert not shared(at(one, moves), at(other, moves)), "they still overlap"

    for one in images:
        if one.path in moves or one.fixed or one.machine not in SMALL:
            continue
        assert one.base % GRANULARITY == 0
        assert SMALL[one.machine].low <= one.base
        assert one.end <= SMALL[one.machine].high
        assert not one.clear_dynamic_base

    # The order of the images makes no difference, nor does a second time.
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert make_plan(shuffled, SMALL, ranges) == make_plan(images, SMALL, ranges)
    assert make_plan(images, SMALL, ranges).kept == len(images) - len(moves)


@settings(max_examples=100, deadline=None)
@given(some_images(), RESERVED)
def test_nothing_moves_that_need_not(images: list[Placed], reserved: list[Span]) -> None:
    moves = plan(images, {X86_64: reserved}, SMALL)
    staying = {i.path: i for i in images if i.path not in moves or i.fixed}
    for one in images:
        move = moves.get(one.path)
        if move is None or move.new_base == move.old_base:
            continue
        arena = SMALL[one.machine]
        keeps_off = [
            (other.base, other.end) for other in staying.values() if other.machine == one.machine
        ]
        keeps_off += [
            (i.base, i.end)
            for i in images
            if i.machine == one.machine and i.path in moves and moves[i.path].new_base == i.base
        ]
        if one.machine == X86_64:
            keeps_off += [(span.low, span.high) for span in reserved]
        assert (
            one.base % GRANULARITY
            or one.base < arena.low
            or one.end > arena.high
            or any(shared((one.base, one.end), span) for span in keeps_off)
        ), f"{one.path} could have stayed"


@settings(max_examples=100, deadline=None)
@given(some_images(), RESERVED)
def test_a_second_plan_moves_nothing(images: list[Placed], reserved: list[Span]) -> None:
    ranges = {X86_64: reserved}
    moves = plan(images, ranges, SMALL)
    after = [
        i._replace(base=moves[i.path].new_base, clear_dynamic_base=False) if i.path in moves else i
        for i in images
    ]
    assert plan(after, ranges, SMALL) == {}


def test_who_stays() -> None:
    here = LOW + 0x10_0000
    known = image("z", here, known=True, file_size=1)
    large = image("y", here, file_size=9)
    small = image("a", here, file_size=5)
    first = image("b", here, file_size=5)
    assert plan([small, large, known, first]).keys() == {"a", "b", "y"}
    assert plan([small, large, first]).keys() == {"a", "b"}
    assert plan([small, first]).keys() == {"b"}
    assert plan([small, first])["b"].reason == "overlaps a"


def test_movers_go_upward_from_the_floor_in_order_of_path() -> None:
    moves = plan([image(name, 0x4_0000_0000, slots=2) for name in "cab"])
    assert [(m.path, m.new_base) for m in moves.values()] == [
        ("a", LOW),
        ("b", LOW + 0x2_0000),
        ("c", LOW + 0x4_0000),
    ]
    assert moves["a"].reason == "outside the address range for moved DLLs"


def test_the_floor_itself_is_no_place() -> None:
    # Cygwin's rebase refuses 0x200000000.
    assert plan([image("a", 0x2_0000_0000)])["a"].new_base == LOW


def test_gaps_are_filled_by_what_fits() -> None:
    stays = [image("s1", LOW + GRANULARITY), image("s2", LOW + 4 * GRANULARITY)]
    moves = plan([*stays, image("a", 0x4_0000_0000, 3), image("b", 0x4_0000_0000)])
    assert moves["a"].new_base == LOW + 5 * GRANULARITY
    assert moves["b"].new_base == LOW


def test_unaligned_images_move_and_block_both_slots() -> None:
    moves = plan([image("a", LOW + 0x8000), image("b", 0x4_0000_0000)])
    assert moves["a"].reason == "not at a multiple of 64 KiB"
    assert moves["a"].new_base == LOW + 2 * GRANULARITY
    assert moves["b"].new_base == LOW + 3 * GRANULARITY


def test_a_flag_is_cleared_where_the_image_stays() -> None:
    (move,) = make_plan([image("a", LOW, clear_dynamic_base=True)], ARENA, {}).moves
    assert (move.old_base, move.new_base, move.clear_dynamic_base) == (LOW, LOW, True)
    assert move.reason == "DYNAMIC_BASE is set"
    assert plan([image("a", LOW, clear_dynamic_base=True, fixed=True)]) == {}


def test_reserved_ranges_are_left_free_and_left() -> None:
    reserved = {X86_64: [Span(LOW, LOW + 0x2_0000, "/bin/other.dll")]}
    moves = plan([image("a", LOW + 0x1_0000), image("b", 0x4_0000_0000)], reserved)
    assert moves["a"].reason == "overlaps /bin/other.dll"
    assert moves["a"].new_base == LOW + 0x2_0000
    assert moves["b"].new_base == LOW + 0x3_0000


def test_appointed_slots_are_for_their_files_alone() -> None:
    slot = Range(LOW, LOW + 2 * GRANULARITY)
    images = [
        image("a", 0x4_0000_0000),
        image("z", 0x4_0000_0000, 2, database_slot=slot),
    ]
    moves = plan(images)
    assert moves["z"].new_base == LOW
    assert moves["a"].new_base == slot.high
    # It goes there only when it must move, and where it fits.
    assert plan([image("z", LOW + 0x10_0000, 2, database_slot=slot)]) == {}
    assert plan([image("z", 0x4_0000_0000, 3, database_slot=slot)])["z"].new_base == slot.high
    # Whoever lies in it has to go; only afterwards, in another run, is it free.
    moves = plan([image("a", LOW), image("z", 0x4_0000_0000, 2, database_slot=slot)])
    assert moves["a"].reason == "overlaps the addresses that Cygwin's database keeps for z"
    assert moves["z"].new_base >= slot.high


def test_machines_do_not_see_each_other() -> None:
    images = [
        image("a", 0x3800_0000)._replace(machine=I386),
        image("b", 0x3800_0000)._replace(machine=I386),
        image("c", LOW),
        image("d", LOW)._replace(machine=ARM64),
        image("e", LOW)._replace(machine=0x1234),
    ]
    moves = plan(images)
    assert moves.keys() == {"b"}
    assert moves["b"].new_base == 0x3801_0000


def test_no_room() -> None:
    arenas = {X86_64: Range(LOW, LOW + 4 * GRANULARITY)}
    fits = [image(f"{n}", 0x4_0000_0000) for n in range(4)]
    assert len(plan(fits, arenas=arenas)) == 4
    with pytest.raises(NoRoomError) as caught:
        plan([*fits, image("last.dll", 0x4_0000_0000, 3)], arenas=arenas)
    text = str(caught.value)
    assert "x86_64" in text
    assert "last.dll" in text
    assert "192 KiB" in text
    assert "Nothing was changed" in text
    assert caught.value.exit_status == 1


def test_not_one_slot_is_wasted_by_fragments() -> None:
    arenas = {X86_64: Range(LOW, LOW + 4 * GRANULARITY)}
    stays = [image("s", LOW + GRANULARITY)]
    with pytest.raises(NoRoomError, match="192 KiB are free, 128 KiB in one piece"):
        plan([*stays, image("m", 0x4_0000_0000, 3)], arenas=arenas)


def _crowd(count: int, base: int) -> list[Placed]:
    return [image(f"lib/{n:06}.dll", base, known=bool(n % 3)) for n in range(count)]


def _seconds(images: list[Placed]) -> tuple[float, Plan]:
    began = time.perf_counter()
    made = make_plan(images, ARENA, {})
    return time.perf_counter() - began, made


@pytest.mark.slow
def test_100_000_images(capsys: pytest.CaptureFixture[str]) -> None:
    ten, _ = _seconds(_crowd(10_000, 0x4_0000_0000))
    hundred, made = _seconds(_crowd(100_000, 0x4_0000_0000))
    collide, _ = _seconds(_crowd(100_000, LOW))
    with capsys.disabled():
        print(
            f"\nplan: 10,000 images {ten:.2f} s, 100,000 {hundred:.2f} s, "
            f"100,000 at one base in the arena {collide:.2f} s"
        )
    assert len({move.new_base for move in made.moves}) == 100_000
    # n log n would be 12.5 times; a square would be 100 times.
    assert hundred < 50 * ten + 1
