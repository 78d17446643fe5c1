"""The program `sage-flock`: flock(1)'s command line, and SageMath's program of that name."""

from __future__ import annotations

import errno
import os
import signal
import sys

from locks.flock import Flock, LockFileError, Mode
from locks.hold import run_command, say, self_lock_warning, shell_command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

USAGE = """\
usage: sage-flock [options] LOCK COMMAND [ARG ...]
       sage-flock [options] LOCK -c STRING
       sage-flock [options] DESCRIPTOR

Runs a command while a file or a folder is locked with flock(2), as flock(1) does, or locks a
descriptor that the caller opened. A missing LOCK is made, its folders too. The command replaces
this process and inherits the lock, which ends with it.

  -s, --shared          a shared lock
  -x, -e, --exclusive   an exclusive lock (the default)
  -u, --unlock          drop the lock
  -n, --nonblock        fail rather than wait
  -w, --timeout SECONDS wait that long at most (also --wait)
  -E, --conflict-exit-code N
                        exit status when the lock was not had (default 1)
  -o, --close           run the command without the lock's descriptor; wait for it
  -F, --no-fork         accepted: without -o nothing is forked
  -c, --command STRING  run STRING in $SHELL or /bin/sh
      --verbose         say who holds the lock, and what is run
  -h, --help, -V, --version

exit status: the command's; 1 or -E busy; 64 usage; 65 not lockable; 66 LOCK cannot be opened;
69 COMMAND cannot be run; 71 system error; 73 LOCK cannot be made (read-only or full).
"""

# <sysexits.h>, as flock(1) uses them
EX_USAGE, EX_DATAERR, EX_NOINPUT, EX_UNAVAILABLE = 64, 65, 66, 69
EX_SOFTWARE, EX_OSERR, EX_CANTCREAT = 70, 71, 73

FLAGS = ("s", "x", "e", "u", "n", "o", "F", "h", "V")
LONG = {
    "shared": "s",
    "exclusive": "x",
    "unlock": "u",
    "nonblocking": "n",
    "nb": "n",
    "timeout": "w",
    "wait": "w",
    "conflict-exit-code": "E",
    "close": "o",
    "no-fork": "F",
    "verbose": "verbose",
    "help": "h",
    "version": "V",
}
VALUED = ("w", "E")
LONGEST_WAIT = 2.0**31
"""Seconds; flock(1) refuses what its timer cannot hold."""


class ExitError(Exception):
    """An exit status and the sentence that goes with it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UsageError(ExitError):
    """The command line cannot be understood."""

    def __init__(self, text: str) -> None:
        super().__init__(EX_USAGE, f"{text}\nTry 'sage-flock --help' for more information.")


class Options:
    """What the options ask for; a `mode` of None unlocks."""

    mode: Mode | None = Mode.EXCLUSIVE
    nonblock = False
    timeout: float | None = None
    conflict = 1
    close = False
    no_fork = False
    verbose = False
    answer: str | None = None


def main(words: list[str] | None = None) -> NoReturn:
    """Run sage-flock and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C ends it as it ends flock(1)
    try:
        status = sage_flock(sys.argv[1:] if words is None else words)
    except ExitError as error:
        complain(str(error))
        status = error.status
    except LockFileError as error:
        complain(str(error))
        status = status_of(error)
    except Exception:  # a bug; 1, Python's own status for it, would mean "busy"
        import traceback

        complain(traceback.format_exc())
        status = EX_SOFTWARE
    sys.exit(status)


def complain(text: str) -> None:
    """Write a line to stderr."""
    say(f"sage-flock: {text}\n")


def sage_flock(words: list[str]) -> int:
    """Do what the command line says; return the exit status. Raises ExitError, LockFileError."""
    options, operands = parsed(words)
    if options.answer is not None:
        print(options.answer)
        return 0
    if options.no_fork and options.close:
        raise UsageError("the --no-fork and --close options are incompatible")
    lock, command = lock_and_command(operands)
    if not taken(lock, options, command, words):
        if options.verbose:
            complain(f"failed to get the lock {lock.path}")
        return options.conflict
    if not command:
        return 0
    if options.verbose:
        complain(f"executing {command[0]}")

    def failed(error: OSError) -> int:
        complain(f"failed to execute {command[0]}: {error.strerror}")
        return EX_OSERR if error.errno == errno.ENOMEM else EX_UNAVAILABLE

    return run_command(command, lock, close=options.close, failed=failed)


def parsed(words: list[str]) -> tuple[Options, list[str]]:
    """Return the options and, from the first word that is none, the operands. Raises UsageError."""
    options = Options()
    operands = list(words)
    while operands and operands[0].startswith("-") and operands[0] != "-":
        word = operands.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            letter = long_option(name)
            if letter in VALUED:
                value = value if equals else value_of(f"--{name}", operands)
            elif equals:
                raise UsageError(f"option '--{name}' doesn't allow an argument")
            apply(options, letter, value)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in VALUED:
                apply(options, letter, letters or value_of(f"-{letter}", operands))
                break
            if letter not in FLAGS:
                raise UsageError(f"invalid option -- '{letter}'")
            apply(options, letter, "")
        if options.answer is not None:
            break
    return options, operands


