"""Reading images: what they are, and every reason why one must not be moved."""

from __future__ import annotations

import os
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from hypothesis import given, settings
from hypothesis import strategies as st
from pe import SECTOR, Shape, block, build, opened, pefile_words, read_data, section_header

from cygwin.address_space import (
    ARENA,
    ARM64,
    GRANULARITY,
    I386,
    RUNTIME,
    SAFE,
    X86_64,
    is_runtime,
    machine_name,
    slot_size,
)
from cygwin.fault import Fault, NotAnImage
from cygwin.image import read_base, read_image
from cygwin.relocation_table import Reader, marks_of

MACHINES = pytest.mark.parametrize("machine", [I386, X86_64], ids=machine_name)
BASE = {I386: 0x6D00_0000, X86_64: 0x4_0000_0000}


@MACHINES
@pytest.mark.parametrize("e_lfanew", [0x40, 0x80, 0xF8, 0x118, 0xC00])
def test_fields(machine: int, e_lfanew: int, tmp_path: Path) -> None:
    image = read_data(
        build(machine=machine, base=BASE[machine], e_lfanew=e_lfanew), tmp_path / "x.dll"
    )
    assert image.fault is None
    assert (image.machine, image.base, image.size) == (machine, BASE[machine], 0x4000)
    assert image.base + image.slot_size == BASE[machine] + 0x10000
    assert (image.is_dll, image.dll_characteristics & 0x60) == (True, 0x60)
    assert (image.timestamp, image.signed) == (0x12345678, False)
    assert image.header_offset == e_lfanew
    assert image.timestamp_offset == e_lfanew + 8
    assert image.flags_offset == e_lfanew + 24 + 70
    assert image.base_offset == e_lfanew + 24 + (24 if machine == X86_64 else 28)
    assert image.base_width == (8 if machine == X86_64 else 4)
    assert [section.name for section in image.sections] == [b".data", b".reloc"]
    with opened(tmp_path / "x.dll") as descriptor:
        os.pwrite(descriptor, b"\x78\x56\x34\x12", image.base_offset)
        base = read_base(descriptor, image.base_offset, image.base_width)
        assert base & 0xFFFFFFFF == 0x12345678


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\necho I am no DLL\n", "not a PE image: it does not begin with MZ"),
        (b"\x7fELF" + bytes(200), "not a PE image: it does not begin with MZ"),
        (b"M", "not a PE image: it does not begin with MZ"),
        (b"MZ", "truncated or still being written: the file ends within its DOS header"),
        (
            b"MZ" + bytes(58) + struct.pack("<I", 0x80),
            "truncated or still being written: the file ends within its headers",
        ),
        (b"MZ" + bytes(1000), "not a PE image: no PE header at byte 0"),
        (
            b"MZ" + bytes(58) + struct.pack("<I", 0xFFFF_FFFF) + bytes(9999),
            "not a PE image: no PE header at byte 4294967295",
        ),
        (build()[:0x82], "truncated or still being written: the file ends within its headers"),
        (build()[:0x90], "truncated or still being written: the file ends within its headers"),
        (build()[:0x140], "truncated or still being written: the file ends within its headers"),
        (
            build()[:0x1A0],
            "truncated or still being written: the file ends within its section table",
        ),
        (build(patches={0x80: b"NE\0\0"}), "not a PE image: no PE header at byte 128"),
        (
            build(patches={0x94: b"\x10\0"}),
            "not a PE image: No Optional Header found, invalid PE32 or PE32+ file.",
        ),
        (
            build(patches={0x94: b"\x6f\0"}),
            "not a PE image: its optional header has 111 bytes",
        ),
        (
            build(patches={0x98: b"\x07\x01"}),
            "not a PE image: optional header of unknown type 0x107",
        ),
    ],
)
def test_no_usable_header(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(NotAnImage) as caught:
        read_data(data, tmp_path / "x.dll")
    assert str(caught.value) == reason


def test_a_header_in_the_overlay_is_no_header(tmp_path: Path) -> None:
    data = bytearray(build())
    data += bytes(0x10000 - len(data)) + build()[0x80:]
    struct.pack_into("<I", data, 60, 0x10000)
    with pytest.raises(NotAnImage, match="no PE header at byte 65536"):
        read_data(bytes(data), tmp_path / "x.dll")


SHAPE = Shape()
DATA, RELOC = section_header(SHAPE, 0), section_header(SHAPE, 1)


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(machine=0x1C4), "for an unknown machine: 0x1c4"),
        (Shape(machine=I386, plus=True, base=0x5_0000_0000), "64 bits for machine i386"),
        (Shape(plus=False, base=0x6D00_0000), "32 bits for machine x86_64"),
        (Shape(characteristics=0x0022), "not a DLL"),
        (Shape(characteristics=0x2023), "its relocations were stripped"),
        (Shape(machine=ARM64), "ARM64"),
        (Shape(base=0x6D00_0000), "based below 4 GiB"),
        (Shape(base=0), "based below 4 GiB"),
        (Shape(directories={14: (0x1000, 72)}, patches={0x210: u32(1)}), ".NET only"),
        (Shape(directories={14: (0x9000, 72)}), "its .NET header lies outside the sections"),
        # What Windows would not load.
        (Shape(optional={56: 0xFFFF_FFFF}), "SizeOfImage is 4294967295"),
        (Shape(optional={56: 0}), "SizeOfImage is 0"),
        (Shape(optional={56: 0x3000}), "SizeOfImage is 12288, its sections end at 12800"),
        (Shape(optional={56: 0x20000}), "SizeOfImage is 131072"),
        (Shape(optional={60: 0x80}), "SizeOfHeaders is 128"),
        (Shape(optional={32: 0x200}), "its sections are aligned to less than a page: 512 bytes"),
        (Shape(optional={108: 17}), "17 data directories do not fit"),
        (Shape(optional={108: 0xFFFF_FFFF}), "4294967295 data directories do not fit"),
        (
            Shape(patches={0x86: b"\0\0"}),
            "relocation table is damaged: it lies outside the sections",
        ),
        (
            Shape(patches={DATA + 12: u32(0x80)}),
            "section .data overlaps what lies before it in memory",
        ),
        (
            Shape(patches={RELOC + 12: u32(0x2000)}),
            "section .reloc overlaps what lies before it in m",
        ),
        (Shape(patches={DATA + 8: u32(0xFFFF_F000)}), "overlaps what lies before it in memory"),
        (
            Shape(patches={DATA + 20: u32(0)}),
            "section .data overlaps what lies before it in the file",
        ),
        (
            Shape(patches={RELOC + 20: u32(SECTOR)}),
            "section .reloc overlaps what lies before it in t",
        ),
        (Shape(patches={RELOC + 20: u32(0x2401)}), "section .reloc begins at byte 9217"),
        (Shape(patches={DATA + 16: u32(0xFFFF_FFFF)}), "overlaps what lies before it in memory"),
        (Shape(patches={0x8C: u32(0x2400) + u32(100)}), "written: the symbol table ends at byte"),
        (Shape(directories={4: (0x2600, 8)}), "written: the signature ends at byte 9736"),
        # The relocation table.
        (Shape(directories={5: (0x9000, 12)}), "relocation table is damaged: it lies outside"),
        (
            Shape(directories={5: (0x3000, 0xFFFF_FFFF)}),
            "relocation table is damaged: it lies outside",
        ),
        (Shape(directories={5: (0xFFFF_FFFF, 8)}), "relocation table is damaged: it lies outside"),
        (Shape(table=struct.pack("<II", 0x1000, 7)), "block 1 (at 0x3000) has the size 7"),
        (Shape(table=struct.pack("<IIH", 0x1000, 9, 0)), "block 1 (at 0x3000) has the size 9"),
        (Shape(table=struct.pack("<II", 0x1000, 0x4000)), "has the size 16384"),
        (Shape(table=struct.pack("<IIHH", 0x1000, 16, 0, 0)), "ends 4 bytes behind the table"),
        (Shape(table=struct.pack("<II", 0, 8) * 999), "block 9 (at 0x3040) is one too many for 4"),
        (Shape(table=block(0x1000, [0], 10) + b"junk"), "4 bytes behind block 1 are no block"),
        (Shape(table=bytes(8) + block(0x1000, [0], 10)), "bytes behind block 0 are no block"),
        (
            Shape(table=block(0x1000, [0], 3)),
            "relocation of unknown type: 3 (block 1, page 0x1000)",
        ),
        (Shape(table=block(0x1000, [0], 11)), "relocation of unknown type: 11"),
        (Shape(table=block(0x1000, [0], 1)), "relocation of unknown type: 1 (b"),
        (Shape(machine=I386, base=0x6D000000, table=block(0x1000, [0], 10)), "unknown type: 10"),
        (Shape(table=block(0, [0x88], 10)), "points outside the sections' data, page 0x0"),
        (Shape(table=block(0x9000, [0], 10)), "points outside the sections' data, page 0x9000"),
        (Shape(table=block(0xFFFF_F000, [0], 10)), "points outside the sections' data"),
        (Shape(table=block(0x2000, [0xFF9], 10)), "points outside the sections' data, page 0x2000"),
        (Shape(data_size=0x1E00, table=block(0x2000, [0xDFC], 10)), "points outside the sections'"),
        (Shape(table=block(0x1000, [8, 8], 10)), "relocates the same bytes twice"),
        (Shape(table=block(0x1000, [8, 15], 10)), "relocates the same bytes twice"),
        (Shape(table=2 * block(0x1000, [8], 10)), "relocates the same bytes twice"),
        (
            Shape(table=block(0x2000, [0], 10) + block(0x1000, [0xFFC], 10)),
            "relocates the same bytes twice",
        ),
        (Shape(table=block(0x3000, [0], 10)), "relocates the table itself"),
    ],
)
def test_fault(shape: Shape, reason: str, tmp_path: Path) -> None:
    image = read_data(build(shape), tmp_path / "x.dll")
    assert image.fault is not None
    assert reason in image.fault.reason(image.detail)
    assert image.machine == shape.machine  # it is an obstacle all the same
    assert image.base == shape.base


