"""The base relocation table of an image: where its words lie, and whether it can be believed.

PE/COFF specification, "The .reloc Section": blocks of a page RVA (u32), the block's size in bytes
(u32) and entries (u16), which hold a type in 4 bits and in 12 bits an offset from the page.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_left, bisect_right
from operator import sub
from typing import TYPE_CHECKING, NamedTuple

from cygwin.errors import RelocationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cygwin.image import Section

# "Base Relocation Types"; the key is the width of the ImageBase field and of each word, in bytes.
# Type 0, ABSOLUTE, is padding.
WORD_TYPE = {4: 3, 8: 10}  # HIGHLOW, DIR64

PAGE = 0x1000
BLOCK_HEADER = struct.Struct("<II")
# No block of distinct words is larger than one entry for every byte of its page.
MAX_BLOCK = BLOCK_HEADER.size + 2 * PAGE
# A directory may be rounded up to a page with zeros.
MAX_PADDING = PAGE
# The table is read in pieces of this many bytes; a block always fits.
WINDOW = 0x10000

DAMAGED = "relocation table damaged"


class Block(NamedTuple):
    """One block that relocates at least one word; offsets are bytes from the start of the file."""

    low: int  # of its first word
    high: int  # behind its last word
    page: int  # of the page: an entry's word lies at `page` + the entry's lower 12 bits
    entries: int  # of its first entry
    size: int  # of its entries, in bytes


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


def word_entries(entries: bytes, word_type: int) -> list[int]:
    """Return the entries that relocate a word, in ascending order, padding left out.

    Raises RelocationError for any type but `word_type` and ABSOLUTE.
    """
    words = sorted(struct.unpack(f"<{len(entries) // 2}H", entries))
    if words and words[0] < PAGE:
        del words[: bisect_left(words, PAGE)]
    if words and (words[0] >> 12 != word_type or words[-1] >> 12 != word_type):
        types = {entry >> 12 for entry in words}
        unknown = min(types - {word_type})
        raise RelocationError(f"relocation of unknown type {unknown}")
    return words


def walk(
    descriptor: int, sections: Sequence[Section], directory: tuple[int, int], width: int
) -> Iterator[tuple[Block, list[int]]]:
    """Yield each block of the table, in the table's order, with its entries, ascending.

    `directory` is the RVA and the size in bytes of the table (data directory 5), `width` the bytes
    of a word (4 or 8); the sections' data must not overlap. Raises RelocationError unless the
    blocks fill the directory exactly, but for padding with zeros, and each block's words lie inside
    one section's data and outside the table.
    """
    rva, size = directory
    if not size:
        return
    data = sorted((s for s in sections if s.raw_size), key=lambda s: s.virtual_address)
    starts = [section.virtual_address for section in data]

    def section_of(low: int, high: int) -> Section | None:
        index = bisect_right(starts, low) - 1
        if index >= 0 and high <= starts[index] + data[index].raw_size:
            return data[index]
        return None

    home = section_of(rva, rva + size)
    if home is None:
        raise RelocationError(f"{DAMAGED}: it lies outside the sections, at 0x{rva:x}")
    table = rva - home.virtual_address + home.raw_offset
    # More than two blocks a page come from no linker, but from somebody who wants us to be slow.
    pages = sum(-(-section.raw_size // PAGE) for section in data)
    reader = Reader(descriptor)
    word_type = WORD_TYPE[width]
    count = at = 0

    def damaged(what: str) -> RelocationError:
        return RelocationError(f"{DAMAGED}: block {count} (at 0x{rva + at:x}) {what}")

    while size - at >= BLOCK_HEADER.size:
        header = reader.read(table + at, BLOCK_HEADER.size)
        if len(header) < BLOCK_HEADER.size:
            raise damaged("lies behind the end of the file")
        page, block_size = BLOCK_HEADER.unpack(header)
        if not block_size:
            break
        count += 1
        if count > 2 * pages:
            raise damaged(f"is one too many for {pages} pages")
        if block_size < BLOCK_HEADER.size or block_size % 2 or block_size > MAX_BLOCK:
            raise damaged(f"has the size {block_size}")
        if block_size > size - at:
            raise damaged(f"ends {block_size - (size - at)} bytes behind the table")
        entries = table + at + BLOCK_HEADER.size
        entries_size = block_size - BLOCK_HEADER.size
        try:
            words = word_entries(reader.read(entries, entries_size), word_type)
        except RelocationError as error:
            raise RelocationError(f"{error} (block {count}, page 0x{page:x})")
        if words:
            low, high = page + words[0] % PAGE, page + words[-1] % PAGE + width
            section = section_of(low, high)
            if section is None:
                raise damaged(f"points outside the sections' data, page 0x{page:x}")
            to_file = section.raw_offset - section.virtual_address
            low, high = low + to_file, high + to_file
            if low < table + size and high > table:
                raise damaged("relocates the table itself")
            yield Block(low, high, page + to_file, entries, entries_size), words
        at += block_size
    rest = size - at
    if rest > MAX_PADDING or any(reader.read(table + at, rest)):
        raise RelocationError(f"{DAMAGED}: {rest} bytes behind block {count} are no block")


def read_blocks(
    descriptor: int, sections: Sequence[Section], directory: tuple[int, int], width: int
) -> list[Block]:
    """Read the whole table and return its blocks in the order of the words in the file.

    Takes and raises what `walk` does, and raises RelocationError when two words overlap as well.
    """
    blocks = []
    for block, words in walk(descriptor, sections, directory, width):
        if len(words) > 1 and min(map(sub, words[1:], words)) < width:
            raise RelocationError(f"{DAMAGED}: {_overlap(block.low)}")
        blocks.append(block)
    blocks.sort()
    for before, after in zip(blocks, blocks[1:]):
        if before.high > after.low:
            raise RelocationError(f"{DAMAGED}: {_overlap(after.low)}")
    return blocks


def _overlap(offset: int) -> str:
    return f"it relocates the same bytes twice, in the block of byte {offset} of the file"
