"""The lock of a tree: shared for the look, exclusive for the work, or the caller's own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from locks.flock import EXCLUSIVE, SHARED, Flock, LockFileError, inherited_lock
from rebaser.errors import BusyError, RebaserError, suppress
from rebaser.state.folder import State, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from locks.coordinator import CoordinatorLock


class LockError(RebaserError):
    """The lock file cannot be opened or locked."""

    def __init__(self, cause: LockFileError) -> None:
        super().__init__(f"{cause} with --lock-file or REBASER_LOCK_FILE. Nothing was changed")


class LockLostError(BusyError):
    """The coordinator no longer keeps the lock for us."""


class TreeLock:
    """The lock of one tree, as a run holds it; a context manager, whose end drops all of it.

    A descriptor that this process has inherited and that holds the lock exclusively is as good as
    our own, and is left as it was. One caller may start several runs that way, so whoever works
    holds a lock in the state folder too; where that file system has no flock, the tree's lock
    must do. `wait` is in seconds, None for as long as it takes, 0 for not at all.
    `seconds_waited` adds up what was waited. `coordinator` is the URL of the server that keeps the
    lock for other machines too; nobody but who works asks it.
    """

    def __init__(
        self,
        path: str,
        state: State,
        *,
        wait: float | None = None,
        tell: Callable[[str], None],
        coordinator: str | None = None,
    ) -> None:
        self.path = path
        self.seconds_waited = 0.0
        self.is_exclusive = False
        self._state = state
        self._wait = wait
        self._tell = tell
        self._coordinator = coordinator
        self._remote: CoordinatorLock | None = None
        # How our caller's descriptor is locked, by `inherited_lock`; None: it has handed down none.
        # Looked for first: afterwards our own descriptor would be found.
        self._callers: str | None
        self._descriptor, self._callers = inherited_lock(path) or (-1, None)
        # Our caller's descriptors whose state is "unknown", by the path of their lock.
        self._unknown = {path: self._descriptor} if self._callers == "unknown" else {}
        self._lock = self._opened(path)
        self._others: list[Flock] = []  # in the state folder, and of trees inside this one

    def __enter__(self) -> TreeLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._remote:
            self._remote.release()
        for lock in (*self._others, self._lock):
            lock.close()

    def share(self) -> None:
        """Hold the lock shared: no commit is under way meanwhile. Raises BusyError.

        Except under the caller's own lock, where another of its runs may be at work; then the
        staging folder is there.
        """
        if self._callers != EXCLUSIVE:
            self._take(self._lock, SHARED)

    def upgrade(self) -> bool:
        """Hold the lock exclusively if nobody else holds it now; return whether that is so.

        If it is not, the lock may not even be held shared any more (flock(2)). Never so where a
        coordinator would have to be asked.
        """
        if self._callers != SHARED and not self._coordinator:
            self._exclude(at_once=True)
        return self.is_exclusive

    def exclude(self) -> None:
        """Hold the lock exclusively. Raises BusyError, also where our caller holds it shared."""
        if self._callers == SHARED:
            raise self._busy_by_caller(self.path, self._descriptor)
        self._exclude()

    def _exclude(self, *, at_once: bool = False) -> None:
        if self.is_exclusive:
            return
        held = self._callers == EXCLUSIVE or self._take(self._lock, EXCLUSIVE, at_once=at_once)
        if held:
            with suppress(LockError):
                self._state.make_home()
                self._others.append(self._opened(self._state.own_lock_file))
                held = self._take(self._others[-1], EXCLUSIVE, at_once=at_once)
        self.is_exclusive = held

    def exclude_other_machines(self) -> None:
        """Hold the lock on other machines too, or warn of them. Raises UsageError, BusyError."""
        from rebaser.state.machines import network_file_system, take_lock

        if not self._coordinator:
            root = self._state.root
            if kind := network_file_system(root):
                self._tell(
                    f"{root} is on a network's file system ({kind}), where flock may not exclude "
                    "other machines: if they install into it too, give each --coordinator URL"
                )
            return
        began = time.monotonic()
        self._remote = take_lock(self._coordinator, self._state, self._left, self._tell)
        self.seconds_waited += time.monotonic() - began

    def is_ours(self) -> bool:
        """Return whether this run may change the tree; a coordinator is asked."""
        if not self._coordinator:
            return self.is_exclusive
        return self._remote is not None and self._remote.still_ours()

    def demand(self) -> None:
        """Raise LockLostError unless this run may still change the tree."""
        if not self.is_ours():
            raise LockLostError("the coordinator's lock was lost")

    def exclude_from(self, path: str) -> bool:
        """Hold the lock of a tree inside this one too; return whether it had to be waited for.

        Where there is no such file, or a link on the way to it, no run is at work in that tree.
        """
        descriptor, callers = inherited_lock(path) or (-1, None)
        if callers == SHARED:
            raise self._busy_by_caller(path, descriptor)
        if callers == EXCLUSIVE:  # it lets us in there too
            return False
        if callers == "unknown":
            self._unknown[path] = descriptor
        with suppress(StateError, LockFileError):
            lock = self._state.open_lock(path, create=False)
            self._others.append(lock)
            return not lock.try_acquire(EXCLUSIVE) and self._take(lock, EXCLUSIVE)
        return False

    def rebasers(self) -> set[int]:
        """Return the other runs that wait for this lock, or are let in by our caller's."""
        from locks.holders import holders, words_of

        return {holder.pid for holder in holders(self.path) if is_run(words_of(holder.pid))}

    @property
    def _left(self) -> float | None:
        return None if self._wait is None else max(0.0, self._wait - self.seconds_waited)

    def _opened(self, path: str) -> Flock:
        try:
            return self._state.open_lock(path)
        except LockFileError as error:
            raise LockError(error) from error

    def _take(self, lock: Flock, mode: str, *, at_once: bool = False) -> bool:
        """Take a lock; False: `at_once` it cannot be had. Raises BusyError after a wait."""
        began = time.monotonic()
        try:
            wait = 0 if at_once else self._left
            held = lock.acquire(mode, wait, lambda: self._say_who(lock, mode))
        except LockFileError as error:
            raise LockError(error) from error
        self.seconds_waited += time.monotonic() - began
        if not (held or at_once):
            from locks.holders import describe_holders

            longer = ", or give it longer with --wait" if self._wait else ""
            raise BusyError(
                f"the lock {lock.path} is {describe_holders(lock.path)}; nothing was changed: "
                f"run rebaser again when it is free{longer}"
            )
        return held

    def _busy_by_caller(self, path: str, descriptor: int) -> BusyError:
        return BusyError(
            f"there is work to do, but descriptor {descriptor}, which our caller opened, holds "
            f"this lock shared: drop it first (flock -u {descriptor}); nothing was changed ({path})"
        )

    def _say_who(self, lock: Flock, mode: str) -> None:
        from locks.holders import ancestors, describe_holders, holders, only_callers_have

        text = f"waiting for the lock {lock.path}, {describe_holders(lock.path)}"
        if (descriptor := self._unknown.get(lock.path)) is not None:
            if mode == EXCLUSIVE and only_callers_have(lock.path):
                raise self._busy_by_caller(lock.path, descriptor)
            text += (
                f"; descriptor {descriptor}, which our caller opened, is this "
                "lock too: if it holds it shared, this wait never ends"
            )
        above = ancestors()
        for holder in holders(lock.path):
            if holder.mode and holder.pid in above:
                text += (
                    f"; pid {holder.pid} is our own caller and did not hand its lock down "
                    "(-o): if it waits for us, this wait never ends"
                )
        self._tell(text)


def is_run(words: list[str]) -> bool:
    """Return whether the words of a command line are those of `rebaser run` or `sage-rebase`."""
    names = [os.path.basename(word) for word in words]
    if names and names[0].startswith("python"):
        names = names[1:]
        while names and names[0].startswith("-") and names[0] != "-c":
            del names[0]
    if names[:1] == ["-c"]:
        return "from rebaser.sage_rebase import main" in words[len(words) - len(names) + 1]
    if names[:1] == ["start.py"]:  # bin/rebaser, bin/sage-rebase
        names = names[1:]
    return names[:2] in (["rebaser", "run"], ["rebaser.exe", "run"]) or names[:1] == ["sage-rebase"]
