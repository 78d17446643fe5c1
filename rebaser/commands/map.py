"""Draw the address space of a tree: its DLLs, what overlaps, what is kept for others, what is free.

Reads only, takes no lock. A folder inside a tree is drawn with the whole tree. Each machine has a
picture of its own, at the finest scale that fits; rows with nothing in them are left out.

exit status:
  0    the picture was drawn
  1    something could not be looked at, or the file of --svg not be written
  2    usage
"""

from __future__ import annotations

import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

from cygwin.address_space import machine_name
from rebaser.address_map import (
    AddressMap,
    Cell,
    Drawing,
    Region,
    Row,
    Zone,
    binary_size,
    cells_of,
    draw,
    extent,
    use_of,
    zones,
)
from rebaser.commands.shared import (
    SHOWN,
    add_place_arguments,
    add_reserved_arguments,
    add_scan_arguments,
    arena_object,
    options_from,
    print_lines,
    range_object,
)
from rebaser.errors import RebaserError, UsageError
from rebaser.look import Look, look
from rebaser.progress import make_progress
from rebaser.text import address, plural, printable
from rebaser.tree import Tree, find_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rich.text import Text

# A character for each content of a cell, in Unicode and in ASCII, and its colour on a terminal.
GLYPHS = {
    Cell.OUTSIDE: (" ", " ", ""),
    Cell.FREE: ("·", ".", "dim"),
    Cell.IMAGE: ("█", "#", "blue"),
    Cell.NEXT_IMAGE: ("▓", "=", "cyan"),
    Cell.PARTLY: ("▒", "+", "blue"),
    Cell.RUNTIME: ("R", "R", "dim"),
    Cell.DATABASE: ("D", "D", "yellow"),
    Cell.AVOID: ("A", "A", "yellow"),
    Cell.COLLISION: ("X", "X", "bold white on red"),
}
# Rows of a picture, of the arena and of another zone.
MOST_ROWS = 16
MOST_ROWS_ELSEWHERE = 6
# Images of a group that are named.
NAMED = 4


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser map`."""
    parser.add_argument("root", metavar="ROOT", nargs="?", help="the tree (default: $SAGE_LOCAL)")
    add_look_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--svg", metavar="FILE", help="draw into FILE, for a browser; - is standard output"
    )
    output.add_argument("--json", action="store_true", help="print one JSON object")
    output.add_argument("--verbose", action="store_true", help="name every DLL that overlaps")


def add_look_arguments(parser: ArgumentParser) -> None:
    """Add the options of a look at a tree's address space."""
    add_place_arguments(parser)
    add_scan_arguments(parser)
    add_reserved_arguments(parser)
    parser.add_argument(
        "--arena", metavar="LOW-HIGH", help="the addresses of rebased DLLs, if not the usual"
    )


def look_as_asked(arguments: Namespace) -> tuple[Tree, Look]:
    """Look at the tree that the arguments name; return it and what was found."""
    tree = find_tree(arguments.root, lock_file=arguments.lock_file, state_dir=arguments.state_dir)
    options = options_from(arguments)
    progress = make_progress("auto", arguments.json)
    told = set()

    def warn(text: str) -> None:
        if text not in told:
            told.add(text)
            progress.tell(text)

    progress.phase("looking at the tree")
    try:
        return tree, look(tree, options, warn=warn, progress=progress.advance)
    finally:
        progress.close()


def main(arguments: Namespace) -> int:
    """Look, draw, and return the exit status."""
    if arguments.json and arguments.svg == "-":
        raise UsageError("--json and --svg - both want standard output: name a file for the SVG")
    tree, found = look_as_asked(arguments)
    root = tree.root
    if arguments.svg:
        _write_svg(arguments.svg, root, found)
    if arguments.json:
        _print_json(root, found)
    elif arguments.svg != "-":
        _Picture(root, found, named=sys.maxsize if arguments.verbose else NAMED).show()
    print_lines([f"{path}: {reason}" for path, reason in found.failed], SHOWN, sys.stderr)
    return int(bool(found.failed))


def _write_svg(path: str, root: str, found: Look) -> None:
    from rebaser.svg import svg

    picture = svg(root, found.maps)
    if path == "-":
        print(picture)
        return
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.write(picture)
    except OSError as error:
        raise RebaserError(
            f"{path}: the picture cannot be written there ({error.strerror}); name another file"
        ) from error


class _Picture:
    """The picture in characters, line by line: (text, style) pieces, printed as they come."""

    def __init__(self, root: str, found: Look, *, named: int) -> None:
        self.root = root
        self.found = found
        self.named = named
        self.width = max(40, shutil.get_terminal_size().columns)
        encoding = sys.stdout.encoding or "ascii"
        try:
            "█▓▒·".encode(encoding)
            self.ascii = 0
        except UnicodeError:
            self.ascii = 1

    def show(self) -> None:
        """Print it: in colour on a terminal, else as plain text."""
        if not sys.stdout.isatty():
            for pieces in self.lines():
                print("".join(text for text, _ in pieces).rstrip())
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(width=self.width, highlight=False)
        for pieces in self.lines():
            line: Text = Text.assemble(*pieces)
            console.print(line, soft_wrap=True)

    def lines(self) -> Iterator[list[tuple[str, str]]]:
        """Yield every line of the output."""
        yield [(printable(self.root), "bold")]
        used: set[Cell] = set()
        for found in self.found.maps:
            yield [("", "")]
            yield from self.machine(found, used)
        yield [("", "")]
        yield from self.legend(used)

    def machine(self, found: AddressMap, used: set[Cell]) -> Iterator[list[tuple[str, str]]]:
        """Yield the picture of one machine."""
        title = f"{machine_name(found.machine)}: {plural(len(found.images), 'DLL')}"
        if not found.images:
            title = f"{machine_name(found.machine)}: no DLLs"
        if found.colliding:
            yield [
                (f"{title}, ", "bold"),
                (f"{found.colliding:,} OVERLAPPING", GLYPHS[Cell.COLLISION][2]),
            ]
        else:
            yield [(title if not found.images else f"{title}, no overlap", "bold")]
        label = max(
            (len(address(max(region.high for region in found.images))) if found.images else 0), 11
        )
        cells = 128 if self.width >= label + 140 else 64 if self.width >= label + 69 else 32
        for zone in zones(found.machine, found.arena):
            drawing = draw(
                found,
                zone,
                cells=cells,
                most_rows=MOST_ROWS if zone.is_arena else MOST_ROWS_ELSEWHERE,
            )
            if zone.is_arena or drawing.lines:
                yield from self.zone(found, drawing, cells, label, used)
        yield from self.overlaps(found)

    def zone(
        self, found: AddressMap, drawing: Drawing, cells: int, label: int, used: set[Cell]
    ) -> Iterator[list[tuple[str, str]]]:
        """Yield a heading, and the rows of a zone."""
        yield [("", "")]
        yield [(_heading(found, drawing.zone), "bold")]
        indent = " " * (label + 1)
        notes: list[str] = []
        if drawing.zone.is_arena:
            use = use_of(found)
            kept = f", {binary_size(use.others)} kept for others" if use.others else ""
            gap = use.largest_gap
            yield [
                (
                    f"{indent}{binary_size(use.images)} used{kept}, {binary_size(use.free)} free",
                    "",
                )
            ]
            if gap:
                size = binary_size(gap.high - gap.low)
                notes.append(f"largest gap {size} at {address(gap.low)}")
        if any(isinstance(line, Row) for line in drawing.lines):
            notes.append(f"a character is {binary_size(drawing.row_size // cells)}")
        if notes:
            yield [(f"{indent}{'; '.join(notes)}", "")]
        for line in drawing.lines:
            if isinstance(line, Row):
                yield self.row(line, drawing, cells, label, used)
            else:
                size = binary_size(line.high - line.low)
                yield [(f"{indent}... {size} {drawing.zone.free} ...", "dim")]

    def row(
        self, row: Row, drawing: Drawing, cells: int, label: int, used: set[Cell]
    ) -> list[tuple[str, str]]:
        """Return one row of cells, with its address before and a mark behind if any overlap."""
        pieces = [(f"{address(row.low):>{label}} ", "")]
        for cell in cells_of(row, drawing, cells):
            used.add(cell)
            text, style = GLYPHS[cell][self.ascii], GLYPHS[cell][2]
            if len(pieces) > 1 and pieces[-1][1] == style:
                pieces[-1] = (pieces[-1][0] + text, style)
            else:
                pieces.append((text, style))
        if row.collisions:
            pieces.append((" <X", GLYPHS[Cell.COLLISION][2]))
        return pieces

    def overlaps(self, found: AddressMap) -> Iterator[list[tuple[str, str]]]:
        """Yield every group of regions that overlap."""
        if not found.groups:
            return
        yield [("", "")]
        yield [("Overlaps (each breaks fork in a process that loads both):", "bold")]
        for number, group in enumerate(found.groups):
            if number == SHOWN and self.named == NAMED:
                more = plural(len(found.groups) - SHOWN, "more place")
                yield [(f"... and {more}; --verbose names them all", "")]
                break
            low, high = extent(found, group)
            yield [(f"  {address(low)}-{address(high)}", GLYPHS[Cell.COLLISION][2])]
            for region in group[: self.named]:
                yield [(f"    {_where(region)}", "")]
            if len(group) > self.named:
                yield [(f"    ... and {len(group) - self.named:,} more here", "")]
        yield [("'rebaser run' moves them apart; 'rebaser check' says what would move.", "")]

    def legend(self, used: set[Cell]) -> Iterator[list[tuple[str, str]]]:
        """Yield what the characters mean, those that occur."""
        texts = {
            Cell.IMAGE: "DLL, next DLL",
            Cell.PARTLY: "DLLs and free space",
            Cell.COLLISION: "OVERLAP",
            Cell.RUNTIME: "Cygwin runtime",
            Cell.DATABASE: "Cygwin's database",
            Cell.AVOID: "--avoid",
            Cell.FREE: "free",
        }
        if Cell.NEXT_IMAGE in used:
            used.add(Cell.IMAGE)
        pieces: list[tuple[str, str]] = []
        for cell, text in texts.items():
            if cell in used:
                pieces.append((GLYPHS[cell][self.ascii], GLYPHS[cell][2]))
                if cell is Cell.IMAGE:
                    other = GLYPHS[Cell.NEXT_IMAGE]
                    pieces.append((other[self.ascii], other[2]))
                pieces.append((f" {text}   ", ""))
        if pieces:
            yield pieces


def _heading(found: AddressMap, zone: Zone) -> str:
    high = f"-{address(zone.high)}" if zone.high < 1 << 47 else " and up"
    count = sum(zone.low <= region.low < zone.high for region in found.images)
    held = plural(count, "DLL") if count else "no DLLs"
    return f"{address(zone.low)}{high}  {zone.name}: {held}"


def _where(region: Region) -> str:
    return f"{address(region.low)}-{address(region.high)}  {printable(region.path)}"


def _print_json(root: str, found: Look) -> None:
    import json

    machines = {}
    for one in found.maps:
        machines[machine_name(one.machine)] = {
            **arena_object(one),
            "images": [{"path": r.path, **range_object(r.low, r.high)} for r in one.images],
            "reserved": [
                {"owner": r.path, "kind": r.kind.value, **range_object(r.low, r.high)}
                for r in one.others
            ],
            "overlaps": [[region.path for region in group] for group in one.groups],
        }
    failed = [{"path": path, "reason": reason} for path, reason in found.failed]
    print(json.dumps({"root": root, "machines": machines, "failed": failed}))
