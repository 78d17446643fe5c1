"""flock(2) by one open file description."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lock_programs import CHECKOUT, FLOCK, held, is_free, needs_flock

from locks.flock import EXCLUSIVE, SHARED, Flock, LockFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (SHARED, SHARED, True),
        (SHARED, EXCLUSIVE, False),
        (EXCLUSIVE, SHARED, False),
        (EXCLUSIVE, EXCLUSIVE, False),
    ],
)
def test_who_may_hold_it_at_once(tmp_path: Path, first: str, second: str, together: bool) -> None:
    path = str(tmp_path / "lock")
    with Flock.open(path) as one, Flock.open(path) as other:
        assert one.try_acquire(first)
        assert other.try_acquire(second) is together
        one.release()
        assert other.try_acquire(second)


def test_it_excludes_two_threads_by_two_descriptors(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    order = []
    with Flock.open(path) as one:
        assert one.acquire(EXCLUSIVE)

        def other() -> None:
            with Flock.open(path) as mine:
                assert mine.acquire(EXCLUSIVE, on_wait=lambda: waiting.set())
                order.append("other")

        waiting = threading.Event()
        thread = threading.Thread(target=other)
        thread.start()
        assert waiting.wait(20)
        order.append("one")
        one.release()
        thread.join(20)
    assert order == ["one", "other"]


def test_a_free_lock_is_had_without_a_word(tmp_path: Path) -> None:
    with Flock.open(str(tmp_path / "lock")) as lock:
        assert lock.acquire(EXCLUSIVE, timeout=9, on_wait=lambda: pytest.fail("nobody has it"))


@pytest.mark.parametrize(("timeout", "told"), [(0, 0), (-1, 0), (0.05, 1)])
def test_the_time_is_up(tmp_path: Path, timeout: float, told: int) -> None:
    path = str(tmp_path / "lock")
    calls: list[int] = []
    with Flock.open(path) as one, Flock.open(path) as other:
        assert one.try_acquire(EXCLUSIVE)
        assert not other.acquire(SHARED, timeout, lambda: calls.append(1))
        assert len(calls) == told
        # The failure leaves the file open, and good for another attempt.
        one.release()
        assert other.acquire(SHARED, timeout)


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("kind", ["file", "folder", "read-only file"])
def test_it_is_had_when_the_holder_lets_go(
    tmp_path: Path, timeout: float | None, kind: str
) -> None:
    path = str(tmp_path / "lock")
    if kind == "folder":
        os.mkdir(path)
    elif kind == "read-only file":
        Path(path).touch(0o444)
    with Flock.open(path) as one, Flock.open(path) as other:
        assert one.try_acquire(EXCLUSIVE)
        # Not before the wait has begun.
        assert other.acquire(EXCLUSIVE, timeout, lambda: threading.Timer(0.05, one.release).start())
        assert not one.try_acquire(SHARED)


@needs_flock
def test_flock_1_sees_it_and_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Flock.open(str(path)) as lock:
        with held(FLOCK, "-s", lock=path):
            assert not lock.try_acquire(EXCLUSIVE)
            assert lock.try_acquire(SHARED)
        assert not is_free(path)
        assert is_free(path, "-s")
        assert lock.acquire(EXCLUSIVE, timeout=1)
        assert not is_free(path, "-s")
    assert is_free(path)


def test_a_keyboard_interrupt_ends_the_wait(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with Flock.open(path) as one, Flock.open(path) as other:
        assert one.try_acquire(EXCLUSIVE)
        for timeout in (None, 60.0):
            interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                other.acquire(EXCLUSIVE, timeout, interrupt.start)


MISSED = """
import _thread, sys, threading
from locks.flock import EXCLUSIVE, Flock
one, other = Flock.open(sys.argv[1]), Flock.open(sys.argv[1])
one.try_acquire(EXCLUSIVE)
# It only notes the signal, as the handler of one does that comes just before flock(2) blocks.
note = threading.Timer(0.3, _thread.interrupt_main)
note.daemon = True
try:
    other.acquire(EXCLUSIVE, on_wait=note.start)
except KeyboardInterrupt:
    import signal
    print(signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL))
"""


def test_a_signal_just_before_the_wait_is_not_lost(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MISSED, str(tmp_path / "lock")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert result.stdout == f"{signal.SIG_DFL!s} (0.0, 0.0)\n", result.stderr


@pytest.mark.parametrize(("how", "hears"), [("heard", True), ("plain", False)])
def test_a_signal_that_was_only_noted_is_heard(how: str, hears: bool) -> None:
    """Another thread gets it, so the call goes on; so it is where it comes just before the call."""
    script = """
