"""Files in use, files that change under our hands, and targets that are busy for a moment."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stop_at import Call, in_child, intercept
from trees import (
    FLOOR,
    Rebaser,
    add_dll,
    bases,
    contents,
    damaged,
    left_over,
    moved,
    overlaps,
)

from rebaser.files import on_cygwin

_MAPS = """
import mmap, sys
file = open(sys.argv[1], "rb")
here = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
print("mapped", flush=True)
input()
print(here[0x3c])
"""


@contextmanager
def mapped(path: Path) -> Iterator[int]:
    """Have another process map a file; yield its process id."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MAPS, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"mapped\n"
    try:
        yield process.pid
    finally:
        said, _ = process.communicate(b"\n", timeout=30)
        assert process.returncode == 0
        assert said == b"128\n", "it reads what it has mapped"


def busy_on_cygwin(*files: Path, programs: bool = True) -> Callable[[], None]:
    """Return what makes these files those that Windows says are loaded, and this system Cygwin.

    Without `programs` nobody has them mapped that /proc knows of.
    """
    from rebaser.apply import in_use

    def refuse(name: str, real: Call, words: Sequence[Any]) -> None:
        if words[1] & os.O_RDWR and not words[1] & os.O_CREAT:
            path = os.fspath(words[0])
            if any(os.path.exists(path) and os.path.samefile(path, file) for file in files):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def prepare() -> None:
        in_use.on_cygwin = lambda: True
        if not programs:
            in_use._mapped_files = dict
        intercept(["open"], refuse)

    return prepare


@pytest.mark.skipif(on_cygwin(), reason="there a DLL in use stays")
def test_elsewhere_than_on_cygwin_who_has_a_dll_mapped_is_not_disturbed(
    rebaser: Rebaser, tree: Path
) -> None:
    with mapped(tree / "bin/x002.dll"):
        assert len(rebaser.report("run", tree)["moved"]) == 6
    assert overlaps(tree) == set()


def test_on_cygwin_a_dll_in_use_stays_and_its_user_is_named(tree: Path, tmp_path: Path) -> None:
    before = contents(tree)
    file, log = tree / "bin/x002.dll", tmp_path / "log"
    words = ["run", str(tree), "--verbose"]
    with mapped(file) as pid:
        assert in_child(words, busy_on_cygwin(file), log) == 0, log.read_text()
        said = log.read_text()
        assert f"skipped bin/x002.dll: in use: process {pid} (" in said
        assert contents(tree)["bin/x002.dll"] == before["bin/x002.dll"]
        assert damaged(before, tree) == []
        assert overlaps(tree) == set(), "the others have moved away"
        # And again, without harm.
        assert in_child(words, busy_on_cygwin(file), log) == 0
        assert f"in use: process {pid} (" in log.read_text()
        assert contents(tree)["bin/x002.dll"] == before["bin/x002.dll"]
    assert in_child(words, lambda: None, log) == 0
    assert "KiB  bin/x002.dll" in log.read_text()
    assert overlaps(tree) == set()


def test_on_cygwin_a_user_that_cannot_be_named(tree: Path, tmp_path: Path) -> None:
    """A program of Windows: /proc knows nothing of it, and it has the file loaded all the same."""
    file, log = tree / "bin/x002.dll", tmp_path / "log"
    busy = busy_on_cygwin(file, programs=False)
    assert in_child(["run", str(tree), "--verbose"], busy, log) == 0
    assert "bin/x002.dll: in use: a process that cannot be named from here" in log.read_text()


def test_on_cygwin_two_in_use_that_collide_are_an_overlap_left(tree: Path, tmp_path: Path) -> None:
    two, log = [tree / "bin/x002.dll", tree / "bin/x004.dll"], tmp_path / "log"
    with mapped(two[0]), mapped(two[1]):
        in_child(["run", str(tree)], busy_on_cygwin(*two), log)
    assert overlaps(tree) == {("bin/x002.dll", "bin/x004.dll")}
    assert in_child(["run", str(tree)], lambda: None, log) == 0
    assert overlaps(tree) == set()


def test_on_cygwin_in_use_under_another_of_its_names(tree: Path, tmp_path: Path) -> None:
    os.link(tree / "bin/x002.dll", tree / "bin/z-other.dll")
    old, log = (tree / "bin/x002.dll").read_bytes(), tmp_path / "log"
    with mapped(tree / "bin/z-other.dll") as pid:
        in_child(["run", str(tree), "--verbose"], busy_on_cygwin(tree / "bin/x002.dll"), log)
        assert f"process {pid}" in log.read_text()
        assert (tree / "bin/z-other.dll").read_bytes() == old


