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


class SharedLock:
    """The lock `name` of the server that a URL names, not held yet.

    One thread does all the talking, so that a server that hangs hangs nobody else; while the lock
    is held it renews the lease. Raises CoordinatorError.
    """

    def __init__(self, url: str, name: str) -> None:
        parts = urlsplit(url)
        try:
            self._renews, self._holder = _BACKENDS[parts.scheme]
            self.server = f"{parts.scheme}://{parts.hostname or ''}:{parts.port or ''}".rstrip(":")
            self.lease = int(parse_qs(parts.query).get("lock_timeout", [str(LEASE)])[0])
            if self.lease < 2:  # etcd's least
                raise ValueError("lock_timeout is less than 2 seconds")
        except KeyError:
            known = ", ".join(f"{scheme}://" for scheme in _BACKENDS)
            raise CoordinatorError(
                f"--coordinator takes a URL that begins with {known}; this one does not",
                is_usage=True,
            ) from None
        except ValueError as error:
            raise CoordinatorError(
                f"--coordinator {parts.scheme}: {error}", is_usage=True
            ) from None
        self.name = name
        self._held_until = 0.0
        self._held = self._lost = False
        self._jobs: queue.Queue[tuple[Callable[[], Any], queue.Queue[Any]]] = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()
        self._ask(lambda: self._connect(parts._replace(fragment="").geturl()))

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
            raise
        return True

    def still_ours(self) -> bool:
        """Ask the server whether the lock is still ours, and renew it; once False, always False.

        A server that does not answer is asked for as long as a lease lasts. A lease counts from
        before its renewal was sent, and a third of it must be left, for what is done then.
        """
        deadline = _now() + self.lease
        while self._held and not self._lost:
            with suppress(CoordinatorError):
                self._ask(self._renew, deadline - _now())
                break
            self._lost = _now() > deadline
            time.sleep(0.05)
        self._lost = self._lost or _now() > self._held_until - self.lease / 3
        return self._held and not self._lost

    def release(self) -> None:
        """Give the lock back; a server that does not answer lets it go when the lease ends."""
        if self._held and not self._lost:
            with suppress(CoordinatorError):
                self._ask(self._let_go, PATIENCE)
        self._held = False

    def describe_holder(self) -> str:
        """Return "held by ..." as far as this server can tell. Raises CoordinatorError."""
        return f"held by {self._ask(lambda: self._holder(self)) or 'one who has not said who'}"

    def _ask(self, job: Callable[[], Any], seconds: float = PATIENCE) -> Any:
        answer: queue.Queue[Any] = queue.Queue()
        self._jobs.put((job, answer))
        try:
            value, error = answer.get(timeout=max(0.0, seconds))
        except queue.Empty:
            value, error = None, TimeoutError(f"no answer in {seconds:.0f} seconds")
        if error is None:
            return value
        if isinstance(error, ImportError):
            raise CoordinatorError(
                f"--coordinator {self.server}: {error}: pip install 'rebaser[cluster]'",
                is_usage=True,
            ) from error
        words = " ".join((str(error) or type(error).__name__).split())
        raise CoordinatorError(f"the coordinator {self.server} cannot be used ({words})") from error

    # From here on, what the one thread does.

    def _work(self) -> None:
        while True:
            try:
                job, answer = self._jobs.get(timeout=self.lease / 5)
            except queue.Empty:
                job, answer = self._beat, queue.Queue()
            try:
                answer.put((job(), None))
            except Exception as error:  # whatever a driver or its library raises
                answer.put((None, error))

    def _connect(self, url: str) -> None:
        from tooz import coordination

        logging.getLogger("tooz").addHandler(logging.NullHandler())  # what matters is raised too
        self._member = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}".encode()
        self._coordinator: Any = coordination.get_coordinator(
            url,
            self._member,
            timeout=max(1, self.lease // 4),
            lock_timeout=self.lease,
            membership_timeout=self.lease,
        )
        if hasattr(self._coordinator, "_make_client"):
            _retry_no_more(self._coordinator)
        self._coordinator.start()
        self._lock: Any = self._coordinator.get_lock(self.name.encode())

    def _try(self) -> bool:
        sent = _now()
        if not self._lock.acquire(blocking=False):
            return False
        self._held, self._held_until = True, sent + self.lease
        with suppress(Exception):  # PostgreSQL has no groups, and needs none
            group = self.name.encode()
            with suppress(Exception):  # most times it exists
                self._coordinator.create_group(group).get(PATIENCE)
            since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
            who = f"{socket.gethostname()}, pid {os.getpid()}, since {since}"
            self._coordinator.join_group(group, who).get(PATIENCE)
        return True

    def _beat(self) -> None:
        if self._held and not self._lost:
            self._renew()
            self._coordinator.heartbeat()  # of the group

    def _renew(self) -> None:
        sent = _now()
        if self._renews(self._lock):
            self._held_until = sent + self.lease
        else:
            self._lost = True

    def _let_go(self) -> None:
        self._lock.release()
        with suppress(Exception):
            self._coordinator.leave_group(self.name.encode()).get(PATIENCE)


def _now() -> float:
    return time.clock_gettime(_CLOCK)


# tooz renews leases, but none of its drivers says whether a renewal found the lock still ours.


def _retry_no_more(driver: Any) -> None:
    # redis-py tries 10 times 10 times with pauses, and tooz does all that 15 times, for minutes.
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    make = driver._make_client

    def made(*words: Any) -> Any:
        client = make(*words)
        client.set_retry(Retry(NoBackoff(), 0))
        return client

    driver._make_client = made


def _renews_redis(lock: Any) -> bool:
    import tooz

    try:
        return bool(lock.heartbeat())  # one script compares the token and sets the time
    except tooz.coordination.ToozConnectionError:
        raise
    except tooz.ToozError:
        return False


def _renews_etcd(lock: Any) -> bool:
    # Its heartbeat() drops the answer, -1 for a lease that has ended.
    return bool(lock._lease.refresh() > 0 and lock._lease.keys())


# A lock of PostgreSQL's is its connection's, and lasts as long: no lease.
_PG_LOCKS = """
    SELECT client_addr, backend_start FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s"""


def _renews_postgresql(lock: Any) -> bool:
    try:
        with lock._conn.cursor() as cursor:
            cursor.execute(f"{_PG_LOCKS} AND pid = pg_backend_pid()", tuple(lock.key))
            return cursor.fetchone() is not None
    except Exception:
        return False


def _holder_postgresql(shared: SharedLock) -> str:
    with shared._coordinator._conn.cursor() as cursor:
        cursor.execute(_PG_LOCKS, tuple(shared._lock.key))
        row = cursor.fetchone()
    return (
        f"{row[0] or 'this server'}, connected since {row[1]:%Y-%m-%d %H:%M:%S %Z}" if row else ""
    )


def _holder_in_group(shared: SharedLock) -> str:
    coordinator, group = shared._coordinator, shared.name.encode()
    told = []
    for member in coordinator.get_members(group).get(PATIENCE):
        with suppress(Exception):  # it has left since
            told.append(str(coordinator.get_member_capabilities(group, member).get(PATIENCE)))
    return " or ".join(told)


_BACKENDS: dict[str, tuple[Callable[[Any], bool], Callable[[SharedLock], str]]] = {
    "redis": (_renews_redis, _holder_in_group),
    "etcd3+http": (_renews_etcd, _holder_in_group),
    "etcd3+https": (_renews_etcd, _holder_in_group),
    "postgresql": (_renews_postgresql, _holder_postgresql),
}
