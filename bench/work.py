"""Work: what moving DLLs costs, in time, in bytes, in memory and on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from bench.material import copy_tree
from bench.measure import (
    HERE,
    PAUSE,
    Ended,
    ProgramFailedError,
    Times,
    by_turns,
    environment,
    rebaser,
    report,
    run,
    sync,
)
from bench.session import Session
from bench.table import Row, megabytes, milliseconds, not_measured, ratio
from rebaser.files import begin_to_make_durable, make_names_durable

NEW = 10  # DLLs that a package brings


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows of the runs that have work."""
    yield _ten_new(session)
    yield _full_run(session)
    yield _packages(session)
    yield from _hooks_at_once(session)
    yield from _big_tree(session)


def _ten_new(session: Session) -> Row:
    root = session.tree(session.sizes.tree)
    session.say(f"{NEW} new DLLs")
    sources = session.material.spread(NEW)
    arrived = [root / "bin" / f"new-{source.name}" for source in sources]
    beside = session.scratch / "beside"
    beside.mkdir()
    copies = [beside / source.name for source in sources]
    last: dict[str, Any] = {}

    def ours() -> Ended:
        for source, target in zip(sources, arrived):
            shutil.copyfile(source, target)
        sync(root)
        ended, found = report(root)
        assert len(found["moved"]) == NEW, found
        last.update(found)
        return ended

    def nothing() -> Ended:
        return run(rebaser("run", root, "--quiet"))

    def copy() -> Ended:
        for path in copies:
            path.unlink(missing_ok=True)
        for target in arrived:
            target.unlink()
        run(rebaser("run", root, "--quiet"))
        sync(root)
        script = 'cp -- "$@" && shift "$(($# - 1))" && cd -- "$1" && sync -- *'
        return run(["sh", "-c", script, "sh", *sources, beside])

    times = by_turns(session.sizes.rounds, ours=ours, nothing=nothing, copy=copy)
    session.note_exclusive(f"{NEW} new DLLs", last)
    wall = times["ours"].median / (times["copy"].median + times["nothing"].median)
    result = times["ours"].processor / (times["copy"].processor + times["nothing"].processor)
    size = sum(source.stat().st_size for source in sources)
    return Row(
        f"ten new DLLs ({megabytes(size)}) in {session.sizes.tree[0]:,}",
        "a copy and sync of those ten, plus nothing to do",
        f"{ratio(result)} of processor (wall {ratio(wall)}): "
        f"{milliseconds(times['ours'].processor)}, copy and sync "
        f"{milliseconds(times['copy'].processor)}, nothing to do "
        f"{milliseconds(times['nothing'].processor)}",
        "≤ 1.3 ×",
        result <= 1.3,
    )


def _full_run(session: Session) -> Row:
    session.say("a full run beside cp -r and sync")
    pristine = session.scratch / "full"
    dlls = session.material.of_size(session.sizes.full)
    size = copy_tree(dlls, pristine)
    reports: list[Any] = []

    def ours() -> Ended:
        root = session.scratch / "full-ours"
        run(["cp", "-r", pristine, root])
        sync(root)
        ended, found = report(root)
        assert len(found["moved"]) == len(dlls), found["failed"]
        reports.append(found)
        shutil.rmtree(root)
        sync(session.scratch)
        return ended

    def copy() -> Ended:
        return _copy_and_sync(pristine, session.scratch / "full-copy")

    def floor() -> float:
        root = session.scratch / "full-floor"
        run(["cp", "-r", pristine, root])
        sync(root)
        seconds = _replace_all(root, session.scratch / "full-staged")
        shutil.rmtree(root)
        sync(session.scratch)
        return seconds

    times = by_turns(session.sizes.disk_rounds, PAUSE, ours=ours, copy=copy, floor=floor)
    quickest = min(reports, key=lambda found: float(found["seconds"]["total"]))
    session.note_exclusive("full run", quickest)
    stages = ", ".join(
        f"{name} {milliseconds(quickest['seconds'][name])}"
        for name in ("scan", "plan", "stage", "commit")
    )
    return Row(
        f"full safe run, {len(dlls)} DLLs, {megabytes(size)}",
        "`cp -r` and `sync` of the same files",
        _against(times, "copy") + f" ({stages}); copying each, fsync and rename over the "
        f"original alone, nothing read, moved or compared: {milliseconds(times['floor'].median)}",
        "≤ 2.5 × of processor",
        times["ours"].processor <= 2.5 * times["copy"].processor,
    )


