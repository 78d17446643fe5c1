"""The benchmark runs, and measures what it says; what it finds is no matter for a test."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from trees import clean_environment, make_tree

from bench.growth import picture
from bench.session import FULL, SMALL
from bench.table import Row, not_measured, render

HERE = Path(__file__).resolve().parents[2]

# What a run with nothing to do must not import: more than half of what Python would do then.
COSTLY = {"argparse", "asyncio", "concurrent", "dataclasses", "fasteners", "inspect", "json"}
COSTLY |= {"logging", "pefile", "rich", "shutil", "sqlite3", "subprocess", "tempfile"}
COSTLY |= {"contextlib", "enum", "re", "signal", "threading", "typing"}


def test_the_table_is_markdown() -> None:
    rows = [
        Row("a | b", "c", "1.00 ×", "≤ 2 ×", True),
        Row("d", "", "3.00 ×", "≤ 2 ×", False),
        not_measured("e", "f", "g", "no strace"),
    ]
    lines = render(rows).splitlines()
    assert lines[0] == "| what | against | measured | goal |  |"
    assert lines[2] == "| a \\| b | c | 1.00 × | ≤ 2 × | met |"
    assert lines[3].endswith("| **not met** |")
    assert lines[4] == "| e | f | not measured: no strace | g | - |"


def test_the_picture_of_growth_is_drawn_to_scale() -> None:
    growth = {"DLLs": [0.02, 0.03, 0.05], "files": [0.02] * 3, "folders": [0.02, 0.02, 0.03]}
    svg = picture({**growth, "bytes moved": [0.2, 0.4, 0.8]})
    ElementTree.fromstring(svg)
    lines = re.findall(r'points="([^"]*)"', svg)
    heights = [[240 - float(point.split(",")[1]) for point in line.split()] for line in lines]
    assert len(heights) == 4
    assert heights[3] == pytest.approx([heights[3][2] / 4, heights[3][2] / 2, heights[3][2]], abs=1)
    assert heights[0][2] > heights[1][2] > heights[2][2], "DLLs, folders, files"


def test_the_small_edition_measures_the_same_things() -> None:
    for name in vars(FULL):
        assert isinstance(getattr(SMALL, name), type(getattr(FULL, name))), name
    assert 100_000 in SMALL.plan, "the goal is about so many images"


def imported(*module: str, cwd: Path) -> set[str]:
    words = [sys.executable, "-X", "importtime", "-m", *module]
    run = subprocess.run(words, cwd=cwd, env=clean_environment(), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names = re.findall(r"\| +([\w.]+)$", run.stderr, re.MULTILINE)
    return {name.partition(".")[0] for name in names}


def test_a_run_with_nothing_to_do_imports_little(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    # The first moves, the second remembers what was seen.
    done = [imported("rebaser", "run", str(tree), "--quiet", cwd=tmp_path) for _ in range(3)]
    assert "pefile" in done[0]
    (tmp_path / "empty.py").touch()
    of_python = imported("empty", cwd=tmp_path)  # runpy's own, typing among them on Python 3.9
    assert not (done[2] - of_python) & COSTLY


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_small_edition_prints_every_row_and_cleans_up(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    words = [sys.executable, "-m", "bench", "--small", "--dir", str(tmp_path), "--output"]
    done = subprocess.run(
        [*words, str(table)], cwd=HERE, env={**os.environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert table.read_text(encoding="utf-8") == done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    for start in (
        "nothing to do, 230 DLLs, beyond",
        "the same with three signed DLLs",
        "nothing to do, 1,000,000 names of --only-from",
        "`rebaser check` of 230 DLLs",
        "`rebaser check` of 500 DLLs",
        "`rebaser info` of 230 DLLs",
        "`rebaser info` of 500 DLLs",
        "nothing to do, 200 DLLs in 3,000 files, net",
        "nothing to do, 500 DLLs in 20,000 files, net",
        "system calls of a run with nothing to do",
        "ten new DLLs",
        "relocating",
        "full safe run",
        "a build of 10 packages",
        "20 hooks at once",
        "exclusive lock held",
        "planning",
        "peak memory",
        "peak disk",
        "`rebaser --version`",
        "`rebaser lock -- true`",
        "hand-over",
    ):
        found = [row for row in rows if row.startswith(f"| {start}")]
        assert len(found) == (2 if start == "full safe run" else 1), start
        assert found[0].count(" | ") == 4, found
    assert os.listdir(tmp_path) == ["table.md"]
