"""`rebaser check` tells what `rebaser run` would do, and the command that it prints cures."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

import pe
import pytest
from trees import FLOOR, Rebaser, Result, add_dll, add_dlls, bases, make_tree
from users import ROOT_ONLY, as_nobody

SLOT = 0x10000
SIGNED = {4: (0x400, 8)}  # the security directory: a file offset, not an RVA


def cure(result: Result, rebaser: Rebaser) -> None:
    """Run the commands that were printed."""
    _, _, commands = result.out.partition("this does: ")
    assert commands, result.words
    for command in commands.strip().split("; "):
        words = shlex.split(command)
        assert words[:2] == ["rebaser", "run"]
        assert rebaser(*words[1:], "--engine", "builtin").status == 0


def would_move(rebaser: Rebaser, *paths: Path | str) -> dict[str, str]:
    report = rebaser.report("check", *paths, status=1)
    return {one["path"]: one["new_base"] for one in report["would_move"]}


class TestThePlanIsThatOfRun:
    def test_a_newcomer_moves_although_it_is_larger(self, rebaser: Rebaser, tmp_path: Path) -> None:
        tree = make_tree(tmp_path / "tree", 0)
        add_dll(tree / "bin/old.dll", FLOOR)
        assert rebaser("run", tree).status == 0
        add_dll(tree / "bin/a-new.dll", FLOOR, data_size=0x8000)
        planned = rebaser.report("run", tree, "--dry-run")["moved"]
        assert [move["path"] for move in planned] == ["bin/a-new.dll"]
        found = would_move(rebaser, tree)
        assert found == {str(tree / move["path"]): move["new_base"] for move in planned}

    def test_a_nested_folder_keeps_off_the_outer_tree(
        self, rebaser: Rebaser, tmp_path: Path
    ) -> None:
        tree = make_tree(tmp_path / "tree", 0)
        add_dll(tree / "bin/outer.dll", FLOOR)
        assert rebaser("run", tree).status == 0
        (tree / "var/lib/rebaser").mkdir(exist_ok=True)
        add_dll(tree / "venv/x.dll", FLOOR, data_size=0x8000)
        add_dll(tree / "other/unread.dll", 0x1234, data_size=0x8000)  # not asked about
        found = would_move(rebaser, tree / "venv")
        moved = rebaser.report("run", tree / "venv", "--dry-run")["moved"]
        assert found == {str(tree / move["path"]): move["new_base"] for move in moved}
        text = rebaser("check", tree / "venv").out
        assert "bin/outer.dll (outside of what was named)" in text
        assert "unread.dll" not in text
        assert "1 DLL: 2 overlapping" in text

    def test_a_folder_that_its_outer_tree_leaves_out(self, rebaser: Rebaser, tree: Path) -> None:
        assert rebaser("run", tree, "--engine", "builtin").status == 0
        add_dlls(tree / "var/tmp", 2)
        result = rebaser("check", tree / "var/tmp")
        assert result.status == 1
        assert "2 DLLs: 2 overlapping" in result.out
        assert "this does" not in result.out

    def test_two_trees_are_moved_apart(self, rebaser: Rebaser, tmp_path: Path) -> None:
        for name in "ab":
            add_dll(tmp_path / name / f"{name}.dll", FLOOR)
        result = rebaser("check", tmp_path / "a", tmp_path / "b")
        cure(result, rebaser)
        assert rebaser("check", tmp_path / "a", tmp_path / "b").status == 0
        assert bases(tmp_path / "a") == {"a.dll": FLOOR}


def test_the_advice_repeats_the_options(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    other = tmp_path / "it's another"
    add_dll(other / "o.dll", FLOOR)
    add_dll(tree / "bin/x.dll", FLOOR)
    add_dll(tree / "bin/y.odd", FLOOR + 8 * SLOT)
    add_dll(tree / "bin/z.odd", FLOOR + 8 * SLOT)
    options = ["--avoid", str(other), "--suffix", "odd", "--exclude", "no *"]
    result = rebaser("check", tree, *options)
    assert result.status == 1
    cure(result, rebaser)
    assert rebaser("check", tree, *options).status == 0


class TestWhatIsNoImage:
    @pytest.mark.parametrize("name", ["x.c", "empty.dll", "fifo.dll", "/dev/null"])
    def test_it_is_named_with_its_reason(self, rebaser: Rebaser, tmp_path: Path, name: str) -> None:
        (tmp_path / "x.c").write_text("int main;")
        (tmp_path / "empty.dll").write_text("")
        os.mkfifo(tmp_path / "fifo.dll")
        result = rebaser("check", tmp_path / name)
        reason = {"x.c": "not a PE image", "empty.dll": "empty"}.get(name, "not a regular file")
        assert result.status == 1
        assert f"{tmp_path / name}: {reason}" in result.out
        assert "1 could not be looked at" in result.out


@ROOT_ONLY
def test_what_may_not_be_read(rebaser: Rebaser, open_tree: Path) -> None:
    assert rebaser("run", open_tree, "--engine", "builtin").status == 0
    (open_tree / "bin/x000.dll").chmod(0)
    (open_tree / "closed").mkdir(0o700)
    result = as_nobody(rebaser, "check", open_tree)
    assert result.status == 1
    assert "this breaks fork" not in result.out
    assert "5 DLLs: nothing here breaks fork, as far as it could be looked at" in result.out
    assert f"{open_tree / 'bin/x000.dll'}: cannot be read (Permission denied)" in result.out
    assert f"{open_tree / 'closed'}: cannot be listed (Permission denied)" in result.out


class TestWhatNoRebaseCures:
    @pytest.mark.parametrize(
        ("shape", "reason"),
        [
            ({"base": 0x1_0000}, "based below 4 GiB"),
            ({"base": 0x1_8000_0000, "directories": SIGNED}, "--force-signed"),
            ({"base": 0x1_8000_0000, "characteristics": 0x2023}, "stripped"),
        ],
    )
    def test_its_reason_and_the_next_step(
        self, rebaser: Rebaser, tmp_path: Path, shape: Any, reason: str
    ) -> None:
        (tmp_path / "x.dll").write_bytes(pe.build(**shape))
        result = rebaser("check", tmp_path)
        assert result.status == 1
        _, _, incurable = result.out.partition("No rebase cures these:\n")
        assert incurable.count(reason) == 1, result.words
        assert "this does: " not in result.out

    def test_of_an_overlap_the_one_that_can_moves(self, rebaser: Rebaser, tmp_path: Path) -> None:
        (tmp_path / "x.dll").write_bytes(
            pe.build(base=FLOOR, characteristics=0x2023, dll_characteristics=0)
        )
        add_dll(tmp_path / "y.dll", FLOOR, data_size=0x8000)
        result = rebaser("check", tmp_path)
        assert "x.dll (no run moves it: its relocations were stripped)" in result.out
        assert "No rebase cures" not in result.out
        cure(result, rebaser)
        assert rebaser("check", tmp_path).status == 0

    def test_an_overlap_of_two_that_stay(self, rebaser: Rebaser, tmp_path: Path) -> None:
        for name in ("x.dll", "y.dll"):
            (tmp_path / name).write_bytes(
                pe.build(base=FLOOR, characteristics=0x2023, dll_characteristics=0)
            )
        result = rebaser("check", tmp_path)
        assert "No rebase cures these:" in result.out
        assert f"x.dll: overlaps {tmp_path / 'y.dll'}" in result.out
        assert "link it again" in result.out


def test_among_many_overlaps_those_that_stay_are_found(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dlls(tmp_path, 150)  # 11,175 pairs
    for name in ("y.dll", "z.dll"):
        add_dll(tmp_path / name, characteristics=0x2023)
    result = rebaser("check", tmp_path)
    assert "z.dll: DYNAMIC_BASE is set" in result.out
    assert f"overlaps {tmp_path / 'y.dll'}; no run moves it" in result.out
    left = rebaser("run", tmp_path, "--engine", "builtin")
    assert "1 overlap left" in left.out


def test_two_names_of_one_file_are_no_overlap(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "x.dll", FLOOR, dll_characteristics=0)
    os.link(tmp_path / "x.dll", tmp_path / "y.dll")
    for words in ([tmp_path], [tmp_path / "x.dll", tmp_path / "y.dll"]):
        result = rebaser("check", *words)
        assert (result.status, result.out) == (0, "1 DLL: nothing here breaks fork\n")


def test_globs_are_relative_to_the_folder_that_was_named(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    (tree / "var/lib/rebaser").mkdir(parents=True)
    for name in "ab":
        add_dll(tree / "venv/lib" / f"{name}.dll", FLOOR, dll_characteristics=0)
    assert rebaser("check", tree / "venv").status == 1
    report = rebaser.report("check", tree / "venv", "--exclude", "lib/a*", status=1)
    assert [os.path.basename(move["path"]) for move in report["would_move"]] == ["b.dll"]