@pytest.mark.parametrize(
    "shape",
    [
        Shape(words=()),  # resources only: no table
        Shape(directories={5: (0, 0)}),
        Shape(table=block(0x1000, [0], 10) + bytes(20)),  # padding with zeros
        Shape(table=block(0x1000, [0], 10) + bytes(7)),
        Shape(table=block(0x2000, [0], 10) + block(0x1000, [0, 8], 10)),  # any order of pages
        Shape(table=block(0x1000, [0x800, 0], 10)),  # any order in a block
        Shape(table=block(0x1000, [0], 10) + block(0x1000, [8], 10)),  # a page in two blocks
        Shape(table=block(0x1000, [], 10) + block(0x1004, [0xFFF], 10)),
        Shape(table=block(0x1000, [0xFFC], 10) + block(0x2000, [4], 10)),  # over a page's end
        Shape(directories={14: (0x1000, 72)}, patches={0x210: u32(0)}),  # .NET with native code
        Shape(base=0x4_0000_1000),  # not aligned: it has to move
        Shape(base=0xFFFF_FFFF_FFFF_0000),
        Shape(optional={56: 0x8000}),  # larger than its sections, but in the same slot
    ],
)
def test_sound(shape: Shape, tmp_path: Path) -> None:
    assert read_data(build(shape), tmp_path / "x.dll").fault is None


