"""The base relocation table of an image: where its words lie, and whether it can be believed.

PE/COFF specification, "The .reloc Section": blocks of a page RVA (u32), the block's size in bytes
(u32) and entries (u16), which hold a type in 4 bits and in 12 bits an offset from the page.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from cygwin.fault import Fault, FaultError, RelocationError
from cygwin.values import NamedTuple

# "Base Relocation Types"; the key is the width of the ImageBase field and of each word, in bytes.
# Type 0, ABSOLUTE, is padding.
WORD_TYPE = {4: 3, 8: 10}  # HIGHLOW, DIR64

PAGE = 0x1000
BLOCK_HEADER = struct.Struct("<II")
# No block of distinct words is larger than one entry for every byte of its page.
MAX_BLOCK = BLOCK_HEADER.size + 2 * PAGE
# The table is read in pieces of this many bytes; a block always fits.
WINDOW = 0x10000
# Marks are kept with the blocks until they take this many bytes, which most images' do not; those
# of the rest are made again when they are needed.
KEPT_MARKS = 4 << 20

DAMAGED = Fault.RELOCATIONS_DAMAGED

_OF_TYPE_ABSOLUTE = bytes(range(1 << 12 - 8))  # the higher bytes of such entries


class Section(NamedTuple):
    """One section: RVAs and sizes in bytes, offsets in bytes from the start of the file."""

    name: bytes
    virtual_address: int
    virtual_size: int
    raw_offset: int
    raw_size: int


class Block(NamedTuple):
    """One block that relocates at least one word; offsets are bytes from the start of the file."""

    low: int  # of its first word
    high: int  # behind its last word
    offset: int  # of its first entry
    size: int  # of its entries, in bytes
    marks: int | None  # of its words, see `marks_of`; None: not kept


class Reader:
    """Reads pieces of a file, at least `window` bytes at a time."""

    def __init__(self, descriptor: int, window: int = WINDOW) -> None:
        self._descriptor = descriptor
        self._size = window
        self._window = b""
        self._start = 0

    def read(self, offset: int, size: int) -> bytes:
        """Return the `size` bytes at `offset`; fewer only where the file ends."""
        begin = offset - self._start
        if begin < 0 or begin + size > len(self._window):
            self._window = os.pread(self._descriptor, max(self._size, size), offset)
            self._start, begin = offset, 0
        return self._window[begin : begin + size]


def marks_of(block: Block, reader: Reader, width: int) -> int:
    """Return a number whose digits to the base 256 are 1 where a word begins, and else 0.

    Its lowest digit is that of the block's first word, so the digits stand as the words do in the
    file. Raises RelocationError where the table that `reader` reads has become another one.
    """
    if block.marks is not None:
        return block.marks
    entries = reader.read(block.offset, block.size)
    page = _page_of_marks(entries, width) if len(entries) == block.size else b""
    marks = int.from_bytes(page[page.find(1) :], "little")
    if marks.bit_length() != 8 * (block.high - block.low - width) + 1:
        raise RelocationError("changed: its relocation table is another one")
    return marks


def _page_of_marks(entries: bytes, width: int) -> bytearray:
    """Return a page of zeros with a 1 at the first byte of each word that `entries` relocate.

    `width` is the bytes of a word (4 or 8). Padding marks nothing. Raises FaultError for an
    entry of another type than such words have.
    """
    start = WORD_TYPE[width] << 12
    # As long as the largest entry of the type, which marks itself: nothing is done to it first.
    marks = bytearray(start + PAGE)
    try:
        for entry in memoryview(entries).cast("H"):  # where PE files run, low bytes come first
            marks[entry] = 1
        known = marks.find(1, PAGE, start) < 0
    except IndexError:
        known = False
    if not known:
        types = {byte >> 4 for byte in entries[1::2]}
        raise FaultError(Fault.RELOCATION_TYPE_UNKNOWN, str(min(types - {0, WORD_TYPE[width]})))
    del marks[:start]
    return marks


def _demand_distinct(marks: bytearray, entries: bytes, width: int) -> None:
    """Raise FaultError when two of the words that `entries` have marked overlap."""
    words = len(entries[1::2].translate(None, _OF_TYPE_ABSOLUTE))
    if marks[::width].count(1) == words:
        return  # they are all aligned, and no two the same
    digits = int.from_bytes(marks, "little")
    if marks.count(1) != words or any(digits & digits << 8 * n for n in range(1, width)):
        raise FaultError(DAMAGED, "it relocates the same bytes twice")


def read_blocks(
    descriptor: int, sections: Sequence[Section], directory: tuple[int, int], width: int
) -> tuple[Block, ...]:
    """Read the whole table and return its blocks in the order of their words in the file.

    `directory` is the RVA and the size in bytes of the table (data directory 5), `width` the bytes
    of a word (4 or 8); the sections' data must not overlap. Raises FaultError unless the
    blocks fill the directory exactly, but for padding with zeros, each block's words lie inside
    one section's data and outside the table, and no two words overlap.
    """
    blocks = sorted(_walk(descriptor, sections, directory, width)) if directory[1] else []
    for before, after in zip(blocks, blocks[1:]):
        if before.high > after.low:
            where = f"at byte {after.low} of the file"
            raise FaultError(DAMAGED, f"it relocates the same bytes twice, {where}")
    return tuple(blocks)


def _walk(
    descriptor: int, sections: Sequence[Section], directory: tuple[int, int], width: int
) -> Iterator[Block]:
    rva, size = directory
    data = sorted((s for s in sections if s.raw_size), key=lambda s: s.virtual_address)
    starts = [section.virtual_address for section in data]

    def section_of(low: int, high: int) -> Section | None:
        index = bisect_right(starts, low) - 1
        if index >= 0 and high <= starts[index] + data[index].raw_size:
            return data[index]
        return None

    home = section_of(rva, rva + size)
    if home is None:
        raise FaultError(DAMAGED, f"it lies outside the sections, at 0x{rva:x}")
    table = rva - home.virtual_address + home.raw_offset
    # More than two blocks a page come from no linker, but from somebody who wants us to be slow.
    pages = sum(-(-section.raw_size // PAGE) for section in data)
    reader = Reader(descriptor, min(size, WINDOW))
    room = KEPT_MARKS
    count = at = 0

    def damaged(what: str) -> FaultError:
        return FaultError(DAMAGED, f"block {count} (at 0x{rva + at:x}) {what}")

    while size - at >= BLOCK_HEADER.size:
        most = min(MAX_BLOCK, size - at)
        block = reader.read(table + at, most)
        if len(block) < most:
            raise damaged("lies behind the end of the file")
        page, block_size = BLOCK_HEADER.unpack_from(block)
        if not block_size:
            break
        count += 1
        if count > 2 * pages:
            raise damaged(f"is one too many for {pages} pages")
        if block_size < BLOCK_HEADER.size or block_size % 2 or block_size > MAX_BLOCK:
            raise damaged(f"has the size {block_size}")
        if block_size > size - at:
            raise damaged(f"ends {block_size - (size - at)} bytes behind the table")
        entries = block[BLOCK_HEADER.size : block_size]
        try:
            marks = _page_of_marks(entries, width)
            _demand_distinct(marks, entries, width)
        except FaultError as error:
            raise FaultError(error.fault, f"{error.detail} (block {count}, page 0x{page:x})")
        first = marks.find(1)
        if first >= 0:
            low, high = page + first, page + marks.rfind(1) + width
            section = section_of(low, high)
            if section is None:
                raise damaged(f"points outside the sections' data, page 0x{page:x}")
            to_file = section.raw_offset - section.virtual_address
            low, high = low + to_file, high + to_file
            if low < table + size and high > table:
                raise damaged("relocates the table itself")
            room -= high - low
            kept = int.from_bytes(marks[first:], "little") if room >= 0 else None
            yield Block(low, high, table + at + BLOCK_HEADER.size, len(entries), kept)
        at += block_size
    rest = size - at  # a directory may be rounded up to a page with zeros
    if rest > PAGE or any(reader.read(table + at, rest)):
        raise FaultError(DAMAGED, f"{rest} bytes behind block {count} are no block")
