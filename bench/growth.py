"""How a run with nothing to do grows with the DLLs, the files and the folders of its tree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

from bench.measure import by_turns, python, rebaser, timed
from bench.session import Session
from bench.table import Row, milliseconds

BASE = (1_000, 10_000, 1_000)  # DLLs, files, folders


def rows(session: Session) -> Iterator[Row]:
    """Yield a row for a tree, and for trees that have four times as many of one thing."""
    dlls, files, folders = BASE
    if session.sizes.rounds < 10:
        dlls, files, folders = dlls // 10, files // 10, folders // 10
    for what, shape in (
        ("the tree to compare with", (dlls, files, folders)),
        ("4 × the DLLs", (4 * dlls, files, folders)),
        ("4 × the files", (dlls, 4 * files, folders)),
        ("4 × the folders", (dlls, files, 4 * folders)),
    ):
        yield _row(session, what, shape)


def _row(session: Session, what: str, shape: tuple[int, int, int]) -> Row:
    root = session.tree(shape)
    session.say(f"nothing to do: {what}")
    times = by_turns(
        session.sizes.rounds,
        ours=timed(rebaser("run", root, "--quiet")),
        python=timed(python("pass")),
        find=timed(["find", root, "-type", "f", "-name", "*.dll"]),
    )
    shutil.rmtree(session.trees.pop(shape))
    dlls, files, folders = shape
    net = times["ours"].best - times["python"].best
    return Row(
        f"{what}: {dlls:,} DLLs, {files:,} files, {folders:,} folders",
        f"`find`: {milliseconds(times['find'].best)}",
        f"nothing to do, net: {milliseconds(net)}",
        "",
    )
