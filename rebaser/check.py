"""What breaks fork in some files and folders, and what no rebase can cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from cygwin.address_space import ARENA, GRANULARITY, SAFE, X86_64, Range, is_runtime
from cygwin.aslr import mandatory_aslr
from cygwin.fault import FAULTS
from rebaser.errors import UsageError
from rebaser.files import open_to_read
from rebaser.options import Options
from rebaser.plan.overlap import MOST_PAIRS, Span, clusters, overlapping_pairs, pairs_with
from rebaser.plan.placement import Move, NoRoomError, Placed, Reserved, make_plan
from rebaser.plan.reserved import in_tree, reservations
from rebaser.plan.survey import Survey, spans, survey
from rebaser.scan import snapshot as snapshots
from rebaser.scan.skip import Skipped, globs_of_tree, same_file
from rebaser.scan.snapshot import Snapshot
from rebaser.scan.walk import Rules, Scan, look_at_one, scan
from rebaser.state.folder import State
from rebaser.text import address
from rebaser.tree import Tree, find_tree

PROGRAM = ".exe"
NO_FILE = "not a regular file"


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

    `groups` hang together by overlaps; `pairs` are the overlaps one by one, the first MOST_PAIRS.
    `incurable` is what no rebase can cure, `unread` are (path, reason), `moves` is
    what `runs` would move, by path. `outside` are the members of groups that lie in the same tree
    as what was named, and outside of that.
    """

    images: int
    groups: tuple[Sequence[Span], ...]
    pairs: tuple[tuple[str, str], ...]
    problems: tuple[Problem, ...]
    incurable: tuple[Problem, ...]
    unread: tuple[tuple[str, str], ...]
    skipped: tuple[Skipped, ...]
    at_linkers_base: int
    moves: Mapping[str, Move]
    runs: tuple[Run, ...]
    outside: frozenset[str]

    @property
    def breaks_fork(self) -> bool:
        """Whether fork fails, or may fail, because of something that was found."""
        return bool(self.groups or self.problems or self.incurable)

    @property
    def exit_status(self) -> int:
        """0 where nothing breaks fork and everything could be looked at, else 1."""
        return int(self.breaks_fork or bool(self.unread))


