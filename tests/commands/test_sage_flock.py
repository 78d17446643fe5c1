"""sage-flock beside flock(1): every option and exit code, run side by side."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lock_programs import (
    CHECKOUT,
    FLOCK,
    SAGE_FLOCK,
    eventually,
    held,
    holds,
    is_free,
    needs_flock,
    run,
    shell_status,
    started,
)

from locks.holders import holders
from locks.sage_flock import UsageError, parsed

pytestmark = needs_flock

# Words after the program's name. L is a lock file in an empty folder, D a folder in it, `missing`
# nothing, `plain` a file without the x bit, `script` an executable without `#!`.
FREE = [
    # No or wrong arguments.
    "",
    "L",
    "-n",
    "--bogus L true",
    "-q L true",
    "-c true L",
    "-o -F L true",
    "-F --close L true",
    "L -c",
    "L -c true true",
    "L --command",
    "-w",
    "-w x L true",
    "-w 5s L true",
    "-w -1 L true",
    "-w inf L true",
    "-w nan L true",
    "-w 99999999999999999999 L true",
    "-E",
    "-E x L true",
    "-E 256 L true",
    "-E -1 L true",
    "-E 0x5 L true",
    "--conflict-exit-code= L true",
    "--shared=yes L true",
    "--n L true",
    # Descriptors.
    "x9",
    "9x",
    "1.5",
    "99",
    "-- -1",
    "-1",
    "2147483648",
    "-u 99",
    "-s 0",
    "-x 0",
    "-u 0",
    "-n 0",
    "-w 1 0",
    "-o 0",
    # Every option, short, long, begun, joined.
    "L true",
    "-s L true",
    "--shared L true",
    "-x L true",
    "-e L true",
    "--exclusive L true",
    "-u L true",
    "--unlock L true",
    "-n L true",
    "--nb L true",
    "--nonblock L true",
    "--nonblocking L true",
    "-w 5 L true",
    "-w5 L true",
    "-w 0 L true",
    "-w 0.5 L true",
    "-w 1e1 L true",
    "--wait 5 L true",
    "--timeout=5 L true",
    "--time 5 L true",
    "-E 0 L true",
    "-E255 L true",
    "-E +5 L true",
    "--conflict-exit-code 9 L true",
    "--conf=9 L true",
    "-o L true",
    "--close L true",
    "-F L true",
    "--no-fork L true",
    "--verbose L true",
    "--sha --verb --excl L true",
    "-sn L true",
    "-xnw5 L true",
    "-snoE9 L true",
    "-oF L true",
    "-h",
    "--help",
    "-V",
    "--version",
    "-h --bogus",
    "-- L true",
    "-s -- L true",
    # The command.
    "L false",
    "L sh -c 'exit 7'",
    "L sh -c 'exit 300'",
    "L -c 'exit 7'",
    "L --command 'exit 7'",
    "L -c 'exit $((3 + 4))'",
    "-o L -c 'exit 7'",
    "L true -n",
    "L -- true",
    "L missing",
    "L ./missing",
    "-o L ./missing",
    "L ./plain",
    "-o L ./plain",
    "L ./plain/true",
    "L ./D",
    "L ./script a 'b  c'",
    "-o L ./script a 'b  c'",
    "L ''",
    "L sh -c 'kill -PIPE $$'",
    "L -c 'kill -PIPE $$'",
    "L sh -c 'kill -XFSZ $$'",
    "L sh -c 'kill -TERM $$'",
    "L sh -c 'kill -KILL $$'",
    "-F L sh -c 'kill -KILL $$'",
    "-o L sh -c 'kill -TERM $$'",
    "-o L sh -c 'kill -PIPE $$'",
    "-o L sh -c 'kill -INT $$'",
    # The lock.
    "D true",
    "-s D true",
    ". true",
    "/dev/null true",
    "plain true",
    "3 true",
    "'' true",
    "plain/L true",
    "D/ true",
]


def folder_for_a_case(path: Path) -> Path:
    """Make the folder that the cases run in."""
    (path / "D").mkdir(parents=True)
    (path / "plain").write_text("exit 0\n")
    (path / "script").write_text('[ "$*" = "a b  c" ] && exit 3\n')
    (path / "script").chmod(0o755)
    return path


def status(words: list[str], case: str, folder: Path) -> int:
    """Return the status of a case as a shell has it; standard input is the file `D/in`."""
    script = f'exec "$@" {case} <D/in'
    (folder / "D/in").touch()
    return shell_status(run(["sh", "-c", script, "sh", *words], cwd=folder).returncode)


@pytest.mark.parametrize("case", FREE)
def test_status_of_a_free_lock(tmp_path: Path, case: str) -> None:
    ours = status([*SAGE_FLOCK.start], case, folder_for_a_case(tmp_path / "ours"))
    theirs = status(["flock"], case, folder_for_a_case(tmp_path / "theirs"))
    assert ours == theirs
    # And neither made a file that the other did not.
    assert sorted(os.listdir(tmp_path / "ours")) == sorted(os.listdir(tmp_path / "theirs"))


BUSY = [
    "-n L true",
    "-nx L true",
    "-sn L true",
    "-w 0.05 L true",
    "-s -w 0.05 L true",
    "-w 0 L true",
    "-n -w 9 L true",
    "-n -E 9 L true",
    "-nE0 L true",
    "-E 255 -w 0.05 L true",
    "-nE9 L missing",
    "-no L true",
    "-nF L true",
    "-n --verbose L true",
    "-u L true",
    "-n L -c 'exit 7'",
    "-w nan L true",
    "-n ../lock true",
]


@pytest.mark.parametrize("case", BUSY)
@pytest.mark.parametrize("mode", ["-s", "-x"])
def test_status_of_a_held_lock(tmp_path: Path, case: str, mode: str) -> None:
    folder = folder_for_a_case(tmp_path / "folder")
    with held(FLOCK, mode, lock=folder / "L"):
        (tmp_path / "lock").touch()
        ours = status([*SAGE_FLOCK.start], case, folder)
        assert ours == status(["flock"], case, folder)


@pytest.mark.parametrize("case", ["-n L true", "-sn L true", "-n D/in true", "-n D true"])
def test_status_when_our_own_caller_holds_it(tmp_path: Path, case: str) -> None:
    folder = folder_for_a_case(tmp_path / "folder")
    outer = ["flock", "L", "flock", "D", "flock", "D/in"]
    ours = status([*outer, *SAGE_FLOCK.start], case, folder)
    assert ours == status([*outer, "flock"], case, folder) == 1


DESCRIPTOR_SCRIPTS = [
    'exec 9>L; "$@" 9; flock -n L true; echo $?; flock -sn L true; echo $?',
    'exec 9>L; "$@" -s 9; flock -n L true; echo $?; flock -sn L true; echo $?',
    'exec 9>L; "$@" 9; "$@" -u 9; flock -n L true; echo $?',
    'exec 9>L; "$@" 9; "$@" -s 9; flock -n L true; echo $?; flock -sn L true; echo $?',
    'exec 9>L; "$@" 9; "$@" -n 9; echo $?; exec 9>&-; flock -n L true; echo $?',
    'exec 9>L 8>L; "$@" 9; "$@" -n 8; echo $?; "$@" -E 7 -w 0.05 8; echo $?',
    'exec 9>L 8>L; "$@" -s 9; "$@" -s 8; echo $?; "$@" -xn 8; echo $?; "$@" -sn 9; echo $?',
    'exec 9<D; "$@" 9; flock -n D true; echo $?',
    'exec 9>L; (exec 9>&-; "$@" 9; echo $?)',
    '("$@" -n 9 || exit 4; flock -n L true; echo $?) 9>L; flock -n L true; echo $?',
    'exec 9>L; "$@" 9; "$@" -n 9 true; echo $?; ls',
    # As SageMath's sage-spkg does it.
    'exec 9>D/L; "$@" -s 9; "$@" -s D/L true; echo $?; "$@" -u 9; "$@" -x D/L echo rebase',
]


@pytest.mark.parametrize("script", DESCRIPTOR_SCRIPTS)
def test_descriptors(tmp_path: Path, script: str) -> None:
    done = [
        run(
            ["bash", "-c", script, "bash", *words],
            cwd=folder_for_a_case(tmp_path / name),
        )
        for name, words in (("ours", [*SAGE_FLOCK.start]), ("theirs", ["flock"]))
    ]
    assert done[0].stdout == done[1].stdout
    assert done[0].returncode == done[1].returncode


OPTIONS = st.sampled_from(
    [
        *("-s", "-x", "-e", "-u", "-n", "-o", "-F", "-sn", "-xo", "-nF", "--shared", "--n", "--no"),
        *("--unl", "--c", "--cl", "--co", "-w", "-w0", "-w0.01", "-nw", "--wait", "--wa=0", "-E"),
        *("-E7", "--conf", "--conf=7", "0", "7", "--", "-", "-h", "-V", "--ver", "--verb", "-Z"),
        *("--verbose=1", "--timeout=", "", "L", "true", "-c"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(words=st.lists(OPTIONS, max_size=5))
def test_any_words_mean_the_same_to_both(
    tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    # Parsed here and by flock(1), whose usage errors are the only 64: what is run is only `true`.
    try:
        options, operands = parsed(words)
        usage_error = False
    except UsageError:
        usage_error = True
    else:
        usage_error = not {"-h", "-V"} & options.keys() and (
            {"-o", "-F"} <= options.keys()
            or not operands
            or (len(operands) == 1 and not operands[0].isdigit())
            or (operands[1:2] == ["-c"] and len(operands) != 3)
        )
    folder = tmp_path_factory.mktemp("words")
    assert (run(["flock", *words], cwd=folder).returncode == 64) == usage_error


@given(st.lists(st.text(max_size=8), max_size=5))
def test_any_words_at_all_are_understood_or_refused(words: list[str]) -> None:
    try:
        _, operands = parsed(words)
    except UsageError:
        return
    assert not operands or words[-len(operands) :] == operands


def test_missing_folders_are_made(tmp_path: Path) -> None:
    lock = tmp_path / "var/lock/rebase.lock"
    assert FLOCK.run(lock=lock).returncode == 66
    assert SAGE_FLOCK.run(lock=lock).returncode == 0
    assert lock.is_file()


def test_what_sage_math_is_told_of_a_wait(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    command = ("echo", "a\x1b[2J", "b")
    for options in ((), ("-x",), ("--exclusive",), ("-s", "-x")):
        with held(FLOCK, "-s", lock=lock) as holder:
            words = SAGE_FLOCK.words(*options, lock=lock, command=command)
            with started(words, stderr=subprocess.PIPE) as child:
                assert child.stderr
                said = "Waiting for exclusive lock to run echo a\\x1b[2J b ... "
                assert child.stderr.read(len(said)) == said
                assert holder.stdin
                holder.stdin.close()
                assert child.stderr.read() == "ok\n"
                assert child.wait(20) == 0
    assert SAGE_FLOCK.run(lock=lock).stderr == ""


BESIDES = [
    *("-n", "-w0.02", "-nE7", "-e -w 0.02", "--timeout=0.02", "--nb", "-s -w 0.02", "-xn"),
    *("-ow0.02", "-Fw0.02", "--wait 0.02 --exclusive"),
]


@pytest.mark.parametrize("options", BESIDES)
def test_with_an_option_of_flock_1_it_is_as_silent(tmp_path: Path, options: str) -> None:
    lock = str(tmp_path / "lock")
    with held(FLOCK, lock=lock):
        for command in (("true",), ("-c", "true")):
            ours, theirs = (
                program.run(*options.split(), lock=lock, command=command)
                for program in (SAGE_FLOCK, FLOCK)
            )
            assert (ours.returncode, ours.stdout, ours.stderr) == (
                theirs.returncode,
                theirs.stdout,
                theirs.stderr,
            )


def test_a_string_for_the_shell_is_flock_1s_and_waits_in_silence(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(FLOCK, lock=lock) as holder:
        words = SAGE_FLOCK.words(lock=lock, command=("-c", "echo run"))
        with started(words, stderr=subprocess.PIPE) as child:
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.3)
            assert holder.stdin
            holder.stdin.close()
            assert child.stdout
            assert child.stderr
            assert (child.stdout.read(), child.stderr.read()) == ("run\n", "")


def test_what_it_says_when_asked_to_be_verbose(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with held(FLOCK, "-s", lock=lock) as holder:
        words = SAGE_FLOCK.words("--verbose", lock=lock, command=("echo", "a"))
        with started(words, stderr=subprocess.PIPE) as child:
            assert child.stderr
            assert child.stderr.readline().startswith(
                f"sage-flock: {lock} is {holds('shared')} pid {holder.pid} (flock -s "
            )
            assert holder.stdin
            holder.stdin.close()
            assert child.stderr.read() == "sage-flock: executing echo\n"
            assert child.wait(20) == 0
    with held(FLOCK, lock=lock):
        done = SAGE_FLOCK.run("-n", "--verbose", lock=lock)
        assert done.stderr == f"sage-flock: could not take the lock {lock}\n"


def test_a_wait_for_our_own_caller_is_called_so(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    words = SAGE_FLOCK.words("--verbose", "-w", "0.02", lock=lock, command=("true",))
    done = run(["flock", str(lock), *words])
    assert done.returncode == 1
    assert "which this process has from its caller, holds this lock exclusive" in done.stderr
    with held(FLOCK, lock=lock):
        assert "from its caller" not in run(words).stderr
    # And on SageMath's own command line.
    words = ["flock", str(lock), *SAGE_FLOCK.words("-s", lock=lock, command=("true",))]
    with started(words, stderr=subprocess.PIPE) as child:
        assert child.stderr
        assert "which this process has from its caller, holds this" in child.stderr.readline()


def test_help_names_every_option() -> None:
    from locks.sage_flock import LONG, SHORT

    told = run([*SAGE_FLOCK.start, "--help"]).stdout
    assert all(f"-{letter}" in told for letter in SHORT.replace(":", ""))
    assert all(f"--{name.rstrip('=')}"[:10] in told for name in LONG if name != "nb")


# The program in a checkout.

POISONED = {"http_proxy": "http://192.0.2.5:5187/", "https_proxy": "http://192.0.2.5:5187/"}


def fresh_checkout(path: Path) -> Path:
    """Copy what sage-flock needs of this checkout; there is no .venv."""
    (path / "bin").mkdir(parents=True)
    shutil.copy(CHECKOUT / "bin/sage-flock", path / "bin")
    shutil.copytree(CHECKOUT / "locks", path / "locks")
    return path


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which `python3` is the Python of these tests."""
    return {**os.environ, **POISONED, "REBASER_PYTHON": sys.executable, **more}


