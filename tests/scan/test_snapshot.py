"""The memory of what was seen: written and read back, and every kind of damage."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pe import Shape, build, section_header
from trees import make_tree

from cygwin.address_space import ARENA
from cygwin.fault import FAULTS
from rebaser.scan import snapshot
from rebaser.scan.snapshot import FORKS, NEVER, Folder, Group, Seen, Snapshot, SnapshotLostError
from rebaser.scan.walk import scan

U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U16 = st.integers(0, 0xFFFF)
TIME = st.integers(-(1 << 63), (1 << 63) - 1)
# What a name may hold: anything but NUL and slash, bytes that are not UTF-8 among it.
NAME = (
    st.binary(min_size=1, max_size=20)
    .map(lambda raw: os.fsdecode(raw.replace(b"\0", b"0").replace(b"/", b"-")))
    .filter(lambda name: name not in (".", ".."))
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Return any memory that a scan could make."""
    details = list(dict.fromkeys(["", *draw(st.lists(TEXT, max_size=3))]))

    def row() -> tuple[int, ...]:
        flags = draw(st.integers(0, 7))
        machines = st.sampled_from(list(ARENA)) if flags & FORKS else U16
        numbers = (U64, TIME, TIME, U64, U64, U32, machines)
        faults = st.sampled_from([0, *FAULTS])
        return (
            *map(draw, numbers),
            draw(st.sampled_from([0, 4, 8])),
            flags,
            *map(draw, (U16, U64, U32, U32, faults)),
            draw(st.integers(0, len(details) - 1)),
        )

    def names() -> tuple[str, ...]:
        return tuple(draw(st.lists(NAME, max_size=3)))

    folders = {}
    for path in ["", *draw(st.lists(NAME, max_size=4, unique=True))]:
        listed = draw(st.lists(NAME, max_size=3))
        stat = (draw(TIME), draw(TIME), draw(U64), draw(U64))
        folders[path] = Folder(stat, listed, [row() for _ in listed])
    return Snapshot(
        draw(TEXT),
        draw(TEXT),
        folders,
        details,
        draw(TEXT),
        names(),
        tuple(
            Group(draw(U16), draw(U64), draw(U64), names()) for _ in range(draw(st.integers(0, 2)))
        ),
        names(),
        tuple(f"{draw(st.sampled_from(list(folders)))}/{name}".lstrip("/") for name in names()),
    )


@settings(max_examples=100, deadline=None)
@given(snapshots())
def test_round_trip(one: Snapshot) -> None:
    assert snapshot.load(snapshot.dump(one)) == one


def example() -> Snapshot:
    row = Seen(1000, 5, 6, 7, 8, 1, 0x8664, 8, 0, 0x160, 0x2_0001_0000, 0x5000, 0xB0, 3, 1)
    folders = {
        "": Folder((1, 2, 3, 4), [], []),
        "bin": Folder((9, 10, 11, 12), ["a.dll", "\udcff.so"], [row, row._replace(size=2)]),
    }
    overlaps = (Group(0x8664, 0x1_8000_0000, 0x1_8002_0000, ("bin/a.dll", "bin/b.dll")),)
    details = ["", "section a\\x00b ends at byte 7"]
    inner = ("bin/.rebaser",)
    kept = (inner, overlaps, ("bin/a.dll",), ("bin/a.exe", "setup.exe"))
    return Snapshot("rules", "settled", folders, details, "host", *kept)


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
        assert all(Seen._make(row).fault in {0, *FAULTS} for row in folder.files)
        assert all(0 <= Seen._make(row).detail < len(found.details) for row in folder.files)


@pytest.mark.parametrize(
    "counts",
    [
        (0, 2),
        (3, 2),
        (2, 3),
        (1 << 60, 2),
        (2, 1 << 60),
        ((1 << 64) - 1, (1 << 64) - 1),
        *((2, 2, *[1 << 62 if at == n else 1 for at in range(5)]) for n in range(5)),
    ],
)
def test_made_up_counts(counts: tuple[int, ...]) -> None:
    body = bytearray(snapshot.dump(example())[24:])
    struct.pack_into(f"<{len(counts)}Q", body, 0, *counts)
    with pytest.raises(SnapshotLostError):
        snapshot.load(with_body(bytes(body)))


def test_a_detail_that_is_there_twice() -> None:
    """A scan keeps each once: those behind it would be others'."""
    with pytest.raises(SnapshotLostError):
        snapshot.load(snapshot.dump(example()._replace(details=["", "a", "b", "a", "c"])))


