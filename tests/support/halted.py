"""Trees on which a run is stopped or fails at one call, and what must hold afterwards."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stop_at import in_child
from trees import add_dll, add_dlls, base_in, contents, images, moved, overlapping_pairs

from rebaser.plan.overlap import Span
from rebaser.state import MARK

#: Of so many steps one is tried: on Cygwin a run takes seconds.
PACE = 15 if sys.platform in ("cygwin", "msys") else 1


def sharing(root: Path) -> set[tuple[str, str]]:
    """Return the pairs of names whose images share a slot, further names of one file included."""
    spans = [
        Span(image.base, image.base + image.slot_size, path) for path, image in images(root).items()
    ]
    return {(min(a.path, b.path), max(a.path, b.path)) for a, b in overlapping_pairs(spans)}


class Check:
    """What a tree was, and what it may have become."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before = contents(root)
        self.shared = sharing(root)
        self.stats = {path: (root / path).stat() for path in self.before}
        self.right: dict[tuple[str, int], bytes] = {}

    def sound(self) -> dict[str, bytes]:
        """Demand that each file is old or its right new self, and nothing overlaps that did not."""
        now = contents(self.root)
        assert now.keys() == self.before.keys(), now.keys() ^ self.before.keys()
        for path, old in self.before.items():
            new = now[path]
            if new == old:
                continue
            key = (path, base_in(new))
            if key not in self.right:
                self.right[key] = moved(old, key[1])
            assert new == self.right[key], f"{path} is neither old nor new"
            st = (self.root / path).stat()
            kept = self.stats[path]
            assert (st.st_mode, st.st_mtime_ns) == (kept.st_mode, kept.st_mtime_ns), path
        assert sharing(self.root) <= self.shared
        return now


def small_tree(root: Path) -> Path:
    """Make four DLLs that collide, one with two names, in two folders."""
    (root / "var").mkdir(parents=True)
    add_dlls(root, 3)
    add_dll(root / "lib/z.so", data_size=0x4000)
    os.link(root / "bin/x001.dll", root / "lib/x001-again.dll")
    for path in contents(root):
        (root / path).chmod(0o555)
        os.utime(root / path, ns=(10**18, 10**18))
    return root


def cold(root: Path) -> list[str]:
    """The first run on a tree."""
    small_tree(root)
    return []


def warm(root: Path) -> list[str]:
    """A later run: some lie right, some are new, and a killed run has left its staging folder."""
    small_tree(root)
    assert in_child(["run", str(root), "--quiet"], lambda: None, Path(os.devnull)) == 0
    add_dll(root / "bin/new1.dll")
    add_dll(root / "lib/new2.dll")
    staging = root / "var/lib/rebaser/staging"
    staging.mkdir()
    (staging / MARK).touch()
    (staging / "0000000.dll").write_bytes(b"half a file")
    return []


def elsewhere(root: Path) -> list[str]:
    """The state is outside the tree, so its staging folder is one of those that are noted."""
    small_tree(root)
    places = root.with_name(root.name + "-places")
    return ["--state-dir", str(places / "state"), "--lock-file", str(places / "lock")]


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """Return a folder in memory, where there is one: a kill loses nothing that is there."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="rebaser-test-", dir="/dev/shm") as folder:
        yield Path(folder)
