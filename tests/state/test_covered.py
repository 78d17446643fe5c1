"""Covered runs: when another run has done what this one was asked for, and when it has not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from protocol import asked_before, finished, first_line, made_a_tree, stopped_at_work
from trees import (
    LINKERS,
    Rebaser,
    add_dll,
    add_dlls,
    contents,
    damaged,
    left_over,
    make_tree,
    overlaps,
)

from rebaser.options import Request
from rebaser.report import Group, Report
from rebaser.state import records
from rebaser.state.folder import State

pytestmark = pytest.mark.timeout(100)

RUNS = "var/lib/rebaser/runs"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree of colliding DLLs in two folders, `bin` and `lib`."""
    root = make_tree(tmp_path / "tree", 4)
    add_dlls(root, 4, first=10, folder="lib")
    return root


def naming(folder: Path, *names: str) -> list[str]:
    """Return the options that name these images only."""
    path = folder / f"{len(list(folder.iterdir()))}.names"
    path.write_text("".join(f"{name}\n" for name in names))
    return ["--only-from", str(path)]


DONE = Report("/tree", None)

ALL: list[str] = []
ONE = ["bin/x001.dll"]
TWO = ["bin/x001.dll", "lib/x010.dll"]


@pytest.mark.parametrize(
    ("first", "second", "covered"),
    [
        (ALL, ALL, True),
        (ALL, ONE, True),
        (TWO, TWO, True),
        (TWO, ONE, True),
        (ONE, TWO, False),
        (ONE, ALL, False),
        (["lib/x011.dll"], ONE, False),
    ],
)
def test_who_covers_whom(
    rebaser: Rebaser,
    tree: Path,
    tmp_path: Path,
    first: list[str],
    second: list[str],
    covered: bool,
) -> None:
    before = contents(tree)
    with asked_before(
        rebaser, tree, str(tree), *(naming(tmp_path, *second) if second else [])
    ) as go_on:
        report = rebaser.report("run", tree, *(naming(tmp_path, *first) if first else []))
        assert report["run"] == 1
        now = contents(tree)
        result = go_on()
    assert result.status == 0, result.words
    if covered:
        assert (result.json["covered_by"], result.json["run"]) == (1, None)
        assert result.json["scanned"] == result.json["bytes_written"] == 0
        assert contents(tree) == now
    else:
        assert (result.json["covered_by"], result.json["run"]) == (None, 2)
        moved = {move["path"] for move in result.json["moved"]}
        assert moved == (set(second) or set(before)) - set(first)
    assert damaged(before, tree) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["--keep-aslr"], []),
        ([], ["--touch"]),
        (["--exclude", "lib"], []),
        ([], ["--engine", "builtin"]),
        (["--arena", "0x240000000-0x250000000"], ["--arena", "0x240000000-0x260000000"]),
    ],
)
def test_other_options_do_not_cover(
    rebaser: Rebaser, tree: Path, first: list[str], second: list[str]
) -> None:
    with asked_before(rebaser, tree, str(tree), *second) as go_on:
        assert rebaser.report("run", tree, *first)["run"] == 1
        result = go_on()
    assert result.status == 0, result.words
    assert result.json["covered_by"] is None
    assert overlaps(tree) == set()


def test_one_relative_path_is_two_in_two_folders(
    rebaser: Rebaser, tree: Path, tmp_path: Path
) -> None:
    # The run from the folder `one` keeps off nothing, that from `two` off the arena's first slots.
    low = 0x2_0001_0000
    add_dll(tmp_path / "one/others/a.dll", base=LINKERS)
    add_dll(tmp_path / "two/others/a.dll", base=low)
    words = [str(tree), "--avoid", "others"]
    with asked_before(rebaser, tree, *words, cwd=tmp_path / "two") as go_on:
        assert rebaser.report("run", *words, cwd=tmp_path / "one")["run"] == 1
        result = go_on()
    assert result.status == 0, result.words
    assert [int(move["old_base"], 16) for move in result.json["moved"]] == [low]


@pytest.mark.parametrize(
    ("first", "second", "covered"),
    [
        ("", "lib", True),
        ("lib", "lib", True),
        ("lib", "lib/deeper", True),
        ("lib", "", False),
        ("lib/deeper", "lib", False),
        ("bin", "lib", False),
    ],
)
def test_nested_scopes(
    rebaser: Rebaser, tree: Path, first: str, second: str, covered: bool
) -> None:
    made_a_tree(tree)
    add_dlls(tree, 2, first=20, folder="lib/deeper")
    with asked_before(rebaser, tree, str(tree / second)) as go_on:
        assert rebaser.report("run", tree / first)["run"] == 1
        result = go_on()
    assert result.status == 0, result.words
    assert result.json["covered_by"] == (1 if covered else None)
    assert result.json["root"] == str(tree)


