"""`rebaser info` lists what it is given, and says of everything else why it does not."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
from trees import FLOOR, Rebaser, add_dll


def test_two_names_of_one_file_are_no_overlap(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "x.dll", FLOOR)
    os.link(tmp_path / "x.dll", tmp_path / "y.dll")
    os.symlink("x.dll", tmp_path / "link.dll")
    words = [tmp_path / "x.dll", tmp_path / "y.dll", tmp_path / "link.dll"]
    listed = rebaser.report("info", *words)["images"]
    assert [one["overlaps"] for one in listed] == [False, False, False]
    add_dll(tmp_path / "z.dll", FLOOR)
    listed = rebaser.report("info", *words, tmp_path / "z.dll")["images"]
    assert [one["overlaps"] for one in listed] == [True] * 4


def test_a_symbolic_link_is_followed_and_keeps_its_name(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "lib/x-1.dll", FLOOR)
    os.symlink("lib/x-1.dll", tmp_path / "x.dll")
    (one,) = rebaser.report("info", tmp_path / "x.dll")["images"]
    assert (one["path"], one["base"]) == (str(tmp_path / "x.dll"), hex(FLOOR))


@pytest.mark.parametrize("name", ["/dev/null", "fifo.dll", "dangling.dll"])
def test_what_is_no_file(rebaser: Rebaser, tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo.dll")
    os.symlink("nowhere", tmp_path / "dangling.dll")
    result = rebaser("info", tmp_path / name)
    assert (result.status, result.out) == (1, "")
    assert result.err == f"rebaser: {tmp_path / name}: not a regular file\n"


@pytest.mark.parametrize("command", ["info", "check"])
def test_paths_may_follow_options(rebaser: Rebaser, tmp_path: Path, command: str) -> None:
    for name in "ab":
        add_dll(tmp_path / f"{name}.dll", FLOOR, dll_characteristics=0)
    result = rebaser(command, tmp_path / "a.dll", "--json", tmp_path / "b.dll")
    assert result.err == ""
    assert "a.dll" in result.out
    assert "b.dll" in result.out


def reads_of(rebaser: Rebaser, log: Path, *words: str | os.PathLike[str]) -> int:
    """Return how many times anything of a DLL was read."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not there: install strace")
    before = [strace, "-f", "-o", str(log), "-e", "trace=pread64,read,mmap,lseek", "-y"]
    result = rebaser(*words, before=before)
    assert result.status == 0, result.words
    return sum("/old/" in line for line in log.read_text().splitlines())


@pytest.mark.parametrize("path", ["", "lib", "lib/deep"])
def test_what_a_run_has_seen_is_not_read_again(
    rebaser: Rebaser, tree: Path, tmp_path: Path, path: str
) -> None:
    for number in range(8):
        add_dll(tree / f"lib/deep/old/{number}.dll", FLOOR + number * 0x10000)
    cold = reads_of(rebaser, tmp_path / "log", "info", tree / path)
    assert rebaser("run", tree, "--engine", "builtin").status == 0
    time.sleep(2.2)  # until what the run itself has changed is no longer racy
    assert rebaser("run", tree, "--engine", "builtin").status == 0
    listed = rebaser.report("info", tree / path)["images"]
    warm = reads_of(rebaser, tmp_path / "log", "info", tree / path)
    assert warm == 8  # the base alone, once a DLL
    assert cold > warm
    # With the state gone, the same.
    shutil.rmtree(tree / "var/lib/rebaser")
    assert rebaser.report("info", tree / path)["images"] == listed
    # And what changed since is read.
    (tree / "lib/deep/old/3.dll").unlink()
    add_dll(tree / "lib/deep/old/9.dll", FLOOR)
    names = {Path(one["path"]).name for one in rebaser.report("info", tree / path)["images"]}
    assert "9.dll" in names
    assert "3.dll" not in names


def test_the_trees_own_options_are_followed(rebaser: Rebaser, tree: Path) -> None:
    add_dll(tree / "lib/x.plugin", FLOOR)
    assert rebaser("run", tree, "--engine", "builtin").status == 0
    assert not [x for x in rebaser.report("info", tree)["images"] if x["path"].endswith("plugin")]
    (tree / "var/lib/rebaser/options").write_text("--suffix .plugin\n")
    listed = rebaser.report("info", tree / "lib", tree)["images"]
    assert [x["path"] for x in listed if x["path"].endswith("plugin")] == [
        str(tree / "lib/x.plugin")
    ] * 2
