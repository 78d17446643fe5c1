"""The programs that lock, as the tests start them: flock(1), sage-flock and `rebaser lock`."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A shell that starts the tests in the background makes them, and all that they start, ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

CHECKOUT = Path(__file__).resolve().parents[2]
A_WHILE = 60 if sys.platform == "linux" else 240
"""Seconds after which a process that should have ended is in a deadlock."""


@dataclass(frozen=True)
class Program:
    """One of the programs: how its command line is made."""

    name: str
    start: tuple[str, ...]
    before_lock: tuple[str, ...] = ()
    before_descriptor: tuple[str, ...] = ()

    def words(self, *options: str, lock: str | Path, command: tuple[str, ...]) -> list[str]:
        """Return the words that run a command under a lock."""
        return [*self.start, *options, *self.before_lock, str(lock), *command]

    def on_descriptor(self, *options: str, descriptor: int) -> list[str]:
        """Return the words that lock a descriptor."""
        return [*self.start, *options, *self.before_descriptor, str(descriptor)]

    def run(
        self, *options: str, lock: str | Path, command: tuple[str, ...] = ("true",)
    ) -> subprocess.CompletedProcess[str]:
        """Run a command under a lock to its end."""
        return run(self.words(*options, lock=lock, command=command))


FLOCK = Program("flock(1)", ("flock",))
SAGE_FLOCK = Program(
    "sage-flock",
    (
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from locks.sage_flock import main; main()",
    ),
)
REBASER_LOCK = Program(
    "rebaser lock", (sys.executable, "-m", "rebaser", "lock"), ("--file",), ("--fd",)
)
OURS = (SAGE_FLOCK, REBASER_LOCK)
ALL = (FLOCK, SAGE_FLOCK, REBASER_LOCK)


def _is_util_linux() -> bool:
    found = shutil.which("flock")
    if not found:
        return False
    told = subprocess.run([found, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return b"util-linux" in told.stdout


needs_flock = pytest.mark.skipif(
    not _is_util_linux(), reason="needs util-linux's flock(1): install util-linux"
)


def run(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, its output taken as text."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        words,
        **{
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "timeout": A_WHILE,
            "cwd": str(CHECKOUT),
            **options,
        },
    )


def shell_status(returncode: int) -> int:
    """Return a status as a shell shows it: 128 + N after signal N."""
    return 128 - returncode if returncode < 0 else returncode


@contextlib.contextmanager
def started(words: list[str], **options: object) -> Iterator[subprocess.Popen[str]]:
    """Start a program and read its first line; kill it at the end if it still runs."""
    child = subprocess.Popen(  # type: ignore[call-overload]
        words,
        **{
            "stdin": subprocess.PIPE,
            "stdout": subprocess.PIPE,
            "text": True,
            "cwd": str(CHECKOUT),
            **options,
        },
    )
    try:
        yield child
    finally:
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe:
                pipe.close()
        child.wait(A_WHILE)


# Says that it runs, and goes on until its standard input ends.
UNTIL_END = ("sh", "-c", "echo ready; read line || :")


@contextlib.contextmanager
def held(program: Program, *options: str, lock: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Hold a lock by a program for the length of the block."""
    with started(program.words(*options, lock=lock, command=UNTIL_END)) as child:
        assert child.stdout.readline() == "ready\n"
        yield child
        child.stdin.close()
        assert child.wait(A_WHILE) == 0


def is_free(lock: str | Path, mode: str = "-x") -> bool:
    """Tell whether flock(1) could have the lock now."""
    return run(["flock", mode, "-n", str(lock), "true"]).returncode == 0


def eventually(true: Callable[[], object]) -> None:
    """Wait until something is so, and fail when it never is."""
    end = time.monotonic() + A_WHILE
    while not true():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)


def holds(mode: str = "exclusively") -> str:
    """Return how a message says who has a lock: without fdinfo it is known who has it open."""
    return f"held {mode} by" if os.path.isdir("/proc/self/fdinfo") else "open in"
