"""How the cost of a run grows: with DLLs, files and folders of its tree, and with bytes moved."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from bench.material import copy_tree
from bench.measure import PAUSE, Ended, by_turns, python, rebaser, run, sync, timed
from bench.session import Session
from bench.table import Row, megabytes, milliseconds

BASE = (1_000, 10_000, 1_000)  # DLLs, files, folders
MOVED = 15_000_000  # bytes
TIMES = (1, 2, 4)

Line = Sequence[float]  # seconds of processor beyond Python's start, one for each of TIMES


def rows(session: Session) -> Iterator[Row]:
    """Yield a row for each thing that is doubled twice; note the lines of the picture."""
    small = session.sizes.rounds < 10
    base = tuple(one // 10 if small else one for one in BASE)
    start = by_turns(session.sizes.rounds, python=timed(python("pass")))["python"].processor
    for index, what in enumerate(("DLLs", "files", "folders")):
        line = [
            _idle(session, (*base[:index], factor * base[index], *base[index + 1 :])) - start
            for factor in TIMES
        ]
        session.growth[what] = line
        sizes = ", ".join(f"{factor * base[index]:,}" for factor in TIMES)
        yield _row(f"nothing to do, {sizes} {what}", line)
    size = MOVED // 3 if small else MOVED
    line = [_moved(session, factor * size) - start for factor in TIMES]
    session.growth["bytes moved"] = line
    yield _row(f"a full run of {', '.join(megabytes(f * size) for f in TIMES)}", line)


def _row(what: str, line: Line) -> Row:
    return Row(what, "Python's own start is subtracted", " / ".join(map(milliseconds, line)), "")


def _idle(session: Session, shape: tuple[int, ...]) -> float:
    dlls, files, folders = shape
    root = session.tree((dlls, files, folders))
    session.say(f"nothing to do: {dlls:,} DLLs, {files:,} files, {folders:,} folders")
    times = by_turns(session.sizes.rounds, ours=timed(rebaser("run", root, "--quiet")))
    if shape != BASE:
        shutil.rmtree(session.trees.pop((dlls, files, folders)))
    return times["ours"].processor


def _moved(session: Session, size: int) -> float:
    session.say(f"a full run of {megabytes(size)}")
    dlls = session.material.of_size(size)
    taken: list[Ended] = []
    for _ in range(session.sizes.disk_rounds):
        time.sleep(PAUSE)
        root = session.scratch / "growth"
        copy_tree(dlls, root)
        taken.append(run(rebaser("run", root, "--quiet")))
        shutil.rmtree(root)
        sync(session.scratch)
    return median(ended.processor for ended in taken)


# The picture: two plots side by side, of what costs when nothing is to do, and of work.
_STYLE = """<style>:root{color-scheme:light dark}
svg{--ink:#1b1f24;--soft:#6b7480;--paper:#fff;--a:#0b6bcb;--b:#b35900;--c:#1a7f37;--d:#8250df;
font:13px system-ui,sans-serif}
@media (prefers-color-scheme:dark){svg{--ink:#e8eaed;--soft:#9aa4af;--paper:#14171b;--a:#6cb6ff;
--b:#f0a35e;--c:#56d364;--d:#d2a8ff}}
text{fill:var(--ink)}.soft{fill:var(--soft)}.axis{stroke:var(--soft)}
polyline{fill:none;stroke-width:2}</style>"""
WIDTH, HEIGHT, LEFT, TOP = 200, 200, 60, 40  # pixels of a plot, and where the first begins


def picture(growth: Mapping[str, Line]) -> str:
    """Return the lines as an SVG, for light and dark pages."""
    idle = {what: line for what, line in growth.items() if what != "bytes moved"}
    work = {what: line for what, line in growth.items() if what == "bytes moved"}
    parts = [_plot("nothing to do", idle, LEFT, "abc"), _plot("work", work, LEFT + 360, "d")]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 290" role="img">'
        "<title>How the processor's time of a run grows, beyond Python's own start</title>"
        f'{_STYLE}<rect width="720" height="290" fill="var(--paper)"/>{"".join(parts)}</svg>\n'
    )


def _plot(title: str, lines: Mapping[str, Line], left: int, colours: str) -> str:
    most = 1.1 * max(max(line) for line in lines.values())
    bottom = TOP + HEIGHT

    def at(factor: int, seconds: float) -> tuple[float, float]:
        return left + WIDTH * factor / TIMES[-1], bottom - HEIGHT * max(seconds, 0) / most

    drawn = [
        f'<text x="{left}" y="{TOP - 16}">{title}, ms of processor</text>'
        f'<path class="axis" fill="none" d="M{left} {TOP}V{bottom}H{left + WIDTH}"/>'
    ]
    for share in (0, 0.5, 1):
        x, y = left - 8, bottom - HEIGHT * share / 1.1
        value = f"{most / 1.1 * share * 1e3:.0f}"
        drawn.append(f'<text class="soft" x="{x}" y="{y + 4:.0f}" text-anchor="end">{value}</text>')
    for factor in TIMES:
        x = left + WIDTH * factor / TIMES[-1]
        label = f"{factor} ×"
        drawn.append(
            f'<text class="soft" x="{x:.0f}" y="{bottom + 20}" text-anchor="middle">{label}</text>'
        )
    ends: list[float] = []
    for colour, (what, line) in zip(colours, sorted(lines.items(), key=lambda one: -one[1][-1])):
        points = [at(factor, seconds) for factor, seconds in zip(TIMES, line)]
        dots = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        x, y = points[-1]
        ends.append(max(y, ends[-1] + 16) if ends else y)  # names that do not lie on each other
        drawn.append(
            f'<polyline points="{dots}" stroke="var(--{colour})"/>'
            f'<text x="{x + 8:.0f}" y="{ends[-1] + 4:.0f}" style="fill:var(--{colour})">'
            f"{what}</text>"
        )
    return "".join(drawn)
