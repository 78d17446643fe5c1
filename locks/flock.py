"""flock(2) on an open lock file: by our own descriptor, or by one that our caller handed down."""

from __future__ import annotations

import _signal as signal
import errno
import os
import stat
import sys
import time

try:
    import fcntl
except ModuleNotFoundError as error:  # native Windows
    raise ModuleNotFoundError(
        "this Python has no fcntl: a native Windows Python sees no lock of Cygwin or MSYS2; "
        "run rebaser with the python3 of Cygwin or the python of MSYS2",
        name="fcntl",
    ) from error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

LONGEST_STEP = 0.01
"""Seconds between two tries of an acquire with a time-out, at most."""
LONGEST_DEAFNESS = 0.2
"""Seconds that a call which waits may go on after a signal, at most."""

SHARED, EXCLUSIVE = "shared", "exclusive"
"""The modes of a lock: it is held by many at once, or by one alone."""
_OPERATIONS = {SHARED: fcntl.LOCK_SH, EXCLUSIVE: fcntl.LOCK_EX}


class LockFileError(Exception):
    """The lock file cannot be opened or locked at all; that is never a lock that others hold.

    `path` is the file, `errno` the reason, and `action` what failed: "open" or "lock".
    """

    def __init__(self, action: str, path: str, cause: OSError) -> None:
        self.action = action
        self.path = path
        self.errno = cause.errno
        super().__init__(
            f"cannot {action} the lock file {path}: {cause.strerror}; {_advice(cause.errno)}"
        )


def _advice(code: int | None) -> str:
    if code == errno.EBADF:
        return "give the number of a descriptor that is open"
    if code in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
        return "its file system has no flock (a network folder?): choose a file on a local disk"
    return "choose another"


class Flock:
    """One open file description of a lock file, and the flock(2) lock on it.

    The lock belongs to the description: it lasts until `release` or until the last process that
    has inherited the descriptor closes it or ends, however it ends. A context manager; leaving it
    closes the descriptor, which drops the lock unless a child has it too.
    """

    def __init__(self, fd: int, path: str, *, owned: bool) -> None:
        self._fd = fd
        self._owned = owned
        self.path = path

    @classmethod
    def open(
        cls,
        path: str,
        *,
        create: bool = True,
        make_parents: bool = False,
        dir_fd: int | None = None,
    ) -> Flock:
        """Open a lock file or a folder, read-write, or read-only where only that is allowed.

        A missing file is made with mode 0666 less the umask, as flock(1) makes it. It is never
        made through a symbolic link, which somebody else may have put there; a link to a file
        that exists is followed, since opening a lock file changes nothing in it, but not where
        `dir_fd`, a descriptor of its folder, is given. What is neither a file nor a folder is
        refused, and no FIFO is waited for. The descriptor is close-on-exec and never 0, 1 or 2.
        `make_parents` makes the folders that are missing. Raises LockFileError.
        """
        try:
            if create and make_parents and os.path.dirname(path):
                _make_folder(os.path.dirname(path))
            name = path if dir_fd is None else os.path.basename(path)
            return cls(_usable(_opened(name, create, dir_fd)), path, owned=True)
        except OSError as error:
            raise LockFileError("open", path, error) from error

    @classmethod
    def of_descriptor(cls, fd: int) -> Flock:
        """Use a descriptor that our caller opened, one that came through exec; `close` leaves it.

        Any other is as good as none: where the caller had closed a standard stream, /dev/null may
        be open there meanwhile.
        """
        return cls(fd, f"descriptor {fd}", owned=False)

    def try_acquire(self, mode: str) -> bool:
        """Take the lock, or change its mode, without waiting; False where others hold it.

        A lock that is held shared may be lost when it cannot be made exclusive: see flock(2).
        Raises LockFileError where this file cannot be locked at all.
        """
        return self._flock(_OPERATIONS[mode] | fcntl.LOCK_NB)

    def acquire(
        self, mode: str, timeout: float | None = None, on_wait: Callable[[], None] | None = None
    ) -> bool:
        """Take the lock, waiting `timeout` seconds at most (None: for ever, 0: not at all).

        Returns False when the time is up. `on_wait` is called once, before a wait begins; what it
        raises ends the wait. Without a time-out the wait is a blocking flock(2), which wakes the
        moment the holder goes; with one it looks again every LONGEST_STEP. Raises LockFileError.
        """
        if self.try_acquire(mode):
            return True
        if timeout is not None and timeout <= 0:
            return False
        if on_wait is not None:
            on_wait()
        if timeout is None:
            return heard(lambda: self._flock(_OPERATIONS[mode]))
        return _tried_for(timeout, lambda: self.try_acquire(mode))

    def release(self) -> None:
        """Drop the lock and keep the file open. Raises LockFileError."""
        self._flock(fcntl.LOCK_UN)

    def _flock(self, operation: int) -> bool:
        try:
            if not (self._owned or os.get_inheritable(self._fd)):
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            fcntl.flock(self._fd, operation)
            return True
        except BlockingIOError:  # EAGAIN and EWOULDBLOCK, nothing else, mean "held"
            return False
        except OSError as error:
            raise LockFileError("lock", self.path, error) from error

    def close(self) -> None:
        """Close the descriptor, unless it was handed in; a second call does nothing."""
        if self._owned and self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def fileno(self) -> int:
        """Return the descriptor, -1 after `close`."""
        return self._fd

    def __enter__(self) -> Flock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def heard(call: Callable[[], T]) -> T:
    """Make a system call that waits, and that goes back to Python now and then; return its result.

    A signal that comes between Python's last look for one and the call is only noted: a ^C would be
    lost. Nothing is done where somebody else uses this alarm, or in another thread than the first,
    which alone handles signals.
    """
    alarm, timer = signal.SIGALRM, signal.ITIMER_REAL
    if signal.getsignal(alarm) != signal.SIG_DFL or any(signal.getitimer(timer)):
        return call()
    try:
        signal.signal(alarm, lambda *_: None)
    except ValueError:  # in another thread
        return call()
    try:
        signal.setitimer(timer, LONGEST_DEAFNESS, LONGEST_DEAFNESS)
        return call()
    finally:
        signal.setitimer(timer, 0)
        if sys.platform in ("cygwin", "msys"):  # the last may be on its way: this comes behind it
            os.kill(os.getpid(), alarm)
        signal.signal(alarm, signal.SIG_DFL)


