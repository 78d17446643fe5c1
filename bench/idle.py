"""Nothing to do: the run that most hooks are."""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.material import make_tree, settle
from bench.measure import by_turns, python, rebaser, report, run, timed
from bench.session import Session
from bench.table import Row, megabytes, milliseconds, not_measured, ratio

STATS = ("stat", "lstat", "fstat", "newfstatat", "statx", "fstatat64")
READS = ("read", "pread64")


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows of both trees, and of the system calls."""
    sizes = session.sizes
    yield from _start(session, sizes.small_tree)
    yield _million_names(session, sizes.small_tree)
    yield _against_find(session, sizes.tree, 1.5)
    yield _against_find(session, sizes.large_tree, 1)
    yield from _looking(session, sizes.small_tree)
    yield from _looking(session, sizes.large_tree)
    yield _system_calls(session, sizes.tree)


def _start(session: Session, shape: tuple[int, int, int]) -> Iterator[Row]:
    """Yield what a hook costs in a small tree, and what overlaps cost there that stay."""
    root = session.tree(shape)
    session.say("nothing to do, beside Python's start")
    times = by_turns(
        2 * session.sizes.rounds,
        ours=timed(rebaser("run", root, "--quiet")),
        python=timed(python("pass")),
        signed=timed(rebaser("run", _with_signed(session, shape), "--quiet")),
    )
    net = times["ours"].processor - times["python"].processor
    yield Row(
        f"nothing to do, {shape[0]:,} DLLs, beyond Python's own start",
        "Python's own start",
        f"{milliseconds(net)} of processor (wall "
        f"{milliseconds(times['ours'].median - times['python'].median)}); Python "
        f"{milliseconds(times['python'].processor)}",
        "≤ 18 ms",
        net <= 0.018,
    )
    more = times["signed"].processor - times["ours"].processor
    yield Row(
        "the same with three signed DLLs that overlap",
        "without them",
        f"{1e3 * more:+.1f} ms of processor",
        "no more (within 2 ms)",
        more <= 0.002,
    )


def _with_signed(session: Session, shape: tuple[int, int, int]) -> Path:
    """Return such a tree with three signed DLLs at one address, which no run moves."""
    dlls, files, folders = shape
    root = session.scratch / "signed"
    make_tree(root, session.material.small(dlls), files, folders)
    settle(root)
    data = bytearray(session.material.small(1)[0].read_bytes())
    optional = int.from_bytes(data[0x3C:0x40], "little") + 24
    # The security directory of PE32+ (PE/COFF specification, "Optional Header Data Directories").
    data[optional + 144 : optional + 152] = struct.pack("<II", len(data), 8)
    for name in "abc":
        (root / "bin" / f"signed-{name}.dll").write_bytes(data + bytes(8))
    settle(root)
    return root


def _million_names(session: Session, shape: tuple[int, int, int]) -> Row:
    """Return what a long manifest costs; its last name is there."""
    count = 1_000_000
    session.say(f"{count:,} names of --only-from")
    root = session.tree(shape)
    there = next((root / "bin").iterdir())
    manifest = session.scratch / "manifest"
    with manifest.open("w") as file:
        file.writelines(f"lib/package{n % 977}/module{n}.dll\n" for n in range(count - 1))
        file.write(f"bin/{there.name}\n")
    words = rebaser("run", root, "--quiet", "--only-from", manifest)
    times = by_turns(session.sizes.disk_rounds, ours=timed(words))["ours"]
    return Row(
        f"nothing to do, {count:,} names of --only-from",
        "",
        f"{milliseconds(times.processor)} of processor (wall {milliseconds(times.median)})",
        "≤ 1 s",
        times.processor <= 1,
    )


def _looking(session: Session, shape: tuple[int, int, int]) -> Iterator[Row]:
    """Yield what looks at a tree without a run, beside the run that has seen it."""
    root = session.tree(shape)
    session.say("check and info, beside a run")
    times = by_turns(
        session.sizes.rounds,
        ours=timed(rebaser("run", root, "--quiet")),
        check=timed(rebaser("check", root)),
        info=timed(rebaser("info", root)),
    )
    for command in ("check", "info"):
        result = times[command].processor / times["ours"].processor
        yield Row(
            f"`rebaser {command}` of {shape[0]:,} DLLs in {shape[1]:,} files that a run has seen",
            "a run with nothing to do",
            f"{ratio(result)} of processor (wall "
            f"{ratio(times[command].median / times['ours'].median)})",
            "≤ 1.5 ×",
            result <= 1.5,
        )


def _against_find(session: Session, shape: tuple[int, int, int], goal: float) -> Row:
    root = session.tree(shape)
    session.say("nothing to do, beside find")
    times = by_turns(
        session.sizes.rounds,
        ours=timed(rebaser("run", root, "--quiet")),
        python=timed(python("pass")),
        find=timed(["find", root, "-type", "f", "-name", "*.dll"]),
    )
    ended, found = report(root)
    assert found["run"] is None, found
    session.note_exclusive(f"nothing to do, {shape[0]:,} DLLs", found)
    result = (times["ours"].processor - times["python"].processor) / times["find"].processor
    wall = (times["ours"].median - times["python"].median) / times["find"].median
    dlls, files, folders = shape
    return Row(
        f"nothing to do, {dlls:,} DLLs in {files:,} files, net",
        f"`find` over the same tree of {folders:,} folders",
        f"{ratio(result)} of processor (wall {ratio(wall)}): "
        f"{milliseconds(times['ours'].processor)} less Python's "
        f"{milliseconds(times['python'].processor)}, find "
        f"{milliseconds(times['find'].processor)}; memory {megabytes(ended.peak)}",
        f"≤ {goal:g} ×",
        result <= goal,
    )


def _system_calls(session: Session, shape: tuple[int, int, int]) -> Row:
    what = f"system calls of a run with nothing to do, {shape[0]:,} DLLs in {shape[1]:,} files"
    against = "the same run on an empty tree is subtracted"
    goal = "≤ 1 stat a folder, ≤ 1 stat and 1 small read a DLL"
    if not shutil.which("strace"):
        return not_measured(what, against, goal, "strace is not installed")
    session.say("counting system calls")
    root = session.tree(shape)
    empty = session.scratch / "empty"
    (empty / "var").mkdir(parents=True, exist_ok=True)
    run(rebaser("run", empty, "--quiet"))
    run(rebaser("run", empty, "--quiet"))
    base, calls = _counted(empty), _counted(root)
    if not calls:
        return not_measured(what, against, goal, "strace may not trace here")
    net = {name: calls[name] - base.get(name, 0) for name in calls}
    dlls, files, folders = shape
    # The folders of rebaser's own lock are the tree's too.
    folders = sum(1 for path in root.rglob("*") if path.is_dir()) + 1
    stats = sum(net.get(name, 0) for name in STATS)
    reads = sum(net.get(name, 0) for name in READS)
    total = sum(net.values())
    others = {n: c for n, c in net.items() if n not in STATS + READS and c > dlls // 10}
    listed = ", ".join(f"{count:,} {name}" for name, count in sorted(others.items()))
    return Row(
        what,
        against,
        f"{total:,} calls ({ratio(total / (files + folders))} files and folders): {stats:,} stats "
        f"for {folders:,} folders and {dlls:,} DLLs, {reads:,} reads, {listed}",
        goal,
        # A handful of reads more is the longer memory file.
        stats <= folders + dlls and reads <= dlls + 20,
    )


def _counted(root: Path) -> dict[str, int]:
    with tempfile.NamedTemporaryFile("r", suffix=".strace") as counts:
        strace = ["strace", "-f", "-c", "-o", counts.name]
        ended = run([*strace, *rebaser("run", root, "--quiet")], demand=range(256))
        if ended.status:
            return {}
        found = {}
        for line in counts:
            # % time, seconds, usecs/call, calls, errors (or nothing), name
            match = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
            if match and match[2] != "total":
                found[match[2]] = int(match[1])
        return found
