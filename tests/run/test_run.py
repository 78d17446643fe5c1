"""rebaser run on trees of small DLLs: what moves, what does not, every option, what is printed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trees import (
    FLOOR,
    LINKERS,
    Rebaser,
    add_dll,
    add_dlls,
    bases,
    clean_environment,
    contents,
    damaged,
    images,
    listing,
    make_tree,
    moved,
    overlaps,
)

from cygwin.address_space import I386, X86_64
from rebaser.errors import UsageError
from rebaser.files import on_cygwin
from rebaser.options import parse_arena

KEYS = {
    "root": str,
    "engine": str,
    "scanned": int,
    "images": int,
    "kept": int,
    "moved": list,
    "skipped": list,
    "failed": list,
    "overlaps": list,
    "bytes_written": int,
    "seconds": dict,
}


def lock_file(tree: Path) -> Path:
    """Return the lock of a tree with a `var` folder."""
    return tree / "var/lock/rebase.lock"


def test_a_tree_becomes_fork_safe(rebaser: Rebaser, tree: Path) -> None:
    before = contents(tree)
    assert len(overlaps(tree)) == 15
    report = rebaser.report("run", tree)
    assert overlaps(tree) == set()
    assert damaged(before, tree) == []
    assert [move["path"] for move in report["moved"]] == sorted(before)
    assert report["bytes_written"] == sum(map(len, before.values()))
    now = contents(tree)
    for move in report["moved"]:
        path = move["path"]
        assert now[path] == moved(before[path], int(move["new_base"], 16))
        assert move["old_base"] == hex(LINKERS)
        assert move["machine"] == "x86_64"
        assert move["reason"] == "outside the address range for moved DLLs"
        assert move["slot_size"] == images(tree)[path].slot_size
    assert int(report["moved"][0]["new_base"], 16) == FLOOR


def test_json_has_what_is_promised(rebaser: Rebaser, tree: Path) -> None:
    report = rebaser.report("run", tree)
    for key, kind in KEYS.items():
        assert isinstance(report[key], kind), key
    assert report["run"] == 1
    assert report["covered_by"] is None
    assert report["root"] == str(tree)
    assert (report["scanned"], report["images"], report["kept"]) == (6, 6, 0)
    assert {"wait", "scan", "plan", "stage", "commit", "total"} <= report["seconds"].keys()
    again = rebaser.report("run", tree)
    assert (again["run"], again["moved"], again["bytes_written"], again["kept"]) == (None, [], 0, 6)


def test_the_second_run_writes_nothing(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    rebaser.report("run", tree)
    before = listing(tree)
    report = rebaser.report("run", tree)
    assert (report["moved"], report["bytes_written"], report["images"]) == ([], 0, 6)
    assert listing(tree) == before


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: install strace")
def test_nothing_to_do_writes_and_locks_nothing(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    rebaser.report("run", tree)
    rebaser.report("run", tree)
    trace = tmp_path / "trace"
    calls = (
        "flock,write,pwrite64,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,openat,link"
    )
    strace = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={calls}"]
    result = rebaser("run", tree, before=strace)
    if "ptrace" in result.err:
        pytest.skip("strace may not trace here")
    lines = trace.read_text(errors="replace").splitlines()
    locks = [line for line in lines if "flock(" in line]
    assert locks
    assert not any("LOCK_EX" in line for line in locks)
    mine = [line for line in lines if str(tree) in line and "flock(" not in line]
    assert mine
    for line in mine:
        if "EEXIST" in line:
            assert "var/lock" in line, "its folder is there"
        elif "O_RDWR" in line:
            assert "rebase.lock" in line, "the lock is opened for writing, and nothing else"
        else:
            assert "O_RDONLY" in line or "write(1<" in line, line


def test_nothing_to_do_waits_for_no_installer(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    with open(lock_file(tree)) as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        report = rebaser.report("run", tree, timeout=20)
    assert report["moved"] == []
    assert report["seconds"]["wait"] < 5


def test_ten_more_move_only_where_they_must(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    before = bases(tree)
    add_dlls(tree, 4, first=10)  # collide, outside the arena
    for number in range(3):  # each has a slot of its own in the arena
        add_dll(tree / f"lib/ok{number}.so", 0x3_0000_0000 + number * 0x10_0000)
    add_dll(tree / "lib/taken.so", FLOOR, data_size=0x40000)  # large, but a newcomer
    add_dll(tree / "a/flag.dll", 0x3_4000_0000)
    add_dll(tree / "a/crooked.dll", 0x3_5000_8000)
    report = rebaser.report("run", tree)
    relocated = {m["path"] for m in report["moved"] if m["old_base"] != m["new_base"]}
    assert relocated == {
        *(f"bin/x{n:03}.dll" for n in range(10, 14)),
        "lib/taken.so",
        "a/crooked.dll",
    }
    # The others only lose DYNAMIC_BASE.
    assert {m["path"] for m in report["moved"]} - relocated == {
        *(f"lib/ok{n}.so" for n in range(3)),
        "a/flag.dll",
    }
    now = bases(tree)
    assert {path: now[path] for path in before} == before
    assert overlaps(tree) == set()
    assert not any(image.dll_characteristics & 0x40 for image in images(tree).values())


def test_without_dynamic_base_what_fits_is_left_alone(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "a.dll", FLOOR, dll_characteristics=0)
    before = listing(tmp_path)["a.dll"]
    report = rebaser.report("run", tmp_path)
    assert report["moved"] == []
    assert listing(tmp_path)["a.dll"] == before


def test_machines_in_one_tree(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dlls(tmp_path, 3)
    add_dlls(tmp_path, 3, first=10, machine=I386, base=0x1000_0000)
    add_dll(tmp_path / "arm.dll", 0x1_8000_0000, machine=0xAA64)
    add_dll(tmp_path / "arm2.dll", 0x1_8000_0000, machine=0xAA64)
    report = rebaser.report("run", tmp_path)
    by_machine: dict[str, list[int]] = {}
    for move in report["moved"]:
        by_machine.setdefault(move["machine"], []).append(int(move["new_base"], 16))
    assert by_machine.keys() == {"x86_64", "i386"}
    assert min(by_machine["i386"]) == 0x3800_0000
    assert min(by_machine["x86_64"]) == FLOOR
    assert {s["path"] for s in report["skipped"]} == {"arm.dll", "arm2.dll"}
    assert images(tmp_path)["arm.dll"].dll_characteristics & 0x40
    assert {i.machine for i in images(tmp_path).values()} == {I386, X86_64, 0xAA64}


# Where ROOT comes from.


def test_no_root(rebaser: Rebaser) -> None:
    result = rebaser("run")
    assert result.status == 2
    assert "ROOT" in result.err
    assert "SAGE_LOCAL" in result.err


def test_root_from_the_environment(rebaser: Rebaser, tree: Path) -> None:
    report = rebaser.report("run", env={"SAGE_LOCAL": str(tree)})
    assert len(report["moved"]) == 6


def test_a_folder_inside_another_tree(rebaser: Rebaser, tree: Path) -> None:
    add_dlls(tree, 3, folder="opt/inner/bin", first=30)
    rebaser.report("run", tree)
    outer = bases(tree)
    add_dlls(tree, 2, folder="opt/inner/bin", first=40)
    add_dlls(tree, 2, folder="bin", first=50)
    report = rebaser.report("run", tree / "opt/inner")
    assert report["root"] == str(tree)
    assert {m["path"] for m in report["moved"]} == {
        "opt/inner/bin/x040.dll",
        "opt/inner/bin/x041.dll",
    }
    now = bases(tree)
    assert {path: now[path] for path in outer} == outer
    assert not (tree / "opt/inner/.rebaser").exists()
    assert len(overlaps(tree)) == 1  # the two of bin, which nobody asked for
    below_sage = rebaser.report("run", tree / "bin", env={"SAGE_LOCAL": str(tree)})
    assert len(below_sage["moved"]) == 2


# What moves.


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (b"bin/x001.dll\nbin/x003.dll\n", []),
        (b"bin/x001.dll\r\n\r\n./bin/../bin/x003.dll", []),
        (b"bin/x001.dll\0bin/x003.dll\0", ["-0"]),
        (b"{root}/bin/x001.dll\n{root}//bin/x003.dll\n", []),
        (
            b"nowhere.dll\n/etc/passwd\n../outside.dll\nbin\nvar\nbin/x001.dll\n"
            b"bin/x003.dll\nbin/x003.dll\nname\xff\n\x1b[31m\n{root}\n",
            [],
        ),
    ],
)
def test_only_from(rebaser: Rebaser, tree: Path, listed: bytes, words: list[str]) -> None:
    listed = listed.replace(b"{root}", os.fsencode(tree))
    before = contents(tree)
    # Two of the named, and four that overlap at their old place and are not our business.
    report = rebaser.report("run", tree, "--only-from", "-", *words, stdin=listed)
    assert {m["path"] for m in report["moved"]} == {"bin/x001.dll", "bin/x003.dll"}
    now = contents(tree)
    assert {path for path in before if now[path] != before[path]} == {
        "bin/x001.dll",
        "bin/x003.dll",
    }


def test_only_from_a_file_and_by_a_hard_link(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    os.link(tree / "bin/x001.dll", tree / "bin/z-other-name.dll")
    manifest = tmp_path / "manifest"
    manifest.write_text("bin/z-other-name.dll\n")
    report = rebaser.report("run", tree, "--only-from", manifest)
    assert [m["path"] for m in report["moved"]] == ["bin/x001.dll"]
    assert os.stat(tree / "bin/x001.dll").st_nlink == 2
    result = rebaser("run", tree, "--only-from", tmp_path / "missing")
    assert result.status == 2
    assert "--only-from" in result.err


def test_only_from_nothing(rebaser: Rebaser, tree: Path) -> None:
    before = contents(tree)
    assert rebaser.report("run", tree, "--only-from", "-", stdin=b"")["moved"] == []
    assert contents(tree) == before


@pytest.mark.parametrize("has_var", [True, False])
def test_dry_run_changes_and_creates_nothing(
    rebaser: Rebaser, tmp_path: Path, has_var: bool
) -> None:
    root = make_tree(tmp_path / "t")
    if not has_var:
        (root / "var").rmdir()
    before = listing(root)
    planned = rebaser.report("run", root, "--dry-run")
    assert listing(root) == before
    result = rebaser("run", root, "--dry-run")
    assert "would move 6 DLLs" in result.out
    assert listing(root) == before
    done = rebaser.report("run", root)
    assert planned["moved"] == done["moved"]
    assert planned["run"] is None


LONG_LIVED = """
import gc, os, shutil, sys
from rebaser import Options, check, find_tree, run

