"""rebaser forget: what is rebaser's goes, everything else stays, and nobody is robbed of a lock."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from stop_at import Call, in_child, intercept
from trees import Rebaser, add_dlls, clean_environment, contents, damaged, listing, overlaps

from rebaser.tree import find_tree


@pytest.fixture(params=["var", ".rebaser"])
def tree(request: pytest.FixtureRequest, rebaser: Rebaser, tmp_path: Path) -> Path:
    """A tree on which there was a run, with its state in either place."""
    root = tmp_path / "tree"
    root.mkdir()
    if request.param == "var":
        (root / "var/lib/other").mkdir(parents=True)
    add_dlls(root, 3)
    assert rebaser("run", root, "--engine", "builtin").status == 0
    return root


def state_of(tree: Path) -> Path:
    return tree / "var/lib/rebaser" if (tree / "var").exists() else tree / ".rebaser"


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def test_nothing_of_a_run_is_left(rebaser: Rebaser, tree: Path) -> None:
    dlls = contents(tree)
    inside = tree / "bin"
    assert find_tree(str(inside)).root == str(tree)
    result = rebaser("forget", tree, "--yes")
    assert result.status == 0, result.words
    assert contents(tree) == dlls
    assert find_tree(str(inside)).root == str(inside)
    kept = ["var", "var/lib", "var/lib/other", "var/lock", "var/lock/rebase.lock"]
    assert names(tree) == sorted(
        ["bin", *(f"bin/x00{n}.dll" for n in range(3)), *(kept if (tree / "var").exists() else [])]
    )
    assert ("a lock file makes no tree" in result.out) == (tree / "var").exists()
    again = rebaser("forget", tree, "--yes")
    assert (again.status, again.out) == (0, f"{tree}: rebaser keeps nothing of it\n")
    # And a run begins as if it were the first.
    assert rebaser("run", tree, "--engine", "builtin").status == 0


def test_what_a_killed_run_left_goes_too(rebaser: Rebaser, tree: Path) -> None:
    with rebaser.start("run", tree, "--engine", "builtin") as process:
        process.kill()
    assert rebaser("forget", tree, "--yes").status == 0
    assert not state_of(tree).exists()


def test_the_users_own_files_stay(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    state = state_of(tree)
    (state / "options").write_text("--strict\n")
    result = rebaser("forget", tree, "--yes")
    assert result.status == 0, result.words
    assert os.listdir(state) == ["options"]
    assert f"{state}/options stays: the options of this tree are yours" in result.out
    assert find_tree(str(tree / "bin")).root == str(tree / "bin")


def test_what_is_not_rebasers_stays_and_is_named(rebaser: Rebaser, tree: Path) -> None:
    state = state_of(tree)
    (state / "notes.txt").write_text("mine")
    (state / "runs/notes.txt").write_text("mine")
    (state / "runs/12.json").mkdir()
    result = rebaser("forget", tree, "--yes")
    assert result.status == 1
    assert names(state) == ["notes.txt", "runs", "runs/12.json", "runs/notes.txt"]
    for name in ("notes.txt", "runs/12.json", "runs/notes.txt"):
        assert f"{state}/{name} is left: it is not rebaser's, or may not" in result.err


@pytest.mark.parametrize("planted", ["runs", "seen", "state.lock"])
def test_no_link_is_followed(rebaser: Rebaser, tree: Path, tmp_path: Path, planted: str) -> None:
    """A stranger's files that have the names of rebaser's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("1.json", "seen"):
        (theirs / name).write_text("theirs")
    before = listing(theirs)
    state = state_of(tree)
    target = state / planted
    if planted == "runs":
        target.rename(tmp_path / "old")
    else:
        target.unlink()
    target.symlink_to(theirs if planted == "runs" else theirs / "seen")
    rebaser("forget", tree, "--yes")
    assert listing(theirs) == before


