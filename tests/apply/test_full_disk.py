"""Full disks, quotas, too many open files, folders that vanish: a clear error, nothing lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from halted import Check, cold, elsewhere, warm
from stop_at import CHANGING, Call, Counter, in_child, intercept
from trees import Rebaser, add_dlls, contents, damaged, left_over, overlaps

pytestmark = pytest.mark.slow

# What needs room, as opposed to what only changes a name or an attribute.
GROWING = ("open", "write", "pwrite", "fsync", "mkdir", "link", "setxattr")


# What is to be done, of which one is said with each error.
HELPS = ("run rebaser", "make room", "limit of open files", "make it", "log", "choose another")


class Failing:
    """Lets the n-th of some calls fail, and with `lasting` all later ones of the kind too."""

    def __init__(self, number: int, code: int, marker: Path, *, lasting: bool) -> None:
        self.marker = marker
        self.counter = Counter(number, self.fail)
        self.code = code
        self.lasting = lasting

    def fail(self, name: str, real: Call, words: Sequence[Any]) -> None:
        """Raise what a call like this would."""
        path = words[0] if words and isinstance(words[0], str) else None
        if not os.path.islink(self.marker):
            os.symlink("failed", self.marker)
        raise OSError(self.code, os.strerror(self.code), path)

    def __call__(self, name: str, real: Call, words: Sequence[Any]) -> None:
        if name == "open" and not words[1] & os.O_CREAT and self.code != errno.EMFILE:
            return
        if self.lasting and self.counter.count >= self.counter.number:
            self.fail(name, real, words)
        self.counter(name, real, words)


@pytest.mark.parametrize(
    ("scene", "code", "lasting", "names", "stride"),
    [
        (cold, errno.ENOSPC, True, GROWING, 1),
        (warm, errno.ENOSPC, True, GROWING, 3),
        (elsewhere, errno.ENOSPC, True, GROWING, 3),
        (cold, errno.EDQUOT, False, GROWING, 2),
        (cold, errno.EIO, False, CHANGING, 2),
        (cold, errno.EROFS, True, CHANGING, 3),
        (warm, errno.EACCES, False, CHANGING, 3),
        (cold, errno.EMFILE, True, ("open",), 1),
    ],
)
def test_an_error_at_every_call(
    scene: Any, code: int, lasting: bool, names: Sequence[str], stride: int, in_memory: Path
) -> None:
    log = in_memory / "log"
    perfect = in_memory / "perfect"
    words = scene(perfect)
    assert in_child(["run", str(perfect), *words], lambda: None, log) == 0
    wanted = contents(perfect)
    failures = 0
    for number in range(1, 1000, stride):
        root = in_memory / f"t{number}"
        words = ["run", str(root), *scene(root)]
        check = Check(root)
        marker = in_memory / f"failed-{number}"
        failing = Failing(number, code, marker, lasting=lasting)

        def prepare(failing: Failing = failing) -> None:
            intercept(names, failing)

        status = in_child(words, prepare, log)
        said = log.read_text()
        assert os.WIFEXITED(status), said
        assert "this is a bug" not in said, said
        assert os.WEXITSTATUS(status) in (0, 1), said
        now = check.sound()
        if status:
            failures += 1
            assert os.strerror(code) in said, said
            assert any(what in said for what in HELPS), f"it says not what to do: {said}"
            assert "failed " in said or str(in_memory) in said, f"it names no file: {said}"
        elif said.count("\n") <= 20 and "rebaser: " not in said:
            assert now == wanted

        assert in_child(words, lambda: None, log) == 0, log.read_text()
        now = check.sound()
        assert overlaps(root) == set()
        assert left_over(root) == []
        if os.path.samefile(root / "bin/x001.dll", root / "lib/x001-again.dll"):
            assert now == wanted
        shutil.rmtree(root)
        if not marker.is_symlink():
            break  # the run has fewer calls than that
    else:
        pytest.fail("a run never got through")
    assert failures > 3


def test_a_lock_that_fails_at_any_call(in_memory: Path) -> None:
    """A file system that knows locks may be out of them when the shared one becomes exclusive."""
    log = in_memory / "log"
    told = 0
    for number in range(1, 9):
        root = in_memory / f"t{number}"
        cold(root)
        failing = Failing(number, errno.ENOLCK, in_memory / f"failed-{number}", lasting=True)
        status = in_child(
            ["run", str(root)], lambda failing=failing: intercept(["flock"], failing), log
        )
        said = log.read_text()
        assert os.WEXITSTATUS(status) in (0, 1), said
        assert "this is a bug" not in said, said
        if status:
            assert "its file system has no flock" in said
            assert "Nothing was changed" in said
            told += 1
    assert told >= 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs root and the right to mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48])
def test_a_disk_that_is_really_full(rebaser: Rebaser, small_disk: Path, pages: int) -> None:
    (small_disk / "var").mkdir()
    add_dlls(small_disk, 12)
    before = contents(small_disk)
    had = overlaps(small_disk)
    room = os.statvfs(small_disk).f_bavail
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((room - pages) * os.statvfs(small_disk).f_frsize))
    result = rebaser("run", small_disk)
    assert result.status in (0, 1)
    if result.status:
        assert "No space left on device" in result.err
        assert str(small_disk) in result.err or "failed bin/" in result.err
    assert damaged(before, small_disk) == []
    assert overlaps(small_disk) <= had
    assert left_over(small_disk) == []
    ballast.unlink()
    result = rebaser("run", small_disk)
    assert result.status == 0, result.words
    assert overlaps(small_disk) == set()


def test_a_tree_larger_than_the_free_space(rebaser: Rebaser, small_disk: Path) -> None:
    """Staging goes batch by batch, so that less room than the tree has is enough."""
    (small_disk / "var").mkdir()
    add_dlls(small_disk, 20)
    before = contents(small_disk)
    size = sum(map(len, before.values()))
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free - size // 3))
    before = contents(small_disk)
    result = rebaser("run", small_disk)
    assert result.status == 0, result.words
    assert overlaps(small_disk) == set()
    assert damaged(before, small_disk) == []


@pytest.mark.parametrize("limit", [6, 8, 10, 12, 14, 16, 20])
def test_too_many_open_files(rebaser: Rebaser, tree: Path, limit: int) -> None:
    before = contents(tree)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    shell = ["sh", "-c", f'ulimit -S -n {limit} && exec "$@"', "sh"]
    result = rebaser("run", tree, before=shell)
    assert limit <= hard
    assert result.status in (0, 1)
    assert damaged(before, tree) == []
    if result.status:
        assert "Too many open files" in result.err
    assert rebaser("run", tree).status == 0
    assert overlaps(tree) == set()


def test_a_folder_that_vanishes_at_every_step(in_memory: Path) -> None:
    log = in_memory / "log"
    for number in range(1, 1000, 2):
        root = in_memory / f"t{number}"
        words = ["run", str(root), *cold(root)]
        check = Check(root)

        def vanish(name: str, real: Call, given: Sequence[Any], root: Path = root) -> None:
            subprocess.run(["rm", "-rf", str(root / "lib")], check=True)

        def prepare(number: int = number, at: Any = vanish) -> None:
            intercept(CHANGING, Counter(number, at))

        status = in_child(words, prepare, log)
        said = log.read_text()
        assert "this is a bug" not in said, said
        assert os.WIFEXITED(status)
        assert os.WEXITSTATUS(status) in (0, 1), said
        over = (root / "lib").exists()
        if not over:
            check.before = {p: d for p, d in check.before.items() if not p.startswith("lib/")}
        check.sound()
        assert in_child(words, lambda: None, log) == 0, log.read_text()
        check.sound()
        assert overlaps(root) == set()
        assert left_over(root) == []
        shutil.rmtree(root)
        if over:
            break


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_no_more_threads(in_memory: Path, allowed: int) -> None:
    """A limit on processes counts threads too: the work is done by those that there are."""
    root = in_memory / "tree"
    cold(root)
    check = Check(root)

    def prepare() -> None:
        real = threading.Thread.start
        started = []

        def start(self: threading.Thread) -> None:
            if len(started) >= allowed:
                raise RuntimeError("can't start new thread")
            started.append(self)
            real(self)

        threading.Thread.start = start  # type: ignore[method-assign]

    log = in_memory / "log"
    words = ["run", str(root), "--engine", "builtin"]
    assert in_child(words, prepare, log) == 0, log.read_text()
    check.sound()
    assert "moved 4 DLLs" in log.read_text()
    assert overlaps(root) == set()
