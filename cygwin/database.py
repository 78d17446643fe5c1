"""Cygwin's rebase database: reads the file in which `rebase -s` remembers every DLL's place."""

from __future__ import annotations

import os
import stat
import struct

from cygwin.address_space import GRANULARITY, X86_64
from cygwin.paths import DATABASES
from cygwin.values import NamedTuple

_MAGIC = b"rBiI"
_VERSION = 1
_HEADER = struct.Struct("<4sHHQIiI")  # magic, machine, version, base, offset, down, count
_ENTRY = struct.Struct("<QIQIII")  # name pointer, name size, base, image size, slot size, flags

# Bounds on what a made-up file can cost. All addresses that Cygwin has for DLLs, 0x2_0000_0000 to
# 0x6_0000_0000, are 262,144 slots of 64 KiB; a database of 2,000 DLLs has 0.2 MB.
_MOST_ENTRIES = 0x40000
_MOST_BYTES = 16 << 20


class DatabaseError(Exception):
    """The database cannot be read or is not what Cygwin's rebase writes; it was not changed."""


class Entry(NamedTuple):
    """One DLL of the database."""

    path: str  #: absolute Cygwin path
    base: int  #: image base, an address
    size: int  #: SizeOfImage, bytes
    slot_size: int  #: bytes set aside for it, a multiple of 64 KiB


class Database(NamedTuple):
    """What one database file says."""

    machine: int  #: 0x8664 or 0x14c
    base: int  #: the address that rebase starts from
    offset: int  #: bytes that it leaves free between two DLLs
    down: bool  #: it fills downward from `base`
    entries: tuple[Entry, ...]  #: in the order of the file, which is that of their paths


def read_database(path: str) -> Database:
    """Read a database file of version 1.

    Raises DatabaseError, which names the file and what is wrong with it. Memory stays below
    256 MB whatever the file holds. The format is that of Cygwin's rebase 4.x: a header, an entry
    a DLL, then the names in the same order, each ended by NUL; all numbers little endian.
    """
    try:
        # O_NONBLOCK: opening a FIFO would wait for a writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            size = status.st_size
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("not a regular file")
            if size > _MOST_BYTES:
                raise ValueError(f"has {size} bytes, more than any rebase database ({_MOST_BYTES})")
            return parse_database(file.read(size))
    except OSError as error:
        raise DatabaseError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DatabaseError(f"{path}: {error}") from None


def parse_database(data: bytes) -> Database:
    """Return what the bytes of a database file say; ValueError says why they are none."""
    length = len(data)
    if not data.startswith(_MAGIC):
        raise ValueError(f"not a rebase database: it begins with {data[:4]!r}, not {_MAGIC!r}")
    if length < _HEADER.size:
        raise ValueError(f"truncated: it has {length} bytes, its header alone needs {_HEADER.size}")
    _, machine, version, base, offset, down, count = _HEADER.unpack_from(data)
    if machine not in DATABASES:
        raise ValueError(f"for an unknown machine 0x{machine:x}")
    if version != _VERSION:
        raise ValueError(f"has version {version}; only version {_VERSION} is known")
    if down not in (0, 1):
        raise ValueError(f"damaged: its direction is {down}, neither 0 nor 1")
    if count > _MOST_ENTRIES:
        raise ValueError(f"damaged: it claims {count} entries; {_MOST_ENTRIES} fill all addresses")
    at = _HEADER.size + count * _ENTRY.size
    if length < at:
        raise ValueError(f"truncated: its {count} entries end at byte {at}, it has {length} bytes")
    entries = []
    top = 1 << (64 if machine == X86_64 else 32)
    for number, row in enumerate(_ENTRY.iter_unpack(data[_HEADER.size : at]), 1):
        try:
            entries.append(_entry(data, at, row, top))
        except ValueError as error:
            raise ValueError(f"entry {number} of {count}: {error}") from None
        at += row[1]
    if at != length:
        raise ValueError(f"damaged: {length - at} bytes follow its last name")
    return Database(machine, base, offset, bool(down), tuple(entries))


def _entry(data: bytes, at: int, row: tuple[int, ...], top: int) -> Entry:
    """Return what a row says of a DLL, whose name begins at byte `at`; `top` ends all addresses."""
    _, length, base, size, slot_size, _ = row
    name = data[at : at + length]
    if len(name) < length:
        raise ValueError(f"truncated: its name ends at byte {at + length}, the file at {len(data)}")
    if not length or name.find(b"\0") != length - 1:
        raise ValueError(f"its name does not end where its size, {length} bytes, says")
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"its name {name[:200]!r} is not UTF-8") from None
    path = os.fsdecode(name[:-1])  # as this user's locale has the names of files
    if not path.startswith("/"):
        raise ValueError(f"its name {path[:200]!r} is not an absolute path")
    if not 0 < size <= slot_size or slot_size % GRANULARITY:
        raise ValueError(
            f"its address range of 0x{slot_size:x} bytes is not a multiple of 64 KiB "
            f"that holds its image of 0x{size:x} bytes"
        )
    if base + slot_size > top:
        raise ValueError(f"its address range at 0x{base:x} goes beyond the last address")
    return Entry(path, base, size, slot_size)
