"""What comes or goes while a run works: the next run sees it, however little of it this one saw."""

from __future__ import annotations

import gc
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from trees import FLOOR, Rebaser, add_dll, add_dlls, make_tree, overlaps

from cygwin.address_space import Range
from cygwin.image import Image
from locks.flock import SHARED, Flock
from rebaser.apply import stage
from rebaser.job import Job
from rebaser.options import Options
from rebaser.plan.placement import NoRoomError
from rebaser.progress import Progress
from rebaser.run import run
from rebaser.scan.skip import Stay
from rebaser.scan.snapshot import NEVER
from rebaser.state import records
from rebaser.state.folder import State
from rebaser.state.lock import TreeLock
from rebaser.tree import find_tree


class Meanwhile(Progress):
    """Does something as soon as a run looks, stages, or has staged all and begins to commit."""

    def __init__(self, phase: str, action: Callable[[], object]) -> None:
        self._phase, self._action = phase, action
        super().__init__()

    def phase(self, name: str, dlls: int | None = None, size: int = 0) -> None:
        super().phase(name, dlls, size)
        self._left = size
        if self._phase == {"moving": "staging"}.get(name, name):
            self._action()

    def advance(self, dlls: int, size: int = 0) -> None:
        self._left -= size
        if self._phase == "committing" and self._left <= 0 < size:
            self._action()


def add(root: Path) -> None:
    add_dll(root / "bin/new.dll")


def add_below(root: Path) -> None:
    add_dll(root / "bin/deep/er/new.dll")


def add_elsewhere(root: Path) -> None:
    add_dll(root / "quiet/new.dll")


def add_at_the_top(root: Path) -> None:
    add_dll(root / "new/new.dll")


def replace_elsewhere(root: Path) -> None:
    add_dll(root / "new.tmp")
    os.replace(root / "new.tmp", root / "quiet/old.dll")


CHANGES = pytest.mark.parametrize(
    "change", [add, add_below, add_elsewhere, add_at_the_top, replace_elsewhere]
)
PHASES = pytest.mark.parametrize("phase", ["staging", "committing"])


@PHASES
@CHANGES
@pytest.mark.parametrize("first", [True, False], ids=["first run", "later run"])
def test_the_next_run_does_it(
    first: bool, change: Callable[[Path], None], phase: str, rebaser: Rebaser, tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "tree")
    add_dll(root / "quiet/old.dll")
    if not first:
        rebaser.report("run", root)
        add_dlls(root, 2, first=50)
    report = run(find_tree(str(root)), Options(), progress=Meanwhile(phase, lambda: change(root)))
    # Of what changed under the run's hands nothing is known: it is left, and said so.
    left = first and change is replace_elsewhere
    assert (report.exit_status, report.unfinished) == (int(left), ("quiet/old.dll",) * left)
    to_move = {f"bin/x{n:03}.dll" for n in (range(6) if first else (50, 51))}
    assert {move.path for move in report.moved} - {"quiet/old.dll"} == to_move
    after = rebaser.report("run", root)
    assert len(after["moved"]) == 1
    assert overlaps(root) == set()
    again = rebaser.report("run", root)
    assert (again["moved"], again["run"]) == ([], None)


