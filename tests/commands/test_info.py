"""`rebaser info` lists what it is given, and says of everything else why it does not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trees import FLOOR, Rebaser, add_dll


def test_two_names_of_one_file_are_no_overlap(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "x.dll", FLOOR)
    os.link(tmp_path / "x.dll", tmp_path / "y.dll")
    os.symlink("x.dll", tmp_path / "link.dll")
    words = [tmp_path / "x.dll", tmp_path / "y.dll", tmp_path / "link.dll"]
    listed = rebaser.report("info", *words)
    assert [one["overlaps"] for one in listed] == [False, False, False]
    add_dll(tmp_path / "z.dll", FLOOR)
    listed = rebaser.report("info", *words, tmp_path / "z.dll")
    assert [one["overlaps"] for one in listed] == [True] * 4


def test_a_symbolic_link_is_followed_and_keeps_its_name(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "lib/x-1.dll", FLOOR)
    os.symlink("lib/x-1.dll", tmp_path / "x.dll")
    (one,) = rebaser.report("info", tmp_path / "x.dll")
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
