"""What the plan must keep off: the runtime, Cygwin's database, and the images of other trees."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cygwin.address_space import GRANULARITY, Range, slot_size
from cygwin.paths import host_path
from rebaser.errors import UsageError
from rebaser.files import open_to_read
from rebaser.options import Options
from rebaser.plan.databases import database_files, root_of
from rebaser.plan.placement import OF_RUNTIME, Reserved
from rebaser.scan.walk import Rules, scan
from rebaser.tree import Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cygwin.database import Database


@dataclass(frozen=True)
class Reservations:
    """The reserved ranges by machine, and the slots kept for files of the tree by path."""

    ranges: Mapping[int, Sequence[Reserved]]
    database_slots: Mapping[str, Range]


def in_tree(tree: Tree) -> Callable[[str], str | None]:
    """Return what tells a file of the tree: its path relative to the root, for a host's path."""
    # On Cygwin /usr/lib and /lib are one folder, and the database may say either.
    tops = {tree.root, host_path(tree.root) or tree.root}

    def ours(path: str) -> str | None:
        for top in tops:
            inside = Tree(top, "", "").relative(path)
            if inside and os.path.lexists(tree.path(inside)):
                return inside
        return None

    return ours


def reservations(
    ours: Callable[[str], str | None], options: Options, warn: Callable[[str], None]
) -> Reservations:
    """Collect what is reserved: by the runtime, Cygwin's database, and --avoid.

    `ours` returns the name that a host's path has among our images, or None. The system's own
    database is left out, with a warning, where it cannot be read. Raises UsageError for one that
    was asked for and cannot be read, and for an --avoid path that does not exist.
    """
    from cygwin.database import DatabaseError, read_database

    ranges = {machine: list(of_machine) for machine, of_machine in OF_RUNTIME.items()}
    database_slots: dict[str, Range] = {}
    for path in database_files(options.database, options.cygwin_root):
        try:
            found = read_database(path)
        except DatabaseError as error:
            if options.database:
                raise UsageError(f"--database {error}; nothing was changed") from None
            warn(
                f"{error}; the addresses that it keeps are not known, so none of them is left free"
            )
            continue
        _take(found, root_of(path, options.cygwin_root), ours, ranges, database_slots)
    for path in options.avoid:
        _avoid(path, ours, options.rules, ranges, warn)
    return Reservations(ranges, database_slots)


def _take(
    database: Database,
    root: str | None,
    ours: Callable[[str], str | None],
    ranges: dict[int, list[Reserved]],
    database_slots: dict[str, Range],
) -> None:
    for entry in database.entries:
        slot = Range(entry.base, entry.base + entry.slot_size)
        path = host_path(entry.path, root)
        name = ours(path) if path else None
        if name:
            database_slots[name] = slot
        else:
            owner = f"{entry.path} of Cygwin's database"
            ranges.setdefault(database.machine, []).append(Reserved(slot, owner))


def _avoid(
    path: str,
    ours: Callable[[str], str | None],
    rules: Rules,
    ranges: dict[int, list[Reserved]],
    warn: Callable[[str], None],
) -> None:
    if not os.path.exists(path):
        raise UsageError(f"{path}: the path given to --avoid does not exist")
    path = os.path.realpath(path)
    if os.path.isdir(path):
        found = scan(path, rules)
        for inside, reason in found.failed:
            if inside == ".":
                raise UsageError(f"--avoid {path}: {reason}")
            warn(f"{path}/{inside} {reason} (--avoid)")
        images = [
            (f"{path}/{inside}", seen.machine, seen.base, seen.image_size)
            for inside, seen in found.snapshot.files()
            if seen.base_width
        ]
    else:
        images = _one_image(path, warn)
    for name, machine, base, size in images:
        if ours(name):
            continue  # an image of the tree itself is none of the others'
        slot = Range(base // GRANULARITY * GRANULARITY, base + slot_size(size))
        ranges.setdefault(machine, []).append(Reserved(slot, name))


def _one_image(path: str, warn: Callable[[str], None]) -> list[tuple[str, int, int, int]]:
    from cygwin.errors import NotAnImage
    from cygwin.image import read_image

    try:
        descriptor = open_to_read(path)
    except OSError as error:
        raise UsageError(f"--avoid {path}: cannot be read ({error.strerror})") from None
    try:
        image = read_image(descriptor, os.fstat(descriptor).st_size)
    except NotAnImage as error:
        warn(f"{path}: {error}; nothing is kept free for it (--avoid)")
        return []
    finally:
        os.close(descriptor)
    return [(path, image.machine, image.base, image.size)]
