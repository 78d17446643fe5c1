"""`rebaser run` with programs of every character on PATH: the tree is right, or it is unchanged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pe
import pytest
from cygwin_root import FAKE_PROGRAMS

from rebaser.apply.engines import BuiltinEngine
from rebaser.apply.engines.cygwin import CygwinEngine
from rebaser.errors import UsageError
from rebaser.job import choose_engine

COUNT = 7


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree of DLLs that all lie at one base."""
    (tmp_path / "tree" / "lib").mkdir(parents=True)
    for number in range(COUNT):
        file = tmp_path / "tree" / "lib" / f"{number} ü.dll"
        file.write_bytes(pe.build(data_size=0x2000 + number * 0x6000))
    return tmp_path / "tree"


def run(tree: Path, programs: Path, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Run `rebaser run` with programs first on PATH; return status, stderr and the report."""
    path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "rebaser", "run", str(tree), "--json", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PATH": path},
    )
    return done.returncode, done.stderr, json.loads(done.stdout or "{}")


def files(tree: Path) -> Mapping[str, bytes]:
    return {str(f.relative_to(tree)): f.read_bytes() for f in sorted(tree.rglob("*.dll"))}


@pytest.mark.parametrize(
    ("character", "moved", "words"),
    [
        ("obedient", COUNT, ""),
        ("today", COUNT, ""),
        ("idle", 0, "idle/rebase -8 -b 0x2000"),
        ("liar", 0, "ended with status 0, saying: 0000000.dll: new base = "),
        ("stops", 5, "ended with status 2, saying: rebase: cannot do 0000002.dll: Device"),
        ("killed", 0, "was killed by SIGKILL, saying: "),
        pytest.param("hangs", 0, "was killed after 60.", marks=pytest.mark.long),
    ],
)
def test_what_is_not_moved_is_unchanged_and_says_why(
    tree: Path, character: str, moved: int, words: str
) -> None:
    before = files(tree)
    status, _, report = run(tree, FAKE_PROGRAMS / character, "--engine", "cygwin")
    after = files(tree)
    assert {move["path"] for move in report["moved"]} == {
        f for f in before if before[f] != after[f]
    }
    assert len(report["moved"]) == moved
    assert status == (0 if moved == COUNT else 1)
    for failed in report["failed"]:
        assert str(FAKE_PROGRAMS / character / "rebase") in failed["reason"]
        assert "; --engine builtin does without; it stays as it was" in failed["reason"]
    assert not report["failed"] or any(words in failed["reason"] for failed in report["failed"])
    # What was left over is done by the other engine, and then all is as if it had done everything.
    status, _, report = run(tree, FAKE_PROGRAMS / character, "--engine", "builtin")
    assert (status, len(report["moved"])) == (0, COUNT - moved)
    assert report["overlaps"] == []
    assert run(tree, FAKE_PROGRAMS / "obedient", "--engine", "cygwin")[2]["moved"] == []


NO_TEMPORARY_FOLDER = """
import sys, tempfile
tempfile._candidate_tempdir_list = lambda: ["/nowhere"]
from rebaser.cli import main
sys.exit(main())
"""


def test_without_a_temporary_folder_the_programs_fail_and_not_the_run(tree: Path) -> None:
    before = files(tree)
    path = os.pathsep.join([str(FAKE_PROGRAMS / "obedient"), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-c", NO_TEMPORARY_FOLDER, "run", tree, "--json", "--engine=cygwin"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, "PATH": path},
    )
    assert (done.returncode, files(tree)) == (1, before), done.stderr
    failed = json.loads(done.stdout)["failed"]
    assert len(failed) >= COUNT - 1
    for one in failed:
        assert "rebase -V could not be started: No usable temporary directory" in one["reason"]


def test_a_missing_program_is_a_usage_error(tree: Path, tmp_path: Path) -> None:
    before = files(tree)
    (tmp_path / "empty").mkdir()
    status, complaint, _ = run(tree, tmp_path / "empty", "--engine", "cygwin")
    assert status == 2
    assert "needs the programs rebase and peflags on PATH" in complaint
    assert files(tree) == before


def test_which_engine_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_engine("builtin", print), BuiltinEngine)
    monkeypatch.setattr(sys, "platform", "linux")
    assert isinstance(choose_engine("auto", print), BuiltinEngine)
    monkeypatch.setattr(sys, "platform", "cygwin")
    monkeypatch.setenv("PATH", str(FAKE_PROGRAMS / "obedient"))
    assert isinstance(choose_engine("auto", print), CygwinEngine)
    assert isinstance(choose_engine("cygwin", print), CygwinEngine)
    monkeypatch.setenv("PATH", "/nowhere")
    assert isinstance(choose_engine("auto", print), BuiltinEngine)
    with pytest.raises(UsageError, match="install"):
        choose_engine("cygwin", print)
