"""Writes man/ and completions/ from the parsers of the commands, and a picture of a session."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))

from rebaser import __version__  # noqa: E402 (the checkout's, whatever else is installed)
from rebaser.commands import COMMANDS  # noqa: E402
from rebaser.commands.parser import Parser, command_parser  # noqa: E402

FOLDERS = ("DIR", "ROOT")
FILES = ("FILE", "PATH", "LIST")

DESCRIPTION = """\
rebaser keeps a tree of Cygwin or MSYS2 DLLs fork-safe. Cygwin's fork() must load every DLL in the
child at the address that it has in the parent; two DLLs whose image bases overlap break that.
rebaser finds the DLLs of a tree, decides which of them must move, moves just those, and does so
under one lock, so that many packages of a parallel build can finish at the same moment.

ROOT is the tree. Where it is left out, the environment variable SAGE_LOCAL names it.
"""
ENVIRONMENT = {
    "SAGE_LOCAL": "the tree, where ROOT is left out",
    "REBASER_LOCK_FILE": "the tree's lock, where --lock-file is not given",
    "REBASER_STATE_DIR": "the folder of the state, where --state-dir is not given",
}
PLACES = {
    "ROOT/var/lock/rebase.lock": "the lock, a file for flock(2)",
    "ROOT/var/lib/rebaser": "the state: what was seen of the tree, and a record of each run; "
    "it may be removed while nothing runs",
    "ROOT/.rebaser": "both, where ROOT has no folder var",
}


def man_pages() -> dict[str, str]:
    """Return the man pages, by their paths relative to the checkout."""
    purpose = "keep a tree of Cygwin or MSYS2 DLLs fork-safe"
    return {
        "man/rebaser.1": page("rebaser", purpose, rebaser_page()),
        "man/rebaser-lock.1": page(
            "rebaser-lock", "run a command while holding a lock", lock_page()
        ),
    }


def completions() -> dict[str, str]:
    """Return the shell completions, by their paths relative to the checkout."""
    return {"completions/rebaser": completion("bash"), "completions/_rebaser": completion("zsh")}


# A picture of a session on a terminal.

SESSION = HERE / "tests/commands/sessions/166-dlls-80-columns.txt"
PICTURE = "docs/terminal.svg"


def picture() -> str:
    """Return a check, a run and a run with nothing to do as they look on a terminal."""
    from rich._export_format import CONSOLE_SVG_FORMAT
    from rich.console import Console
    from rich.text import Text

    console = Console(record=True, width=82, file=StringIO(), color_system="standard")
    calls = SESSION.read_text(encoding="utf-8").strip().split("\n\n")
    for number in (0, 2, 3):
        command, verdict, *rest = calls[number].split("\n")[:-1]
        colour = {0: "bold red", 2: "bold yellow", 3: "bold yellow"}[number]
        console.print(Text(command, "bold"), Text(verdict, colour), Text("\n".join(rest)), sep="\n")
    # Its own form loads a font from elsewhere.
    form = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    form = form.replace("Fira Code", "ui-monospace, 'DejaVu Sans Mono', Consolas")
    return console.export_svg(title="rebaser", unique_id="rebaser", code_format=form)


# Man pages, in the macros of man(7).


def page(name: str, purpose: str, body: Iterator[str]) -> str:
    """Return a man page."""
    lines = [
        '.\\" Made by bin/make-docs from the parsers of the commands.',
        f'.TH {name.upper()} 1 "" "rebaser {__version__}" "User Commands"',
        ".nh",
        ".ad l",
        ".SH NAME",
        f"{troff(name)} \\- {troff(purpose)}",
        *body,
    ]
    return "\n".join(lines) + "\n"


def rebaser_page() -> Iterator[str]:
    """Yield the body of rebaser(1): every command but lock, which has a page of its own."""
    parsers = {name: command_parser(name) for name in COMMANDS}
    yield ".SH SYNOPSIS"
    for parser in parsers.values():
        yield from synopsis(parser)
    yield ".B rebaser \\-\\-version"
    yield ".SH DESCRIPTION"
    yield from prose(DESCRIPTION)
    yield ".SH COMMANDS"
    for name, purpose in COMMANDS.items():
        yield f".SS rebaser {troff(name)}"
        if name == "lock":
            yield troff(f"{purpose}: see")
            yield ".BR rebaser\\-lock (1)."
        else:
            yield from prose(parsers[name].description or "")
            yield from options(parsers[name])
    yield from tail()


def lock_page() -> Iterator[str]:
    """Yield the body of rebaser-lock(1)."""
    parser = command_parser("lock")
    yield ".SH SYNOPSIS"
    yield from synopsis(parser)
    yield ".SH DESCRIPTION"
    yield from prose(parser.description or "")
    yield from prose(parser.epilog or "")
    yield ".SH OPTIONS"
    yield from options(parser)
    yield from tail()


def synopsis(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield one line: the command, and what it takes in short."""
    name = parser.prog.split()[-1]
    if parser.usage:
        words = parser.usage.replace("%(prog)s", parser.prog).split(None, 2)[2]
    else:
        operands = [operand(one) for one in parser._actions if not one.option_strings]
        words = " ".join(["[options]", *operands])
    yield f".B rebaser {troff(name)}"
    yield f"{troff(words)}\n.br"


