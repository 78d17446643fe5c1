"""Running programs and timing them, turn by turn, so that both sides meet the same machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ended:
    """How a program ended: seconds of wall clock and of processor, the peak of its memory in bytes.

    Of its children only those that it waited for are in `processor` and `peak`.
    """

    status: int
    seconds: float
    processor: float
    peak: int
    out: str = ""


class ProgramFailedError(Exception):
    """A program that is measured ended as it must not."""


def environment(**changes: str) -> dict[str, str]:
    """Return an environment in which nothing steers rebaser, with `changes`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("REBASER_", "PYTHON")) and name != "SAGE_LOCAL"
    }
    return {**kept, **changes}


def rebaser(*words: str | os.PathLike[str]) -> list[str]:
    """Return the command line of the console command, as the pip of today makes it.

    What pip before 26 makes imports `re` first: 3 ms.
    """
    start = "from rebaser.cli import main; main()"
    return [sys.executable, "-c", start, *(os.fspath(word) for word in words)]


def python(script: str, *words: str) -> list[str]:
    """Return the command line of a bare Python script, with the same interpreter."""
    return [sys.executable, "-c", script, *words]


def run(
    words: Sequence[str | os.PathLike[str]],
    *,
    capture: bool = False,
    env: Mapping[str, str] | None = None,
    demand: Sequence[int] = (0,),
) -> Ended:
    """Run a program to its end; its output goes nowhere, or is captured.

    Raises ProgramFailedError where its status is not one of `demand`.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=out if capture else subprocess.DEVNULL,
            stderr=err,
            env=environment() if env is None else env,
        )
        try:
            _, wait_status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - began
        process.returncode = status = os.waitstatus_to_exitcode(wait_status)
        if status not in demand:
            err.seek(0)
            said = err.read().decode(errors="replace").strip()
            raise ProgramFailedError(f"status {status}: {' '.join(map(str, words))}: {said}")
        out.seek(0)
        text = out.read().decode(errors="surrogateescape")
    # Linux gives ru_maxrss in KiB (getrusage(2)).
    return Ended(status, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def report(*words: str | os.PathLike[str]) -> tuple[Ended, Any]:
    """Run `rebaser run … --json`; return how it ended and its report."""
    ended = run(rebaser("run", *words, "--json"), capture=True)
    return ended, json.loads(ended.out)


@dataclass(frozen=True)
class Times:
    """The seconds that one contestant took, round by round: of the clock, and of the processor."""

    all: tuple[float, ...]
    processors: tuple[float, ...] = ()

    @property
    def best(self) -> float:
        """The shortest: what others do on the machine only ever adds."""
        return min(self.all)

    @property
    def median(self) -> float:
        """The one in the middle."""
        return median(self.all)

    @property
    def processor(self) -> float:
        """The median of the processor's time, which other programs hardly add to."""
        return median(self.processors)


# ext4 gives a freed inode out again only after five seconds, and until then looks for another one
# at each file that is made (fs/ext4/ialloc.c, recently_deleted): what a round removed slows down
# the next tenfold.
PAUSE = 6  # seconds


def by_turns(
    rounds: int, pause: float = 0, **contestants: Callable[[], float | Ended]
) -> dict[str, Times]:
    """Let each contestant return how it ended, or its seconds, once a round: A B C, A B C, …

    Each waits for `pause` seconds first.
    """
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            time.sleep(pause)
            ended = contestant()
            if isinstance(ended, Ended):
                processor[name].append(ended.processor)
                ended = ended.seconds
            taken[name].append(ended)
    return {name: Times(tuple(taken[name]), tuple(processor[name])) for name in contestants}


def timed(words: Sequence[str | os.PathLike[str]]) -> Callable[[], Ended]:
    """Return a contestant that runs a program."""
    return lambda: run(words)


def sync(folder: Path) -> None:
    """Wait until what was written before is on the disk, so that nobody pays for the set-up."""
    run(["sync", "-f", folder])
