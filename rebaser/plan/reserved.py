"""What the plan must keep off: the runtime, Cygwin's database, and the images of other trees."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from cygwin.address_space import GRANULARITY, Range, slot_size
from cygwin.database import DatabaseError, read_database
from cygwin.paths import database_files, host_path, root_of
from cygwin.values import NamedTuple
from rebaser.errors import UsageError
from rebaser.options import Options
from rebaser.plan.placement import OF_RUNTIME, Reserved
from rebaser.scan.skip import not_images
from rebaser.scan.walk import Rules, look_at_one, scan
from rebaser.tree import Tree, posix_name


class Reservations(NamedTuple):
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
    ranges = {machine: list(of_machine) for machine, of_machine in OF_RUNTIME.items()}
    database_slots: dict[str, Range] = {}
    if (root := options.cygwin_root) and not os.path.isdir(root):
        raise UsageError(f"--cygwin-root {root}: no such folder; nothing was changed")
    for path in database_files(options.database, options.cygwin_root):
        try:
            found = read_database(path)
        except DatabaseError as error:
            if options.database:
                raise UsageError(f"--database {error}; nothing was changed") from None
            warn(f"{error}; the addresses that it keeps are not known, so none is left free")
            continue
        root = root_of(path, options.cygwin_root)
        for entry in found.entries:
            slot = Range(entry.base, entry.base + entry.slot_size)
            file = host_path(entry.path, root)
            if file and (name := ours(file)):
                database_slots[name] = slot
            else:
                owner = f"{entry.path} of Cygwin's database"
                ranges.setdefault(found.machine, []).append(Reserved(slot, owner))
    for path in options.avoid:
        _avoid(path, ours, options.rules, ranges, warn)
    return Reservations(ranges, database_slots)


def _avoid(
    path: str,
    ours: Callable[[str], str | None],
    rules: Rules,
    ranges: dict[int, list[Reserved]],
    warn: Callable[[str], None],
) -> None:
    if not (os.path.isdir(path) or os.path.isfile(path)):
        raise UsageError(f"--avoid {path}: no such file or folder; nothing was changed")
    top = path = os.path.realpath(posix_name(path))
    if os.path.isdir(path):
        scanned = scan(path, rules)
        found, failed, fatal = scanned.snapshot, scanned.failed, "."
    else:
        top, fatal = os.path.split(path)
        found, failed = look_at_one(top, fatal)
        for _, reason in not_images(found):
            warn(f"{path}: {reason}; nothing is kept free for it (--avoid)")
    for name, reason in failed:
        if name == fatal:
            raise UsageError(f"--avoid {path}: {reason}")
        warn(f"{top}/{name} {reason} (--avoid)")
    for name, seen in found.files():
        # An image of the tree itself is none of the others'.
        if seen.base_width and not ours(f"{top}/{name}"):
            low = seen.base // GRANULARITY * GRANULARITY
            slot = Range(low, seen.base + slot_size(seen.image_size))
            ranges.setdefault(seen.machine, []).append(Reserved(slot, f"{top}/{name}"))
