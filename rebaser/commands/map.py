"""Draw the address space of a tree: its DLLs, what overlaps, what is kept for others, what is free.

Reads only, takes no lock. A folder inside a tree is drawn with the whole tree. Each machine has a
picture of its own, at the finest scale that fits; rows with nothing in them are left out.

exit status:
  0    the picture was drawn
  1    something could not be looked at, or the file of --svg not be written
  2    usage
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from cygwin.address_space import X86_64, machine_name
from rebaser.commands import Arguments, shared
from rebaser.commands.json_output import print_json
from rebaser.commands.parser import Parser
from rebaser.commands.verdict import painted
from rebaser.errors import RebaserError, UsageError
from rebaser.files import write_file
from rebaser.options import Request
from rebaser.plan.proposal import Planner
from rebaser.plan.survey import spans
from rebaser.progress import Progress
from rebaser.scan.walk import scan
from rebaser.text import address, printable, shortened, terminal_width
from rebaser.view import COLUMNS, AddressMap, Kind, Part, Row, picture, within

# A character for each content of a cell, in Unicode and in ASCII, and its colour on a terminal.
GLYPHS = {
    Kind.IMAGE: ("█", "#", "34"),
    Kind.NEXT_IMAGE: ("▓", "=", "36"),
    Kind.PARTLY: ("▒", "+", "34"),
    Kind.OVERLAP: ("X", "X", "1;37;41"),
    Kind.FREE: ("·", ".", "2"),
    Kind.RUNTIME: ("R", "R", "2"),
    Kind.OTHERS: ("O", "O", "33"),
    None: (" ", " ", ""),
}


def add_arguments(parser: Parser) -> None:
    add_look_options(parser)
    parser.add("output", "--svg FILE", "draw into FILE, for a browser; - is standard output")
    parser.add("output", "-v --verbose", "name every DLL that overlaps")


def add_look_options(parser: Parser) -> None:
    """Add the options of a look at a tree's address space."""
    shared.add_root(parser)
    shared.add_scan_options(parser)
    shared.add_reserved_options(parser)
    parser.add("output", "--json", "print one JSON object")


class Look:
    """A look at the whole tree that the arguments name: without its lock, and without waiting.

    `maps` has the machines that the tree has DLLs of; x86_64 if it has none. `failed` are (path,
    reason), the paths relative to the root. `settings` is the file of options that was read, or
    None.
    """

    def __init__(self, arguments: Arguments) -> None:
        self.tree = tree = shared.tree_of(arguments, arguments.root)
        arguments = shared.with_settings(arguments, tree)
        options = shared.options_from(arguments).in_tree(tree.scope)
        progress = Progress("never" if arguments.json else "auto")
        progress.phase("looking at the tree")
        before = tree.state.load_snapshot(progress.tell)
        try:
            found = scan(tree.root, options.rules, before, progress=progress.advance)
            planner = Planner(tree, options, Request(""), progress.tell)
        finally:
            progress.close()
        surveyed = planner.survey(found.snapshot, before)
        placed, reserved = spans(surveyed.images, surveyed.dlls), planner.reserved.ranges
        stuck = {path for path, image in surveyed.images.items() if image.fixed}
        self.maps = [
            AddressMap(one, options.arenas[one], placed.get(one, ()), reserved.get(one, ()), stuck)
            for one in sorted(placed, reverse=True) or [X86_64]
        ]
        self.settings = arguments.settings
        self.skipped, self.failed = surveyed.skipped, found.failed

    def print_json(
        self, of_machine: Callable[[AddressMap], dict[str, object]], **more: object
    ) -> None:
        """Print it as one JSON object, with what a command tells of each machine, and more."""
        machines = {
            machine_name(one.machine): {**one.use()._asdict(), **of_machine(one)}
            for one in self.maps
        }
        print_json(root=self.tree.root, machines=machines, failed=self.failed, **more)

    def end(self) -> int:
        """Say what could not be looked at, twenty at most; return the exit status."""
        lines = [f"{path}: {reason}" for path, reason in self.failed[:20]]
        if more := len(self.failed) - len(lines):
            lines.append(f"... and {more:,} more like these ('rebaser run --verbose' names all)")
        for line in lines:
            print(printable(line), file=sys.stderr)
        return int(bool(lines))


