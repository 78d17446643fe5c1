"""Crowds: many runs at once on one tree, while others install and remove DLLs; some are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from installer import content
from trees import (
    Rebaser,
    add_dlls,
    base_in,
    clean_environment,
    contents,
    left_over,
    make_tree,
    moved,
    overlaps,
)

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def crowd(
    rebaser: Rebaser, root: Path, *, runs: int, installers: int, seconds: float, killed: bool
) -> None:
    """Let a crowd loose on a tree, and check what is there when it has gone."""
    (root / "var/lock").mkdir()
    before = contents(root)
    environment = clean_environment()
    environment["PYTHONPATH"] += os.pathsep + str(SUPPORT)
    installing = [
        subprocess.Popen(
            [sys.executable, str(SUPPORT / "installer.py"), str(root), str(number), str(seconds)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        for number in range(installers)
    ]
    dice = random.Random(1)
    deadline = time.monotonic() + seconds
    rounds = victims = 0
    while not rounds or time.monotonic() < deadline:
        rounds += 1
        running = [
            rebaser.start("run", root, *(["--touch"] if number % 5 == 4 else []))
            for number in range(runs)
        ]
        doomed = dice.sample(running, runs // 3) if killed else []
        for one in doomed:
            time.sleep(dice.uniform(0, 0.3))
            one.kill()
        for one in running:
            out, err = one.communicate(timeout=110)
            said = f"{out}{err}"
            assert "this is a bug" not in said, said
            if one in doomed and one.returncode == -signal.SIGKILL:
                victims += 1
                continue
            assert one.returncode == 0, said
    expected = dict(before)
    for one in installing:
        there = json.loads(one.communicate(timeout=60)[0])
        expected.update({path: content(size) for path, size in there.items()})

    result = rebaser("run", root)
    assert result.status == 0, result.words
    assert overlaps(root) == set()
    now = contents(root)
    assert now.keys() == expected.keys()
    for path, old in expected.items():
        assert now[path] == moved(old, base_in(now[path])), path
    assert left_over(root) == []
    assert (rebaser.report("run", root)["moved"]) == []
    assert bool(victims) == killed


@pytest.mark.parametrize("killed", [False, True])
def test_20_runs_and_4_installers(rebaser: Rebaser, tmp_path: Path, killed: bool) -> None:
    root = make_tree(tmp_path / "tree", 20)
    crowd(rebaser, root, runs=20, installers=4, seconds=4, killed=killed)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("killed", [False, True])
def test_100_runs_and_8_installers(rebaser: Rebaser, tmp_path: Path, killed: bool) -> None:
    root = make_tree(tmp_path / "tree", 40)
    crowd(rebaser, root, runs=100, installers=8, seconds=60, killed=killed)


def test_20_runs_started_together(rebaser: Rebaser, tmp_path: Path) -> None:
    """At most two full scans, and every byte is written once."""
    root = make_tree(tmp_path / "tree", 60)
    before = contents(root)
    running = [rebaser.start("run", root, "--json") for _ in range(20)]
    reports = []
    for one in running:
        out, err = one.communicate(timeout=100)
        assert one.returncode == 0, out + err
        reports.append(json.loads(out))
    assert sum(report["bytes_written"] for report in reports) == sum(map(len, before.values()))
    assert sum(len(report["moved"]) for report in reports) == 60
    assert sum(report["run"] is not None for report in reports) == 1
    assert overlaps(root) == set()
    # With nothing to do none waits for another.
    running = [rebaser.start("run", root, "--json", "--no-wait") for _ in range(20)]
    for one in running:
        out, err = one.communicate(timeout=100)
        assert one.returncode == 0, out + err


def test_installers_in_turn(rebaser: Rebaser, tmp_path: Path) -> None:
    """A hook after each of several packages: each DLL moves once."""
    root = make_tree(tmp_path / "tree", 3)
    written = 0
    for package in range(4):
        add_dlls(root, 3, folder=f"lib/package{package}")
        report = rebaser.report("run", root)
        written += len(report["moved"])
        assert overlaps(root) == set()
    assert written == 3 + 4 * 3
