"""`rebaser lock`, and what it shares with sage-flock: how the lock and the command live and end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lock_programs import (
    ALL,
    CHECKOUT,
    FLOCK,
    OURS,
    REBASER_LOCK,
    Program,
    eventually,
    held,
    holds,
    is_free,
    needs_flock,
    run,
    shell_status,
    started,
)

ours = pytest.mark.parametrize("program", OURS, ids=lambda program: program.name)
everyone = pytest.mark.parametrize("program", ALL, ids=lambda program: program.name)
REBASER = REBASER_LOCK.start


def without_a_tree() -> dict[str, str]:
    """Return the environment without what names a tree or a lock."""
    names = ("SAGE_LOCAL", "REBASER_LOCK_FILE", "REBASER_STATE_DIR")
    return {name: value for name, value in os.environ.items() if name not in names}


# Exclusion.


@needs_flock
@pytest.mark.parametrize("second", ALL, ids=lambda program: program.name)
@pytest.mark.parametrize("first", ALL, ids=lambda program: program.name)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_they_exclude_each_other(
    tmp_path: Path, first: Program, second: Program, kind: str
) -> None:
    lock = tmp_path / "lock"
    if kind == "folder":
        lock.mkdir()
    for mode in ("-s", "-x"):
        with held(first, mode, lock=lock):
            for wanted in ("-s", "-x"):
                status = 0 if mode == wanted == "-s" else 9
                assert second.run(wanted, "-n", "-E9", lock=lock).returncode == status
    assert second.run("-n", lock=lock).returncode == 0


# Each: the words before the lock, and the status that is wanted where it is held.
BUSY = [
    (["-n"], 1),
    (["-xn"], 1),
    (["-sn"], 1),
    (["--nonblock"], 1),
    (["-w", "0.05"], 1),
    (["-w0"], 1),
    (["-nw9"], 1),
    (["-n", "-E", "7"], 7),
    (["-nE7"], 7),
    (["-nE0"], 0),
    (["-w0.02", "-E255"], 255),
    (["-no"], 1),
]


@needs_flock
@pytest.mark.parametrize(("options", "status"), BUSY)
def test_status_of_a_held_lock(tmp_path: Path, options: list[str], status: int) -> None:
    with held(FLOCK, lock=tmp_path / "lock"):
        for program, more in ((FLOCK, ()), (REBASER_LOCK, ("--quiet",)), (REBASER_LOCK, ("-q",))):
            done = program.run(*options, *more, lock=tmp_path / "lock", command=("echo", "run"))
            assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
        done = REBASER_LOCK.run(*options, lock=tmp_path / "lock", command=("echo", "run"))
        assert (done.returncode, done.stdout) == (status, "")
        assert done.stderr.startswith(
            f"rebaser: could not take the lock {tmp_path}/lock, {holds()}"
        )
        assert done.stderr.count("\n") == 1


@everyone
def test_it_waits_until_it_is_free(tmp_path: Path, program: Program) -> None:
    for options in ((), ("-w", "60")):
        with held(REBASER_LOCK, lock=tmp_path / "lock") as holder:
            words = program.words(*options, lock=tmp_path / "lock", command=("echo", "run"))
            with started(words, stderr=subprocess.DEVNULL) as child:
                with pytest.raises(subprocess.TimeoutExpired):
                    child.wait(0.2)
                assert holder.stdin
                holder.stdin.close()
                assert child.stdout
                assert child.stdout.read() == "run\n"
                assert child.wait(20) == 0


@everyone
def test_sigint_ends_the_wait(tmp_path: Path, program: Program) -> None:
    lock = tmp_path / "lock"
    words = program.words(lock=lock, command=("true",))
    with held(REBASER_LOCK, lock=lock), started(words, stderr=subprocess.PIPE) as child:
        eventually(lambda: str(lock) in _open_files(child.pid))
        # The wait begins right after the file was opened.
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
        child.send_signal(signal.SIGINT)
        assert shell_status(child.wait(20)) == 130
        assert child.stderr
        assert "Traceback" not in child.stderr.read()


def _open_files(pid: int) -> set[str]:
    folder = f"/proc/{pid}/fd"
    names = set()
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            names.add(os.readlink(f"{folder}/{fd}"))
    return names


# The command.

COMMANDS = [
    (("true",), 0),
    (("sh", "-c", "exit 7"), 7),
    (("sh", "-c", "kill -PIPE $$; echo alive"), 141),
    (("sh", "-c", "kill -XFSZ $$; echo alive"), 153),
    (("sh", "-c", "kill -KILL $$"), 137),
    (("sh", "-c", 'test "$1" = -n && test "$2" = --', "sh", "-n", "--"), 0),
]


@everyone
@pytest.mark.parametrize(("command", "status"), COMMANDS)
@pytest.mark.parametrize("options", [(), ("-o",)])
def test_its_status_is_the_commands(
    tmp_path: Path,
    program: Program,
    command: tuple[str, ...],
    status: int,
    options: tuple[str, ...],
) -> None:
    done = program.run(*options, lock=tmp_path / "lock", command=command)
    assert shell_status(done.returncode) == status
    assert done.stdout == ""


@pytest.mark.parametrize("options", [(), ("-o",)])
def test_status_of_a_command_that_cannot_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "plain").write_text("exit 0\n")
    (tmp_path / "script").write_text("exit $#\n")
    (tmp_path / "script").chmod(0o755)
    for name, status in (
        ("no-such-command-at-all", 127),
        ("./missing", 127),
        ("", 127),
        ("./plain", 126),
        (".", 126),
        ("./script", 2),
    ):
        words = REBASER_LOCK.words(*options, lock="lock", command=(name, "a", "b"))
        environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        done = run(words, cwd=tmp_path, env=environ)
        assert done.returncode == status
        assert (f"cannot execute {name}: " in done.stderr) is (status > 2)


def test_a_string_goes_through_the_users_shell(tmp_path: Path) -> None:
    lock = str(tmp_path / "lock")
    words = [*REBASER, "--file", lock, "-c"]
    assert run([*words, "echo $((6 * 7))"]).stdout == "42\n"
    assert run([*words, "exit 7"]).returncode == 7
    assert run([*words, "true"], env={**os.environ, "SHELL": "/bin/false"}).returncode == 1
    assert run([*words, "true"], env={**os.environ, "SHELL": ""}).returncode == 0
    done = run([*REBASER, "--file", lock, "-snc", 'echo "$0" "$@"'])
    assert done.returncode == 0


@everyone
def test_the_lock_is_held_while_the_command_runs_and_only_then(
    tmp_path: Path, program: Program
) -> None:
    lock = tmp_path / "lock"
    for options in ((), ("-o",)):
        with held(program, *options, lock=lock):
            assert not is_free(lock)
            assert not is_free(lock, "-s")
        assert is_free(lock)
    with held(program, "-s", lock=lock):
        assert not is_free(lock)
        assert is_free(lock, "-s")
    assert is_free(lock)


@ours
def test_the_command_is_the_process(tmp_path: Path, program: Program) -> None:
    words = program.words(lock=tmp_path / "lock", command=("sh", "-c", "echo $$"))
    with started(words) as child:
        assert child.stdout
        assert int(child.stdout.readline()) == child.pid


@ours
def test_the_lock_goes_with_the_command_that_is_killed(tmp_path: Path, program: Program) -> None:
    lock = tmp_path / "lock"
    words = program.words(lock=lock, command=("sh", "-c", "echo ready; exec sleep 1000"))
    with started(words) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        assert not is_free(lock)
        child.kill()
        eventually(lambda: is_free(lock))
        assert child.wait(20) == -signal.SIGKILL


@everyone
def test_the_lock_outlives_the_shell_around_it(tmp_path: Path, program: Program) -> None:
    lock = tmp_path / "lock"
    command = ("sh", "-c", "echo $$; exec sleep 1000")
    shell = ["sh", "-c", '"$@"; true', "sh", *program.words(lock=lock, command=command)]
    with started(shell) as child:
        assert child.stdout
        pid = int(child.stdout.readline())
        child.kill()
        child.wait(20)
        assert not is_free(lock)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: is_free(lock))


@everyone
@pytest.mark.parametrize(("options", "kept"), [((), True), (("-o",), False)])
def test_a_daemon_that_the_command_left_behind(
    tmp_path: Path, program: Program, options: tuple[str, ...], kept: bool
) -> None:
    lock = tmp_path / "lock"
    leave = "sleep 1000 >/dev/null 2>&1 & echo $!"
    done = program.run(*options, lock=lock, command=("sh", "-c", leave))
    try:
        assert is_free(lock) is not kept
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)
    eventually(lambda: is_free(lock))


# Signals with -o.

WAITS = "echo ready; while :; do sleep 0.02; done"


@ours
@pytest.mark.parametrize("name", ["TERM", "HUP"])
def test_a_signal_is_passed_on(tmp_path: Path, program: Program, name: str) -> None:
    lock = tmp_path / "lock"
    number = signal.Signals[f"SIG{name}"]
    for script, status in ((f"trap 'exit 9' {name}; {WAITS}", 9), (WAITS, 128 + number)):
        words = program.words("-o", lock=lock, command=("sh", "-c", script))
        with started(words) as child:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            child.send_signal(number)
            assert child.wait(20) == status
        assert is_free(lock)


@ours
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_the_keyboard_is_the_commands(
    tmp_path: Path, program: Program, number: signal.Signals
) -> None:
    lock = tmp_path / "lock"
    with held(program, "-o", lock=lock) as child:
        child.send_signal(number)
        assert not is_free(lock)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.2)
    # From the terminal it reaches both: the command ends, and with its status we.
    words = program.words("-o", lock=lock, command=("sh", "-c", "trap 'exit 9' INT QUIT; " + WAITS))
    with started(words, start_new_session=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        os.killpg(child.pid, number)
        assert child.wait(20) == 9


@everyone
@pytest.mark.parametrize("options", [(), ("-o",)])
def test_signals_that_the_caller_ignores_stay_ignored(
    tmp_path: Path, program: Program, options: tuple[str, ...]
) -> None:
    words = program.words(
        *options,
        lock=tmp_path / "lock",
        command=("sh", "-c", "kill -HUP $$; kill -INT $$; kill -CHLD $$; echo alive"),
    )
    done = run(["sh", "-c", 'trap "" HUP INT CHLD; exec "$@"', "sh", *words])
    assert (done.stdout, done.returncode) == ("alive\n", 0)


@ours
def test_the_command_starts_with_the_callers_signal_mask(tmp_path: Path, program: Program) -> None:
    tell = "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    for options in ((), ("-o",)):
        command = (sys.executable, "-c", tell)
        assert program.run(*options, lock=tmp_path / "lock", command=command).stdout == "[]\n"


# Which lock.


def tree(path: Path, var: bool = True) -> Path:
    """Make an empty tree."""
    (path / ("var" if var else "lib")).mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("var", "lock"), [(True, "var/lock/rebase.lock"), (False, ".rebaser/rebase.lock")]
)
def test_the_default_is_the_lock_of_the_tree(tmp_path: Path, var: bool, lock: str) -> None:
    root = tree(tmp_path / "root", var)
    busy = f"flock -n {root / lock} true || echo busy"
    named = {**without_a_tree(), "SAGE_LOCAL": str(root)}
    for words, environ in (
        (["--root", str(root)], without_a_tree()),
        ([], named),
        (["--lock-file", str(root / lock)], without_a_tree()),
        ([], {**without_a_tree(), "REBASER_LOCK_FILE": str(root / lock)}),
    ):
        done = run([*REBASER, *words, "--", "sh", "-c", busy], env=environ)
        assert (done.stdout, done.returncode) == ("busy\n", 0)
    done = run([*REBASER, "--name", "pip3", "sh", "-c", busy], env=named)
    assert (done.stdout, done.returncode) == ("", 0)
    assert (root / lock).with_name("pip3.lock").is_file()


@pytest.mark.parametrize("words", [["true"], ["--name", "pip3", "true"], ["-n", "--", "true"]])
def test_no_tree_is_a_usage_error(words: list[str]) -> None:
    done = run([*REBASER, *words], env=without_a_tree())
    assert done.returncode == 64
    assert "SAGE_LOCAL" in done.stderr
    assert "--file" in done.stderr


@needs_flock
def test_a_descriptor(tmp_path: Path) -> None:
    script = (
        'exec 9>L; "$@" --fd 9; echo $?; flock -n L true; echo $?; "$@" -s --fd 9; echo $?;'
        ' flock -sn L true; echo $?; "$@" -u --fd 9; echo $?; flock -n L true; echo $?;'
        ' exec 8>L; flock 8; "$@" -n --fd 9; echo $?; "$@" -E 7 -w 0.02 --fd 9; echo $?'
    )
    done = run(
        ["bash", "-c", script, "bash", *REBASER],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.stdout.split() == ["0", "1", "0", "0", "0", "0", "1", "7"]
    assert "descriptor 8, which this process has from its caller, holds" in done.stderr


USAGE = [
    [],
    ["--"],
    ["-n"],
    ["--bogus", "true"],
    ["-w", "x", "true"],
    ["-w", "-1", "true"],
    ["-w", "nan", "true"],
    ["-w", "inf", "true"],
    ["-w"],
    ["-E", "x", "true"],
    ["-E", "256", "true"],
    ["-E", "-1", "true"],
    ["-u", "true"],
    ["-u"],
    ["--fd", "x"],
    ["--fd", "-1"],
    ["--fd", "99999999999"],
    ["--fd", "0", "true"],
    ["--fd", "0", "-c", "true"],
    ["--fd", "0", "--file", "L"],
    ["--file", "L", "--name", "x", "true"],
    ["--name", "a/b", "true"],
    ["--name", "", "true"],
    ["--name", "..", "true"],
    ["-c", "true", "true"],
    ["-c"],
    ["--root", "/nowhere/at/all", "true"],
    ["--quiet", "--verbose", "true"],
]


@pytest.mark.parametrize("words", USAGE, ids=lambda words: " ".join(words) or "nothing")
def test_usage(tmp_path: Path, words: list[str]) -> None:
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "SAGE_LOCAL": str(tmp_path)}
    done = run([*REBASER, *words], cwd=tmp_path, env=environ)
    assert done.returncode == 64
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert os.listdir(tmp_path) == []


def test_a_lock_file_that_cannot_be_opened_or_locked(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "link").symlink_to("missing")
    os.mkfifo(tmp_path / "fifo")
    for words, status in (
        (["--file", str(tmp_path / "plain/lock"), "true"], 66),
        (["--file", str(tmp_path / "link"), "true"], 66),
        (["--file", str(tmp_path / "fifo"), "true"], 66),
        (["--lock-file", str(tmp_path / "plain/lock"), "true"], 66),
        (["--fd", "99"], 65),
        (["-u", "--fd", "99"], 65),
    ):
        done = run([*REBASER, *words], env=without_a_tree())
        assert done.returncode == status
        assert done.stderr.count("\n") == 1


@needs_flock
def test_a_standard_stream_that_the_caller_closed_is_no_descriptor(tmp_path: Path) -> None:
    """/dev/null stands in for it meanwhile, which must not be what is locked."""
    for stream, closing in ((0, "<&-"), (1, ">&-"), (2, "2>&-")):
        for option in ("-x", "-u"):
            words = ["sh", "-c", f'"$@" {closing}', "sh"]
            done = run([*words, *REBASER, option, "--fd", str(stream)])
            assert done.returncode == 65
            if stream < 2:
                assert f"cannot lock the lock file descriptor {stream}: Bad file" in done.stderr
                assert run([*words, "flock", option, str(stream)]).returncode == 65
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as file:
        assert run([*REBASER, "--fd", "0"], stdin=file).returncode == 0
        assert not is_free(tmp_path / "lock")


# What it says.


@needs_flock
def test_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lo\x1b[2Jck"
    with held(FLOCK, "-s", lock=lock) as holder:
        done = REBASER_LOCK.run("--verbose", "-w", "0.02", lock=lock)
        who = f"{holds('shared')} pid {holder.pid} (flock -s "
        assert done.stderr.splitlines()[0].startswith(
            f"rebaser: waiting for the exclusive lock {tmp_path}/lo\\x1b[2Jck, {who}"
        )
        failed = f"rebaser: could not take the lock {tmp_path}/lo\\x1b[2Jck, {who}"
        assert done.stderr.splitlines()[1].startswith(failed)
        # In a log file, without --verbose, only the failure.
        for option in ("-w0.02", "-n"):
            told = REBASER_LOCK.run(option, lock=lock).stderr
            assert told.startswith(failed)
            assert told.count("\n") == 1
            assert REBASER_LOCK.run(option, "--quiet", lock=lock).stderr == ""


@needs_flock
def test_a_terminal_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    ours, theirs = os.openpty()
    with held(FLOCK, lock=lock):
        words = REBASER_LOCK.words("-w", "0.02", lock=lock, command=("true",))
        assert subprocess.run(words, stderr=theirs, cwd=CHECKOUT).returncode == 1
    told = os.read(ours, 4096).decode()
    os.close(ours)
    os.close(theirs)
    assert f"waiting for the exclusive lock {lock}, {holds()} pid " in told


@ours
def test_a_stderr_that_is_closed_is_no_reason_to_lose_the_lock(
    tmp_path: Path, program: Program
) -> None:
    lock = tmp_path / "lock"
    for closing in ("2>&-", "2>/dev/full"):
        with held(REBASER_LOCK, lock=lock) as holder:
            words = program.words("--verbose", lock=lock, command=("echo", "run"))
            with started(["sh", "-c", f'exec "$@" {closing}', "sh", *words]) as child:
                with pytest.raises(subprocess.TimeoutExpired):
                    child.wait(0.3)
                assert holder.stdin
                holder.stdin.close()
                assert child.stdout
                assert child.stdout.read() == "run\n"
                assert child.wait(20) == 0
    assert lock.read_bytes() == b""


def test_help_tells_every_exit_status() -> None:
    done = run([*REBASER, "--help"])
    assert done.returncode == 0
    for status in ("64", "65", "66", "126", "127", "130"):
        assert status in done.stdout
    assert done.stdout.startswith("usage: rebaser lock [options] [--] COMMAND [ARG ...]\n")


def test_a_free_lock_needs_none_of_the_slow_modules(tmp_path: Path) -> None:
    """They would cost more than all the rest of `rebaser lock`."""
    words = REBASER_LOCK.words(lock=tmp_path / "lock", command=("true",))
    told = run([words[0], "-X", "importtime", *words[1:]]).stderr
    imported = set(re.findall(r"\| +([\w.]+)$", told, re.MULTILINE))
    assert "locks.hold" in imported
    slow = {"fasteners", "dataclasses", "subprocess", "inspect", "rich", "pefile", "pathlib"}
    slow |= {"argparse", "signal"}
    # Before these `python -m` itself imports some of them.
    slow |= {"enum", "re", "typing"} if sys.version_info >= (3, 10) else set()
    slow |= {"collections", "contextlib"} if sys.version_info >= (3, 12) else set()
    assert imported & slow == set()


def test_the_page_for_users_names_every_option() -> None:
    told = (CHECKOUT / "docs/locks.md").read_text(encoding="utf-8")
    helped = run([*REBASER, "--help"]).stdout
    for option in set(re.findall(r"--[a-z][a-z-]+", helped)) - {"--help"}:
        assert option in told, option


def test_only_the_trees_own_folders_are_made(tmp_path: Path) -> None:
    done = REBASER_LOCK.run(lock=tmp_path / "missing/lock")
    assert done.returncode == 66
    assert not (tmp_path / "missing").exists()
    words = [*REBASER_LOCK.start, "--root", str(tmp_path), "--name", "pip", "--", "true"]
    assert subprocess.run(words).returncode == 0
    assert (tmp_path / ".rebaser/pip.lock").exists()


# Runs what is given with signals sent at the moment of the fork: `where` "before" to the process
# alone, "parent" and "child" to either right after it, before it has done anything else.
AT_THE_FORK = """
import os, signal, sys, time
where, number, *words = sys.argv[1:]
if "{mask}" == "no mask" and hasattr(signal, "pthread_sigmask"):
    del signal.pthread_sigmask  # Cygwin's Python has none
