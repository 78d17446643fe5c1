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
from collections.abc import Iterable, Sequence

from cygwin.address_space import machine_name, slot_size
from cygwin.values import NamedTuple
from rebaser.commands import Arguments
from rebaser.commands.json_output import print_json
from rebaser.commands.parser import Parser
from rebaser.commands.shared import add_scan_options, options_from, with_settings
from rebaser.errors import RebaserError, UsageError
from rebaser.plan.overlap import Span, groups
from rebaser.scan import snapshot as snapshots
from rebaser.scan.skip import is_excluded, not_images, same_file
from rebaser.scan.walk import look_at_one, scan
from rebaser.text import complain, printable
from rebaser.tree import Tree, find_tree, posix_name


class Line(NamedTuple):
    """One image as it is listed: `size` is SizeOfImage in bytes, `file` is the same for all names.

    `flags` are called as `rebaser flags` and a run call them.
    """

    path: str
    machine: int
    base: int
    size: int
    flags: Sequence[str]
    file: str


def add_arguments(parser: Parser) -> None:
    parser.intermixed = True
    parser.add("", "paths PATH ...", "images, and folders of images")
    parser.add("", "--db FILE", "list Cygwin's rebase database FILE")
    parser.add("", "--json", "print one JSON object")
    add_scan_options(parser, how="do not list")


def main(arguments: Arguments) -> int:
    if bool(arguments.db) == bool(arguments.paths):
        raise UsageError("info: give either PATHs or --db FILE")
    failed: list[tuple[str, str]] = []
    if arguments.db:
        lines = _of_database(arguments.db)
    else:
        lines = [line for path in arguments.paths for line in _of_path(path, arguments, failed)]
    lines.sort(key=lambda line: (line.base, line.path))
    spans: dict[int, set[Span]] = {}
    for line in lines:
        span = Span(line.base, line.base + slot_size(line.size), line.file)
        spans.setdefault(line.machine, set()).add(span)
    overlapping = {file for group in groups(spans, (), ()) for file in group.paths}
    if arguments.json:
        images = [{**line._asdict(), "overlaps": line.file in overlapping} for line in lines]
        for image in images:
            del image["file"]
        print_json(images=images, failed=failed)
    else:
        width = max((len(printable(line.path)) for line in lines), default=0)
        for line in lines:
            name, mark = printable(line.path), "*" if line.file in overlapping else " "
            where = f"{name:<{width}} base 0x{line.base:012x} size 0x{line.size:08x}"
            what = f"{machine_name(line.machine):<6} {mark} {','.join(line.flags)}"
            print(f"{where} {what}".rstrip())
    for path, reason in failed:
        complain(f"{path}: {reason}")
    return int(bool(failed))


def _of_database(path: str) -> list[Line]:
    from cygwin.database import DatabaseError, read_database

    try:
        found = read_database(path)
    except DatabaseError as error:
        raise RebaserError(f"{error}; it was not changed") from error
    return [Line(e.path, found.machine, e.base, e.size, (), e.path) for e in found.entries]


def _of_path(path: str, asked: Arguments, failed: list[tuple[str, str]]) -> Iterable[Line]:
    path = posix_name(path)
    if os.path.isdir(path):
        tree = find_tree(path)
        asked = with_settings(asked, tree)
        options = options_from(asked).in_tree(tree.scope)
        found = scan(path, options.rules, _seen_last(tree))
        failed += [(os.path.join(path, inside), reason) for inside, reason in found.failed]
        files = [
            (os.path.join(path, inside), seen)
            for inside, seen in found.snapshot.files()
            if not is_excluded(tree.scope + inside, options.excludes)
        ]
    elif not os.path.isfile(path):
        gone = not os.path.lexists(path)
        failed.append((path, "no such file or folder" if gone else "not a regular file"))
        return
    else:
        snapshot, unread = look_at_one(*os.path.split(os.path.realpath(path)))
        failed += [(path, reason) for _, reason in (*unread, *not_images(snapshot))]
        files = [(path, seen) for _, seen in snapshot.files()]
    for name, seen in files:
        flags = ["dynamicbase"] if seen.dynamic_base else []
        spreads = seen.dll_characteristics & snapshots.HIGH_ENTROPY_VA
        flags += ["high-entropy-va"] if spreads else []
        flags += ["signed"] if seen.flags & snapshots.SIGNED else []
        if seen.base_width:
            file = str(same_file(name, seen))
            yield Line(name, seen.machine, seen.base, seen.image_size, flags, file)


def _seen_last(tree: Tree) -> snapshots.Snapshot:
    """Return what the last run saw of the part that was asked for, as a snapshot of that alone."""
    seen, start = tree.state.load_snapshot(lambda text: None), len(tree.scope)
    inside = [name for name in seen.folders if f"{name}/".startswith(tree.scope)]
    return seen._replace(folders={name[start:]: seen.folders[name] for name in inside})
