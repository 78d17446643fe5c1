"""Runs a command under a lock that was taken: becomes it, or waits for it and keeps the lock."""

from __future__ import annotations

import _signal as signal
import errno
import os
import sys
import time

from locks.flock import EXCLUSIVE, Flock, heard, inherited_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def run_command(
    command: list[str],
    lock: Flock,
    *,
    close: bool,
    failed: Callable[[OSError], int],
    is_lost: Callable[[], bool] | None = None,
) -> int:
    """Become the command, which inherits the lock: its status, signals and process id are its own.

    With `close` the command runs in a child that has no descriptor of the lock, and its exit
    status is returned, 128 + N after signal N; the lock lasts until it ends. Where the command
    cannot be started, `failed` is called with the reason, and what it returns is the status. With
    `is_lost` it is a child too, which gets SIGTERM when that turns true.
    """
    if not close:
        os.set_inheritable(lock.fileno(), True)
    try:
        sys.stdout.flush()
    except (AttributeError, OSError):  # closed by the caller, or its reader is gone
        pass
    if close or is_lost:
        return _run_beside(lambda: failed(_become(command)), is_lost)
    return failed(_become(command))


def shell_command(string: str) -> list[str]:
    """Return the command that runs `string` in the user's shell, chosen as flock(1) does."""
    return [os.environ.get("SHELL") or "/bin/sh", "-c", string]


def _become(command: list[str]) -> OSError:
    """Replace this process by a command searched for in PATH; return only why that failed.

    Python ignores SIGPIPE and SIGXFSZ, and an ignored signal stays ignored across exec; SIGCHLD
    gets its default back as in flock(1).
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    try:
        if not command[0]:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        os.execvp(command[0], command)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            return error
    # A script without #!, which execvp(3) gives to sh and os.execvp does not.
    import shutil

    try:
        os.execv("/bin/sh", ["/bin/sh", shutil.which(command[0]) or command[0], *command[1:]])
    except OSError as error:
        return error


def _run_beside(become: Callable[[], int], is_lost: Callable[[], bool] | None) -> int:
    """Fork; `become` in the child; return its exit status.

    The keyboard's signals reach the child too, so here they are ignored until it ends; SIGTERM
    and SIGHUP are passed on to it; what the caller ignores stays ignored. What comes meanwhile is
    noted (Cygwin's Python has no pthread_sigmask to hold it back): before the fork for the child
    to find, after it for us to send when the child says that it has its own handlers back. A
    child of Python forgets what comes to it earlier.
    """
    keyboard, passed_on = (signal.SIGINT, signal.SIGQUIT), (signal.SIGTERM, signal.SIGHUP)
    came: list[tuple[int, int]] = []
    before = {number: signal.getsignal(number) for number in keyboard + passed_on}
    caught = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would lose us the exit status
    ready, say_ready = os.pipe()
    for number in caught:
        signal.signal(number, lambda number, _frame: came.append((os.getpid(), number)))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            for number in caught:
                signal.signal(number, before[number])
            os.write(say_ready, bytes([sum(process != os.getpid() for process, _ in came)]))
            for _, number in came:
                os.kill(os.getpid(), number)
            status = become()
        except KeyboardInterrupt:
            status = 130
        finally:
            os._exit(status)
    os.close(say_ready)
    found = os.read(ready, 1)  # nothing where the child was killed at once
    os.close(ready)
    for number in caught:
        signal.signal(
            number, signal.SIG_IGN if number in keyboard else lambda n, _: os.kill(pid, n)
        )
    for _, number in came[found[0] if found else len(came) :]:
        if number in passed_on:
            os.kill(pid, number)
    done = 0
    while is_lost and not done:
        if is_lost():
            os.kill(pid, signal.SIGTERM)
            is_lost = None
        time.sleep(0.05)
        done, status = os.waitpid(pid, os.WNOHANG)
    if not done:
        _, status = heard(lambda: os.waitpid(pid, 0))
    for number in passed_on:
        signal.signal(number, signal.SIG_IGN)  # nobody is left to pass it on to
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def warn_of_own_lock(lock: Flock, mode: str, tell: Callable[[str], None]) -> None:
    """Tell of it where this process would wait for a lock that its own caller holds.

    `mode` is how it was just tried, in vain.
    """
    descriptor, state = inherited_lock(lock.fileno()) or (-1, "unlocked")
    how = f"holds this lock {state}"
    if state == "unknown":
        from locks.holders import only_callers_have

        certain = mode == EXCLUSIVE and only_callers_have(lock.fileno())
        how = "holds this lock shared" if certain else "may hold this lock"
    if state != "unlocked":
        tell(
            f"descriptor {descriptor}, which this process has from its caller, {how}: "
            "the wait lasts until the caller drops it"
        )


def say(text: str) -> None:
    """Write to stderr at once; a stderr that is closed or full is no reason to lose the lock."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (AttributeError, OSError):
        pass
