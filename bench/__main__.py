"""Measures rebaser beside the programs that users have without it, and prints one table.

Every ratio is of things that were measured in turns, in one run, on one machine; a time is the
median of its rounds. The trees are made in a temporary folder on a disk and removed again.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import engine, growth, idle, locking, on_cygwin, work
from bench.material import find_material
from bench.measure import run
from bench.session import FULL, SMALL, Session, Sizes
from bench.table import Row, render
from rebaser import __version__

# What is computed in this process comes last: Linux counts the peak of whoever starts a program as
# that program's own (getrusage(2), ru_maxrss survives exec).
GROUPS = {"idle": idle.rows, "work": work.rows, "locking": locking.rows, "engine": engine.rows}
ASKED_FOR = {"cygwin": on_cygwin.rows, "growth": growth.rows}  # only then


def main() -> int:
    """Measure, print the table, and return the exit status; a goal that is missed is none."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the trees are removed
    began = time.monotonic()
    sizes = SMALL if arguments.small else FULL
    with tempfile.TemporaryDirectory(prefix="rebaser-bench-", dir=arguments.dir) as scratch:
        session = Session(sizes, Path(scratch), find_material(Path(scratch)))
        rows: list[Row] = []
        for name, measured in {**GROUPS, **ASKED_FOR}.items():
            if name in (arguments.only or GROUPS):
                rows += measured(session)
        if session.exclusive:
            rows += work.exclusive_rows(session)
        text = "\n".join([*_header(session, arguments.small), "", render(rows)])
    text += f"\n{_count(rows)}; measured in {time.monotonic() - began:.0f} s.\n"
    print(text, end="")
    if arguments.picture and session.growth:
        Path(arguments.picture).write_text(growth.picture(session.growth), encoding="utf-8")
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="small trees: under two minutes, for CI"
    )
    parser.add_argument("--output", metavar="FILE", help="write the table to FILE too")
    parser.add_argument(
        "--picture", metavar="FILE", help="draw how the cost grows, with --only growth (SVG)"
    )
    parser.add_argument(
        "--dir", default=_disk(), help="where the trees are made (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        action="append",
        choices={**GROUPS, **ASKED_FOR},
        help="only these measurements; may be repeated",
    )
    return parser


def _disk() -> str:
    """Return a folder for temporary files that lies on a disk, if there is one."""
    for folder in (tempfile.gettempdir(), "/var/tmp"):
        if os.path.isdir(folder) and _file_system(folder) not in ("tmpfs", "ramfs"):
            return folder
    return "/var/tmp"


def _file_system(folder: str | Path) -> str:
    return run(["stat", "-f", "-c", "%T", folder], capture=True).out.strip()


def _header(session: Session, small: bool) -> list[str]:
    sizes: Sizes = session.sizes
    trees = " and ".join(
        f"{dlls:,} DLLs in {files:,} files and {folders:,} folders"
        for dlls, files, folders in (sizes.small_tree, sizes.tree, sizes.large_tree)
    )
    root = session.material.cygwin_root
    return [
        f"- rebaser {__version__}, {time.strftime('%Y-%m-%d')}"
        + (", the small edition (Python's start outweighs trees so small)" if small else ""),
        f"- machine: {_processor()}, {os.cpu_count()} processors, {_memory()}; load "
        f"{os.getloadavg()[0]:.1f}",
        f"- system: {platform.system()} {platform.release()}, file system "
        f"{_file_system(session.scratch)}, Python {platform.python_version()}, "
        f"{_first_line('find', '--version')}, {_first_line('flock', '--version')}, "
        + (f"rebase {_rebase_version(root)} under Wine" if root else "no Cygwin rebase"),
        f"- DLLs: {session.material.origin}, {len(session.material.dlls)} different ones",
        f"- trees: {trees}; {sizes.rounds} rounds ({sizes.disk_rounds} of full runs), the "
        "median of each counts",
    ]


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    match = re.search(r"model name\s*: (.*)", text)
    return match[1] if match else platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.0f} GB of memory"


def _first_line(*words: str) -> str:
    if not shutil.which(words[0]):
        return f"no {words[0]}"
    return run(words, capture=True).out.splitlines()[0]


def _rebase_version(root: Path) -> str:
    """Return the version that rebase -V prints, on stderr."""
    env = {**os.environ, "WINEPREFIX": f"{root}.wine", "WINEDEBUG": "-all"}
    with tempfile.TemporaryFile() as out:
        # Not a pipe: those hang under Wine.
        words = ["wine", str(root / "bin" / "rebase.exe"), "-V"]
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, timeout=60)
        out.seek(0)
        match = re.search(rb"rebase version (\S+)", out.read())
    return match[1].decode() if match else "of unknown version"


def _count(rows: list[Row]) -> str:
    met = sum(row.met is True for row in rows)
    missed = sum(row.met is False for row in rows)
    return f"{met} goals met, {missed} not met, {len(rows) - met - missed} without a verdict"


if __name__ == "__main__":
    sys.exit(main())
