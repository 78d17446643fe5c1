"""Moving an image to another base, and the proof that nothing else was changed."""

from __future__ import annotations

import os
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from cygwin.errors import RelocationError
from cygwin.image import DYNAMIC_BASE, read_base
from cygwin.relocation_table import PAGE, WORD_TYPE, Block, Reader, walk, word_entries

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    from cygwin.image import Image

# A file is held in memory in pieces of this many bytes; a page with a word behind its end fits.
WINDOW = 0x40000

# Of a table of at most this many bytes the entries are kept while a file is checked, at some 20
# bytes of memory for each of a table; those of a larger one are read again.
KEPT_TABLE = 0x40000

# The format of a word for memoryview.cast, by its width in bytes.
WORD_FORMAT: dict[int, Literal["I", "Q"]] = {4: "I", 8: "Q"}


def relocate(descriptor: int, image: Image, new_base: int, *, clear_dynamic_base: bool) -> None:
    """Move the image in a file that is open for reading and writing to the address `new_base`.

    Every relocated word moves by the difference of the bases (DIR64 modulo 2^64, HIGHLOW modulo
    2^32: PE/COFF specification, "Base Relocation Types"), then ImageBase is written, then, where
    asked for, DYNAMIC_BASE is cleared. Nothing else changes. `image` is what the file holds.
    Raises RelocationError, which leaves the file half moved.
    """
    _demand_movable(descriptor, image, new_base)
    if new_base != image.base:
        _move_words(descriptor, image, new_base - image.base)
        _write(descriptor, new_base.to_bytes(image.base_width, "little"), image.base_offset)
    if clear_dynamic_base and image.dynamic_base:
        _write(descriptor, _without_dynamic_base(image), image.flags_offset)


def check_relocated(
    original: int, staged: int, image: Image, new_base: int, *, clear_dynamic_base: bool
) -> None:
    """Prove that the file `staged` is `original`, moved to `new_base`; both are open for reading.

    Whoever relocated it: every relocated word differs by exactly the difference of the bases,
    ImageBase and the flag are as wanted, and every other byte is the same. `image` is what
    `original` holds. Raises RelocationError that names the first byte that is not as it must be.
    """
    _demand_movable(original, image, new_base)
    length, staged_length = os.fstat(original).st_size, os.fstat(staged).st_size
    if length != staged_length:
        raise RelocationError(f"relocated file has {staged_length} bytes, the original {length}")
    delta = new_base - image.base
    width = image.base_width
    reader = Reader(original)
    for start, end, inside in _windows(_blocks(original, image) if delta else [], length):
        places = [
            each
            for block, entries in inside
            for each in _places(
                entries or word_entries(reader.read(block.entries, block.size), WORD_TYPE[width]),
                block.page - start,
                width,
            )
        ]
        old = bytearray(_read(original, start, end - start))
        new = _read(staged, start, end - start)
        old_views, new_views = _views(old, width), _views(new, width)
        moved = all(_take_moved(old_views, new_views, each, width, delta) for each in places)
        if not start:
            _put_header(old, image, new_base, clear_dynamic_base)
        if not moved or old != new:
            old[:] = _read(original, start, end - start)
            for each in places:
                _add(old_views, each, width, delta)
            if not start:
                _put_header(old, image, new_base, clear_dynamic_base)
            raise RelocationError(_first_difference(start, old, new))


def _demand_movable(descriptor: int, image: Image, new_base: int) -> None:
    if image.fault:
        raise RelocationError(image.fault)
    if not 0 <= new_base <= (1 << 8 * image.base_width) - image.slot_size:
        raise RelocationError(f"an image of {image.size} bytes does not fit at 0x{new_base:x}")
    found = read_base(descriptor, image.base_offset, image.base_width)
    if found != image.base:
        raise RelocationError(f"changed: its base was 0x{image.base:x} and is 0x{found:x}")


def _blocks(descriptor: int, image: Image) -> list[tuple[Block, list[int]]]:
    """Return the blocks in the order of the file, with their entries if the table is small."""
    keep = image.relocations[1] <= KEPT_TABLE
    blocks = [
        (block, entries if keep else [])
        for block, entries in walk(descriptor, image.sections, image.relocations, image.base_width)
    ]
    blocks.sort(key=itemgetter(0))
    return blocks