def _copy_and_sync(tree: Path, target: Path) -> Ended:
    """Copy a tree, wait for the disk, and remove the copy; return how the former ended."""
    ended = run(["sh", "-c", 'cp -r "$1" "$2" && sync -f "$2"', "sh", tree, target])
    shutil.rmtree(target)
    sync(target.parent)
    return ended


def _replace_all(root: Path, staging: Path) -> float:
    """Put a durable copy in the place of every file, as cheaply as can be; return the seconds."""
    files = [path for path in root.rglob("*") if path.is_file()]
    staging.mkdir()
    began = time.perf_counter()
    copies = []
    for number, path in enumerate(files):
        copy = os.open(staging / f"{number}", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        copies.append(copy)
        with path.open("rb", buffering=0) as file:
            while data := file.read(1 << 20):
                os.write(copy, data)
        begin_to_make_durable(copy)
    for copy in copies:
        os.fsync(copy)
        os.close(copy)
    for number, path in enumerate(files):
        os.replace(staging / f"{number}", path)
    for folder in {path.parent for path in files}:
        make_names_durable(str(folder))
    ended = time.perf_counter()
    staging.rmdir()
    return ended - began


def _against(times: dict[str, Times], other: str) -> str:
    ours, theirs = times["ours"], times[other]
    return (
        f"{ratio(ours.processor / theirs.processor)} of processor (wall "
        f"{ratio(ours.median / theirs.median)}): {milliseconds(ours.processor)} against "
        f"{milliseconds(theirs.processor)}, wall {milliseconds(ours.median)} against "
        f"{milliseconds(theirs.median)}"
    )


# A build: packages arrive one after the other, a hook after each.


def _packages(session: Session) -> Row:
    count = session.sizes.packages
    what = f"a build of {count} packages, a hook after each"
    against = "`rebase -O` protocol: bytes rewritten"
    goal = "≤ 1/8, each DLL moved once"
    session.say(f"{count} packages, rebaser after each")
    packages = _packaged(session, count)
    size = sum(path.stat().st_size for package in packages for path in package)
    ours, moves = _build(session, packages, "ours", _hook_of_rebaser)
    most = max(moves.values())
    found = f"{megabytes(ours)} rewritten for {megabytes(size)} of DLLs, each moved {most} time(s)"
    if session.material.cygwin_root is None:
        why = f"`rebase` needs bin/cygwin-root and Wine (rebaser alone: {found})"
        return not_measured(what, against, goal, why)
    session.say(f"{count} packages, rebase -O after each (real rebase, under Wine)")
    theirs, their_moves = _build(session, packages, "theirs", _hook_of_rebase(session))
    average = sum(their_moves.values()) / len(their_moves)
    return Row(
        what,
        against,
        f"1/{theirs / ours:.1f}: {found}; `rebase -O` {megabytes(theirs)}, "
        f"each moved {average:.1f} times",
        goal,
        ours * 8 <= theirs and most == 1,
    )


def _packaged(session: Session, count: int) -> list[list[Path]]:
    """Divide DLLs into packages that arrive in an order of no meaning, but always the same."""
    dlls = sorted(
        {path.name: path for path in session.material.dlls}.values(),
        key=lambda path: sha256(path.name.encode()).digest(),
    )
    if session.sizes.packages < 60:
        dlls = dlls[: 4 * count]
    return [dlls[number::count] for number in range(count)]


def _hook_of_rebaser(root: Path) -> None:
    report(root)


def _hook_of_rebase(session: Session) -> Any:
    """Return `find … | rebase -O -T -`, in a Cygwin of its own that has a rebase database.

    -O wants that database, which Cygwin's setup makes; here it knows one DLL of the system.
    """
    given = session.material.cygwin_root
    assert given is not None
    room = session.scratch / "cygwin"
    for folder in ("bin", "etc", "tmp", "lib"):
        (room / folder).mkdir(parents=True)
    for name in ("bin/rebase.exe", "bin/cygwin1.dll"):
        shutil.copyfile(given / name, room / name)
    shutil.copyfile(session.material.dlls[0], room / "lib" / "system.dll")
    env = environment(
        REBASER_CYGWIN_ROOT=str(room),
        WINEPREFIX=f"{given}.wine",
        WINEDEBUG="-all",
        CYGWIN="nodosfilewarning",
    )
    # Makes it look native: the names on this side of Wine go in.
    program = HERE / "tests" / "fake_programs" / "wine" / "rebase"

    def rebase(option: Sequence[str], files: Sequence[Path]) -> None:
        with tempfile.NamedTemporaryFile("w", dir=session.scratch, suffix=".list") as names:
            names.write("".join(f"{path}\n" for path in files))
            names.flush()
            run([sys.executable, program, *option, "-T", names.name], env=env)

    rebase(["-s", "-b", "0x400000000"], [room / "lib" / "system.dll"])
    return lambda root: rebase(["-O"], sorted(root.rglob("*.dll")))


def _build(
    session: Session, packages: Sequence[Sequence[Path]], name: str, hook: Any
) -> tuple[int, Counter[Path]]:
    """Let the packages arrive; return the bytes of the files that the hooks have rewritten."""
    root = session.scratch / f"build-{name}"
    (root / "var").mkdir(parents=True)
    written = 0
    moves: Counter[Path] = Counter()
    for package in packages:
        for source in package:
            folder = root / source.parent.name
            folder.mkdir(exist_ok=True)
            shutil.copyfile(source, folder / (source.stem + ".dll"))
        before = _headers(root)
        hook(root)
        for path, header in _headers(root).items():
            if header != before[path]:
                written += path.stat().st_size
                moves[path] += 1
    shutil.rmtree(root)
    return written, moves


def _headers(root: Path) -> dict[Path, bytes]:
    """Return the start of each DLL: it holds the base and the flags, so a moved one differs."""
    found = {}
    for path in root.rglob("*.dll"):
        with path.open("rb") as file:
            found[path] = file.read(1024)
    return found


# Many hooks at the same moment.


def _hooks_at_once(session: Session) -> Iterator[Row]:
    count = session.sizes.hooks
    session.say(f"{count} hooks at once")
    pristine = session.scratch / "full"
    root = session.scratch / "hooks"
    run(["cp", "-r", pristine, root])
    sync(root)
    one, alone = report(root)
    shutil.rmtree(root)
    run(["cp", "-r", pristine, root])
    sync(root)
    reports = _together(session, count, rebaser("run", root, "--json"))
    shutil.rmtree(root)
    covered = sum(found["covered_by"] is not None for found in reports)
    # The others looked when all was done: they read no image, as with nothing to do.
    scans = sum(r["covered_by"] is None and r["seconds"]["exclusive"] > 0 for r in reports)
    written = sum(found["bytes_written"] for found in reports)
    worker = max(reports, key=lambda found: int(found["bytes_written"]))
    session.note_exclusive(f"{count} hooks at once (the one that works)", worker)
    slowest = max(float(found["seconds"]["total"]) for found in reports)
    yield Row(
        f"{count} hooks at once on a tree with work",
        "one hook",
        f"{scans} full scan(s), {covered} covered, {count - covered - scans} found nothing left; "
        f"{megabytes(written)} written against {megabytes(alone['bytes_written'])}; the slowest "
        f"{milliseconds(slowest)} against {milliseconds(one.seconds)}",
        "≤ 2 full scans, bytes written as for one",
        scans <= 2 and written == alone["bytes_written"],
    )


def _together(session: Session, count: int, words: Sequence[str]) -> list[Any]:
    """Start a program so many times at the same moment; return the JSON objects they print."""
    gate, hand = os.pipe()  # every shell waits for the end of this pipe
    with tempfile.TemporaryDirectory(dir=session.scratch) as answers:
        files = [open(f"{answers}/{number}", "w+b") for number in range(count)]
        waiting = ["sh", "-c", 'read -r gate; exec "$0" "$@" </dev/null', *words]
        hooks = [
            subprocess.Popen(
                waiting, stdin=gate, stdout=file, stderr=subprocess.DEVNULL, env=environment()
            )
            for file in files
        ]
        os.close(gate)
        os.close(hand)
        statuses = [hook.wait() for hook in hooks]
        if any(statuses):
            raise ProgramFailedError(f"{' '.join(words)}: exit statuses {statuses}")
        reports = []
        for file in files:
            with file:
                file.seek(0)
                reports.append(json.load(file))
        return reports


# A tree that is larger than what may be held at a time.


class _Watch(threading.Thread):
    """Looks again and again how much of the disk the staging folder takes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.peak = 0
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.02):
            total = 0
            try:
                with os.scandir(self.folder) as entries:
                    for entry in entries:
                        try:
                            total += entry.stat(follow_symlinks=False).st_blocks * 512
                        except FileNotFoundError:
                            pass
            except FileNotFoundError:
                continue
            self.peak = max(self.peak, total)

    def end(self) -> None:
        self._end.set()
        self.join()


def _big_tree(session: Session) -> Iterator[Row]:
    dlls = session.material.of_size(session.sizes.big)
    root = session.scratch / "big"
    session.say(f"a tree of {megabytes(session.sizes.big)}")
    size = copy_tree(dlls, root)
    sync(root)
    copied = _copy_and_sync(root, session.scratch / "big-copy").seconds
    time.sleep(PAUSE)
    watch = _Watch(root / "var" / "lib" / "rebaser" / "staging")
    watch.start()
    ended, found = report(root)
    watch.end()
    assert len(found["moved"]) == len(dlls), found["failed"]
    shutil.rmtree(root)
    sync(session.scratch)
    session.note_exclusive(f"{megabytes(size)}, everything to move", found)
    whole = f"{len(dlls):,} DLLs, {megabytes(size)}"
    yield Row(
        f"full safe run, {whole}",
        "`cp -r` and `sync` of the same files, once",
        f"{ratio(ended.seconds / copied)}: {ended.seconds:.2f} s against {copied:.2f} s",
        "≤ 1.5 ×",
        ended.seconds <= 1.5 * copied,
    )
    what = f"of a run that moves {whole}"
    yield Row(
        f"peak memory {what}",
        "",
        f"{megabytes(ended.peak)} ({ended.seconds:.1f} s, {ended.processor:.1f} s of processor)",
        "≤ 100 MB",
        ended.peak <= 100_000_000,
    )
    yield Row(
        f"peak disk {what}",
        "the moved files",
        f"{ratio(watch.peak / size)}: {megabytes(watch.peak)} of staged copies",
        "≤ 1 ×, and bounded: batches of 256 MiB",
        watch.peak <= min(1.02 * size, 300_000_000),
    )


def exclusive_rows(session: Session) -> Iterator[Row]:
    """Yield the shares of the runs for which the lock was held exclusively."""
    shares = "; ".join(
        f"{case}: {milliseconds(held)} of {milliseconds(total)} ({held / total:.0%})"
        for case, held, total in session.exclusive
    )
    idle = [held for case, held, _ in session.exclusive if case.startswith("nothing")]
    yield Row(
        "exclusive lock held",
        "whole run",
        shares,
        "the look before it is not under it: none with nothing to do",
        not any(idle),
    )
