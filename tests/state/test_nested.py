"""A tree inside a tree is one tree: one lock, one state, one plan, from whichever end it is run."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path

import pytest
from lock_programs import eventually, holds
from protocol import finished, first_line, held_here, lock_file, made_a_tree, stopped_at_work
from trees import Rebaser, add_dll, add_dlls, bases, contents, damaged, make_tree, overlaps

from rebaser.scan.skip import is_left_out

pytestmark = pytest.mark.timeout(100)

VENV = "var/lib/sage/venv-python3.12"


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    """Return a tree with a virtual environment below it; all their DLLs collide."""
    root = make_tree(tmp_path / "local", 8)
    add_dlls(root / VENV, 8, first=50, folder="lib")
    return root


def states(root: Path) -> list[str]:
    """Return where below `root` there is a state or a lock of rebaser's."""
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.name in ("seen", "rebase.lock")
    )


OUTERS_OWN = ["var/lib/rebaser/seen", "var/lock/rebase.lock"]


@pytest.mark.parametrize("below", ["var/tmp/build", "opt/sys-root/mingw/bin", "mingw64"])
@pytest.mark.parametrize("told_by", ["SAGE_LOCAL", "state"])
def test_what_a_scan_of_the_outer_leaves_out_is_a_tree_of_its_own(
    rebaser: Rebaser, outer: Path, told_by: str, below: str
) -> None:
    env = {**os.environ, "SAGE_LOCAL": str(outer)}
    if told_by == "state":
        made_a_tree(outer)
        del env["SAGE_LOCAL"]
    inner = outer / below
    add_dlls(inner, 3, folder="lib")
    assert len(rebaser.report("run", inner, env=env)["moved"]) == 3
    assert overlaps(inner) == set()


def test_what_a_whole_system_has_at_its_top_is_none_of_it() -> None:
    assert is_left_out("/", "cygdrive/c/sage")
    assert is_left_out("/", "proc/registry")
    assert not is_left_out("/", "opt/cygdrive/sage")


@pytest.mark.parametrize("told_by", ["SAGE_LOCAL", "state"])
@pytest.mark.parametrize("first", ["inner", "outer"])
def test_two_ends_at_once(rebaser: Rebaser, outer: Path, told_by: str, first: str) -> None:
    environment = {}
    if told_by == "SAGE_LOCAL":
        environment["SAGE_LOCAL"] = str(outer)
    else:
        made_a_tree(outer)
    before = contents(outer)
    env = {**os.environ, **environment}
    ends = [outer / VENV, outer] if first == "inner" else [outer, outer / VENV]
    running = [rebaser.start("run", end, env=env) for end in ends * 2]
    for child in running:
        result = finished(child)
        assert result.status == 0, result.words
    assert overlaps(outer) == set()
    assert damaged(before, outer) == []
    assert states(outer) == OUTERS_OWN


def test_only_the_inner_images_move(rebaser: Rebaser, outer: Path) -> None:
    made_a_tree(outer)
    before = contents(outer)
    report = rebaser.report("run", outer / VENV)
    assert report["root"] == str(outer)
    assert {Path(move["path"]).parts[0] for move in report["moved"]} == {"var"}
    assert len(report["moved"]) == 8
    now = contents(outer)
    assert all(now[path] == before[path] for path in before if path.startswith("bin/"))
    rebaser.report("run", outer)
    assert overlaps(outer) == set()


def test_the_inner_end_waits_for_the_outer(rebaser: Rebaser, tmp_path: Path) -> None:
    outer = make_tree(tmp_path / "local", 250)
    add_dlls(outer / VENV, 8, first=300, folder="lib")
    before = contents(outer)
    with stopped_at_work(rebaser, outer, str(outer)) as working:
        env = {**os.environ, "SAGE_LOCAL": str(outer)}
        result = rebaser("run", outer / VENV, "--no-wait", env={"SAGE_LOCAL": str(outer)})
        assert result.status == 75
        assert f" pid {working.pid} " in result.err
        inner = rebaser.start("run", outer / VENV, env=env)
        assert f" pid {working.pid} " in first_line(inner)
        working.send_signal(signal.SIGCONT)
        assert finished(working).status == 0
        result = finished(inner)
    assert result.status == 0, result.words
    assert overlaps(outer) == set()
    assert damaged(before, outer) == []


