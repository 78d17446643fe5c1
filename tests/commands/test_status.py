"""rebaser status: the last runs, the lock, the images and the room left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lock_programs import holds
from placed import SLOT, put
from trees import FLOOR, Rebaser
from users import ROOT_ONLY, as_nobody

from rebaser.cli import status_of


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with work to do."""
    for name in ("SAGE_LOCAL", "REBASER_LOCK_FILE", "REBASER_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "tree"
    put(root / "a.dll", FLOOR, 2)
    put(root / "b.dll", FLOOR, 1)
    (root / "empty.dll").touch()
    return root


def status(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert status_of(["status", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_before_any_run(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = status(capsys, tree).splitlines()
    assert lines[0] == str(tree)
    assert lines[1].startswith("x86_64: 2 DLLs, 2 OVERLAPPING")
    assert lines[2] == "  address range 0x200010000-0x400000000"
    assert "128 KiB used" in lines[3]
    assert "largest gap 8.0 GiB" in lines[4]
    assert lines[5].startswith("skipped: 1 file")
    assert lines[6] == f"lock: free ({tree}/.rebaser/rebase.lock)"
    assert lines[-1] == "runs: none that had work to do"


def test_after_runs(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(tree)]) == 0
    put(tree / "c.dll", FLOOR, 1)
    (tree / "names").write_text("c.dll\n")
    assert status_of(["run", str(tree), "--only-from", str(tree / "names")]) == 0
    text = status(capsys, tree)
    assert "3 DLLs, no overlap" in text
    runs = text.split("runs:\n")[1].splitlines()
    assert runs[0].strip().startswith("2 ")
    assert "for 1 named file  moved 1" in runs[0]
    assert runs[1].strip().startswith("1 ")
    assert runs[1].endswith("no overlap left")


def test_a_run_that_was_killed(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(tree)]) == 0
    record = tree / ".rebaser/runs/1.json"
    fields = json.loads(record.read_text())
    record.write_text(json.dumps({**fields, "finished": None}))
    assert "did not finish" in status(capsys, tree)


def test_damaged_records_are_left_out(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(tree)]) == 0
    (tree / ".rebaser/runs/1.json").write_text("{")
    assert "runs: none" in status(capsys, tree)


def test_who_holds_the_lock(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(tree)]) == 0
    words = [sys.executable, "-m", "rebaser", "lock", "--root", str(tree), "--", "sleep", "60"]
    with subprocess.Popen(words) as holder:
        try:
            deadline = time.monotonic() + 20
            while "sleep 60" not in (text := status(capsys, tree)):
                assert time.monotonic() < deadline, text
                time.sleep(0.05)
            assert f"{holds()} pid {holder.pid} (sleep 60)" in text
            found = json.loads(status(capsys, tree, "--json"))
            (one,) = found["lock"]["open_in"]
            assert one["pid"] == holder.pid
            assert one["command"] == "sleep 60"
        finally:
            holder.kill()
    assert "\nlock: free (" in status(capsys, tree)


@ROOT_ONLY
def test_a_lock_that_another_user_holds_is_not_free(rebaser: Rebaser, open_tree: Path) -> None:
    assert rebaser("run", open_tree, "--engine", "builtin").status == 0
    words = ["lock", "--root", open_tree, "--", "sleep", "60"]
    with rebaser.start(*words) as holder:
        try:
            deadline = time.monotonic() + 20
            while not rebaser.report("status", open_tree)["lock"]["open_in"]:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            lock = as_nobody(rebaser, "status", open_tree, "--json").json["lock"]
            assert (lock["free"], lock["open_in"]) == (False, [])
            text = as_nobody(rebaser, "status", open_tree).out
            assert "lock: held by a process that cannot be seen from here (" in text
        finally:
            holder.kill()


def test_json(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(tree)]) == 0
    found = json.loads(status(capsys, tree, "--json"))
    assert found["root"] == str(tree)
    assert found["machines"]["x86_64"]["images"] == 2
    assert found["machines"]["x86_64"]["used"] == 3 * SLOT
    drawn = json.loads(output_of_map(capsys, tree))["machines"]["x86_64"]
    assert found["machines"]["x86_64"]["largest_gap"] == drawn["largest_gap"]
    assert [one["path"] for one in found["skipped"]] == ["empty.dll"]
    assert found["lock"]["free"] is True
    assert found["lock"]["path"] == str(tree / ".rebaser/rebase.lock")
    (run,) = found["runs"]
    assert (run["number"], run["moved"]) == (1, 1)


def output_of_map(capsys: pytest.CaptureFixture[str], tree: Path) -> str:
    assert status_of(["map", str(tree), "--json"]) == 0
    return capsys.readouterr().out


@ROOT_ONLY
def test_whoever_may_not_look_in_is_told(rebaser: Rebaser, open_tree: Path) -> None:
    assert rebaser("run", open_tree, "--engine", "builtin").status == 0
    for folder in ("var/lock", "var/lib/rebaser/runs"):
        (open_tree / folder).chmod(0o700)
    text = as_nobody(rebaser, "status", open_tree).out
    assert f"lock: cannot be looked at ({open_tree}/var/lock/rebase.lock)\n" in text
    assert "runs: cannot be looked at (Permission denied)\n" in text


def test_no_lock_is_taken_and_nothing_written(tree: Path) -> None:
    before = sorted(tree.rglob("*"))
    times = [os.lstat(path).st_mtime_ns for path in before]
    assert status_of(["status", str(tree)]) == 0
    assert sorted(tree.rglob("*")) == before
    assert [os.lstat(path).st_mtime_ns for path in before] == times


def test_usage(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["status"]) == 2
    assert status_of(["status", str(tree / "a.dll")]) == 2
    assert "a.dll" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["map", "status"])
def test_the_trees_own_options_are_followed(
    tree: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert status_of(["run", str(tree)]) == 0
    put(tree.parent / "elsewhere/x.dll", FLOOR + 8 * SLOT, 4)
    (tree / ".rebaser/options").write_text(f"# ours\n--avoid {tree.parent}/elsewhere\n--strict\n")
    capsys.readouterr()
    assert status_of([command, str(tree), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machines"]["x86_64"]["kept_for_others"] == 4 * SLOT
    if command == "status":
        assert found["settings"] == str(tree / ".rebaser/options")
        assert f"settings: {tree}/.rebaser/options was read\n" in status(capsys, tree)
    (tree / ".rebaser/options").write_text("--no-such\n")
    assert status_of([command, str(tree)]) == 2
    assert f"{tree}/.rebaser/options, line 1" in capsys.readouterr().err
