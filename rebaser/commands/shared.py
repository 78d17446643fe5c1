"""What several commands have in common: options, and how many lines they print."""

from __future__ import annotations

from rebaser.errors import UsageError
from rebaser.options import Options, parse_arena
from rebaser.state.settings import SETTINGS, read_settings
from rebaser.text import printable
from rebaser.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Action, ArgumentParser, Namespace
    from argparse import _ArgumentGroup as Group
    from typing import TextIO

# So many lines of a kind are shown; --verbose shows all.
SHOWN = 20


def add_switch(to: Group | ArgumentParser, *names: str, text: str) -> None:
    """Add an option without a value."""
    to.add_argument(*names, action="store_true", help=text)


def add_value(to: Group | ArgumentParser, name: str, metavar: str, text: str) -> None:
    """Add an option with a value."""
    to.add_argument(name, metavar=metavar, help=text)


def add_list(to: Group | ArgumentParser, name: str, metavar: str, text: str) -> Action:
    """Add an option that may be given several times."""
    return to.add_argument(name, metavar=metavar, action="append", default=[], help=text)


def add_root(parser: ArgumentParser) -> None:
    """Add the operand that names the tree."""
    parser.add_argument("root", metavar="ROOT", nargs="?", help="the tree (default: $SAGE_LOCAL)")


def add_output_arguments(parser: ArgumentParser, quiet: str = "", verbose: str = "") -> Group:
    """Add --json and, where they are described, --quiet and --verbose."""
    output = parser.add_argument_group("output")
    add_switch(output, "--json", text="print one JSON object")
    if quiet:
        loud = output.add_mutually_exclusive_group()
        add_switch(loud, "-q", "--quiet", text=quiet)
        add_switch(loud, "-v", "--verbose", text=verbose)
    return output


def advanced(parser: ArgumentParser) -> Group:
    """Return the group of the options that few need, which is the last of the help."""
    groups = (group for group in parser._action_groups if group.title == "advanced")
    return next(groups, None) or parser.add_argument_group("advanced")


def add_place_arguments(parser: ArgumentParser) -> None:
    """Add the options that say where the lock and the state are."""
    rare = advanced(parser)
    lock = "the lock (default: $REBASER_LOCK_FILE, else ROOT/var/lock/rebase.lock)"
    add_value(rare, "--lock-file", "FILE", lock)
    state = "the state (default: $REBASER_STATE_DIR, else ROOT/var/lib/rebaser)"
    add_value(rare, "--state-dir", "DIR", state)


def add_scan_arguments(parser: ArgumentParser, main: Group | None = None) -> None:
    """Add the options that say which files are looked at."""
    text = "look at files with this suffix too, beside .dll .so .fas .oct .mex .eln .pyd"
    add_list(advanced(parser), "--suffix", "SUFFIX", text).type = _suffix
    text = "never move files whose path, relative to ROOT, or a folder above them matches; the "
    add_list(main or parser, "--exclude", "GLOB", text + "others keep off them")


def add_reserved_arguments(parser: ArgumentParser, main: Group | None = None) -> None:
    """Add the options that say which addresses belong to others."""
    text = "keep off the addresses of all DLLs below PATH"
    add_list(main or parser, "--avoid", "PATH", text)
    rare = advanced(parser)
    text = "Cygwin's rebase database (default: /etc/rebase.db.x86_64 and .i386 where they are)"
    add_value(rare, "--database", "FILE", text)
    text = "the folder that is / for the paths in the database"
    add_value(rare, "--cygwin-root", "DIR", text)


def add_plan_arguments(parser: ArgumentParser, main: Group | None = None) -> None:
    """Add the options that decide what moves, and where to."""
    text = "move DLLs that have an Authenticode signature too, which breaks it"
    add_switch(main or parser, "--force-signed", text=text)
    rare = advanced(parser)
    add_switch(rare, "--keep-aslr", text="leave DYNAMIC_BASE set where it is set")
    add_value(rare, "--arena", "LOW-HIGH", "move DLLs to these addresses instead of the usual")


def with_settings(arguments: Namespace, tree: Tree) -> Namespace:
    """Return the arguments with those of the tree's settings file before them.

    A command passes over the options that are another's. `settings` is the file's path, or None.
    Raises UsageError, or ends the program with 2, where a line is wrong.
    """
    path = f"{tree.state_dir}/{SETTINGS}"
    lines = read_settings(tree.state)
    given, words = arguments.given, list[str]()
    if lines:
        from rebaser.parser import command_parser

        judge = command_parser("run")  # every option is one of its
        parser = arguments.parser or judge
        known = parser._option_string_actions
        for number, line in lines:
            judge.where = f"{path}, line {number}"
            try:
                options_from(judge.parsed([line]))
            except UsageError as error:
                raise UsageError(f"{judge.where}: {error}") from None
            if line.partition("=")[0] in known:
                words.append(line)
        arguments = parser.parsed([*words, *given])
    arguments.settings = path if lines else None
    return arguments


def options_from(arguments: Namespace) -> Options:
    """Return the options that a command line gives; a command has only some of them."""
    given = {name: value for name, value in vars(arguments).items() if name in Options._fields}
    return Options(**given)._replace(
        arena=parse_arena(arguments.arena) if arguments.arena else None,
        avoid=tuple(arguments.avoid),
        suffixes=tuple(arguments.suffix),
        excludes=tuple(arguments.exclude),
    )


def print_lines(lines: list[str], most: int, file: TextIO | None = None) -> None:
    """Print lines, the first `most` of them, whatever their names hold."""
    for line in lines[:most]:
        print(printable(line), file=file)
    if len(lines) > most:
        print(f"... and {len(lines) - most:,} more like these (--verbose lists all)", file=file)


def _suffix(text: str) -> str:
    return text if text.startswith(".") else f".{text}"
