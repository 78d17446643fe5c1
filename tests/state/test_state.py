"""The state folder: losing or damaging it costs time, never more."""

from __future__ import annotations

import json
import os
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from halted import PACE
from protocol import made_a_tree
from trees import Rebaser, add_dll, add_dlls, bases, contents, left_over, overlaps

from rebaser.options import Request
from rebaser.scan import snapshot as snapshots
from rebaser.state import records
from rebaser.state.folder import State, StateError

STATE = "var/lib/rebaser"


def test_layout(rebaser: Rebaser, tree: Path) -> None:
    assert rebaser("run", tree).status == 0
    state = tree / STATE
    assert sorted(p.name for p in state.iterdir()) == ["runs", "seen", "state.lock"]
    assert [p.name for p in (state / "runs").iterdir()] == ["1.json"]
    assert (tree / "var/lock/rebase.lock").is_file()
    assert not (tree / ".rebaser").exists()


def test_layout_without_var(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dlls(tmp_path, 3)
    assert rebaser("run", tmp_path).status == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [".rebaser", "bin"]
    assert sorted(p.name for p in (tmp_path / ".rebaser").iterdir()) == [
        "rebase.lock",
        "runs",
        "seen",
        "state.lock",
    ]


def test_places_by_option_and_environment(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    lock, state = tmp_path / "a/lock", tmp_path / "b/state"
    assert rebaser("run", tree, "--lock-file", lock, "--state-dir", state).status == 0
    assert lock.is_file()
    assert (state / "seen").is_file()
    assert left_over(tree) == []
    assert not (tree / STATE).exists()
    assert not (tree / ".rebaser").exists(), "staging is inside ROOT, and is gone"
    add_dlls(tree, 2, first=50)
    places = {"REBASER_LOCK_FILE": str(tmp_path / "c"), "REBASER_STATE_DIR": str(tmp_path / "d")}
    assert rebaser("run", tree, env=places).status == 0
    assert (tmp_path / "c").is_file()
    assert (tmp_path / "d/seen").is_file()
    assert not overlaps(tree)


def damage_truncate(data: bytes) -> bytes:
    """Cut a file in the middle."""
    return data[: len(data) // 2]


def damage_flip(data: bytes) -> bytes:
    """Flip a bit in the middle."""
    return data[:50] + bytes([data[50] ^ 4]) + data[51:]


def damage_version(data: bytes) -> bytes:
    """Write another version."""
    return data[:8] + struct.pack("<I", snapshots.VERSION + 1) + data[12:]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, "it is damaged"),
        (damage_flip, "it is damaged"),
        (damage_version, "it has version 5, and this rebaser knows 4"),
        (lambda data: b"", "it is cut short"),
        (lambda data: b"#!/bin/sh\n" * 20, "it is not rebaser's"),
    ],
)
def test_a_lost_memory_is_a_cold_start_with_one_warning(
    rebaser: Rebaser, tree: Path, damage: object, words: str
) -> None:
    rebaser.report("run", tree)
    after = bases(tree)
    seen = tree / STATE / "seen"
    seen.write_bytes(damage(seen.read_bytes()))  # type: ignore[operator]
    result = rebaser("run", tree)
    assert result.status == 0, result.words
    assert result.err.count("\n") == 1, result.words
    assert f"{seen} cannot be used ({words}); every DLL is read again" in result.err
    assert "nothing to do" in result.out
    assert bases(tree) == after
    # It was mended.
    assert rebaser("run", tree).err == ""


