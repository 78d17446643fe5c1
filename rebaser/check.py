"""What breaks fork in some files and folders, and what no rebase can cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

from cygwin.address_space import ARENA, GRANULARITY, SAFE, X86_64, is_runtime
from cygwin.aslr import forks_with_high_entropy, mandatory_aslr
from cygwin.fault import Fault
from cygwin.paths import host_path
from cygwin.values import NamedTuple
from rebaser.errors import UsageError, suppress
from rebaser.files import open_to_read
from rebaser.options import Options, Request
from rebaser.plan.overlap import groups
from rebaser.plan.placement import OF_RUNTIME, NoRoomError, Obstacles, Placed
from rebaser.plan.proposal import Planner, in_tree
from rebaser.plan.survey import spans
from rebaser.report import Group, Move
from rebaser.scan.skip import Skipped, not_images, same_file
from rebaser.scan.snapshot import blank
from rebaser.scan.walk import PROGRAM, Scan, look_at_one, scan
from rebaser.text import address
from rebaser.tree import Tree, find_tree

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
    state_dir: str | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> Findings:
    """Look at files, and at the images below folders, and say what breaks fork.

    A folder inside another tree is looked at with that tree, as `run` does; what the last run saw
    and what is as it was is not read again. Reads only, and takes no lock. Raises UsageError for a
    path that does not exist.
    """
    options = options or Options()
    trees = {
        path: find_tree(path, state_dir=state_dir)
        if os.path.isdir(path)
        else Tree(os.path.dirname(path), "", "")
        for path in _apart(paths)
    }
    scans: dict[str, Scan] = {}  # of several folders in one tree the scan is one
    moves: dict[str, Move] = {}  # each part's go round those of the parts before it
    parts = [_Part(path, trees, options, scans, warn, moves) for path in trees]
    images = {path: image for part in parts for path, image in part.survey.images.items()}
    files: dict[object, str] = {}  # a file that was seen under another name is no other image
    for part in parts:
        for path in part.survey.dlls:
            files.setdefault(same_file(path, part.survey.sources[path].seen), path)
    dlls = frozenset(files.values())
    asked = {path: what for part in parts for path, what in part.problems.items() if path in dlls}
    problems = [(path, what) for path, found in asked.items() for what in found]
    causes = {one.path: one for part in parts for one in part.skipped}

    def overlaps_after(made: Collection[Move]) -> tuple[Group, ...]:
        found = groups(spans(images, dlls, made), images.keys() - moves.keys(), asked)
        return tuple(group for group in found if not asked.keys().isdisjoint(group.paths))

    overlaps = overlaps_after(())
    left = overlaps_after(moves.values()) if moves else overlaps
    broken = {path for path, _ in problems}
    stay = causes.keys() & broken.union(*(group.paths for group in left))
    return Findings(
        named=frozenset(asked),
        overlaps=overlaps,
        problems=tuple(sorted(problems)),
        incurable=(
            *([("Windows", MANDATORY_ASLR)] if mandatory_aslr() else ()),
            *(pair for part in parts for pair in part.incurable),
            *((path, f"no run moves it: {causes[path].reason}") for path in sorted(stay)),
        ),
        unread=tuple(pair for part in parts for pair in part.unread),
        skipped=tuple(
            one for path, one in sorted(causes.items()) if not path.lower().endswith(PROGRAM)
        ),
        at_linkers_base=sum(
            images[path].machine == X86_64 and images[path].base >= ARENA[X86_64].high
            for path in asked.keys() - broken
        ),
        moves=moves,
        runs={part.path: part.others for part in parts if part.moves},
    )


class _Part:
    """A file or folder that was named, in the tree that it belongs to, as a run on it sees it.

    `survey` is of the whole tree, `problems` are of each DLL that was asked about. `moves` is what
    a run on this folder does, and `others` what was named in other trees, which it keeps off.
    """

    def __init__(
        self,
        path: str,
        trees: Mapping[str, Tree],
        options: Options,
        scans: dict[str, Scan],
        warn: Callable[[str], None],
        made: dict[str, Move],
    ) -> None:
        self.path, tree, top = path, trees[path], trees[path].path("")
        before, programs, ours = blank(), [path], in_tree(tree)
        if is_folder := os.path.isdir(path):
            seen = tree.state.load_snapshot(warn)
            if tree.root not in scans:
                scans[tree.root] = scan(tree.root, options.rules, seen)
            now, failed, unchanged = scans[tree.root][:3]
            if not unchanged:  # where all is known, as where nothing is, nothing stays for it
                before = seen
            programs = [top + name for name in now.programs]
        else:  # a file, whatever its name
            name = path[len(top) :]
            ours = {path: name, host_path(path) or path: name}.get
            now, failed = blank(), [(name, "not a regular file")]
            if os.path.isfile(path):
                now, failed = look_at_one(tree.root, name)
            failed += not_images(now)
        # What the command will say: trees that are looked at together keep off each other.
        self.others = tuple(other for other, its in trees.items() if its.root != tree.root)
        asked = options.in_tree(tree.scope)._replace(avoid=(*options.avoid, *self.others))
        planner = Planner(tree, asked, Request("", tree.scope), warn, ours=ours, top=top)
        self.survey = planner.survey(now, before)
        reserved = {
            machine: Obstacles(
                one
                for one in of_machine
                if one not in OF_RUNTIME.get(machine, ())
                and not any(_lies_in(named, one.path) for named in trees)
            )
            for machine, of_machine in planner.reserved.ranges.items()
        }
        self.problems = {
            dll: _problems(self.survey.images[dll], reserved)
            for dll in self.survey.dlls
            if any(_lies_in(path, name) for name in self.survey.sources[dll].names)
        }
        self.skipped = [one for one in self.survey.skipped if _lies_in(path, one.path)]
        unread = ((os.path.normpath(top + name), why) for name, why in failed)  # "." is the root
        self.unread = [pair for pair in unread if _lies_in(path, pair[0])]
        self.incurable = []
        for program in programs:
            if _lies_in(path, program) and program.lower().endswith(PROGRAM):
                with suppress(OSError):
                    if forks_with_high_entropy(open_to_read(program)):
                        self.incurable.append((program, HIGH_ENTROPY))
        self.moves: tuple[Move, ...] = ()
        try:
            if is_folder:
                images = dict(self.survey.images)
                for name in images.keys() & made.keys():
                    images[name] = images[name]._replace(base=made[name].new_base)
                self.moves = planner.plan(self.survey._replace(images=images)).moves
        except NoRoomError as error:
            self.incurable.append((path, str(error)))
        made.update((move.path, move) for move in self.moves)


def _problems(image: Placed, reserved: Mapping[int, Obstacles]) -> list[str]:
    """Return what is wrong with the place of one image, whatever else is in the tree."""
    found = []
    safe = SAFE.get(image.machine)
    if image.base % GRANULARITY:
        found.append("its address is not a multiple of 64 KiB")
    if safe and not safe.low <= image.base < image.end <= safe.high:
        found.append(f"it lies outside {address(safe.low)}-{address(safe.high)}")
    if image.clear_dynamic_base and image.machine == X86_64:
        found.append(LOADED_ANYWHERE)
    if found and is_runtime(image.path):
        found = []  # it knows its place itself, and has DYNAMIC_BASE since Cygwin 3.4
    others = reserved.get(image.machine)
    if others and (owner := others.overlapping(image.base, image.end)):
        found.append(f"overlaps {owner}")
    return found


def _apart(paths: Sequence[str]) -> list[str]:
    """Return the real paths, less those that lie below others; files first: runs keep off them."""
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"{path}: no such file or folder")
    real = sorted(set(map(os.path.realpath, paths)), key=lambda path: (os.path.isdir(path), path))
    return [path for path in real if sum(_lies_in(other, path) for other in real) == 1]


def _lies_in(top: str, path: str) -> bool:
    """Return whether a path is the file or folder `top`, or lies below it."""
    return f"{path}/".startswith(f"{top.rstrip('/')}/")
