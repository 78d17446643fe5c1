"""The command line: which command was meant, and what an exception means to the shell."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from rebaser import __version__
from rebaser.errors import RebaserError, UsageError
from rebaser.process import Terminated, catch_signals, discard_output, flush_errors, open_streams
from rebaser.text import printable, terminal_width

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

# What may stand before the command too.
EVERYWHERE = {"-n": "--dry-run", "-q": "--quiet", "-v": "--verbose"}

# Messages are English whatever the language: half of them in another is no help, and looking for a
# catalogue takes an import and a dozen system calls of each run.
argparse._ = str  # type: ignore[attr-defined]

EXIT_INTERRUPTED = 130
WHOLE = "every file is whole, old or new"
NO_MEMORY = f"there is not enough memory; {WHOLE}"

OWN_PACKAGES = ("rebaser", "locks", "cygwin")


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for every argument that is added, and to find the width of the terminal it
    # would import shutil, which costs 4 ms.
    return argparse.RawDescriptionHelpFormatter(prog, width=terminal_width() - 2)


class Parser(argparse.ArgumentParser):
    """argparse, except that a usage error is one line, whose exit status a command chooses."""

    usage_status = 2
    intermixed = False
    """Whether options may stand between the operands: `info a.dll --json b.dll`."""
    value_hint = ""
    """What is said where an option is given a value that it does not take."""
    where = ""
    """The file and line that the words come from, where that is not the command line."""

    def error(self, message: str) -> NoReturn:
        """Print one line that says where to read on, and exit with `usage_status`."""
        if self.value_hint and "ignored explicit argument" in message:
            message += f"; {self.value_hint}"
        if self.where:
            self.exit(self.usage_status, f"rebaser: {self.where}: {message}\n")
        self.exit(self.usage_status, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parsed(self, words: Sequence[str]) -> argparse.Namespace:
        """Return what the words mean, with the words as `given` and this as `parser`."""
        # After -- all are operands, which the intermixed parsing of some Pythons does not know.
        mixed = self.intermixed and "--" not in words
        parse = self.parse_known_intermixed_args if mixed else self.parse_known_args
        found, unknown = parse(list(words))
        if unknown:
            self.error(self._unknown(unknown))
        found.parser, found.given = self, words
        return found

    def _unknown(self, words: Sequence[str]) -> str:
        option = next((word for word in words if word[:1] == "-" and word != "-"), None)
        if option is None:
            return f"{words[0]!r} is one operand too many"
        name = option.partition("=")[0]
        hint = did_you_mean(name, self._option_string_actions)
        has_it = hint or [c for c in COMMANDS if name in command_parser(c)._option_string_actions]
        if has_it and not hint:
            hint = f"; it is one of {', '.join(f'rebaser {one}' for one in has_it)}"
        return f"there is no option {name}{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question to put behind a message about a misspelt word, or an empty text."""
    from difflib import get_close_matches  # 3 ms, and nobody misspells every day

    found = get_close_matches(word, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


def command_module(name: str) -> ModuleType:
    """Import the module of one command, and no other: an import costs milliseconds."""
    return importlib.import_module(f"rebaser.commands.{name}")


def command_parser(name: str) -> Parser:
    """Return the parser of one command."""
    module = command_module(name)
    parser = Parser(
        prog=f"rebaser {name}",
        description=module.__doc__,
        formatter_class=_formatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser._action_groups.sort(key=lambda group: group.title == "advanced")  # comes last
    return parser


def overview() -> str:
    """Return the help of `rebaser` itself."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return f"""\
usage: rebaser COMMAND [ARG ...]

Keeps a tree of Cygwin or MSYS2 DLLs fork-safe.

commands:
{commands}

options:
  -h, --help  show this help; rebaser help COMMAND, or rebaser COMMAND --help, tells more
  --version   show the version
"""


def dispatch(words: Sequence[str]) -> int:
    """Run the command that `words` name and return its exit status; expected failures raise."""
    words = list(words)
    before = []
    while words and words[0] in (*EVERYWHERE, *EVERYWHERE.values()):
        before.append(EVERYWHERE.get(words[0], words.pop(0)))
    if not words:
        print(overview(), end="", file=sys.stderr)
        return UsageError.exit_status
    name, *rest = words
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in COMMANDS:
        arguments = command_parser(name).parsed([*before, *rest])
        return int(command_module(name).main(arguments))
    if name in ("-h", "--help", "help"):
        print(overview(), end="")
    elif name == "--version":
        print(f"rebaser {__version__}")
    else:
        raise UsageError(_no_command(name, rest))
    return 0


def _no_command(name: str, rest: Sequence[str]) -> str:
    if name.startswith("-"):
        command = next((word for word in rest if word in COMMANDS), "COMMAND")
        what = f"{name} goes behind the command: rebaser {command} {name}"
    else:
        did = f"; did you mean rebaser run {name}?" if os.path.isdir(name) else ""
        what = f"there is no command {name!r}{did_you_mean(name, COMMANDS) or did}"
    return f"{what} (see rebaser --help)"


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
    except MemoryError:  # once more, likewise
        os.write(2, f"rebaser: {NO_MEMORY}\n".encode())
        os._exit(1)
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
        status, text = error.exit_status, str(error)
    except Terminated as error:
        status, text = 128 + error.number, f"terminated; {WHOLE}"
    except KeyboardInterrupt:
        status, text = EXIT_INTERRUPTED, f"interrupted; {WHOLE}"
    except BrokenPipeError:
        # The reader of our output left (`rebaser info … | head`): nobody is there to be told.
        discard_output()
        return 1
    except OSError as error:
        status, text = 1, _what_failed(error)
    except MemoryError:
        status, text = 1, NO_MEMORY
    except Exception as error:
        status, text = 1, _not_imported(error) or _bug(error)
    complain(text)
    return status


def _not_imported(error: Exception) -> str | None:
    """Return the sentence for a module that cannot be had, or None where that is our own fault."""
    package = error.name.partition(".")[0] if isinstance(error, ImportError) and error.name else ""
    if package == "fcntl":
        return str(error)  # a native Windows Python; the sentence is that of locks.flock
    if package in ("", *OWN_PACKAGES):
        return None
    if not isinstance(error, ModuleNotFoundError):  # its shared object has no room in memory
        return f"{error}; {WHOLE}: give Python more memory or repair it"
    return (
        f"rebaser is not installed completely: {error}; install it with "
        f"{sys.executable} -m pip install {package}"
    )


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
    what = str(error)
    if isinstance(error, FileNotFoundError) and error.filename is None:
        try:
            os.getcwd()
        except OSError:
            what = "the current folder has been removed: go to one that is there"
    return f"{what}; nothing more was done"


def _bug(error: Exception) -> str:
    from rebaser.bug import report_bug

    return report_bug(error)


def complain(text: str) -> None:
    """Print one line on stderr, whatever bytes its file names hold."""
    with suppress(OSError):  # a stderr that is full has no room for that either
        print(f"rebaser: {printable(text)}", file=sys.stderr, flush=True)