def operand(one: argparse.Action) -> str:
    """Return an operand as it stands in a synopsis."""
    more = " ..." if one.nargs == "*" else ""
    return str(one.metavar) if one.nargs is None else f"[{one.metavar}{more}]"


def prose(text: str) -> Iterator[str]:
    """Yield paragraphs; indented lines, and lists of words and their meanings, stay as they are."""
    for paragraph in text.strip("\n").split("\n\n"):
        yield ".PP"
        lines = paragraph.split("\n")
        heading = re.fullmatch(r"([a-z ]+):", lines[0])
        if heading:
            yield f".B {troff(heading[1])}"
            lines = lines[1:]
        if all(line.startswith(" ") for line in lines) or re.match(r"\S+ {2,}\S", lines[0]):
            yield ".RS"
            yield ".nf"
            yield from map(troff, textwrap.dedent("\n".join(lines)).split("\n"))
            yield ".fi"
            yield ".RE"
        else:
            yield from map(troff, lines)


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield what the parser takes, group by group."""
    for group in parser._action_groups:
        shown = [one for one in group._group_actions if one.help != argparse.SUPPRESS]
        shown = [one for one in shown if one.option_strings != ["-h", "--help"]]
        if not shown:
            continue
        # The names that argparse itself gives its two groups differ between Python's versions.
        if group not in parser._action_groups[:2]:
            yield f".PP\n.I {troff(group.title or '')}"
            if group.description:
                yield troff(f"({group.description})")
        for one in shown:
            yield ".TP"
            yield tag(one)
            yield troff((one.help or "").replace("%%", "%"))


def tag(one: argparse.Action) -> str:
    """Return the names of an option and of its value, or of an operand."""
    value = one.metavar if isinstance(one.metavar, str) else None
    if value is None and one.nargs != 0:
        value = "|".join(map(str, one.choices)) if one.choices else one.dest.upper()
    if not one.option_strings:
        return f"\\fI{troff(value or one.dest)}\\fR"
    names = ", ".join(f"\\fB{troff(name)}\\fR" for name in one.option_strings)
    return f"{names} \\fI{troff(value)}\\fR" if value and one.nargs != 0 else names


def tail() -> Iterator[str]:
    """Yield what is the same on every page."""
    for title, words in (("ENVIRONMENT", ENVIRONMENT), ("FILES", PLACES)):
        yield f".SH {title}"
        for word, meaning in words.items():
            yield f".TP\n.I {troff(word)}\n{troff(meaning)}"
    yield ".SH SEE ALSO"
    yield ".BR rebaser (1),\n.BR rebaser\\-lock (1),\n.BR flock (1),\n.BR flock (2)"


def troff(text: str) -> str:
    """Return text in which troff finds no request and no escape; a hyphen stays one to copy."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{text}" if text.startswith(".") else text


# Shell completions.


def completion(shell: str) -> str:
    """Return the completion of all commands for a shell, as shtab makes it."""
    import shtab

    parser = Parser(prog="rebaser", description="Keeps a tree of DLLs fork-safe.")
    parser.add_argument("--version", action="version", version=__version__, help="the version")
    commands = parser.add_subparsers(dest="command")
    for name, purpose in COMMANDS.items():
        one = command_parser(name)
        # What shtab says of a command is its help; of parents it takes the options alone.
        copied = commands.add_parser(
            name, help=purpose, description=purpose, parents=[one], add_help=False
        )
        for action in copied._actions:
            if action.metavar in FOLDERS:
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
            elif action.metavar in FILES:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    # shtab lets zsh complete the first of several operands alone: as if the others began a command.
    return str(shtab.complete(parser, shell)).replace('"(*)::', '"*:')


def main(words: list[str]) -> int:
    """Write the files; with --check return 1 where one is not what it would be."""
    made = {**man_pages(), **completions(), PICTURE: picture()}
    stale = [name for name, text in made.items() if read(HERE / name) != text]
    if words == ["--check"]:
        for name in stale:
            print(f"{name} is not up to date: run bin/make-docs", file=sys.stderr)
        return int(bool(stale))
    for name in stale:
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(made[name], encoding="utf-8")
        print(f"wrote {name}")
    return 0


def read(path: Path) -> str | None:
    """Return what a file holds, None where there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