def kept():
    gc.collect()
    return sorted(os.listdir("/proc/self/fd"))

root, a_dll = sys.argv[1:]
before = kept()
for number, dry in enumerate((True, False, True, False, False)):
    run(find_tree(root), Options(), dry_run=dry)
    check([root])
    assert kept() == before
    shutil.copy(a_dll, f"{a_dll}-{number}.dll")
"""


def test_nothing_stays_open(tree: Path) -> None:
    """A program that uses rebaser by its names may run it for days."""
    words = [sys.executable, "-c", LONG_LIVED, str(tree), str(next(tree.rglob("*.dll")))]
    subprocess.run(words, env=clean_environment(), check=True)


def test_dry_run_needs_no_lock(rebaser: Rebaser, tree: Path) -> None:
    lock_file(tree).parent.mkdir()
    with open(lock_file(tree), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert len(rebaser.report("run", tree, "--dry-run", timeout=20)["moved"]) == 6


def test_keep_aslr(rebaser: Rebaser, tree: Path) -> None:
    add_dll(tree / "lib/flag.dll", 0x3_4000_0000)
    report = rebaser.report("run", tree, "--keep-aslr")
    assert len(report["moved"]) == 6
    assert all(image.dll_characteristics & 0x40 for image in images(tree).values())
    report = rebaser.report("run", tree)
    assert len(report["moved"]) == 7
    assert all(m["old_base"] == m["new_base"] for m in report["moved"])
    assert {m["reason"] for m in report["moved"]} == {"DYNAMIC_BASE is set"}
    assert not any(image.dll_characteristics & 0x40 for image in images(tree).values())


def add_signed(path: Path, base: int) -> bytes:
    """Write a DLL that carries a signature."""
    plain = add_dll(path, base)
    return add_dll(path, base, directories={4: (len(plain), 8)}, overlay=b"\x08\0\0\0\0\2\2\0")


def test_signed_images(rebaser: Rebaser, tree: Path) -> None:
    data = add_signed(tree / "lib/signed.dll", FLOOR)
    report = rebaser.report("run", tree)
    (skipped,) = report["skipped"]
    assert skipped["path"] == "lib/signed.dll"
    assert "signature" in skipped["reason"]
    assert "--force-signed" in skipped["reason"]
    assert (tree / "lib/signed.dll").read_bytes() == data
    assert min(base for path, base in bases(tree).items() if "signed" not in path) > FLOOR
    assert overlaps(tree) == set()
    report = rebaser.report("run", tree, "--force-signed")
    assert [m["path"] for m in report["moved"]] == ["lib/signed.dll"]


def test_two_signed_images_that_overlap_are_left(rebaser: Rebaser, tree: Path) -> None:
    add_signed(tree / "lib/one.dll", 0x5_0000_0000)
    add_signed(tree / "lib/two.dll", 0x5_0000_0000)
    left = {
        "machine": "x86_64",
        "low": "0x500000000",
        "high": "0x500010000",
        "paths": ["lib/one.dll", "lib/two.dll"],
        "cure": None,
        "ours": False,
    }
    assert rebaser.report("run", tree)["overlaps"] == [left]
    assert rebaser.report("run", tree, "--strict", status=1)["overlaps"] == [left]


def test_named_images_alone_count_and_the_others_are_told(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names"
    names.write_text("bin/x000.dll\nbin/x001.dll\n")
    report = rebaser.report("run", tree, "--only-from", names)
    assert (len(report["moved"]), report["overlaps"], report["others"]) == (2, [], 4)
    names.write_text("bin/x002.dll\n")
    said = rebaser("run", tree, "--only-from", names).out
    assert "none of those asked for overlaps" in said
    assert f"3 DLLs not asked for overlap too: rebaser run {tree} moves them" in said
    assert "no overlap" not in said + rebaser("status", tree).out.partition("runs:")[2]
    assert rebaser.report("run", tree)["others"] == 0


def test_touch(rebaser: Rebaser, tree: Path) -> None:
    old = 10**18
    for path in tree.glob("bin/*"):
        os.utime(path, ns=(old, old))
    rebaser.report("run", tree)
    assert {p.stat().st_mtime_ns for p in tree.glob("bin/*")} == {old}
    add_dlls(tree, 2, first=20)
    for path in tree.glob("bin/*"):
        os.utime(path, ns=(old, old))
    report = rebaser.report("run", tree, "--touch")
    assert {p.name for p in tree.glob("bin/*") if p.stat().st_mtime_ns != old} == {
        Path(m["path"]).name for m in report["moved"]
    }


def test_suffix_and_exclude(rebaser: Rebaser, tree: Path) -> None:
    add_dlls(tree, 2, first=60)
    (tree / "bin/x060.dll").rename(tree / "bin/x060.NODE")
    report = rebaser.report("run", tree, "--suffix", "node", "--exclude", "bin/x00[01].dll")
    paths = {m["path"] for m in report["moved"]}
    assert "bin/x060.NODE" in paths
    assert not paths & {"bin/x000.dll", "bin/x001.dll"}
    assert report["scanned"] == 8
    # They are there all the same: the others keep off them, and their own overlap is told.
    assert [group["paths"] for group in report["overlaps"]] == [["bin/x000.dll", "bin/x001.dll"]]


def test_excluded_images_are_obstacles(rebaser: Rebaser, tree: Path) -> None:
    add_dll(tree / "private/there.dll", FLOOR)
    report = rebaser.report("run", tree, "--exclude", "private")
    assert min(int(move["new_base"], 16) for move in report["moved"]) > FLOOR
    assert overlaps(tree) == set()


def test_arena(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree, "--arena", "0x3_1234_0000-0x3_2000_0000")
    assert min(bases(tree).values()) == 0x3_1234_0000
    assert overlaps(tree) == set()
    result = rebaser("run", tree, "--arena", "0x380000000-0x380010000")
    assert result.status == 1
    assert "no room left for" in result.err
    assert "Nothing was changed" in result.err
    assert min(bases(tree).values()) == 0x3_1234_0000


@pytest.mark.parametrize(
    ("arena", "words"),
    [
        ("1-2", "with 0x before each"),
        ("8589934592-17179869184", "with 0x before each"),
        ("0x300000000-17179869184", "with 0x before each"),
        ("x", "with 0x before each"),
        ("0x1-0x2-0x3", "with 0x before each"),
        ("0x400000000-0x300000000", "above the first"),
        ("0x300000000-0x300000001", "above the first"),
        ("0x300000001-0x300010002", "with 64 KiB between them that begin at a multiple of 64 KiB"),
        (
            "0x200000000-0x700000000",
            "for x86_64 lies within 0x200000000-0x600000000",
        ),
        (
            "0x180000000-0x300000000",
            "for x86_64 lies within 0x200000000-0x600000000",
        ),
        ("0x50000000-0x90000000", "an address range for i386 lies within 0x10000000-0x70000000"),
        ("0x400000-0x50000000", "an address range for i386 lies within 0x10000000-0x70000000"),
    ],
)
def test_what_is_no_arena(arena: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_arena(arena)


def test_what_is_an_arena() -> None:
    assert parse_arena("0x200000000-0x600000000") == (FLOOR, 0x6_0000_0000)
    assert parse_arena("0X3_0000_0001-0x3_0003_0000") == (0x3_0001_0000, 0x3_0003_0000)
    assert parse_arena("0x10000000-0x70000000") == (0x1000_0000, 0x7000_0000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--wait", "x"], "argument --wait: 'x' is no number of seconds: 0 or more"),
        (["--wait", "nan"], "argument --wait: 'nan' is no number of seconds: 0 or more"),
    ],
)
def test_values_that_cannot_be(rebaser: Rebaser, tree: Path, words: list[str], said: str) -> None:
    result = rebaser("run", tree, *words)
    assert result.status == 2
    assert result.err == f"rebaser run: {said} (see rebaser run --help)\n"


def test_no_room_changes_nothing(rebaser: Rebaser, tree: Path) -> None:
    before = contents(tree)
    result = rebaser("run", tree, "--arena", "0x210000000-0x210020000")
    assert result.status == 1
    assert contents(tree) == before
    assert not (tree / "var/lib/rebaser/staging").exists()


def test_avoid(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    add_dll(tmp_path / "other/a.dll", FLOOR, data_size=0x20000)
    add_dll(tmp_path / "one.dll", FLOOR + 0x5_0000)
    avoid = ["--avoid", str(tmp_path / "other"), "--avoid", str(tmp_path / "one.dll")]
    rebaser.report("run", tree, *avoid)
    taken = images(tree)
    for image in taken.values():
        assert image.base >= FLOOR + 0x3_0000
        assert not (
            image.base < FLOOR + 0x6_0000 and image.base + image.slot_size > FLOOR + 0x5_0000
        )
    assert rebaser.report("run", tree, *avoid)["moved"] == []
    assert rebaser("run", tree, "--avoid", tmp_path / "nowhere").status == 2


# The lock.


def test_no_wait_and_wait(rebaser: Rebaser, tree: Path) -> None:
    lock_file(tree).parent.mkdir()
    before = contents(tree)
    with open(lock_file(tree), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for words in (["--no-wait"], ["--wait", "0.2"], ["--wait", "0"]):
            result = rebaser("run", tree, *words, timeout=30)
            assert result.status == 75, result.words
            assert str(lock_file(tree)) in result.err
            assert f"pid {os.getpid()}" in result.err
        fcntl.flock(held, fcntl.LOCK_SH)
        # An installer: the look is not waited for, the work is.
        result = rebaser("run", tree, "--no-wait")
        assert result.status == 75, result.words
    assert contents(tree) == before
    assert rebaser("run", tree, "--no-wait").status == 0


def test_waits_and_says_for_whom(rebaser: Rebaser, tree: Path) -> None:
    lock_file(tree).parent.mkdir()
    with open(lock_file(tree), "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = rebaser.start("run", tree)
        assert waiting.stderr is not None
        line = waiting.stderr.readline()
        assert "waiting for the lock" in line
        assert f"pid {os.getpid()}" in line
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == 0, out + err
    assert overlaps(tree) == set()


def start_and_see_it_wait(rebaser: Rebaser, *words: str | Path) -> subprocess.Popen[str]:
    """Start a run; return when it waits.

    Cygwin's flock(2) never comes back where a process that holds the lock itself starts another
    while a first child of its takes the lock: docs/locks.md.
    """
    run = rebaser.start(*words)
    assert run.stderr is not None
    assert "waiting for the lock" in run.stderr.readline()
    return run


def test_a_covered_run(rebaser: Rebaser, tree: Path) -> None:
    lock_file(tree).parent.mkdir()
    with open(lock_file(tree), "w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        runs = [start_and_see_it_wait(rebaser, "run", tree, "--json") for _ in range(4)]
    reports = []
    for one in runs:
        out, err = one.communicate(timeout=60)
        assert one.returncode == 0, out + err
        reports.append(out)
    assert sum('"covered_by": 1' in out for out in reports) == 3
    assert sum('"run": 1' in out for out in reports) == 1
    assert overlaps(tree) == set()


def test_a_run_with_other_options_is_not_covered(rebaser: Rebaser, tree: Path) -> None:
    lock_file(tree).parent.mkdir()
    with open(lock_file(tree), "w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        runs = [
            start_and_see_it_wait(rebaser, "run", tree, "--json", *words)
            for words in ([], ["--touch"], ["--keep-aslr"])
        ]
    for one in runs:
        out, err = one.communicate(timeout=60)
        assert one.returncode == 0, out + err
        assert '"covered_by": null' in out


def test_the_callers_own_lock(rebaser: Rebaser, tree: Path) -> None:
    lock_file(tree).parent.mkdir()
    with open(lock_file(tree), "w") as held:
        os.set_inheritable(held.fileno(), True)
        fcntl.flock(held, fcntl.LOCK_SH)
        result = rebaser("run", tree, pass_fds=[held.fileno()], timeout=30)
        assert result.status == 75, result.words
        assert f"descriptor {held.fileno()}" in result.err
        fcntl.flock(held, fcntl.LOCK_EX)
        report = rebaser.report("run", tree, pass_fds=[held.fileno()], timeout=30)
        assert len(report["moved"]) == 6
        fcntl.flock(held, fcntl.LOCK_SH)
        assert rebaser("run", tree, pass_fds=[held.fileno()], timeout=30).status == 0


# What is printed.


def test_quiet_says_nothing_when_all_is_well(rebaser: Rebaser, tree: Path) -> None:
    result = rebaser("run", tree, "--quiet")
    assert (result.status, result.out, result.err) == (0, "", "")


def test_a_person_is_told_what_was_done(rebaser: Rebaser, tree: Path) -> None:
    result = rebaser("run", tree, "--verbose")
    line = next(line for line in result.out.splitlines() if "bin/x000.dll" in line)
    assert line.split(maxsplit=4) == [
        "0x400000000",
        f"{FLOOR:#x}",
        "64",
        "KiB",
        "bin/x000.dll (outside the address range for moved DLLs)",
    ]
    assert "moved 6 DLLs (" in result.out.splitlines()[0]
    assert "no overlap is left" in result.out
    assert f"engine {'cygwin' if on_cygwin() else 'builtin'}" in result.out
    again = rebaser("run", tree)
    assert (again.out, again.err) == ("nothing to do: 6 DLLs\n", "")


def test_many_lines_are_cut_unless_all_are_wanted(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dlls(tmp_path, 30)
    planned = rebaser("run", tmp_path, "--dry-run").out
    assert planned.count("  bin/") == 17
    assert planned.endswith("  ... and 13 more lines (-v shows all)\n")
    assert rebaser("run", tmp_path, "--dry-run", "--verbose").out.count("  bin/") == 30


def test_the_plan_is_a_table(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "new.dll", 0x1_8000_0000)
    add_dll(tmp_path / ("long" * 30 + "\n.dll"), FLOOR)  # keeps its base
    lines = rebaser("run", tmp_path, "--dry-run").out.splitlines()
    name = "long" * 30 + "\\x0a.dll"
    assert lines[0] == "would move 1 DLL and would clear DYNAMIC_BASE of 1"
    assert [line.split() for line in lines[-3:]] == [
        ["old", "base", "new", "base", "size", "path"],
        ["0x200010000", "0x200010000", "64", "KiB", name],
        ["0x180000000", "0x200020000", "64", "KiB", "new.dll"],
    ]
    assert len({line.index(word) for line, word in zip(lines[-3:], ("path", "long", "new."))}) == 1


def test_what_is_skipped_is_listed_once(rebaser: Rebaser, tree: Path) -> None:
    (tree / "bin/empty.dll").touch()
    listed = "skipped bin/empty.dll: empty"
    assert listed in rebaser("run", tree).out
    again = rebaser("run", tree)
    assert again.out == "nothing to do: 6 DLLs; 1 left alone (-v says why)\n"
    assert listed in rebaser("run", tree, "--verbose").out
    add_dlls(tree, 1, first=50)
    assert listed in rebaser("run", tree).out


def test_a_first_run_without_work_lists_what_is_skipped(rebaser: Rebaser, tmp_path: Path) -> None:
    (tmp_path / "empty.dll").touch()
    assert "skipped empty.dll: empty; install it again\n" in rebaser("run", tmp_path).out


def test_only_what_was_named_is_listed_as_skipped(rebaser: Rebaser, tree: Path) -> None:
    (tree / "bin/empty.dll").touch()
    (tree / "venv").mkdir()
    (tree / "venv/hollow.dll").touch()
    assert rebaser("run", tree).status == 0
    inner = rebaser("run", tree / "venv", "--verbose")
    assert "skipped venv/hollow.dll" in inner.out
    assert "bin/empty.dll" not in inner.out
    assert f"{tree / 'venv'} as part of the tree {tree}\n" in inner.out
    named = rebaser("run", tree, "--only-from", "-", "--verbose", stdin=b"bin/empty.dll")
    assert "hollow" not in named.out


def test_an_end_that_contradicts_itself_is_none(rebaser: Rebaser, tmp_path: Path) -> None:
    for name in ("a.dll", "b.dll"):
        add_dll(tmp_path / name, FLOOR, characteristics=0x2023)
    result = rebaser("run", tmp_path)
    assert result.status == 0
    assert "nothing to do: 2 DLLs; 2 DLLs still share one address range\n" in result.out


def test_progress_on_a_terminal_and_not(rebaser: Rebaser, tree: Path) -> None:
    assert rebaser("run", tree, "--progress", "never").err == ""
    add_dlls(tree, 2, first=30)
    assert rebaser("run", tree, "--progress", "always").status == 0


def test_options_that_exclude_each_other(rebaser: Rebaser, tree: Path) -> None:
    for words in (
        ["--quiet", "--verbose"],
        ["--wait", "-1"],
        ["--wait", "x"],
        ["--engine", "magic"],
        ["--nonsense"],
        ["a", "b"],
    ):
        result = rebaser("run", tree, *words)
        assert result.status == 2, words
        assert result.err.startswith("rebaser run: ")
        assert result.err.endswith(" (see rebaser run --help)\n")


def test_output_into_a_pipe_that_closed(rebaser: Rebaser, tree: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        rebaser.command("run", tree), stdout=writing, stderr=subprocess.PIPE, timeout=60
    )
    os.close(writing)
    assert b"Traceback" not in done.stderr
    assert b"bug" not in done.stderr
    assert overlaps(tree) == set()


def test_names_that_the_terminals_encoding_lacks(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "bin/naïve-数.dll")
    add_dll(tmp_path / "bin/zwei.dll")
    for encoding in ("ascii", "latin-1", "utf-8"):
        result = rebaser("run", tmp_path, "--dry-run", env={"PYTHONIOENCODING": encoding})
        assert result.status == 0, result.words


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_standard_streams_that_are_closed(rebaser: Rebaser, tree: Path, closed: str) -> None:
    shell = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    assert rebaser("run", tree, before=shell).status == 0
    assert overlaps(tree) == set()
    assert rebaser("run", tree, "--only-from", "-", before=shell).status == 0


def test_only_from_separated_by_nul_without_saying_so(rebaser: Rebaser, tree: Path) -> None:
    result = rebaser("run", tree, "--only-from", "-", stdin=b"bin/x001.dll\0bin/x002.dll\0")
    assert result.status == 2
    assert "-0" in result.err
    assert len(overlaps(tree)) == 15


def test_a_run_for_one_dll_does_not_hide_what_others_leave(rebaser: Rebaser, tree: Path) -> None:
    """After a package's hook has found its own DLL in order, all the rest is told as before."""
    for name in ("one", "two"):
        add_signed(tree / f"lib/{name}.dll", 0x3_0000_0000)
    rebaser.report("run", tree)
    for turn in range(2):  # the second time there is nothing to do for it
        add_dll(tree / "lib/new.dll", dll_characteristics=0) if not turn else None
        named = rebaser.report("run", tree, "--only-from", "-", stdin=b"lib/new.dll\n")
        assert named["overlaps"] == []
        (left,) = rebaser.report("run", tree)["overlaps"]
        assert left["paths"] == ["lib/one.dll", "lib/two.dll"]
        assert rebaser.report("run", tree, "--strict", status=1)["overlaps"] == [left]
        assert "2 signed DLLs" in rebaser("run", tree).out


