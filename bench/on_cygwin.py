"""The same by Cygwin's own Python, under Wine: the waits of those for whom rebaser is made."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.material import make_tree
from bench.measure import HERE
from bench.session import Session
from bench.table import Row, milliseconds, not_measured, ratio

DRIVE = "/cygdrive/z"  # the machine's / under Wine
SMALL, LARGE, FULL = (66, 70, 10), (166, 4_000, 400), 226


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows; the smallest of each time counts, for others only add to the clock's."""
    root = Path(session.material.cygwin_root or "/nowhere").parent / "cygwin-3.5.3"
    if not (root / "bin/python3.9.exe").exists():
        yield not_measured("on Cygwin", "", "", "it needs bin/cygwin-root, and --old beside it")
        return
    session.say("by Cygwin's own Python, under Wine")
    # Of this machine's folders Wine's has /tmp, and not /var.
    with tempfile.TemporaryDirectory(prefix="rebaser-bench-", dir="/tmp") as scratch:
        least = _least(session, Path(scratch))
    start = least["python"]
    yield Row(
        f"on Cygwin: nothing to do, {SMALL[0]} DLLs, beyond Python's own start",
        "Python's own start",
        f"{milliseconds(least['small'] - start)}; Python {milliseconds(start)}",
        "≤ 180 ms",
        least["small"] - start <= 0.18,
    )
    net = (least["large"] - start) / least["find"]
    yield Row(
        f"on Cygwin: nothing to do, {LARGE[0]} DLLs in {LARGE[1]:,} files, net",
        "Cygwin's `find` over the same tree",
        f"{ratio(net)}: {milliseconds(least['large'] - start)}, find {milliseconds(least['find'])}",
        "≤ 0.5 ×",
        net <= 0.5,
    )
    more = least["lock"] - start
    yield Row(
        "on Cygwin: `rebaser lock -- true`, beyond Python's own start",
        "`flock FILE true`",
        f"{milliseconds(more)}; flock(1) {milliseconds(least['flock'])}",
        "≤ 150 ms",
        more <= 0.15,
    )
    times = least["builtin"] / least["rebase"]
    yield Row(
        f"on Cygwin: full run, {FULL} DLLs, engine builtin",
        "`rebase` in place on the same files",
        f"{ratio(times)}: {milliseconds(least['builtin'])} against "
        f"{milliseconds(least['rebase'])}, `cp -r` {milliseconds(least['copy'])}; "
        f"{least['opens']:.1f} opens a DLL; engine cygwin {milliseconds(least['cygwin'])}",
        "≤ 2 ×",
        times <= 2,
    )
    settled = least["settled"] - start
    yield Row(
        f"on Cygwin: nothing to do, {FULL} DLLs, beyond Python's own start",
        "Python's own start",
        milliseconds(settled),
        "≤ 300 ms",
        settled <= 0.3,
    )


def _least(session: Session, scratch: Path) -> dict[str, float]:
    trees = []
    for name, (dlls, files, folders) in (("small", SMALL), ("large", LARGE)):
        make_tree(scratch / name, session.material.small(dlls), files, folders)
        trees.append(scratch / name)
    full = scratch / "full"
    full.mkdir()
    for number, source in enumerate(session.material.dlls[:FULL]):
        shutil.copyfile(source, full / f"{number:03}-{source.stem}.dll")
    rounds = str(session.sizes.rounds // 2), str((session.sizes.disk_rounds + 1) // 2)
    script = f"{DRIVE}{HERE}/bench/in_cygwin.py"
    with tempfile.TemporaryFile() as out:
        subprocess.run(
            [HERE / "bin/cygwin", "python3", script, *rounds]
            + [f"{DRIVE}{tree}" for tree in (*trees, full)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            check=True,
        )
        out.seek(0)
        taken = json.loads(out.read())
    return {name: min(times) for name, times in taken.items()}