def _move_words(descriptor: int, image: Image, delta: int) -> None:
    """Add `delta` to every relocated word of the file, a window at a time."""
    width = image.base_width
    window, start, end = bytearray(), 0, 0  # `end`: behind the last word that was moved
    views: list[memoryview] = []
    for block, entries in walk(descriptor, image.sections, image.relocations, width):
        if block.low < start or block.high > start + len(window):
            _write(descriptor, memoryview(window)[: end - start], start)
            start, end = max(0, min(block.low, block.page)), 0
            window = bytearray(os.pread(descriptor, WINDOW, start))
            if block.high > start + len(window):
                raise RelocationError(f"truncated: the file has {start + len(window)} bytes")
            views = _views(window, width)
        for places in _places(entries, block.page - start, width):
            _add(views, places, width, delta)
        end = max(end, block.high)
    _write(descriptor, memoryview(window)[: end - start], start)


def _views(window: bytearray | bytes, width: int) -> list[memoryview]:
    """Return `window` as words of `width` bytes, once for each alignment that a word can have.

    The word at offset `w` of the window is `views[w % width][w // width]`.
    """
    whole = memoryview(window)
    views = []
    for alignment in range(width):
        count = max(0, len(whole) - alignment) // width
        piece = whole[alignment : alignment + count * width]
        views.append(piece.cast(WORD_FORMAT[width]))
    return views


class _Places(NamedTuple):
    """Where words of one alignment are: `views[alignment][first + index]` for each index."""

    alignment: int
    first: int
    indices: list[int]


# The index of a word within its page by its entry, for words that are aligned as linkers do it:
# looking it up takes half the time of working it out.
_ALIGNED = {
    width: {(word_type << 12) + offset: offset // width for offset in range(0, PAGE, width)}
    for width, word_type in WORD_TYPE.items()
}


def _places(entries: Sequence[int], page: int, width: int) -> Sequence[_Places]:
    """Return where the words of one block are in a window; `page` is the page's offset there."""
    if page >= 0 and not page % width:
        try:
            indices = list(map(_ALIGNED[width].__getitem__, entries))
            return (_Places(0, page // width, indices),)
        except KeyError:
            pass  # a word that is not aligned
    shift = page - (WORD_TYPE[width] << 12)
    by_alignment: dict[int, list[int]] = {}
    for entry in entries:
        index, alignment = divmod(entry + shift, width)
        by_alignment.setdefault(alignment, []).append(index)
    return [_Places(alignment, 0, indices) for alignment, indices in by_alignment.items()]


def _add(views: Sequence[memoryview], places: _Places, width: int, delta: int) -> None:
    """Add `delta` to the words at `places`, modulo their width."""
    mask = (1 << 8 * width) - 1
    view = views[places.alignment][places.first :]
    for index in places.indices:
        view[index] = view[index] + delta & mask


def _take_moved(
    old_views: Sequence[memoryview],
    new_views: Sequence[memoryview],
    places: _Places,
    width: int,
    delta: int,
) -> bool:
    """Put words that moved by `delta` from the new file into the old; False: one did not."""
    old = old_views[places.alignment][places.first :]
    new = new_views[places.alignment][places.first :]
    for index in places.indices:
        value = new[index]
        # Words wrap: then the difference counts modulo their width.
        if value - old[index] != delta and (value - old[index] - delta) % (1 << 8 * width):
            return False
        old[index] = value
    return True


def _windows(
    blocks: Sequence[tuple[Block, list[int]]], length: int
) -> Iterator[tuple[int, int, Sequence[tuple[Block, list[int]]]]]:
    """Cut a file of `length` bytes into windows that cut no block: start, end, blocks inside."""
    start = at = 0
    while start < length:
        end = min(start + WINDOW, length)
        first = at
        while at < len(blocks) and blocks[at][0].low < end:
            if blocks[at][0].high > end:
                end = blocks[at][0].low
                break
            at += 1
        yield start, end, blocks[first:at]
        start = end


def _put_header(window: bytearray, image: Image, new_base: int, clear_dynamic_base: bool) -> None:
    """Write the fields that moving changes into `window`, the first of the file."""
    base = new_base.to_bytes(image.base_width, "little")
    window[image.base_offset : image.base_offset + len(base)] = base
    if clear_dynamic_base:
        window[image.flags_offset : image.flags_offset + 2] = _without_dynamic_base(image)


def _without_dynamic_base(image: Image) -> bytes:
    return (image.dll_characteristics & ~DYNAMIC_BASE).to_bytes(2, "little")


def _first_difference(start: int, expected: bytearray, found: bytes) -> str:
    for offset, (want, have) in enumerate(zip(expected, found), start):
        if want != have:
            return f"byte {offset} should be 0x{want:02x} and is 0x{have:02x}"
    return f"relocated file ends at byte {start + len(found)}"


def _read(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) < size:
        raise RelocationError(f"truncated: the file has {offset + len(data)} bytes")
    return data


def _write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, however little of it each call takes."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
