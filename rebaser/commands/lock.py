"""Run COMMAND while holding a lock; without --name, --file or --fd it is the tree's rebase lock.

The lock is flock(2): flock(1), sage-flock and rebaser exclude each other on the same file. The
command replaces this process and inherits the lock, so its exit status, signals and process id
are its own, and the lock ends with it and with all of its children that keep running.
"""

from __future__ import annotations

import _signal as signal
import errno
import os
import sys
import time

from locks.flock import EXCLUSIVE, SHARED, Flock, LockFileError
from locks.hold import run_command, shell_command, warn_of_own_lock
from rebaser.commands import Arguments
from rebaser.errors import BusyError, RebaserError, UsageError
from rebaser.process import handle_signals
from rebaser.text import complain
from rebaser.tree import find_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.commands.parser import Parser

UNLOCK = "unlock"

EPILOG = """\
Every word after the first that is no option belongs to COMMAND.

exit status: the command's; 1 or -E when others hold the lock; 64 usage, or no tree named;
65 it cannot be locked; 66 the lock file cannot be opened; 126 COMMAND cannot be executed,
127 not found; 130 interrupted while waiting.
"""

USUAL: dict[str, object] = {"-n": ("nonblock", True), "--nonblock": ("nonblock", True)}
USUAL |= {"-s": ("mode", SHARED), "--shared": ("mode", SHARED), "-u": ("mode", UNLOCK)}
USUAL |= {"-x": ("mode", EXCLUSIVE), "--exclusive": ("mode", EXCLUSIVE), "--fd": ("fd", str)}
USUAL |= {"--file": ("file", str), "--lock-file": ("lock_file", str), "--root": ("root", str)}
OPERANDS = "words", "all"


def add_arguments(parser: Parser) -> None:
    import argparse

    from rebaser.commands.parser import seconds

    parser.usage_status = os.EX_USAGE
    parser.usage = "rebaser lock [options] [--] COMMAND [ARG ...]"
    parser.epilog = EPILOG
    parser.add("", "--name NAME", "lock NAME.lock, beside the rebase lock")
    parser.add("", "--file PATH", "lock this file or folder")
    parser.add("", "--fd N", "lock the caller's descriptor and return")
    parser.add("", "--root ROOT", "the tree (default: the environment variable SAGE_LOCAL)")
    text = "the rebase lock (default: REBASER_LOCK_FILE, else ROOT/var/lock/rebase.lock)"
    parser.add("", "--lock-file PATH", text)
    for names, mode, text in (
        ("-x --exclusive", EXCLUSIVE, "nobody else holds it (default)"),
        ("-s --shared", SHARED, "others may hold it shared too"),
        ("-u --unlock", UNLOCK, "drop the lock, with --fd"),
    ):
        parser.add("", names, text, dest="mode", action="store_const", const=mode)
    parser.add("", "-n --nonblock", "fail rather than wait")
    parser.add("", "-w --wait SECONDS", "wait that long at most", type=seconds)
    text = "exit status when others hold the lock (default: 1)"
    parser.add("", "-E --conflict-exit-code N", text, dest="conflict")
    text = "the command does not inherit the lock: what it leaves running cannot keep it"
    parser.add("", "-o --close", text)
    parser.add("", "-c --command STRING", "run STRING in $SHELL or /bin/sh", dest="string")
    text = "say who holds it, also without a terminal"
    parser.loudness("", "say nothing of who holds the lock", text)
    text = "hold the lock of that name on this server too, for all machines; the command gets "
    text += "SIGTERM if it is lost, and the exit status is 75"
    parser.add("", "--coordinator URL", text)
    parser.add("", "words COMMAND", argparse.SUPPRESS, nargs=argparse.REMAINDER)


def main(arguments: Arguments) -> int:
    try:
        command = _command(arguments)
        handle_signals(signal.SIG_DFL)  # nothing is to be cleaned up: they end it as flock(1)
        return _run(arguments, command)
    except UsageError as error:
        error.exit_status = os.EX_USAGE
        raise
    except LockFileError as error:
        named = "" if error.path.startswith("descriptor ") else " with --file or --lock-file"
        failure = RebaserError(f"{error}{named}")
        failure.exit_status = os.EX_NOINPUT if error.action == "open" else os.EX_DATAERR
        raise failure from error


