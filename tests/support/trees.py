"""Trees of DLLs for the tests: how they are made, what they were, and what they may have become."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pe

from cygwin.address_space import slot_size
from cygwin.fault import NotAnImage
from cygwin.image import Image, read_image
from cygwin.relocation import relocate
from rebaser.plan.overlap import Span

HERE = Path(__file__).resolve().parents[2]
LINKERS = 0x4_0000_0000  # the first base that ld's --enable-auto-image-base gives
FLOOR = 0x2_0001_0000  # of the arena, x86_64


@dataclass(frozen=True)
class Result:
    """How a program ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """Everything that was said, for the message of a failed assertion."""
        return f"status {self.status}\n{self.out}{self.err}"


def clean_environment(**changes: str) -> dict[str, str]:
    """Return an environment in which nothing steers rebaser, with `changes`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("SAGE_LOCAL", "PYTHONWARNINGS") and not name.startswith("REBASER_")
    }
    return {**kept, "PYTHONPATH": str(HERE), **changes}


class Rebaser:
    """Runs the command line as a process of its own."""

    def __init__(self, always: Sequence[str] = ()) -> None:
        self.always = list(always)

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        """Return the argument list."""
        given = [os.fspath(word) for word in words]
        return [sys.executable, "-m", "rebaser", *given[:1], *self.always, *given[1:]]

    def start(self, *words: str | os.PathLike[str], **options: Any) -> subprocess.Popen[str]:
        """Start it and do not wait."""
        options = {"env": clean_environment(), "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(
            self.command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            **options,
        )

    def __call__(
        self,
        *words: str | os.PathLike[str],
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        cwd: Path | None = None,
        timeout: float = 100,
        before: Sequence[str] = (),
        pass_fds: Sequence[int] = (),
    ) -> Result:
        """Run it to its end; `before` is a program to run it under."""
        done = subprocess.run(
            [*before, *self.command(*words)],
            env=clean_environment(**(env or {})),
            input=stdin,
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            pass_fds=pass_fds,
        )
        out, err = (s.decode("utf-8", "surrogateescape") for s in (done.stdout, done.stderr))
        assert "this is a bug" not in err, err
        return Result(done.returncode, out, err)

    def report(self, *words: str | os.PathLike[str], status: int = 0, **options: Any) -> Any:
        """Run it with --json, demand the exit status, and return the object."""
        result = self(*words, "--json", **options)
        assert result.status == status, result.words
        return result.json


def add_dll(path: Path, base: int = LINKERS, **shape: Any) -> bytes:
    """Write a small DLL, by default at the base where others of its kind are; return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pe.build(base=base, **shape)
    path.write_bytes(data)
    return data


def add_dlls(root: Path, count: int, first: int = 0, folder: str = "bin", **shape: Any) -> None:
    """Write DLLs of several sizes, all at the same base."""
    for number in range(first, first + count):
        words = range(0x1000, 0x1000 + 0x40 * (1 + number % 7), 0x10)
        add_dll(
            root / folder / f"x{number:03}.dll",
            data_size=0x1000 * (2 + number % 24),
            words=words,
            **shape,
        )


def make_tree(root: Path, count: int = 6, **shape: Any) -> Path:
    """Make a tree with a `var` folder and `count` DLLs that all collide."""
    (root / "var").mkdir(parents=True)
    add_dlls(root, count, **shape)
    return root


def read(path: str | os.PathLike[str]) -> Image:
    """Return the image in a file."""
    with pe.opened(path, os.O_RDONLY) as descriptor:
        return read_image(descriptor, os.fstat(descriptor).st_size)


def is_ours(path: Path, root: Path) -> bool:
    """Whether a file is rebaser's own: its state or its lock."""
    top = path.relative_to(root).parts
    return ".rebaser" in top or top[:3] == ("var", "lib", "rebaser") or top[:2] == ("var", "lock")


