"""rebaser run on trees of real DLLs: Cygwin's own, and over 300 of Windows wheels."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from trees import (
    Rebaser,
    add_dlls,
    bases,
    contents,
    copy_dlls,
    damaged,
    images,
    left_over,
    listing,
    overlaps,
)

pytestmark = pytest.mark.slow


def whole_job(rebaser: Rebaser, source: Path, root: Path, at_least: int) -> None:
    """Do the main job on a copy of a tree, and all that it must show."""
    root.mkdir()
    (root / "var").mkdir()
    copy_dlls(source, root)
    before = contents(root)
    assert len(before) >= at_least

    check = rebaser("check", root)
    assert check.status == 1, check.words[-2000:]

    planned = rebaser.report("run", root, "--dry-run")
    assert contents(root) == before
    report = rebaser.report("run", root)
    assert report["moved"] == planned["moved"]
    assert len(report["moved"]) >= at_least - 10
    assert damaged(before, root) == []
    assert overlaps(root) == set()
    assert left_over(root) == []
    assert report["failed"] == []
    moved = {move["path"]: move for move in report["moved"]}
    for path, image in images(root).items():
        if path in moved:
            assert image.base == int(moved[path]["new_base"], 16)
            assert image.base > 0x2_0000_0000
            assert image.base + image.slot_size <= 0x4_0000_0000
            assert not image.dll_characteristics & 0x40
    skipped = {item["path"] for item in report["skipped"]}
    now = contents(root)
    assert {path for path in before if now[path] == before[path]} >= skipped

    rebaser.report("run", root)
    still = listing(root)
    again = rebaser.report("run", root)
    assert (again["moved"], again["bytes_written"]) == ([], 0)
    assert listing(root) == still

    check = rebaser("check", root)
    assert check.status == 0, check.words[-2000:]

    # Ten more: only those move that must, and nothing else does.
    settled = bases(root)
    donors = sorted(path for path in moved if before[path] != now[path])[:10]
    for number, path in enumerate(donors):
        to = root / "new" / f"{number}-{os.path.basename(path)}"
        to.parent.mkdir(exist_ok=True)
        to.write_bytes(before[path])
    add_dlls(root, 2, folder="new", base=0x3_F000_0000, dll_characteristics=0)
    report = rebaser.report("run", root)
    news = {f"new/{n}-{os.path.basename(path)}" for n, path in enumerate(donors)}
    # Of the two that overlap only each other in the arena, one stays.
    assert {m["path"] for m in report["moved"]} - news == {"new/x000.dll"}
    assert news <= {m["path"] for m in report["moved"]}
    after = bases(root)
    assert {path: after[path] for path in settled} == settled
    assert overlaps(root) == set()


@pytest.mark.cygwin
def test_the_cygwin_root(rebaser: Rebaser, pristine_root: CygwinRoot, tmp_path: Path) -> None:
    whole_job(rebaser, pristine_root.path, tmp_path / "tree", 230)


@pytest.mark.wheels
def test_windows_wheels(rebaser: Rebaser, wheel_tree: Path, tmp_path: Path) -> None:
    whole_job(rebaser, wheel_tree, tmp_path / "tree", 300)


@pytest.mark.wheels
def test_a_whole_tree_moves_there_and_back(
    rebaser: Rebaser, wheel_tree: Path, tmp_path: Path
) -> None:
    """Moved twice is what moving once to the same place makes of it."""
    root = tmp_path / "tree"
    shutil.copytree(wheel_tree / "lib", root / "lib")
    before = contents(root)
    assert rebaser("run", root, "--arena", "0x4_0000_0000-0x6_0000_0000").status == 0
    assert min(bases(root).values()) >= 0x4_0000_0000
    assert rebaser("run", root).status == 0
    assert max(bases(root).values()) < 0x4_0000_0000
    assert damaged(before, root) == []
