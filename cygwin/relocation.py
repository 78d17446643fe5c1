"""Moving an image to another base, the proof that nothing else was changed, and its CheckSum."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from cygwin.fault import FaultError, RelocationError
from cygwin.image import DYNAMIC_BASE, Image, read_base
from cygwin.relocation_table import Block, Reader, marks_of

# A file is held in memory in pieces of this many bytes, and of what a block has behind that.
WINDOW = 0x40000

# The CheckSum is the sum of the file's little-endian 16-bit words, the field itself taken as 0,
# with every carry added again at the low end (imagehlp.dll, CheckSumMappedFile), plus the file's
# length. That sum is the whole file, taken as one number, modulo 0xffff: so it can be made of any
# pieces.
_MODULUS = 0xFFFF
_PIECE = 0x1000  # bytes that are made one number at a time; the fastest, by measuring


def relocate(descriptor: int, image: Image, new_base: int, *, clear_dynamic_base: bool) -> None:
    """Move the image in a file that is open for reading and writing to the address `new_base`.

    Every relocated word moves by the difference of the bases (DIR64 modulo 2^64, HIGHLOW modulo
    2^32: PE/COFF specification, "Base Relocation Types"), then ImageBase is written, then, where
    asked for, DYNAMIC_BASE is cleared. Nothing else changes: `check_and_sum`, which reads the whole
    file, makes the CheckSum right. `image` is what the file holds. Raises RelocationError, which
    leaves the file half moved.
    """
    _demand_movable(descriptor, image, new_base)
    delta, reader = new_base - image.base, Reader(descriptor)
    blocks = image.blocks if delta else ()
    for _, _, inside in _windows(blocks, blocks[-1].high if blocks else 0):
        if inside:
            start, end = inside[0].low, inside[-1].high
            before = _read(descriptor, start, end - start)
            moved = _relocated(before, start, inside, reader, image.base_width, delta)
            _write(descriptor, moved, start)
    for offset, value in _header(image, new_base, clear_dynamic_base):
        _write(descriptor, value, offset)


def check_and_sum(
    source: int, copy: int, image: Image, new_base: int, *, clear_dynamic_base: bool
) -> None:
    """Prove that the file `copy` is `source`, moved to `new_base`, and make its CheckSum right.

    Whoever relocated it: every relocated word differs by exactly the difference of the bases,
    ImageBase and the flag are as wanted, and every other byte but the CheckSum is the same. That is
    the sum of the very bytes that were proved, whatever it was before. `copy` is open for writing
    too; `image` is what `source` holds. Raises RelocationError that names the first byte that is
    not as it must be.
    """
    _demand_movable(source, image, new_base)
    length, copy_length = os.fstat(source).st_size, os.fstat(copy).st_size
    if length != copy_length:
        raise RelocationError(f"relocated file has {copy_length} bytes, the original {length}")
    delta = new_base - image.base
    field = slice(image.checksum_offset, image.checksum_offset + 4)
    reader = Reader(source)
    total = 0
    for start, end, blocks in _windows(image.blocks if delta else (), length):
        before, found = _read(source, start, end - start), _read(copy, start, end - start)
        total += sum_words(found, start)
        if start and not blocks and before == found:
            continue
        expected = _relocated(before, start, blocks, reader, image.base_width, delta)
        if not start:
            for offset, value in _header(image, new_base, clear_dynamic_base):
                expected[offset : offset + len(value)] = value
            stored = expected[field] = found[field]
        if expected != found:
            at = next(at for at, byte in enumerate(found) if byte != expected[at])
            what = f"should be 0x{expected[at]:02x} and is 0x{found[at]:02x}"
            raise RelocationError(f"byte {start + at} {what}")
    right = checksum(total - sum_words(stored, field.start), length).to_bytes(4, "little")
    if stored != right:
        _write(copy, right, field.start)
        if _read(copy, field.start, 4) != right:
            raise RelocationError("its CheckSum is not as it was written")


def _demand_movable(descriptor: int, image: Image, new_base: int) -> None:
    if image.fault:
        raise FaultError(image.fault, image.detail)
    if not 0 <= new_base <= (1 << 8 * image.base_width) - image.slot_size:
        raise RelocationError(f"an image of {image.size} bytes does not fit at 0x{new_base:x}")
    found = read_base(descriptor, image.base_offset, image.base_width)
    if found != image.base:
        raise RelocationError(f"changed: its base was 0x{image.base:x} and is 0x{found:x}")
    length = os.fstat(descriptor).st_size
    ends = [s.raw_offset + s.raw_size for s in image.sections if s.raw_size]
    if length < max([*ends, image.flags_offset + 2]):
        raise RelocationError(f"truncated: the file has {length} bytes")


def _relocated(
    old: bytes, start: int, blocks: Sequence[Block], reader: Reader, width: int, delta: int
) -> bytearray:
    """Return `old`, from byte `start` of the file, with `delta` added to the words of `blocks`.

    The bytes from a block's first word to its last are taken for one number, as are the marks of
    its words: so one addition moves them all, modulo their width where none carries.
    """
    new = bytearray(old)
    highest = 8 * width - 1
    for block in blocks:
        at = slice(block.low - start, block.high - start)
        marks = marks_of(block, reader, width)
        before = int.from_bytes(old[at], "little")
        after = before + marks * delta
        # Less than its highest bit makes no word carry that has a 0 there, and a word that borrows
        # has a 1 there afterwards.
        if abs(delta) >> highest or (before if delta > 0 else after) & marks << highest:
            new[at] = _moved_singly(old[at], marks, width, delta)
        else:
            new[at] = after.to_bytes(block.high - block.low, "little")
    return new


def _moved_singly(old: bytes, marks: int, width: int, delta: int) -> bytes:
    new = bytearray(old)
    for offset, mark in enumerate(marks.to_bytes(len(old), "little")):
        if mark:
            word = int.from_bytes(new[offset : offset + width], "little") + delta
            new[offset : offset + width] = (word % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(new)


def _windows(blocks: Sequence[Block], length: int) -> Iterator[tuple[int, int, Sequence[Block]]]:
    """Cut a file of `length` bytes into windows that cut no block: start, end, blocks inside."""
    start = at = 0
    while start < length:
        end = min(start + WINDOW, length)
        first = at
        while at < len(blocks) and blocks[at].low < end:
            end = max(end, blocks[at].high)
            at += 1
        yield start, end, blocks[first:at]
        start = end


def _header(image: Image, new_base: int, clear_dynamic_base: bool) -> list[tuple[int, bytes]]:
    """Return the fields of the headers that moving changes, and where they lie in the file."""
    flags = image.dll_characteristics & ~(DYNAMIC_BASE if clear_dynamic_base else 0)
    return [
        (image.base_offset, new_base.to_bytes(image.base_width, "little")),
        (image.flags_offset, flags.to_bytes(2, "little")),
    ]


def _read(descriptor: int, offset: int, size: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) < size:
        raise RelocationError(f"truncated: the file has {offset + len(data)} bytes")
    return data


def _write(descriptor: int, data: bytes | bytearray, offset: int) -> None:
    """Write all of `data` at `offset`, however little of it each call takes."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def sum_words(data: bytes | bytearray, offset: int) -> int:
    """Return what `data`, at byte `offset` of a file, adds to the file's sum."""
    pieces = (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
    return (sum(int.from_bytes(piece, "little") for piece in pieces) << offset % 2 * 8) % _MODULUS


def sum_file(descriptor: int) -> int:
    """Return the sum of a whole file, its CheckSum field included."""
    total = at = 0
    while window := os.pread(descriptor, WINDOW, at):
        total += sum_words(window, at)
        at += len(window)
    return total


def checksum(total: int, length: int) -> int:
    """Return the CheckSum of a file of `length` bytes, of which `total` is the sum without it."""
    # A sum of 0 stays 0 only where every byte is; an image begins with MZ.
    return (total % _MODULUS or _MODULUS) + length & 0xFFFF_FFFF
