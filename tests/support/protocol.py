"""What the tests of the lock protocol share: programs on PATH, scripts, runs that wait."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lock_programs import A_WHILE, eventually
from trees import HERE, Rebaser, Result, clean_environment

from rebaser.files import on_cygwin

_PROGRAMS = {
    "sage-flock": ("-c", "from locks.sage_flock import main; main()"),
    "sage-rebase": ("-c", "from rebaser.sage_rebase import main; main()"),
    "sage-rebase.sh": ("-c", "from rebaser.sage_rebase import main; main()"),
    "rebaser": ("-m", "rebaser"),
}


def make_programs(folder: Path) -> Path:
    """Make a folder for PATH with the programs, run by this Python rather than that of .venv."""
    folder.mkdir()
    for name, (option, what) in _PROGRAMS.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\nexec '{sys.executable}' {option} '{what}' \"$@\"\n")
        program.chmod(0o755)
    return folder


def lock_file(root: Path) -> Path:
    """Return the lock of a tree with a `var` folder, made if it is missing."""
    path = root / "var/lock/rebase.lock"
    path.parent.mkdir(exist_ok=True)
    path.touch()
    return path


def made_a_tree(root: Path) -> None:
    """Make what says that a run of rebaser has made this folder a tree."""
    (root / "var/lib/rebaser/runs").mkdir(parents=True)


class Shell:
    """Runs scripts with the programs on PATH; a script that hangs fails the test.

    bash, as SageMath's are: sh need not know descriptors above 9.
    """

    def __init__(self, programs: Path) -> None:
        self.path = f"{programs}{os.pathsep}{os.environ['PATH']}"

    def environment(self, **changes: str) -> dict[str, str]:
        """Return the environment of a script."""
        return clean_environment(PATH=self.path, **changes)

    def start(self, script: str, *words: object, **changes: str) -> subprocess.Popen[str]:
        """Start a script; `words` are its $1, $2 … and `changes` are of the environment."""
        return subprocess.Popen(
            ["bash", "-c", script, "bash", *map(str, words)],
            env=self.environment(**changes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=str(HERE),
            start_new_session=True,
        )

    def __call__(self, script: str, *words: object, **changes: str) -> Result:
        """Run a script to its end."""
        return finished(self.start(script, *words, **changes))


@pytest.fixture(scope="session")
def sh(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Return a shell that finds sage-flock, sage-rebase and rebaser."""
    return Shell(make_programs(tmp_path_factory.mktemp("on-path") / "bin"))


def finished(child: subprocess.Popen[str], timeout: float = A_WHILE) -> Result:
    """Wait for a process to end; kill it, with its children if it leads a session, if it hangs."""
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(child.pid) == child.pid:
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        out, err = child.communicate()
        raise AssertionError(f"it hangs; until then it said\n{out}{err}") from None
    assert "this is a bug" not in err, err
    return Result(child.returncode, out, err)


@contextlib.contextmanager
def held_here(path: Path, operation: int) -> Iterator[int]:
    """Hold a lock in this very process; yield its descriptor."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, operation | fcntl.LOCK_NB)
        yield descriptor
    finally:
        os.close(descriptor)


def first_line(child: subprocess.Popen[str]) -> str:
    """Return the next line that a process says on stderr."""
    assert child.stderr is not None
    return child.stderr.readline()


def stop(child: subprocess.Popen[str]) -> None:
    """Stop a process, and wait until it has stopped: woken before that, it may take the lock."""
    if on_cygwin():
        time.sleep(0.1)  # stopped as flock(2) begins, it lets nobody have that file: docs/locks.md
    child.send_signal(signal.SIGSTOP)
    _, status = os.waitpid(child.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "it has ended already"


@contextlib.contextmanager
def asked_before(
    rebaser: Rebaser, root: Path, *words: str | os.PathLike[str], **options: Any
) -> Iterator[Callable[[], Result]]:
    """Start a run that finds work and waits; what happens in the block happens after it was asked.

    Yields what lets it go on and waits for its end. Meanwhile the lock is free.
    """
    with held_here(lock_file(root), fcntl.LOCK_SH):
        child = rebaser.start("run", *words, "--json", **options)
        try:
            said = first_line(child)
            assert "waiting for the lock" in said, said
        except BaseException:
            child.kill()
            finished(child)
            raise
        # Stopped, it is in no queue for the lock: whoever comes meanwhile is before it.
        stop(child)

    def go_on() -> Result:
        child.send_signal(signal.SIGCONT)
        return finished(child)

    try:
        yield go_on
    finally:
        if child.poll() is None:
            child.kill()
            finished(child)


@contextlib.contextmanager
def stopped_at_work(
    rebaser: Rebaser, root: Path, *words: str | os.PathLike[str]
) -> Iterator[subprocess.Popen[str]]:
    """Start a run and stop it (SIGSTOP) after its record was written and before it has ended."""
    records = root / "var/lib/rebaser/runs"
    known = set(os.listdir(records)) if records.exists() else set()
    child = rebaser.start("run", *words, "--json")
    try:
        eventually(lambda: records.exists() and set(os.listdir(records)) - known)
        stop(child)
        (new,) = set(os.listdir(records)) - known
        eventually(lambda: (records / new).stat().st_size)
        assert json.loads((records / new).read_bytes())["finished"] is None, "it was too quick"
        yield child
    finally:
        if child.poll() is None:
            child.kill()
            finished(child)
