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
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence

from cygwin.address_space import machine_name
from rebaser.commands.json_output import group_objects, print_json, range_object, reason_objects
from rebaser.commands.shared import (
    SHOWN,
    add_output_arguments,
    add_place_arguments,
    add_reserved_arguments,
    add_root,
    add_scan_arguments,
    add_switch,
    add_value,
    options_from,
    print_lines,
    with_settings,
)
from rebaser.errors import RebaserError, UsageError
from rebaser.files import write_file
from rebaser.progress import make_progress
from rebaser.report import Group
from rebaser.text import address, printable
from rebaser.tree import Tree, find_tree
from rebaser.view.address_map import AddressMap, Kind
from rebaser.view.overview import Overview, overview
from rebaser.view.picture import Line, Row, Style, picture

# A character for each content of a cell, in Unicode and in ASCII, and its colour on a terminal.
GLYPHS = {
    Kind.IMAGE: ("█", "#", "blue"),
    Kind.NEXT_IMAGE: ("▓", "=", "cyan"),
    Kind.PARTLY: ("▒", "+", "blue"),
    Kind.OVERLAP: ("X", "X", "bold white on red"),
    Kind.FREE: ("·", ".", "dim"),
    Kind.RUNTIME: ("R", "R", "dim"),
    Kind.OTHERS: ("O", "O", "yellow"),
}
# Before these there is an empty line; the others are indented, or not as their colour says.
HEADINGS = {Style.MACHINE: "bold", Style.ALARM: "bold red", Style.ZONE: "bold"}
LABEL = 11  # columns, of an address before a row
MOST_ROWS = 18


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser map`."""
    add_root(parser)
    add_look_arguments(parser)
    output = add_output_arguments(parser)
    add_value(output, "--svg", "FILE", "draw into FILE, for a browser; - is standard output")
    add_switch(output, "--verbose", text="name every DLL that overlaps")


def add_look_arguments(parser: ArgumentParser) -> None:
    """Add the options of a look at a tree's address space."""
    add_place_arguments(parser)
    add_scan_arguments(parser)
    add_reserved_arguments(parser)
    add_value(parser, "--arena", "LOW-HIGH", "the addresses of rebased DLLs, if not the usual")


def look_as_asked(arguments: Namespace) -> tuple[Tree, Overview, str | None]:
    """Look at the tree that the arguments name; return it, what was found, and its settings."""
    tree = find_tree(arguments.root, lock_file=arguments.lock_file, state_dir=arguments.state_dir)
    arguments = with_settings(arguments, tree)
    options = options_from(arguments)
    progress = make_progress("auto", arguments.json)
    progress.phase("looking at the tree")
    try:
        found = overview(tree, options, warn=progress.tell, progress=progress.advance)
    finally:
        progress.close()
    return tree, found, arguments.settings


def main(arguments: Namespace) -> int:
    """Look, draw, and return the exit status."""
    if arguments.json and arguments.svg == "-":
        raise UsageError("--json and --svg - both want standard output: name a file for the SVG")
    tree, found, _ = look_as_asked(arguments)
    if arguments.svg:
        _write_svg(arguments.svg, tree.root, found)
    if arguments.json:
        _print_json(tree.root, found)
    elif arguments.svg:
        if arguments.svg != "-":
            print(printable(f"wrote {arguments.svg}"))
    else:
        _show(tree.root, found, every_name=arguments.verbose)
    print_lines([f"{path}: {reason}" for path, reason in found.failed], SHOWN, sys.stderr)
    return int(bool(found.failed))


def _write_svg(path: str, root: str, found: Overview) -> None:
    from rebaser.commands.svg import svg

    drawn = svg(root, found.maps)
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


def _show(root: str, found: Overview, *, every_name: bool) -> None:
    """Print the picture: in colour on a terminal, else as plain text."""
    width = shutil.get_terminal_size().columns
    cells = 128 if width >= LABEL + 140 else 64 if width >= LABEL + 68 else 32
    drawn = picture(root, found.maps, cells=cells, most_rows=MOST_ROWS, every_name=every_name)
    if not sys.stdout.isatty():
        for pieces in _painted(drawn, cells):
            print("".join(text for text, _ in pieces).rstrip())
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(width=width, highlight=False)
    for pieces in _painted(drawn, cells):
        line = Text.assemble(*pieces)
        if len(line) > width:  # no terminal breaks a name then
            line = line[: width // 2 - 1] + Text("…") + line[-(width // 2) :]
        console.print(line, soft_wrap=True)


def _painted(drawn: Iterator[Line | Row], cells: int) -> Iterator[list[tuple[str, str]]]:
    """Yield the lines of the picture as pieces of text, each with its colour."""
    try:
        "█▓▒·".encode(sys.stdout.encoding or "ascii")
        alphabet = 0
    except UnicodeError:
        alphabet = 1
    used = set()
    for line in drawn:
        if isinstance(line, Row):
            pieces = [(f"{address(line.low):>{LABEL}} ", "")]
            for content in _contents(line, cells):
                used.add(content)
                glyph = GLYPHS[content] if content else (" ", " ", "")
                pieces.append((glyph[alphabet], glyph[2]))
            if line.overlaps:
                pieces.append((" <X", GLYPHS[Kind.OVERLAP][2]))
            yield pieces
        elif line.style in HEADINGS:
            yield [("", "")]
            yield [(line.text, HEADINGS[line.style])]
        elif line.style in (Style.NOTE, Style.GAP):
            yield [(" " * (LABEL + 1) + line.text, "dim" if line.style is Style.GAP else "")]
        else:
            yield [(line.text, "bold" if line.style is Style.TITLE else "")]
    yield [("", "")]
    legend = [(GLYPHS[one], f" {one.value}   ") for one in GLYPHS if one in used]
    for first in range(0, len(legend), 4):  # 80 columns hold any four
        yield [
            piece
            for glyph, text in legend[first : first + 4]
            for piece in ((glyph[alphabet], glyph[2]), (text, ""))
        ]


def _contents(row: Row, cells: int) -> Sequence[Kind | None]:
    """Return what each cell shows. One with an overlap in it shows nothing else, however small."""
    size = row.size // cells
    shown: list[Kind | None] = [None] * cells
    filled = [0] * cells
    for box in row.boxes:
        for index in range((box.low - row.low) // size, -((row.low - box.high) // size)):
            shown[index] = box.kind
            if box.kind in (Kind.IMAGE, Kind.NEXT_IMAGE):
                low = row.low + index * size
                several = filled[index] > 0
                filled[index] += min(box.high, low + size) - max(box.low, low)
                if filled[index] < size:
                    shown[index] = Kind.PARTLY
                elif several:
                    shown[index] = Kind.IMAGE
    return shown


def room_object(found: AddressMap) -> dict[str, object]:
    """Return what of the addresses for rebased DLLs is used and free, in bytes."""
    use = found.use()
    return {
        "range": range_object(*found.arena),
        "used": use.images,
        "kept_for_others": use.others,
        "free": use.free,
        "largest_gap": range_object(*use.largest_gap) if use.largest_gap else None,
    }


def _print_json(root: str, found: Overview) -> None:
    machines = {}
    for one in found.maps:
        groups = [
            Group(one.machine, *one.extent(group), tuple(r.path for r in group), one.cure(group))
            for group in one.groups
        ]
        machines[machine_name(one.machine)] = {
            **room_object(one),
            "images": [{"path": r.path, **range_object(r.low, r.high)} for r in one.images],
            "reserved": [{"owner": r.path, **range_object(r.low, r.high)} for r in one.others],
            "overlaps": group_objects(groups),
        }
    print_json({"root": root, "machines": machines, "failed": reason_objects(found.failed)})
