"""Whether a descriptor that this process inherited is a lock file, and how it is locked."""

from __future__ import annotations

import os
from collections import namedtuple

from locks.flock import Flock, LockFileError, Mode

_ORDER = ("exclusive", "shared", "unknown", "unlocked")


class Inherited(namedtuple("Inherited", "descriptor state")):
    """A descriptor from the caller that is the lock file.

    `state` is "exclusive", "shared", "unlocked", or "unknown": one of the latter two, where the
    system does not say which (Cygwin).
    """

    # Not typing's: that takes 2 ms to import, and this is in the way of every run.
    descriptor: int
    state: str


def inherited_lock(path: str | int) -> Inherited | None:
    """Return the caller's descriptor of this lock file (a path or a descriptor), None without one.

    Of several, the one that holds most. Only what survived our exec counts, that is what is not
    close-on-exec. The caller's lock stays as it is. Raises nothing.
    """
    try:
        wanted = os.stat(path)
    except OSError:
        return None
    found = []
    for fd in _descriptors():
        try:
            is_ours = fd == path or not os.get_inheritable(fd)
            if not is_ours and os.path.samestat(os.fstat(fd), wanted):
                found.append(Inherited(fd, _state(fd, path)))
        except OSError:  # the descriptor that listed the folder
            continue
    return min(found, key=lambda one: _ORDER.index(one.state), default=None)


def _descriptors() -> list[int]:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return sorted(int(name) for name in os.listdir(folder) if name.isdigit())
        except OSError:
            continue
    return []


def _state(fd: int, path: str | int) -> str:
    from locks.holders import flock_in

    try:
        with open(f"/proc/self/fdinfo/{fd}", errors="replace") as file:
            return flock_in(file.read()) or "unlocked"
    except OSError:
        pass  # Cygwin has none
    try:
        return probe(fd, path)
    except LockFileError:
        return "unknown"


def probe(fd: int, path: str | int) -> str:
    """Return the state of an inherited descriptor where the system has no word for it.

    A shared lock by a descriptor of our own fails only where somebody holds the file exclusively;
    then a non-blocking exclusive lock by the inherited descriptor succeeds, and changes nothing,
    only where that very description is the holder. It is never tried on a file that may be held
    shared: the failed upgrade would drop the caller's lock (flock(2)). Should the holder let go
    between the two steps, the caller's descriptor is left locked. Raises LockFileError.
    """
    with Flock.open(f"/dev/fd/{path}" if isinstance(path, int) else path, create=False) as own:
        if own.try_acquire(Mode.SHARED):
            return "unknown"
    return "exclusive" if Flock.of_descriptor(fd).try_acquire(Mode.EXCLUSIVE) else "unlocked"


def only_callers_have(path: str | int) -> bool:
    """Return whether all who have a lock file open, besides this process, are our ancestors.

    Where the state of an inherited descriptor is "unknown" and an exclusive lock was tried in
    vain, then our caller holds it shared: whoever waits for it waits for ever. Where others have
    it open too, they may be the ones who hold it.
    """
    from locks.holders import ancestors, holders

    return {holder.pid for holder in holders(path)} <= ancestors()