def _tried_for(seconds: float, attempt: Callable[[], bool]) -> bool:
    """Try until it succeeds or the time is up, LONGEST_STEP apart at most."""
    try:
        from locks.timed import TimedLock
    except ImportError:  # sage-flock in the midst of a build: its Python has no fasteners
        end = time.monotonic() + seconds
        while not attempt():
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, LONGEST_STEP))
        return True
    return bool(TimedLock(attempt).acquire(delay=0.002, max_delay=LONGEST_STEP, timeout=seconds))


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OSError(error.errno, f"{error.filename or path} is no folder") from None


# EBUSY: Cygwin opens no DLL for writing that a process has loaded; ETXTBSY is Linux's like.
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ETXTBSY, errno.EBUSY)


def _opened(path: str, create: bool, dir_fd: int | None) -> int:
    # Without O_NONBLOCK a FIFO is waited for; for flock(2) it means nothing.
    flags = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    if dir_fd is not None:
        flags |= os.O_NOFOLLOW
    while True:
        # First without O_CREAT: where fs.protected_regular is set, Linux refuses O_CREAT on
        # another user's file in /tmp, even to root (proc(5)).
        try:
            return os.open(path, os.O_RDWR | flags, dir_fd=dir_fd)
        except OSError as error:
            if error.errno in _READ_ONLY:
                return os.open(path, os.O_RDONLY | flags, dir_fd=dir_fd)
            if error.errno == errno.ELOOP and dir_fd is not None:
                raise OSError(errno.ELOOP, "it is a symbolic link") from None
            if error.errno != errno.ENOENT or not create:
                raise
        try:
            made = os.O_RDWR | os.O_CREAT | os.O_EXCL | flags
            return os.open(path, made, 0o666, dir_fd=dir_fd)
        except FileExistsError:  # somebody else made it just now, or a link to nothing is there
            if stat.S_ISLNK(os.lstat(path, dir_fd=dir_fd).st_mode):
                raise OSError(
                    errno.ELOOP, "it is a symbolic link to a file that does not exist"
                ) from None


def _usable(fd: int) -> int:
    """Return a descriptor above 2: a command started with `>&-` must not print into the lock.

    It is that of a file, a folder or, as flock(1) does, a device.
    """
    is_fifo = stat.S_ISFIFO(os.fstat(fd).st_mode)
    if fd > 2 and not is_fifo:
        return fd
    try:
        if is_fifo:
            raise OSError(errno.ENXIO, "it is a FIFO, neither a file nor a folder")
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def inherited_lock(path: str | int) -> tuple[int, str] | None:
    """Return the caller's descriptor of this lock file (a path or a descriptor) and its state.

    That is "exclusive", "shared", "unlocked", or "unknown": one of the latter two, where the system
    does not say which (Cygwin). Of several, the one that holds most; None without one. Only what
    survived our exec counts, that is what is not close-on-exec. The caller's lock stays as it is.
    Raises nothing.
    """
    try:
        wanted = os.stat(path)
        descriptors = sorted(map(int, os.listdir("/proc/self/fd")))
    except OSError:
        return None
    found = []
    for fd in descriptors:
        try:
            is_ours = fd == path or not os.get_inheritable(fd)
            if not is_ours and os.path.samestat(os.fstat(fd), wanted):
                found.append((fd, _state(fd, path)))
        except OSError:  # the descriptor that listed the folder
            continue
    order = ("exclusive", "shared", "unknown", "unlocked")
    return min(found, key=lambda one: order.index(one[1]), default=None)


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
        if own.try_acquire(SHARED):
            return "unknown"
    return "exclusive" if Flock.of_descriptor(fd).try_acquire(EXCLUSIVE) else "unlocked"