def test_below_sage_local_but_not_of_it(rebaser: Rebaser, outer: Path, tmp_path: Path) -> None:
    other = make_tree(tmp_path / "other")
    beside = make_tree(tmp_path / "local-two")  # its name begins like that of the tree
    for tree in (other, beside):
        report = rebaser.report("run", tree, env={"SAGE_LOCAL": str(outer)})
        assert report["root"] == str(tree)
        assert states(tree) == OUTERS_OWN
    assert states(outer) == []


def test_through_a_symbolic_link(rebaser: Rebaser, outer: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(outer / VENV)
    report = rebaser.report("run", link, env={"SAGE_LOCAL": str(outer)})
    assert report["root"] == str(outer)
    assert len(report["moved"]) == 8


def test_the_outermost_of_three(rebaser: Rebaser, tmp_path: Path) -> None:
    outer = make_tree(tmp_path / "a")
    add_dlls(outer / "b", 3, first=20)
    add_dlls(outer / "b/c", 3, first=30)
    assert rebaser.report("run", outer / "b/c")["root"] == str(outer / "b/c")
    assert rebaser.report("run", outer / "b")["root"] == str(outer / "b")
    assert rebaser.report("run", outer)["root"] == str(outer)
    assert rebaser.report("run", outer / "b/c")["root"] == str(outer)
    assert overlaps(outer) == set()


def test_the_inner_trees_lock_is_the_outers(rebaser: Rebaser, outer: Path) -> None:
    # What an installer into the inner tree holds by `rebaser lock` is what a run waits for.
    made_a_tree(outer)
    lock = lock_file(outer)
    command = ["lock", "--root", str(outer / VENV), "-n"]
    with held_here(lock, fcntl.LOCK_SH):
        assert rebaser(*command, "true").status == 1
        assert rebaser(*command, "-s", "true").status == 0
    assert states(outer) == ["var/lock/rebase.lock"]


def test_an_inner_newcomer_gives_way(rebaser: Rebaser, outer: Path) -> None:
    rebaser.report("run", outer)
    old = bases(outer)
    lowest = min(old, key=lambda path: old[path])
    add_dll(outer / VENV / "lib/new.dll", base=old[lowest], dll_characteristics=0x0100)
    report = rebaser.report("run", outer / VENV)
    assert [move["path"] for move in report["moved"]] == [f"{VENV}/lib/new.dll"]
    eventually(lambda: not overlaps(outer))


def test_a_lock_file_makes_no_tree(rebaser: Rebaser, outer: Path) -> None:
    lock_file(outer)
    assert rebaser.report("run", outer / VENV)["root"] == str(outer / VENV)


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_state_that_others_may_write_makes_no_tree(
    rebaser: Rebaser, outer: Path, mode: int
) -> None:
    made_a_tree(outer)
    (outer / "var/lib/rebaser").chmod(mode)
    assert rebaser.report("run", outer / VENV)["root"] == str(outer / VENV)


def test_the_whole_of_another_system_is_no_tree(rebaser: Rebaser) -> None:
    result = rebaser("run", "/", "--dry-run")
    assert result.status == 2
    assert "name the folder that holds them" in result.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "turn", [*range(10), *(pytest.param(n / 3, marks=pytest.mark.long) for n in range(100))]
)
@pytest.mark.parametrize("first", ["inner", "outer"])
def test_both_for_the_very_first_time(
    rebaser: Rebaser, tmp_path: Path, first: str, turn: float
) -> None:
    """Each says that it is here before it looks for the other: one of them sees it."""
    outer = make_tree(tmp_path / "T", 6)
    add_dlls(outer / "lib", 6, first=50)
    before = contents(outer)
    ends = [outer, outer / "lib"] if first == "outer" else [outer / "lib", outer]
    running = [rebaser.start("run", ends[0])]
    time.sleep(0.01 * turn)
    running.append(rebaser.start("run", ends[1]))
    for child in running:
        result = finished(child)
        assert result.status == 0, result.words
    assert overlaps(outer) == set()
    assert damaged(before, outer) == []


