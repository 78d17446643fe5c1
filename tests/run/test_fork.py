"""The proof that matters: Cygwin's own fork fails before a run and works after it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cygwin_root import DYNLOAD, CygwinRoot, Forks

from cygwin.image import read_base, read_image
from cygwin.paths import host_path

pytestmark = [pytest.mark.cygwin, pytest.mark.slow, pytest.mark.timeout(600)]
ENGINES = pytest.mark.parametrize("engine", ["builtin", "cygwin"])


def rebaser(*words: str, status: int = 0) -> Any:
    """Run rebaser with --json, which must end with `status`; return its report."""
    done = subprocess.run(
        [sys.executable, "-m", "rebaser", *words, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, done.stderr + done.stdout
    return json.loads(done.stdout)


def run(root: CygwinRoot, *words: str) -> dict[str, Any]:
    """Run `rebaser run` on the root, which must leave nothing to be done."""
    report = rebaser("run", str(root.path), *words)
    assert isinstance(report, dict)
    return report


def base_of(file: Path) -> int:
    with file.open("rb") as opened:
        descriptor = opened.fileno()
        image = read_image(descriptor, file.stat().st_size)
        return read_base(descriptor, image.base_offset, image.base_width)


def contents(files: Sequence[Path]) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in files}


def assert_loaded_as_planned(root: CygwinRoot, forks: Forks, report: dict[str, Any]) -> None:
    """Assert that every DLL that was moved and is loaded lies at its new base."""
    planned = {move["path"]: int(move["new_base"], 16) for move in report["moved"]}
    loaded = {
        str(Path(host).relative_to(root.path)): base
        for name, base in forks.bases.items()
        if (host := host_path(name, str(root.path))) and Path(host).is_relative_to(root.path)
    }
    seen = planned.keys() & loaded.keys()
    assert f"{DYNLOAD}/_socket.dll" in seen
    assert {path: loaded[path] for path in seen} == {path: planned[path] for path in seen}


@ENGINES
def test_a_run_repairs_fork(cygwin_root: CygwinRoot, real_programs: str, engine: str) -> None:
    cygwin_root.collide()
    assert cygwin_root.forks().failed == 3
    report = run(cygwin_root, "--engine", engine)
    assert report["engine"] == engine
    assert report["engine_version"] == ("4.6.3" if engine == "cygwin" else None)
    assert report["overlaps"] == []
    forks = cygwin_root.forks()
    assert (forks.failed, forks.words) == (0, "")
    assert_loaded_as_planned(cygwin_root, forks, report)
    assert run(cygwin_root, "--engine", engine)["moved"] == []


@ENGINES
def test_one_slot_of_overlap(cygwin_root: CygwinRoot, real_programs: str, engine: str) -> None:
    # _socket has two slots; _ssl begins in the second.
    for name, base in (("_socket", "0x400000000"), ("_ssl", "0x400010000")):
        cygwin_root.rebase("-b", base, f"/usr/lib/python2.7/lib-dynload/{name}.dll")
    assert cygwin_root.forks().failed == 3
    report = run(cygwin_root, "--engine", engine)
    forks = cygwin_root.forks()
    assert forks.failed == 0
    assert_loaded_as_planned(cygwin_root, forks, report)


def test_one_package_at_a_time(cygwin_root: CygwinRoot) -> None:
    cygwin_root.collide()
    away = cygwin_root.path / "tmp" / "away"
    away.mkdir()
    needed = [f"{name}.dll" for name in ("_socket", "_ssl", "_json", "datetime", "math")]
    others = [f.name for f in cygwin_root.extensions() if f.name not in needed][:15]
    packages = [[name, *others[3 * i : 3 * i + 3]] for i, name in enumerate(needed)]
    for file in cygwin_root.extensions():
        file.rename(away / f"{file.name}.away")
    run(cygwin_root)
    there: list[str] = []
    for package in packages:
        for name in package:
            shutil.copy2(away / f"{name}.away", cygwin_root.path / DYNLOAD / name)
        report = run(cygwin_root)
        moved = {Path(move["path"]).name for move in report["moved"]}
        assert moved <= set(package), "a DLL that was in its place has been moved again"
        there += [name[:-4] for name in package if name in needed]
        assert cygwin_root.forks(",".join(there)).failed == 0


def test_both_engines_make_the_same_files(
    cygwin_root: CygwinRoot, real_programs: str, tmp_path: Path
) -> None:
    other = CygwinRoot(cygwin_root.path.parent / "other")
    for file in cygwin_root.images():
        copy = other.path / file.relative_to(cygwin_root.path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, copy)
    builtin = rebaser("run", str(other.path), "--engine", "builtin")
    cygwin = run(cygwin_root, "--engine", "cygwin")
    assert cygwin["failed"] == builtin["failed"] == []
    assert len(cygwin["moved"]) > 220
    assert cygwin["moved"] == builtin["moved"]
    for file in other.images():
        same = cygwin_root.path / file.relative_to(other.path)
        assert file.read_bytes() == same.read_bytes(), file


class TestDatabase:
    """A tree that Cygwin's own database knows: neither undoes the other's work."""

    @pytest.fixture
    def known(self, cygwin_root: CygwinRoot) -> CygwinRoot:
        """Return a root all of whose DLLs `rebase -s` has placed."""
        self.list_all(cygwin_root)
        cygwin_root.rebase("-s", "-b", "0x400000000", "-T", "/tmp/all")
        return cygwin_root

    @staticmethod
    def list_all(root: CygwinRoot) -> list[Path]:
        """Write the list of all images; return them."""
        files = root.images()
        root.write_list("all", files)
        return files

    @staticmethod
    def options(root: CygwinRoot) -> list[str]:
        database = root.path / "etc" / "rebase.db.x86_64"
        return ["--database", str(database), "--cygwin-root", str(root.path)]

    @staticmethod
    def add_package(root: CygwinRoot) -> list[Path]:
        """Add three DLLs at a base where others lie; return them."""
        there = root.extensions()
        new = [root.path / DYNLOAD / f"new_{number}.dll" for number in range(3)]
        for source, file in zip(there, new):
            shutil.copy2(source, file)
            root.rebase("-b", f"0x{base_of(there[9]):x}", root.name(file))
        return new

    def test_after_rebase_there_is_nothing_to_do(self, known: CygwinRoot) -> None:
        report = run(known, *self.options(known))
        assert report["moved"] == []
        rebaser("check", str(known.path), *self.options(known)[:2])

    def test_info_lists_what_rebase_wrote(self, known: CygwinRoot) -> None:
        listed = rebaser("info", "--db", self.options(known)[1])["images"]
        names = {known.name(file): file for file in known.images()}
        assert {line["path"] for line in listed} == names.keys()
        for line in listed:
            assert int(line["base"], 16) == base_of(names[line["path"]])

    def test_newcomers_move_and_nobody_else(self, known: CygwinRoot) -> None:
        before = contents(known.images())
        new = self.add_package(known)
        report = run(known, *self.options(known))
        moved = {known.path / move["path"] for move in report["moved"]}
        assert moved == set(new)
        assert contents(list(before)) == before

    def test_registered_newcomers_stay(self, known: CygwinRoot) -> None:
        new = self.add_package(known)
        run(known, *self.options(known))
        known.rebase("-M", "-T", known.write_list("new", new))
        before = contents(self.list_all(known))
        known.rebase("-s", "-T", "/tmp/all")
        assert contents(list(before)) == before
        assert run(known, *self.options(known))["moved"] == []

    def test_rebase_places_unknown_newcomers_and_then_all_rest(self, known: CygwinRoot) -> None:
        new = self.add_package(known)
        run(known, *self.options(known))
        before = contents(self.list_all(known))
        known.rebase("-s", "-T", "/tmp/all")
        after = contents(list(before))
        assert {file for file in before if before[file] != after[file]} <= set(new)
        assert run(known, *self.options(known))["moved"] == []
        assert contents(list(before)) == after

    def test_a_known_file_that_must_move_goes_home(self, known: CygwinRoot) -> None:
        one, two = known.extensions()[4:6]
        home = base_of(one)
        known.rebase("-b", f"0x{base_of(two):x}", known.name(one))
        report = run(known, *self.options(known))
        assert [known.path / move["path"] for move in report["moved"]] == [one]
        assert base_of(one) == home

    def test_check_sees_a_tree_that_lies_on_the_database(
        self, known: CygwinRoot, tmp_path: Path
    ) -> None:
        file = known.extensions()[4]
        shutil.copy2(file, tmp_path / "other.dll")
        database = str(known.path / "etc" / "rebase.db.x86_64")
        rebaser("check", str(tmp_path), "--database", database, status=1)
        rebaser("run", str(tmp_path), "--database", database)
        rebaser("check", str(tmp_path), "--database", database)
        assert base_of(tmp_path / "other.dll") != base_of(file)
