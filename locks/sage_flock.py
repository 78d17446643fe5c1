"""The program `sage-flock`: flock(1)'s command line, and SageMath's program of that name."""

from __future__ import annotations

import errno
import getopt
import os
import signal
import sys
from contextlib import suppress

from locks.flock import EXCLUSIVE, SHARED, Flock, LockFileError
from locks.hold import run_command, say, shell_command, warn_of_own_lock

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
                        exit status when others hold the lock (default 1)
  -o, --close           run the command without the lock's descriptor; wait for it
  -F, --no-fork         accepted: without -o nothing is forked
  -c, --command STRING  run STRING in $SHELL or /bin/sh
      --verbose         say who holds the lock, and what is run
  -h, --help, -V, --version

exit status: the command's; 1 or -E busy; 64 usage; 65 not lockable; 66 LOCK cannot be opened;
69 COMMAND cannot be run; 71 system error; 73 LOCK cannot be made (read-only or full).
"""

SHORT = "sxeunoFhVw:E:"
LONG = {
    "shared": "-s",
    "exclusive": "-x",
    "unlock": "-u",
    "nonblocking": "-n",
    "nb": "-n",
    "timeout=": "-w",
    "wait=": "-w",
    "conflict-exit-code=": "-E",
    "close": "-o",
    "no-fork": "-F",
    "verbose": "--verbose",
    "help": "-h",
    "version": "-V",
}
MODES = {"-s": SHARED, "-x": EXCLUSIVE, "-e": EXCLUSIVE, "-u": None}
ANSWERS = {"-h": USAGE.rstrip(), "-V": "sage-flock of rebaser"}


class ExitError(Exception):
    """An exit status and the sentence that goes with it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class UsageError(ExitError):
    """The command line cannot be understood."""

    def __init__(self, text: str) -> None:
        super().__init__(os.EX_USAGE, f"{text}\nTry 'sage-flock --help' for more information.")


def main(words: list[str] | None = None) -> None:
    """Run sage-flock and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C ends it as it ends flock(1)
    try:
        status = sage_flock(sys.argv[1:] if words is None else words)
    except (ExitError, LockFileError) as error:
        complain(str(error))
        status = error.status if isinstance(error, ExitError) else status_of(error)
    except Exception:  # a bug; 1, Python's own status for it, would mean "busy"
        import traceback

        complain(traceback.format_exc())
        status = os.EX_SOFTWARE
    sys.exit(status)


def complain(text: str) -> None:
    """Write a line to stderr."""
    say(f"sage-flock: {text}\n")


def sage_flock(words: list[str]) -> int:
    """Do what the command line says; return the exit status. Raises ExitError, LockFileError."""
    options, operands = parsed(words)
    for option in ANSWERS.keys() & options:
        print(ANSWERS[option])
        return 0
    if "-F" in options and "-o" in options:
        raise UsageError("the --no-fork and --close options are incompatible")
    # Callers of flock(1) compare its standard error; SageMath's are told of a wait.
    talk = options.keys() <= {"-s", "-x", "-u"} and operands[1:2] not in (["-c"], ["--command"])
    verbose = "--verbose" in options
    lock, command = lock_and_command(operands)
    why = f"to run {' '.join(command)}" if command else f"on {lock.path}"
    if not taken(lock, options, verbose=verbose, told=why if talk else ""):
        if verbose:
            complain(f"could not take the lock {lock.path}")
        return int(options.get("-E", "1"))
    if not command:
        return 0
    if verbose:
        complain(f"executing {command[0]}")

    def failed(error: OSError) -> int:
        complain(f"failed to execute {command[0]}: {error.strerror}")
        return os.EX_OSERR if error.errno == errno.ENOMEM else os.EX_UNAVAILABLE

    return run_command(command, lock, close="-o" in options, failed=failed)


def parsed(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return the options, short, in their order, and from the first other word on the operands.

    -h or -V is the only one then: flock(1) answers before it looks at the words after it. Raises
    UsageError.
    """
    try:
        given, operands = getopt.getopt(words, SHORT, list(LONG))
    except getopt.GetoptError as error:
        for end in range(len(words)):
            with suppress(UsageError):
                options, _ = parsed(words[:end])
                if ANSWERS.keys() & options:
                    return options, []
        raise UsageError(error.msg) from None
    options = {}
    for option, value in given:
        short = LONG.get(option[2:]) or LONG.get(f"{option[2:]}=") or option
        if short in ANSWERS:
            return {short: ""}, []
        if short == "-w":
            number(float, value, "timeout value")
        elif short == "-E" and not 0 <= number(int, value, "exit code") <= 255:
            raise UsageError("exit code out of range (expected 0 to 255)")
        options.pop(short, None)
        options[short] = value
    return options, operands


def number(kind: type[int | float], text: str, what: str) -> int | float:
    """Return the number that an option has been given."""
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"invalid {what}: {text!r}") from None


def lock_and_command(operands: list[str]) -> tuple[Flock, list[str]]:
    """Return the lock, opened, and the command, which is empty for a descriptor."""
    if not operands:
        raise UsageError("not enough arguments")
    name, command = operands[0], operands[1:]
    if not command:
        if name.lstrip("+-").isdecimal() and -(2**31) <= number(int, name, "descriptor") < 2**31:
            return Flock.of_descriptor(int(name)), []
        what = "a file or folder needs a command after it"
        raise UsageError(f"bad file descriptor: {name!r}; {what}")
    if command[0] in ("-c", "--command"):
        if len(command) != 2:
            raise UsageError(f"{command[0]} requires exactly one command argument")
        command = shell_command(command[1])
    return Flock.open(name, make_parents=True), command


def taken(lock: Flock, options: dict[str, str], *, verbose: bool, told: str) -> bool:
    """Take or drop the lock; False when others kept it.

    `told` is what SageMath's program says that it waits for, "" for flock(1), which is silent.
    """
    mode = next((MODES[option] for option in reversed(options) if option in MODES), EXCLUSIVE)
    timeout = float(options["-w"]) if "-w" in options else None
    if timeout is not None and not 0 <= timeout < 2**31:  # the most that flock(1)'s timer holds
        raise ExitError(os.EX_OSERR, f"cannot set up a timer of {timeout} seconds")
    if mode is None:
        lock.release()
        return True
    if lock.try_acquire(mode):
        return True
    if "-n" in options or timeout == 0:
        return False
    from locks.holders import describe_holders, printable

    if verbose:
        complain(f"{lock.path} is {describe_holders(lock.fileno())}")
    if verbose or told:
        warn_of_own_lock(lock, mode, complain)
    if not told:
        return lock.acquire(mode, timeout)
    say(f"Waiting for {mode} lock {printable(told)} ... ")
    had = False
    try:
        had = lock.acquire(mode, timeout)
    finally:
        say("ok\n" if had else "failed\n")
    return had


def status_of(error: LockFileError) -> int:
    """Return flock(1)'s exit status for a lock file that cannot be opened or locked."""
    if error.action == "lock":
        return os.EX_OSERR if error.errno in (errno.ENOLCK, errno.ENOMEM) else os.EX_DATAERR
    if error.errno in (errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return os.EX_OSERR
    return os.EX_CANTCREAT if error.errno in (errno.EROFS, errno.ENOSPC) else os.EX_NOINPUT
