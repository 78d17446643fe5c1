"""SIGKILL at every step and at any moment: files are old or new, the next run mends the rest."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from cygwin_root import CygwinRoot
from halted import PACE, Check, cold, elsewhere, warm
from lock_programs import is_free
from stop_at import CHANGING, Call, Counter, die, in_child, intercept
from trees import (
    Rebaser,
    add_dlls,
    contents,
    copy_dlls,
    left_over,
    overlaps,
)


def nobody_holds(lock: Path) -> bool:
    """Whether a run that was killed has left its lock, if it came so far, to others."""
    return not lock.exists() or is_free(lock)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "stride"),
    [
        (cold, 1),
        (warm, 3),
        (elsewhere, 3),
        pytest.param(warm, 1, marks=pytest.mark.long),
        pytest.param(elsewhere, 1, marks=pytest.mark.long),
    ],
)
def test_kill_at_every_step(
    scene: Callable[[Path], list[str]], stride: int, in_memory: Path
) -> None:
    tmp_path = in_memory
    stride *= PACE
    log = tmp_path / "log"

    def run(words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
        return in_child(words, prepare, log)

    perfect = tmp_path / "perfect"
    words = scene(perfect)
    assert run(["run", str(perfect), *words]) == 0, log.read_text()
    wanted = contents(perfect)

    steps = 1 - stride
    while True:
        steps += stride
        root = tmp_path / f"t{steps}"
        words = ["run", str(root), *scene(root)]
        check = Check(root)
        status = run(
            words, lambda number=steps: intercept([*CHANGING, "flock"], Counter(number, die))
        )
        if status == 0:
            break  # it has fewer steps than that
        assert status == signal.SIGKILL, log.read_text()
        check.sound()
        assert nobody_holds(root / "var/lock/rebase.lock")

        assert run(words) == 0, log.read_text()
        now = check.sound()
        assert overlaps(root) == set()
        assert left_over(root) == []
        assert not (root / ".rebaser").exists()
        # As if nothing had happened, unless the kill came between two names of one file.
        if os.path.samefile(root / "bin/x001.dll", root / "lib/x001-again.dll"):
            assert now == wanted
        if steps % 5 == 1:
            assert run(words) == 0
            assert "nothing to do" in log.read_text()
        shutil.rmtree(root)
        shutil.rmtree(root.with_name(root.name + "-places"), ignore_errors=True)
    assert steps > 40, "the calls of a run are no longer seen"


@pytest.mark.slow
def test_interrupt_at_every_step(in_memory: Path) -> None:
    """^C: what was begun is put back, the status is 130, and nothing is left over."""
    log = in_memory / "log"

    def press(name: str, real: Call, words: Sequence[Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def prepare(number: int) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        intercept([*CHANGING, "flock"], Counter(number, press))

    interrupted = cleared = 0
    for number in range(1, 1000, 3 * PACE):
        root = in_memory / f"t{number}"
        cold(root)
        words = ["run", str(root)]
        check = Check(root)
        status = os.WEXITSTATUS(in_child(words, lambda number=number: prepare(number), log))
        said = log.read_text()
        assert status in (0, 130), said
        assert "this is a bug" not in said
        check.sound()
        if status == 130:
            interrupted += 1
            assert "interrupted" in said
            cleared += left_over(root) == []
        assert in_child(words, lambda: None, log) == 0, log.read_text()
        check.sound()
        assert overlaps(root) == set()
        assert left_over(root) == []
        shutil.rmtree(root)
        if status == 0 and number > 100:
            break
    assert interrupted > 10 / PACE
    # Pressed while the staging folder is removed, some of it may stay for the next run.
    assert cleared > interrupted * 0.6


def random_kills(rebaser: Rebaser, source: Path, work: Path, times: int) -> None:
    """Kill runs on copies of a tree at random moments, and check what is left each time."""
    root = work / "tree"
    fresh = work / "fresh"
    (fresh / "var").mkdir(parents=True)
    copy_dlls(source, fresh)
    shutil.copytree(fresh, root)
    began = time.monotonic()
    assert rebaser("run", root, "--quiet").status in (0, 1)
    whole = time.monotonic() - began
    wanted = contents(root)
    dice = random.Random(20_261_122)
    killed = 0
    check = None
    for _ in range(3 * times):
        if killed == times:
            break
        shutil.rmtree(root)
        subprocess.run(["cp", "-a", str(fresh), str(root)], check=True)
        if check is None:
            check = Check(root)
        check.stats = {path: (root / path).stat() for path in check.before}
        running = rebaser.start("run", root, "--quiet")
        time.sleep(dice.uniform(0.05, whole))
        running.kill()
        running.communicate(timeout=60)
        # How long a run takes here is found on the way: the machine has other things to do too.
        if running.returncode == -signal.SIGKILL:
            killed += 1
            whole *= 1.05
        else:
            whole = max(0.1, whole * 0.8)
        check.sound()
        assert nobody_holds(root / "var/lock/rebase.lock")
        result = rebaser("run", root, "--quiet")
        assert result.status in (0, 1), result.words
        assert "failed" not in result.err
        assert contents(root) == wanted
        assert left_over(root) == []
    assert killed > times // 3, f"{killed} runs were killed"


@pytest.mark.slow
def test_random_kills(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dlls(tmp_path / "source", 60)
    random_kills(rebaser, tmp_path / "source", tmp_path, 10 if PACE == 1 else 3)


@pytest.mark.cygwin
@pytest.mark.slow
def test_random_kills_on_real_dlls(
    rebaser: Rebaser, pristine_root: CygwinRoot, tmp_path: Path
) -> None:
    random_kills(rebaser, pristine_root.path / "lib/python2.7", tmp_path, 12)


@pytest.mark.cygwin
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("below", "times"), [("lib/python2.7", 200), ("", 20)])
def test_200_random_kills_on_real_dlls(
    rebaser: Rebaser, pristine_root: CygwinRoot, tmp_path: Path, below: str, times: int
) -> None:
    random_kills(rebaser, pristine_root.path / below, tmp_path, times)
