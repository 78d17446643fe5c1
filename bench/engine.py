"""Relocating and planning: the two computations, measured in this very process."""

from __future__ import annotations

import math
import os
import random
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.measure import by_turns
from bench.session import Session
from bench.table import Row, milliseconds, not_measured, ratio
from cygwin.address_space import GRANULARITY, X86_64, Range
from cygwin.image import Image, read_base, read_image
from cygwin.relocation import relocate
from rebaser.plan.placement import Placed, make_plan

ROUNDS = 5
DELTA = 0x1_0000


def rows(session: Session) -> Iterator[Row]:
    """Yield the rows of relocating and planning."""
    yield _relocating(session)
    yield _planning(session)


def _relocating(session: Session) -> Row:
    what, against, goal = "relocating", "numpy's vectorised loop", "≤ 1.5 × its time"
    try:
        import numpy
    except ImportError:
        return not_measured(what, against, goal, "numpy is not installed")
    session.say("relocating, beside numpy")
    folder = session.scratch / "relocate"
    folder.mkdir()
    files: list[tuple[Path, Image]] = []
    for number, source in enumerate(session.material.of_size(session.sizes.full)):
        path = folder / f"{number:05}.dll"
        shutil.copyfile(source, path)
        with path.open("rb") as file:
            image = read_image(file.fileno(), os.fstat(file.fileno()).st_size)
        # A scan keeps the marks of the words; numpy has to find the words, and so shall we.
        blocks = tuple(block._replace(marks=None) for block in image.blocks)
        files.append((path, image._replace(blocks=blocks)))
    moved = {path: image._replace(base=image.base + DELTA) for path, image in files}
    words = sum(_by_numpy(path, image, _add_at_once, numpy, 0) for path, image in files)

    def each(move: Callable[[Path, Image], object]) -> Callable[[], float]:
        return lambda: _each(files, move)

    times = by_turns(
        ROUNDS,
        ours=each(lambda path, image: _by_rebaser(path, image, moved[path])),
        numpy=each(lambda path, image: _by_numpy(path, image, _add_by_block, numpy, DELTA)),
        at_once=each(lambda path, image: _by_numpy(path, image, _add_at_once, numpy, DELTA)),
        floor=each(lambda path, image: _by_numpy(path, image, None, numpy, 0)),
    )
    shutil.rmtree(folder)
    result = times["ours"].best / times["numpy"].best

    def cost(name: str) -> str:
        taken = times[name].best
        return f"{milliseconds(taken)} ({taken / words * 1e6:.2f} µs a word)"

    return Row(
        f"{what} {len(files)} DLLs, {words:,} words",
        f"{against} (one addition a block)",
        f"{ratio(result)} of processor: {cost('ours')} against {cost('numpy')}; numpy with all "
        f"words of a file in one array, unchecked: {cost('at_once')}; of each, reading and "
        f"writing the files {milliseconds(times['floor'].best)}",
        goal,
        result <= 1.5,
    )


def _each(files: list[tuple[Path, Image]], move: Callable[[Path, Image], object]) -> float:
    began = time.process_time()
    for path, image in files:
        move(path, image)
    return time.process_time() - began


def _by_rebaser(path: Path, here: Image, there: Image) -> None:
    """Move the file to where it is not, with all of rebaser's checks."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        base = read_base(descriptor, here.base_offset, here.base_width)
        image, other = (here, there) if base == here.base else (there, here)
        relocate(descriptor, image, other.base, clear_dynamic_base=False)
    finally:
        os.close(descriptor)


def _by_numpy(path: Path, image: Image, add: Any, np: Any, delta: int) -> int:
    """Do the same with numpy, without any check; return the words moved.

    Without `add` the file is read and written all the same.
    """
    with path.open("r+b", buffering=0) as file:
        data = bytearray(path.stat().st_size)
        file.readinto(data)
        count = 0
        if add:
            kind = "<u8" if image.base_width == 8 else "<u4"
            every = np.ndarray((len(data) - image.base_width + 1,), kind, data, 0, (1,))
            count = add(every, _blocks(data, image, np), delta, np)
        if delta or not add:
            file.seek(0)
            file.write(data)
    return count


def _add_by_block(every: Any, blocks: Iterator[Any], delta: int, np: Any) -> int:
    count = 0
    for where in blocks:
        every[where] += every.dtype.type(delta)
        count += len(where)
    return count


def _add_at_once(every: Any, blocks: Iterator[Any], delta: int, np: Any) -> int:
    pieces = list(blocks)
    if not pieces:
        return 0
    where = np.concatenate(pieces)
    every[where] += every.dtype.type(delta)
    return len(where)


def _blocks(data: bytearray, image: Image, np: Any) -> Iterator[Any]:
    """Yield the places of the words of each block of the relocation table."""
    rva, size = image.relocations
    sections = image.sections
    home = next(s for s in sections if s.virtual_address <= rva < s.virtual_address + s.raw_size)
    at = home.raw_offset + rva - home.virtual_address
    end = at + size
    header = struct.Struct("<II")
    section = home
    while at + 8 <= end:
        page, length = header.unpack_from(data, at)
        if length < 8:
            break
        if not section.virtual_address <= page < section.virtual_address + section.raw_size:
            section = next(
                (s for s in sections if s.virtual_address <= page < s.virtual_address + s.raw_size),
                section,
            )
        entries = np.frombuffer(data, "<u2", (length - 8) // 2, at + 8)
        entries = entries[entries >= 0x1000] & 0xFFF
        yield entries + np.int64(page - section.virtual_address + section.raw_offset)
        at += length


def _planning(session: Session) -> Row:
    session.say("planning")
    counts = session.sizes.plan
    seconds = {
        count: min(_plan_once(count) for _ in range(3 if count <= 100_000 else 1))
        for count in counts
    }
    unit = {count: taken / (count * math.log2(count)) * 1e9 for count, taken in seconds.items()}
    listed = ", ".join(
        f"{count:,} in {milliseconds(seconds[count])} ({unit[count]:.0f} ns · n log₂ n)"
        for count in counts
    )
    straight = max(unit.values()) <= 2.5 * min(unit.values())
    return Row(
        "planning that many images, all to be moved",
        "",
        f"processor: {listed}",
        "100,000 images ≤ 1 s; n log n",
        seconds[100_000] <= 1 and straight,
    )


def _plan_once(count: int) -> float:
    """Plan images of the sizes of real DLLs, four to a base, in an arena that has room."""
    random.seed(count)
    low = 0x2_0000_0000
    arena = Range(low, low + count * 16 * GRANULARITY)
    images = [
        Placed(
            path=f"lib/package{random.randrange(count):07}/{number}.dll",
            machine=X86_64,
            base=arena.high + random.randrange(count) // 4 * GRANULARITY,
            slot_size=GRANULARITY * random.choice((1, 1, 1, 1, 2, 2, 3, 5, 10, 20)),
            file_size=number,
        )
        for number in range(count)
    ]
    began = time.process_time()
    plan = make_plan(images, {X86_64: arena}, {})
    seconds = time.process_time() - began
    assert len(plan.moves) == count
    return seconds
