"""What is measured on: real DLLs where there are any, and trees that are made of them."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from bench.measure import HERE, rebaser, report, run, sync

SUFFIXES = (".dll", ".so", ".pyd")


class UnsettledTreeError(Exception):
    """A tree in which rebaser finds work again and again."""


@dataclass(frozen=True)
class Material:
    """DLLs to make trees of, in order of size, and where they are from."""

    dlls: Sequence[Path]
    origin: str
    cygwin_root: Path | None

    def of_size(self, size: int) -> list[Path]:
        """Return DLLs of all sizes that hold about so many bytes, each as often as need be."""
        taken = []
        total = 0
        # Every seventh, round and round: a mixture of sizes however early it ends.
        order = sorted(range(len(self.dlls)), key=lambda i: (i % 7, i))
        for index in cycle(order):
            if total >= size:
                break
            taken.append(self.dlls[index])
            total += self.dlls[index].stat().st_size
        return taken

    def spread(self, count: int) -> list[Path]:
        """Return so many DLLs, evenly spread over the sizes but for the largest tenth."""
        usable = self.dlls[: max(1, len(self.dlls) * 9 // 10)]
        return [usable[i * len(usable) // count] for i in range(count)]

    def small(self, count: int) -> list[Path]:
        """Return so many DLLs out of the smaller half, each as often as need be."""
        return list(islice(cycle(self.dlls[: max(1, len(self.dlls) // 2)]), count))


def find_material(scratch: Path) -> Material:
    """Return the real DLLs of this machine; made ones, in `scratch`, where there are none."""
    for root, origin in _places():
        dlls = _movable(root)
        if len(dlls) >= 100:
            is_cygwin = (root / "bin" / "rebase.exe").exists()
            return Material(dlls, origin, root if is_cygwin and shutil.which("wine") else None)
    return Material(
        _made(scratch / "made"), "made by tests/support/pe.py (run bin/cygwin-root --old)", None
    )


def _places() -> list[tuple[Path, str]]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rebaser")
    cygwin = cache / "cygwin-3.4.7"
    wheels = Path(os.environ.get("REBASER_WHEEL_TREE") or cache / "wheel-tree")
    return [(cygwin, "Cygwin packages"), (wheels, "Windows wheels")]


def _movable(root: Path) -> list[Path]:
    """Return the DLLs below `root` that can be moved, by size."""
    from cygwin.fault import NotAnImage
    from cygwin.image import read_image

    found = []
    for path in root.rglob("*"):
        if path.suffix.lower() not in SUFFIXES or path.is_symlink() or not path.is_file():
            continue
        if path.name in ("cygwin1.dll", "msys-2.0.dll") or path.name.startswith("cyglsa"):
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            image = read_image(descriptor, os.fstat(descriptor).st_size)
            if image.is_dll and not image.fault and not image.signed and image.base >= 1 << 32:
                found.append(path)
        except NotAnImage:
            pass
        finally:
            os.close(descriptor)
    return sorted(found, key=lambda path: (path.stat().st_size, path))


def _made(folder: Path) -> list[Path]:
    """Write DLLs of 12 to 900 KB with the number of relocated words that such DLLs have."""
    sys.path.insert(0, str(HERE / "tests/support"))
    import pe  # type: ignore[import-not-found,unused-ignore]

    folder.mkdir(parents=True)
    paths = []
    for number in range(200):
        size = 0x1000 * (2 + number + (number // 190) * 100)
        path = folder / f"made{number:03}.dll"
        path.write_bytes(pe.build(data_size=size, words=range(0x1000, 0x1000 + size - 8, 0x100)))
        paths.append(path)
    return paths


def make_tree(root: Path, dlls: Sequence[Path], files: int, folders: int) -> None:
    """Make a tree with so many files, `dlls` (copied, under new names) among them.

    A sixth of the DLLs lies in bin, the others by fours in folders all over the tree.
    """
    paths = ["bin", *(_folder(number) for number in range(folders - 1))]
    for name in ["var", *paths]:
        (root / name).mkdir(parents=True, exist_ok=True)
    in_bin = len(dlls) // 6
    rest = max(1, (len(dlls) - in_bin + 3) // 4)
    for number, source in enumerate(dlls):
        group = (number - in_bin) // 4
        home = "bin" if number < in_bin else paths[1 + group * (folders - 1) // rest]
        shutil.copyfile(source, root / home / f"{number:05}-{source.name}")
    for number in range(files - len(dlls)):
        home = paths[number % folders]
        (root / home / f"module_{number:06}.py").write_bytes(b"# nothing\n" * (number % 50))
    sync(root)


def _folder(number: int) -> str:
    """Return the path of folder `number`: eight in each, the first at the top."""
    parts = []
    while number >= 0:
        parts.append(f"package{number:05}")
        number = number // 8 - 1
    return "/".join(["lib/python3.12/site-packages", *reversed(parts)])


def copy_tree(dlls: Sequence[Path], root: Path) -> int:
    """Make a tree of copies of `dlls` alone; return its size in bytes."""
    (root / "var").mkdir(parents=True)
    (root / "bin").mkdir()
    size = 0
    for number, source in enumerate(dlls):
        folder = root / ("bin" if number % 2 else f"lib/part{number // 40:03}")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / f"{number:05}-{source.name}")
        size += source.stat().st_size
    sync(root)
    return size


def settle(root: Path) -> None:
    """Run rebaser until the whole tree is remembered and nothing is left to do."""
    report(root)
    memory = root / "var" / "lib" / "rebaser" / "seen"
    for _ in range(5):
        before = memory.stat().st_mtime_ns if memory.exists() else 0
        ended = run(rebaser("run", root, "--quiet"))
        if ended.status == 0 and memory.exists() and memory.stat().st_mtime_ns == before:
            sync(root)
            return
    raise UnsettledTreeError(f"rebaser finds work again and again in {root}")
