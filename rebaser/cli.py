"""The command line: which command was meant, and what an exception means to the shell."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from rebaser import __version__
from rebaser.errors import RebaserError
from rebaser.process import Terminated, catch_signals, discard_output, flush_errors, open_streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import NoReturn

# Each is a module of rebaser.commands with HELP, add_arguments(parser) and main(arguments) -> int.
COMMANDS = {
    "run": "make a tree of DLLs fork-safe",
    "check": "say what breaks fork; change nothing",
    "info": "list images by base",
    "map": "draw the address space",
    "status": "the last runs, the lock, the room left",
    "flags": "show or set PE flags, as Cygwin's peflags",
    "lock": "run a command while holding a lock",
    "hook": "print the hook for a package manager",
    "forget": "take away what rebaser keeps of a tree",
}

EXIT_INTERRUPTED = 130

OWN_PACKAGES = ("rebaser", "locks", "cygwin")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """argparse's formatter; it finds the width of the terminal without importing shutil.

    argparse makes one for every argument that is added, and shutil costs 4 ms.
    """

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=_terminal_width() - 2)


def _terminal_width() -> int:
    """Return the columns of the terminal, as shutil.get_terminal_size has it; 80 without one."""
    try:
        return int(os.environ["COLUMNS"])
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80


class Parser(argparse.ArgumentParser):
    """argparse, except that a command chooses the exit status of a usage error."""

    usage_status = 2
    intermixed = False
    """Whether options may stand between the operands: `info a.dll --json b.dll`."""
    value_hint = ""
    """What is said where an option is given a value that it does not take."""
    where = ""
    """The file and line that the words come from, where that is not the command line."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and one sentence, and exit with `usage_status`."""
        if self.value_hint and "ignored explicit argument" in message:
            message += f"; {self.value_hint}"
        if self.where:
            self.exit(self.usage_status, f"rebaser: {self.where}: {message}\n")
        self.print_usage(sys.stderr)
        self.exit(self.usage_status, f"{self.prog}: {message}\n")


def command_module(name: str) -> ModuleType:
    """Import the module of one command, and no other: an import costs milliseconds."""
    return importlib.import_module(f"rebaser.commands.{name}")


def command_parser(name: str) -> Parser:
    """Return the parser of one command."""
    module = command_module(name)
    parser = Parser(
        prog=f"rebaser {name}",
        description=module.__doc__,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def top_parser() -> Parser:
    """Return the parser of `rebaser` itself; each command parses its own words."""
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="rebaser",
        usage="rebaser COMMAND [ARG ...]",
        description="Keeps a tree of Cygwin or MSYS2 DLLs fork-safe.",
        epilog="commands:\n"
        + "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        + "\n\n'rebaser COMMAND --help' tells more.",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rebaser {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def dispatch(words: Sequence[str]) -> int:
    """Run the command that `words` name and return its exit status; expected failures raise."""
    if words and words[0] in COMMANDS:
        name = words[0]
        parser = command_parser(name)
        arguments = parsed(parser, words[1:])
        arguments.parser, arguments.given = parser, words[1:]
        return int(command_module(name).main(arguments))
    top_parser().parse_args(words[:1])
    raise AssertionError("argparse ends the program for anything but a command")


def parsed(parser: Parser, words: Sequence[str]) -> argparse.Namespace:
    # After -- all are operands, which parse_intermixed_args of some Pythons does not know.
    if parser.intermixed and "--" not in words:
        return parser.parse_intermixed_args(list(words))
    return parser.parse_args(list(words))


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run rebaser and exit."""
    given = sys.argv[1:] if words is None else words
    start(lambda: dispatch(given))


def start(work: Callable[[], int]) -> NoReturn:
    """Do what a program is for and exit with the status that `work` returns, or its failure's."""
    gc.disable()  # no command makes circles worth looking for, and looking takes 10 ms of a run
    try:
        catch_signals()
        open_streams()
        status = status_of_work(work)
        flush_errors()
        gc.freeze()  # else Python's end looks through all that was made for garbage
    except KeyboardInterrupt:  # once more, while the first was told
        os._exit(EXIT_INTERRUPTED)
    sys.exit(status)


def status_of(words: Sequence[str]) -> int:
    """Run the command and return the exit status; every failure is one line on stderr."""
    return status_of_work(lambda: dispatch(words))


def status_of_work(work: Callable[[], int]) -> int:
    """Return what `work` returns, or the status of what it raises, which is caught nowhere else."""
    try:
        try:
            status = work()
        except SystemExit as end:  # argparse's: a usage error, --help and --version
            status = int(end.code or 0)
        sys.stdout.flush()
        return status
    except RebaserError as error:
        complain(str(error))
        return error.exit_status
    except Terminated as error:
        complain("terminated; every file is whole, old or new")
        return 128 + error.number
    except KeyboardInterrupt:
        complain("interrupted; every file is whole, old or new")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`rebaser info … | head`): nobody is there to be told.
        discard_output()
        return 1
    except OSError as error:
        complain(_what_failed(error))
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in OWN_PACKAGES:
            return _bug(error)
        complain(
            f"rebaser is not installed completely: {error}; install it with "
            f"{sys.executable} -m pip install {error.name}"
        )
        return 1
    except Exception as error:
        if isinstance(error, ImportError) and "fcntl" in str(error):
            complain(str(error))  # a native Windows Python; the sentence is that of locks.flock
            return 1
        return _bug(error)


def _what_failed(error: OSError) -> str:
    """Return the sentence for an error of the system that nobody expected."""
    try:
        sys.stdout.flush()  # what could not be written is still there, and fails again
    except OSError:
        discard_output()
        return (
            f"standard output cannot be written ({error.strerror}): what it should say is lost; "
            "the work itself is done"
        )
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except OSError:
            return (
                "the current folder has been removed: go to one that is there; nothing more was "
                "done"
            )
    return f"{error}; nothing more was done"


def _bug(error: Exception) -> int:
    from rebaser.bug import report_bug

    complain(report_bug(error))
    return 1


def complain(text: str) -> None:
    """Print one line on stderr, whatever bytes its file names hold."""
    from rebaser.text import printable

    with suppress(OSError):  # a stderr that is full has no room for that either
        print(f"rebaser: {printable(text)}", file=sys.stderr, flush=True)
