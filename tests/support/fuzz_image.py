"""Throws damaged images at the reader and the engine: fuzz_image.py [SEED [EXECUTIONS]].

Whatever a file says, reading it ends in an Image or in NotAnImage, within a second and within
256 MiB of address space; and an image that has no fault is moved, and passes the check.
"""

from __future__ import annotations

import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from pe import Shape, block, build, checksum, checksum_field  # noqa: E402

from cygwin.address_space import ARM64, I386  # noqa: E402
from cygwin.fault import NotAnImage  # noqa: E402
from cygwin.image import Image, read_image  # noqa: E402
from cygwin.relocation import check_and_sum, relocate  # noqa: E402

MEMORY = 256 << 20  # bytes of address space
SECONDS = 1.0  # of processor time an execution
INTERESTING = (0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 40, 64, 96, 112, 128, 0x1FF, 0x200, 0xFFF, 0x1000)
INTERESTING += (0x1001, 0x7FFF, 0x8000, 0xA000, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000)
INTERESTING += (0xFFFF_F000, 0xFFFF_FFFF)


def seeds() -> list[bytes]:
    """Return sound and odd images, small ones, to begin from."""
    made = [
        build(),
        build(words=range(0x1000, 0x2FF0, 24), overlay=b"overlay" * 9),
        build(machine=I386, base=0x6D00_0000, words=range(0x1001, 0x2F00, 17)),
        build(machine=ARM64),
        build(e_lfanew=0x40, words=()),
        build(e_lfanew=0x108, table=block(0x2000, [0], 10) + block(0x1000, [8, 0xFFC], 10)),
        build(directories={4: (0x2400, 16), 14: (0x1000, 72)}, overlay=bytes(16)),
        build(Shape(data_size=0x8000, words=range(0x1000, 0x9000, 0x200))),
    ]
    real = Path(os.environ.get("REBASER_FUZZ_SEEDS", "/nonexistent"))
    made += [path.read_bytes() for path in sorted(real.glob("*.dll")) if path.stat().st_size < 1e5]
    return made


def fields(data: bytes) -> list[tuple[int, int]]:
    """Return (offset, size) of the fields of a sound image that decide anything."""
    at = struct.unpack_from("<I", data, 60)[0]
    count, optional_size = struct.unpack_from("<H12xH", data, at + 6)
    optional = at + 24
    plus = data[optional + 1] == 2
    found = [(60, 4), (at, 4), (at + 4, 2), (at + 6, 2), (at + 12, 4), (at + 16, 4)]
    found += [(at + 20, 2), (at + 22, 2), (optional, 2), (optional + 24, 8), (optional + 32, 4)]
    found += [(optional + 36, 4), (optional + 56, 4), (optional + 60, 4), (optional + 70, 2)]
    directories = optional + (112 if plus else 96)
    found += [(directories - 4, 4)]
    found += [(directories + 8 * n + m, 4) for n in (4, 5, 14) for m in (0, 4)] * 2
    sections = optional + optional_size
    for number in range(count):
        found += [(sections + 40 * number + offset, 4) for offset in (8, 12, 16, 20)]
    rva, size = struct.unpack_from("<II", data, directories + 40)
    for number in range(count):
        address, raw_size, raw = struct.unpack_from("<4xIII", data, sections + 40 * number + 8)
        if address <= rva < address + raw_size:
            table = raw + rva - address
            found += [(table + 4 * word, 4) for word in range(min(size // 4, 64))]
            found += [(table + 2 * word, 2) for word in range(min(size // 2, 128))]
    return found


def mutate(choose: random.Random, data: bytes, where: list[tuple[int, int]]) -> bytes:
    """Damage an image at some places."""
    whole = bytearray(data)
    for _ in range(choose.choice((1, 1, 1, 2, 3, 8))):
        kind = choose.random()
        if kind < 0.75:
            offset, size = choose.choice(where)
            old = int.from_bytes(whole[offset : offset + size], "little")
            value = choose.choice(
                (
                    choose.choice(INTERESTING),
                    old + choose.choice((-0x1000, -8, -4, -2, -1, 1, 2, 4, 8, 0x1000)),
                    old ^ 1 << choose.randrange(8 * size),
                    choose.getrandbits(8 * size),
                    len(whole) + choose.randrange(-16, 17),
                )
            )
            whole[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        elif kind < 0.85:
            for _ in range(choose.randrange(1, 20)):
                whole[choose.randrange(len(whole))] = choose.getrandbits(8)
        elif kind < 0.90:
            del whole[choose.randrange(len(whole)) :]
        elif kind < 0.95:
            begin, target = choose.randrange(len(whole)), choose.randrange(len(whole))
            piece = whole[begin : begin + choose.randrange(200)]
            whole[target : target + len(piece)] = piece
        else:
            whole += choose.randbytes(choose.randrange(5000))
        if not whole:
            break
    return bytes(whole)


def fill(descriptor: int, data: bytes) -> None:
    """Make `data` the content of a file."""
    os.ftruncate(descriptor, len(data))
    os.pwrite(descriptor, data, 0)


def execute(old: int, new: int, data: bytes, choose: random.Random) -> str:
    """Read, and where it can be, move and check one image; return what came of it."""
    fill(old, data)
    try:
        image: Image = read_image(old, len(data))
    except NotAnImage:
        return "no image"
    if image.fault:
        return "fault"
    fill(new, data)
    highest = (1 << 8 * image.base_width) - image.slot_size >> 16
    new_base = choose.randrange(highest + 1) << 16
    clear = choose.random() < 0.5
    relocate(new, image, new_base, clear_dynamic_base=clear)
    check_and_sum(old, new, image, new_base, clear_dynamic_base=clear)
    result = os.pread(new, len(data), 0)
    moved = read_image(new, len(data))
    assert moved.base == new_base
    right = int.from_bytes(result[checksum_field(result)], "little")
    assert right == checksum(result)
    if moved.fault is None:
        relocate(new, moved, image.base, clear_dynamic_base=False)
        back = bytearray(os.pread(new, len(data) + 1, 0))
        back[image.flags_offset] = data[image.flags_offset]
        back[checksum_field(data)] = data[checksum_field(data)]
        assert back == data
    return "moved"


def fuzz(seed: int, executions: int) -> Counter[str]:
    """Run; raises what the code under test raised, and leaves the input in a file."""
    choose = random.Random(seed)
    images = [(data, fields(data)) for data in seeds()]
    results: Counter[str] = Counter()
    with tempfile.TemporaryFile() as old, tempfile.TemporaryFile() as new:
        for number in range(executions):
            data = mutate(choose, *choose.choice(images))
            began = time.process_time()
            try:
                results[execute(old.fileno(), new.fileno(), data, choose)] += 1
                took = time.process_time() - began
                assert took < SECONDS, f"took {took:.1f} seconds"
            except BaseException:
                handle, path = tempfile.mkstemp(f"-{seed}-{number}.dll", "fuzz-")
                os.write(handle, data)
                print(f"seed {seed}, execution {number}: input is in {path}", file=sys.stderr)
                raise
    return results


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    words = [int(word) for word in sys.argv[1:]] + [0, 100_000][len(sys.argv) - 1 :]
    for result, times in sorted(fuzz(*words).items()):
        print(f"{times:>9,} {result}")
