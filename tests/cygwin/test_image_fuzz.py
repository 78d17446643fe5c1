"""Hostile images: no crash, no hang, no memory without bounds."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz_image import MEMORY, SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st
from pe import Shape, block, build, opened, read_data

from cygwin.fault import NotAnImage
from cygwin.image import read_image

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def fuzz(seed: int, executions: int, timeout: float) -> None:
    result = subprocess.run(
        [sys.executable, SUPPORT / "fuzz_image.py", str(seed), str(executions)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    assert result.returncode == 0, result.stdout.decode()
    counts = {
        line.split(None, 1)[1]: line.split()[0] for line in result.stdout.decode().splitlines()
    }
    assert set(counts) == {"fault", "moved", "no image"}, "each kind of end is met"


def test_damaged_images() -> None:
    fuzz(seed=1, executions=10_000, timeout=100)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", range(2, 6))
def test_many_damaged_images(seed: int) -> None:
    fuzz(seed, executions=100_000, timeout=1100)


@settings(deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for start in (b"", b"MZ", build()[:0x80], build()[:0x98], build()[:0x188]):
        try:
            read_data(start + data, tmp_path_factory.getbasetemp() / "any.dll")
        except NotAnImage:
            pass


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_table(tmp_path_factory: pytest.TempPathFactory, table: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "table.dll"
    read_data(build(table=table), path)
    read_data(build(table=block(0x1000, [0, 8], 10) + table), path)


EMPTY_BLOCK = struct.pack("<II", 0x1000, 8)
TABLE = """
import os, resource, sys
from cygwin.image import read_image
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
descriptor = os.open(sys.argv[1], os.O_RDONLY)
image = read_image(descriptor, os.fstat(descriptor).st_size)
print(image.fault.reason(image.detail) if image.fault else None)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "fault"),
    [
        (Shape(table=EMPTY_BLOCK * 1_000_000), "is one too many"),
        (Shape(table=block(0x1000, [0], 10) * 1_000_000), "is one too many"),
        (Shape(table=EMPTY_BLOCK + bytes(50_000_000)), "are no block"),
        (Shape(table=block(0x1000, [], 10) + bytes(8000 * 4096)), "are no block"),
        (Shape(table=struct.pack("<II", 0x1000, 0xFFFF_FFF8) + bytes(30_000_000)), "has the size"),
        (Shape(table=b"\xa0" * 40_000_000), "has the size"),
        (Shape(patches={0x86: b"\xff\xff"}, overlay=b"\x10\x11" * 2_000_000), "damaged"),
    ],
    ids=["empty blocks", "same block", "zeros", "zeros behind", "huge block", "noise", "sections"],
)
def test_made_to_be_slow(shape: Shape, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    path.write_bytes(build(shape))
    began = os.times()
    result = subprocess.run(
        [sys.executable, "-c", TABLE.format(memory=MEMORY), path],
        check=True,
        stdout=subprocess.PIPE,
        timeout=100,
        cwd=SUPPORT.parents[1],
    )
    ended = os.times()
    assert fault in result.stdout.decode()
    used = ended.children_user + ended.children_system - began.children_user - began.children_system
    assert used < 5 * SECONDS, "Python's own start included, on a slow machine"


def test_a_sparse_file_of_many_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    data = build(directories={5: (0x3000, 0x7FFF_0000)})
    path.write_bytes(data)
    os.truncate(path, 1 << 36)
    began = time.process_time()
    with opened(path, os.O_RDONLY) as descriptor:
        image = read_image(descriptor, 1 << 36)
    assert image.fault is not None
    assert time.process_time() - began < SECONDS
