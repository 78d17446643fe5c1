"""The lock of a tree: shared for the look, exclusive for the work, or the caller's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from locks.flock import Flock, LockFileError, Mode
from rebaser.errors import BusyError, RebaserError


class LockError(RebaserError):
    """The lock file cannot be opened or locked."""


class TreeLock:
    """The lock of one tree.

    A descriptor that this process has inherited and that holds the lock exclusively is as good as
    our own, and is left as it was. `wait` is in seconds, None for as long as it takes, 0 for not at
    all. `seconds_waited` adds up what was waited.
    """

    def __init__(
        self, path: str, *, wait: float | None = None, tell: Callable[[str], None]
    ) -> None:
        # Looked for first: afterwards our own descriptor would be found.
        from locks.inherited import inherited_lock

        self.path = path
        self.seconds_waited = 0.0
        self._wait = wait
        self._tell = tell
        self._inherited = inherited_lock(path)
        try:
            self._lock = Flock.open(path, make_parents=True)
        except LockFileError as error:
            raise LockError(f"{error}. Nothing was changed") from error

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock shared: no commit is under way meanwhile. Raises BusyError."""
        with self._held(Mode.SHARED):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock exclusively. Raises BusyError, also where our caller holds it shared."""
        if self._state == "shared":
            assert self._inherited is not None
            raise BusyError(
                f"there is work to do, but descriptor {self._inherited.descriptor}, which our "
                f"caller opened, holds this lock shared: drop it first (flock -u "
                f"{self._inherited.descriptor}); nothing was changed ({self.path})"
            )
        with self._held(Mode.EXCLUSIVE):
            yield

    @contextmanager
    def exclusive_if_free(self) -> Iterator[bool]:
        """Hold the lock exclusively if nobody else holds it now; yield whether it is held."""
        if self._state == "exclusive":
            yield True
            return
        free = self._state != "shared" and self._lock.try_acquire(Mode.EXCLUSIVE)
        try:
            yield free
        finally:
            if free:
                self._lock.release()

    def rebasers(self) -> set[int]:
        """Return the other processes of rebaser that wait for this lock."""
        from locks.holders import holders

        return {holder.pid for holder in holders(self.path) if "rebaser" in holder.command}

    @property
    def _state(self) -> str | None:
        return self._inherited.state if self._inherited else None

    @contextmanager
    def _held(self, mode: Mode) -> Iterator[None]:
        if self._state == "exclusive":
            yield
            return
        began = time.monotonic()
        wait = None if self._wait is None else max(0.0, self._wait - self.seconds_waited)
        try:
            held = self._lock.acquire(mode, wait, self._say_who)
        except LockFileError as error:
            raise LockError(f"{error}. Nothing was changed") from error
        self.seconds_waited += time.monotonic() - began
        if not held:
            from locks.holders import describe_holders

            raise BusyError(
                f"the lock {self.path} is {describe_holders(self.path)}; nothing was changed: "
                "run rebaser again when it is free, or give it longer with --wait"
            )
        try:
            yield
        finally:
            self._lock.release()

    def _say_who(self) -> None:
        from locks.holders import describe_holders

        text = f"waiting for the lock {self.path}, {describe_holders(self.path)}"
        if self._state == "unknown":
            assert self._inherited is not None
            text += (
                f"; descriptor {self._inherited.descriptor}, which our caller opened, is this "
                "lock too: if it holds it shared, this wait never ends"
            )
        self._tell(text)
