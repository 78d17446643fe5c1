"""What breaks fork in some files and folders, and what no rebase can cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

from cygwin.address_space import ARENA, GRANULARITY, SAFE, X86_64, is_runtime, mandatory_aslr
from cygwin.fault import Fault
from cygwin.values import NamedTuple
from rebaser.errors import UsageError, suppress
from rebaser.files import open_to_read
from rebaser.options import Options, Request
from rebaser.plan.overlap import groups
from rebaser.plan.placement import OF_RUNTIME, NoRoomError, Obstacles
from rebaser.plan.proposal import Planner, in_tree
from rebaser.plan.survey import spans
from rebaser.report import Group, Move
from rebaser.scan.skip import Skipped, not_images, same_file
from rebaser.scan.snapshot import HIGH_ENTROPY_VA, blank
from rebaser.scan.walk import PROGRAM, Scan, look_at_one, scan
from rebaser.text import address
from rebaser.tree import Tree, find_tree

NO_FILE = "not a regular file"
# PE/COFF specification, "Signature", "Optional Header": where it is said how far the signature lies
# from the start of the file, and how far the DLL Characteristics lie from the signature.
E_LFANEW, FLAGS_BEHIND_SIGNATURE = 60, 24 + 70
UNJUDGED = (Fault.EMPTY, Fault.TRUNCATED, Fault.DAMAGED)
LOADED_ANYWHERE = "DYNAMIC_BASE is set, so Windows loads it at another address each time"
HIGH_ENTROPY = (
    "HIGH_ENTROPY_VA is set, so its heap and stacks may take any address: clear it with "
    "rebaser flags --high-entropy-va=0"
)
MANDATORY_ASLR = (
    "Mandatory ASLR is on (Exploit protection: Force randomization for images) and moves "
    "every DLL: switch it off, or exempt the programs of this tree"
)


class Findings(NamedTuple):
    """What was found. Paths are absolute.

    `named` are the images that were asked about, and `overlaps` concern one of them. `problems`
    break fork in one file each, or in a process that runs it; `incurable` is what no rebase can
    cure, and `unread` what could not be read: (path, reason). `skipped` is what no run moves.
    `runs` make `moves` (by path): folders, and what a run on each is to keep off.
    """

    named: frozenset[str]
    overlaps: tuple[Group, ...]
    problems: tuple[tuple[str, str], ...]
    incurable: tuple[tuple[str, str], ...]
    unread: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    at_linkers_base: int
    moves: Mapping[str, Move]
    runs: Mapping[str, tuple[str, ...]]

    @property
    def unjudged(self) -> tuple[Skipped, ...]:
        """What was skipped and may be a DLL that breaks fork when it is whole."""
        return tuple(one for one in self.skipped if one.cause in UNJUDGED)

    @property
    def breaks_fork(self) -> bool:
        """Whether fork fails, or may fail, because of something that was found."""
        return bool(self.overlaps or self.problems or self.incurable)

    @property
    def broken(self) -> frozenset[str]:
        """The files asked about, each once, that break fork."""
        found = {path for path, _ in (*self.problems, *self.incurable)}
        return frozenset(found.union(*(group.paths for group in self.overlaps)) & self.named)

    @property
    def exit_status(self) -> int:
        """0 where nothing breaks fork and everything could be looked at, else 1."""
        return int(self.breaks_fork or bool(self.unread or self.unjudged))


def check(
    paths: Sequence[str],
    options: Options | None = None,
    *,
    warn: Callable[[str], None] = lambda text: None,
) -> Findings:
    """Look at files, and at the images below folders, and say what breaks fork.

    A folder inside another tree is looked at with that tree, as `run` does; what the last run saw
    and what is as it was is not read again. Reads only, and takes no lock. Raises UsageError for a
    path that does not exist.
    """
    options = options or Options()
    scans: dict[str, Scan] = {}  # of several folders in one tree the scan is one
    parts = [_Part(path, options, scans, warn) for path in _apart(paths)]
    parts.sort(key=lambda part: part.is_folder)  # files come first, so that the runs keep off them
    for part in parts:
        part.plan(parts, options, warn)
    images = {path: image for part in parts for path, image in part.survey.images.items()}
    moves = {move.path: move for part in parts for move in part.moves}
    files: dict[object, str] = {}  # a file that was seen under another name is no other image
    for part in parts:
        for path in part.survey.dlls:
            files.setdefault(same_file(path, part.survey.sources[path].seen), path)
    dlls = frozenset(files.values())
    named: set[str] = set()
    causes: dict[str, Skipped] = {}
    problems: list[tuple[str, str]] = []
    incurable = [("Windows", MANDATORY_ASLR)] if mandatory_aslr() else []
    for part in parts:
        for path in part.survey.dlls & dlls:
            if any(map(part.holds, part.survey.sources[path].names)):
                named.add(path)
                problems += ((path, what) for what in part.problems_of(path))
        causes.update((one.path, one) for one in part.survey.skipped if part.holds(one.path))
        incurable += part.incurable

    def overlaps_after(made: Collection[Move]) -> tuple[Group, ...]:
        found = groups(spans(images, dlls, made), images.keys() - moves.keys(), named)
        return tuple(group for group in found if not named.isdisjoint(group.paths))

    overlaps = overlaps_after(())
    left = overlaps_after(moves.values()) if moves else overlaps
    broken = {path for path, _ in problems}
    stay = causes.keys() & broken.union(*(group.paths for group in left))
    incurable += ((path, f"no run moves it: {causes[path].reason}") for path in sorted(stay))
    return Findings(
        named=frozenset(named),
        overlaps=overlaps,
        problems=tuple(sorted(problems)),
        incurable=tuple(incurable),
        unread=tuple(pair for part in parts for pair in part.unread),
        skipped=tuple(
            one for path, one in sorted(causes.items()) if not path.lower().endswith(PROGRAM)
        ),
        at_linkers_base=sum(
            images[path].machine == X86_64 and images[path].base >= ARENA[X86_64].high
            for path in named - broken
        ),
        moves=moves,
        runs={part.path: part.others for part in parts if part.moves},
    )


class _Part:
    """A file or folder that was named, in the tree that it belongs to, as a run on it sees it.

    `now` is what was found, `before` what the last run saw, `unread` are (path, reason). After
    `plan`: `survey` has the images, `moves` is what a run on this folder does, `others` are the
    parts in other trees, which it keeps off, `reserved` what else lies in the address space, and
    `incurable` what no run cures.
    """

    def __init__(
        self, path: str, options: Options, scans: dict[str, Scan], warn: Callable[[str], None]
    ) -> None:
        self.path, self.is_folder = path, os.path.isdir(path)
        self.before = blank()
        self.moves: tuple[Move, ...] = ()
        if self.is_folder:
            self.tree = find_tree(path)
            before = self.tree.state.load_snapshot(warn)
            if self.tree.root not in scans:
                scans[self.tree.root] = scan(self.tree.root, options.rules, before)
            found = scans[self.tree.root]
            self.now, failed = found.snapshot, found.failed
            if not found.unchanged:  # where all is known, as where nothing is, nothing stays for it
                self.before = before
        else:  # a file, whatever its name
            folder, name = os.path.split(path)
            self.tree = Tree(folder, "", "")
            self.now, failed = blank(), [(name, NO_FILE)]
            if os.path.isfile(path):
                self.now, failed = look_at_one(folder, name)
            failed += not_images(self.now)
        top = {".": self.tree.root}
        unread = [(top.get(name) or self.tree.path(name), why) for name, why in failed]
        self.unread = [pair for pair in unread if self.holds(pair[0])]

    def holds(self, path: str) -> bool:
        """Return whether this is the file that was named, or lies below the folder."""
        return path == self.path or path.startswith(self.path.rstrip("/") + "/")

    def own(self, path: str) -> str | None:
        """Return the name of a file of Cygwin's database that is looked at here, or None."""
        name = in_tree(self.tree)(path)
        return name if name and (self.is_folder or self.holds(self.tree.path(name))) else None

    def plan(self, parts: Sequence[_Part], options: Options, warn: Callable[[str], None]) -> None:
        """Sort out what lies where, and plan."""
        # What the command will say: trees that are looked at together keep off each other.
        self.others = tuple(other.path for other in parts if other.tree.root != self.tree.root)
        asked = options._replace(avoid=(*options.avoid, *self.others))
        top = self.tree.path("")
        request = Request("", self.tree.scope, None if self.is_folder else frozenset())
        planner = Planner(self.tree, asked, request, warn, ours=self.own, top=top)
        self.survey = planner.survey(self.now, self.before)
        programs = map(self.tree.path, self.now.programs) if self.is_folder else [self.path]
        self.incurable = [
            (path, HIGH_ENTROPY)
            for path in programs
            if self.holds(path) and path.lower().endswith(PROGRAM) and _has_high_entropy(path)
        ]
        self.reserved = {}
        for machine, of_machine in planner.reserved.ranges.items():
            others = (one for one in of_machine if one not in OF_RUNTIME.get(machine, ()))
            kept = [one for one in others if not any(part.holds(one.path) for part in parts)]
            if kept:
                self.reserved[machine] = Obstacles(kept)
        if self.is_folder:
            try:
                self.moves = planner.plan(self.survey).moves
            except NoRoomError as error:
                self.incurable.append((self.path, str(error)))

    def problems_of(self, path: str) -> list[str]:
        """Return what is wrong with the place of one image, whatever else is in the tree."""
        image = self.survey.images[path]
        found = []
        safe = SAFE.get(image.machine)
        if image.base % GRANULARITY:
            found.append("its address is not a multiple of 64 KiB")
        if safe and not safe.low <= image.base < image.end <= safe.high:
            found.append(f"it lies outside {address(safe.low)}-{address(safe.high)}")
        if image.clear_dynamic_base and image.machine == X86_64:
            found.append(LOADED_ANYWHERE)
        if found and is_runtime(path):
            found = []  # it knows its place itself, and has DYNAMIC_BASE since Cygwin 3.4
        others = self.reserved.get(image.machine)
        if others and (owner := others.overlapping(image.base, image.end)):
            found.append(f"overlaps {owner}")
        return found


def _apart(paths: Sequence[str]) -> list[str]:
    """Return the real paths, less those that lie below another of them."""
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"{path}: no such file or folder")
    real = sorted(set(map(os.path.realpath, paths)))
    return [
        path
        for path in real
        if not any(path.startswith(other.rstrip("/") + "/") for other in real if other != path)
    ]


def _has_high_entropy(program: str) -> bool:
    """Return whether a program of Cygwin's or MSYS2's has HIGH_ENTROPY_VA.

    Its import table must name the runtime. Only these fork; in a native program it does no harm.
    """
    with suppress(OSError), open(open_to_read(program), "rb") as file:
        # What has no such flag there has none, and to read what else an image is takes thirty times
        # as long.
        file.seek(E_LFANEW)
        file.seek(int.from_bytes(file.read(4), "little") + FLAGS_BEHIND_SIGNATURE)
        if int.from_bytes(file.read(2), "little") & HIGH_ENTROPY_VA:
            found, _ = look_at_one(*os.path.split(program))
            if any(seen.high_entropy_va for _, seen in found.files()):
                import re

                file.seek(0)
                return bool(re.search(rb"(?i)cygwin1\.dll|msys-2\.0\.dll", file.read(1 << 28)))
    return False
