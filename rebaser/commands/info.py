"""List images by base: path, base, size, machine, flags, and * where one overlaps another.

Folders stand for the images below them. With --db the entries of Cygwin's rebase database are
listed instead.

exit status:
  0    every PATH could be read
  1    one could not
  2    usage
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cygwin.address_space import machine_name, slot_size
from rebaser import memory as memories
from rebaser.commands.run import add_scan_arguments
from rebaser.errors import RebaserError, UsageError
from rebaser.overlap import Span, overlapping_pairs
from rebaser.scanner import Rules, look_at_one, scan
from rebaser.text import address, printable


class Line(NamedTuple):
    """One image as it is listed; `size` is SizeOfImage in bytes."""

    path: str
    machine: int
    base: int
    size: int
    flags: str


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `rebaser info`."""
    parser.add_argument("paths", metavar="PATH", nargs="*", help="images, and folders of images")
    parser.add_argument("--db", metavar="FILE", help="list Cygwin's rebase database FILE")
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    add_scan_arguments(parser)


def main(arguments: Namespace) -> int:
    """List the images and return the exit status."""
    if bool(arguments.db) == bool(arguments.paths):
        raise UsageError("info: give either PATHs or --db FILE")
    failed: list[tuple[str, str]] = []
    if arguments.db:
        lines = _of_database(arguments.db)
    else:
        rules = Rules(tuple(arguments.suffix), tuple(arguments.exclude))
        lines = [line for path in arguments.paths for line in _of_path(path, rules, failed)]
    lines.sort(key=lambda line: (line.base, line.path))
    overlapping = _overlapping(lines)
    if arguments.json:
        _print_json(lines, overlapping)
    else:
        _print(lines, overlapping)
    for path, reason in failed:
        print(f"rebaser: {printable(path)}: {printable(reason)}", file=sys.stderr)
    return int(bool(failed))


def _of_database(path: str) -> list[Line]:
    from cygwin.database import DatabaseError, read_database

    try:
        database = read_database(path)
    except DatabaseError as error:
        raise RebaserError(f"{error}; it was not changed") from error
    return [
        Line(entry.path, database.machine, entry.base, entry.size, "") for entry in database.entries
    ]


def _of_path(path: str, rules: Rules, failed: list[tuple[str, str]]) -> Iterable[Line]:
    if os.path.isdir(path):
        found = scan(path, rules)
        memory, unread, top = found.memory, found.failed, path
    else:
        top, name = os.path.split(path)
        if not os.path.lexists(path):
            failed.append((path, "no such file or folder"))
            return
        memory, unread = look_at_one(os.path.realpath(top), name)
    failed += [(os.path.join(top, inside), reason) for inside, reason in unread]
    for inside, seen in memory.files():
        where = os.path.join(top, inside)
        if seen.base_width:
            yield Line(where, seen.machine, seen.base, seen.image_size, _flags(seen))
        elif seen.mtime_ns != memories.NEVER and not os.path.isdir(path):
            failed.append((where, memory.texts[seen.fault]))


def _flags(seen: memories.Seen) -> str:
    names = {
        memories.DYNAMIC_BASE: "dynamicbase",
        memories.HIGH_ENTROPY: "high-entropy-va",
        memories.SIGNED: "signed",
    }
    return ",".join(name for flag, name in names.items() if seen.flags & flag)


def _overlapping(lines: Sequence[Line]) -> set[str]:
    by_machine: dict[int, list[Span]] = {}
    for line in lines:
        span = Span(line.base, line.base + slot_size(line.size), line.path)
        by_machine.setdefault(line.machine, []).append(span)
    return {
        span.path
        for spans in by_machine.values()
        for pair in overlapping_pairs(spans)
        for span in pair
    }


def _print(lines: Sequence[Line], overlapping: set[str]) -> None:
    names = [printable(line.path) for line in lines]
    width = max(map(len, names), default=0)
    for name, line in zip(names, lines):
        mark = "*" if line.path in overlapping else " "
        print(
            f"{name:<{width}} base 0x{line.base:012x} size 0x{line.size:08x} "
            f"{machine_name(line.machine):<6} {mark} {line.flags}".rstrip()
        )


def _print_json(lines: Sequence[Line], overlapping: set[str]) -> None:
    import json

    print(
        json.dumps(
            [
                {
                    "path": line.path,
                    "base": address(line.base),
                    "size": line.size,
                    "machine": machine_name(line.machine),
                    "flags": line.flags.split(",") if line.flags else [],
                    "overlaps": line.path in overlapping,
                }
                for line in lines
            ]
        )
    )
