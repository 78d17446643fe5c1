"""The memory of what was seen: written and read back, and every kind of damage."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebaser.scan import snapshot
from rebaser.scan.snapshot import NEVER, Folder, Seen, Snapshot, SnapshotLostError

U64 = st.integers(0, (1 << 64) - 1)
TIME = st.integers(-(1 << 63), (1 << 63) - 1)
# What a name may hold: anything but NUL and slash, bytes that are not UTF-8 among it.
NAME = st.binary(min_size=1, max_size=20).map(
    lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"-").decode("utf-8", "surrogateescape")
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Return any memory that a scan could make."""
    texts = ["", *draw(st.lists(TEXT, max_size=3))]

    def row() -> tuple[int, ...]:
        return (
            draw(U64),
            draw(TIME),
            draw(TIME),
            draw(U64),
            draw(U64),
            draw(st.integers(0, (1 << 32) - 1)),
            draw(st.integers(0, 0xFFFF)),
            draw(st.sampled_from([0, 4, 8])),
            draw(st.integers(0, 7)),
            draw(U64),
            draw(U64),
            draw(U64),
            draw(st.integers(0, len(texts) - 1)),
        )

    folders = {}
    for path in ["", *draw(st.lists(NAME, max_size=4, unique=True))]:
        names = draw(st.lists(NAME, max_size=3))
        stat = (draw(TIME), draw(TIME), draw(U64), draw(U64))
        folders[path] = Folder(stat, names, [row() for _ in names])
    return Snapshot(draw(TEXT), draw(TEXT), folders, texts)


@settings(max_examples=100, deadline=None)
@given(snapshots())
def test_round_trip(one: Snapshot) -> None:
    assert snapshot.load(snapshot.dump(one)) == one


def example() -> Snapshot:
    row = Seen(1000, 5, 6, 7, 8, 1, 0x8664, 8, 1, 0x2_0001_0000, 0x5000, 0xB0, 1)
    folders = {
        "": Folder((1, 2, 3, 4), [], []),
        "bin": Folder((9, 10, 11, 12), ["a.dll", "\udcff.so"], [row, row._replace(size=2)]),
    }
    return Snapshot("rules", "settled", folders, ["", "truncated"])


def test_cut_at_every_byte() -> None:
    data = snapshot.dump(example())
    for length in range(len(data)):
        with pytest.raises(SnapshotLostError):
            snapshot.load(data[:length])
    with pytest.raises(SnapshotLostError):
        snapshot.load(data + b"\0")


def test_every_flipped_bit() -> None:
    data = snapshot.dump(example())
    for at in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[at] ^= 1 << bit
            with pytest.raises(SnapshotLostError):
                snapshot.load(bytes(broken))


def with_body(body: bytes) -> bytes:
    """Return a file with a right header around any body."""
    return (
        struct.pack("<8sIIQ", snapshot.MAGIC, snapshot.VERSION, zlib.crc32(body), len(body)) + body
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_made_up_bodies_with_a_right_checksum(data: st.DataObject) -> None:
    body = bytearray(snapshot.dump(example())[24:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body)))]
    try:
        found = snapshot.load(with_body(bytes(body)))
    except SnapshotLostError:
        return
    # What was read is whole: every file has its name, every fault its text.
    for folder in found.folders.values():
        assert len(folder.names) == len(folder.files)
        assert len(folder.stat) == 4
        assert all(0 <= row[-1] < len(found.texts) for row in folder.files)


@pytest.mark.parametrize(
    "counts",
    [(0, 2), (3, 2), (2, 3), (1 << 60, 2), (2, 1 << 60), ((1 << 64) - 1, (1 << 64) - 1)],
)
def test_made_up_counts(counts: tuple[int, int]) -> None:
    body = bytearray(snapshot.dump(example())[24:])
    struct.pack_into("<QQ", body, 0, *counts)
    with pytest.raises(SnapshotLostError):
        snapshot.load(with_body(bytes(body)))


def test_a_newer_version_says_so() -> None:
    data = bytearray(snapshot.dump(example()))
    struct.pack_into("<I", data, 8, snapshot.VERSION + 1)
    with pytest.raises(SnapshotLostError, match="version 2, and this rebaser knows 1"):
        snapshot.load(bytes(data))


def test_what_is_racy_is_not_trusted() -> None:
    row = example().folders["bin"].files[0]
    early, late = row, (*row[:2], 100, *row[3:])  # by ctime
    modified_later = (row[0], 100, *row[2:])
    folders = {
        "": Folder((99, 99, 1, 8), ["a", "b", "c"], [early, late, modified_later]),
        "x": Folder((100, 1, 1, 8), [], []),
        "y": Folder((1, 100, 1, 8), [], []),
        "z": Folder((200, 200, 1, 9), [], []),  # another file system, with a clock of its own
    }
    kept = snapshot.trusted(Snapshot("", "", folders, ["", ""]), 100, 8).folders
    assert kept[""].stat == (99, 99, 1, 8)
    assert [found[1] for found in kept[""].files] == [5, NEVER, NEVER]
    assert kept["x"].stat[0] == NEVER
    assert kept["y"].stat[0] == NEVER
    assert kept["z"].stat[0] == NEVER
    much_later = snapshot.trusted(Snapshot("", "", folders, ["", ""]), 4 * 3600 * 10**9, 8).folders
    assert much_later["z"].stat == (200, 200, 1, 9)