def images(root: Path) -> dict[str, Image]:
    """Return the images of a tree by path, whatever their names."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and not path.is_symlink() and not is_ours(path, root):
            try:
                found[str(path.relative_to(root))] = read(path)
            except NotAnImage:
                pass
    return found


def bases(root: Path) -> dict[str, int]:
    """Return the base of each image of a tree."""
    return {path: image.base for path, image in images(root).items()}


def overlapping_pairs(spans: Iterable[Span]) -> Iterator[tuple[Span, Span]]:
    """Yield every pair that shares an address, the lower one first, in order of address."""
    open_spans: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.low, s.high, s.path)):
        open_spans = [other for other in open_spans if other.high > span.low]
        for other in open_spans:
            yield other, span
        open_spans.append(span)


def overlaps(root: Path) -> set[tuple[str, str]]:
    """Return the pairs of DLLs that share a slot, hard links as one file."""
    by_machine: dict[int, list[Span]] = {}
    seen = set()
    for path, image in images(root).items():
        st = os.stat(root / path)
        if image.is_dll and (st.st_dev, st.st_ino) not in seen:
            seen.add((st.st_dev, st.st_ino))
            span = Span(image.base, image.base + slot_size(image.size), path)
            by_machine.setdefault(image.machine, []).append(span)
    return {
        (min(a.path, b.path), max(a.path, b.path))
        for spans in by_machine.values()
        for a, b in overlapping_pairs(spans)
    }


def contents(root: Path) -> dict[str, bytes]:
    """Return every file of a tree but rebaser's own."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink() and not is_ours(path, root)
    }


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that can be told of every name below `root`, rebaser's own included."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted([root, *root.rglob("*")]):
        st = path.lstat()
        found[str(path.relative_to(root))] = (
            *(st.st_mode, st.st_uid, st.st_gid, st.st_nlink, st.st_ino, st.st_dev, st.st_size),
            *(st.st_mtime_ns, st.st_ctime_ns),
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None,
        )
    return found


def moved(old: bytes, new_base: int, *, clear: bool = True) -> bytes:
    """Return what a DLL becomes when it moves."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(old)
        file.flush()
        image = read_image(file.fileno(), len(old))
        relocate(file.fileno(), image, new_base, clear_dynamic_base=clear)
        file.seek(0)
        new = bytearray(file.read())
    new[pe.checksum_field(new)] = pe.checksum(new).to_bytes(4, "little")
    return bytes(new)


def base_in(data: bytes) -> int:
    """Return the ImageBase in a DLL's bytes."""
    at = int.from_bytes(data[60:64], "little") + 24
    plus = data[at : at + 2] == b"\x0b\x02"
    return int.from_bytes(data[at + 24 : at + 32] if plus else data[at + 28 : at + 32], "little")


def damaged(before: Mapping[str, bytes], root: Path, *, clear: bool = True) -> list[str]:
    """Return the files that are neither what they were nor what moving makes of them."""
    bad = []
    now = contents(root)
    for path, old in before.items():
        new = now.get(path)
        if new is None:
            bad.append(f"{path}: gone")
        elif new != old and moved(old, base_in(new), clear=clear) != new:
            bad.append(f"{path}: neither old nor new")
    return bad


def left_over(root: Path) -> list[str]:
    """Return the names of temporary files and folders that a run left behind."""
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.name.startswith("staging")
        or path.name in ("made-by-rebaser", "new", "probe")
        or "elsewhere-" in path.name
    ]


def sound(before: Mapping[str, bytes], root: Path, old_overlaps: Iterable[tuple[str, str]]) -> None:
    """Demand that every file is old or new and that no two overlap that did not before."""
    assert damaged(before, root) == []
    assert overlaps(root) <= set(old_overlaps)


def copy_dlls(source: Path, target: Path) -> None:
    """Copy the files of interest below `source`."""
    for path in sorted(source.rglob("*")):
        if path.suffix.lower() not in (".dll", ".pyd", ".so") or path.is_symlink():
            continue
        if path.is_file():
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to)
