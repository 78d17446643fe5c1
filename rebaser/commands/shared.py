"""What several commands have in common: options, and how many lines they print."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from rebaser.errors import UsageError
from rebaser.options import Options, parse_arena
from rebaser.state.settings import SETTINGS, read_settings
from rebaser.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import _ArgumentGroup as Group
    from typing import TextIO

    from rebaser.tree import Tree

# So many lines of a kind are shown; --verbose shows all.
SHOWN = 20


def advanced(parser: ArgumentParser) -> Group:
    """Return the group of the options that few need, which is the last of the help."""
    for group in parser._action_groups:
        if group.title == "advanced":
            return group
    return parser.add_argument_group("advanced")


def add_place_arguments(parser: ArgumentParser) -> None:
    """Add the options that say where the lock and the state are."""
    rare = advanced(parser)
    rare.add_argument(
        "--lock-file",
        metavar="FILE",
        help="the lock (default: $REBASER_LOCK_FILE, else ROOT/var/lock/rebase.lock)",
    )
    rare.add_argument(
        "--state-dir",
        metavar="DIR",
        help="the state (default: $REBASER_STATE_DIR, else ROOT/var/lib/rebaser)",
    )


def add_scan_arguments(parser: ArgumentParser, main: Group | None = None) -> None:
    """Add the options that say which files are looked at."""
    advanced(parser).add_argument(
        "--suffix",
        metavar="SUFFIX",
        action="append",
        default=[],
        type=_suffix,
        help="look at files with this suffix too, beside .dll .so .fas .oct .mex .eln .pyd",
    )
    (main or parser).add_argument(
        "--exclude",
        metavar="GLOB",
        action="append",
        default=[],
        help="never move files whose path, relative to ROOT, or a folder above them matches; the "
        "others keep off them",
    )


def add_reserved_arguments(parser: ArgumentParser, main: Group | None = None) -> None:
    """Add the options that say which addresses belong to others."""
    (main or parser).add_argument(
        "--avoid",
        metavar="PATH",
        action="append",
        default=[],
        help="keep off the addresses of all DLLs below PATH",
    )
    rare = advanced(parser)
    rare.add_argument(
        "--database",
        metavar="FILE",
        help="Cygwin's rebase database (default: /etc/rebase.db.x86_64 and .i386 where they are)",
    )
    rare.add_argument(
        "--cygwin-root", metavar="DIR", help="the folder that is / for the paths in the database"
    )


def add_plan_arguments(parser: ArgumentParser, main: Group | None = None) -> None:
    """Add the options that decide what moves, and where to."""
    (main or parser).add_argument(
        "--force-signed",
        action="store_true",
        help="move DLLs that have an Authenticode signature too, which breaks it",
    )
    rare = advanced(parser)
    rare.add_argument(
        "--keep-aslr", action="store_true", help="leave DYNAMIC_BASE set where it is set"
    )
    rare.add_argument(
        "--arena", metavar="LOW-HIGH", help="move DLLs to these addresses instead of the usual"
    )


def with_settings(arguments: Namespace, tree: Tree) -> Namespace:
    """Return the arguments with those of the tree's settings file before them.

    A command passes over the options that are another's. `settings` is the file's path, or None.
    Raises UsageError, or ends the program with 2, where a line is wrong.
    """
    from rebaser.cli import command_parser

    path = f"{tree.state_dir}/{SETTINGS}"
    lines = read_settings(tree.state)
    given, words = arguments.given, list[str]()
    if lines:
        judge = command_parser("run")  # every option is one of its
        known = arguments.parser._option_string_actions
        for number, line in lines:
            judge.where = f"{path}, line {number}"
            try:
                options_from(judge.parsed([line]))
            except UsageError as error:
                raise UsageError(f"{judge.where}: {error}") from None
            if line.partition("=")[0] in known:
                words.append(line)
        arguments = arguments.parser.parsed([*words, *given])
    arguments.settings = path if lines else None
    return arguments


def options_from(arguments: Namespace) -> Options:
    """Return the options that a command line gives; a command has only some of them."""
    given = vars(arguments)
    return Options(
        arena=parse_arena(arguments.arena) if arguments.arena else None,
        database=arguments.database,
        cygwin_root=arguments.cygwin_root,
        avoid=tuple(arguments.avoid),
        suffixes=tuple(arguments.suffix),
        excludes=tuple(arguments.exclude),
        **{
            name: given[name]
            for name in ("keep_aslr", "force_signed", "touch", "engine")
            if name in given
        },
    )


def print_lines(lines: list[str], most: int, file: TextIO | None = None) -> None:
    """Print lines, the first `most` of them, whatever their names hold."""
    for line in lines[:most]:
        print(printable(line), file=file)
    if len(lines) > most:
        print(f"... and {len(lines) - most:,} more like these (--verbose lists all)", file=file)


def _suffix(text: str) -> str:
    return text if text.startswith(".") else f".{text}"
