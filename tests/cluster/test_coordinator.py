"""The lock that a server keeps: held by one, told to the others, lost where it cannot be kept."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from lock_programs import eventually
from servers import Etcd, Postgres, Server

from locks.coordinator import CoordinatorError, CoordinatorLock

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]

HOLD = """
import sys
from locks.coordinator import CoordinatorLock
lock = CoordinatorLock(sys.argv[1], sys.argv[2])
print(lock.acquire(0), flush=True)
while sys.stdin.readline():
    print(lock.still_ours(), flush=True)
lock.release()
"""


@pytest.fixture
def name() -> str:
    """Return a name that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture(autouse=True)
def _no_thread_stays() -> Iterator[None]:
    before = threading.active_count()
    yield
    eventually(lambda: threading.active_count() <= before)


class Other:
    """Another process, which holds a lock."""

    def __init__(self, server: Server, name: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, server.url(), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.answer() == "True"

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def still_has_it(self) -> bool:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer() == "True"

    def end(self) -> None:
        self.process.communicate(timeout=30)


def test_one_holds_it_and_the_next_waits_and_is_told_who(server: Server, name: str) -> None:
    other = Other(server, name)
    lock = CoordinatorLock(server.url(), name)
    assert not lock.acquire(0)
    told: list[str] = []
    began = time.monotonic()
    assert not lock.acquire(0.5, told.append)
    assert 0.5 <= time.monotonic() - began < 2
    if isinstance(server, Postgres):
        assert told[0].startswith("held by somebody (this server cannot tell whom)")
    else:
        assert told[0].startswith(f"held by {socket.gethostname()}, pid {other.process.pid}, since")
    assert len(told) == 1
    threading.Timer(0.5, other.end).start()
    assert lock.acquire(20, told.append)
    assert lock.still_ours()
    lock.release()
    assert not lock.still_ours()


def test_a_program_may_take_the_lock_for_days(server: Server, name: str) -> None:
    threads, numbers = threading.active_count(), []
    for _ in range(4):
        holder, lock = (CoordinatorLock(server.url(), name) for _ in range(2))
        assert holder.acquire()
        assert not lock.acquire(0)
        for one in (holder, lock):
            one.release()
        del holder, lock, one
        eventually(lambda: threading.active_count() <= threads)
        gc.collect()
        numbers.append(sorted(os.listdir("/proc/self/fd")))
    # redis-py keeps the first client of a process in a class (redis/lock.py, register_scripts).
    assert numbers[1:] == numbers[:1] * 3


def test_a_lease_is_renewed_while_its_holder_does_other_things(server: Server, name: str) -> None:
    lock = CoordinatorLock(server.url(), name)
    assert lock.acquire()
    time.sleep(lock.lease + 1)
    again = CoordinatorLock(server.url(), name)
    assert not again.acquire(0)
    assert lock.still_ours()
    lock.release()
    assert again.acquire(0)
    again.release()


def test_a_killed_holder_keeps_it_for_a_lease_at_most(server: Server, name: str) -> None:
    other = Other(server, name)
    other.process.kill()
    other.process.communicate()
    lock = CoordinatorLock(server.url(), name)
    assert lock.acquire(6)
    lock.release()


def test_a_holder_that_stood_still_past_its_lease_knows_that_it_is_lost(
    server: Server, name: str
) -> None:
    other = Other(server, name)
    assert other.still_has_it()
    os.kill(other.process.pid, signal.SIGSTOP)
    lock = CoordinatorLock(server.url(), name)
    was_had = lock.acquire(4)
    os.kill(other.process.pid, signal.SIGCONT)
    # PostgreSQL's locks last as long as a connection: whoever stands still holds it.
    assert was_had != isinstance(server, Postgres)
    assert other.still_has_it() != was_had
    assert other.still_has_it() != was_had
    assert lock.still_ours() == was_had
    lock.release()
    other.end()


def test_a_server_that_was_killed_while_the_lock_was_held(server: Server, name: str) -> None:
    lock = CoordinatorLock(server.url(), name)
    assert lock.acquire()
    server.kill()
    server.start()
    # etcd keeps its locks on disk; the others have forgotten them.
    other = CoordinatorLock(server.url(), name)
    assert other.acquire(0) != isinstance(server, Etcd)
    assert lock.still_ours() == isinstance(server, Etcd)
    lock.release()
    other.release()


def test_a_server_that_stays_away_while_the_lock_is_held(server: Server, name: str) -> None:
    if isinstance(server, Postgres):
        pytest.skip("its lock ends with the connection, at once")
    lock = CoordinatorLock(server.url(), name)
    assert lock.acquire()
    server.kill()
    try:
        began = time.monotonic()
        assert not lock.still_ours()
        assert time.monotonic() - began < 4
        began = time.monotonic()
        assert not lock.still_ours()
        lock.release()
        assert time.monotonic() - began < 0.5
    finally:
        server.start()


def test_a_server_that_hangs_while_the_lock_is_held(server: Server, name: str) -> None:
    lock = CoordinatorLock(server.url(), name)
    assert lock.acquire()
    server.send(signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert not lock.still_ours()
        assert time.monotonic() - began < 4
    finally:
        server.send(signal.SIGCONT)
    assert not lock.still_ours()
    lock.release()


def test_a_server_that_is_killed_while_others_wait(server: Server, name: str) -> None:
    holder = CoordinatorLock(server.url(), name)
    assert holder.acquire()
    lock = CoordinatorLock(server.url(), name)
    threading.Timer(0.3, server.kill).start()
    try:
        with pytest.raises(CoordinatorError, match="cannot be used") as raised:
            lock.acquire(30)
        assert not raised.value.is_usage
    finally:
        server.start()
        holder.release()


def test_a_wrong_password_is_told_in_one_sentence(server: Server, name: str) -> None:
    if isinstance(server, Etcd):
        pytest.skip("tooz sends etcd no password")
    with pytest.raises(CoordinatorError) as raised:
        CoordinatorLock(server.url("wr0ng"), name)
    text = str(raised.value)
    assert "password" in text
    assert "wr0ng" not in text
    assert "\n" not in text


@pytest.mark.parametrize("scheme", ["redis", "etcd3+http", "postgresql"])
def test_no_server_is_told_in_one_sentence(scheme: str) -> None:
    pytest.importorskip("tooz")
    with pytest.raises(
        CoordinatorError, match=re.escape(f"the coordinator {scheme}://127.0.0.1:1 cannot")
    ):
        CoordinatorLock(f"{scheme}://:secret@127.0.0.1:1", "x")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("carrier-pigeon://roof", "must begin with redis://"),
        ("localhost:6379", "must begin with redis://"),
        ("", "must begin with redis://"),
        ("redis://h:123456", "[Pp]ort"),
        ("redis://h?lock_timeout=soon", "soon"),
        ("redis://h?lock_timeout=1", "=1 is no number of seconds, 2 or more"),
    ],
)
def test_a_wrong_url_is_told_in_one_sentence(url: str, words: str) -> None:
    with pytest.raises(CoordinatorError, match=words) as raised:
        CoordinatorLock(url, "x")
    assert raised.value.is_usage


@pytest.mark.parametrize("missing", ["tooz", "redis"])
def test_an_extra_that_is_not_installed_is_told_with_what_to_install(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "redis":
        pytest.importorskip("tooz")
    for module in list(sys.modules):
        if module.partition(".")[0] == "tooz":
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(CoordinatorError, match=r"pip install 'rebaser\[cluster\]'") as raised:
        CoordinatorLock("redis://127.0.0.1:1", "x")
    assert raised.value.is_usage