def test_a_truncated_file_names_the_section(tmp_path: Path) -> None:
    data = build()
    image = read_data(data[:-1], tmp_path / "x.dll")
    assert (image.fault, image.detail) == (
        Fault.TRUNCATED,
        f"section .reloc ends at byte {len(data)}, the file has {len(data) - 1}",
    )
    image = read_data(data[:0x500], tmp_path / "x.dll")
    assert image.fault is Fault.TRUNCATED
    assert image.detail == "section .data ends at byte 8704, the file has 1280"


def test_a_detail_is_printable_ascii_whatever_a_section_is_called(tmp_path: Path) -> None:
    for name in (b"a\0\0b", b"\xff\n\x1b[m", b"'\""):
        data = build(patches={RELOC: name.ljust(8, b"\0")})
        image = read_data(data[:-1], tmp_path / "x.dll")
        assert image.fault is Fault.TRUNCATED
        assert image.detail.isascii()
        assert image.detail.isprintable()


def test_the_numbers_of_faults_stay() -> None:
    assert {fault.name: fault.number for fault in Fault} == {
        "EMPTY": 1,
        "NO_IMAGE": 2,
        "TRUNCATED": 3,
        "DAMAGED": 4,
        "UNKNOWN_MACHINE": 5,
        "SMALL_ALIGNMENT": 6,
        "NOT_A_DLL": 7,
        "ARM64": 8,
        "STRIPPED": 9,
        "LOW": 10,
        "NET_ONLY": 11,
        "RELOCATIONS_DAMAGED": 12,
        "RELOCATION_TYPE_UNKNOWN": 13,
    }


def test_a_signature_is_no_fault(tmp_path: Path) -> None:
    length = len(build())
    image = read_data(build(directories={4: (length, 64)}, overlay=bytes(64)), tmp_path / "x.dll")
    assert (image.signed, image.fault) == (True, None)


