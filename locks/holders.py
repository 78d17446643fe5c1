"""Who has a lock file open, and who of them holds the lock, as /proc tells it (proc(5))."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import NamedTuple

LONGEST_COMMAND = 80  # characters of a command line that are shown
NAMED = 3  # holders that are named one by one; the others are counted


class Holder(NamedTuple):
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
    waiting = blocked_in(_read("/proc/locks"), wanted.st_ino)
    found = []
    for pid in sorted(int(name) for name in _listed("/proc") if name.isdigit()):
        modes = _modes(pid, wanted) if pid != os.getpid() else set()
        if modes:
            mode = next((m for m in ("exclusive", "shared") if m in modes), None)
            found.append(Holder(pid, mode, pid in waiting, _command(pid), parent_of(pid)))
    return found


def describe_holders(path: str | int) -> str:
    """Return a phrase that goes after "the lock is": `held exclusively by pid 123 (sh build)`."""
    known = holders(path)
    holding = [holder for holder in known if holder.mode]
    if holding:
        # flock(2): where one holds it exclusively, nobody else holds it.
        how = "exclusively" if holding[0].mode == "exclusive" else "shared"
        return f"held {how} by {_named(holding)}"
    if known and sys.platform != "linux":
        return f"open in {_named(known)}"
    return "held by a process that cannot be seen from here"


def _named(some: list[Holder]) -> str:
    """Name the first of each family: a build's hundreds have the descriptor from their parents."""
    listed = {holder.pid for holder in some}
    first = [holder for holder in some if holder.parent not in listed]
    named = [f"pid {holder.pid} ({holder.command})" for holder in first[:NAMED]]
    if len(first) > NAMED:
        named.append(f"{len(first) - NAMED} more")
    return ", ".join(named)


def _modes(pid: int, wanted: os.stat_result) -> set[str | None]:
    modes = set()
    for fd in _listed(f"/proc/{pid}/fd"):
        with suppress(OSError):
            if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), wanted):
                modes.add(flock_in(_read(f"/proc/{pid}/fdinfo/{fd}")))
    return modes


def flock_in(fdinfo: str) -> str | None:
    """Return "shared" or "exclusive" where the text of /proc/PID/fdinfo/FD has an flock(2).

    The line is `lock:  1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; locks of other kinds
    (POSIX, OFDLCK, LEASE) have such lines too, and a blocked request has none.
    """
    found = re.search(r"(?m)^lock:[ \t]+\S+ +FLOCK +\S+ +(READ|WRITE) ", fdinfo)
    return {"READ": "shared", "WRITE": "exclusive"}[found[1]] if found else None


def blocked_in(locks: str, inode: int) -> set[int]:
    """Return the process ids of /proc/locks' blocked flock requests on an inode.

    The line is `1: -> FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`.
    """
    request = rf"(?m)^\S+ +-> FLOCK +\S+ +\S+ +([0-9]+) \S+:{inode} "
    return set(map(int, re.findall(request, locks)))


def _listed(folder: str) -> list[str]:
    with suppress(OSError):
        return os.listdir(folder)
    return []


def _read(path: str) -> str:
    with suppress(OSError), open(path, "rb") as file:
        return os.fsdecode(file.read())
    return ""


def words_of(pid: int) -> list[str]:
    """Return the command line of a process, [""] where that is not known."""
    return _read(f"/proc/{pid}/cmdline").rstrip("\0").split("\0")


def _command(pid: int) -> str:
    words = words_of(pid)
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


def ancestors() -> set[int]:
    """Return our parent and its parents, as far as /proc tells them."""
    found: set[int] = set()
    pid = os.getppid()
    while pid > 0 and pid not in found:
        found.add(pid)
        pid = parent_of(pid)
    return found


def only_callers_have(path: str | int) -> bool:
    """Return whether all who have a lock file open, besides this process, are our ancestors.

    Where the state of an inherited descriptor is "unknown" and an exclusive lock was tried in
    vain, then our caller holds it shared: whoever waits for it waits for ever. Where others have
    it open too, they may be the ones who hold it.
    """
    return {holder.pid for holder in holders(path)} <= ancestors()
