"""Run COMMAND while holding a lock; without --name, --file or --fd it is the tree's rebase lock.

The lock is flock(2): flock(1), sage-flock and rebaser exclude each other on the same file. The
command replaces this process and inherits the lock, so its exit status, signals and process id
are its own, and the lock ends with it and with all of its children that keep running.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys

from locks.flock import Flock, LockFileError, Mode
from rebaser.errors import RebaserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.cli import Parser

EXIT_USAGE = 64
EXIT_NO_LOCK_FILE = 66
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127

EPILOG = """\
Every word after the first that is no option belongs to COMMAND.

exit status: the command's; 1 or -E when the lock was not had; 64 usage, or no tree named;
66 the lock file cannot be opened or locked; 126 COMMAND cannot be executed, 127 not found;
130 interrupted while waiting.
"""


class LockUsageError(RebaserError):
    """The options do not go together, or no lock is named."""

    exit_status = EXIT_USAGE


class NoLockFileError(RebaserError):
    """The lock file cannot be opened or locked at all."""

    exit_status = EXIT_NO_LOCK_FILE


def add_arguments(parser: Parser) -> None:
    """Declare the command line of `rebaser lock`."""
    parser.usage_status = EXIT_USAGE
    parser.usage = "rebaser lock [options] [--] COMMAND [ARG ...]"
    parser.epilog = EPILOG
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--name", type=_name, help="lock NAME.lock, beside the rebase lock")
    which.add_argument("--file", metavar="PATH", help="lock this file or folder")
    which.add_argument(
        "--fd", type=_descriptor, metavar="N", help="lock a descriptor of the caller's and return"
    )
    add("--root", help="the tree (default: the environment variable SAGE_LOCAL)")
    add(
        "--lock-file",
        metavar="PATH",
        help="the rebase lock (default: REBASER_LOCK_FILE, else ROOT/var/lock/rebase.lock)",
    )
    add(
        "-x",
        "--exclusive",
        dest="mode",
        action="store_const",
        const=Mode.EXCLUSIVE,
        default=Mode.EXCLUSIVE,
        help="nobody else holds it (default)",
    )
    add(
        "-s",
        "--shared",
        dest="mode",
        action="store_const",
        const=Mode.SHARED,
        help="others may hold it shared too",
    )
    add(
        "-u",
        "--unlock",
        dest="mode",
        action="store_const",
        const=None,
        help="drop the lock, with --fd",
    )
    add("-n", "--nonblock", action="store_true", help="fail rather than wait")
    add("-w", "--wait", type=_seconds, metavar="SECONDS", help="wait that long at most")
    add(
        "-E",
        "--conflict-exit-code",
        type=_status,
        default=1,
        metavar="N",
        help="exit status when the lock was not had (default: 1)",
    )
    add(
        "-o",
        "--close",
        action="store_true",
        help="the command does not inherit the lock: what it leaves running cannot keep it",
    )
    add("-c", "--command", dest="string", metavar="STRING", help="run STRING in $SHELL or /bin/sh")
    add("--verbose", action="store_true", help="say who holds the lock, also where no one looks on")
    add("words", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)


def main(arguments: argparse.Namespace) -> int:
    """Take the lock and become the command; return an exit status only where that failed."""
    from rebaser.process import leave_signals

    command = _command(arguments)
    leave_signals()  # there is nothing to clean up: they end the wait as they end flock(1)
    try:
        return _run(arguments, command)
    except LockFileError as error:
        named = " with --file or --lock-file" if arguments.fd is None else ""
        raise NoLockFileError(f"{error}{named}") from error


def _run(arguments: argparse.Namespace, command: list[str]) -> int:
    if arguments.fd is not None:
        lock = Flock.of_descriptor(arguments.fd)
        if arguments.mode is None:
            lock.release()
            return 0
    else:
        # As flock(1), no folder is made for a name that may be misspelt.
        lock = Flock.open(_lock_file(arguments), make_parents=arguments.file is None)
    mode: Mode = arguments.mode
    talk = arguments.verbose or (sys.stderr is not None and sys.stderr.isatty())

    def on_wait() -> None:
        _tell_who(lock, mode, talk)

    if not lock.acquire(mode, 0 if arguments.nonblock else arguments.wait, on_wait):
        if talk:
            from locks.holders import describe_holders

            _say(f"the lock was not had: {lock.path}, {describe_holders(lock.fileno())}")
        return int(arguments.conflict_exit_code)
    if not command:
        return 0

    from locks.hold import run_command

    return run_command(command, lock, close=arguments.close, failed=lambda e: _failed(command, e))


def _command(arguments: argparse.Namespace) -> list[str]:
    words: list[str] = arguments.words
    if words[:1] == ["--"]:
        words = words[1:]
    if arguments.string is not None:
        if words or arguments.fd is not None:
            raise LockUsageError("-c STRING is the whole command: no COMMAND and no --fd with it")
        from locks.hold import shell_command

        return shell_command(arguments.string)
    if arguments.fd is not None:
        if words:
            raise LockUsageError("--fd locks a descriptor of the caller's: no COMMAND with it")
        return []
    if arguments.mode is None:
        raise LockUsageError("-u drops the lock of a descriptor: name it with --fd N")
    if not words:
        raise LockUsageError("no COMMAND is given (rebaser lock --help tells more)")
    return words


def _lock_file(arguments: argparse.Namespace) -> str:
    if arguments.file is not None:
        return str(arguments.file)
    # A lock file that is named needs no tree.
    path = arguments.lock_file or os.environ.get("REBASER_LOCK_FILE")
    if not path:
        from rebaser.errors import UsageError
        from rebaser.tree import find_tree

        try:
            path = find_tree(arguments.root).lock_file
        except UsageError as error:
            raise LockUsageError(f"{error}; or name a lock with --file") from error
    return f"{os.path.dirname(path) or '.'}/{arguments.name}.lock" if arguments.name else str(path)


def _tell_who(lock: Flock, mode: Mode, talk: bool) -> None:
    from locks.hold import self_lock_warning
    from locks.holders import describe_holders

    if talk:
        _say(f"waiting for the {mode.value} lock {lock.path}, {describe_holders(lock.fileno())}")
    warning = self_lock_warning(lock)
    if warning:
        _say(warning)


def _failed(command: list[str], error: OSError) -> int:
    _say(f"cannot execute {command[0]}: {error.strerror}")
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    return EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE


def _say(text: str) -> None:
    from locks.hold import say
    from rebaser.text import printable

    say(f"rebaser: {printable(text)}\n")


def _name(text: str) -> str:
    if not text or "/" in text or "\0" in text or text.startswith("."):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name for a lock: a word without slashes, such as pip; "
            "a path is given with --file"
        )
    return text


def _descriptor(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 2**31):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a descriptor")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return value


def _status(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 255):
        raise argparse.ArgumentTypeError(f"{text!r} is no exit status, 0 to 255")
    return int(text)
