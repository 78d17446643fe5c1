"""`rebaser check` tells what `rebaser run` would do, and the command that it prints cures."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pe
import pytest
from protocol import made_a_tree
from trees import (
    FLOOR,
    Rebaser,
    Result,
    add_dll,
    add_dlls,
    bases,
    clean_environment,
    make_tree,
)
from users import ROOT_ONLY, as_nobody

from rebaser.check import check
from rebaser.run import run
from rebaser.tree import find_tree

SLOT = 0x10000
SIGNED = {4: (0x400, 8)}  # the security directory: a file offset, not an RVA


def cure(result: Result, rebaser: Rebaser) -> None:
    """Run the commands that were printed."""
    commands = re.findall(
        r"^ *(?:BREAKS.*\. )?(rebaser run .*?)(?: moves \d+.*)?$", result.out, re.M
    )
    assert commands, result.words
    for command in commands:
        assert rebaser(*shlex.split(command)[1:], "--engine", "builtin").status == 0


def would_move(rebaser: Rebaser, *paths: Path | str) -> dict[str, str]:
    report = rebaser.report("check", *paths, status=1)
    return {one["path"]: one["new_base"] for one in report["would_move"]}


class TestThePlanIsThatOfRun:
    def test_a_newcomer_moves_although_it_is_larger(self, rebaser: Rebaser, tmp_path: Path) -> None:
        tree = make_tree(tmp_path / "tree", 0)
        add_dll(tree / "bin/old.dll", FLOOR)
        assert rebaser("run", tree).status == 0
        add_dll(tree / "bin/a-new.dll", FLOOR, data_size=0x8000)
        planned = rebaser.report("run", tree, "--dry-run")["moved"]
        assert [move["path"] for move in planned] == ["bin/a-new.dll"]
        found = would_move(rebaser, tree)
        assert found == {str(tree / move["path"]): move["new_base"] for move in planned}

    def test_a_nested_folder_keeps_off_the_outer_tree(
        self, rebaser: Rebaser, tmp_path: Path
    ) -> None:
        tree = make_tree(tmp_path / "tree", 0)
        add_dll(tree / "bin/outer.dll", FLOOR)
        assert rebaser("run", tree).status == 0
        (tree / "var/lib/rebaser").mkdir(exist_ok=True)
        add_dll(tree / "venv/x.dll", FLOOR, data_size=0x8000)
        add_dll(tree / "other/unread.dll", 0x1234, data_size=0x8000)  # not asked about
        found = would_move(rebaser, tree / "venv")
        moved = rebaser.report("run", tree / "venv", "--dry-run")["moved"]
        assert found == {str(tree / move["path"]): move["new_base"] for move in moved}
        text = rebaser("check", tree / "venv", "-v").out
        assert "bin/outer.dll (not asked about)" in text
        assert "unread.dll" not in text
        assert text.startswith("BREAKS FORK: 1 of 1 DLL. ")

    @pytest.mark.parametrize("options", [[], ["--suffix", "EXE"]])
    def test_a_program_is_in_the_way_where_a_run_looks_at_it(
        self, rebaser: Rebaser, tmp_path: Path, options: list[str]
    ) -> None:
        tree = make_tree(tmp_path / "tree", 0)
        add_dll(tree / "bin/x.exe", FLOOR, characteristics=0x22, dll_characteristics=0)
        add_dll(tree / "bin/x.dll", FLOOR, dll_characteristics=0)
        planned = rebaser.report("run", tree, "--dry-run", *options)["moved"]
        assert len(planned) == len(options) // 2
        found = rebaser.report("check", tree, *options)["would_move"]
        assert [(move["path"], move["new_base"]) for move in found] == [
            (str(tree / move["path"]), move["new_base"]) for move in planned
        ]

    @pytest.mark.parametrize("seed", range(25))
    def test_whatever_lies_in_a_tree(self, tmp_path: Path, seed: int) -> None:
        random = Random(seed)
        shapes: list[Any] = [{}, {}, {"dll_characteristics": 0}, {"directories": SIGNED}]
        shapes += [{"characteristics": 0x2023}, {"characteristics": 0x22}]  # stripped; a program
        for number in range(15):
            folder = random.choice(("bin", "lib/x", "var/tmp", "venv"))
            name = f"{number}{random.choice(('.dll', '.so', '.exe', '.EXE', '.txt'))}"
            base = random.choice((FLOOR, 0x1_8000_0000, 0x4_0000_0000)) + SLOT * random.randrange(3)
            path = tmp_path / folder / name
            data = add_dll(path, base, data_size=random.randrange(0x28000), **random.choice(shapes))
            if not random.randrange(8):
                path.write_bytes(data[: len(data) // 2])
            if not random.randrange(8):
                os.link(path, path.with_name(f"again-{number}{random.choice(('.dll', '.exe'))}"))
        planned = run(find_tree(str(tmp_path)), dry_run=True)
        found = check([str(tmp_path)])
        moves = {move.path: (move.new_base, move.clear_dynamic_base) for move in planned.moved}
        assert moves == {
            os.path.relpath(move.path, tmp_path): (move.new_base, move.clear_dynamic_base)
            for move in found.moves.values()
        }
        left = {path for group in planned.overlaps for path in group.paths}
        assert {str(tmp_path / path) for path in left} <= found.broken

    def test_a_folder_that_its_outer_tree_leaves_out(self, rebaser: Rebaser, tree: Path) -> None:
        assert rebaser("run", tree, "--engine", "builtin").status == 0
        add_dlls(tree / "var/tmp", 2)
        result = rebaser("check", tree / "var/tmp")
        assert result.status == 1
        assert result.out.startswith("BREAKS FORK: 2 of 2 DLLs. rebaser run ")
        cure(result, rebaser)
        assert rebaser("check", tree / "var/tmp").status == 0

    def test_two_trees_are_moved_apart(self, rebaser: Rebaser, tmp_path: Path) -> None:
        for name in "ab":
            add_dll(tmp_path / name / f"{name}.dll", FLOOR)
        result = rebaser("check", tmp_path / "a", tmp_path / "b")
        cure(result, rebaser)
        assert rebaser("check", tmp_path / "a", tmp_path / "b").status == 0
        assert bases(tmp_path / "b") == {"b.dll": FLOOR}


def test_the_advice_repeats_the_options(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    other = tmp_path / "it's another"
    add_dll(other / "o.dll", FLOOR)
    add_dll(tree / "bin/x.dll", FLOOR)
    add_dll(tree / "bin/y.odd", FLOOR + 8 * SLOT)
    add_dll(tree / "bin/z.odd", FLOOR + 8 * SLOT)
    options = ["--avoid", str(other), "--suffix", "odd", "--exclude", "no *"]
    result = rebaser("check", tree, *options)
    assert result.status == 1
    cure(result, rebaser)
    assert rebaser("check", tree, *options).status == 0


def test_the_advice_repeats_where_the_state_is(rebaser: Rebaser, tmp_path: Path) -> None:
    """What a run saw there stays, and newcomers give way: a run without it moves the other."""
    tree, state = make_tree(tmp_path / "tree", 0), ["--state-dir", str(tmp_path / "state")]
    add_dll(tree / "b.dll", FLOOR)
    rebaser.report("run", tree, *state)
    add_dll(tree / "a.dll", FLOOR)
    report = rebaser.report("check", tree, *state, status=1)
    assert [move["path"] for move in report["would_move"]] == [str(tree / "a.dll")]
    assert report["runs"] == [f"rebaser run {tree} --state-dir={tmp_path}/state"]
    cure(rebaser("check", tree, *state), rebaser)
    assert bases(tree)["b.dll"] == FLOOR


def test_two_folders_of_a_tree_are_planned_after_each_other(
    rebaser: Rebaser, tmp_path: Path
) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    made_a_tree(tree)
    for name in "abc":
        add_dll(tree / f"{name}/{name}.dll")
    folders = [tree / "a", tree / "b"]
    moves = rebaser.report("check", *folders, status=1)["would_move"]
    assert len(moves) == len({move["new_base"] for move in moves}) == 2
    cure(rebaser("check", *folders), rebaser)
    assert {f"0x{base:x}" for base in bases(tree).values()} >= {move["new_base"] for move in moves}


class TestWhatIsNoImage:
    @pytest.mark.parametrize("name", ["x.c", "empty.dll", "fifo.dll", "/dev/null"])
    def test_it_is_named_with_its_reason(self, rebaser: Rebaser, tmp_path: Path, name: str) -> None:
        (tmp_path / "x.c").write_text("int main;")
        (tmp_path / "empty.dll").write_text("")
        os.mkfifo(tmp_path / "fifo.dll")
        result = rebaser("check", tmp_path / name)
        reason = {"x.c": "not a PE image", "empty.dll": "empty"}.get(name, "not a regular file")
        assert result.status == 1
        assert f"cannot be judged: {tmp_path / name}: {reason}" in result.out
        assert "but 1 file could not be judged" in result.out


@ROOT_ONLY
def test_what_may_not_be_read(rebaser: Rebaser, open_tree: Path) -> None:
    assert rebaser("run", open_tree, "--engine", "builtin").status == 0
    (open_tree / "bin/x000.dll").chmod(0)
    (open_tree / "closed").mkdir(0o700)
    result = as_nobody(rebaser, "check", open_tree)
    assert result.status == 1
    assert result.out.startswith(
        "nothing found in 5 DLLs that breaks fork, but 2 files could not be judged\n"
    )
    assert "bin/x000.dll: cannot be read (Permission denied)" in result.out
    assert "closed: cannot be listed (Permission denied)" in result.out


class TestWhatNoRebaseCures:
    @pytest.mark.parametrize(
        ("shape", "reason"),
        [
            ({"base": 0x1_0000}, "based below 4 GiB"),
            ({"base": 0x1_8000_0000, "directories": SIGNED}, "--force-signed"),
            ({"base": 0x1_8000_0000, "characteristics": 0x2023}, "stripped"),
        ],
    )
    def test_its_reason_and_the_next_step(
        self, rebaser: Rebaser, tmp_path: Path, shape: Any, reason: str
    ) -> None:
        (tmp_path / "x.dll").write_bytes(pe.build(**shape))
        result = rebaser("check", tmp_path)
        assert result.status == 1
        assert result.out.startswith("BREAKS FORK: 1 of 1 DLL. 1 ")
        _, _, incurable = result.out.partition("no run moves ")
        assert incurable.count(reason) == 1, result.words
        assert "rebaser run" not in result.out

    def test_of_an_overlap_the_one_that_can_moves(self, rebaser: Rebaser, tmp_path: Path) -> None:
        (tmp_path / "x.dll").write_bytes(
            pe.build(base=FLOOR, characteristics=0x2023, dll_characteristics=0)
        )
        add_dll(tmp_path / "y.dll", FLOOR, data_size=0x8000)
        result = rebaser("check", tmp_path)
        assert "no run moves" not in result.out
        cure(result, rebaser)
        assert rebaser("check", tmp_path).status == 0

    def test_an_overlap_of_two_that_stay(self, rebaser: Rebaser, tmp_path: Path) -> None:
        for name in ("x.dll", "y.dll"):
            (tmp_path / name).write_bytes(
                pe.build(base=FLOOR, characteristics=0x2023, dll_characteristics=0)
            )
        result = rebaser("check", tmp_path)
        assert result.out.startswith("BREAKS FORK: 2 of 2 DLLs. 2 stay\n")
        assert "no run moves 2 files (x.dll, y.dll): its relocations were stripped" in result.out
        assert "link it again" in result.out


@pytest.mark.parametrize("name", ["", "bin/x.EXE"])
@pytest.mark.parametrize(("runtime", "breaks"), [(b"cygwin1.dll", True), (b"msvcrt.dll", False)])
def test_programs_with_high_entropy(
    rebaser: Rebaser, tmp_path: Path, name: str, runtime: bytes, breaks: bool
) -> None:
    add_dll(tmp_path / "bin/x.EXE", 0x1_0040_0000, characteristics=0x22, dll_characteristics=0x20)
    with open(tmp_path / "bin/x.EXE", "ab") as file:
        file.write(runtime)
    result = rebaser("check", tmp_path / name)
    assert result.status == int(breaks)
    assert ("--high-entropy-va=0" in result.out) == breaks


@pytest.mark.parametrize("quiet", [False, True], ids=["racy", "quiet"])
def test_programs_of_a_tree_that_a_run_has_seen(
    rebaser: Rebaser, tmp_path: Path, quiet: bool
) -> None:
    """What came, went or changed in place is seen, whether or not its folder's times tell."""
    tree = make_tree(tmp_path / "tree", 2)
    for name in ("bin/gone.exe", "bin/later.exe", "old/deep/bad.exe", "sound.exe"):
        add_program(tree / name, bad="gone" in name or "bad" in name)
    assert rebaser("run", tree).status == 0
    if quiet:
        time.sleep(2.2)  # until nothing here is racy any more
        assert rebaser("run", tree).status == 0

    def found(path: str = "") -> list[str]:
        result = rebaser.report("check", tree / path, status=1)
        return [os.path.relpath(one["path"], tree) for one in result["incurable"]]

    assert found() == ["bin/gone.exe", "old/deep/bad.exe"]
    assert found("old") == ["old/deep/bad.exe"]
    os.rename(tree / "bin/gone.exe", tmp_path / "gone.exe")
    add_program(tree / "bin/new.EXE", bad=True)
    with open(tree / "bin/later.exe", "r+b") as file:
        file.write(program(bad=True))
    add_program(tree / "unknown/new.exe", bad=True)
    os.symlink(tree / "bin/new.EXE", tree / "link.exe")
    (tree / "folder.exe").mkdir()
    now = ["bin/later.exe", "bin/new.EXE", "old/deep/bad.exe", "unknown/new.exe"]
    assert found() == now
    assert rebaser("run", tree).status == 0
    assert found() == now
    os.rename(tree / "old", tree / "moved")
    for path in (tree / "bin", tree / "unknown"):
        shutil.rmtree(path)
    assert found() == ["moved/deep/bad.exe"]


