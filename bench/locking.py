"""The lock and the start: what they cost beside flock(1) and a bare Python script."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from bench.measure import by_turns, environment, python, rebaser, timed
from bench.session import Session
from bench.table import Row, milliseconds

SCRIPT = (
    "import fcntl, os, sys\n"
    "lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
    "os.set_inheritable(lock, True)\n"
    "fcntl.flock(lock, fcntl.LOCK_EX)\n"
    "os.execvp(sys.argv[2], sys.argv[2:])\n"
)
ALLOWED = 0.015  # seconds


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows of starts and of handing over a lock."""
    session.say("starts")
    lock = session.scratch / "some.lock"
    lock.touch()
    rounds = 2 * session.sizes.rounds
    contestants = {
        "version": timed(rebaser("--version")),
        "bare_version": timed(python("print('rebaser 0')")),
        "lock": timed(rebaser("lock", "--file", lock, "--", "true")),
        "bare_lock": timed(python(SCRIPT, str(lock), "true")),
    }
    if shutil.which("flock"):
        contestants["flock"] = timed(["flock", lock, "true"])
    times = by_turns(rounds, **contestants)
    flock = f", flock(1) {milliseconds(times['flock'].processor)}" if "flock" in times else ""
    for what, ours, bare, rest in (
        ("`rebaser --version`", "version", "bare_version", ""),
        ("`rebaser lock -- true`", "lock", "bare_lock", flock),
    ):
        more = times[ours].processor - times[bare].processor
        wall = times[ours].median - times[bare].median
        yield Row(
            what,
            "bare Python doing the same",
            f"+ {milliseconds(more)} of processor (wall + {milliseconds(wall)}): "
            f"{milliseconds(times[ours].processor)} against "
            f"{milliseconds(times[bare].processor)}{rest}",
            f"+ ≤ {milliseconds(ALLOWED)}",
            more <= ALLOWED,
        )
    yield _hand_over(session, lock)


def _hand_over(session: Session, lock: Path) -> Row:
    session.say("handing over a lock")
    contestants = {
        "ours": lambda: _handed_over(rebaser("lock", "--file", lock, "--"), lock),
        "bare": lambda: _handed_over(python(SCRIPT, str(lock)), lock),
    }
    if shutil.which("flock"):
        contestants["flock"] = lambda: _handed_over(["flock", str(lock)], lock)
    times = by_turns(session.sizes.rounds, **contestants)
    flock = f", flock(1) {milliseconds(times['flock'].best)}" if "flock" in times else ""
    return Row(
        "hand-over: from release to the start of the next holder's command",
        "bare Python and flock(1)",
        f"{milliseconds(times['ours'].best)} (median {milliseconds(times['ours'].median)}), bare "
        f"{milliseconds(times['bare'].best)}{flock}",
        f"+ ≤ {milliseconds(ALLOWED)}",
        times["ours"].best - times["bare"].best <= ALLOWED,
    )


def _handed_over(locked: list[str], lock: Path) -> float:
    """Hold the lock until a program waits for it, let go, and see when its command began."""
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        waiter = subprocess.Popen(
            [*locked, "date", "+%s%N"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment(),
        )
        _until_it_waits(waiter.pid)
        released = time.time_ns()
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        out, _ = waiter.communicate(timeout=60)
        return (int(out) - released) / 1e9
    finally:
        os.close(descriptor)


def _until_it_waits(pid: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        # 1: -> FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF   (proc_locks(5); -> is a waiter)
        lines = Path("/proc/locks").read_text().splitlines()
        if any(f" {pid} " in line for line in lines if "->" in line):
            time.sleep(0.02)
            return
        time.sleep(0.005)
    raise TimeoutError(f"process {pid} does not wait for the lock")