real = os.fork
def fork():
    if where == "before":
        os.kill(os.getpid(), int(number))
    pid = real()
    if pid and where == "parent" or not pid and where == "child":
        os.kill(os.getpid(), int(number))
    return pid
os.fork = fork
sys.argv[1:] = words
"""
PROGRAMS = {
    "sage-flock": "from locks.sage_flock import main\nmain()",
    "rebaser lock": "from rebaser.cli import main\nmain(['lock', '--file', *sys.argv[1:]])",
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT"])
@pytest.mark.parametrize("where", ["before", "parent", "child"])
def test_a_signal_at_the_fork_reaches_the_command_once_and_the_parent_lives_on(
    tmp_path: Path, program: str, name: str, where: str
) -> None:
    number = signal.Signals[f"SIG{name}"]
    script = (
        f"trap 'echo came' {name}; echo $PPID; sleep 0.3; flock -n lock true || echo held; exit 7"
    )
    code = AT_THE_FORK.replace("{mask}", "no mask") + PROGRAMS[program]
    order = ["-o", "lock"] if program == "sage-flock" else ["lock", "-o"]
    words = [sys.executable, "-c", code, where, str(int(number)), *order, "sh", "-c", script]
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with started(words, cwd=tmp_path, env=environ) as child:
        assert child.stdout
        told = child.stdout.read().split()
        status = shell_status(child.wait(20))
    # A signal before the command has set its trap ends it: then it was not lost either.
    lost = name in ("INT", "QUIT") and where == "parent"  # the keyboard's: left to the command
    if lost:
        assert (told, status) == ([str(child.pid), "held"], 7)
    else:
        assert (told[:1], status) in (([], 128 + number), ([str(child.pid)], 7))
        assert status != 7 or told[1:] == ["came", "held"]