def test_a_scope_and_names_in_it(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    made_a_tree(tree)
    names = naming(tmp_path, "x010.dll", "x011.dll")  # relative to the folder that is asked for
    with asked_before(rebaser, tree, str(tree / "lib"), *names) as go_on:
        report = rebaser.report("run", tree / "lib")
        assert {move["path"] for move in report["moved"]} == {
            f"lib/x01{number}.dll" for number in range(4)
        }
        assert go_on().json["covered_by"] == 1


def test_a_run_that_began_before_does_not_cover(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 250)
    before = contents(tree)
    with stopped_at_work(rebaser, tree, str(tree)) as first:
        # It may have looked here already: what we were asked for came after its number.
        before["bin/late.dll"] = add_dll(tree / "bin/late.dll")
        second = rebaser.start("run", str(tree), "--json")
        said = first_line(second)
        assert f" pid {first.pid} " in said
        first.send_signal(signal.SIGCONT)
        assert finished(first).status == 0
        result = finished(second)
    assert result.status == 0, result.words
    assert result.json["covered_by"] is None
    assert overlaps(tree) == set()
    assert damaged(before, tree) == []


def test_a_killed_run_does_not_cover(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 250)
    before = contents(tree)
    with asked_before(rebaser, tree, str(tree)) as go_on:
        with stopped_at_work(rebaser, tree, str(tree)) as first:
            first.kill()
            finished(first)
        result = go_on()
    assert result.status == 0, result.words
    assert (result.json["covered_by"], result.json["run"]) == (None, 2)
    assert json.loads((tree / RUNS / "1.json").read_bytes())["finished"] is None
    assert overlaps(tree) == set()
    assert damaged(before, tree) == []
    assert left_over(tree) == []


def test_a_run_that_found_no_room_does_not_cover(rebaser: Rebaser, tree: Path) -> None:
    words = [str(tree), "--arena", "0x240000000-0x240010000"]
    with asked_before(rebaser, tree, *words) as go_on:
        assert rebaser("run", *words).status == 1
        result = go_on()
    assert result.status == 1
    assert "no room left" in result.err


def test_the_status_is_that_of_our_own_images(rebaser: Rebaser, tree: Path, tmp_path: Path) -> None:
    # Two signed images at one base: they are not moved, and their overlap is left.
    at = len(add_dll(tree / "signed/one.dll"))
    for name in ("one", "two"):
        add_dll(tree / f"signed/{name}.dll", overlay=bytes(256), directories={4: (at, 256)})
    cases = {"bin/x001.dll": 0, "signed/one.dll": 1, "signed/two.dll": 1}
    for name, status in cases.items():
        fresh = tmp_path / name.replace("/", "-")
        shutil.copytree(tree, fresh)
        names = naming(tmp_path, name, "lib/x010.dll")
        with asked_before(rebaser, fresh, str(fresh), "--strict", *names) as go_on:
            assert rebaser("run", fresh, "--strict").status == 1
            result = go_on()
        assert result.json["covered_by"] == 1
        assert result.status == status, result.words
        assert bool(result.json["overlaps"]) == bool(status)


def test_two_trees_with_one_state_folder(rebaser: Rebaser, tmp_path: Path) -> None:
    one, two = make_tree(tmp_path / "one"), make_tree(tmp_path / "two")
    where = ["--state-dir", str(tmp_path / "state")]
    with asked_before(rebaser, one, str(one), *where) as go_on:
        assert rebaser.report("run", two, *where)["run"] == 1
        result = go_on()
    assert result.status == 0, result.words
    assert result.json["covered_by"] is None
    assert overlaps(one) == overlaps(two) == set()


@pytest.mark.slow
def test_two_trees_with_one_state_folder_at_once(rebaser: Rebaser, tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / name, 60) for name in ("one", "two", "three")]
    before = [contents(tree) for tree in trees]
    where = ["--state-dir", str(tmp_path / "state")]
    running = [rebaser.start("run", str(tree), *where) for tree in trees]
    for child, tree, old in zip(running, trees, before):
        result = finished(child)
        assert result.status == 0, result.words
        assert overlaps(tree) == set()
        assert damaged(old, tree) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_another_users_run_does_not_cover(rebaser: Rebaser, tree: Path) -> None:
    with asked_before(rebaser, tree, str(tree)) as go_on:
        record = tree / RUNS / "1.json"
        assert rebaser("run", tree).status == 0
        # As if that run had been another user's, who may not write here.
        text = record.read_text()
        assert "user=0 " in text
        record.write_text(text.replace("user=0 ", "user=65534 "))
        result = go_on()
    assert (result.status, result.json["covered_by"]) == (0, None)


