"""What breaks fork in some files and folders, and what no rebase can cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from cygwin.address_space import ARENA, GRANULARITY, SAFE, X86_64, is_runtime
from cygwin.aslr import mandatory_aslr
from cygwin.fault import FAULTS, Fault
from rebaser.errors import UsageError
from rebaser.files import open_to_read
from rebaser.options import Options
from rebaser.plan.overlap import Span, groups, overlapping_pairs
from rebaser.plan.placement import NoRoomError, Placed, Reserved, make_plan
from rebaser.plan.reserved import in_tree, reservations
from rebaser.plan.survey import Survey, spans, survey
from rebaser.report import Group, Move
from rebaser.scan import snapshot as snapshots
from rebaser.scan.skip import Skipped, globs_of_tree, same_file
from rebaser.scan.snapshot import Snapshot
from rebaser.scan.walk import Rules, Scan, look_at_one, scan
from rebaser.state.folder import State
from rebaser.text import address
from rebaser.tree import Tree, find_tree

PROGRAM = ".exe"
NO_FILE = "not a regular file"
UNJUDGED = (Fault.EMPTY, Fault.TRUNCATED, Fault.DAMAGED)
LOADED_ANYWHERE = "DYNAMIC_BASE is set, so Windows loads it at another address each time"


@dataclass(frozen=True)
class Problem:
    """Something that breaks fork in one file, or in a process that runs it."""

    path: str
    what: str


@dataclass(frozen=True)
class Run:
    """A run that cures what it can: on a folder, keeping off the images below `avoid`."""

    folder: str
    avoid: tuple[str, ...]


@dataclass(frozen=True)
class Findings:
    """What was found. Paths are absolute.

    `named` are the images that were asked about. `overlaps` concern one of them; `left` is what of
    them is there when `runs` have made `moves` (by path). `incurable` is what no rebase can cure,
    `unread` are (path, reason) of what could not be read. `skipped` is what no run moves, and
    `unjudged` what of it may be a DLL that breaks fork when it is whole.
    """

    named: frozenset[str]
    overlaps: tuple[Group, ...]
    left: tuple[Group, ...]
    problems: tuple[Problem, ...]
    incurable: tuple[Problem, ...]
    unread: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    unjudged: tuple[Skipped, ...]
    at_linkers_base: int
    moves: Mapping[str, Move]
    runs: tuple[Run, ...]

    @property
    def breaks_fork(self) -> bool:
        """Whether fork fails, or may fail, because of something that was found."""
        return bool(self.overlaps or self.problems or self.incurable)

    @property
    def broken(self) -> frozenset[str]:
        """The files asked about, each once, that break fork."""
        found = {problem.path for problem in (*self.problems, *self.incurable)}
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
    parts = _parts(_apart(paths), options, warn)
    images: dict[str, Placed] = {}  # of all that was looked at
    dlls: set[str] = set()
    named: set[str] = set()
    causes: dict[str, Skipped] = {}
    problems: list[Problem] = []
    incurable = _of_windows()
    moves: dict[str, Move] = {}
    runs: list[Run] = []
    files: dict[object, str] = {}
    for part in parts:
        # What the command will say: trees that are looked at together keep off each other.
        others = tuple(other.path for other in parts if other.tree.root != part.tree.root)
        asked = options._replace(avoid=(*options.avoid, *others))
        known = reservations(part.own, asked, warn)
        surveyed = survey(
            part.now,
            part.before,
            may_move=part.may_move,
            keep_aslr=options.keep_aslr,
            force_signed=options.force_signed,
            excludes=globs_of_tree(options.excludes, part.tree.scope),
            database_slots=known.database_slots,
            top=part.tree.path(""),
        )
        # A file that was seen under another name is no other image.
        here = {
            path: any(map(part.holds, source.names))
            for path, source in surveyed.sources.items()
            if path in surveyed.dlls
            and path == files.setdefault(same_file(path, source.seen), path)
        }
        mine = {path for path, is_named in here.items() if is_named}
        causes.update((one.path, one) for one in surveyed.skipped)
        incurable += [one for one in _of_programs(surveyed) if part.holds(one.path)]
        for machine, of_machine in spans(surveyed.images, mine).items():
            foreign = [
                reserved
                for reserved in known.ranges.get(machine, ())
                if not any(other.holds(reserved.owner) for other in parts)
            ]
            problems += _on_others(of_machine, foreign)
        if part.is_runs:
            try:
                planned = _plan(surveyed, known.ranges, options)
            except NoRoomError as error:
                incurable.append(Problem(part.path, str(error)))
                planned = ()
            moves.update((move.path, move) for move in planned)
            if planned:
                runs.append(Run(part.path, others))
        images.update(surveyed.images)
        dlls |= here.keys()
        named |= mine
    problems += [Problem(path, what) for path in named for what in _problems(path, images[path])]
    overlaps, left = (
        tuple(
            group
            for group in groups(spans(images, dlls, made), images.keys() - moves.keys(), named)
            if not named.isdisjoint(group.paths)
        )
        for made in ((), moves.values())
    )
    broken = {problem.path for problem in problems}
    skipped = [
        one
        for path, one in sorted(causes.items())
        if not path.lower().endswith(PROGRAM) and any(part.holds(path) for part in parts)
    ]
    incurable += _staying(problems, left, causes)
    return Findings(
        named=frozenset(named),
        overlaps=overlaps,
        left=left,
        problems=tuple(
            sorted((one for one in problems if one.path not in causes), key=lambda one: one.path)
        ),
        incurable=tuple(incurable),
        unread=tuple(pair for part in parts for pair in part.unread),
        skipped=tuple(skipped),
        unjudged=tuple(one for one in skipped if one.cause in UNJUDGED),
        at_linkers_base=sum(
            path not in broken and images[path].base >= ARENA[X86_64].high
            for path in named
            if images[path].machine == X86_64
        ),
        moves=moves,
        runs=tuple(runs),
    )


@dataclass(frozen=True)
class _Part:
    """A file or folder that was named, in the tree that it belongs to.

    `before` is what the last run saw, its paths absolute. `is_runs`: a run on this folder concerns
    what lies below it.
    """

    path: str
    tree: Tree
    now: Snapshot
    before: Snapshot
    unread: Sequence[tuple[str, str]]
    is_runs: bool

    def holds(self, path: str) -> bool:
        """Return whether this is the file that was named, or lies below the folder."""
        return path == self.path or path.startswith(self.path.rstrip("/") + "/")

    def may_move(self, path: str) -> bool:
        """Return whether a run on this part may move the image."""
        return self.is_runs and self.holds(path)

    def own(self, path: str) -> str | None:
        """Return the path that a file of Cygwin's database has in this tree, or None."""
        inside = in_tree(self.tree)(path)
        name = self.tree.path(inside) if inside else ""
        return name if name and (self.is_runs or self.holds(name)) else None