def test_on_cygwin_in_use_keeps_others_off_its_addresses(tree: Path, tmp_path: Path) -> None:
    file = tree / "lib/here.dll"
    add_dll(file, FLOOR + 0x8000, data_size=0x18000)
    with mapped(file):
        in_child(["run", str(tree)], busy_on_cygwin(file), tmp_path / "log")
    assert overlaps(tree) == set()
    assert min(b for p, b in bases(tree).items() if p.startswith("bin")) >= FLOOR + 0x2_0000


def test_on_cygwin_who_moves_for_one_in_use_settles_nothing(
    rebaser: Rebaser, tmp_path: Path
) -> None:
    """As many moves as were planned, but other ones: the one in use is still to be done."""
    tree = tmp_path / "tree"
    (tree / "var").mkdir(parents=True)
    add_dll(tree / "bin/known.dll", FLOOR, dll_characteristics=0)
    assert rebaser.report("run", tree)["moved"] == []
    add_dll(tree / "lib/new.dll", FLOOR)  # loaded anywhere: that flag is to be cleared
    log = tmp_path / "log"
    with mapped(tree / "lib/new.dll"):
        in_child(["run", str(tree), "--verbose"], busy_on_cygwin(tree / "lib/new.dll"), log)
        assert "KiB  bin/known.dll" in log.read_text()
        assert "skipped lib/new.dll: in use: " in log.read_text()
    assert [m["path"] for m in rebaser.report("run", tree)["moved"]] == ["lib/new.dll"]
    assert rebaser.report("run", tree)["moved"] == []


def test_on_cygwin_rebasers_own_dlls_do_not_count(tree: Path, tmp_path: Path) -> None:
    """Its own Python may lie in the tree, with its DLLs loaded."""
    keep = []
    busy = busy_on_cygwin(tree / "bin/x001.dll")

    def load() -> None:
        with open(tree / "bin/x001.dll", "rb") as file:
            keep.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
        busy()

    log = tmp_path / "log"
    assert in_child(["run", str(tree)], load, log) == 0
    assert "moved 6 DLLs" in log.read_text()


# What changes between the scan and the commit.


def change_when_committing(tree: Path, action: Any) -> Any:
    """Return what runs `action` just before the first DLL is put in place."""
    done = []

    def decide(name: str, real: Call, words: Sequence[Any]) -> None:
        if str(words[1]).endswith((".dll", ".so")) and not done:
            done.append(1)
            action()

    return lambda: intercept(["replace"], decide)


def change_when_staging(tree: Path, action: Any) -> Any:
    """Return what runs `action` when the first copy is made."""
    done = []

    def decide(name: str, real: Call, words: Sequence[Any]) -> None:
        if words[1] & os.O_EXCL and str(words[0]).endswith(".dll") and not done:
            done.append(1)
            action()

    return lambda: intercept(["open"], decide)


@pytest.mark.parametrize("when", [change_when_staging, change_when_committing])
@pytest.mark.parametrize("same_size", [True, False])
def test_a_dll_that_changes_after_the_scan(
    tree: Path, tmp_path: Path, when: Any, same_size: bool
) -> None:
    before = contents(tree)
    victim = tree / "bin/x004.dll"
    fresh = bytearray(before["bin/x004.dll"])
    fresh[0x500] ^= 0xFF
    if not same_size:
        fresh += b"more"
    log = tmp_path / "log"
    status = in_child(["run", str(tree)], when(tree, lambda: victim.write_bytes(bytes(fresh))), log)
    said = log.read_text()
    assert "skipped bin/x004.dll: it changed" in said, said
    assert os.WEXITSTATUS(status) == 1, said
    assert victim.read_bytes() == fresh
    del before["bin/x004.dll"]
    assert damaged(before, tree) == []
    assert left_over(tree) == []
    assert in_child(["run", str(tree)], lambda: None, log) == 0
    assert "moved 1 DLL " in log.read_text()
    assert victim.read_bytes() == moved(bytes(fresh), bases(tree)["bin/x004.dll"])
    assert overlaps(tree) == set()


