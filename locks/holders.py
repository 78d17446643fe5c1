"""Who has a lock file open, and who of them holds the lock, as /proc tells it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from locks.fdinfo import flock_in, read_fdinfo

LONGEST_COMMAND = 80
"""Characters of a command line that are shown."""

NAMED = 3
"""Holders that are named one by one; the others are counted."""


@dataclass(frozen=True)
class Holder:
    """A process that has the lock file open.

    `mode` is "shared" or "exclusive" where its descriptor holds the lock, None where it does not
    or where that cannot be told (Cygwin). `waiting`: it is blocked in flock(2) on this file.
    `command` is its command line, fit to be printed.
    """

    pid: int
    mode: str | None
    waiting: bool
    command: str
    parent: int = 0


def holders(path: str | int) -> list[Holder]:
    """Return the processes that have this file (a path or a descriptor) open, less this process.

    Those that end meanwhile and those that may not be looked into are left out. Raises nothing.
    """
    try:
        wanted = os.stat(path)
    except OSError:
        return []
    waiting = _waiting_pids(wanted.st_ino)
    found = []
    for pid in _pids():
        modes = _modes(pid, wanted)
        if modes and pid != os.getpid():
            mode = next((m for m in ("exclusive", "shared") if m in modes), None)
            found.append(Holder(pid, mode, pid in waiting, _command(pid), parent_of(pid)))
    return found


def describe_holders(path: str | int) -> str:
    """Return a phrase for a message: `held exclusively by pid 123 (sh build numpy)`."""
    known = holders(path)
    holding = [holder for holder in known if holder.mode]
    if holding:
        # flock(2): where one holds it exclusively, nobody else holds it.
        how = "exclusively" if holding[0].mode == "exclusive" else "shared"
        return f"held {how} by {_listed(_first_of_each_family(holding))}"
    if known and sys.platform != "linux":
        return f"which is open in {_listed(_first_of_each_family(known))}"
    return "held by a process that cannot be seen from here"


def _listed(some: list[Holder]) -> str:
    named = [f"pid {holder.pid} ({holder.command})" for holder in some[:NAMED]]
    if len(some) > NAMED:
        named.append(f"{len(some) - NAMED} more")
    return ", ".join(named)


def _first_of_each_family(some: list[Holder]) -> list[Holder]:
    """Leave out those that have the descriptor from a parent that is listed: a build's hundreds."""
    listed = {holder.pid for holder in some}
    return [holder for holder in some if holder.parent not in listed]


def _pids() -> list[int]:
    try:
        return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return []


def _modes(pid: int, wanted: os.stat_result) -> set[str | None]:
    """Return how each descriptor that a process has of the wanted file is locked."""
    folder = f"/proc/{pid}/fd"
    modes = set()
    try:
        descriptors = os.listdir(folder)
    except OSError:
        return set()
    for fd in descriptors:
        try:
            if os.path.samestat(os.stat(f"{folder}/{fd}"), wanted):
                modes.add(flock_in(read_fdinfo(pid, fd) or ""))
        except OSError:
            continue
    return modes


def _waiting_pids(inode: int) -> set[int]:
    """Return who is blocked on a file of this inode, from the `->` lines of Linux's /proc/locks."""
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            return blocked_in(file.read(), inode)
    except OSError:
        return set()


def blocked_in(text: str, inode: int) -> set[int]:
    """Return the process ids of /proc/locks' blocked flock requests on an inode.

    The line is `1: -> FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF` (proc(5)).
    """
    blocked = set()
    for line in text.splitlines():
        words = line.split()
        if words[1:3] != ["->", "FLOCK"] or len(words) < 7 or not words[5].isdecimal():
            continue
        if words[6].rpartition(":")[2] == str(inode):
            blocked.add(int(words[5]))
    return blocked


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return os.fsdecode(file.read())
    except OSError:
        return ""


def _command(pid: int) -> str:
    words = _read(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")
    words[0] = os.path.basename(words[0])
    command = " ".join(words).strip() or "command unknown"
    if len(command) > LONGEST_COMMAND:
        command = command[: LONGEST_COMMAND - 3] + "..."
    return printable(command)


def printable(text: str) -> str:
    r"""Return text from another process with control characters and bad bytes as \xNN."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def parent_of(pid: int) -> int:
    """Return the process that a process is a child of, 0 where that is not known."""
    # `1234 (name) S 1 …`: the name may hold blanks and parentheses (proc(5)).
    words = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(words[1]) if len(words) > 1 and words[1].isdecimal() else 0
