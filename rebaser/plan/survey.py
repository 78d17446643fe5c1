"""What each file of a scan means for the plan: an image that may move, an obstacle, or neither."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping

from cygwin.address_space import Range, slot_size
from cygwin.values import NamedTuple
from rebaser.options import Options
from rebaser.plan.overlap import Span
from rebaser.plan.placement import Placed
from rebaser.report import Move
from rebaser.scan.skip import Skipped, files_of
from rebaser.scan.snapshot import DYNAMIC_BASE, FORKS, Seen, Snapshot, of_stat

# Windows loads no image of 2 GiB; a damaged one that says so is no obstacle for the others.
LARGEST = 0x8000_0000

DEFAULTS = Options()
NO_SLOTS: Mapping[str, Range] = {}


class Source(NamedTuple):
    """The file of an image: what was seen of it, and all its names in the tree."""

    seen: Seen
    names: tuple[str, ...]


class Survey(NamedTuple):
    """The images of a tree by path (of several hard links the first), and what stays out of it.

    `dlls` are the paths of the images whose overlaps break fork:
    those of DLLs that are loaded at their base. `files` is how many files were looked at.
    """

    images: Mapping[str, Placed]
    sources: Mapping[str, Source]
    skipped: tuple[Skipped, ...]
    dlls: frozenset[str]
    files: int


def survey(
    now: Snapshot,
    before: Snapshot | None = None,
    options: Options = DEFAULTS,
    *,
    may_move: Callable[[str], bool] = lambda name: True,
    database_slots: Mapping[str, Range] = NO_SLOTS,
    top: str = "",
) -> Survey:
    """Sort out the files of a scan.

    `before` is what the last run saw (None: all that is there). `may_move` is asked about names;
    `database_slots` are those that Cygwin's database keeps, by name. Names and the globs of the
    options are relative to the root; `top` is put before the paths of the survey.
    """
    base_before = {name: seen.base for name, seen in (before or now).files() if seen.base_width}
    images: dict[str, Placed] = {}
    sources: dict[str, Source] = {}
    skipped: list[Skipped] = []
    files = sorted((tuple(sorted(names)), seen) for names, seen in files_of(now))
    for names, seen in files:
        cause = options.skip_cause(names, seen)
        path = top + names[0]
        if cause:
            skipped.append(Skipped(path, cause, now.details[seen.detail]))
        if not seen.base_width or (cause and slot_size(seen.image_size) > LARGEST):
            continue
        sources[path] = Source(seen, tuple(top + name for name in names) if top else names)
        images[path] = Placed(
            path=path,
            machine=seen.machine,
            base=seen.base,
            slot_size=slot_size(seen.image_size),
            file_size=seen.size,
            fixed=bool(cause) or not any(map(may_move, names)),
            clear_dynamic_base=seen.dynamic_base and not options.keep_aslr,
            known=any(base_before.get(name) == seen.base for name in names),
            database_slot=next(filter(None, map(database_slots.get, names)), None),
        )
    dlls = frozenset(path for path, (seen, _) in sources.items() if seen.flags & FORKS)
    return Survey(images, sources, tuple(skipped), dlls, len(files))


def spans(
    images: Mapping[str, Placed], dlls: Collection[str], moved: Collection[Move] = ()
) -> dict[int, list[Span]]:
    """Return what those of `images` that are in `dlls` occupy, by machine, after `moved`."""
    bases = {move.path: move.new_base for move in moved}
    found: dict[int, list[Span]] = {}
    for path, image in images.items():
        if path in dlls:
            low = bases.get(path, image.base)
            found.setdefault(image.machine, []).append(Span(low, low + image.slot_size, path))
    return found


def with_moves(
    now: Snapshot, sources: Mapping[str, Source], moved: Mapping[Move, os.stat_result]
) -> Snapshot:
    """Return `now` with what is known of the files that were moved since."""
    rows: dict[str, Seen] = {}
    for move, st in moved.items():
        seen, names = sources[move.path]
        flags = seen.dll_characteristics & ~(DYNAMIC_BASE if move.clear_dynamic_base else 0)
        seen = seen._replace(base=move.new_base, dll_characteristics=flags)
        rows.update(dict.fromkeys(names, Seen(*of_stat(st), st.st_nlink, *seen[6:])))
    folders = dict(now.folders)
    for path in {name.rpartition("/")[0] for name in rows}:
        folder, top = folders[path], f"{path}/" if path else ""
        files = [rows.get(top + name, row) for name, row in zip(folder.names, folder.files)]
        folders[path] = folder._replace(files=files)
    return now._replace(folders=folders)