def long_option(name: str) -> str:
    """Return what stands for a long option; its beginning is enough, as with getopt_long(3)."""
    if name in LONG:
        return LONG[name]
    meant = {letter for full, letter in LONG.items() if name and full.startswith(name)}
    if len(meant) != 1:
        raise UsageError(f"option '--{name}' is {'ambiguous' if meant else 'unknown'}")
    return meant.pop()


def value_of(option: str, operands: list[str]) -> str:
    """Take the value of an option from the next word."""
    if not operands:
        raise UsageError(f"option '{option}' requires an argument")
    return operands.pop(0)


def apply(options: Options, letter: str, value: str) -> None:
    """Enter one option. Raises UsageError."""
    if letter == "s":
        options.mode = Mode.SHARED
    elif letter in ("x", "e"):
        options.mode = Mode.EXCLUSIVE
    elif letter == "u":
        options.mode = None
    elif letter == "n":
        options.nonblock = True
    elif letter == "w":
        options.timeout = seconds(value)
    elif letter == "E":
        options.conflict = exit_status(value)
    elif letter == "o":
        options.close = True
    elif letter == "F":
        options.no_fork = True
    elif letter == "verbose":
        options.verbose = True
    elif letter == "h":
        options.answer = USAGE.rstrip()
    else:
        options.answer = "sage-flock of rebaser"


def seconds(text: str) -> float:
    """Return the value of -w."""
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"invalid timeout value: {text!r}") from None


def exit_status(text: str) -> int:
    """Return the value of -E."""
    try:
        status = int(text)
    except ValueError:
        raise UsageError(f"invalid exit code: {text!r}") from None
    if not 0 <= status <= 255:
        raise UsageError("exit code out of range (expected 0 to 255)")
    return status


def lock_and_command(operands: list[str]) -> tuple[Flock, list[str]]:
    """Return the lock, opened, and the command, which is empty for a descriptor."""
    if not operands:
        raise UsageError("not enough arguments")
    name, command = operands[0], operands[1:]
    if not command:
        return Flock.of_descriptor(descriptor(name)), []
    if command[0] in ("-c", "--command"):
        if len(command) != 2:
            raise UsageError(f"{command[0]} requires exactly one command argument")
        command = shell_command(command[1])
    return Flock.open(name, make_parents=True), command


def descriptor(text: str) -> int:
    """Return the number of a descriptor. Raises UsageError, LockFileError."""
    try:
        number = int(text)
    except ValueError:
        number = 2**31
    if not -(2**31) <= number < 2**31:
        raise UsageError(
            f"bad file descriptor: {text!r}; a file or folder needs a command after it"
        )
    if number < 0:
        raise LockFileError(
            "lock", f"descriptor {number}", OSError(errno.EBADF, os.strerror(errno.EBADF))
        )
    return number


def taken(lock: Flock, options: Options, command: list[str], words: list[str]) -> bool:
    """Take or drop the lock; False when others kept it. The wait is told as SageMath tells it."""
    timeout = options.timeout
    if timeout is not None and not 0 <= timeout < LONGEST_WAIT:
        raise ExitError(EX_OSERR, f"cannot set up a timer of {timeout} seconds")
    mode = options.mode
    if mode is None:
        lock.release()
        return True
    waited = False

    def begin() -> None:
        nonlocal waited
        waited = True
        if timeout is not None:
            need_fasteners(words)
        from locks.holders import describe_holders, printable

        if options.verbose:
            complain(f"{lock.path} is {describe_holders(lock.fileno())}")
        warning = self_lock_warning(lock)
        if warning:
            complain(warning)
        what = f"to run {printable(' '.join(command))}" if command else f"on {lock.path}"
        say(f"Waiting for {mode.value} lock {what} ... ")

    had = False
    try:
        had = lock.acquire(mode, 0 if options.nonblock else timeout, begin)
    finally:
        if waited:
            say("ok\n" if had else "failed\n")
    return had


def need_fasteners(words: list[str]) -> None:
    """Make sure that fasteners, which a wait with a time-out needs, can be imported.

    Nothing else here needs more than the standard library, so that sage-flock works where no
    virtual environment was made yet and nothing can be downloaded: in the midst of a build.
    """
    import importlib.util
    import site

    site.main()  # bin/sage-flock starts Python without it
    if importlib.util.find_spec("fasteners"):
        return
    programs = f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}/bin"
    if os.spawnv(os.P_WAIT, f"{programs}/make-venv", ["make-venv"]):
        raise ExitError(
            EX_OSERR, f"a wait with a time-out needs fasteners: run {programs}/make-venv"
        )
    os.execv(f"{programs}/sage-flock", ["sage-flock", *words])


def status_of(error: LockFileError) -> int:
    """Return flock(1)'s exit status for a lock file that cannot be opened or locked."""
    if error.action == "lock":
        return EX_OSERR if error.errno in (errno.ENOLCK, errno.ENOMEM) else EX_DATAERR
    if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return EX_OSERR
    return EX_CANTCREAT if error.errno in (errno.EROFS, errno.ENOSPC) else EX_NOINPUT
