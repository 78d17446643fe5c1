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
from pe import opened

from cygwin.image import read_image
from cygwin.relocation import check_relocated, relocate

VECTORS = json.loads(
    (Path(__file__).resolve().parents[1] / "golden.json").read_text(encoding="utf-8")
)["vectors"]


@pytest.mark.cygwin
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["id"])
def test_relocating_gives_what_cygwins_rebase_gave(
    vector: dict[str, Any], pristine_root: CygwinRoot, tmp_path: Path
) -> None:
    original = pristine_root.path / vector["file"]
    staged = tmp_path / "staged.dll"
    shutil.copyfile(original, staged)
    assert sha256(staged) == vector["sha256_before"]
    clear = "-n" in vector["options"]
    with opened(original, os.O_RDONLY) as old, opened(staged) as new:
        image = read_image(old, os.fstat(old).st_size)
        assert image.fault is None
        assert (image.base, image.size) == (
            int(vector["base_before"], 16),
            int(vector["size_of_image"], 16),
        )
        new_base = int(vector["base_after"], 16)
        relocate(new, image, new_base, clear_dynamic_base=clear)
        check_relocated(old, new, image, new_base, clear_dynamic_base=clear)
        moved = read_image(new, os.fstat(new).st_size)
        # rebase.exe writes the time at which it reached the file; we keep what was there.
        timestamp = vector["timestamp"]
        if timestamp is not None:
            os.pwrite(new, timestamp.to_bytes(4, "little"), image.timestamp_offset)
        assert sha256(staged) == vector["sha256_after"]
        os.pwrite(new, image.timestamp.to_bytes(4, "little"), image.timestamp_offset)

        relocate(new, moved, image.base, clear_dynamic_base=False)
    if not clear:
        assert sha256(staged) == vector["sha256_before"], "there and back"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
