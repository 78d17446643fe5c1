"""Trees with mounts in them: one folder under two names, a system's own folders, bind mounts."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from trees import Rebaser, make_tree

Mount = Callable[..., None]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount something for the time of a test."""
    mounted: list[Path] = []

    def one(*words: str | Path) -> None:
        done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this machine lets root mount nothing: {done.stderr.strip()}")
        mounted.append(Path(words[-1]))

    yield one
    for place in reversed(mounted):
        subprocess.run(["umount", str(place)], check=True)


def test_one_folder_under_two_names(rebaser: Rebaser, mount: Mount, tmp_path: Path) -> None:
    """Cygwin mounts /usr/bin as /bin: a DLL there does not overlap itself."""
    root = make_tree(tmp_path / "tree", 2)
    (root / "usr bin").mkdir()
    mount("--bind", next(root.rglob("*.dll")).parent, root / "usr bin")
    first = rebaser("run", str(root), "--json")
    assert (first.status, len(first.json["moved"])) == (0, 2), first.words
    again = rebaser("run", str(root), "--json")
    assert (again.status, again.json["moved"]) == (0, []), again.words
    assert rebaser("check", str(root)).status == 0


def test_processes_are_no_files(rebaser: Rebaser, mount: Mount, tmp_path: Path) -> None:
    """/proc of a whole system is not walked; on Cygwin it would lead to the registry."""
    root = make_tree(tmp_path / "tree")
    (root / "proc").mkdir()
    mount("-t", "proc", "proc", root / "proc")
    done = rebaser("run", str(root), "--json")
    assert done.status == 0, done.words
    assert done.json["failed"] == []


def test_a_folder_called_proc_is_a_folder(rebaser: Rebaser, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", 2)
    next(root.rglob("*.dll")).parent.rename(root / "proc")
    assert len(rebaser("run", str(root), "--json").json["moved"]) == 2


def test_a_mount_of_the_same_file_system(rebaser: Rebaser, mount: Mount, tmp_path: Path) -> None:
    """A container's volume: nothing can be renamed from one mount to the other."""
    root = make_tree(tmp_path / "tree", 2)
    elsewhere = make_tree(tmp_path / "elsewhere", 2)
    (root / "a volume").mkdir()
    mount("--bind", elsewhere, root / "a volume")
    done = rebaser("run", str(root), "--json")
    assert (done.status, len(done.json["moved"])) == (0, 4), done.words
    assert not list(elsewhere.rglob(".rebaser"))
