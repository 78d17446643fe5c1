"""What the next run makes of what the last one saw, as processes."""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from pe import Shape, build, section_header
from trees import Rebaser, add_dll, bases, clean_environment, make_tree, read

from rebaser.files import on_cygwin
from rebaser.scan import snapshot as snapshots
from rebaser.state.folder import FileSystemTime

SEEN = "var/lib/rebaser/seen"
SUPPORT = Path(__file__).resolve().parents[1] / "support"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree of three DLLs that overlap."""
    return make_tree(tmp_path / "tree", 3)


def memory(tree: Path) -> snapshots.Snapshot:
    """Return what the last run has remembered."""
    return snapshots.load((tree / SEEN).read_bytes())


def had_to_plan(report: dict[str, Any]) -> bool:
    """Return whether a run had to plan, and did not know before that nothing is to be done."""
    return bool(report["seconds"].get("plan"))


def test_a_folder_that_changes_without_a_dll_is_no_work(rebaser: Rebaser, tree: Path) -> None:
    for _ in range(2):
        assert rebaser("run", tree).status == 0
    assert memory(tree).settled
    (tree / "lib/new").mkdir(parents=True)
    (tree / "lib/new/text").touch()
    (tree / "bin/text").touch()
    assert not had_to_plan(rebaser.report("run", tree))
    assert {"lib", "lib/new"} <= memory(tree).folders.keys()
    assert memory(tree).settled
    add_dll(tree / "lib/new/one.dll")
    report = rebaser.report("run", tree)
    assert had_to_plan(report)
    assert [move["path"] for move in report["moved"]] == ["lib/new/one.dll"]
    # Another one gone, too.
    assert not had_to_plan(rebaser.report("run", tree))
    (tree / "lib/new/one.dll").unlink()
    assert had_to_plan(rebaser.report("run", tree))


LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
    {"LC_ALL": "C.UTF-8", "PYTHONUTF8": "1"},
]


def make_latin(folder: Path) -> None:
    """Make the locale en_US.ISO-8859-1, for LOCPATH: few systems have it, but many can make it."""
    latin = ["localedef", "-i", "en_US", "-f", "ISO-8859-1", f"{folder}/en_US.ISO-8859-1"]
    if shutil.which("localedef"):
        subprocess.run(latin, check=False, capture_output=True, timeout=60)


def fuzz(part: str, seed: int, executions: int, env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, SUPPORT / "fuzz_state.py", part, str(seed), str(executions)],
        env=clean_environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=1100,
    )
    assert done.returncode == 0, done.stdout.decode()
    assert len(done.stdout.splitlines()) == 2, (
        "it was believed, or moved, at times and not at others"
    )


@pytest.mark.slow
@pytest.mark.parametrize("part", ["seen", "records", "names"])
def test_damaged_state(part: str) -> None:
    fuzz(part, 1, 300, {})


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("part", "seed"), [(part, seed) for part in ("seen", "records") for seed in (2, 3, 4)]
)
def test_much_damaged_state(part: str, seed: int) -> None:
    fuzz(part, seed, 50_000, {})


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("locale", LOCALES, ids=["C", "ISO-8859-1", "UTF-8"])
def test_many_names_and_times(tmp_path: Path, locale: dict[str, str]) -> None:
    make_latin(tmp_path)
    fuzz("names", 2, 10_000, {**locale, "LOCPATH": str(tmp_path)})


def listed(rebaser: Rebaser, tree: Path, env: dict[str, str]) -> list[dict[str, str]]:
    """Return what `info --json` lists; as does all JSON, it has the same names in every locale."""
    found: list[dict[str, str]] = rebaser.report("info", tree, env=env)["images"]
    return found


def test_no_locale_loses_a_folder(rebaser: Rebaser, tmp_path: Path) -> None:
    make_latin(tmp_path)
    tree = make_tree(tmp_path / "tree", 2)
    # A byte that is not UTF-8 is one in Python's own locale alone on Cygwin.
    latin = b"\xc3\xbf" if on_cygwin() else b"\xff"
    for number, folder in enumerate((b"\xc3\xa4", latin, "日本".encode())):
        add_dll(
            tree / os.fsdecode(folder) / os.fsdecode(folder + b".dll"), data_size=0x1000 << number
        )
    for writer in LOCALES:
        for reader in LOCALES:
            (tree / SEEN).unlink(missing_ok=True)
            writer = {**writer, "LOCPATH": str(tmp_path)}
            reader = {**reader, "LOCPATH": str(tmp_path)}
            assert rebaser.report("run", tree, env=writer)["images"] == 5
            before = (tree / SEEN).read_bytes()
            report = rebaser.report("run", tree, env=reader)
            assert (report["images"], report["run"]) == (5, None)
            if not on_cygwin():  # there a name is said in the characters of the locale
                assert set(snapshots.load(before).folders) == set(memory(tree).folders)
            for words in (["run", "-v"], ["status"], ["check"], ["map"]):
                assert "Traceback" not in rebaser(*words, tree, env=reader).err
            told = {os.path.relpath(one["path"], tree) for one in listed(rebaser, tree, reader)}
            there = {path.relative_to(tree).as_posix() for path in tree.glob("*/*.dll")}
            assert len(told) == len(there) if on_cygwin() else told == there
    assert len(set(bases(tree).values())) == 5


def test_what_goes_by_another_name_is_found(rebaser: Rebaser, tree: Path) -> None:
    """As on Cygwin in another locale: names differ, and no time has changed."""
    add_dll(tree / "lib/deep/y.dll")
    for path in ("lib/x.dll", "x.dll"):
        add_dll(tree / path)
    for _ in range(3):  # until no time is racy
        rebaser.report("run", tree)
        time.sleep(0.3)
    one = memory(tree)
    assert snapshots.NEVER not in {folder.stat[0] for folder in one.folders.values()}
    folders = {
        path.replace("lib", "l\udce4b"): folder._replace(
            names=[name.replace("x0", "\udcff") for name in folder.names]
        )
        for path, folder in one.folders.items()
    }
    (tree / SEEN).write_bytes(snapshots.dump(one._replace(folders=folders)))
    report = rebaser.report("run", tree)
    assert (report["images"], report["moved"]) == (6, [])
    assert memory(tree).folders.keys() == one.folders.keys()
    assert [folder.names for folder in memory(tree).folders.values()] == [
        folder.names for folder in one.folders.values()
    ]


def test_a_section_name_with_zeros_concerns_its_own_file_only(rebaser: Rebaser, tree: Path) -> None:
    cut = build(patches={section_header(Shape(), 1): b"a\0\0b\0\0\0\0"})[:-1]
    (tree / "bin/cut.dll").write_bytes(cut)
    (tree / "bin/text.dll").write_bytes(b"no image")
    for _ in range(3):
        skipped = rebaser.report("run", tree)["skipped"]
        assert [one["path"] for one in skipped] == ["bin/cut.dll", "bin/text.dll"]
        assert "section a\\x00\\x00b ends at byte" in skipped[0]["reason"]
        assert "not a PE image" in skipped[1]["reason"]


def test_a_flag_that_is_set_through_a_mapping_is_seen(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    rebaser.report("run", tree)
    file = tree / "bin/x000.dll"
    before, offset = os.stat(file), read(file).flags_offset
    with open(file, "r+b") as dll, mmap.mmap(dll.fileno(), 0) as mapped:
        mapped[offset] |= 0x40
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    # As where the times tell nothing: put the change time into the memory.
    one = memory(tree)
    row = one.folders["bin"].files[0]
    one.folders["bin"].files[0] = (*row[:2], os.stat(file).st_ctime_ns, *row[3:])
    (tree / SEEN).write_bytes(snapshots.dump(one))
    report = rebaser.report("run", tree)
    assert [one["path"] for one in report["moved"]] == ["bin/x000.dll"]
    assert not read(file).dll_characteristics & 0x40


@pytest.mark.parametrize("seconds", [-(10**10), 9 * 10**9 + 3 * 10**8])
def test_times_that_64_bits_do_not_hold(rebaser: Rebaser, tree: Path, seconds: int) -> None:
    os.utime(tree / "bin/x000.dll", (seconds, seconds))
    if os.stat(tree / "bin/x000.dll").st_mtime_ns != seconds * 10**9:
        os.utime(tree / "bin/x000.dll", (1 << 33, 1 << 33))  # this file system knows no such times
    assert rebaser.report("run", tree)["failed"] == []
    assert rebaser.report("run", tree)["moved"] == []


def test_a_memory_of_a_terabyte_is_not_read(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    os.truncate(tree / SEEN, 1 << 40)
    result = rebaser("run", tree, timeout=30)
    assert result.status == 0
    assert "holds 1099511627776 bytes, which no run writes); every DLL is read again" in result.err
    assert os.stat(tree / SEEN).st_size < 1 << 20


@pytest.mark.parametrize("at", [*range(0, 56, 8), 60, 100, 200])
def test_nonsense_under_a_right_checksum(rebaser: Rebaser, tree: Path, at: int) -> None:
    rebaser.report("run", tree)
    body = bytearray((tree / SEEN).read_bytes()[24:])
    body[at : at + 8] = b"\xff" * 8
    header = struct.pack("<8sIIQ", snapshots.MAGIC, snapshots.VERSION, zlib.crc32(body), len(body))
    (tree / SEEN).write_bytes(header + body)
    result = rebaser("run", tree)
    assert result.status == 0
    assert result.err.count("\n") <= 1
    assert "nothing to do" in result.out


def test_what_another_machine_saw_is_read_again(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    one = memory(tree)
    assert one.host == os.uname().nodename
    # What it saw is not so, which nothing but a look tells.
    row = snapshots.Seen._make(one.folders["bin"].files[0])
    one.folders["bin"].files[0] = row._replace(image_size=0x7000_0000)
    (tree / SEEN).write_bytes(snapshots.dump(one._replace(host="elsewhere")))
    assert rebaser.report("run", tree)["moved"] == []
    assert memory(tree).host == os.uname().nodename
    assert memory(tree).folders["bin"].files[0][11] == read(tree / "bin/x000.dll").size


def test_after_everything_was_touched_the_second_run_reads_nothing(
    rebaser: Rebaser, tree: Path
) -> None:
    """The tick of this file system is milliseconds: what is older than that is trusted."""
    rebaser.report("run", tree)
    for path in tree.rglob("*"):
        os.utime(path)
    time.sleep(0.3)  # a run may begin within a tick, above all one that a busy machine lengthens
    rebaser.report("run", tree)
    folders = memory(tree).folders
    mtimes = [row[1] for folder in folders.values() for row in folder.files]
    assert len(mtimes) == 3
    assert snapshots.NEVER not in mtimes


def test_the_tick_of_a_coarse_clock_is_reckoned_with() -> None:
    now = FileSystemTime(10_000_000_000, True, 1)
    assert now.before(1.0).nanoseconds == 10_000_000_000 - 1_000_000_000 - 2_100_000_000
    assert now._replace(tick=20_000_000).before(1.0).nanoseconds == 8_980_000_000


def test_excluded_files_stay_obstacles_and_count(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    add_dll(tree / "own/a.dll", 0x2_0001_0000)
    add_dll(tree / "lib/new.dll", 0x4_0000_0000)
    report = rebaser.report("run", tree, "--exclude", "own")
    assert [one["path"] for one in report["moved"]] == ["lib/new.dll"]
    assert report["images"] == 2
    assert [one["path"] for one in report["skipped"]] == ["own/a.dll"]
    assert "--exclude" in report["skipped"][0]["reason"]
    assert bases(tree)["own/a.dll"] == 0x2_0001_0000
    assert bases(tree)["lib/new.dll"] != 0x2_0001_0000


def test_a_machine_that_nothing_forks_on_is_nonsense(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    one = memory(tree)
    row = snapshots.Seen._make(one.folders["bin"].files[0])
    one.folders["bin"].files[0] = row._replace(machine=0x8640)
    for words in (["map"], ["status"], ["check"], ["run"]):
        (tree / SEEN).write_bytes(snapshots.dump(one))
        result = rebaser(*words, tree)
        assert result.status == 0, result.words
        assert "every DLL is read again" in result.err


@pytest.mark.parametrize("state", ["../victim/.rebaser", "bin/../../victim/.rebaser"])
def test_no_tree_outside_is_an_inner_one(rebaser: Rebaser, tree: Path, state: str) -> None:
    """A made-up memory cannot have a run lock a file outside the tree."""
    victim = tree.parent / "victim/.rebaser"
    (victim / "runs").mkdir(parents=True)
    (victim / "rebase.lock").touch()
    rebaser.report("run", tree)
    (tree / SEEN).write_bytes(snapshots.dump(memory(tree)._replace(inner=(state,))))
    add_dll(tree / "lib/new.dll")
    with open(victim / "rebase.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(rebaser.report("run", tree, "--no-wait")["moved"]) == 1


@pytest.mark.parametrize("state", [".rebaser", "./.rebaser", "/.rebaser", "var/lib/rebaser"])
def test_a_tree_is_no_inner_one_of_itself(rebaser: Rebaser, tree: Path, state: str) -> None:
    """A made-up memory cannot have a run wait for its own lock."""
    rebaser.report("run", tree)
    (tree / SEEN).write_bytes(snapshots.dump(memory(tree)._replace(inner=(state,))))
    add_dll(tree / "lib/new.dll")
    assert len(rebaser.report("run", tree, "--no-wait")["moved"]) == 1