def main(arguments: Arguments) -> int:
    if arguments.json and arguments.svg == "-":
        raise UsageError("--json and --svg - both want standard output: name a file for the SVG")
    found = Look(arguments)
    if arguments.svg:
        _write_svg(arguments.svg, found)
    if arguments.json:
        found.print_json(
            lambda one: {
                "images": [{"path": r.path, "low": r.low, "high": r.high} for r in one.images],
                "reserved": [{"owner": r.path, "low": r.low, "high": r.high} for r in one.others],
                "overlaps": list(map(one.told, one.groups)),
            }
        )
    elif not arguments.svg:
        _show(found, every_name=arguments.verbose)
    elif arguments.svg != "-":
        print(printable(f"wrote {arguments.svg}"))
    return found.end()


def _write_svg(path: str, found: Look) -> None:
    from rebaser.commands.svg import svg

    drawn = svg(found.tree.root, found.maps)
    if path == "-":
        print(drawn)
        return
    target = os.path.realpath(path)
    try:
        if os.path.exists(target) and not os.path.isfile(target):  # /dev/fd/3, say
            with open(target, "w", encoding="utf-8") as file:
                file.write(drawn)
        else:
            write_file(target, drawn.encode(), f"{target}.rebaser-{os.getpid()}")
    except OSError as error:
        raise RebaserError(
            f"{path}: the picture cannot be written there ({error.strerror}), and what was there "
            "is as it was; name another file"
        ) from error


def _show(found: Look, *, every_name: bool) -> None:
    width = terminal_width()
    cells = 128 if width >= COLUMNS + 139 else 64 if width >= COLUMNS + 67 else 32
    most = width if sys.stdout.isatty() else sys.maxsize  # no terminal breaks a name then
    used: set[Kind | None] = set()
    try:
        "█▓▒·".encode(sys.stdout.encoding or "ascii")
        alphabet = 0
    except UnicodeError:
        alphabet = 1

    def glyph(content: Kind | None) -> str:
        used.add(content)
        return painted(GLYPHS[content][alphabet], GLYPHS[content][2], sys.stdout)

    root, maps = found.tree.root, found.maps
    for line in picture(root, maps, cells=cells, most_rows=18, every_name=every_name):
        if isinstance(line, Row):
            size = line.size // cells
            lows = range(line.low, line.low + line.size, size)
            shown = [glyph(_content(within(line.parts, low, low + size), size)) for low in lows]
            mark = painted(" <X", GLYPHS[Kind.OVERLAP][2], sys.stdout) if line.overlaps else ""
            print(f"{address(line.low):>{COLUMNS - 1}} {''.join(shown)}{mark}".rstrip(" "))
        else:
            before, colour, *_ = line.style.value
            print(before + painted(shortened(line.text, most), colour, sys.stdout))
    print()
    legend = [f"{glyph(one)} {one.value}   " for one in GLYPHS if one in used and one]
    for first in range(0, len(legend), 4):  # 80 columns hold any four
        print("".join(legend[first : first + 4]).rstrip(" "))


def _content(parts: Sequence[Part], size: int) -> Kind | None:
    """Return what a cell of `size` addresses shows: any overlap in it, however small."""
    if any(part.kind is Kind.OVERLAP for part in parts):
        return Kind.OVERLAP
    images = [part for part in parts if part.kind in (Kind.IMAGE, Kind.NEXT_IMAGE)]
    if not images:
        return parts[-1].kind if parts else None
    if sum(part.high - part.low for part in images) < size:
        return Kind.PARTLY
    return images[0].kind if len(images) == 1 else Kind.IMAGE
