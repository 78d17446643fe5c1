"""What Cygwin's own rebase made of real DLLs, byte for byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cygwin_root import CygwinRoot
from pe import checksum, checksum_field, opened

from cygwin.image import read_image
from cygwin.relocation import check_and_sum, relocate

TESTS = Path(__file__).resolve().parents[1]


def vectors(name: str) -> list[Any]:
    """Return the vectors of a file, each once by its id."""
    found = json.loads((TESTS / name).read_text(encoding="utf-8"))["vectors"]
    return [pytest.param(vector, id=vector["id"]) for vector in found]


def moved(vector: dict[str, Any], original: Path, copy: Path) -> bytearray:
    """Return what we make of the DLL of a vector."""
    shutil.copyfile(original, copy)
    assert sha256(copy.read_bytes()) == vector["sha256_before"]
    clear = "-n" in vector["options"]
    with opened(original, os.O_RDONLY) as old, opened(copy) as new:
        image = read_image(old, os.fstat(old).st_size)
        assert image.fault is None
        before = int(vector["base_before"], 16), int(vector["size_of_image"], 16)
        assert (image.base, image.size) == before
        new_base = int(vector["base_after"], 16)
        if new_base != image.base:  # else rebase leaves the file, and so does the planner
            relocate(new, image, new_base, clear_dynamic_base=clear)
            check_and_sum(old, new, image, new_base, clear_dynamic_base=clear)
        result = bytearray(copy.read_bytes())

        relocate(new, read_image(new, len(result)), image.base, clear_dynamic_base=False)
    if not clear:
        back = bytearray(copy.read_bytes())
        back[checksum_field(back)] = original.read_bytes()[checksum_field(back)]
        assert sha256(back) == vector["sha256_before"], "there and back"
    return result


@pytest.mark.cygwin
@pytest.mark.parametrize("vector", vectors("golden-4.6.6.json"))
def test_relocating_gives_what_rebase_4_6_6_gave(
    vector: dict[str, Any], pristine_root: CygwinRoot, tmp_path: Path
) -> None:
    original = pristine_root.path / vector["file"]
    result = moved(vector, original, tmp_path / "x.dll")
    found = original.read_bytes()
    before = int.from_bytes(found[checksum_field(found)], "little")
    if before not in (0, checksum(found)):  # rebase carries a wrong one on, we make it right
        assert int.from_bytes(result[checksum_field(result)], "little") == checksum(result)
        result[checksum_field(result)] = int(vector["checksum_after"], 16).to_bytes(4, "little")
    assert sha256(result) == vector["sha256_after"]


@pytest.mark.cygwin
@pytest.mark.parametrize("vector", vectors("golden-4.6.3.json"))
def test_relocating_gives_what_rebase_4_6_3_gave_but_for_the_times_and_the_checksum(
    vector: dict[str, Any], pristine_root: CygwinRoot, tmp_path: Path
) -> None:
    original = pristine_root.path / vector["file"]
    result = moved(vector, original, tmp_path / "x.dll")
    # rebase 4.6.3 writes the time at which it reached the file, and leaves the CheckSum.
    if vector["timestamp"] is not None:
        at = int.from_bytes(result[60:64], "little") + 8
        result[at : at + 4] = vector["timestamp"].to_bytes(4, "little")
    result[checksum_field(result)] = original.read_bytes()[checksum_field(result)]
    assert sha256(result) == vector["sha256_after"]


def sha256(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()