def test_dlls_that_change_all_the_time_count_as_left(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 40)
    changing = "import os, sys\nprint(flush=True)\nwhile True:\n for f in sys.argv[1:]:\n  "
    changing += "os.chmod(f, 0o755)\n  os.chmod(f, 0o644)"
    files = [str(tree / f"bin/x{number:03}.dll") for number in range(10)]
    with subprocess.Popen(
        [sys.executable, "-c", changing, *files], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(2):
            result = rebaser("run", tree)
            assert result.status == 1, result.words
            assert "no overlap is left" not in result.out
            assert "run rebaser again" in result.words
        process.kill()
    assert rebaser("run", tree).status == 0
    assert overlaps(tree) == set()


def test_where_they_lay_is_so(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    for name, base in (("a", 0x2_1000_0000), ("b", 0x2_2000_0000), ("c", 0x2_3000_8000)):
        add_dll(tree / f"{name}.dll", base)
    words = ["--arena", "0x300000000-0x400000000"]
    out = rebaser("run", tree, *words).out
    assert "  2 lay outside the address range for moved DLLs: a.dll, b.dll\n" in out
    assert "  1 lay not at a multiple of 64 KiB: c.dll\n" in out
    add_dll(tree / "d.dll", 0x3_0000_0000)
    assert "  1 lay where another does: d.dll\n" in rebaser("run", tree, *words).out
