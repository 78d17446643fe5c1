"""sage-rebase: SageMath's sage-rebase.sh, its arguments and exit statuses."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from protocol import Shell, held_here, lock_file
from trees import HERE, Rebaser, Result, add_dll, contents, damaged, listing, make_tree, overlaps

pytestmark = pytest.mark.timeout(100)


def is_done(tree: Path, before: dict[str, bytes]) -> bool:
    """Whether all work was done, and well."""
    assert damaged(before, tree) == []
    return not overlaps(tree)


@pytest.mark.parametrize("script", ['sage-rebase "$1"', "SAGE_LOCAL=$1 exec sage-rebase.sh"])
def test_names_the_tree(sh: Shell, tree: Path, script: str) -> None:
    before = contents(tree)
    result = sh(script, tree)
    assert result.status == 0, result.words
    assert is_done(tree, before)
    again = sh(script, tree)
    assert again.status == 0
    assert "nothing to do" in again.out


def test_names_that_sage_rebase_sh_could_not(sh: Shell, tmp_path: Path) -> None:
    # There a DLL in the current folder broke the search, and a blank in a name the list.
    tree = make_tree(tmp_path / "a tree [x] *")
    add_dll(tree / "bin/two words.dll")
    add_dll(tree / "bin/-n.dll")
    add_dll(tree / "here.dll")
    before = contents(tree)
    result = sh('cd "$1" && sage-rebase "$1"', tree)
    assert result.status == 0, result.words
    assert is_done(tree, before)


def test_flags_of_rebase(sh: Shell, tree: Path) -> None:
    dll = tree / "bin/x001.dll"
    os.utime(dll, ns=(10**18, 10**18))
    result = sh('sage-rebase "$1" -- -v -n --touch -b 0x400000000', tree)
    assert result.status == 0, result.words
    assert "KiB  bin/x001.dll" in result.out
    assert result.err.count("passed over") == 2
    assert "the flag -b of Cygwin's rebase is passed over" in result.err
    assert dll.stat().st_mtime_ns != 10**18


def test_quiet(sh: Shell, tree: Path) -> None:
    result = sh('sage-rebase "$1" -- -q -q', tree)
    assert (result.status, result.out, result.err) == (0, "", "")


def test_usage(sh: Shell, tree: Path) -> None:
    before = listing(tree)
    assert sh("sage-rebase --help").out.startswith("usage: sage-rebase [--all] [DIR]")
    for words in ('"$1" "$1"', '--everything "$1"', '"$1/nowhere"', "", "-- -v -q"):
        result = sh(f"sage-rebase {words}", tree)
        assert result.status == 2, (words, result.words)
        assert result.err
        assert "\\x0a" not in result.err
    assert "\nusage: sage-rebase [--all]" in sh("sage-rebase --bogus").err
    assert listing(tree) == before


@pytest.mark.parametrize("operation", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_never_waits(rebaser: Rebaser, sh: Shell, tree: Path, operation: int) -> None:
    before = listing(tree)
    with held_here(lock_file(tree), operation):
        before = listing(tree)
        result = sh('sage-rebase "$1"', tree)
    assert result.status == 75
    assert f"pid {os.getpid()} " in result.err
    assert "--wait" not in result.err
    assert listing(tree) == before


def test_an_overlap_that_is_left(sh: Shell, tree: Path) -> None:
    at = len(add_dll(tree / "signed/one.dll"))
    for name in ("one", "two"):
        add_dll(tree / f"signed/{name}.dll", overlay=bytes(256), directories={4: (at, 256)})
    result = sh('sage-rebase "$1"', tree)
    assert result.status == 0
    assert "2 signed DLLs still share one address range" in result.out
    assert "(signed/one.dll, signed/two.dll): has an Authenticode signature" in result.out


class TestAll:
    """--all: Cygwin's own database is told."""

    def programs(self, folder: Path, status: int = 0) -> Path:
        """Return a folder with programs that write down how they were called."""
        folder.mkdir()
        for name in ("rebase", "peflags"):
            program = folder / name
            program.write_text(
                "#!/bin/sh\n"
                f'printf "%s\\n" "${{0##*/}}" "$@" >>{folder}/words\n'
                f'for word do [ ! -f "$word" ] || cat "$word" >>{folder}/list; done\n'
                f"exit {status}\n"
            )
            program.chmod(0o755)
        return folder

    def run(self, sh: Shell, programs: Path, tree: Path) -> Result:
        return sh('PATH=$2:$PATH exec sage-rebase --all "$1"', tree, programs)

    def test_recorded(self, sh: Shell, tree: Path, tmp_path: Path) -> None:
        programs = self.programs(tmp_path / "programs")
        done = self.run(sh, programs, tree)
        assert done.status == 0, done.err
        words = (programs / "words").read_text().split("\n")
        assert words[0] == "rebase"
        assert "-M" in words
        listed = (programs / "list").read_bytes()
        assert all(f"x00{number}.dll".encode() in listed for number in range(6))
        assert overlaps(tree) == set()

    def test_it_fails(self, sh: Shell, tree: Path, tmp_path: Path) -> None:
        done = self.run(sh, self.programs(tmp_path / "programs", status=2), tree)
        assert done.status == 1
        assert "sage-rebase --all: " in done.err
        assert overlaps(tree) == set()

    def test_there_is_no_rebase(self, sh: Shell, tree: Path, tmp_path: Path) -> None:
        done = self.run(sh, tmp_path, tree)
        assert done.status == 1
        assert "rebase was not found; nothing was recorded" in done.err


@pytest.mark.parametrize("name", ["sage-rebase", "sage-rebase.sh"])
def test_from_the_checkout(sh: Shell, tree: Path, tmp_path: Path, name: str) -> None:
    ready = HERE / ".venv/ready"
    if not ready.exists() or ready.stat().st_mtime < (HERE / "pyproject.toml").stat().st_mtime:
        pytest.skip("the checkout's own environment is not made: run bin/rebaser --version")
    link = tmp_path / "linked" / name
    link.parent.mkdir()
    link.symlink_to(HERE / "bin" / name)
    before = contents(tree)
    for program in (HERE / "bin" / name, link):
        result = sh('cd / && sage-flock -x "$2" "$3" "$1"', tree, lock_file(tree), program)
        assert result.status == 0, result.words
    assert is_done(tree, before)