@pytest.mark.parametrize("in_file", [False, True])
def test_65535_sections(in_file: bool, tmp_path: Path) -> None:
    data = build(patches={0x86: b"\xff\xff"}, overlay=os.urandom(40 * 0x10000) if in_file else b"")
    path = tmp_path / "x.dll"
    if in_file:
        assert read_data(data, path).fault is not None
    else:
        with pytest.raises(NotAnImage, match="truncated"):
            read_data(data, path)


def test_only_headers_and_table_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.dll"
    path.write_bytes(build(data_size=0x100_0000))
    read_bytes = 0
    pread = os.pread

    def counting(descriptor: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        data = pread(descriptor, size, offset)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counting)
    with opened(path, os.O_RDONLY) as descriptor:
        assert read_image(descriptor, path.stat().st_size).fault is None
    assert read_bytes < 0x2000


@MACHINES
@settings(deadline=None)
@given(words=st.sets(st.integers(0x100, 0x3FF), max_size=40))
def test_words_are_those_that_pefile_finds(
    machine: int, words: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rvas = [16 * word for word in words]
    path = tmp_path_factory.getbasetemp() / "words.dll"
    data = build(machine=machine, base=BASE[machine], data_size=0x3000, words=rvas)
    image = read_data(data, path)
    assert image.fault is None
    assert relocated_words(path) == sorted(offset for offset, _ in pefile_words(data))
    assert len(relocated_words(path)) == len(rvas)


def relocated_words(path: Path) -> list[int]:
    words = []
    with opened(path, os.O_RDONLY) as descriptor:
        image = read_image(descriptor, path.stat().st_size)
        for page in image.blocks:
            for kept in (page, page._replace(marks=None)):
                marks = marks_of(kept, Reader(descriptor), image.base_width)
                digits = marks.to_bytes(page.high - page.low, "little")
                found = [page.low + at for at, digit in enumerate(digits) if digit]
            assert marks == page.marks
            words += found
    return words


@pytest.mark.cygwin
def test_every_dll_of_a_real_root_can_be_moved(pristine_root: CygwinRoot) -> None:
    dlls = pristine_root.dlls()
    assert len(dlls) > 200
    for path in dlls:
        with opened(path, os.O_RDONLY) as descriptor:
            image = read_image(descriptor, path.stat().st_size)
        assert image.fault is None, path
        assert not image.signed
        assert image.machine == X86_64


@pytest.mark.cygwin
@pytest.mark.slow
def test_the_words_of_real_dlls_are_those_that_pefile_finds(pristine_root: CygwinRoot) -> None:
    for path in pristine_root.extensions():
        expected = sorted(offset for offset, _ in pefile_words(path.read_bytes()))
        assert relocated_words(path) == expected, path


@pytest.mark.cygwin
def test_programs_are_no_dlls(pristine_root: CygwinRoot) -> None:
    path = pristine_root.path / "bin" / "rebase.exe"
    with opened(path, os.O_RDONLY) as descriptor:
        assert read_image(descriptor, path.stat().st_size).fault is Fault.NOT_A_DLL


def test_an_exe_with_faults_keeps_its_flags(tmp_path: Path) -> None:
    shape = replace(SHAPE, characteristics=0x0022, dll_characteristics=0x8120)
    image = read_data(build(shape), tmp_path / "x.exe")
    assert (image.is_dll, image.dll_characteristics & 0x60) == (False, 0x20)


@pytest.mark.parametrize(
    ("name", "runtime"),
    [
        ("cygwin1.dll", True),
        ("/usr/bin/CYGWIN1.DLL", True),
        ("bin/msys-2.0.dll", True),
        ("cyglsa64.dll", True),
        ("cyglsa.dll", True),
        ("cygwin2.dll", False),
        ("msys-2.0.dll/other.dll", False),
        ("mycygwin1.dll", False),
        ("cyglsa64.exe", False),
    ],
)
def test_runtime(name: str, runtime: bool) -> None:
    assert is_runtime(name) is runtime


def test_address_space() -> None:
    assert [slot_size(n) for n in (1, 0xFFFF, 0x10000, 0x10001)] == [0x10000] * 3 + [0x20000]
    assert machine_name(ARM64) == "arm64"
    assert machine_name(0x1C4) == "0x1c4"
    for ranges in (ARENA.values(), SAFE.values(), *RUNTIME.values()):
        for one in ranges:
            assert one.low < one.high
            assert one.low % GRANULARITY == one.high % GRANULARITY == 0
    for reserved in RUNTIME[X86_64]:
        assert reserved.high <= ARENA[X86_64].low
