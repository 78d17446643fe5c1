"""Runs a command under a lock that was taken: becomes it, or waits for it and keeps the lock."""

from __future__ import annotations

import errno
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from locks.flock import Flock


def run_command(
    command: list[str], lock: Flock, *, close: bool, failed: Callable[[OSError], int]
) -> int:
    """Become the command, which inherits the lock: its status, signals and process id are its own.

    With `close` the command runs in a child that has no descriptor of the lock, and its exit
    status is returned, 128 + N after signal N; the lock lasts until it ends. Where the command
    cannot be started, `failed` is called with the reason, and what it returns is the status.
    """

    def become() -> int:
        try:
            exec_command(command)
        except OSError as error:
            return failed(error)

    if close:
        return _run_beside(become)
    os.set_inheritable(lock.fileno(), True)
    return become()


def shell_command(string: str) -> list[str]:
    """Return the command that runs `string` in the user's shell, chosen as flock(1) does."""
    return [os.environ.get("SHELL") or "/bin/sh", "-c", string]


def exec_command(command: list[str]) -> NoReturn:
    """Replace this process by a command searched for in PATH. Raises OSError.

    Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored across exec; SIGCHLD
    gets its default back as in flock(1).
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    _flush()
    try:
        if not command[0]:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvp(command[0], command)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    # A script without #!, which execvp(3) gives to sh and os.execvp does not.
    import shutil

    os.execv("/bin/sh", ["/bin/sh", shutil.which(command[0]) or command[0], *command[1:]])


def _run_beside(become: Callable[[], int]) -> int:
    """Fork; `become` in the child; return its exit status.

    The keyboard's signals reach the child too, so here they are ignored until it ends; SIGTERM
    and SIGHUP are passed on to it, unless they are ignored. None comes between: they are blocked
    while the child is made.
    """
    keyboard = (signal.SIGINT, signal.SIGQUIT)
    passed_on = (signal.SIGTERM, signal.SIGHUP)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would lose us the exit status
    _flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (*keyboard, *passed_on))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            status = become()
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    for number in keyboard:
        signal.signal(number, signal.SIG_IGN)
    for number in passed_on:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    _, status = os.waitpid(pid, 0)
    for number in passed_on:
        signal.signal(number, signal.SIG_IGN)  # nobody is left to pass it on to
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def self_lock_warning(lock: Flock) -> str | None:
    """Return a sentence where this process would wait for a lock that its own caller holds."""
    from locks.inherited import inherited_lock

    held = inherited_lock(lock.fileno())
    if held is None or held.state == "unlocked":
        return None
    how = "may hold" if held.state == "unknown" else "holds"
    mode = "" if held.state == "unknown" else f" {held.state}"
    return (
        f"descriptor {held.descriptor}, which this process has from its caller, {how} this lock"
        f"{mode}: the wait lasts until the caller drops it"
    )


def say(text: str) -> None:
    """Write to stderr at once; a stderr that is closed or full is no reason to lose the lock."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        pass


def _flush() -> None:
    try:
        sys.stdout.flush()
    except (AttributeError, OSError):  # closed by the caller, or its reader is gone
        pass