def _run(arguments: Arguments, command: list[str]) -> int:
    mode: str = arguments.mode or EXCLUSIVE
    conflict = _number("-E", "1" if arguments.conflict is None else arguments.conflict, 255)
    lock = _opened(arguments)
    if mode == UNLOCK:
        lock.release()
        return 0
    talks = arguments.verbose or (sys.stderr and sys.stderr.isatty())

    def on_wait() -> None:
        if talks:
            complain(f"waiting for the {mode} lock {lock.path}, {_who(lock)}")
        warn_of_own_lock(lock, mode, complain)

    wait, began = 0 if arguments.nonblock else arguments.wait, time.monotonic()
    remote = None
    try:
        if not lock.acquire(mode, wait, None if arguments.quiet else on_wait):
            raise BusyError(f"could not take the lock {lock.path}, {_who(lock)}")
        if arguments.coordinator:
            from rebaser.state.machines import HELD, take_lock

            state, name = find_tree(arguments.root).state, arguments.name or "rebase"
            tell = complain if talks else lambda text: None
            wait = wait and max(0.0, wait - (time.monotonic() - began))  # for both together
            remote = take_lock(arguments.coordinator, state, wait, tell, name)
            os.environ[HELD] = remote.name
    except BusyError as error:
        if not arguments.quiet:
            complain(str(error))
        return conflict
    if not command:
        return 0

    def failed(error: OSError) -> int:
        complain(f"cannot execute {command[0]}: {error.strerror}")
        return 127 if error.errno in (errno.ENOENT, errno.ENOTDIR) else 126  # as a shell

    is_lost = remote.is_lost if remote else None
    status = run_command(command, lock, close=arguments.close, failed=failed, is_lost=is_lost)
    if remote and remote.is_lost():
        raise BusyError("the coordinator's lock was lost; the command was told to end (SIGTERM)")
    if remote:
        remote.release()
    return status


def _command(arguments: Arguments) -> list[str]:
    words: list[str] = arguments.words
    if words[:1] == ["--"]:
        words = words[1:]
    name: str | None = arguments.name
    if name is not None and (name[:1] in ("", ".") or "/" in name or "\0" in name):
        raise UsageError(
            f"--name {name}: this is no name for a lock, which is a word without slashes, such as "
            "pip; a path is given with --file"
        )
    one = [name for name in ("name", "file", "fd") if getattr(arguments, name) is not None]
    if len(one) > 1:
        raise UsageError(f"--{one[0]} and --{one[1]} are two locks: name one")
    if arguments.coordinator and (arguments.file or arguments.fd is not None):
        raise UsageError("--coordinator keeps locks of a tree: no --file and no --fd with it")
    if arguments.string is not None:
        if words or arguments.fd is not None:
            raise UsageError("-c STRING is the whole command: no COMMAND and no --fd with it")
        return shell_command(arguments.string)
    if arguments.fd is not None:
        if words:
            raise UsageError("--fd locks a descriptor of the caller's: no COMMAND with it")
        return []
    if arguments.mode == UNLOCK:
        raise UsageError("-u drops the lock of a descriptor: name it with --fd N")
    if not words:
        raise UsageError("no COMMAND is given (rebaser lock --help tells more)")
    return words


def _opened(arguments: Arguments) -> Flock:
    """Open the lock that was named, or that of the tree: there no link on the way is followed."""
    if arguments.fd is not None:
        return Flock.of_descriptor(_number("--fd", arguments.fd, 2**31 - 1))
    if arguments.file is not None:
        return Flock.open(arguments.file)  # as flock(1), for a name may be misspelt: no folder
    path: str = arguments.lock_file or os.environ.get("REBASER_LOCK_FILE") or ""
    try:
        tree = None if path else find_tree(arguments.root)
        path = tree.lock_file if tree else path
        if arguments.name is not None:
            path = os.path.join(os.path.dirname(path), f"{arguments.name}.lock")
        return tree.state.open_lock(path) if tree else Flock.open(path, make_parents=True)
    except UsageError as error:
        raise UsageError(f"{error}; or name a lock with --file") from error
    except RebaserError as error:
        error.exit_status = os.EX_NOINPUT
        raise


def _who(lock: Flock) -> str:
    from locks.holders import describe_holders

    return describe_holders(lock.fileno())


def _number(option: str, text: str, highest: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= highest):
        raise UsageError(f"{option} takes a number, 0 to {highest}, and not {text!r}")
    return int(text)