def test_a_program_that_is_a_file_of_interest_too(rebaser: Rebaser, tmp_path: Path) -> None:
    add_program(tmp_path / "x.exe", bad=True)
    assert rebaser("run", tmp_path, "--suffix", ".EXE").status == 0
    for words in (["--suffix", ".exe"], []):
        found = rebaser.report("check", tmp_path, *words, status=1)
        assert [one["path"] for one in found["incurable"]] == [str(tmp_path / "x.exe")]


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: install strace")
def test_no_folder_is_listed_again_where_nothing_changed(rebaser: Rebaser, tmp_path: Path) -> None:
    tree, log = make_tree(tmp_path / "tree", 2), tmp_path / "log"
    for name in ("old/x.exe", "old/deep/y.exe", "old/deep/z/readme"):
        add_program(tree / name, bad=False)

    def listed() -> list[str]:
        strace = ["strace", "-f", "-y", "-o", str(log), "-e", "trace=getdents64"]
        result = rebaser("check", tree, before=strace)
        if "ptrace" in result.err.lower():
            pytest.skip("strace may not trace here")
        assert result.status <= 1, result.words
        return sorted(set(re.findall(rf"<{re.escape(str(tree))}/(old[^>]*)>", log.read_text())))

    assert listed() == ["old", "old/deep", "old/deep/z"]
    assert rebaser("run", tree, "--engine", "builtin").status == 0
    time.sleep(2.2)  # until what the run itself has changed is no longer racy
    assert rebaser("run", tree, "--engine", "builtin").status == 0
    assert listed() == []
    add_program(tree / "old/deep/new.exe", bad=False)
    assert listed() == ["old/deep"]