def check(
    paths: Sequence[str],
    *,
    rules: Rules | None = None,
    excludes: Sequence[str] = (),
    database: str | None = None,
    cygwin_root: str | None = None,
    avoid: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> Findings:
    """Look at files, and at the images below folders, and say what breaks fork.

    A folder inside another tree is looked at with that tree, as `run` does. Reads only, and takes
    no lock. Raises UsageError for a path that does not exist.
    """
    rules = rules or Rules()
    options = Options(None, database, cygwin_root, tuple(avoid), rules.suffixes)
    seen = _seen(_apart(paths), rules)
    images: dict[str, Placed] = {}  # of all that was looked at
    dlls: set[str] = set()
    named: set[str] = set()
    causes: dict[str, Skipped] = {}
    problems: list[Problem] = []
    incurable = _of_windows()
    moves: dict[str, Move] = {}
    runs: list[Run] = []
    files: dict[object, str] = {}
    for number, part in enumerate(seen):
        known = reservations(part.own, options, warn)
        surveyed = survey(
            part.now,
            part.before,
            may_move=part.may_move,
            excludes=globs_of_tree(excludes, part.tree.scope),
            database_slots=known.database_slots,
            top=part.tree.path(""),
        )
        # A file that was seen under another name is no other image.
        sources = {
            path: source
            for path, source in surveyed.sources.items()
            if path in surveyed.dlls
            and path == files.setdefault(same_file(path, source.seen), path)
        }
        here = {path for path, source in sources.items() if any(map(part.holds, source.names))}
        causes.update((one.path, one) for one in surveyed.skipped)
        incurable += [one for one in _of_programs(surveyed) if part.holds(one.path)]
        for machine, of_machine in spans(surveyed.images, here).items():
            problems += _on_others(of_machine, known.ranges.get(machine, ()))
        if part.is_runs:
            others = [other for other in seen[:number] if other.tree.root != part.tree.root]
            try:
                planned = _plan(part, surveyed, known.ranges, others, images, moves, rules)
            except NoRoomError as error:
                incurable.append(Problem(part.path, str(error)))
                planned = {}
            moves.update(planned)
            if planned:
                runs.append(Run(part.path, tuple(other.path for other in others)))
        images.update(surveyed.images)
        dlls |= set(sources)
        named |= here
    problems += [
        Problem(path, what) for path in sorted(named) for what in _problems(path, images[path])
    ]
    all_spans = spans(images, dlls).values()
    pairs = [
        (low.path, high.path)
        for of_machine in all_spans
        for low, high in islice(pairs_with(named, of_machine), MOST_PAIRS)
    ]
    groups = [
        group
        for of_machine in all_spans
        for group in clusters(of_machine)
        if any(span.path in named for span in group)
    ]
    stuck = spans(images, dlls & causes.keys()).values()
    curable = [problem for problem in problems if problem.path not in causes]
    staying = [problem for problem in problems if problem.path in causes]
    staying += [problem for of_machine in stuck for problem in _stuck(of_machine, named)]
    incurable += _with_causes(staying, causes)
    broken = {problem.path for problem in problems}
    return Findings(
        images=len(named),
        groups=tuple(groups),
        pairs=tuple(pairs),
        problems=tuple(sorted(curable, key=lambda problem: problem.path)),
        incurable=tuple(incurable),
        unread=tuple(pair for part in seen for pair in part.unread),
        skipped=tuple(
            cause
            for path, cause in sorted(causes.items())
            if not path.lower().endswith(PROGRAM) and any(part.holds(path) for part in seen)
        ),
        at_linkers_base=sum(
            path not in broken and images[path].base >= ARENA[X86_64].high
            for path in named
            if images[path].machine == X86_64
        ),
        moves=moves,
        runs=tuple(runs),
        outside=frozenset(span.path for group in groups for span in group) - named,
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


def _seen(paths: Sequence[str], rules: Rules) -> list[_Part]:
    """Look at files and folders afresh; files come first, so that the runs keep off them."""
    found: dict[tuple[str, Rules], Scan] = {}
    parts = []
    for path in paths:
        parts.append(_folder(path, rules, found) if os.path.isdir(path) else _file(path))
    return sorted(parts, key=lambda part: part.is_runs)


def _folder(path: str, rules: Rules, found: dict[tuple[str, Rules], Scan]) -> _Part:
    with_programs = rules._replace(suffixes=(*rules.suffixes, PROGRAM))

    def look(root: str, rules: Rules) -> Scan:
        if (root, rules) not in found:
            found[root, rules] = scan(root, rules)
        return found[root, rules]

    tree = find_tree(path)
    scanned = look(tree.root, with_programs)
    before = _absolute(tree, State(tree.state_dir, tree.root).load_snapshot(lambda text: None))
    is_runs = tree.scope.rstrip("/") in scanned.snapshot.folders
    if not is_runs:  # the outer tree leaves it out, so a run would too
        tree = Tree(path, "", "")
        scanned = look(path, with_programs)
    part = _Part(path, tree, scanned.snapshot, before, (), is_runs)
    failed = [(tree.path("" if name == "." else name), why) for name, why in scanned.failed]
    unread = [(name.rstrip("/") or "/", why) for name, why in failed]
    return replace(part, unread=[pair for pair in unread if part.holds(pair[0])])


def _absolute(tree: Tree, snapshot: Snapshot) -> Snapshot:
    folders = {tree.path(path).rstrip("/"): folder for path, folder in snapshot.folders.items()}
    return snapshot._replace(folders=folders)


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
    part: _Part,
    surveyed: Survey,
    reserved: Mapping[int, Sequence[Reserved]],
    others: Sequence[_Part],
    images: Mapping[str, Placed],
    moves: Mapping[str, Move],
    rules: Rules,
) -> dict[str, Move]:
    """Return what a run on this part would move, after `moves`, keeping off what `others` hold."""

    def after(image: Placed) -> Placed:
        move = moves.get(image.path)
        return replace(image, base=move.new_base) if move else image

    ranges = {machine: list(of_machine) for machine, of_machine in reserved.items()}
    for image in map(after, images.values()):
        if any(other.holds(image.path) for other in others):
            slot = Range(image.base // GRANULARITY * GRANULARITY, image.end)
            ranges.setdefault(image.machine, []).append(Reserved(slot, image.path))
    looked_at = PROGRAM in map(str.lower, rules.suffixes)
    placed = [
        after(image)
        for path, image in surveyed.images.items()
        if looked_at or not path.lower().endswith(PROGRAM)
    ]
    return {move.path: move for move in make_plan(placed, ARENA, ranges).moves}


def _stuck(of_machine: Sequence[Span], named: Collection[str]) -> list[Problem]:
    """Return the overlaps of images neither of which may be moved, one of each image."""
    other: dict[str, str] = {}
    for low, high in islice(pairs_with(named, of_machine), MOST_PAIRS):
        other.setdefault(low.path, high.path)
        other.setdefault(high.path, low.path)
    return [Problem(path, f"overlaps {other[path]}") for path in sorted(other)]


def _with_causes(problems: Sequence[Problem], causes: Mapping[str, Skipped]) -> list[Problem]:
    """Return one problem of each image, with the reason why it stays as it is."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        found.setdefault(problem.path, []).append(problem.what)
    return [
        Problem(path, "; ".join([*whats, _stays(causes[path])]))
        for path, whats in sorted(found.items())
    ]


def _stays(skipped: Skipped) -> str:
    """Return why a run leaves an image where it is, and what else can be done."""
    advice = skipped.cause.advice
    return f"no run moves it: {skipped.reason}" + (f"; {advice}" if advice else "")


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
        found.append(f"its base {address(image.base)} is not a multiple of 64 KiB")
    if safe and not safe.low <= image.base < image.end <= safe.high:
        found.append(
            f"its base {address(image.base)} lies outside {address(safe.low)}-{address(safe.high)}"
        )
    if image.clear_dynamic_base and image.machine == X86_64:
        found.append("DYNAMIC_BASE is set, so Windows loads it at another address each time")
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
