"""Bad input: a clear sentence, the right exit status, and nothing lost."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from trees import FLOOR, Rebaser, add_dll, contents, images, listing, make_tree, overlaps
from users import NOBODY, ROOT_ONLY, as_nobody, give

from rebaser.files import on_cygwin


def reasons(report: object, kind: str = "skipped") -> dict[str, str]:
    """Return the reasons by path."""
    return {item["path"]: item["reason"] for item in report[kind]}  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "words"), [("nowhere", "does not exist"), ("file", "is not a folder")]
)
def test_root_is_no_folder(rebaser: Rebaser, tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("")
    for given in ([str(tmp_path / name)], []):
        result = rebaser("run", *given, env={} if given else {"SAGE_LOCAL": str(tmp_path / name)})
        assert result.status == 2
        assert str(tmp_path / name) in result.err
        assert words in result.err
        assert ("SAGE_LOCAL" in result.err) is not bool(given)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


def test_an_avoided_pipe_is_refused(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    """Nothing could be kept free for it, and nobody would be told."""
    os.mkfifo(tmp_path / "pipe")
    for option in ("--avoid", "--database"):
        result = rebaser("run", tree, option, tmp_path / "pipe")
        assert result.status == 2
        assert f"{option} {tmp_path}/pipe: " in result.err
        assert "nothing was changed" in result.err


def test_a_path_that_is_too_long_is_told_as_such(rebaser: Rebaser, tree: Path) -> None:
    folder = os.open(tree, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=folder)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    result = rebaser("run", tree)
    assert result.status == 1
    assert "(File name too long): what lies below it was not looked at; give it a" in result.err
    assert len({image.base for image in images(tree / "bin").values()}) == 6


def test_an_empty_tree(rebaser: Rebaser, tmp_path: Path) -> None:
    report = rebaser.report("run", tmp_path)
    assert (report["scanned"], report["images"], report["moved"]) == (0, 0, [])


CUT = {
    "empty.dll": (b"", "empty"),
    "text.so": (b"/* GNU ld script */\nGROUP ( libx.so.6 )\n" * 10, "not a PE image"),
    "mz.dll": (b"MZ", "truncated"),
    "elf.so": (b"\x7fELF" + bytes(200), "not a PE image"),
    "noise.dll": (random.Random(1).randbytes(5000), "not a PE image"),
}


@pytest.mark.parametrize("name", CUT)
def test_what_is_no_image_is_skipped(rebaser: Rebaser, tree: Path, name: str) -> None:
    data, words = CUT[name]
    (tree / "lib").mkdir()
    (tree / "lib" / name).write_bytes(data)
    report = rebaser.report("run", tree)
    assert words in reasons(report)[f"lib/{name}"]
    assert (tree / "lib" / name).read_bytes() == data
    assert len(report["moved"]) == 6
    assert rebaser.report("run", tree)["moved"] == []


def test_images_that_must_stay_are_obstacles(rebaser: Rebaser, tree: Path) -> None:
    whole = add_dll(tree / "lib/whole.dll", FLOOR)
    (tree / "lib/whole.dll").unlink()
    (tree / "lib/cut.dll").write_bytes(whole[:-600])
    add_dll(tree / "lib/program.dll", FLOOR + 0x2_0000, characteristics=0x22)
    outside = (0x9000).to_bytes(4, "little") + (12).to_bytes(4, "little") + b"\x00\xa0\0\0"
    add_dll(tree / "lib/outside.dll", FLOOR + 0x4_0000, table=outside)
    unknown = (0x1000).to_bytes(4, "little") + (12).to_bytes(4, "little") + b"\x00\x40\0\0"
    add_dll(tree / "lib/unknown.dll", FLOOR + 0x6_0000, table=unknown)
    add_dll(tree / "lib/stripped.dll", FLOOR + 0x8_0000, characteristics=0x2023)
    add_dll(tree / "lib/cygwin1.dll", 0x1_8004_0000)
    add_dll(tree / "lib/low.dll", 0x1_0000)
    kept = {p: d for p, d in contents(tree).items() if p.startswith("lib/")}
    report = rebaser.report("run", tree)
    found = reasons(report)
    assert "truncated or still being written: section " in found["lib/cut.dll"]
    assert found["lib/program.dll"] == "not a DLL"
    assert "relocation" in found["lib/outside.dll"]
    assert "type" in found["lib/unknown.dll"]
    assert "stripped" in found["lib/stripped.dll"]
    assert "runtime" in found["lib/cygwin1.dll"]
    assert "4 GiB" in found["lib/low.dll"]
    assert found.keys() == kept.keys()
    now = contents(tree)
    assert {path: now[path] for path in kept} == kept
    assert overlaps(tree) == set()
    for move in report["moved"]:
        assert int(move["new_base"], 16) not in (FLOOR, FLOOR + 0x2_0000, FLOOR + 0x4_0000)


def test_a_dll_that_is_still_growing_is_picked_up_when_it_is_whole(
    rebaser: Rebaser, tree: Path
) -> None:
    whole = add_dll(tree / "lib/new.dll")
    (tree / "lib/new.dll").write_bytes(whole[: len(whole) // 2])
    report = rebaser.report("run", tree)
    assert "truncated" in reasons(report)["lib/new.dll"]
    with open(tree / "lib/new.dll", "ab") as file:
        file.write(whole[len(whole) // 2 :])
    report = rebaser.report("run", tree)
    assert [move["path"] for move in report["moved"]] == ["lib/new.dll"]
    assert overlaps(tree) == set()


NAMES = [
    "with space.dll",
    "two\nlines.dll",
    "[bold]x[/bold].dll",
    "[a-z]*?.dll",
    "'\"`$(touch pwned);&|<>" + ("" if on_cygwin() else "\\") + ".dll",
    "-rf.dll",
    "--help.dll",
    "\x1b[2J\x1b]0;title\x07.dll",
    "tab\tand\rreturn.dll",
    "‮right-to-left.dll",
    "n" * 251 + ".dll",
    "bytes-\udcff\udc80.dll",
    "数学.dll",
    "%s%n{}.dll",
    ".dll",
]


def test_names_of_every_kind(rebaser: Rebaser, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "a [tree] of\n\udcfe names", 1)
    for number, name in enumerate(NAMES):
        add_dll(root / f"d{number} \x1b[31m" / name)
    (root / "lib").mkdir()
    (root / "lib" / NAMES[7]).write_bytes(b"no image")
    for words in (["--dry-run"], ["--verbose"], []):
        result = rebaser("run", root, *words)
        assert result.status == 0, result.words
        for stream in (result.out, result.err):
            assert "\x1b" not in stream
            assert "\x07" not in stream
            assert "\r" not in stream
            assert "‮" not in stream
            stream.encode("utf-8")
    assert overlaps(root) == set()
    report = rebaser.report("run", root)
    assert report["images"] == len(NAMES) + 1
    assert reasons(report).keys() == {f"lib/{NAMES[7]}"}
    listed = "\0".join(f"d{n} \x1b[31m/{name}" for n, name in enumerate(NAMES))
    more = [root / "lib" / f"more{n}.dll" for n in range(2)]
    for path in more:
        add_dll(path)
    assert not rebaser.report("run", root, "--only-from", "-", "-0", stdin=os.fsencode(listed))[
        "moved"
    ]


def test_a_deep_tree_and_long_paths(rebaser: Rebaser, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "t", 1)
    deep = root
    while len(str(deep)) < 3500:
        deep = deep / ("d" * 200)
    add_dll(deep / "x.dll")
    report = rebaser.report("run", root)
    assert len(report["moved"]) == 2


def test_a_loop_of_links(rebaser: Rebaser, tree: Path) -> None:
    os.symlink(".", tree / "self")
    os.symlink("../lib", tree / "bin/up")
    (tree / "lib").mkdir()
    os.symlink("../bin", tree / "lib/down")
    os.symlink("me.dll", tree / "lib/me.dll")
    report = rebaser.report("run", tree, timeout=30)
    assert (report["scanned"], len(report["moved"])) == (6, 6)


@ROOT_ONLY
def test_what_was_asked_for_by_a_further_name_is_told(rebaser: Rebaser, open_tree: Path) -> None:
    add_dll(open_tree / "a/x.dll")
    (open_tree / "z").mkdir()
    os.link(open_tree / "a/x.dll", open_tree / "z/x.dll")
    give(open_tree, NOBODY)
    (open_tree / "a").chmod(0o555)
    names = open_tree / "names"
    names.write_text("z/x.dll\n")
    names.chmod(0o644)
    for words in ((open_tree, "--only-from", names), (open_tree / "z",)):
        result = as_nobody(rebaser, "run", *words)
        assert result.status == 1, result.words
        assert "failed a/x.dll: " in result.err


@ROOT_ONLY
def test_what_cannot_be_read(rebaser: Rebaser, open_tree: Path) -> None:
    tree = open_tree
    add_dll(tree / "lib/secret/x.dll")
    add_dll(tree / "lib/y.dll")
    give(tree, NOBODY)
    (tree / "lib/secret").chmod(0)
    (tree / "lib/y.dll").chmod(0)
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 1, result.words
    assert "failed lib/secret: cannot be listed (Permission denied)" in result.err
    assert "failed lib/y.dll: cannot be read (Permission denied)" in result.err
    assert "make it readable" in result.err
    assert "moved 6 DLLs" in result.out
    # Again, from memory: it is not forgotten.
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 1
    assert "lib/secret" in result.err
    # Named only what is well: it is not our failure.
    (tree / "list").write_text("bin/x000.dll\n")
    (tree / "list").chmod(0o644)
    assert as_nobody(rebaser, "run", tree, "--only-from", tree / "list").status == 0
    (tree / "lib/secret").chmod(0o755)
    (tree / "lib/y.dll").chmod(0o644)
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 0, result.words
    assert "moved 2 DLLs" in result.out
    assert overlaps(tree) == set()


@ROOT_ONLY
def test_a_root_that_cannot_be_listed(rebaser: Rebaser, open_tree: Path) -> None:
    tree = open_tree
    tree.chmod(0)
    result = as_nobody(rebaser, "run", tree, "--lock-file", "/tmp/rebaser-test-no-such-dir/x")
    assert result.status in (1, 2)
    assert str(tree) in result.err or "rebaser-test-no-such-dir" in result.err
    shutil.rmtree("/tmp/rebaser-test-no-such-dir", ignore_errors=True)


@ROOT_ONLY
def test_a_tree_that_may_not_be_written(rebaser: Rebaser, open_tree: Path) -> None:
    tree = open_tree
    before = contents(tree)
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 1
    assert f"{tree}/var/lock" in result.err
    assert "--lock-file" in result.err
    assert "othing was changed" in result.err
    assert contents(tree) == before
    # A lock elsewhere does not help the rest.
    result = as_nobody(rebaser, "run", tree, "--dry-run")
    assert result.status == 0
    assert "would move 6" in result.out


@ROOT_ONLY
def test_a_folder_that_may_not_be_written(rebaser: Rebaser, open_tree: Path) -> None:
    tree = open_tree
    give(tree, NOBODY)
    add_dll(tree / "lib/locked/z.dll")
    os.chown(tree / "lib", NOBODY, NOBODY)
    (tree / "lib/locked/z.dll").chmod(0o644)
    before = (tree / "lib/locked/z.dll").read_bytes()
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 1, result.words
    assert "failed lib/locked/z.dll: " in result.err
    assert "stays as it was" in result.err
    assert "run rebaser as the owner" in result.err
    assert (tree / "lib/locked/z.dll").read_bytes() == before
    assert overlaps(tree) == set()


@ROOT_ONLY
def test_a_read_only_file_system(rebaser: Rebaser, tmp_path: Path, tree: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("may not mount")
    try:
        shutil.copytree(tree, disk, dirs_exist_ok=True)
        read_only = ["mount", "-o", "remount,ro", str(disk)]
        subprocess.run(read_only, check=True)
        before = listing(disk)
        result = rebaser("run", disk)
        assert result.status == 1
        assert "Read-only file system" in result.err
        assert str(disk) in result.err
        result = rebaser("run", disk, "--lock-file", tmp_path / "lock")
        assert result.status == 1, result.words
        assert "Read-only file system" in result.err
        assert "othing was changed" in result.err
        elsewhere = ["--lock-file", str(tmp_path / "lock"), "--state-dir", str(tmp_path / "state")]
        result = rebaser("run", disk, *elsewhere)
        assert result.status == 1, result.words
        assert "Read-only file system" in result.err
        assert listing(disk) == before
        # Once all is in order it need not be written to at all.
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert rebaser("run", disk).status == 0
        (disk / "var/lib/rebaser/staging").mkdir()  # as a kill leaves it
        subprocess.run(read_only, check=True)
        result = rebaser("run", disk)
        assert result.status == 1, result.words
        assert "Read-only file system" in result.err
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        (disk / "var/lib/rebaser/staging").rmdir()
        assert rebaser("run", disk).status == 0
        subprocess.run(read_only, check=True)
        result = rebaser("run", disk)
        assert (result.status, result.err) == (0, "")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_files_still_being_copied_are_no_overlap(rebaser: Rebaser, tree: Path) -> None:
    """Two packages are being installed while a third one's hook runs: that is not its failure."""
    for name in ("one.dll", "two.dll"):
        whole = add_dll(tree / "lib" / name)
        (tree / "lib" / name).write_bytes(whole[:-600])
    report = rebaser.report("run", tree)
    assert (report["overlaps"], len(report["skipped"])) == ([], 2)
    assert rebaser("run", tree).status == 0


@ROOT_ONLY
def test_an_owner_who_is_not_in_a_files_group(rebaser: Rebaser, open_tree: Path) -> None:
    """He may not give the moved copy that group (chown(2)); everything else is kept."""
    give(open_tree, NOBODY)
    for file in open_tree.rglob("*.dll"):
        os.chown(file, NOBODY, 0)
    done = as_nobody(rebaser, "run", open_tree)
    assert done.status == 0, done.words
    assert not overlaps(open_tree)
    assert {file.stat().st_uid for file in open_tree.rglob("*.dll")} == {NOBODY}


@pytest.mark.parametrize("option", ["--database", "--avoid"])
def test_what_was_asked_for_and_cannot_be_read(
    rebaser: Rebaser, tree: Path, tmp_path: Path, option: str
) -> None:
    before = contents(tree)
    result = rebaser("run", tree, option, tmp_path / "nope")
    assert result.status == 2
    assert str(tmp_path / "nope") in result.err
    assert contents(tree) == before
