"""Small PE files of any shape, and a plain model of what relocating does to them."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cygwin.address_space import ARM64, I386, X86_64
from cygwin.image import Image, read_image

PAGE = 0x1000
SECTOR = 0x200
DATA_RVA = 0x1000  # of the first section, .data
WIDTH = {I386: 4, X86_64: 8, ARM64: 8}
WORD_TYPE = {4: 3, 8: 10}
GCC = {I386: "i686-w64-mingw32-gcc", X86_64: "x86_64-w64-mingw32-gcc"}


@dataclass(frozen=True)
class Shape:
    """What a made DLL looks like; every field may be made to lie.

    `.data` lies at RVA 0x1000 and is filled with noise; at each RVA of `words` there is an address
    inside the image, and the table in `.reloc` relocates it.
    """

    machine: int = X86_64
    base: int = 0x4_0000_0000
    e_lfanew: int = 0x80
    characteristics: int = 0x2022
    dll_characteristics: int = 0x0160
    timestamp: int = 0x12345678
    data_size: int = 0x2000
    words: Sequence[int] = (0x1000, 0x1010, 0x1FF8, 0x2008)
    table: bytes | None = None  # instead of the one that `words` give
    directories: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    overlay: bytes = b""
    plus: bool | None = None  # PE32+; None: as the machine has it
    optional: Mapping[int, int] = field(default_factory=dict)  # offset in the optional header: u32
    patches: Mapping[int, bytes] = field(default_factory=dict)  # offset in the file: bytes

    @property
    def width(self) -> int:
        """Bytes of a word."""
        return WIDTH.get(self.machine, 8)


def blocks(words: Iterable[int], width: int) -> list[bytes]:
    """Return the relocation blocks for the words at these RVAs, by page."""
    pages: dict[int, list[int]] = {}
    for word in sorted(words):
        pages.setdefault(word // PAGE * PAGE, []).append(word % PAGE)
    return [block(page, offsets, WORD_TYPE[width]) for page, offsets in pages.items()]


def block(page: int, offsets: Sequence[int], word_type: int) -> bytes:
    """Return one block, padded to 4 bytes as linkers do."""
    entries = [word_type << 12 | offset for offset in offsets]
    entries += [0] * (len(entries) % 2)
    return struct.pack(f"<II{len(entries)}H", page, 8 + 2 * len(entries), *entries)


def build(shape: Shape | None = None, **changes: object) -> bytes:
    """Return the bytes of a DLL of this shape; `changes` are fields of Shape."""
    shape = Shape(**changes) if shape is None else shape  # type: ignore[arg-type]
    width = shape.width
    plus = width == 8 if shape.plus is None else shape.plus
    table = b"".join(blocks(shape.words, width)) if shape.table is None else shape.table
    optional_size = (112 if plus else 96) + 16 * 8
    headers_end = shape.e_lfanew + 24 + optional_size + 2 * 40
    headers_size = _up(headers_end, SECTOR)
    data = _data(shape)
    reloc_rva = DATA_RVA + _up(shape.data_size, PAGE)
    if headers_size > DATA_RVA:
        raise ValueError("the headers do not fit before the first section")
    reloc_raw = _up(max(len(table), 1), SECTOR)
    size_of_image = reloc_rva + _up(reloc_raw, PAGE)
    raw_size = _up(len(data), SECTOR)

    head = bytearray(headers_size)
    head[:2] = b"MZ"
    struct.pack_into("<I", head, 60, shape.e_lfanew)
    struct.pack_into(
        "<4sHHIIIHH",
        head,
        shape.e_lfanew,
        b"PE\0\0",
        shape.machine,
        2,
        shape.timestamp,
        0,
        0,
        optional_size,
        shape.characteristics,
    )
    at = shape.e_lfanew + 24
    struct.pack_into("<H", head, at, 0x20B if plus else 0x10B)
    if plus:
        struct.pack_into("<Q", head, at + 24, shape.base)
    else:
        struct.pack_into("<I", head, at + 28, shape.base & 0xFFFFFFFF)
    struct.pack_into("<II", head, at + 32, PAGE, SECTOR)  # alignments
    struct.pack_into("<IIIHH", head, at + 56, size_of_image, headers_size, 0xC0FFEE, 3, 0)
    struct.pack_into("<H", head, at + 70, shape.dll_characteristics)
    directories_at = at + (112 if plus else 96)
    struct.pack_into("<I", head, directories_at - 4, 16)
    directories = {5: (reloc_rva, len(table)) if table else (0, 0), **shape.directories}
    for number, (rva, size) in directories.items():
        struct.pack_into("<II", head, directories_at + 8 * number, rva, size)
    sections = (
        (b".data", shape.data_size, DATA_RVA, raw_size, headers_size),
        (b".reloc", max(len(table), 1), reloc_rva, reloc_raw, headers_size + raw_size),
    )
    for number, section in enumerate(sections):
        offset = at + optional_size + 40 * number
        struct.pack_into("<8sIIII", head, offset, *section)
    for offset, value in shape.optional.items():
        struct.pack_into("<I", head, at + offset, value)
    whole = bytearray(
        bytes(head) + data.ljust(raw_size, b"\0") + table.ljust(reloc_raw, b"\0") + shape.overlay
    )
    for offset, patch in shape.patches.items():
        whole[offset : offset + len(patch)] = patch
    return bytes(whole)


def section_header(shape: Shape, number: int) -> int:
    """Return the offset in the file of a section header: 0 is .data, 1 .reloc.

    From there, as u32: virtual size at 8, address at 12, raw size at 16, raw offset at 20.
    """
    plus = shape.width == 8 if shape.plus is None else shape.plus
    return shape.e_lfanew + 24 + (112 if plus else 96) + 16 * 8 + 40 * number


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _data(shape: Shape) -> bytes:
    data = bytearray(random.Random(shape.data_size).randbytes(shape.data_size))
    for word in shape.words:
        begin = word - DATA_RVA
        if 0 <= begin <= len(data) - shape.width:
            value = (shape.base + word) % (1 << 8 * shape.width)
            data[begin : begin + shape.width] = value.to_bytes(shape.width, "little")
    return bytes(data)


@contextmanager
def opened(path: str | os.PathLike[str], mode: int = os.O_RDWR) -> Iterator[int]:
    """Open a file as a descriptor."""
    descriptor = os.open(path, mode)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_data(data: bytes, path: Path) -> Image:
    """Write `data` to `path` and read the image in it."""
    path.write_bytes(data)
    with opened(path, os.O_RDONLY) as descriptor:
        return read_image(descriptor, len(data))


def pefile_words(data: bytes) -> list[tuple[int, int]]:
    """Return (file offset, type) of all that pefile finds in the relocation table."""
    import pefile

    pe = pefile.PE(data=data, fast_load=True)
    pe.parse_data_directories([pefile.DIRECTORY_ENTRY["IMAGE_DIRECTORY_ENTRY_BASERELOC"]])
    return [
        (pe.get_offset_from_rva(entry.rva), entry.type)
        for one in getattr(pe, "DIRECTORY_ENTRY_BASERELOC", [])
        for entry in one.entries
        if entry.type
    ]


def model(data: bytes, image: Image, new_base: int, clear_dynamic_base: bool) -> bytes:
    """Return the relocated file: the slow and plain way, with the words from pefile."""
    moved = bytearray(data)
    width = image.base_width
    for offset, _ in pefile_words(data):
        word = int.from_bytes(moved[offset : offset + width], "little")
        word = (word + new_base - image.base) % (1 << 8 * width)
        moved[offset : offset + width] = word.to_bytes(width, "little")
    moved[image.base_offset : image.base_offset + width] = new_base.to_bytes(width, "little")
    if clear_dynamic_base:
        moved[image.flags_offset] &= ~0x40
    moved[checksum_field(moved)] = checksum(moved).to_bytes(4, "little")
    return bytes(moved)


def checksum_field(data: bytes | bytearray) -> slice:
    """Return where the CheckSum of an image lies."""
    at = int.from_bytes(data[60:64], "little") + 0x58
    return slice(at, at + 4)


def checksum(data: bytes | bytearray) -> int:
    """Return the right CheckSum: all words added with carry, and the length."""
    whole = bytearray(data)
    whole[checksum_field(data)] = bytes(4)
    total = sum(memoryview(whole + bytes(len(whole) % 2)).cast("H"))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total + len(whole)


def compile_dll(path: Path, source: str, machine: int, *options: str) -> Path:
    """Compile C to a DLL without a run-time library; skip where there is no mingw."""
    gcc = shutil.which(GCC[machine])
    if gcc is None:
        pytest.skip(f"{GCC[machine]} is not there: install gcc-mingw-w64")
    code = path.with_suffix(".c")
    code.write_text(source, encoding="ascii")
    subprocess.run(
        [gcc, "-shared", "-nostdlib", "-o", str(path), str(code), *options],
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    return path
