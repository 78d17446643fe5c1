"""The wait for a lock with a time-out: fasteners' retries around flock(2)."""

from __future__ import annotations

import errno
from collections.abc import Callable

import fasteners


class TimedLock(fasteners.InterProcessLock):  # type: ignore[misc]
    """fasteners' interprocess lock, except that flock(2) is what locks.

    fasteners itself takes POSIX record locks, which neither flock(1) nor SageMath's scripts see,
    and which a process loses when it closes any descriptor of the file (fcntl(2)).
    """

    closed = False

    def __init__(self, attempt: Callable[[], bool]) -> None:
        super().__init__("")  # no name: fasteners would make its folder and open it once more
        self.lockfile = self  # open already, as `closed` says: it opens nothing itself
        self.attempt = attempt

    def trylock(self) -> None:
        """Take the lock or raise BlockingIOError, upon which fasteners tries again."""
        if not self.attempt():
            raise BlockingIOError(errno.EAGAIN, "held by another process")