def _parts(paths: Sequence[str], options: Options, warn: Callable[[str], None]) -> list[_Part]:
    """Look at files and folders; files come first, so that the runs keep off them."""
    found: dict[str, Scan] = {}  # of several folders in one tree the scan is one
    parts = [
        _folder(path, options.rules, found, warn) if os.path.isdir(path) else _file(path)
        for path in paths
    ]
    return sorted(parts, key=lambda part: part.is_runs)


def _folder(
    path: str,
    rules: Rules,
    found: dict[str, Scan],
    warn: Callable[[str], None],
) -> _Part:
    rules = rules._replace(suffixes=(*rules.suffixes, PROGRAM))
    tree = find_tree(path)
    before = State(tree.state_dir, tree.root).load_snapshot(warn)
    if tree.root not in found:
        found[tree.root] = scan(tree.root, rules, before)
    scanned = found[tree.root]
    is_runs = tree.scope.rstrip("/") in scanned.snapshot.folders
    if not is_runs:  # the outer tree leaves it out, so a run would too
        tree, before = Tree(path, "", ""), snapshots.blank()
        scanned = scan(path, rules)
    folders = {tree.path(name).rstrip("/"): one for name, one in before.folders.items()}
    part = _Part(path, tree, scanned.snapshot, before._replace(folders=folders), (), is_runs)
    failed = [(tree.path("" if name == "." else name), why) for name, why in scanned.failed]
    unread = [(name.rstrip("/") or "/", why) for name, why in failed]
    return replace(part, unread=[pair for pair in unread if part.holds(pair[0])])


