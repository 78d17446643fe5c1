"""The command line: which command was meant, and what an exception means to the shell."""

from __future__ import annotations

import errno
import gc
import os
import sys

from rebaser import __version__
from rebaser.commands import COMMANDS, command_module, overview, plain_arguments
from rebaser.errors import WHOLE, RebaserError, UsageError, advice
from rebaser.process import Terminated, discard, handle_signals, open_streams, terminate
from rebaser.text import complain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

# What may stand before the command too.
EVERYWHERE = {"-n": "--dry-run", "-q": "--quiet", "-v": "--verbose"}

EXIT_INTERRUPTED = 130
NOTHING_MORE = "nothing more was done"
NO_MEMORY = f"there is not enough memory; {WHOLE}"


def dispatch(words: Sequence[str]) -> int:
    """Run the command that `words` name and return its exit status; expected failures raise."""
    words = list(words)
    before = []
    while words and words[0] in (*EVERYWHERE, *EVERYWHERE.values()):
        word = words.pop(0)
        before.append(EVERYWHERE.get(word, word))
    if not words:
        print(overview(), end="", file=sys.stderr)
        return UsageError.exit_status
    name, *rest = words
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in COMMANDS:
        module = command_module(name)
        arguments = plain_arguments(module, [*before, *rest])
        if arguments is None:
            from rebaser.commands.parser import command_parser  # 7 ms, with argparse

            arguments = command_parser(name).parsed([*before, *rest])
        return int(module.main(arguments))
    if name in ("-h", "--help", "help"):
        print(overview(), end="")
        return 0
    if name == "--version":
        print(f"rebaser {__version__}")
        return 0
    if name.startswith("-"):
        command = next((word for word in rest if word in COMMANDS), "COMMAND")
        what = f"{name} goes behind the command: rebaser {command} {name}"
    else:
        from rebaser.commands.parser import did_you_mean

        did = f"; did you mean rebaser run {name}?" if os.path.isdir(name) else ""
        what = f"there is no command {name!r}{did_you_mean(name, (*COMMANDS, '--version')) or did}"
    raise UsageError(f"{what} (see rebaser --help)")


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run rebaser and exit."""
    start(dispatch, sys.argv[1:] if words is None else words)


def start(program: Callable[[Sequence[str]], int], words: Sequence[str]) -> NoReturn:
    """Run a program and exit with the status that it returns, or its failure's."""
    # A generator that had no room to end is closed, and Python would print that of its own accord.
    sys.unraisablehook = lambda what: (
        issubclass(what.exc_type, MemoryError) or sys.__unraisablehook__(what)
    )
    gc.disable()  # no command makes circles worth looking for, and looking takes 10 ms of a run
    try:
        handle_signals(terminate)
        open_streams()
        status = status_of(words, program)
        try:
            sys.stderr.flush()
        except OSError:  # else Python ends with status 120
            discard(2)
        gc.freeze()  # else Python's end looks through all that was made for garbage
        if status == EXIT_INTERRUPTED:
            os._exit(status)  # where ^C came in an eval(), an import's, python -m dies of SIGINT
    except KeyboardInterrupt:  # once more, while the first was told
        os._exit(EXIT_INTERRUPTED)
    except MemoryError:  # once more, likewise
        os.write(2, f"rebaser: {NO_MEMORY}\n".encode())
        os._exit(1)
    sys.exit(status)


def status_of(words: Sequence[str], program: Callable[[Sequence[str]], int] = dispatch) -> int:
    """Return the exit status of a program; every failure, caught nowhere else, is one line."""
    try:
        try:
            status = program(words)
        except SystemExit as end:  # argparse's: a usage error, --help and --version
            status = int(end.code or 0)
        sys.stdout.flush()
        return status
    except RebaserError as error:
        status, text = error.exit_status, str(error)
    except Terminated as error:
        status, text = 128 + error.args[0], f"terminated; {WHOLE}"
    except KeyboardInterrupt:
        status, text = EXIT_INTERRUPTED, f"interrupted; {WHOLE}"
    except BrokenPipeError:
        # The reader of our output left (`rebaser info … | head`): nobody is there to be told.
        discard(1)
        return 1
    except OSError as error:
        status, text = 1, NO_MEMORY if error.errno == errno.ENOMEM else _what_failed(error)
    except (MemoryError, SystemError):  # CPython's own, where it has no room for the former
        status, text = 1, NO_MEMORY
    except Exception as error:
        status, text = 1, _not_imported(error) or _bug(error)
    complain(text)
    return status


def _not_imported(error: Exception) -> str | None:
    """Return the sentence for a module that cannot be had, or None where that is our own fault."""
    package = error.name.partition(".")[0] if isinstance(error, ImportError) and error.name else ""
    if package in ("", "rebaser", "locks", "cygwin"):
        return None
    if not isinstance(error, ModuleNotFoundError):  # its shared object has no room in memory
        return f"{error}; {WHOLE}: give Python more memory or repair it"
    if package == "fcntl":
        return str(error)  # a native Windows Python; the sentence is that of locks.flock
    return (
        f"rebaser is not installed completely: {error}; install it with "
        f"{sys.executable} -m pip install {package}"
    )


def _what_failed(error: OSError) -> str:
    """Return the sentence for an error of the system that nobody expected."""
    try:
        sys.stdout.flush()  # what could not be written is still there, and fails again
    except OSError:
        discard(1)
        return (
            f"standard output cannot be written ({error.strerror}): what it should say is lost; "
            "the work itself is done"
        )
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except OSError:
            return f"the current folder has been removed: go to one that is there; {NOTHING_MORE}"
    what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    return f"{what}; {NOTHING_MORE}: {advice(error)}"


def _bug(error: Exception) -> str:
    """Write the traceback to a new file in the temporary folder; return the line to print."""
    import tempfile
    import traceback

    what = f"this is a bug in rebaser ({type(error).__name__}: {error})"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rebaser-bug-", suffix=".log", delete=False, errors="backslashreplace"
        ) as log:
            log.write(f"rebaser {__version__}, Python {sys.version}\n{sys.argv!r}\n\n")
            log.write("".join(traceback.format_exception(type(error), error, error.__traceback__)))
    except OSError:
        return f"{what}; no log could be written"
    return f"{what}; please report it with {log.name}"
