"""The CheckSum of an image, without holding the file in memory or reading it once more.

It is the sum of the file's little-endian 16-bit words, the field itself taken as 0, with every
carry added again at the low end (imagehlp.dll, CheckSumMappedFile), plus the file's length. That
sum is the whole file, taken as one number, modulo 0xffff: so it can be made of any pieces.
"""

from __future__ import annotations

import os

MODULUS = 0xFFFF
WIDTH = 4  # bytes of the field
_PIECE = 0x1000  # bytes that are made one number at a time; the fastest, by measuring
_WINDOW = 0x40000  # bytes that are read at a time


def sum_words(data: bytes | bytearray, offset: int) -> int:
    """Return what `data`, at byte `offset` of a file, adds to the file's sum."""
    pieces = (data[at : at + _PIECE] for at in range(0, len(data), _PIECE))
    return (sum(int.from_bytes(piece, "little") for piece in pieces) << offset % 2 * 8) % MODULUS


def sum_file(descriptor: int) -> int:
    """Return the sum of a whole file, its CheckSum field included."""
    total = at = 0
    while window := os.pread(descriptor, _WINDOW, at):
        total += sum_words(window, at)
        at += len(window)
    return total


def checksum(total: int, length: int) -> int:
    """Return the CheckSum of a file of `length` bytes, of which `total` is the sum without it."""
    # A sum of 0 stays 0 only where every byte is; an image begins with MZ.
    return (total % MODULUS or MODULUS) + length & 0xFFFF_FFFF
