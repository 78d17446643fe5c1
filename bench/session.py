"""What all measurements share: sizes, the scratch folder, the DLLs, what was seen on the way."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.material import Material, make_tree, settle


@dataclass(frozen=True)
class Sizes:
    """How much is measured: DLLs, files and folders of the trees, bytes, and rounds."""

    small_tree: tuple[int, int, int]
    tree: tuple[int, int, int]
    large_tree: tuple[int, int, int]
    full: int
    big: int
    packages: int
    hooks: int
    plan: tuple[int, ...]
    rounds: int
    disk_rounds: int


FULL = Sizes(
    small_tree=(230, 1_000, 100),
    tree=(1300, 18_000, 1_800),
    large_tree=(2000, 44_000, 4_400),
    full=58_000_000,
    big=1_300_000_000,
    packages=60,
    hooks=20,
    plan=(1_000, 10_000, 100_000, 1_000_000),
    rounds=15,
    disk_rounds=5,
)
SMALL = Sizes(
    small_tree=(230, 1_000, 100),
    tree=(200, 3_000, 300),
    large_tree=(500, 20_000, 2_000),
    full=10_000_000,
    big=300_000_000,
    packages=10,
    hooks=20,
    plan=(1_000, 10_000, 100_000),
    rounds=7,
    disk_rounds=3,
)


@dataclass
class Session:
    """One run of the benchmark.

    `exclusive` notes of each case for how much of the run the lock was held exclusively, `growth`
    the lines of the picture: seconds of processor.
    """

    sizes: Sizes
    scratch: Path
    material: Material
    exclusive: list[tuple[str, float, float]] = field(default_factory=list)
    trees: dict[tuple[int, int, int], Path] = field(default_factory=dict)
    growth: dict[str, list[float]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Say on stderr what goes on."""
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def tree(self, shape: tuple[int, int, int]) -> Path:
        """Return a tree of (DLLs, files, folders) in which nothing is left to do."""
        if shape not in self.trees:
            dlls, files, folders = shape
            self.say(f"making a tree of {dlls:,} DLLs, {files:,} files, {folders:,} folders")
            root = self.scratch / f"tree-{dlls}-{files}-{folders}"
            make_tree(root, self.material.small(dlls), files, folders)
            settle(root)
            self.trees[shape] = root
        return self.trees[shape]

    def note_exclusive(self, case: str, report: Any) -> None:
        """Remember how long a run held the lock exclusively, and how long it took."""
        seconds = report["seconds"]
        self.exclusive.append((case, seconds["exclusive"], seconds["total"]))
