"""DLLs that occupy a given number of slots at a given base."""

from __future__ import annotations

from pathlib import Path

import pe

SLOT = 0x10000


def put(path: Path, base: int, slots: int = 1, **more: object) -> Path:
    """Write a DLL that occupies so many slots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (slots - 1) * SLOT + 0x2000  # of the data; headers and relocations need no slot more
    path.write_bytes(pe.build(base=base, dll_characteristics=0, data_size=size, **more))
    return path
