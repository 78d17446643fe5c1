"""Relocating: the right bytes and no others, whatever the table's order or the words' alignment."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pe import (
    Shape,
    block,
    blocks,
    build,
    checksum_field,
    compile_dll,
    model,
    opened,
    read_data,
)

from cygwin import relocation
from cygwin.address_space import I386, X86_64, machine_name
from cygwin.fault import RelocationError
from cygwin.image import Image, read_image
from cygwin.relocation import check_and_sum, relocate
from rebaser.apply.engines import BuiltinEngine, Staged

MACHINES = pytest.mark.parametrize("machine", [I386, X86_64], ids=machine_name)
BASE = {I386: 0x6D00_0000, X86_64: 0x4_0000_0000}
NEW_BASE = {I386: 0x3801_0000, X86_64: 0x2_0001_0000}


def moved(
    data: bytes, path: Path, new_base: int, *, clear: bool = False, back: bool = True
) -> bytes:
    """Relocate, check and sum, and move there and back; return the relocated file."""
    image = read_data(data, path)
    assert image.fault is None
    with opened(path) as staged, opened(original(path, data), os.O_RDONLY) as old:
        relocate(staged, image, new_base, clear_dynamic_base=clear)
        check_and_sum(old, staged, image, new_base, clear_dynamic_base=clear)
        result = path.read_bytes()
        if back:
            again = read_image(staged, len(result))
            assert again.base == new_base
            relocate(staged, again, image.base, clear_dynamic_base=False)
            restored = bytearray(path.read_bytes())
            restored[image.flags_offset] = data[image.flags_offset]
            restored[checksum_field(data)] = data[checksum_field(data)]
            assert restored == data
    return result


def original(path: Path, data: bytes) -> Path:
    """Write the original beside the staged copy."""
    other = path.with_suffix(".original")
    other.write_bytes(data)
    return other


@MACHINES
@pytest.mark.parametrize("clear", [False, True], ids=["keep-flag", "clear-flag"])
@pytest.mark.parametrize("e_lfanew", [0x40, 0x80, 0x118])
def test_as_the_model(machine: int, clear: bool, e_lfanew: int, tmp_path: Path) -> None:
    data = build(machine=machine, base=BASE[machine], e_lfanew=e_lfanew, overlay=b"symbols")
    path = tmp_path / "x.dll"
    result = moved(data, path, NEW_BASE[machine], clear=clear)
    assert result == model(data, read_data(data, path), NEW_BASE[machine], clear)
    assert result != data


@MACHINES
def test_a_flag_alone(machine: int, tmp_path: Path) -> None:
    data = build(machine=machine, base=BASE[machine])
    result = moved(data, tmp_path / "x.dll", BASE[machine], clear=True)
    changed = [index for index in range(len(data)) if data[index] != result[index]]
    assert changed == [*range(0x80 + 88, 0x80 + 91), 0x80 + 24 + 70]
    assert result == model(data, read_data(data, tmp_path / "x.dll"), BASE[machine], True)


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(b"", id="no table"),
        pytest.param(block(0x1000, [1, 9, 17, 26, 35], 10), id="unaligned"),
        pytest.param(block(0x1000, [0xFFC], 10), id="over the end of a page"),
        pytest.param(
            block(0x1000, [0xFFC], 10) + block(0x2000, [4], 10), id="over a page's end and on"
        ),
        pytest.param(block(0x2000, [0], 10) + block(0x1000, [8], 10), id="pages in odd order"),
        pytest.param(block(0x1000, [0x800, 3, 0x100], 10), id="entries in odd order"),
        pytest.param(block(0x1000, [0], 10) + block(0x1000, [8], 10), id="page in two blocks"),
        pytest.param(block(0x1230, [0xFFF, 0], 10), id="page that is not aligned"),
        pytest.param(block(0x1000, [0], 10) + block(0x2000, [], 10), id="empty block"),
        pytest.param(block(0x1000, [0], 10) + bytes(12), id="padding"),
        pytest.param(block(0x1000, [], 10) + block(0x2000, [0xFF8], 10), id="last word"),
    ],
)
def test_odd_tables(table: bytes, tmp_path: Path) -> None:
    data = build(table=table)
    path = tmp_path / "x.dll"
    result = moved(data, path, NEW_BASE[X86_64])
    assert result == model(data, read_data(data, path), NEW_BASE[X86_64], False)


@MACHINES
@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_words_at_the_edges_of_windows(
    machine: int, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relocation, "WINDOW", 0x1100)  # pages and windows meet everywhere
    width = {I386: 4, X86_64: 8}[machine]
    words = [0x1000 + 13 * index for index in range(0x10000 // 13 - 1)]
    parts = blocks(words, width)
    if order == "descending":
        parts.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(parts)
    data = build(
        machine=machine,
        base=BASE[machine],
        data_size=0x10000,
        words=words,
        table=b"".join(parts),
    )
    path = tmp_path / "x.dll"
    result = moved(data, path, NEW_BASE[machine])
    assert result == model(data, read_data(data, path), NEW_BASE[machine], False)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Draw DLLs whose words hold noise, at any alignment, in blocks of any order."""
    machine = draw(st.sampled_from([I386, X86_64]))
    width = {I386: 4, X86_64: 8}[machine]
    word, words = 0x1000, []
    for gap in draw(st.lists(st.integers(0, 700), max_size=60)):
        word += gap
        words.append(word)
        word += width
    size = word - 0x1000 + draw(st.integers(1, 20))
    parts = draw(st.permutations(blocks(words, width)))
    aligned = st.integers(0x1_0000, 0xFFFF if machine == I386 else 0xFFFF_FFFF_FFF0)
    if machine == I386:
        aligned = st.integers(0, 0xFFF0)
    return Shape(
        machine=machine,
        base=draw(aligned) << 16,
        e_lfanew=draw(st.sampled_from([0x40, 0x80, 0xF8])),
        dll_characteristics=draw(st.integers(0, 0xFFFF)),
        data_size=size,
        words=(),
        table=b"".join(parts),
        overlay=draw(st.binary(max_size=20)),
    )


