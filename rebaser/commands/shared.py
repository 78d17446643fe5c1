"""The options that several commands have, and those that a tree has of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

from rebaser.commands import Arguments
from rebaser.errors import UsageError
from rebaser.files import LinkError
from rebaser.options import Options, parse_arena
from rebaser.state.folder import State
from rebaser.tree import Tree, find_tree, posix_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rebaser.commands.parser import Parser

SETTINGS = "options"  # the file in the state folder that holds options of a tree

# What a settings file may hold: what is to be done with the tree, not once but always.
LASTING = (
    "--arena --avoid --coordinator --cygwin-root --database --engine --exclude --force-signed "
    "--keep-aslr --no-wait --progress --strict --suffix --touch --wait"
)


def add_root(parser: Parser) -> None:
    """Add the operand that names the tree, and the options that say where it has its own."""
    parser.add("", "root ROOT", "the tree (default: $SAGE_LOCAL)", nargs="?")
    add_place_options(parser)


def add_place_options(parser: Parser) -> None:
    """Add the options that say where the lock and the state are."""
    text = "the lock (default: $REBASER_LOCK_FILE, else ROOT/var/lock/rebase.lock)"
    parser.add("advanced", "--lock-file FILE", text)
    text = "the state (default: $REBASER_STATE_DIR, else ROOT/var/lib/rebaser)"
    parser.add("advanced", "--state-dir DIR", text)


def add_scan_options(parser: Parser, group: str = "", how: str = "never move") -> None:
    """Add the options that say which files are looked at."""
    text = "look at files with this suffix too, beside .dll .so .fas .oct .mex .eln .pyd"
    parser.add("advanced", "--suffix SUFFIX ...", text, type=lambda s: f".{s.removeprefix('.')}")
    text = f"{how} files whose path, relative to ROOT, or a folder above them matches"
    parser.add(group, "--exclude GLOB ...", text)


def add_reserved_options(parser: Parser, group: str = "") -> None:
    """Add the options that say which addresses are for moved DLLs, and which belong to others."""
    parser.add(group, "--avoid PATH ...", "keep off the addresses of all DLLs below PATH")
    text = "Cygwin's rebase database (default: /etc/rebase.db.x86_64 and .i386 where they are)"
    parser.add("advanced", "--database FILE", text)
    text = "the folder that is / for the paths in the database"
    parser.add("advanced", "--cygwin-root DIR", text)
    parser.add("advanced", "--arena LOW-HIGH", "the addresses of moved DLLs, if not the usual")


def add_plan_options(parser: Parser, group: str = "") -> None:
    """Add the options that decide what moves."""
    text = "move DLLs that have an Authenticode signature too, which breaks it"
    parser.add(group, "--force-signed", text)
    parser.add("advanced", "--keep-aslr", "leave DYNAMIC_BASE set where it is set")


def tree_of(arguments: Arguments, root: str | None) -> Tree:
    """Return the tree that is named, with its lock and state where the arguments say."""
    return find_tree(root, lock_file=arguments.lock_file, state_dir=arguments.state_dir)


def read_settings(state: State) -> Iterator[tuple[str, str]]:
    """Yield where each line of a tree's settings file stands, and it as a word of a command line.

    One option a line, as on the command line (`--avoid /opt` or `--avoid=/opt`); `#` begins a
    comment. No file is no line. Raises UsageError for a file that cannot be read or that others may
    write, and for a line that is no option which can last.
    """
    path = f"{state.folder}/{SETTINGS}"
    try:
        data, st = state.read(SETTINGS, 1 << 20)
    except (FileNotFoundError, NotADirectoryError, LinkError):  # of the folder: no state is there
        return
    except OSError as error:
        what = f"the options of this tree cannot be read ({error.strerror}); nothing was changed"
        raise UsageError(f"{path}: {what}: make them a readable file of lines") from None
    if st.st_uid not in {0, os.geteuid(), os.stat(state.root).st_uid} or st.st_mode & 0o022:
        raise UsageError(
            f"{path}: others may write these options, so they are not followed; nothing was "
            "changed: see what they say, then make the file yours alone (chown, chmod go-w)"
        )
    import re

    for number, line in enumerate(map(os.fsdecode, data.splitlines()), 1):
        line = re.split(r"(?:^|\s)#", line)[0].strip()
        if not (words := line.split(None, 1)):
            continue
        where = f"{path}, line {number}"
        if words[0].partition("=")[0] not in LASTING.split():
            raise UsageError(
                f"{where}: {words[0]} is none of the options that a tree can have "
                f"({LASTING}); nothing was changed: correct the line or take it out"
            )
        yield where, line if "=" in words[0] else "=".join(words)


def with_settings(arguments: Arguments, tree: Tree) -> Arguments:
    """Return the arguments with those of the tree's settings file before them.

    So what is given wins, or comes behind where there may be several. Raises UsageError, or ends
    the program with 2, where a line is wrong.
    """
    lines = list(read_settings(tree.state))
    if not lines:
        return arguments
    from rebaser.commands.parser import command_parser

    parser = command_parser("run")  # which has them all
    for where, line in lines:
        parser.where = where
        try:
            options = options_from(parser.parsed([line]))
            for named in filter(None, (options.database, *options.avoid)):
                path = posix_name(named)
                if not (os.path.isabs(path) and os.path.exists(path)):
                    what = "does not exist" if os.path.isabs(path) else "is no absolute path"
                    raise UsageError(f"{named} {what}; correct the line or take it out")
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    found = parser.parsed([line for _, line in lines])
    vars(found).update(exclude=[f"/{glob.lstrip('/')}" for glob in found.exclude or ()])
    for name, given in vars(arguments).items():
        of_tree = getattr(found, name)
        if given is None or given is False:
            given = of_tree
        elif isinstance(of_tree, list):
            given = [*of_tree, *given]
        setattr(found, name, given)
    found.settings = f"{tree.state_dir}/{SETTINGS}"
    return found


def options_from(arguments: Arguments) -> Options:
    """Return the options that a command line gives; a command has only some of them."""
    given = {name: getattr(arguments, name) for name in Options._fields}
    given.update(
        arena=parse_arena(arguments.arena) if arguments.arena else None,
        avoid=tuple(arguments.avoid or ()),
        suffixes=tuple(arguments.suffix or ()),
        excludes=tuple(arguments.exclude or ()),
    )
    return Options(**{name: value for name, value in given.items() if value is not None})
