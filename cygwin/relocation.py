"""Moving an image to another base, and the proof that nothing else was changed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cygwin.errors import RelocationError
from cygwin.image import DYNAMIC_BASE, read_base
from cygwin.relocation_table import WORD_TYPE, Block, Reader, block_words, read_blocks, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

    from cygwin.image import Image

# A file is held in memory in pieces of this many bytes; a page with a word behind its end fits.
WINDOW = 0x40000

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
    blocks = _blocks(original, image) if delta else []
    reader = Reader(original)
    modulus = 1 << 8 * image.base_width
    moved = {delta % modulus, delta % modulus - modulus}
    for start, end, inside in _windows(blocks, length):
        old = bytearray(_read(original, start, end - start))
        new = _read(staged, start, end - start)
        words = [word - start for b in inside for word in block_words(reader, b, image.base_width)]
        differences = _replace_words(old, new, words, image.base_width)
        if not start:
            _put_header(old, image, new_base, clear_dynamic_base)
        if old != new or not differences <= moved:
            old[:] = _read(original, start, end - start)
            _add(_views(old, image.base_width), words, 0, image.base_width, delta)
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


def _blocks(descriptor: int, image: Image) -> list[Block]:
    return read_blocks(descriptor, image.sections, image.relocations, image.base_width)


def _move_words(descriptor: int, image: Image, delta: int) -> None:
    """Add `delta` to every relocated word of the file, a window at a time."""
    width = image.base_width
    page_type = WORD_TYPE[width] << 12
    window, start, end = bytearray(), 0, 0  # `end`: behind the last word that was moved
    views: list[memoryview] = []
    for block, entries in walk(descriptor, image.sections, image.relocations, width):
        if block.low < start or block.high > start + len(window):
            _write(descriptor, memoryview(window)[: end - start], start)
            window, start, end = bytearray(os.pread(descriptor, WINDOW, block.low)), block.low, 0
            if block.high > start + len(window):
                raise RelocationError(f"truncated: the file has {start + len(window)} bytes")
            views = _views(window, width)
        _add(views, entries, block.page - page_type - start, width, delta)
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


def _add(
    views: Sequence[memoryview], entries: Sequence[int], shift: int, width: int, delta: int
) -> None:
    """Add `delta` to the word at `entry + shift` for each entry, modulo the words' width."""
    low, log2, mask = width - 1, width.bit_length() - 1, (1 << 8 * width) - 1
    for entry in entries:
        word = entry + shift
        view, index = views[word & low], word >> log2
        view[index] = view[index] + delta & mask


def _replace_words(old: bytearray, new: bytes, words: Sequence[int], width: int) -> set[int]:
    """Put the words of `new` into `old`, and return the set of what they differed by."""
    old_views, new_views = _views(old, width), _views(new, width)
    low, shift = width - 1, width.bit_length() - 1
    differences = set()
    for word in words:
        alignment, index = word & low, word >> shift
        view, value = old_views[alignment], new_views[alignment][index]
        differences.add(value - view[index])
        view[index] = value
    return differences


def _windows(blocks: Sequence[Block], length: int) -> Iterator[tuple[int, int, list[Block]]]:
    """Cut a file of `length` bytes into windows that cut no block: start, end, blocks inside."""
    start = at = 0
    while start < length:
        end = min(start + WINDOW, length)
        inside = []
        while at < len(blocks) and blocks[at].low < end:
            if blocks[at].high > end:
                end = blocks[at].low
                break
            inside.append(blocks[at])
            at += 1
        yield start, end, inside
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