def test_a_memory_that_is_gone(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    (tree / STATE / "seen").unlink()
    result = rebaser("run", tree)
    assert (result.status, result.err) == (0, "")
    assert (tree / STATE / "seen").exists()


@pytest.mark.parametrize("what", ["folder", "fifo", "link"])
def test_a_memory_that_is_no_file(rebaser: Rebaser, tree: Path, what: str, tmp_path: Path) -> None:
    rebaser.report("run", tree)
    seen = tree / STATE / "seen"
    data = seen.read_bytes()
    seen.unlink()
    if what == "folder":
        seen.mkdir()
    elif what == "fifo":
        os.mkfifo(seen)
    else:
        (tmp_path / "planted").write_bytes(data)
        os.symlink(tmp_path / "planted", seen)
    result = rebaser("run", tree, timeout=20)
    assert result.status == 0, result.words
    assert str(seen) in result.err
    assert "every DLL is read again" in result.err
    if what == "link":
        assert (tmp_path / "planted").read_bytes() == data


def test_damaged_records_cost_nothing(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    for number, text in enumerate(
        ["", "[]", "null", '{"request": 1}', "{" * 100_000, "\xff", '{"number": "x"}'], 2
    ):
        (tree / STATE / f"runs/{number}.json").write_text(text, encoding="latin-1")
    (tree / STATE / "runs/x.json").write_text("{}")
    (tree / STATE / "runs/007.json").write_text("{}")
    add_dlls(tree, 2, first=20)
    assert rebaser.report("run", tree)["run"] == 9
    assert not overlaps(tree)


def test_records_are_few(tree: Path) -> None:
    state = State(str(tree / STATE), str(tree))
    state.make()
    for number in range(1, 50):
        record = records.begin(state, Request(""), 0.0)
        assert record.number == number
        assert records.newest_number(state) == number
    names = sorted(p.name for p in (tree / STATE / "runs").iterdir())
    assert len(names) <= records.KEPT_RECORDS + 1
    assert "49.json" in names


def test_names_that_only_look_like_records(tree: Path) -> None:
    state = State(str(tree / STATE), str(tree))
    state.make()
    for name in ("٣.json", "0005.json", "-1.json", "1.5.json", ".json"):
        (tree / STATE / "runs" / name).write_text("{}")
    for _ in range(records.KEPT_RECORDS + 5):
        records.begin(state, Request(""), 0.0)
    assert records.newest_number(state) > records.KEPT_RECORDS


def test_a_staging_folder_that_was_left(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    staging = tree / STATE / "staging"
    (staging / "cygwin-1x").mkdir(parents=True)
    for name in ("made-by-rebaser", "new", "probe", "0000001.dll", "cygwin-1x/0000000.dll"):
        (staging / name).write_bytes(b"half")
    report = rebaser.report("run", tree)
    assert report["moved"] == []
    assert not staging.exists()


def test_a_staging_folder_without_a_mark_yet(rebaser: Rebaser, tree: Path) -> None:
    """The run that made it was killed at once."""
    rebaser.report("run", tree)
    (tree / STATE / "staging").mkdir()
    assert rebaser("run", tree).status == 0
    assert left_over(tree) == []


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_staging_folder_with_something_foreign_in_it(
    rebaser: Rebaser, tree: Path, is_marked: bool
) -> None:
    """Not even under the names that we give, unless a run says that it has made the folder."""
    staging = tree / STATE / "staging"
    (staging / "cygwin-").mkdir(parents=True)
    foreign = [staging / "mine.dll", staging / "cygwin-/mine"]
    ours = [staging / "0000001.dll", staging / "cygwin-/0000001.dll"]
    for file in (*foreign, *ours):
        file.write_bytes(b"precious")
    if is_marked:
        (staging / "made-by-rebaser").touch()
    for _ in range(2):
        result = rebaser("run", tree)
        assert result.status == 1, result.words
        assert str(staging) in result.err
        assert ("is not rebaser's" if is_marked else "not made by rebaser") in result.err
        assert "nothing was changed" in result.err
    assert len(overlaps(tree)) == 15
    assert all(file.exists() for file in foreign)
    assert all(file.exists() != is_marked for file in ours)


def test_records_of_others_are_not_removed(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    """A state folder may be named that holds a folder `runs` of somebody else's."""
    state = tmp_path / "project"
    (state / "runs").mkdir(parents=True)
    for number in range(1, 60):
        (state / f"runs/{number}.json").write_text('{"accuracy": 0.9}')
    places = ["--state-dir", state, "--lock-file", tmp_path / "lock"]
    assert rebaser.report("run", tree, *places)["run"] == 60
    assert len(list((state / "runs").iterdir())) == 60


def test_time_is_the_file_systems_own(tree: Path) -> None:
    state = State(str(tree / STATE), str(tree))
    state.make()
    file = tree / "bin/x000.dll"
    os.utime(file)
    now = state.time()
    assert os.stat(file).st_ctime_ns < now.nanoseconds
    assert now.device == os.stat(tree).st_dev
    assert now.before(1).nanoseconds < now.nanoseconds - 10**9


def test_a_file_that_is_written_whole(tree: Path) -> None:
    state = State(str(tree / STATE), str(tree))
    state.make()
    target = tree / STATE / "seen"
    state.write("seen", b"one")
    target.chmod(0o444)
    state.write("seen", b"two")
    assert target.read_bytes() == b"two"
    with pytest.raises(StateError, match="cannot be written"):
        state.write("nowhere/x", b"")
    assert os.listdir(tree / STATE / "staging") == ["made-by-rebaser"]


def test_a_state_folder_that_cannot_be_made(rebaser: Rebaser, tree: Path) -> None:
    (tree / "var/lib").write_text("a file")
    result = rebaser("run", tree)
    assert result.status == 1
    assert f"{tree}/var/lib/rebaser" in result.err
    assert "nothing was changed" in result.err
    assert "--state-dir" in result.err
    assert len(overlaps(tree)) == 15


def test_the_record_says_what_was_done(rebaser: Rebaser, tree: Path) -> None:
    began = int(time.time())
    report = rebaser.report("run", tree, "--engine", "builtin")
    record = next(records.newest_first(State(str(tree / STATE), str(tree))))
    assert record.number == report["run"] == 1
    assert record.moved == len(report["moved"])
    assert record.bytes_written == report["bytes_written"]
    assert record.failed == ()
    assert record.overlaps == ()
    assert record.engine == "builtin"
    assert record.finished is not None
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
    assert stamp <= record.began <= record.finished


# The tree's own options.


def test_options_in_the_state_folder(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    add_dll(tmp_path / "others/a.dll", base=0x2_0001_0000)
    options = tree / "var/lib/rebaser/options"
    options.parent.mkdir(parents=True)
    options.write_text(f"# of this tree\n\n--avoid {tmp_path / 'others'}\n  --exclude=lib/*\n")
    report = rebaser.report("run", tree, "--dry-run")
    assert report["settings"] == str(options)
    assert min(int(move["new_base"], 16) for move in report["moved"]) > 0x2_0001_0000
    options.write_text("--arena=0x240000000-0x250000000\n--wait 1000")
    words = ["--arena", "0x260000000-0x270000000", "--no-wait"]
    bases = [int(m["new_base"], 16) for m in rebaser.report("run", tree, *words)["moved"]]
    assert min(bases) == 0x2_6000_0000


def test_globs_of_a_tree_are_relative_to_its_root(rebaser: Rebaser, tree: Path) -> None:
    """Also where a part of it is asked for, whose own globs on a command line are not."""
    add_dll(tree / "lib/vendor/x.dll")
    add_dll(tree / "lib/y.dll")
    add_dll(tree / "lib/lib/z.dll")
    options = tree / "var/lib/rebaser/options"
    made_a_tree(tree)
    options.write_text("--exclude lib/vendor/*\n--exclude=/lib/y.dll\n")
    moves = rebaser.report("check", tree / "lib", status=1)["would_move"]
    moves += rebaser.report("run", tree / "lib", "--dry-run")["moved"]
    assert [Path(move["path"]).name for move in moves] == ["z.dll", "z.dll"]
    skipped = {one["path"] for one in rebaser.report("status", tree / "lib")["skipped"]}
    assert skipped == {"lib/vendor/x.dll", "lib/y.dll"}
    listed = rebaser.report("info", tree / "lib", "--exclude", "lib")["images"]
    assert listed == []
    report = rebaser.report("run", tree / "lib", "--exclude", "lib/*", "--dry-run")
    assert report["moved"] == []


def test_comments_among_a_trees_options(rebaser: Rebaser, tree: Path) -> None:
    options = tree / "var/lib/rebaser/options"
    options.parent.mkdir(parents=True)
    lines = ("# all", "--exclude bin/x00[0-3]*  # not ours", "\t#", "--strict\t# why", "")
    options.write_text("\n".join(lines))
    report = rebaser.report("run", tree, "--dry-run", status=1)
    assert [move["path"] for move in report["moved"]] == ["bin/x004.dll", "bin/x005.dll"]


@pytest.mark.parametrize(
    "line",
    [
        "--dry-run",
        "--nonsense",
        "--arena 7",
        "lib",
        "--avoid",
        "--state-dir /tmp",
        "--avoid /nowhere",
        "--avoid .",
        "--database=/nowhere/db",
    ],
)
def test_a_wrong_line_is_named(rebaser: Rebaser, tree: Path, line: str) -> None:
    options = tree / "var/lib/rebaser/options"
    options.parent.mkdir(parents=True)
    options.write_text(f"# comment\n{line}\n")
    before = contents(tree)
    result = rebaser("run", tree)
    assert result.status == 2
    assert f"{options}, line 2: " in result.err
    assert contents(tree) == before


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("a pipe", "is no regular file"),
        ("too much", "holds 1048594 bytes"),
        ("a link", "cannot be read"),
        ("a folder", "cannot be read"),
        ("a flag with a value", "line 1: argument --strict: it does not take the value '--json'"),
        ("an operand", "line 1: argument --no-wait: it does not take the value"),
    ],
)
def test_options_that_are_no_file_of_lines(
    rebaser: Rebaser, tree: Path, tmp_path: Path, what: str, sentence: str
) -> None:
    options = tree / "var/lib/rebaser/options"
    options.parent.mkdir(parents=True)
    if what == "a pipe":
        os.mkfifo(options)
    elif what == "too much":  # what stands behind the first megabyte would be lost
        options.write_text(f"#{'x' * (1 << 20)}\n--keep-aslr\n--exclude *\n"[: (1 << 20) + 18])
    elif what == "a link":
        (tmp_path / "elsewhere").write_text("--strict")
        options.symlink_to(tmp_path / "elsewhere")
    elif what == "a folder":
        options.mkdir()
    else:
        options.write_text("--strict --json\n" if "value" in what else f"--no-wait {tmp_path}\n")
    before = contents(tree)
    for command in ("run", "check", "status", "map"):
        result = rebaser(command, tree, timeout=30)
        assert result.status == 2, result.words
        assert str(options) in result.err
        assert sentence in result.err
    assert contents(tree) == before


def test_options_behind_a_link_are_not_read(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    """Whoever may write in the tree could have root print a line of any file called `options`."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private/options").write_text("password\n")
    (tree / "var/lib").mkdir()
    (tree / "var/lib/rebaser").symlink_to(tmp_path / "private")
    for command in ("run", "check", "status", "map"):
        assert "password" not in rebaser(command, tree).words


def test_a_record_of_impossible_numbers(rebaser: Rebaser, tree: Path) -> None:
    rebaser.report("run", tree)
    path = tree / "var/lib/rebaser/runs/1.json"
    record = json.loads(path.read_text())
    group = {"machine": 0x8664, "low": 0, "high": 1, "paths": ["a"], "cure": None, "ours": True}
    changes: list[dict[str, Any]] = [
        *({"bytes_written": value} for value in (10**400, -1, float("inf"), float("nan"))),
        *({"moved": value} for value in (10**400, float("nan"), [], "1", None)),
        *({"overlaps": [{**group, "high": value}]} for value in (10**400, -1, float("inf"))),
        *({name: "\ud800\x1b[2J"} for name in ("began", "finished", "engine", "host")),
        {"failed": [["\ud800", "\ud800"]]},
        {"unfinished": ["\ud800"]},
        {"looked": float("nan")},
        {"looked": 10**400},
    ]
    for change in changes[::PACE]:
        path.write_text(json.dumps({**record, **change}))
        for words in (["status"], ["status", "--json"], ["run"], ["check"]):
            result = rebaser(*words, tree)
            assert result.status == 0, (change, result.words)
            assert "\x1b" not in result.words
    for text in ("[" * 100_000, "9" * 5000, '{"number": 1e999}', "NaN", "\0"):
        path.write_text(text)
        assert rebaser("status", tree).status == 0
        assert rebaser("run", tree).status == 0