def _file(path: str) -> _Part:
    """Look at one file, whatever its name."""
    folder, name = os.path.split(path)
    tree = Tree(folder, "", "")
    if not os.path.isfile(path):
        return _Part(path, tree, snapshots.blank(), snapshots.blank(), [(path, NO_FILE)], False)
    snapshot, failed = look_at_one(folder, name)
    unread = [(tree.path(inside), reason) for inside, reason in failed]
    unread += [
        (path, Skipped(path, FAULTS[seen.fault], snapshot.details[seen.detail]).reason)
        for _, seen in snapshot.files()
        if not seen.base_width and seen.mtime_ns != snapshots.NEVER
    ]
    return _Part(path, tree, snapshot, snapshots.blank(), unread, False)


def _plan(
    surveyed: Survey, reserved: Mapping[int, Sequence[Reserved]], options: Options
) -> Sequence[Move]:
    """Return what a run would move; programs, which only we look at, are none of it."""
    looked_at = PROGRAM in map(str.lower, options.suffixes)
    placed = [
        image
        for path, image in surveyed.images.items()
        if looked_at or not path.lower().endswith(PROGRAM)
    ]
    return make_plan(placed, options.arenas, reserved).moves


def _staying(
    problems: Sequence[Problem], left: Sequence[Group], causes: Mapping[str, Skipped]
) -> list[Problem]:
    """Return one problem of each image that no run cures, with the reason why it stays."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        found.setdefault(problem.path, []).append(problem.what)
    for group in left:
        for path in group.paths:
            found.setdefault(path, []).append("overlaps others")
    return [
        Problem(path, "; ".join([*whats, f"no run moves it: {causes[path].reason}"]))
        for path, whats in sorted(found.items())
        if path in causes
    ]


def _apart(paths: Sequence[str]) -> list[str]:
    """Return the real paths, less those that lie below another of them."""
    real = []
    for path in paths:
        if not os.path.exists(path):
            raise UsageError(f"{path}: no such file or folder")
        real.append(os.path.realpath(path))
    return [
        path
        for path in sorted(set(real))
        if not any(path.startswith(other.rstrip("/") + "/") for other in real if other != path)
    ]


def _problems(path: str, image: Placed) -> list[str]:
    """Return what is wrong with the place of one image, whatever lies around it."""
    if is_runtime(path):
        return []  # it knows its place itself, and has DYNAMIC_BASE since Cygwin 3.4
    found = []
    safe = SAFE.get(image.machine)
    if image.base % GRANULARITY:
        found.append("its address is not a multiple of 64 KiB")
    if safe and not safe.low <= image.base < image.end <= safe.high:
        found.append(f"it lies outside {address(safe.low)}-{address(safe.high)}")
    if image.clear_dynamic_base and image.machine == X86_64:
        found.append(LOADED_ANYWHERE)
    return found


def _on_others(of_tree: Sequence[Span], reserved: Sequence[Reserved]) -> list[Problem]:
    """Return the images that lie where others' do: Cygwin's database, --avoid."""
    own = {span.path for span in of_tree}
    others = [Span(r.range.low, r.range.high, f"\0{r.owner}") for r in reserved if not r.is_runtime]
    return [
        Problem(one.path, f"overlaps {other.path[1:]}")
        for low, high in overlapping_pairs([*of_tree, *others])
        for one, other in ((low, high), (high, low))
        if one.path in own and other.path not in own
    ]


def _of_windows() -> list[Problem]:
    if not mandatory_aslr():
        return []
    return [
        Problem(
            "Windows",
            "Mandatory ASLR is on (Exploit protection: Force randomization for images) and moves "
            "every DLL: switch it off, or exempt the programs of this tree",
        )
    ]


def _of_programs(surveyed: Survey) -> list[Problem]:
    """Return the programs of Cygwin's whose address space Windows spreads at random."""
    return [
        Problem(
            path,
            "HIGH_ENTROPY_VA is set, so its heap and stacks may take any address: clear it with "
            "rebaser flags --high-entropy-va=0",
        )
        for path, source in sorted(surveyed.sources.items())
        if source.seen.high_entropy_va and path.lower().endswith(PROGRAM) and _is_cygwins(path)
    ]


def _is_cygwins(program: str) -> bool:
    """Return whether a program names the Cygwin or MSYS2 runtime, as its import table must.

    Only these fork; a native program with HIGH_ENTROPY_VA does no harm.
    """
    names = (b"cygwin1.dll", b"msys-2.0.dll")
    longest = max(map(len, names))
    try:
        descriptor = open_to_read(program)
        with open(descriptor, "rb") as file:
            tail = b""
            while block := file.read(1 << 20):
                if any(name in tail + block.lower() for name in names):
                    return True
                tail = block[-longest:].lower()
    except OSError:
        pass
    return False