@pytest.mark.parametrize("kind", ["link", "folder of a link", "pipe"])
def test_an_inner_lock_that_is_none_is_not_followed(
    rebaser: Rebaser, tmp_path: Path, kind: str
) -> None:
    """Who may write in one folder of a tree cannot have a run lock a file outside it."""
    outer, victim = make_tree(tmp_path / "T"), tmp_path / "victim"
    state = outer / "lib/theirs/.rebaser"
    (victim / "runs").mkdir(parents=True)
    (victim / "rebase.lock").touch()
    if kind == "folder of a link":
        (outer / "lib/theirs/.rebaser").parent.mkdir(parents=True)
        state.symlink_to(victim)
    else:
        (state / "runs").mkdir(parents=True)
        if kind == "link":
            (state / "rebase.lock").symlink_to(victim / "rebase.lock")
        else:
            os.mkfifo(state / "rebase.lock")
    with held_here(victim / "rebase.lock", fcntl.LOCK_EX):
        assert len(rebaser.report("run", outer, "--no-wait", timeout=30)["moved"]) == 6


def test_an_inner_tree_at_work_is_waited_for(rebaser: Rebaser, tmp_path: Path) -> None:
    outer = make_tree(tmp_path / "T")
    add_dlls(outer / "lib", 3, first=50)
    rebaser.report("run", outer / "lib")
    before = contents(outer)
    with held_here(outer / "lib/.rebaser/rebase.lock", fcntl.LOCK_EX):
        result = rebaser("run", outer, "--no-wait")
        assert result.status == 75, result.words
        assert f"lib/.rebaser/rebase.lock is {holds()} " in result.err
        assert contents(outer) == before
        waiting = rebaser.start("run", outer)
        assert "waiting for the lock" in first_line(waiting)
    assert finished(waiting).status == 0
    assert overlaps(outer) == set()


@pytest.mark.parametrize(("mode", "status"), [("--exclusive", 0), ("--shared", 75)])
@pytest.mark.parametrize("asked", ["", "lib"])
def test_a_caller_who_holds_the_inner_lock(
    rebaser: Rebaser, tmp_path: Path, mode: str, status: int, asked: str
) -> None:
    outer = make_tree(tmp_path / "T")
    add_dlls(outer / "lib", 3, first=50)
    rebaser.report("run", outer / "lib")
    rebaser.report("run", outer)
    add_dlls(outer / "lib", 2, first=70)
    lock = ("lock", mode, "--file", outer / "lib/.rebaser/rebase.lock", "--")
    result = rebaser(*lock, *rebaser.command("run", outer / asked), timeout=30)
    assert result.status == status, result.words
    if status:
        assert "holds this lock shared: drop it first (flock -u " in result.err
        assert f"({outer}/lib/.rebaser/rebase.lock)" in result.err
    else:
        assert overlaps(outer) == set()


def test_a_run_that_began_before_there_was_a_var_is_waited_for(
    rebaser: Rebaser, tmp_path: Path
) -> None:
    root = tmp_path / "T"
    add_dlls(root, 3)
    rebaser.report("run", root)
    (root / "var").mkdir()
    add_dlls(root, 2, first=50)
    with held_here(root / ".rebaser/rebase.lock", fcntl.LOCK_EX):
        result = rebaser("run", root, "--no-wait")
        assert result.status == 75, result.words
        assert f"T/.rebaser/rebase.lock is {holds()} " in result.err
    assert rebaser.report("run", root)["overlaps"] == []
    assert overlaps(root) == set()