import os, signal, sys, threading, time
from locks.flock import heard
ready, say = os.pipe()
signal.signal(signal.SIGUSR1, lambda *_: os.write(say, b"heard"))
def send():
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(3)
    os.write(say, b"not heard")
threading.Thread(target=send, daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
call = lambda: os.read(ready, 100)
print((heard(call) if sys.argv[1] == "heard" else call()).decode(), flush=True)
"""
    words = [sys.executable, "-c", script, how]
    result = subprocess.run(words, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, timeout=20)
    assert result.stdout == ("heard\n" if hears else "not heard\n")


def test_a_call_that_ends_as_the_alarm_comes() -> None:
    """Cygwin delivers the alarm after the timer was stopped: it once ended who had the lock."""
    script = """
import random, time
import locks.flock
locks.flock.LONGEST_DEAFNESS = 0.01
for number in range(60):
    seconds = 0.01 * (1 + number % 2) + random.uniform(-0.0015, 0.0015)
    locks.flock.heard(lambda: time.sleep(seconds))
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, timeout=60).returncode == 0


@pytest.mark.parametrize("where", ["in another thread", "under somebody's alarm"])
def test_somebody_elses_alarm_is_left_alone(tmp_path: Path, where: str) -> None:
    script = """
import signal, sys, threading
from locks.flock import EXCLUSIVE, Flock
one, other = Flock.open(sys.argv[1]), Flock.open(sys.argv[1])
one.try_acquire(EXCLUSIVE)
def wait():
    other.acquire(EXCLUSIVE, on_wait=lambda: threading.Timer(0.5, one.release).start())
    print("had")
if "thread" in sys.argv[2]:
    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
else:
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    wait()
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "lock"), where],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        timeout=20,
    )
    # `perl -e 'alarm 5; exec …'` is how many a script ends what takes too long.
    status, said = (0, b"had\n") if "thread" in where else (-signal.SIGALRM, b"")
    assert (result.returncode, result.stdout) == (status, said)


def test_the_descriptor_is_not_for_our_children_and_a_child_that_has_it_keeps_the_lock(
    tmp_path: Path,
) -> None:
    path = str(tmp_path / "lock")
    lock = Flock.open(path)
    assert lock.try_acquire(EXCLUSIVE)
    assert not os.get_inheritable(lock.fileno())
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[lock.fileno()])
    lock.close()
    lock.close()
    assert lock.fileno() == -1
    with Flock.open(path) as other:
        assert not other.try_acquire(SHARED)
        child.communicate()
        assert other.try_acquire(SHARED)


def test_a_descriptor_that_was_handed_in_is_left_open(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file:
        os.set_inheritable(file.fileno(), True)
        with Flock.of_descriptor(file.fileno()) as lock:
            assert lock.try_acquire(EXCLUSIVE)
        os.fstat(file.fileno())


def test_a_lock_file_is_made_as_flock_1_makes_it(tmp_path: Path) -> None:
    umask = os.umask(0o027)
    try:
        with Flock.open(str(tmp_path / "a/b/lock"), make_parents=True):
            pass
    finally:
        os.umask(umask)
    made = (tmp_path / "a/b/lock").stat()
    assert stat.S_IMODE(made.st_mode) == 0o640
    assert made.st_size == 0


def test_what_a_lock_file_holds_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("12345\n")
    with Flock.open(str(path)) as lock:
        assert lock.acquire(EXCLUSIVE)
    assert path.read_text() == "12345\n"


def test_a_lock_file_is_not_made_through_a_symbolic_link(tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to(target)
    with pytest.raises(LockFileError, match=r"link: it is a symbolic link to a file that does no"):
        Flock.open(str(link))
    assert not target.exists()
    target.touch()
    with Flock.open(str(link)) as one, Flock.open(str(target)) as other:
        assert one.try_acquire(EXCLUSIVE)
        assert not other.try_acquire(SHARED)


def test_a_link_is_not_followed_where_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(LockFileError, match="cannot open the lock file link: it is a symbolic"):
            Flock.open("link", dir_fd=folder)
        with Flock.open("lock", dir_fd=folder) as lock:
            assert os.path.samestat(os.fstat(lock.fileno()), os.stat(tmp_path / "lock"))
    finally:
        os.close(folder)


@pytest.mark.parametrize("readable_only", [False, True])
def test_a_fifo_is_refused_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable_only: bool
) -> None:
    path = str(tmp_path / "lock")
    os.mkfifo(path)
    if readable_only:  # as for somebody who may not write it: opening it would wait for a writer
        real = os.open

        def refuse(path: str, flags: int, *args: int, **more: int | None) -> int:
            if flags & os.O_ACCMODE == os.O_RDWR:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, flags, *args, **more)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(LockFileError, match="it is a FIFO, neither a file nor a folder; choose"):
        Flock.open(path)


def test_a_missing_file_is_not_made_when_it_should_not_be(tmp_path: Path) -> None:
    with pytest.raises(LockFileError) as caught:
        Flock.open(str(tmp_path / "lock"), create=False)
    assert caught.value.errno == errno.ENOENT
    assert caught.value.action == "open"
    assert caught.value.path == str(tmp_path / "lock")
    assert not (tmp_path / "lock").exists()


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LockFileError, match="file is no folder; choose another"):
        Flock.open(str(tmp_path / "file/lock"), make_parents=True)


def test_a_descriptor_that_is_not_open() -> None:
    with pytest.raises(LockFileError, match="cannot lock the lock file descriptor 9999") as caught:
        Flock.of_descriptor(9999).try_acquire(EXCLUSIVE)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(LockFileError):
        Flock.of_descriptor(9999).release()


def test_a_descriptor_of_our_own_is_not_our_callers(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "w") as file, pytest.raises(LockFileError, match="Bad file desc"):
        Flock.of_descriptor(file.fileno()).try_acquire(EXCLUSIVE)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("timeout", [None, 0, 5.0])
def test_only_eagain_means_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, timeout: float | None
) -> None:
    # No file system here refuses flock(2): EACCES is what fasteners itself would take for "held".
    def refuse(fd: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    with Flock.open(str(tmp_path / "lock")) as lock:
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(LockFileError, match="choose ") as caught:
            lock.acquire(EXCLUSIVE, timeout)
    assert caught.value.errno == code


def test_an_error_in_the_midst_of_a_wait_with_a_time_out_is_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([errno.EAGAIN, errno.EAGAIN, errno.EACCES])

    def refuse(fd: int, operation: int) -> None:
        code = next(answers)
        raise OSError(code, os.strerror(code))

    with Flock.open(str(tmp_path / "lock")) as lock:
        monkeypatch.setattr(fcntl, "flock", refuse)
        with pytest.raises(LockFileError):
            lock.acquire(EXCLUSIVE, 60)


def test_the_command_can_not_print_into_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys; from locks.flock import Flock; sys.exit(Flock.open(sys.argv[1]).fileno() < 3)"
    )
    words = [sys.executable, "-c", program, str(path)]
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    assert subprocess.run(shell, cwd=CHECKOUT).returncode == 0


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Make a folder that every user may reach; pytest's own is for its user alone."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(action: Callable[[], int]) -> int:
    """Return what `action` returns in a child without root's powers."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            status = action()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_file_that_may_only_be_read_is_locked_all_the_same(open_folder: Path) -> None:
    path = open_folder / "lock"
    path.touch()
    path.chmod(0o444)
    open_folder.chmod(0o555)

    def action() -> int:
        with Flock.open(str(path)) as lock:
            assert fcntl.fcntl(lock.fileno(), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert lock.try_acquire(EXCLUSIVE)
            with Flock.open(str(path)) as other:
                assert not other.acquire(EXCLUSIVE, 0.02)
        return 0

    assert as_nobody(action) == 0


@pytest.mark.parametrize("what", ["a new file", "a file that may not be read"])
def test_no_permission_is_an_error_and_not_a_held_lock(open_folder: Path, what: str) -> None:
    path = open_folder / "lock"
    if what != "a new file":
        path.touch()
        path.chmod(0)
    open_folder.chmod(0o555)

    def action() -> int:
        with pytest.raises(LockFileError) as caught:
            Flock.open(str(path), make_parents=True)
        assert caught.value.errno == errno.EACCES
        return 0

    assert as_nobody(action) == 0


def test_a_new_file_in_a_read_only_folder_ends_sage_flock_as_flock_1(open_folder: Path) -> None:
    from locks.sage_flock import main

    open_folder.chmod(0o555)

    def action() -> int:
        try:
            main([str(open_folder / "lock"), "true"])
        except SystemExit as end:
            return int(end.code or 0)

    assert as_nobody(action) == 66
