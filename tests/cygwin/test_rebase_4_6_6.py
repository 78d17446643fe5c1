"""Both engines make of every real DLL what Cygwin's rebase 4.6.6 makes of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pe
import pytest
from cygwin_root import CygwinRoot

from cygwin.image import Image, read_image
from cygwin.programs import Programs
from cygwin.relocation import check_and_sum
from rebaser.apply.engines import BuiltinEngine, Engine, Staged
from rebaser.apply.engines.cygwin import CygwinEngine, cannot_move

BASE = 0x2_0001_0000
AT_A_TIME = 100


def image_of(path: Path) -> Image:
    with path.open("rb") as file:
        return read_image(file.fileno(), path.stat().st_size)


def movable(files: Iterable[Path]) -> list[tuple[Path, Image, int]]:
    """Return the files that can be moved, their images, and adjacent new bases."""
    found, base = [], BASE
    for file in files:
        image = image_of(file)
        if image.fault is None and image.machine == 0x8664 and cannot_move(image) is None:
            found.append((file, image, base))
            base += image.slot_size
    return found


def moved(items: list[tuple[Path, Image, int]], engine: Engine, folder: Path) -> list[bytes]:
    """Return what an engine makes of each, checked as it is before a commit."""
    folder.mkdir()
    results = []
    for start in range(0, len(items), AT_A_TIME):
        staged = []
        for number, (file, image, base) in enumerate(items[start : start + AT_A_TIME]):
            path = folder / f"{start + number:07d}.dll"
            shutil.copyfile(file, path)
            source, copy = os.open(file, os.O_RDONLY), os.open(path, os.O_RDWR)
            staged.append(Staged(str(path), source, copy, image, base, False))
        assert engine.relocate(staged) == {}
        for one in staged:
            check_and_sum(one.source, one.copy, one.image, one.new_base, clear_dynamic_base=False)
            results.append(Path(one.path).read_bytes())
            os.close(one.source)
            os.close(one.copy)
    shutil.rmtree(folder)
    return results


def by_rebase(
    items: list[tuple[Path, Image, int]], programs: Programs, folder: Path
) -> list[bytes]:
    """Return what the program alone makes of each."""
    folder.mkdir()
    results = []
    for start in range(0, len(items), AT_A_TIME):
        some = items[start : start + AT_A_TIME]
        names = [f"{start + number:07d}.dll" for number in range(len(some))]
        for name, (file, _, _) in zip(names, some):
            shutil.copyfile(file, folder / name)
        outcome = programs.rebase(some[0][2], names, machine=0x8664, cwd=str(folder), timeout=300)
        assert outcome.status == 0, str(outcome)
        results += [(folder / name).read_bytes() for name in names]
    shutil.rmtree(folder)
    return results


def compare(files: Iterable[Path], folder: Path) -> int:
    """Move every DLL by rebase 4.6.6 and by both engines; return how many there are."""
    programs = Programs.find()
    assert programs is not None
    assert programs.version() == "4.6.6"
    items = movable(files)
    theirs = by_rebase(items, programs, folder / "theirs")
    ours = moved(items, BuiltinEngine(), folder / "ours")
    assert moved(items, CygwinEngine(programs), folder / "programs") == ours
    for (file, _, _), mine, made in zip(items, ours, theirs):
        data, their = file.read_bytes(), bytearray(made)
        field = pe.checksum_field(data)
        stored = int.from_bytes(data[field], "little")
        if stored not in (0, pe.checksum(data)):  # rebase carries a wrong one on
            their[field] = pe.checksum(bytes(their)).to_bytes(4, "little")
        assert mine == their, file
    return len(items)


@pytest.mark.cygwin
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_dll_of_both_roots(
    pristine_root: CygwinRoot, pristine_new_root: CygwinRoot, new_programs: str, tmp_path: Path
) -> None:
    roots = [*pristine_root.images(), *pristine_new_root.images()]
    assert compare(roots, tmp_path) > 450


@pytest.mark.cygwin
@pytest.mark.wheels
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_dlls_of_windows_wheels(
    wheel_tree: Path, pristine_new_root: CygwinRoot, new_programs: str, tmp_path: Path
) -> None:
    """rebase reads only files whose PE header begins at byte 0x80; their model does the others."""
    files = sorted(wheel_tree.rglob("*.pyd"), key=lambda file: file.stat().st_size)
    programs = Programs.find()
    assert programs is not None
    some = [file for file in files if image_of(file).fault is None][:100]
    assert len(some) == 100
    compare(some, tmp_path)
    for number, file in enumerate(some):
        image, data = image_of(file), file.read_bytes()
        staged = [(file, image, BASE + (number << 24))]
        assert moved(staged, BuiltinEngine(), tmp_path / "one") == [
            pe.model(data, image, BASE + (number << 24), False)
        ]
