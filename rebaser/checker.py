"""What breaks fork in some files and folders, and what no rebase can cure."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from cygwin.address_space import ARENA, GRANULARITY, SAFE, X86_64, is_runtime
from cygwin.aslr import mandatory_aslr
from rebaser import memory as memories
from rebaser.errors import UsageError
from rebaser.memory import Memory
from rebaser.overlap import Span, clusters, overlapping_pairs
from rebaser.planner import Move, NoRoomError, Placed, Reserved, make_plan
from rebaser.reading import open_to_read
from rebaser.reserved import reservations
from rebaser.scanner import Rules, look_at_one, scan
from rebaser.surveyor import Survey, survey
from rebaser.text import address
from rebaser.tree import Tree

PROGRAM = ".exe"

# Of pairs that overlap no more are listed: they grow with the square of the images at one base.
MOST_PAIRS = 10_000


@dataclass(frozen=True)
class Problem:
    """Something that breaks fork in one file, or in a process that runs it."""

    path: str
    what: str


@dataclass(frozen=True)
class Findings:
    """What was found. Paths are absolute.

    `groups` hang together by overlaps; `pairs` are the overlaps one by one, the first MOST_PAIRS.
    `incurable` is what no rebase can cure, `unread` and `skipped` are (path, reason), `moves` is
    what a run would move, by path.
    """

    images: int
    groups: tuple[Sequence[Span], ...]
    pairs: tuple[tuple[str, str], ...]
    problems: tuple[Problem, ...]
    incurable: tuple[Problem, ...]
    unread: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]
    at_linkers_base: int
    moves: Mapping[str, Move]

    @property
    def breaks_fork(self) -> bool:
        """Whether fork fails, or may fail, because of something that was found."""
        return bool(self.groups or self.problems or self.incurable or self.unread)


def check(
    paths: Sequence[str],
    *,
    rules: Rules | None = None,
    database: str | None = None,
    cygwin_root: str | None = None,
    avoid: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> Findings:
    """Look at files, and at the images below folders, and say what breaks fork.

    Reads only, and takes no lock. Raises UsageError for a path that does not exist.
    """
    rules = rules or Rules()
    seen = [_seen(path, rules) for path in _apart(paths)]
    names = {tree.path(path) for tree, now, _ in seen for path, _ in now.files()}
    known = reservations(
        lambda path: path if path in names else None,
        database=database,
        cygwin_root=cygwin_root,
        avoid=avoid,
        rules=rules,
        warn=warn,
    )
    images: dict[str, Placed] = {}
    dlls: set[str] = set()
    skipped: list[tuple[str, str]] = []
    unread: list[tuple[str, str]] = []
    incurable = _of_windows()
    for tree, now, failed in seen:
        surveyed = survey(
            now, now, may_move=lambda path: True, appointed=known.appointed, top=tree.path("")
        )
        images.update(surveyed.images)
        dlls |= surveyed.dlls
        skipped += [pair for pair in surveyed.skipped if not pair[0].lower().endswith(PROGRAM)]
        unread += [(tree.path(path), reason) for path, reason in failed]
        incurable += _of_programs(surveyed)
    spans: dict[int, list[Span]] = {}
    for path in dlls:
        image = images[path]
        spans.setdefault(image.machine, []).append(Span(image.base, image.end, path))
    problems = [
        Problem(path, what) for path in sorted(dlls) for what in _problems(path, images[path])
    ]
    for machine, of_machine in spans.items():
        problems += _on_others(of_machine, known.ranges.get(machine, ()))
    broken = {problem.path for problem in problems}
    pairs = [
        (low.path, high.path)
        for of_machine in spans.values()
        for low, high in islice(overlapping_pairs(of_machine), MOST_PAIRS)
    ]
    return Findings(
        images=len(dlls),
        groups=tuple(group for of_machine in spans.values() for group in clusters(of_machine)),
        pairs=tuple(pairs),
        problems=tuple(sorted(problems, key=lambda problem: problem.path)),
        incurable=tuple(incurable),
        unread=tuple(unread),
        skipped=tuple(skipped),
        at_linkers_base=sum(
            path not in broken and images[path].base >= ARENA[X86_64].high
            for path in dlls
            if images[path].machine == X86_64
        ),
        moves=_moves(images.values(), known.ranges),
    )


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


def _seen(path: str, rules: Rules) -> tuple[Tree, Memory, list[tuple[str, str]]]:
    """Look at a file or folder afresh."""
    if os.path.isdir(path):
        found = scan(path, rules._replace(suffixes=(*rules.suffixes, PROGRAM)))
        return Tree(path, "", ""), found.memory, found.failed
    folder, name = os.path.split(path)
    memory, failed = look_at_one(folder, name)
    return Tree(folder, "", ""), memory, failed


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
    if image.clear_flag and image.machine == X86_64:
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


def _moves(
    images: Collection[Placed], reserved: Mapping[int, Sequence[Reserved]]
) -> Mapping[str, Move]:
    try:
        return {move.path: move for move in make_plan(images, ARENA, reserved).moves}
    except NoRoomError:
        return {}


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
        if source.seen.flags & memories.HIGH_ENTROPY
        and path.lower().endswith(PROGRAM)
        and _is_cygwins(path)
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
