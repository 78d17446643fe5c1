"""The command line: which command was meant, and what an exception means to the shell."""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import os
import sys
from collections.abc import Sequence

from rebaser import __version__
from rebaser.errors import RebaserError

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
    "hook": "print or install the hook for a package manager",
}

EXIT_INTERRUPTED = 130


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

    def error(self, message: str) -> NoReturn:
        """Print the usage and one sentence, and exit with `usage_status`."""
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
        return int(command_module(name).main(command_parser(name).parse_args(words[1:])))
    top_parser().parse_args(words[:1])
    raise AssertionError("argparse ends the program for anything but a command")


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run rebaser and exit; the only place that catches what the commands raise."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # our caller has closed it
            setattr(sys, name, open(os.devnull, mode))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that the terminal's encoding lacks is shown escaped, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    status = status_of(sys.argv[1:] if words is None else words)
    gc.freeze()  # else Python's end looks through all that was made for garbage: 3 ms for none
    sys.exit(status)


def status_of(words: Sequence[str]) -> int:
    """Run the command and return the exit status; every failure is one line on stderr."""
    try:
        status = dispatch(words)
        sys.stdout.flush()
        return status
    except RebaserError as error:
        complain(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        complain("interrupted; every file is whole, old or new")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output left (`rebaser info … | head`): nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        complain(f"{error}; nothing more was done")
        return 1
    except Exception as error:
        if isinstance(error, ImportError) and "fcntl" in str(error):
            complain(str(error))  # a native Windows Python; the sentence is that of locks.flock
            return 1
        from rebaser.bug import report_bug

        complain(report_bug(error))
        return 1


def complain(text: str) -> None:
    """Print one line on stderr, whatever bytes its file names hold."""
    from rebaser.text import printable

    print(f"rebaser: {printable(text)}", file=sys.stderr)
