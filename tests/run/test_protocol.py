"""Nobody waits for himself: rebaser under locks that its callers hold in every way there is."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lock_programs import eventually, holds, is_free, needs_flock
from not_on_cygwin import WINE
from protocol import Shell, finished, first_line, held_here, lock_file
from trees import (
    Rebaser,
    clean_environment,
    contents,
    damaged,
    left_over,
    listing,
    make_tree,
    overlaps,
)

pytestmark = pytest.mark.timeout(100)


def is_done(tree: Path, before: dict[str, bytes]) -> bool:
    """Whether all work was done, and well."""
    assert damaged(before, tree) == []
    return not overlaps(tree) and not left_over(tree)


CALLERS = {
    "rebaser lock": 'rebaser lock --root "$1" -- rebaser run "$1"',
    "sage-flock sage-rebase": 'sage-flock -x "$2" sage-rebase "$1"',
    "sage-flock sage-rebase.sh": 'sage-flock -x "$2" sage-rebase.sh "$1"',
    "sage-flock rebaser": 'sage-flock -x "$2" rebaser run "$1"',
    "twice": "rebaser lock --root \"$1\" sh -c \"rebaser run '$1'; rebaser run '$1'\"",
    "a descriptor": 'exec 200>"$2"; sage-flock -x 200; rebaser run "$1"',
    "flock(1)": 'flock "$2" rebaser run "$1"',
    "flock(1) as shells use it": '(flock -x 9; rebaser run --no-wait "$1") 9>"$2"',
}


@needs_flock
@pytest.mark.parametrize("script", CALLERS.values(), ids=CALLERS)
def test_the_caller_holds_the_lock(sh: Shell, tree: Path, script: str) -> None:
    before = contents(tree)
    result = sh(script, tree, lock_file(tree))
    assert result.status == 0, result.words
    assert "waiting" not in result.err
    assert is_done(tree, before)
    assert is_free(lock_file(tree))
    assert sh(script, tree, lock_file(tree)).status == 0


@needs_flock
@pytest.mark.parametrize(
    "script",
    [
        'rebaser lock -s --root "$1" -- rebaser run "$1"',
        'sage-flock -s "$2" rebaser run "$1"',
        'sage-flock -s "$2" sage-rebase "$1"',
        'exec 200>"$2"; sage-flock -s 200; rebaser run --wait 1000 "$1"',
        '(flock -s 9; rebaser run "$1") 9<"$2"',
        '(flock -s 0; rebaser run "$1") 0<"$2"',
    ],
)
def test_the_caller_holds_it_shared(rebaser: Rebaser, sh: Shell, tree: Path, script: str) -> None:
    lock = lock_file(tree)
    before = contents(tree)
    result = sh(script, tree, lock)
    assert result.status == 75, result.words
    assert "holds this lock shared: drop it first" in result.err
    assert "descriptor" in result.err
    assert contents(tree) == before
    assert rebaser("run", tree).status == 0
    result = sh(script, tree, lock)
    assert result.status == 0, result.words


OURS_AND_OTHERS = [
    ("shared", "nobody"),
    ("shared", "shared"),
    ("exclusive", "nobody"),
    ("unlocked", "nobody"),
    ("unlocked", "shared"),
    ("unlocked", "exclusive"),
]
LOCKED = {
    "shared": "sage-flock -s 200",
    "exclusive": "sage-flock -x 200",
    "unlocked": "sage-flock -s -n 200; sage-flock -u 200",
}


@pytest.mark.parametrize("program", ["rebaser run --no-wait", "sage-rebase"])
@pytest.mark.parametrize(("ours", "others"), OURS_AND_OTHERS)
def test_descriptor_200(
    rebaser: Rebaser, sh: Shell, tree: Path, ours: str, others: str, program: str
) -> None:
    lock = lock_file(tree)
    before = contents(tree)
    # What the caller's descriptor holds afterwards is asked of Linux, in the shell that has it.
    script = f"""
        exec 200>"$2"; {LOCKED[ours]}
        {program} "$1"; status=$?
        cat /proc/self/fdinfo/200 2>/dev/null
        exit $status
    """

    def run() -> int:
        result = sh(script, tree, lock)
        if sys.platform == "linux":
            assert ours == _state_in(result.out), result.words
        return result.status

    operation = {"shared": fcntl.LOCK_SH, "exclusive": fcntl.LOCK_EX, "nobody": fcntl.LOCK_UN}
    with held_here(lock, operation[others]):
        can_work = ours != "shared" and others == "nobody"
        assert run() == (0 if can_work else 75)
        assert is_done(tree, before) == can_work
    if not can_work:
        assert contents(tree) == before
        assert rebaser("run", tree).status == 0
    with held_here(lock, operation[others]):
        # Nothing to do waits for installers, but not for a commit that may be under way.
        assert run() == (75 if others == "exclusive" else 0)


def _state_in(out: str) -> str:
    words = next((line.split() for line in out.splitlines() if "FLOCK" in line), [])
    return "shared" if "READ" in words else "exclusive" if "WRITE" in words else "unlocked"


def test_a_lock_that_others_hold_is_waited_for(rebaser: Rebaser, sh: Shell, tree: Path) -> None:
    before = contents(tree)
    lock = lock_file(tree)
    with held_here(lock, fcntl.LOCK_SH):
        child = sh.start(
            'exec 200>"$2"; sage-flock -s 200; sage-flock -u 200; rebaser run "$1"', tree, lock
        )
        said = first_line(child)
        assert f"waiting for the lock {lock}, held shared by pid {os.getpid()} " in said
        assert contents(tree) == before
    assert finished(child).status == 0
    assert is_done(tree, before)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["rebaser run", "sage-rebase"])
def test_many_runs_under_one_callers_lock(sh: Shell, tmp_path: Path, program: str) -> None:
    # All of them have inherited the exclusive lock: it does not keep them apart.
    tree = make_tree(tmp_path / "tree", 100)
    before = contents(tree)
    result = sh(
        f"""exec 200>"$2"; sage-flock -x 200
        for i in 1 2 3 4 5 6; do {program} "$1" || echo "status $?" & done; wait""",
        tree,
        lock_file(tree),
    )
    statuses = [line for line in result.out.splitlines() if line.startswith("status")]
    # sage-rebase does not wait, not for its like either.
    assert set(statuses) <= ({"status 75"} if program == "sage-rebase" else set()), result.words
    assert "cannot be written" not in result.err, result.words
    assert is_done(tree, before)


def test_a_caller_that_keeps_its_lock_to_itself(sh: Shell, tree: Path) -> None:
    # -o closes the lock in the command: there is nothing to inherit, and the wait never ends.
    before = contents(tree)
    child = sh.start('exec rebaser lock -o --root "$1" -- rebaser run --wait 0.3 "$1"', tree)
    result = finished(child)
    assert result.status == 75, result.words
    assert f"pid {child.pid} is our own caller and did not hand its lock down (-o)" in result.err
    assert contents(tree) == before


def test_the_orphan_of_a_killed_caller_keeps_its_lock(
    rebaser: Rebaser, sh: Shell, tree: Path
) -> None:
    lock = lock_file(tree)
    child = sh.start('exec 200>"$2"; sage-flock -x 200; sleep 1000 & echo $!; wait', tree, lock)
    assert child.stdout is not None
    orphan = int(child.stdout.readline())
    child.kill()
    child.wait(20)
    result = rebaser("run", tree, "--no-wait")
    assert result.status == 75
    assert f"held exclusively by pid {orphan} (sleep 1000)" in result.err
    os.kill(orphan, signal.SIGKILL)
    finished(child)
    eventually(lambda: is_free(lock))
    assert rebaser("run", tree, "--no-wait").status == 0


BUSY = [
    (["--no-wait"], fcntl.LOCK_SH, "shared"),
    (["--no-wait"], fcntl.LOCK_EX, "exclusively"),
    (["--wait", "0.05"], fcntl.LOCK_SH, "shared"),
    (["--wait", "0.05"], fcntl.LOCK_EX, "exclusively"),
]


@pytest.mark.parametrize(("words", "operation", "mode"), BUSY)
def test_busy_names_the_holder(
    rebaser: Rebaser, tree: Path, words: list[str], operation: int, mode: str
) -> None:
    lock = lock_file(tree)
    before = listing(tree)
    with held_here(lock, operation):
        result = rebaser("run", tree, *words)
    assert result.status == 75, result.words
    assert listing(tree) == before
    last = result.err.splitlines()[-1]
    assert last.startswith(f"rebaser: the lock {lock} is {holds(mode)} pid {os.getpid()} (")
    assert "); nothing was changed: run rebaser again when it is free" in last
    waited = [line for line in result.err.splitlines() if "waiting for the lock" in line]
    assert len(waited) == ("--wait" in words)


STATUS = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGKILL: -signal.SIGKILL,
}


@pytest.mark.parametrize(
    ("number", "operation", "words"),
    [
        (signal.SIGINT, fcntl.LOCK_SH, []),
        (signal.SIGINT, fcntl.LOCK_SH, ["--wait", "1000"]),
        (signal.SIGINT, fcntl.LOCK_EX, []),
        (signal.SIGINT, fcntl.LOCK_EX, ["--wait", "1000"]),
        (signal.SIGTERM, fcntl.LOCK_SH, []),
        (signal.SIGHUP, fcntl.LOCK_EX, ["--wait", "1000"]),
        (signal.SIGKILL, fcntl.LOCK_EX, []),
    ],
)
def test_stopped_while_it_waits(
    rebaser: Rebaser, tree: Path, number: int, operation: int, words: list[str]
) -> None:
    lock = lock_file(tree)
    before = listing(tree)
    with held_here(lock, operation):
        child = rebaser.start("run", tree, *words)
        assert "waiting" in first_line(child)
        child.send_signal(number)
        result = finished(child)
        assert result.status == STATUS[number], result.words
        if number != signal.SIGKILL:
            said = "interrupted" if number == signal.SIGINT else "terminated"
            assert result.err == f"rebaser: {said}; every file is whole, old or new\n"
    assert is_free(lock)
    assert listing(tree) == before
    assert rebaser("run", tree).status == 0


@pytest.mark.slow
@pytest.mark.parametrize("number", STATUS)
def test_stopped_at_work(rebaser: Rebaser, tmp_path: Path, number: int) -> None:
    tree = make_tree(tmp_path / "tree", 300)
    before = contents(tree)
    child = rebaser.start("run", tree)
    staging = tree / "var/lib/rebaser/staging"
    eventually(lambda: child.poll() is not None or (staging / "0000020.dll").exists())
    child.send_signal(number)
    result = finished(child)
    assert result.status == STATUS[number], result.words
    assert damaged(before, tree) == []
    assert is_free(lock_file(tree))
    if number != signal.SIGKILL:
        # A signal may come between open(2) and Python's noting of the descriptor. Wine keeps what
        # is open, and so the folder that it is in.
        may_stay = [[], ["var/lib/rebaser/staging"]] if WINE else [[]]
        assert left_over(tree) in may_stay
    assert rebaser("run", tree, "--no-wait").status == 0
    assert is_done(tree, before)


def test_what_a_killed_run_left_is_cleared_by_a_run_without_work(
    rebaser: Rebaser, tree: Path
) -> None:
    assert rebaser("run", tree).status == 0
    staging = tree / "var/lib/rebaser/staging"
    staging.mkdir()
    (staging / "made-by-rebaser").touch()
    (staging / "0000000.dll").write_bytes(b"half a DLL")
    report = rebaser.report("run", tree)
    assert report["moved"] == []
    assert left_over(tree) == []


def test_a_lock_file_that_cannot_be(rebaser: Rebaser, tree: Path) -> None:
    before = contents(tree)
    result = rebaser("run", tree, "--lock-file", "/proc/nowhere/rebase.lock")
    assert result.status == 1
    assert "cannot open the lock file /proc/nowhere/rebase.lock" in result.err
    assert "--lock-file" in result.err
    assert contents(tree) == before


def test_a_file_where_the_folder_of_the_lock_should_be(rebaser: Rebaser, tree: Path) -> None:
    shutil.rmtree(tree / "var", ignore_errors=True)
    (tree / ".rebaser").touch()
    result = rebaser("run", tree)
    assert result.status == 1
    assert f"{tree}/.rebaser: the folder cannot be made" in result.err
    assert "--file" not in result.err


def test_a_waiting_runs_own_dlls_are_not_in_use(rebaser: Rebaser, tree: Path) -> None:
    # rebaser's Python may live in the tree: its DLLs must move although many rebasers have them.
    before = contents(tree)
    mapped = f"""
import mmap, sys
with open({str(tree / "bin/x001.dll")!r}, "rb") as file:
    mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
from rebaser.cli import main
main(sys.argv[1:])
"""
    # Its name does not fit into what is shown of a process.
    program = tree.parent / ("a-long-name" * 8) / "rebaser"
    program.parent.mkdir()
    program.write_text(mapped)
    command = [sys.executable, str(program), "run", *rebaser.always, str(tree)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with held_here(lock_file(tree), fcntl.LOCK_SH):
        child = subprocess.Popen(command, env=clean_environment(), **pipes)  # type: ignore[call-overload]
        assert "waiting" in first_line(child)
        other = rebaser.start("run", tree, "--json")
        assert "waiting" in first_line(other)
    one, two = finished(child), finished(other)
    assert (one.status, two.status) == (0, 0), one.words + two.words
    assert "in use" not in one.words + two.words
    assert is_done(tree, before)