DAMAGE = {
    "empty": b"",
    "cut": b'{"number": 1, "began"',
    "another version's": b'{"version": 2, "number": 1, "finished": "2026-01-01T00:00:00Z"}',
    "a list": b"[]",
    "bytes": bytes(range(256)),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_record_does_not_cover(rebaser: Rebaser, tree: Path, data: bytes) -> None:
    with asked_before(rebaser, tree, str(tree)) as go_on:
        assert rebaser("run", tree).status == 0
        (tree / RUNS / "1.json").write_bytes(data)
        result = go_on()
    assert result.status == 0, result.words
    assert result.json["covered_by"] is None
    assert result.json["moved"] == []


def next_tick() -> float:
    """Return the time once it has moved on: Cygwin's clock does so every 16 ms."""
    now = time.monotonic()
    while time.monotonic() == now:
        pass
    return time.monotonic()


class TestRecords:
    """The numbers and the records, without processes."""

    @pytest.fixture
    def state(self, tmp_path: Path) -> State:
        state = State(str(tmp_path / "state"), str(tmp_path))
        state.make()
        return state

    @pytest.mark.timeout(400)  # 80 records are slow under Wine
    def test_the_numbers_go_up_and_the_old_ones_go(self, state: State) -> None:
        for number in range(1, 41):
            asked = records.Asked(records.newest_number(state), time.monotonic())
            record = records.begin(state, Request(""), next_tick())
            assert record.number == number
            assert records.covering(state, Request(""), asked) is None
            records.finish(state, record, DONE)
            assert records.covering(state, Request(""), asked) is not None
            assert records.covering(state, Request(""), asked._replace(newest=number)) is None
            later = asked._replace(clock=time.monotonic())  # when its scan had begun
            assert records.covering(state, Request(""), later) is None
        kept = sorted(record.number for record in records.newest_first(state))
        assert kept == list(range(11, 41))

    def test_what_was_left_to_do_is_told_to_who_asked_for_just_that(self, state: State) -> None:
        """Whether it can be done by moving what another was asked for, the record does not say."""
        group = Group(0x8664, 0, 1 << 16, ("signed.dll", "other.dll"), "run")
        record = records.begin(state, Request(""), next_tick())
        records.finish(state, record, DONE._replace(overlaps=(group,), others=3))
        asked = records.Asked(0, 0.0)
        named = Request("", only=frozenset(("signed.dll",)))
        assert records.covering(state, named, asked) is None
        found = records.covering(state, Request(""), asked)
        assert found is not None
        assert (found.overlaps, found.others) == ((group,), 3)

    def test_cleared_away_while_a_run_is_at_work(self, state: State) -> None:
        for _ in range(5):
            record = records.begin(state, Request(""), time.monotonic())
        shutil.rmtree(state.runs)
        os.mkdir(state.runs)
        asked = records.Asked(records.newest_number(state), 0.0)
        records.finish(state, record, DONE)
        assert records.covering(state, Request(""), asked) is None

    def test_records_that_cannot_be_listed(self, state: State) -> None:
        records.finish(state, records.begin(state, Request(""), 1.0), DONE)
        os.rename(state.runs, f"{state.folder}/away")
        os.symlink("runs", state.runs)  # a link to itself: ELOOP, for root too
        asked = records.Asked(records.newest_number(state), 0.0)
        os.unlink(state.runs)
        os.rename(f"{state.folder}/away", state.runs)
        assert records.covering(state, Request(""), asked) is None

    def test_what_is_no_record(self, state: State) -> None:
        for name in ("x.json", "7", "07.json", "-1.json", "٣.json", "3.json.tmp"):
            Path(state.runs, name).write_text("{}")
        os.mkdir(f"{state.runs}/9.json")
        assert records.newest_number(state) == 9
        assert list(records.newest_first(state)) == []
        assert records.begin(state, Request(""), 0.0).number == 10
