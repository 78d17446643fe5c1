"""The wait for a lock with a time-out: fasteners' retries around flock(2)."""

from __future__ import annotations

import errno

import fasteners

TYPE_CHECKING = False
if TYPE_CHECKING:
    from locks.flock import Flock, Mode


class TimedLock(fasteners.InterProcessLock):  # type: ignore[misc]
    """fasteners' interprocess lock, except that flock(2) is what locks.

    fasteners itself takes POSIX record locks, which neither flock(1) nor SageMath's scripts see,
    and which a process loses when it closes any descriptor of the file (fcntl(2)). The file is
    the one that `flock` has open already; it stays open, whatever comes of the attempt.
    """

    def __init__(self, flock: Flock, mode: Mode) -> None:
        super().__init__("")  # no name: fasteners would make its folder and open it once more
        self.lockfile = flock
        self.mode = mode

    def trylock(self) -> None:
        """Take the lock or raise BlockingIOError, upon which fasteners tries again."""
        if not self.lockfile.try_acquire(self.mode):
            raise BlockingIOError(errno.EAGAIN, "held by another process")

    def unlock(self) -> None:
        """Drop the lock."""
        self.lockfile.release()