def program(*, bad: bool) -> bytes:
    """Return a program of Cygwin's, which HIGH_ENTROPY_VA is bad for."""
    flags = 0x20 if bad else 0
    made = pe.build(base=0x1_0040_0000, characteristics=0x22, dll_characteristics=flags)
    return made + b"cygwin1.dll"


def add_program(path: Path, *, bad: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(program(bad=bad))


def test_among_many_overlaps_those_that_stay_are_found(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dlls(tmp_path, 150)  # 11,175 pairs
    for name in ("y.dll", "z.dll"):
        add_dll(tmp_path / name, characteristics=0x2023)
    result = rebaser("check", tmp_path)
    assert result.out.startswith("BREAKS FORK: 152 of 152 DLLs. rebaser run ")
    assert "moves 150; 2 stay\n" in result.out
    assert "no run moves 2 files (y.dll, z.dll): " in result.out
    left = rebaser("run", tmp_path, "--engine", "builtin")
    assert "2 DLLs still share one address range" in left.out


def test_two_names_of_one_file_are_no_overlap(rebaser: Rebaser, tmp_path: Path) -> None:
    add_dll(tmp_path / "x.dll", FLOOR, dll_characteristics=0)
    os.link(tmp_path / "x.dll", tmp_path / "y.dll")
    for words in ([tmp_path], [tmp_path / "x.dll", tmp_path / "y.dll"]):
        result = rebaser("check", *words)
        assert (result.status, result.out) == (0, "nothing here breaks fork: 1 DLL\n")


def test_globs_are_relative_to_the_folder_that_was_named(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    (tree / "var/lib/rebaser").mkdir(parents=True)
    for name in "ab":
        add_dll(tree / "venv/lib" / f"{name}.dll", FLOOR, dll_characteristics=0)
    assert rebaser("check", tree / "venv").status == 1
    moves = rebaser.report("check", tree / "venv", "--exclude", "lib/b*", status=1)["would_move"]
    assert [move["path"] for move in moves] == [str(tree / "venv/lib/a.dll")]


def test_the_options_of_a_tree_hold_for_a_check(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 0)
    for name in "ab":
        add_dll(tree / f"bin/{name}.dll", FLOOR, directories=SIGNED)
    assert rebaser("check", tree).out.startswith(
        "BREAKS FORK: 2 of 2 DLLs. 2 are signed and stay\n"
    )
    (tree / "var/lib/rebaser").mkdir(parents=True)
    (tree / "var/lib/rebaser/options").write_text("--force-signed\n")
    result = rebaser("check", tree)
    assert f"rebaser run {tree} moves 2\n" in result.out, "the run reads them too"
    assert f"rebaser run {tree} moves them apart" in rebaser("map", tree).out
    cure(result, rebaser)
    assert rebaser("check", tree).status == 0


def test_the_options_of_one_tree_hold_for_several_folders(rebaser: Rebaser, tmp_path: Path) -> None:
    trees = [make_tree(tmp_path / name, 2) for name in "ab"]
    for tree in trees:
        made_a_tree(tree)
        (tree / "var/lib/rebaser/options").write_text("--exclude bin/x000*\n")
    moves = rebaser.report("check", trees[0], trees[0] / "bin", status=1)["would_move"]
    assert [Path(move["path"]).name for move in moves] == ["x001.dll"]
    result = rebaser("check", *trees)
    assert "x000" in result.out
    assert "several trees are named: what stands in the options of each is not " in result.err


@pytest.mark.parametrize("left", [0x40, 100, 0x1000])
def test_a_tree_that_could_not_be_judged_is_not_called_sound(
    rebaser: Rebaser, tmp_path: Path, left: int
) -> None:
    data = add_dll(tmp_path / "x.dll", FLOOR, dll_characteristics=0, data_size=0x4000)
    (tmp_path / "x.dll").write_bytes(data[:left])
    result = rebaser("check", tmp_path)
    assert result.status == 1
    assert result.out.startswith("nothing found in 0 DLLs that breaks fork, but 1 file could not")
    assert "cannot be judged: x.dll: truncated or still being written: " in result.out
    assert rebaser.report("check", tmp_path, status=1)["unjudged"] == [str(tmp_path / "x.dll")]


def test_what_a_run_has_seen_is_not_read_again(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 30)
    add_program(tree / "lib/x.exe", bad=False)
    assert rebaser("run", tree).status == 0
    assert rebaser("run", tree).status == 0
    for path in tree.glob("bin/*"):
        os.utime(path, ns=(10**18, 10**18))
    read = tmp_path / "read.py"
    read.write_text(
        "import cygwin.image, sys\n"
        "count, original = [], cygwin.image.read_image\n"
        "def counted(*words, **options):\n"
        "    count.append(1)\n"
        "    return original(*words, **options)\n"
        "cygwin.image.read_image = counted\n"
        "from rebaser.check import check\n"
        "check([sys.argv[1]])\n"
        "print(len(count))\n"
    )
    count = [sys.executable, str(read), str(tree)]

    def images_read() -> int:
        done = subprocess.run(count, env=clean_environment(), capture_output=True, check=True)
        return int(done.stdout)

    assert images_read() == 30
    time.sleep(2.2)  # what was touched a moment ago is trusted by the run after
    assert rebaser("run", tree).status == 0
    assert images_read() == 0


@pytest.mark.slow
def test_twenty_thousand_dlls_at_one_address_are_all_named(
    rebaser: Rebaser, in_memory: Path
) -> None:
    """Their pairs would be two hundred millions; a group names each once."""
    root = in_memory / "tree"
    data = add_dll(root / "d0/x0.dll", dll_characteristics=0)
    for folder in range(20):
        (root / f"d{folder}").mkdir(exist_ok=True)
        for number in range(1000):
            (root / f"d{folder}/x{number}.dll").write_bytes(data)
    began = time.monotonic()
    (group,) = rebaser.report("check", root, status=1)["overlaps"]
    print(f"20,000 DLLs at one address: {time.monotonic() - began:.1f} s")
    assert len(set(group["paths"])) == 20_000
    assert group["cure"] == "run"
    assert rebaser("check", root).out.count("\n") < 25
