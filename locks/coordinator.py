"""A lock that processes of several machines share: a server keeps it, tooz speaks to the server."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, urlsplit

LEASE = 30
"""Seconds that a lock outlives its holder, unless the URL says `lock_timeout=N`."""
PATIENCE = 10
"""Seconds that the server may take to answer one who does not hold the lock."""
LONGEST_STEP = 0.5
"""Seconds between two tries for a lock that others hold, at most."""

# Linux's monotonic clock stands still while a machine sleeps; its leases run on.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class CoordinatorError(Exception):
    """The coordinator cannot be used; `is_usage` where the URL or the installation is at fault."""

    def __init__(self, text: str, *, is_usage: bool = False) -> None:
        super().__init__(text)
        self.is_usage = is_usage


class CoordinatorLock:
    """The lock `name` of the server that a URL names, not held yet.

    One thread does all the talking, so that a server that hangs hangs nobody else; while the lock
    is held it renews the lease, which lasts `lease` seconds. It ends, and its connections with it,
    with `release` or an error. Raises CoordinatorError.
    """

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        lease = parse_qs(parts.query).get("lock_timeout", [str(LEASE)])[0]
        self.name, self._group = name, name.encode()
        self.lease = int(lease) if lease.isdecimal() else 0
        self._held_until = 0.0
        self._held = self._lost = self._is_done = False
        self._jobs: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]]] = queue.Queue()
        try:
            if parts.scheme not in _RENEWS:
                raise ValueError(f"the URL must begin with {'://, '.join(_RENEWS)}://")
            if self.lease < 2:  # etcd's least
                raise ValueError(f"lock_timeout={lease} is no number of seconds, 2 or more")
            port = f":{parts.port}" if parts.port else ""
            self.server = f"{parts.scheme}://{parts.hostname or ''}{port}"
            # Not by the thread: on a busy machine imports take longer than a server may.
            self._coordinator = _driver(parts._replace(fragment="").geturl(), self.lease)
        except Exception as error:  # ValueError, or whatever a driver makes of its part of the URL
            cure = ": pip install 'rebaser[cluster]'" if isinstance(error, ImportError) else ""
            raise CoordinatorError(f"--coordinator: {error}{cure}", is_usage=True) from error
        threading.Thread(target=self._work, daemon=True).start()
        try:
            self._ask(self._coordinator.start)
        except BaseException:
            self.release()
            raise
        self._lock = self._coordinator.get_lock(self._group)

    def acquire(
        self, timeout: float | None = None, on_wait: Callable[[str], None] | None = None
    ) -> bool:
        """Take the lock, waiting `timeout` seconds at most (None: for ever, 0: not at all).

        `on_wait` is told once who holds it, before a wait begins. False when the time is up.
        Raises CoordinatorError.
        """
        deadline = None if timeout is None else _now() + timeout
        step = 0.02
        try:
            while not self._ask(self._try):
                left = LONGEST_STEP if deadline is None else deadline - _now()
                if left <= 0:
                    return False
                if on_wait is not None:
                    on_wait(self.describe_holder())
                    on_wait = None
                time.sleep(min(step, left))
                step = min(2 * step, LONGEST_STEP)
        except BaseException:
            self._lost = True  # an answer that comes too late must not keep the lock alive
            self.release()
            raise
        return True

    def is_lost(self) -> bool:
        """Whether the last renewal found it so, or was too long ago; the server is not asked.

        A third of the lease must be left, for what is done after the answer.
        """
        return self._lost or _now() > self._held_until - self.lease / 3

    def still_ours(self) -> bool:
        """Ask the server whether the lock is still ours, and renew it; once False, always False.

        A server that does not answer is asked for as long as a lease lasts.
        """
        deadline = _now() + self.lease
        while self._held and not self._lost:
            with suppress(CoordinatorError):
                self._ask(self._renew, deadline - _now())
                break
            self._lost = _now() > deadline
            time.sleep(0.05)
        self._lost = self.is_lost()
        return self._held and not self._lost

    def release(self) -> None:
        """Give the lock back, or leave it to its lease, and the server: all use of it ends."""
        if self._held and not self._lost:
            with suppress(CoordinatorError):
                self._ask(self._lock.release)
                self._ask(lambda: self._coordinator.leave_group(self._group).get(PATIENCE))
        self._held = False
        self._jobs.put((self._leave, queue.Queue()))

    def describe_holder(self) -> str:
        """Return "held by ..." as far as the server can tell."""
        with suppress(CoordinatorError):  # PostgreSQL has no groups
            return f"held by {self._ask(self._holders)}"
        return "held by somebody (this server cannot tell whom)"

    def _ask(self, job: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        answer: queue.Queue[Any] = queue.Queue()
        self._jobs.put((job, answer))
        try:
            value, error = answer.get(timeout=max(0.0, seconds))
        except queue.Empty:
            value, error = None, TimeoutError(f"no answer in {seconds:.0f} seconds")
        if error is None:
            return value
        words = " ".join((str(error) or type(error).__name__).split())
        raise CoordinatorError(f"the coordinator {self.server} cannot be used ({words})") from error

    # From here on, what the one thread does.

    def _work(self) -> None:
        while not self._is_done:
            try:
                job, answer = self._jobs.get(timeout=self.lease / 5)
            except queue.Empty:
                job, answer = self._beat, queue.Queue()
            try:
                answer.put((job(), None))
            except Exception as error:  # whatever a driver or its library raises
                answer.put((None, error))

    def _leave(self) -> None:
        self._is_done = True
        if not self._lost:  # tooz would try for a minute to release it
            self._coordinator.stop()

    def _try(self) -> bool:
        sent = _now()
        if not self._lock.acquire(blocking=False):
            return False
        self._held, self._held_until = True, sent + self.lease
        with suppress(Exception):  # others are told by whom it is held, where there are groups
            self._coordinator.heartbeat()  # etcd has forgotten a member that waited for long
            with suppress(Exception):  # most times it exists
                self._coordinator.create_group(self._group).get(PATIENCE)
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            who = f"{socket.gethostname()}, pid {os.getpid()}, since {since}"
            self._coordinator.join_group(self._group, who).get(PATIENCE)
        return True

    def _beat(self) -> None:
        if self._held and not self._lost:
            self._renew()
            self._coordinator.heartbeat()  # of the group

    def _renew(self) -> None:
        sent = _now()  # a lease may have begun then
        if _RENEWS[self.server.partition(":")[0]](self._lock):
            self._held_until = sent + self.lease
        else:
            self._lost = True

    def _holders(self) -> str:
        group, told = self._group, self._coordinator.get_member_capabilities
        members = self._coordinator.get_members(group).get(PATIENCE)
        return (
            " or ".join(str(told(group, each).get(PATIENCE)) for each in members)
            or "one who has not said who"
        )


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _driver(url: str, lease: int) -> Any:
    """Return tooz's driver of a URL, which has not connected yet."""
    from tooz import coordination

    logging.getLogger("tooz").addHandler(logging.NullHandler())  # what it logs it raises too
    member = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}".encode()
    driver: Any = coordination.get_coordinator(
        url,
        member,
        executor="synchronous",  # a thread of its own ends a second late (futurist)
        timeout=max(1, lease // 4),
        lock_timeout=lease,
        membership_timeout=lease,
    )
    if hasattr(driver, "_make_client"):
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        # redis-py tries 11 times 11 times with pauses, and tooz does that 15 times: minutes.
        make = driver._make_client

        def made(*words: Any) -> Any:
            client = make(*words)
            client.set_retry(Retry(NoBackoff(), 0))
            return client

        driver._make_client = made
    return driver


# tooz renews leases, but none of its drivers says whether a renewal found the lock still ours.


def _renews_etcd(lock: Any) -> bool:
    # Its heartbeat() drops the answer, -1 for a lease that has ended.
    return bool(lock._lease.refresh() > 0 and lock._lease.keys())


def _renews_postgresql(lock: Any) -> bool:
    # No lease: the lock is its connection's, and lasts as long.
    with suppress(Exception), lock._conn.cursor() as cursor:
        cursor.execute(
            "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted"
            " AND pid = pg_backend_pid() AND classid = %s AND objid = %s",
            tuple(lock.key),
        )
        return cursor.fetchone() is not None
    return False


_RENEWS: dict[str, Callable[[Any], bool]] = {
    "redis": lambda lock: bool(lock.is_still_owner() and lock.heartbeat()),
    "etcd3+http": _renews_etcd,
    "etcd3+https": _renews_etcd,
    "postgresql": _renews_postgresql,
}
