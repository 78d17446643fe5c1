"""A package manager in small: installs, replaces and removes DLLs under the shared lock.

    installer.py ROOT NUMBER SECONDS

Prints one JSON object in the end: the DLLs that it leaves, by path, each with its data size, from
which its bytes can be made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import pe

from rebaser.files import MOMENTARY, patiently

LINKERS = 0x4_0000_0000


def content(data_size: int) -> bytes:
    """Return the DLL of this data size as it is shipped."""
    return pe.build(base=LINKERS, data_size=data_size)


@contextmanager
def under_flock(root: str) -> Iterator[None]:
    """Hold the tree's lock shared."""
    with open(f"{root}/var/lock/rebase.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def main(
    root: str,
    number: int,
    seconds: float,
    locked: Callable[[str], AbstractContextManager[None]] = under_flock,
) -> None:
    """Install for so long, each time with the lock held."""
    dice = random.Random(number)
    there: dict[str, int] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with locked(root):
            for _ in range(dice.randrange(1, 5)):
                folder = f"lib/p{number}-{dice.randrange(4)}"
                path = f"{folder}/m{dice.randrange(10)}.dll"
                os.makedirs(f"{root}/{folder}", exist_ok=True)
                if path in there and dice.random() < 0.4:
                    os.unlink(f"{root}/{path}")
                    del there[path]
                    continue
                size = dice.randrange(1, 40) * 0x400 + 0x1100
                data = content(size)
                if dice.random() < 0.5:  # in place, bit by bit, as cp does
                    with open(f"{root}/{path}", "wb", buffering=0) as file:
                        for at in range(0, len(data), 7000):
                            file.write(data[at : at + 7000])
                            time.sleep(0.001)
                else:
                    with open(f"{root}/{path}.new", "wb") as file:
                        file.write(data)
                    # Wine renames over no file that a run is looking at.
                    replace = partial(os.replace, f"{root}/{path}.new", f"{root}/{path}")
                    patiently(replace, MOMENTARY)
                there[path] = size
        time.sleep(dice.uniform(0, 0.02))
    print(json.dumps(there))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
