"""What Linux says of the lock on one open descriptor (/proc/PID/fdinfo/FD, proc(5))."""

from __future__ import annotations


def flock_in(fdinfo: str) -> str | None:
    """Return "shared" or "exclusive" where the text has an flock(2) of its own, else None.

    The line is `lock:  1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; locks of other kinds
    (POSIX, OFDLCK, LEASE) have such lines too, and a blocked request has none.
    """
    for line in fdinfo.splitlines():
        words = line.split()
        if words[:1] == ["lock:"] and words[2:3] == ["FLOCK"]:
            return {"READ": "shared", "WRITE": "exclusive"}.get("".join(words[4:5]))
    return None


def read_fdinfo(pid: int | str, fd: int | str) -> str | None:
    """Return the text of /proc/PID/fdinfo/FD; None where it cannot be read (Cygwin has none)."""
    try:
        with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return None