@pytest.mark.parametrize(
    "nonsense",
    [
        {"base_width": 255},  # a number that no field has
        {"base_width": 16},
        {"fault": 999},
        {"fault": 255},
        {"detail": 2},
        {"machine": 0x8640, "flags": FORKS},  # nothing forks on such a machine
    ],
)
def test_a_row_of_nonsense(nonsense: dict[str, int]) -> None:
    one = example()
    file = Seen._make(one.folders["bin"].files[0])._replace(**nonsense)
    one.folders["bin"].files[0] = file
    with pytest.raises((SnapshotLostError, struct.error)):
        snapshot.load(snapshot.dump(one))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("..", "a.dll"),
        ("../elsewhere", "a.dll"),
        ("bin/../..", "a.dll"),
        ("./bin", "a.dll"),
        ("/bin", "a.dll"),
        ("lib//bin", "a.dll"),
        ("bin", "../a.dll"),
        ("bin", "/etc/a.dll"),
        ("bin", "a\0.dll"),
        ("b\0in", "a.dll"),
    ],
)
def test_names_that_lead_out_of_the_tree(path: str, name: str) -> None:
    file = example().folders["bin"].files[0]
    one = Snapshot("", "", {path: Folder((1, 2, 3, 4), [name], [file])}, ["", "damage"])
    sound = one._replace(folders={"bin": Folder((1, 2, 3, 4), ["a.dll"], [file])})
    assert snapshot.load(snapshot.dump(sound)) == sound
    with pytest.raises(SnapshotLostError):
        snapshot.load(snapshot.dump(one))


@pytest.mark.parametrize("path", ["/etc/a.exe", "../a.exe", "bin/../a.exe", "lib/a.exe", "bin/.."])
def test_programs_in_no_folder_of_the_tree(path: str) -> None:
    with pytest.raises(SnapshotLostError):
        snapshot.load(snapshot.dump(example()._replace(programs=(path,))))


@pytest.mark.parametrize("time", [-(1 << 63) - 1, 1 << 63, -(10**20), 10**20])
def test_a_time_that_64_bits_do_not_hold_is_looked_at_again(time: int) -> None:
    one = example()
    file = Seen._make(one.folders["bin"].files[0])
    one.folders["bin"].files[:] = [file._replace(mtime_ns=time), file._replace(ctime_ns=time)]
    one.folders[""] = Folder((time, 2, 3, 4), [], [])
    found = snapshot.load(snapshot.dump(one)).folders
    assert [row[1] for row in found["bin"].files] == [NEVER, NEVER]
    assert found[""].stat == (NEVER, NEVER, 3, 4)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tree with a sound DLL, a truncated one with NULs in a section's name, and text."""
    root = make_tree(tmp_path_factory.mktemp("fuzz") / "tree", 2)
    name = section_header(Shape(), 1)
    (root / "bin/cut.dll").write_bytes(build(patches={name: b"a\0\0b\0\0\0\0"})[:-1])
    (root / "lib").mkdir()
    (root / "lib/text.dll").write_bytes(b"no image")
    return root


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_scan_of_a_tree_that_was_never_so(tree: Path, data: st.DataObject) -> None:
    """Whatever is remembered under a right checksum, the scan finds what is there."""
    truth = scan(str(tree)).snapshot
    remembered = snapshot.trusted(truth, 1 << 62, os.stat(tree).st_dev)
    body = bytearray(snapshot.dump(remembered)[24:])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        run = data.draw(st.binary(min_size=1, max_size=8))
        body[at : at + len(run)] = run
    try:
        found = snapshot.load(with_body(bytes(body)))
    except SnapshotLostError:
        return
    again = scan(str(tree), snapshot=found)
    assert again.failed == []
    assert [path for path, _ in again.snapshot.files() if path.startswith("../")] == []


def test_a_group_that_ends_behind_the_last_address() -> None:
    one = example()._replace(overlaps=(Group(0x8664, 0xFFFF_FFFF_FFFF_0000, 1 << 64, ("a",)),))
    assert snapshot.load(snapshot.dump(one)).overlaps[0].high == (1 << 64) - 1


def test_a_newer_version_says_so() -> None:
    data = bytearray(snapshot.dump(example()))
    struct.pack_into("<I", data, 8, snapshot.VERSION + 1)
    with pytest.raises(SnapshotLostError, match="version 5, and this rebaser knows 4"):
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
    kept = snapshot.trusted(Snapshot("", "", folders, [""]), 100, 8).folders
    assert kept[""].stat == (99, 99, 1, 8)
    assert [found[1] for found in kept[""].files] == [5, NEVER, NEVER]
    assert kept["x"].stat[0] == NEVER
    assert kept["y"].stat[0] == NEVER
    assert kept["z"].stat[0] == NEVER
    much_later = snapshot.trusted(Snapshot("", "", folders, [""]), 4 * 3600 * 10**9, 8).folders
    assert much_later["z"].stat == (200, 200, 1, 9)
