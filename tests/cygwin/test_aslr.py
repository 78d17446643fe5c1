"""Mandatory ASLR, as Cygwin shows the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from cygwin.aslr import mandatory_aslr

KERNEL = "HKEY_LOCAL_MACHINE/SYSTEM/CurrentControlSet/Control/Session Manager/kernel"


@pytest.mark.parametrize(
    ("value", "on"),
    [
        (bytes(16), False),
        (b"\0\1" + bytes(14), True),
        (b"\x11\1" + bytes(6), True),
        (b"\0\2" + bytes(6), False),  # always off
        (b"\0\3" + bytes(6), True),  # and images without relocations are refused
        (b"\0", False),
        (None, False),
    ],
)
def test_bits_8_and_9_say_it(tmp_path: Path, value: bytes | None, on: bool) -> None:
    (tmp_path / KERNEL).mkdir(parents=True)
    if value is not None:
        (tmp_path / KERNEL / "MitigationOptions").write_bytes(value)
    assert mandatory_aslr(str(tmp_path)) is on


def test_without_a_registry_it_cannot_be_told(tmp_path: Path) -> None:
    assert mandatory_aslr(str(tmp_path)) is None