@pytest.mark.parametrize("when", [change_when_staging, change_when_committing])
def test_a_dll_that_is_removed_or_replaced_after_the_scan(
    tree: Path, tmp_path: Path, when: Any
) -> None:
    new = tmp_path / "new.dll"
    data = add_dll(new, words=(0x1000,))

    def act() -> None:
        (tree / "bin/x003.dll").unlink()
        os.replace(new, tree / "bin/x005.dll")
        (tree / "bin/x002.dll").unlink()
        os.symlink("x000.dll", tree / "bin/x002.dll")

    log = tmp_path / "log"
    status = in_child(["run", str(tree)], when(tree, act), log)
    assert os.WEXITSTATUS(status) == 1, log.read_text()
    assert not (tree / "bin/x003.dll").exists()
    assert (tree / "bin/x005.dll").read_bytes() == data
    assert (tree / "bin/x002.dll").is_symlink()
    assert in_child(["run", str(tree)], lambda: None, log) == 0
    assert overlaps(tree) == set()
    assert sorted(bases(tree)) == [f"bin/x00{n}.dll" for n in (0, 1, 4, 5)]


def test_a_dll_that_is_growing_all_the_time(rebaser: Rebaser, tree: Path) -> None:
    whole = add_dll(tree / "lib/new.dll", data_size=0x10000)
    writer = (
        "import sys,time\nd=open(sys.argv[1],'rb').read();f=open(sys.argv[2],'wb',0)\n"
        "print(1,flush=True)\n"
        "for at in range(0,len(d),512):\n f.write(d[at:at+512]); time.sleep(.01)\n"
    )
    (tree / "lib/new.dll").rename(tree / "source")
    process = subprocess.Popen(
        [sys.executable, "-c", writer, str(tree / "source"), str(tree / "lib/new.dll")],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    runs = 0
    while process.poll() is None:
        result = rebaser("run", tree)
        assert result.status == 0, result.words
        runs += 1
    process.communicate()
    assert runs
    assert rebaser("run", tree).status == 0
    # Not a byte of it was lost, although it was looked at again and again.
    assert (tree / "lib/new.dll").read_bytes() == moved(whole, bases(tree)["lib/new.dll"])
    assert overlaps(tree) == set()


# Busy for a moment.


def busy(times: int, code: int) -> Any:
    """Return what lets the first renames over each DLL fail so often."""
    count: dict[str, int] = {}

    def decide(name: str, real: Call, words: Sequence[Any]) -> None:
        target = str(words[1])
        count[target] = count.get(target, 0) + 1
        if target.endswith("x002.dll") and count[target] <= times:
            raise OSError(code, os.strerror(code))

    return lambda: intercept(["replace"], decide)


def test_busy_for_a_moment_is_waited_out(tree: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert in_child(["run", str(tree)], busy(3, 16), log) == 0
    assert "moved 6 DLLs" in log.read_text()


def test_busy_for_long_is_told_and_not_waited_for(tree: Path, tmp_path: Path) -> None:
    before = contents(tree)
    log = tmp_path / "log"
    began = time.monotonic()
    status = in_child(["run", str(tree)], busy(10**6, 16), log)
    assert time.monotonic() - began < 30
    assert os.WEXITSTATUS(status) == 1
    said = log.read_text()
    assert "failed bin/x002.dll: its moved copy could not be put in place (Device or res" in said
    assert contents(tree)["bin/x002.dll"] == before["bin/x002.dll"]
    assert damaged(before, tree) == []
    assert left_over(tree) == []
    assert in_child(["run", str(tree)], lambda: None, log) == 0


def test_a_further_name_that_cannot_be_moved(tree: Path, tmp_path: Path) -> None:
    (tree / "bin/z").mkdir()
    os.link(tree / "bin/x001.dll", tree / "bin/z/x002.dll")
    old = (tree / "bin/x001.dll").read_bytes()
    log = tmp_path / "log"
    status = in_child(["run", str(tree), "--exclude", "bin/x002.dll"], busy(10**6, 13), log)
    said = log.read_text()
    assert os.WEXITSTATUS(status) == 1
    assert "failed bin/z/x002.dll: this further name of" in said
    assert "it is a sound file at the old address; make it readable and writable" in said
    assert (tree / "bin/z/x002.dll").read_bytes() == old
    assert left_over(tree) == []
    assert in_child(["run", str(tree)], lambda: None, log) == 0
    assert overlaps(tree) == set()