@settings(deadline=None)
@given(shape=shapes(), new_slot=st.integers(0x1_0000, 0xFFFF_FFFF_FFF0), clear=st.booleans())
@example(shape=Shape(base=0x4_0000_0000), new_slot=0xFFFF_FFFF_FFF0, clear=False)
def test_any_shape_as_the_model(
    shape: Shape, new_slot: int, clear: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dll"
    data = build(shape)
    new_base = (new_slot & (0xFFF0 if shape.machine == I386 else -1)) << 16
    result = moved(data, path, new_base, clear=clear)
    assert result == model(data, read_data(data, path), new_base, clear)


EDGES = {8: (0, 1, 0x1_0000, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)}
EDGES[4] = tuple(edge >> 32 if edge > 0xFFFF_FFFF else edge for edge in EDGES[8])


@MACHINES
@pytest.mark.parametrize("new_slot", [1, 0x7000, 0xFFF0])
def test_words_that_wrap_beside_each_other(machine: int, new_slot: int, tmp_path: Path) -> None:
    """Each word is moved by itself; none carries into what lies behind it."""
    width = {I386: 4, X86_64: 8}[machine]
    pairs = [(one, other) for one in EDGES[width] for other in EDGES[width]]
    values = b"".join(edge.to_bytes(width, "little") for pair in pairs for edge in (*pair, 0))
    # Two words of each pair are relocated, the third word behind them is not.
    words = [0x1000 + width * (3 * pair + at) for pair in range(len(pairs)) for at in (0, 1)]
    data = build(
        machine=machine, base=BASE[machine], words=words, data_size=0x1000, patches={0x200: values}
    )
    new_base = new_slot << 16 << (32 if machine == X86_64 else 0)
    path = tmp_path / "x.dll"
    result = moved(data, path, new_base)
    assert result == model(data, read_data(data, path), new_base, False)

    # What an engine makes that adds to all words at once and lets them carry.
    region = slice(0x200, 0x200 + len(values))
    number = int.from_bytes(values, "little")
    number += sum((new_base - BASE[machine]) << 8 * (word - 0x1000) for word in words)
    carried = bytearray(result)
    carried[region] = (number % (1 << 8 * len(values))).to_bytes(len(values), "little")
    assert carried != result
    with pytest.raises(RelocationError):
        checked(data, bytes(carried), path, new_base)


def checked(data: bytes, staged: bytes, path: Path, new_base: int, *, clear: bool = False) -> None:
    """Compare what should be a relocated file with its original."""
    image = read_data(data, path)
    path.write_bytes(staged)
    with opened(path) as new, opened(original(path, data), os.O_RDONLY) as old:
        check_and_sum(old, new, image, new_base, clear_dynamic_base=clear)


@MACHINES
@pytest.mark.parametrize("clear", [False, True], ids=["keep-flag", "clear-flag"])
def test_the_check_sees_every_bit(machine: int, clear: bool, tmp_path: Path) -> None:
    data = build(machine=machine, base=BASE[machine], data_size=0x1000, words=(0x1001, 0x1FF0))
    path = tmp_path / "x.dll"
    right = moved(data, path, NEW_BASE[machine], clear=clear)
    image = read_data(data, path)
    path.write_bytes(right)
    with opened(path) as new, opened(original(path, data), os.O_RDONLY) as old:
        check_and_sum(old, new, image, NEW_BASE[machine], clear_dynamic_base=clear)
        field = checksum_field(data)
        for offset, byte in enumerate(right):
            wrong = byte ^ 1 << offset % 8
            os.pwrite(new, bytes([wrong]), offset)
            if field.start <= offset < field.stop:  # it is made right, whatever it was
                check_and_sum(old, new, image, NEW_BASE[machine], clear_dynamic_base=clear)
                assert path.read_bytes() == right
                continue
            with pytest.raises(RelocationError) as caught:
                check_and_sum(old, new, image, NEW_BASE[machine], clear_dynamic_base=clear)
            expected = f"byte {offset} should be 0x{byte:02x} and is 0x{wrong:02x}"
            assert str(caught.value) == expected
            os.pwrite(new, bytes([byte]), offset)


@MACHINES
def test_the_check_sees_what_an_engine_may_do_wrong(machine: int, tmp_path: Path) -> None:
    data = build(machine=machine, base=BASE[machine])
    path = tmp_path / "x.dll"
    new_base = NEW_BASE[machine]
    right = moved(data, path, new_base)
    cleared = moved(data, path, new_base, clear=True)
    unmoved = bytearray(right)
    unmoved[0x200:0x208] = data[0x200:0x208]  # the first word, at RVA 0x1000
    wrong: list[tuple[bytes, bool]] = [
        (data, False),  # nothing done at all
        (moved(data, path, new_base + 0x10000), False),  # at another base
        (bytes(unmoved), False),  # a word forgotten
        (data[:0x200] + right[0x200:], False),  # the header forgotten
        (right[:0x200] + data[0x200:], False),  # all words forgotten
        (right, True),  # the flag kept
        (cleared, False),  # the flag cleared without being asked to
        (right + b"\0", False),
        (right[:-1], False),
        (b"", False),
    ]
    for staged, clear in wrong:
        with pytest.raises(RelocationError):
            checked(data, staged, path, new_base, clear=clear)


@settings(deadline=None)
@given(shape=shapes(), offset=st.integers(0), change=st.integers(1, 255))
def test_the_check_sees_any_changed_byte(
    shape: Shape, offset: int, change: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.dll"
    data = build(shape)
    new_base = NEW_BASE[shape.machine]
    right = moved(data, path, new_base, back=False)
    wrong = bytearray(right)
    wrong[offset % len(wrong)] ^= change
    field = checksum_field(data)
    if field.start <= offset % len(wrong) < field.stop:
        checked(data, bytes(wrong), path, new_base)
        assert path.read_bytes() == right
    else:
        with pytest.raises(RelocationError):
            checked(data, bytes(wrong), path, new_base)


@pytest.mark.parametrize("overlay", [b"", b"odd", b"\xff" * 70001])
@pytest.mark.parametrize("e_lfanew", [0x80, 0x81])
def test_the_checksum_is_right_whatever_it_was(
    overlay: bytes, e_lfanew: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.dll"
    data = bytearray(build(e_lfanew=e_lfanew, words=range(0x1001, 0x2F00, 17), overlay=overlay))
    results = set()
    for window in (relocation.WINDOW, 0x1101):  # windows that begin at odd offsets
        monkeypatch.setattr(relocation, "WINDOW", window)
        for before in (0, 1, 0xFFFF_FFFF, len(data)):
            data[checksum_field(data)] = before.to_bytes(4, "little")
            results.add(moved(bytes(data), path, NEW_BASE[X86_64]))
    assert results == {model(bytes(data), read_data(bytes(data), path), NEW_BASE[X86_64], False)}


def test_a_sum_of_zero_is_written_as_ffff(tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    data = bytearray(moved(build(overlay=bytes(2)), path, NEW_BASE[X86_64]))
    right = int.from_bytes(data[checksum_field(data)], "little") - len(data)
    overlay = (0xFFFF - right).to_bytes(2, "little")
    data = bytearray(moved(build(overlay=overlay), path, NEW_BASE[X86_64]))
    assert int.from_bytes(data[checksum_field(data)], "little") == 0xFFFF + len(data)


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    data = build()
    image = read_data(data, path)
    with opened(path) as staged:
        with pytest.raises(RelocationError, match="not a DLL"):
            relocate(
                staged,
                read_data(build(characteristics=0x22), tmp_path / "y"),
                0x2_0001_0000,
                clear_dynamic_base=False,
            )
        for base in (-0x10000, 1 << 64, (1 << 64) - 0x1000):
            with pytest.raises(RelocationError, match="does not fit"):
                relocate(staged, image, base, clear_dynamic_base=False)
        relocate(staged, image, 0x2_0001_0000, clear_dynamic_base=False)
        with pytest.raises(RelocationError, match="changed: its base was 0x400000000 and is 0x2"):
            relocate(staged, image, 0x2_0001_0000, clear_dynamic_base=False)


@pytest.mark.parametrize("length", [0x210, 0x2208])
def test_a_copy_that_is_too_short(length: int, tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    image = read_data(build(), path)
    with opened(path) as staged:
        os.truncate(staged, length)
        with pytest.raises(RelocationError):
            relocate(staged, image, 0x2_0001_0000, clear_dynamic_base=False)


def test_an_original_that_is_too_short(tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    data = build(table=block(0x1000, [0x800], 10))
    image = read_data(data, path)
    for file in (path, original(path, data)):
        os.truncate(file, image.blocks[-1].high - 1)
    refused = pytest.raises(RelocationError, match="truncated")
    with opened(path) as staged, opened(path.with_suffix(".original")) as old, refused:
        check_and_sum(old, staged, image, 0x2_0001_0000, clear_dynamic_base=False)


def test_the_builtin_engine_says_what_it_could_not_move(tmp_path: Path) -> None:
    images: list[Image] = []
    for name in ("a.dll", "b.dll", "c.dll"):
        images.append(read_data(build(), tmp_path / name))
    os.truncate(tmp_path / "b.dll", 0x300)
    # What cannot be written, for whatever reason: a descriptor that is open for reading only.
    with ExitStack() as stack:
        staged = []
        for name, image in zip(("a.dll", "b.dll", "c.dll"), images):
            mode = os.O_RDONLY if name == "c.dll" else os.O_RDWR
            descriptor = stack.enter_context(opened(tmp_path / name, mode))
            path = str(tmp_path / name)
            staged.append(Staged(path, descriptor, descriptor, image, 0x2_0001_0000, True))
        engine = BuiltinEngine()
        assert (engine.name, engine.version) == ("builtin", None)
        reasons = engine.relocate(staged)
    assert set(reasons) == {staged[1].path, staged[2].path}
    assert "truncated" in reasons[staged[1].path]
    assert "Bad file descriptor" in reasons[staged[2].path]
    with opened(tmp_path / "a.dll", os.O_RDONLY) as descriptor:
        image = read_image(descriptor, len(build()))
    assert (image.base, image.dll_characteristics & 0x40, image.fault) == (0x2_0001_0000, 0, None)


# Pointers at odd offsets, over page ends, in a packed array of some hundred KiB.
SOURCE = """
#pragma pack(1)
char target[5000];
struct odd { char letter; void *pointer; char letters[6]; };
#define P(n) { 1, target + n, "abcde" }
#define P8(n) P(n), P(n+1), P(n+2), P(n+3), P(n+4), P(n+5), P(n+6), P(n+7)
#define P64(n) P8(n), P8(n+8), P8(n+16), P8(n+24), P8(n+32), P8(n+40), P8(n+48), P8(n+56)
#define P512(n) P64(n), P64(n+64), P64(n+128), P64(n+192), P64(n+256), P64(n+320), P64(n+384)
struct odd data[] = { P512(0), P512(512), P512(1024), P512(2000) };
void *const aligned[] = { data, target, (void *)aligned };
int __stdcall entry(void *a, int b, void *c) { return target[b] + (aligned[b & 1] == c); }
"""


@MACHINES
@pytest.mark.slow
def test_as_if_the_linker_had_put_it_there(machine: int, tmp_path: Path) -> None:
    """A DLL linked for A and moved to B is the DLL that the linker makes for B."""
    entry = "_entry@12" if machine == I386 else "entry"
    options = f"-Wl,-s,-e,{entry},--no-insert-timestamp,--dynamicbase,--enable-reloc-section"

    def linked(base: int) -> bytes:
        at = f"{options},--image-base,0x{base:x}"
        return compile_dll(tmp_path / "x.dll", SOURCE, machine, at).read_bytes()

    here, there = linked(BASE[machine]), linked(NEW_BASE[machine])
    result = moved(here, tmp_path / "x.dll", NEW_BASE[machine])
    assert read_data(here, tmp_path / "x.dll").relocations[1] > 3000
    assert result == there, "the CheckSum, which ld writes, included"


MEMORY = """
import os, sys
from cygwin.image import read_image
from cygwin.relocation import check_and_sum, relocate
old, new = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_RDWR)
image = read_image(old, os.fstat(old).st_size)
assert image.fault is None, image.fault
relocate(new, image, 0x200010000, clear_dynamic_base=True)
check_and_sum(old, new, image, 0x200010000, clear_dynamic_base=True)
# Not ru_maxrss, which begins at what the process that started us took.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads VmHWM of Linux")
def test_a_huge_dll_takes_little_memory(tmp_path: Path) -> None:
    size = 120 << 20
    data = build(
        data_size=size, words=range(0x1000, size, 0x200), patches={0x1000: b"words are anywhere"}
    )
    for name in ("old.dll", "new.dll"):
        (tmp_path / name).write_bytes(data)
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, tmp_path / "old.dll", tmp_path / "new.dll"],
        check=True,
        stdout=subprocess.PIPE,
        timeout=100,
        cwd=Path(relocation.__file__).parent.parent,
    )
    kibibytes = int(result.stdout)
    assert kibibytes < 80 << 10
