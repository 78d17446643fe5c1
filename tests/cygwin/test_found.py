"""Files that a fuzzer found something with: they are refused with a reason, or moved right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pe import opened

from cygwin.fault import NotAnImage
from cygwin.image import read_image
from cygwin.relocation import check_and_sum, relocate

FOUND = sorted((Path(__file__).resolve().parents[1] / "found").iterdir())


@pytest.mark.parametrize("file", FOUND, ids=lambda file: file.stem)
def test_refused_or_moved(file: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(file, tmp_path))
    with opened(file, os.O_RDONLY) as original, opened(copy, os.O_RDWR) as moved:
        try:
            image = read_image(original, file.stat().st_size)
        except NotAnImage:
            return
        if image.fault:
            return
        for new_base in (0x2_0001_0000, 0x5_FFF0_0000) if image.base_width == 8 else (0x5000_0000,):
            shutil.copyfile(file, copy)
            relocate(moved, image, new_base, clear_dynamic_base=True)
            check_and_sum(original, moved, image, new_base, clear_dynamic_base=True)
