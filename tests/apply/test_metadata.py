"""What a moved file keeps: mode, owner, times, extended attributes, and its other names."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import (
    FLOOR,
    LINKERS,
    Rebaser,
    add_dll,
    add_dlls,
    bases,
    contents,
    damaged,
    left_over,
    listing,
    make_tree,
    moved,
    overlaps,
)
from users import ROOT_ONLY


@pytest.fixture(params=["root", "owner"])
def before(request: pytest.FixtureRequest) -> list[str]:
    """Return what rebaser is to be run under: with all rights, or with the file owner's alone."""
    if os.geteuid():
        if request.param == "root":
            pytest.skip("needs root")
        return []
    if request.param == "root":
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("needs setpriv: install util-linux")
    return [setpriv, "--bounding-set=-all", "--inh-caps=-all", "--"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a tree with another file system mounted in it, at `lib/other`."""
    root = make_tree(tmp_path / "disk", 3)
    other = root / "lib/other"
    other.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(other)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount")
    yield root
    subprocess.run(["umount", "-l", str(other)], check=True)


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o444, 0o555, 0o600, 0o2755, 0o4755, 0o1777])
def test_mode(rebaser: Rebaser, tree: Path, mode: int, before: list[str]) -> None:
    file = tree / "bin/x000.dll"
    file.chmod(mode)
    rebaser.report("run", tree, before=before)
    assert file.stat().st_mode & 0o7777 == mode
    assert bases(tree)["bin/x000.dll"] != LINKERS


def test_times_to_the_nanosecond(rebaser: Rebaser, tree: Path) -> None:
    times = {}
    for number, file in enumerate(sorted(tree.glob("bin/*"))):
        times[file] = (10**18 + number * 1_000_000_007, 11 * 10**17 + number * 333_333_333)
        os.utime(file, ns=times[file])
    rebaser.report("run", tree)
    for file, (atime, mtime) in times.items():
        st = file.stat()
        assert (st.st_atime_ns, st.st_mtime_ns) == (atime, mtime)


@ROOT_ONLY
def test_owner(rebaser: Rebaser, tree: Path) -> None:
    file = tree / "bin/x001.dll"
    os.chown(file, 1234, 5678)
    file.chmod(0o6755)  # changing the owner would clear these bits
    rebaser.report("run", tree)
    st = file.stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o7777) == (1234, 5678, 0o6755)


def test_extended_attributes(rebaser: Rebaser, tree: Path, before: list[str]) -> None:
    if not hasattr(os, "setxattr"):
        pytest.skip("this Python has no extended attributes")
    file = tree / "bin/x002.dll"
    file.chmod(0o444)
    try:
        os.setxattr(file, "user.origin", b"https://example.org/\0\xff")
        os.setxattr(file, "user.empty", b"")
    except OSError as error:
        pytest.skip(f"this file system has none: {error}")
    rebaser.report("run", tree, before=before)
    found = {name: os.getxattr(file, name) for name in os.listxattr(file)}
    assert found == {"user.origin": b"https://example.org/\0\xff", "user.empty": b""}


def test_hard_links_inside_move_together(rebaser: Rebaser, tree: Path) -> None:
    first = tree / "bin/x003.dll"
    names = [first, tree / "bin/x003-again.dll", tree / "lib/deep/name.so"]
    (tree / "lib/deep").mkdir(parents=True)
    for name in names[1:]:
        os.link(first, name)
    report = rebaser.report("run", tree)
    assert len(report["moved"]) == 6
    assert report["images"] == 6
    assert len({name.stat().st_ino for name in names}) == 1
    assert first.stat().st_nlink == 3
    assert overlaps(tree) == set()
    assert rebaser.report("run", tree)["moved"] == []


def test_a_name_outside_keeps_the_old_file(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.dll"
    os.link(tree / "bin/x000.dll", cache)
    old = cache.read_bytes()
    rebaser.report("run", tree)
    assert cache.read_bytes() == old
    assert cache.stat().st_nlink == 1
    new = (tree / "bin/x000.dll").read_bytes()
    assert new == moved(old, bases(tree)["bin/x000.dll"])
    assert rebaser.report("run", tree)["moved"] == []


def test_a_further_name_that_is_excluded_keeps_the_old_file(rebaser: Rebaser, tree: Path) -> None:
    (tree / "vendor").mkdir()
    os.link(tree / "bin/x000.dll", tree / "vendor/x.bin")
    old = (tree / "vendor/x.bin").read_bytes()
    rebaser.report("run", tree, "--exclude", "vendor")
    assert (tree / "vendor/x.bin").read_bytes() == old
    assert overlaps(tree) == set()


@pytest.mark.parametrize("has_run", [False, True])
def test_what_overlaps_by_a_further_name(rebaser: Rebaser, tmp_path: Path, has_run: bool) -> None:
    root = make_tree(tmp_path / "t", 0)
    (root / "z").mkdir()
    for name in ("a.dll", "b.dll"):
        add_dll(root / name, FLOOR, directories={4: (0x400, 8)})  # signed
        os.link(root / name, root / "z" / name)
    if has_run:
        rebaser.report("run", root)
    report = rebaser.report("run", root / "z", "--strict", status=1)
    assert [group["paths"] for group in report["overlaps"]] == [["a.dll", "b.dll"]]


def test_a_name_of_another_kind_moves_too(rebaser: Rebaser, tree: Path) -> None:
    """The scan looks at no `.txt`; it is a name of the moved file all the same."""
    (tree / "share").mkdir()
    os.link(tree / "bin/x000.dll", tree / "share/readme.txt")
    report = rebaser.report("run", tree)
    assert report["images"] == 6
    assert (tree / "share/readme.txt").samefile(tree / "bin/x000.dll")
    assert (tree / "share/readme.txt").stat().st_nlink == 2
    assert rebaser.report("run", tree)["bytes_written"] == 0


def test_everything_else_is_left_alone(rebaser: Rebaser, tree: Path) -> None:
    (tree / "share").mkdir()
    (tree / "share/readme.txt").write_text("hello")
    (tree / "bin/run.exe").write_bytes((tree / "bin/x000.dll").read_bytes())
    os.symlink("x000.dll", tree / "bin/link.dll")
    os.symlink("/nowhere", tree / "bin/dangling.dll")
    add_dll(tree / "var/tmp/build.dll")
    kept = ("share", "share/readme.txt", "bin/run.exe", "bin/link.dll", "bin/dangling.dll")
    before = listing(tree)
    rebaser.report("run", tree)
    after = listing(tree)
    for name in (*kept, "var/tmp/build.dll", "var/tmp"):
        upto = -1 if name.endswith("link.dll") else None  # what it points to has changed
        assert after[name][:upto] == before[name][:upto], name


def test_the_same_input_gives_the_same_bytes(rebaser: Rebaser, tmp_path: Path) -> None:
    one, other = make_tree(tmp_path / "one", 12), make_tree(tmp_path / "other", 12)
    rebaser.report("run", one)
    rebaser.report("run", other)
    assert contents(one) == contents(other)


def test_another_file_system_below_the_root(rebaser: Rebaser, disk: Path) -> None:
    add_dlls(disk, 3, first=20, folder="lib/other/deep")
    add_dlls(disk, 1, first=30, folder="lib/other")
    before = contents(disk)
    report = rebaser.report("run", disk)
    assert len(report["moved"]) == 7
    assert damaged(before, disk) == []
    assert overlaps(disk) == set()
    assert left_over(disk) == []
    assert not (disk / "lib/other/.rebaser").exists()
    assert rebaser.report("run", disk)["moved"] == []


def test_state_outside_the_tree_stages_inside(rebaser: Rebaser, disk: Path, tmp_path: Path) -> None:
    add_dlls(disk, 2, first=20, folder="lib/other")
    elsewhere = ["--state-dir", str(tmp_path / "state"), "--lock-file", str(tmp_path / "lock")]
    assert len(rebaser.report("run", disk, *elsewhere)["moved"]) == 5
    assert left_over(disk) == []
    assert not (disk / ".rebaser").exists()
    assert not (disk / "lib/other/.rebaser").exists()
    assert overlaps(disk) == set()


def test_a_full_file_system_below_the_root(rebaser: Rebaser, disk: Path) -> None:
    for name in ("x020.dll", "x021.dll"):
        add_dll(disk / "lib/other" / name, data_size=0x8000)
    room = os.statvfs(disk / "lib/other").f_bavail * 4096
    (disk / "lib/other/ballast").write_bytes(bytes(room - 8192))
    before = contents(disk)
    report = rebaser.report("run", disk, status=1)
    assert {item["path"] for item in report["failed"]} == {
        "lib/other/x020.dll",
        "lib/other/x021.dll",
    }
    assert "No space left" in report["failed"][0]["reason"]
    assert "make room" in report["failed"][0]["reason"]
    assert damaged(before, disk) == []
    assert left_over(disk) == []
    (disk / "lib/other/ballast").unlink()
    assert len(rebaser.report("run", disk)["moved"]) == 2
    assert overlaps(disk) == set()


def test_a_file_system_below_the_root_with_less_room_than_its_dlls(
    rebaser: Rebaser, disk: Path
) -> None:
    """The batches are made for the room that there is on each."""
    for number in range(12):
        add_dll(disk / f"lib/other/x{number:02}.dll", data_size=0x20000)
    before = contents(disk)
    size = sum(len(data) for path, data in before.items() if path.startswith("lib/other"))
    st = os.statvfs(disk / "lib/other")
    (disk / "lib/other/ballast").write_bytes(bytes(st.f_bavail * st.f_frsize - size // 3))
    report = rebaser.report("run", disk)
    assert len(report["moved"]) == 15
    assert damaged(before, disk) == []
    assert left_over(disk) == []