def test_a_link_in_place_of_the_state_is_not_followed(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    state = state_of(tree)
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    before = {k: v for k, v in listing(tmp_path / "elsewhere").items() if k.startswith("runs")}
    assert rebaser("forget", tree, "--yes").status == 1
    after = listing(tmp_path / "elsewhere")
    assert {k: v for k, v in after.items() if k.startswith("runs")} == before


def test_a_folder_that_becomes_a_link_at_the_last_moment_is_not_followed(
    tree: Path, tmp_path: Path
) -> None:
    state = state_of(tree)
    above = state.parent
    theirs = tmp_path / "theirs"
    (theirs / state.name).mkdir(parents=True)

    def exchange(name: str, real: Call, words: Sequence[Any]) -> None:
        if words[0].endswith(f"/{state.name}") and not above.is_symlink():
            above.rename(tmp_path / "away")
            above.symlink_to(theirs)

    log = tmp_path / "log"
    words = ["forget", str(tree), "--yes"]
    assert in_child(words, lambda: intercept(["rmdir"], exchange), log) == 0, log.read_text()
    assert above.is_symlink()
    assert os.listdir(theirs) == [state.name]


@pytest.mark.slow
def test_forgotten_over_and_over_while_runs_are_at_work(rebaser: Rebaser, tree: Path) -> None:
    """Two at once, and runs beside them: who comes too early is told so, and no DLL is harmed."""
    add_dlls(tree, 30, first=10)
    before = contents(tree)
    for turn in range(6):
        running = [
            rebaser.start(*words)
            for words in (["forget", tree, "--yes"], ["run", tree], ["forget", tree, "--yes"]) * 2
        ]
        for process in running:
            _, err = process.communicate(timeout=100)
            assert process.returncode in (0, 1, 75), err
            assert "bug" not in err, err
            assert "Traceback" not in err, err
        add_dlls(tree, 3, first=100 + 3 * turn)
        before.update({k: v for k, v in contents(tree).items() if k not in before})
        assert damaged(before, tree) == []
    assert rebaser("run", tree).status == 0
    assert overlaps(tree) == set()


@pytest.fixture
def holder(rebaser: Rebaser, tree: Path) -> Iterator[subprocess.Popen[str]]:
    """Somebody who holds the lock shared, as installers do."""
    words = ("lock", "--root", tree, "--shared", "--", "sh", "-c", "echo ready; exec sleep 60")
    with rebaser.start(*words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_tree_at_work_is_not_forgotten(
    rebaser: Rebaser, tree: Path, holder: subprocess.Popen[str]
) -> None:
    before = names(tree)
    began = time.monotonic()
    result = rebaser("forget", tree, "--yes")
    assert time.monotonic() - began < 20
    assert result.status == 75
    assert f"pid {holder.pid}" in result.err
    assert "nothing was changed" in result.err
    assert names(tree) == before


def test_without_anybody_to_ask(rebaser: Rebaser, tree: Path) -> None:
    before = names(tree)
    result = rebaser("forget", tree)
    assert (result.status, result.out) == (2, "")
    assert "give --yes" in result.err
    assert names(tree) == before


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 1), ("no", 1), ("yes", 0)])
def test_a_person_is_asked(tree: Path, answer: str, status: int) -> None:
    master, slave = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "rebaser", "forget", str(tree)],
            stdin=slave,
            start_new_session=True,  # Cygwin lets nobody read another session's terminal
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        ) as process:
            os.write(master, f"{answer}\n".encode())
            out, err = process.communicate(timeout=60)
    finally:
        os.close(master)
        os.close(slave)
    assert process.returncode == status, out + err
    assert f"Forget all runs on {tree}?" in err
    assert (state_of(tree) / "seen").exists() == bool(status)


def test_a_part_of_a_tree_is_not_forgotten_by_itself(rebaser: Rebaser, tree: Path) -> None:
    before = names(tree)
    result = rebaser("forget", tree / "bin", "--yes")
    assert result.status == 2
    assert f"{tree / 'bin'} is a part of the tree {tree}" in result.err
    assert names(tree) == before
