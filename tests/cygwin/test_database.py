"""Cygwin's rebase database: what is read, and every way of refusing a file that is none."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cygwin import paths
from cygwin.database import (
    Database,
    DatabaseError,
    Entry,
    parse_database,
    read_database,
)

ONE = Database(
    0x8664,
    0x4_0000_0000,
    0,
    True,
    (
        Entry("/usr/bin/cyga.dll", 0x3_FFFE_0000, 0x11000, 0x20000),
        Entry("/usr/lib/ü b.dll", 0x3_FFFD_0000, 0xC000, 0x10000),
    ),
)


def written(database: Database) -> bytes:
    """Return the bytes of a database file, as Cygwin's rebase lays them out."""
    names = [entry.path.encode() + b"\0" for entry in database.entries]
    header = struct.pack(
        "<4sHHQIiI",
        b"rBiI",
        database.machine,
        1,
        database.base,
        database.offset,
        database.down,
        len(names),
    )
    entries = (
        struct.pack("<QIQIII", 0xDEAD, len(name), entry.base, entry.size, entry.slot_size, 0)
        for name, entry in zip(names, database.entries)
    )
    return header + b"".join(entries) + b"".join(names)


NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    slots = draw(st.integers(1, 0xFFFF))
    size = draw(st.integers(1, slots << 16))
    base = draw(st.integers(0, (1 << 32) - (slots << 16)))
    return Entry("/" + draw(NAMES), base, size, slots << 16)


DATABASES = st.builds(
    Database,
    st.sampled_from([0x8664, 0x14C]),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, (1 << 32) - 1),
    st.booleans(),
    st.lists(entries(), max_size=9).map(tuple),
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(DATABASES)
def test_what_was_written_is_read(database: Database) -> None:
    assert parse_database(written(database)) == database


@given(DATABASES, st.data())
def test_every_cut_is_noticed(database: Database, data: st.DataObject) -> None:
    whole = written(database)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"truncated|not a rebase database"):
        parse_database(whole[:cut])


@given(DATABASES, st.data())
def test_any_bytes_are_read_or_refused(database: Database, data: st.DataObject) -> None:
    bytes_ = bytearray(written(database))
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        parse_database(bytes(bytes_))


def damaged(at: int, value: bytes) -> bytes:
    whole = bytearray(written(ONE))
    whole[at : at + len(value)] = value
    return bytes(whole)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a rebase database"),
        (b"MZ\x90\0" + bytes(60), "begins with b'MZ"),
        (b"rBiI", "its header alone needs 28"),
        (written(ONE)[:27], "has 27 bytes, its header alone needs 28"),
        (damaged(4, b"\x64\xaa"), "unknown machine 0xaa64"),
        (damaged(6, b"\2\0"), "version 2; only version 1"),
        (damaged(20, b"\7"), "direction is 7"),
        (damaged(24, b"\0\0\0\xff"), "claims 4278190080 entries"),
        (damaged(24, b"\x09"), "truncated: its 9 entries end at byte 316, it has"),
        (damaged(24, b"\1"), "entry 1 of 1: its name does not end"),
        (written(ONE)[:70], "truncated: its 2 entries"),
        (written(ONE)[:-4], "entry 2 of 2: truncated: its name"),
        (written(ONE) + b"x", "1 bytes follow its last name"),
        (damaged(36, b"\0"), "entry 1 of 2: its name does not end where its size, 0 bytes"),
        (damaged(36, b"\x13"), "entry 1 of 2: its name does not end"),
        (damaged(36, b"\x11"), "entry 1 of 2: its name does not end"),
        (damaged(36, b"\xff\xff\xff\xff"), "entry 1 of 2: truncated: its name"),
        (damaged(92, b"x"), "its name 'xusr/bin/cyga.dll' is not an absolute path"),
        (damaged(93, b"\xff"), "is not UTF-8"),
        (damaged(48, bytes(4)), "entry 1 of 2: its address range of 0x20000 bytes"),
        (damaged(48, b"\1\0\2\0"), "that holds its image of 0x20001 bytes"),
        (damaged(52, b"\1"), "is not a multiple of 64 KiB"),
        (damaged(52, bytes(4)), "its address range of 0x0 bytes"),
        (damaged(40, b"\xff" * 8), "goes beyond the last address"),
        (damaged(4, b"\x4c\x01"), "goes beyond the last address"),
    ],
)
def test_each_fault_has_its_sentence(tmp_path: Path, data: bytes, words: str) -> None:
    file = tmp_path / "rebase.db"
    file.write_bytes(data)
    with pytest.raises(DatabaseError) as caught:
        read_database(str(file))
    assert str(caught.value).startswith(f"{file}: ")
    assert words in str(caught.value)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    for name, words in [
        ("fifo", "not a regular file"),
        ("huge", "more than any rebase database"),
        ("missing", "cannot be read: No such file or directory"),
        (".", "cannot be read: Is a directory"),
    ]:
        with pytest.raises(DatabaseError, match=words):
            read_database(str(tmp_path / name))


def test_every_entry_of_the_largest_file_is_refused_or_read_in_bounded_memory(
    tmp_path: Path,
) -> None:
    many = Database(0x8664, 0, 0, False, tuple(Entry("/", 0, 1, 0x10000) for _ in range(0x40000)))
    file = tmp_path / "many"
    file.write_bytes(written(many))
    assert len(read_database(str(file)).entries) == 0x40000


def test_each_machine_has_its_default() -> None:
    assert paths.DATABASES == {0x8664: "/etc/rebase.db.x86_64", 0x14C: "/etc/rebase.db.i386"}


@pytest.mark.cygwin
@pytest.mark.slow
def test_a_database_that_rebase_wrote(cygwin_root: CygwinRoot) -> None:
    dlls = [file for file in cygwin_root.dlls() if file.name != "cygwin1.dll"]
    names = cygwin_root.write_list("all", dlls)
    cygwin_root.rebase("-s", "-b", "0x400000000", "-T", names)
    database = read_database(str(cygwin_root.path / "etc" / "rebase.db.x86_64"))
    assert (database.machine, database.base, database.offset) == (0x8664, 0x4_0000_0000, 0)
    assert database.down
    assert {entry.path for entry in database.entries} == {cygwin_root.name(f) for f in dlls}
    lines = map(str.split, cygwin_root.rebase("-i", "-s").stdout.splitlines())
    listed = {(name, int(base, 16), int(size, 16)) for name, _, base, _, size, *_ in lines}
    assert listed == {(entry.path, entry.base, entry.size) for entry in database.entries}