@PHASES
def test_a_folder_that_went(phase: str, rebaser: Rebaser, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    add_dlls(root, 3, folder="gone")
    progress = Meanwhile(phase, lambda: shutil.rmtree(root / "gone"))
    report = run(find_tree(str(root)), Options(), progress=progress)
    assert not any(path.startswith("gone/") for path in (move.path for move in report.moved))
    assert {one.cause for one in report.skipped} == {Stay.REMOVED}
    assert (report.exit_status, report.unfinished) == (0, ())
    again = rebaser.report("run", root)
    assert (again["images"], again["moved"]) == (6, [])
    assert overlaps(root) == set()


class Moving(Meanwhile):
    """Replaces a DLL before the first commit, and takes it away after the last."""

    def __init__(self, dll: Path) -> None:
        self._dll = dll
        super().__init__("committing", self._replace)

    def _replace(self) -> None:
        add_dll(self._dll)
        self.is_replaced = True

    def advance(self, dlls: int, size: int = 0) -> None:
        super().advance(dlls, size)
        if hasattr(self, "is_replaced") and self._done == self._dlls:
            self._dll.unlink(missing_ok=True)


def test_what_changed_and_then_went_is_left(tmp_path: Path) -> None:
    """It may be under another name by now: of two that change their names nothing is known."""
    root = make_tree(tmp_path / "tree")
    report = run(find_tree(str(root)), Options(), progress=Moving(root / "bin/x001.dll"))
    assert (report.exit_status, report.unfinished) == (1, ("bin/x001.dll",))


def test_half_of_a_tree_settles_nothing(rebaser: Rebaser, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    (tmp_path / "manifest").write_text("bin/x001.dll\n")
    rebaser.report("run", root, "--only-from", tmp_path / "manifest")
    assert len(rebaser.report("run", root)["moved"]) == 5


def test_what_came_as_the_scan_began_is_read_again(rebaser: Rebaser, tmp_path: Path) -> None:
    """It may change once more within the same tick of the clock, and look the same."""
    root = make_tree(tmp_path / "tree")

    def add_in_place() -> None:
        add_dll(root / "quiet/late.dll", base=FLOOR + 0x1000_0000, dll_characteristics=0)

    tree = find_tree(str(root))
    report = run(tree, Options(), progress=Meanwhile("looking at the tree", add_in_place))
    assert len(report.moved) == 6
    memory = State(tree.state_dir, tree.root).load_snapshot(print)
    times = {path: seen.mtime_ns for path, seen in memory.files()}
    assert [path for path in times if times[path] == NEVER] == ["quiet/late.dll"]


def test_a_racy_image_is_read_again_before_it_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table could be another one by then, and its size and times the same."""
    root = make_tree(tmp_path / "tree")
    read = []
    read_image = stage.read_image

    def recorded(descriptor: int, length: int) -> Image:
        image = read_image(descriptor, length)
        read.append(image.timestamp)
        return image

    def add_racy() -> None:
        add_dll(root / "bin/late.dll", timestamp=4711)

    monkeypatch.setattr(stage, "read_image", recorded)
    time.sleep(0.1)  # the others are older than a tick of any file system's clock here
    progress = Meanwhile("looking at the tree", add_racy)
    report = run(find_tree(str(root)), Options(), progress=progress)
    assert len(report.moved) == 7
    assert read == [4711]


def test_what_an_installer_changed_before_a_run_was_alone_is_looked_at_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both may hold the lock shared; the installer lets go, and the run goes on with its look."""
    root = make_tree(tmp_path / "tree", 4)
    first, turns = root / "bin/x000.dll", []
    become_alone = TreeLock.upgrade

    def upgrade(self: TreeLock) -> bool:
        turns.append(first)
        if len(turns) == 1:
            first.unlink()
            add_dll(first, data_size=0x5000)
        return become_alone(self)

    assert run(find_tree(str(root)), Options()).exit_status == 0
    for number in range(3):
        add_dll(root / f"bin/x00{number}.dll")
    monkeypatch.setattr(TreeLock, "upgrade", upgrade)
    report = run(find_tree(str(root)), Options())
    assert turns
    assert (report.unfinished, report.exit_status, len(report.moved)) == ((), 0, 3)
    assert overlaps(root) == set()


def test_after_a_run_that_was_killed_while_this_one_waited_no_installer_is_let_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record is newer than any that this one knew, and its staging folder is there."""
    root = make_tree(tmp_path / "tree")
    assert run(find_tree(str(root))).exit_status == 0
    add_dlls(root, 3, first=6)
    share = TreeLock.share

    def wait_and_share(self: TreeLock) -> None:
        killed = Job(find_tree(str(root)), Options(), None, None)
        killed.state.make()
        records.begin(killed.state, killed.request, 0.0)
        share(self)

    def install() -> None:
        with Flock.open(find_tree(str(root)).lock_file) as installer:
            let_in.append(installer.try_acquire(SHARED))

    let_in: list[bool] = []
    monkeypatch.setattr(TreeLock, "share", wait_and_share)
    report = run(find_tree(str(root)), progress=Meanwhile("staging", install))
    assert (report.exit_status, len(report.moved), let_in) == (0, 3, [False])


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("arena", [None, Range(FLOOR, FLOOR + 0x10000)])
def test_whatever_comes_of_a_run_leaves_nothing_open(
    tmp_path: Path, arena: Range | None, dry_run: bool
) -> None:
    tree = find_tree(str(make_tree(tmp_path / "tree")))
    gc.collect()  # what other tests have left open
    before = os.listdir("/proc/self/fd")
    try:
        assert run(tree, Options(arena=arena), dry_run=dry_run).moved
    except NoRoomError:
        assert arena
    del tree
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