def test_it_runs_from_a_fresh_checkout_without_a_virtual_environment(tmp_path: Path) -> None:
    checkout = fresh_checkout(tmp_path / "a checkout")
    lock = tmp_path / "lock"
    # In a folder with modules that must not be taken for the library's.
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("fcntl.py", "enum.py", "locks.py", "signal.py"):
        (folder / name).write_text("raise SystemExit(55)")
    program = str(checkout / "bin/sage-flock")
    script = f'flock -n "{lock}" true; echo $?'
    environ = environment(PYTHONPATH=str(folder), PYTHONHOME="/nowhere")
    done = run([program, str(lock), "sh", "-c", script], cwd=folder, env=environ)
    assert (done.stdout, done.stderr, done.returncode) == ("1\n", "", 0)
    assert sorted(os.listdir(checkout)) == ["bin", "locks"]


def test_it_runs_through_a_symbolic_link(tmp_path: Path) -> None:
    checkout = fresh_checkout(tmp_path / "checkout")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sage-flock").symlink_to("../checkout/bin/sage-flock")
    environ = environment(PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert run(["sage-flock", "L", "sh", "-c", "exit 5"], env=environ, cwd=tmp_path).returncode == 5
    script = ["sh", "sage-flock", "L", "sh", "-c", "exit 5"]
    assert run(script, env=environ, cwd=checkout / "bin").returncode == 5


def test_a_wait_with_a_time_out_needs_nothing_but_the_standard_library(tmp_path: Path) -> None:
    checkout = fresh_checkout(tmp_path / "checkout")
    make_venv = checkout / "bin/make-venv"
    make_venv.write_text(f"#!/bin/sh\ntouch {tmp_path}/made\n")
    make_venv.chmod(0o755)
    lock = str(tmp_path / "lock")
    timed = [str(checkout / "bin/sage-flock"), "-w", "0.2", "-E", "9", lock, "true"]
    assert run(timed, env=environment()).returncode == 0
    with held(FLOCK, lock=lock) as holder:
        began = time.monotonic()
        done = run(timed, env=environment())
        assert (done.returncode, done.stdout, done.stderr) == (9, "", "")
        assert time.monotonic() - began >= 0.2
        with started([*timed[:2], "60", lock, "echo", "run"], env=environment()) as child:
            eventually(lambda: len(holders(lock)) == 3)  # flock(1), its sh, and ours
            assert holder.stdin
            holder.stdin.close()
            assert child.stdout
            assert child.stdout.read() == "run\n"
    assert not (tmp_path / "made").exists()
    assert not (checkout / ".venv").exists()


def test_a_python_without_fcntl_is_named(tmp_path: Path) -> None:
    checkout = fresh_checkout(tmp_path / "checkout")
    (checkout / "fcntl.py").write_text("raise ModuleNotFoundError(name='fcntl')")
    done = run([str(checkout / "bin/sage-flock"), "L", "true"], env=environment(), cwd=tmp_path)
    assert done.returncode == 71
    assert "native Windows Python" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "L").exists()


def test_sage_math_holds_its_lock_while_the_command_runs(tmp_path: Path) -> None:
    """The drop-in cures what its model has: a lock that is gone when the command starts."""
    lock = tmp_path / "var/lock/rebase.lock"
    program = str(CHECKOUT / "bin/sage-flock")
    command = ["sh", "-c", "echo ready; read line || :"]
    with started([program, "-x", str(lock), *command]) as child:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        assert not is_free(lock)
        assert child.stdin
        child.stdin.close()
        assert child.wait(20) == 0
    eventually(lambda: is_free(lock))
