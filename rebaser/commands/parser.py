"""The parsers of the commands: argparse's, with errors of one line."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from rebaser.commands import COMMANDS, Arguments, command_module
from rebaser.text import terminal_width

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

# Messages are English whatever the language: half of them in another is no help, and looking for a
# catalogue takes an import and a dozen system calls of each run.
argparse._ = str  # type: ignore[attr-defined]


def _formatter(prog: str) -> argparse.HelpFormatter:
    # argparse makes one for every argument that is added, and to find the width of the terminal it
    # would import shutil, which costs 4 ms.
    return argparse.RawDescriptionHelpFormatter(prog, width=terminal_width() - 2)


class Parser(argparse.ArgumentParser):
    """argparse, except that a usage error is one line, whose exit status a command chooses."""

    usage_status = 2
    intermixed = False  # whether options may stand between the operands: info a.dll --json b.dll
    value_hint = ""  # what is said where an option is given a value that it does not take
    where = ""  # the file and line that the words come from, where that is not the command line

    def add(self, group: str, usage: str, text: str, **how: Any) -> None:
        """Add an option or an operand to a group of the help.

        `usage` has its spellings, then in capitals what its value is called, then "..." where there
        may be several. An option without a value is a switch.
        """
        words = usage.removesuffix(" ...").split()
        is_option = usage.startswith("-")
        if usage.endswith(" ..."):
            how.update({"action": "append"} if is_option else {"nargs": "*"})
        if words[-1].isupper():
            how["metavar"] = words.pop()
        elif is_option and "choices" not in how:
            how.setdefault("action", "store_true")
        self._in(group).add_argument(*words, help=text, **how)

    def loudness(self, group: str, quiet: str, verbose: str) -> None:
        """Add --quiet and --verbose, of which one at a time may be given."""
        either = self._in(group).add_mutually_exclusive_group()
        either.add_argument("-q", "--quiet", action="store_true", help=quiet)
        either.add_argument("-v", "--verbose", action="store_true", help=verbose)

    def _in(self, group: str) -> argparse._ActionsContainer:
        """Return a group of the help by its heading, made if it is missing; "" is the first."""
        groups = {each.title: each for each in self._action_groups} if group else {"": self}
        return groups.get(group) or self.add_argument_group(group)

    def error(self, message: str) -> NoReturn:
        """Print one line that says where to read on, and exit with `usage_status`."""
        if "ignored explicit argument" in message:
            message = message.replace("ignored explicit argument", "it does not take the value")
            message += self.value_hint and f"; {self.value_hint}"
        if self.where:
            self.exit(self.usage_status, f"rebaser: {self.where}: {message}\n")
        self.exit(self.usage_status, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def parsed(self, words: Sequence[str]) -> Arguments:
        """Return what the words mean."""
        # After -- all are operands, which the intermixed parsing of some Pythons does not know.
        mixed = self.intermixed and "--" not in words
        parse = self.parse_known_intermixed_args if mixed else self.parse_known_args
        found, unknown = parse(list(words))
        if unknown:
            self.error(self._unknown(unknown))
        return Arguments(vars(found))

    def _unknown(self, words: Sequence[str]) -> str:
        option = next((word for word in words if word[:1] == "-" and word != "-"), None)
        if option is None:
            return f"{words[0]!r} is one operand too many"
        name = option.partition("=")[0]
        hint = did_you_mean(name, self._option_string_actions)
        if not hint:
            parsers = map(command_parser, COMMANDS)
            has_it = [one.prog for one in parsers if name in one._option_string_actions]
            hint = f"; it is one of {', '.join(has_it)}" if has_it else ""
        return f"there is no option {name}{hint}"


def seconds(text: str) -> float:
    """Return a number of seconds, as an option has it."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: 0 or more")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return a question to put behind a message about a misspelt word, or an empty text."""
    from difflib import get_close_matches  # 3 ms, and nobody misspells every day

    found = get_close_matches(word, known, 1)
    return f"; did you mean {found[0]}?" if found else ""


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
    # What few need comes last, in the list and in the line of usage.
    parser._action_groups.sort(key=lambda group: group.title == "advanced")
    last = parser._action_groups[-1]
    rare = last._group_actions if last.title == "advanced" else []
    parser._actions.sort(key=lambda action: action in rare)
    return parser
