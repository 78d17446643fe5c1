"""What a process can tell of a lock that its caller holds."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lock_programs import run

from locks.flock import EXCLUSIVE, SHARED, Flock, inherited_lock, probe

if TYPE_CHECKING:
    from collections.abc import Iterator

STATES = {
    "exclusive": fcntl.LOCK_EX,
    "shared": fcntl.LOCK_SH,
    "unlocked": fcntl.LOCK_UN,
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc/self/fdinfo")


@pytest.fixture
def caller(tmp_path: Path) -> Iterator[int]:
    """Open a lock file as a shell does, for its children to inherit."""
    fd = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


TELL = (
    "import sys\n"
    "from locks.flock import Flock, inherited_lock\n"
    "with Flock.open(sys.argv[1]):\n"
    "    print(inherited_lock(sys.argv[1]))\n"
)


@linux
@pytest.mark.parametrize("state", STATES)
def test_a_child_knows_what_its_caller_holds(tmp_path: Path, caller: int, state: str) -> None:
    fcntl.flock(caller, STATES[state])
    path = str(tmp_path / "lock")
    told = run([sys.executable, "-c", TELL, path], pass_fds=[caller])
    assert told.stdout.strip() == str((caller, state))
    # The caller's lock is what it was.
    with Flock.open(path) as other:
        assert other.try_acquire(SHARED) is (state != "exclusive")
        assert other.try_acquire(EXCLUSIVE) is (state == "unlocked")


def test_no_such_descriptor(tmp_path: Path, caller: int) -> None:
    (tmp_path / "other").touch()
    assert inherited_lock(str(tmp_path / "other")) is None
    assert inherited_lock(str(tmp_path / "missing")) is None
    assert inherited_lock(caller) is None


def test_our_own_descriptor_is_not_the_callers(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Flock.open(path) as lock:
        assert lock.try_acquire(EXCLUSIVE)
        assert inherited_lock(path) is None


@linux
def test_the_descriptor_that_holds_most_counts(tmp_path: Path, caller: int) -> None:
    holding = os.open(tmp_path / "lock", os.O_RDONLY)
    os.set_inheritable(holding, True)
    try:
        fcntl.flock(holding, fcntl.LOCK_SH)
        assert inherited_lock(str(tmp_path / "lock")) == (holding, "shared")
        fcntl.flock(holding, fcntl.LOCK_EX)
        assert inherited_lock(str(tmp_path / "lock")) == (holding, "exclusive")
    finally:
        os.close(holding)


def test_a_held_folder(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert inherited_lock(str(tmp_path)) == (fd, "exclusive")
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("state", "told"),
    [("exclusive", "exclusive"), ("shared", "unknown"), ("unlocked", "unknown")],
)
def test_without_fdinfo(tmp_path: Path, caller: int, state: str, told: str) -> None:
    path = str(tmp_path / "lock")
    fcntl.flock(caller, STATES[state])
    assert probe(caller, path) == told
    with Flock.open(path) as other:
        assert other.try_acquire(SHARED) is (state != "exclusive")
        assert other.try_acquire(EXCLUSIVE) is (state == "unlocked")


def test_without_fdinfo_while_another_process_holds_it(tmp_path: Path, caller: int) -> None:
    with Flock.open(str(tmp_path / "lock")) as other:
        assert other.try_acquire(EXCLUSIVE)
        assert probe(caller, str(tmp_path / "lock")) == "unlocked"


def test_where_there_is_no_fdinfo_the_probe_is_what_is_used(
    tmp_path: Path, caller: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = open

    def without_fdinfo(path: str, **how: str) -> object:
        return real("/nowhere/at/all" if "/fdinfo/" in path else path, **how)  # type: ignore

    monkeypatch.setattr("builtins.open", without_fdinfo)
    path = str(tmp_path / "lock")
    fcntl.flock(caller, fcntl.LOCK_SH)
    assert inherited_lock(path) == (caller, "unknown")
    fcntl.flock(caller, fcntl.LOCK_EX)
    assert inherited_lock(path) == (caller, "exclusive")
