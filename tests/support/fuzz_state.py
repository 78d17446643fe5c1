"""Throws damaged memories, records and names at rebaser: fuzz_state.py PART [SEED [EXECUTIONS]].

PART is `seen` (what a run remembers, under a right checksum), `records` (of the runs) or `names`
(of files and sections, and times; run it in several locales). Whatever they say, every command
ends as it should: with a status, no traceback, and DLLs that are whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import struct
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

from pe import Shape, build, section_header  # noqa: E402
from trees import add_dll, base_in, make_tree, moved  # noqa: E402

from rebaser import cli  # noqa: E402
from rebaser.files import on_cygwin  # noqa: E402
from rebaser.options import Request  # noqa: E402
from rebaser.report import Group, Report  # noqa: E402
from rebaser.scan import snapshot  # noqa: E402
from rebaser.state import records  # noqa: E402
from rebaser.state.folder import State  # noqa: E402

NUMBERS = (0, 1, 2, 3, 4, 8, 0x7F, 0x80, 0xFF, 0x14C, 0x8664, 0xFFFF, 1 << 31, (1 << 32) - 1)
NUMBERS += (1 << 33, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
TEXTS = (b"", b".", b"..", b"/", b"a/../b", b"\0", b"\xff", "日本ä".encode(), b"\n\x1b[31m", b"bin")


def tell_all(error: Exception) -> str:
    """Let what nobody expected be seen, in place of rebaser's own report of it."""
    raise error


def _run(*words: str) -> tuple[int, str]:
    """Run a command in this process; return its status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.status_of(words)
    assert status in (0, 1), f"{words} ended with {status}: {err.getvalue()}"
    return status, out.getvalue()


class Fuzz:
    """One tree, and ways to damage what rebaser keeps of it."""

    def __init__(self, seed: int, top: Path) -> None:
        self.choose = random.Random(seed)
        self.root = make_tree(top / "tree", 3)
        for folder in (b"\xff", "ä".encode(), b"in/.rebaser/runs"):
            (self.root / os.fsdecode(folder)).mkdir(parents=True)
        add_dll(self.root / os.fsdecode(b"\xff/\xe4.dll"), data_size=0x3000)
        cut = build(patches={section_header(Shape(), 1): b"a\0\0b\0\0\0\0"})[:-1]
        (self.root / "bin/cut.dll").write_bytes(cut)
        self.command = ["run", str(self.root), "--no-wait", "--cygwin-root", str(top)]
        _run(*self.command)
        self.state = State(str(self.root / "var/lib/rebaser"), str(self.root))
        self.seen = Path(self.state.snapshot_file)
        self.good = self.seen.read_bytes()
        self.files = {path: path.read_bytes() for path in self.root.rglob("*.dll")}

    def check(self) -> None:
        """Demand that each DLL is whole; a memory that lies may have moved one."""
        for path, old in self.files.items():
            new = path.read_bytes()
            assert new == old or new == moved(old, base_in(new)), path
        _run(*self.command)
        self.good = self.seen.read_bytes()

    def look(self) -> None:
        """Run one of the commands that use what is kept."""
        words = self.choose.choice((self.command, ["status"], ["check"], ["info"], ["map"]))
        if len(words) == 1:
            words = [*words, str(self.root)]
        if words[0] == "run" and self.choose.random() < 0.5:
            words = [*words, "--dry-run"]
        _, out = _run(*words, *self.choose.choice(((), ("--json",))))
        if out.startswith("{"):
            json.loads(out)

    # What a run remembers.

    def damage(self, body: bytearray) -> None:
        """Damage the numbers or the texts of a memory."""
        choose = self.choose
        folders, files, *_, overlaps = struct.unpack_from("<7Q", body)
        texts_at = 56 + folders * 40 + files * snapshot._FILE.size + overlaps * 26
        kind = choose.random()
        if kind < 0.6:  # a field of a row
            at = choose.randrange(56 if choose.random() < 0.95 else 0, texts_at)
            size = choose.choice((1, 1, 2, 4, 8))
            value = choose.choice((*NUMBERS, choose.getrandbits(64))) % (1 << 8 * size)
            body[at : at + size] = value.to_bytes(size, "little")[: texts_at - at]
        elif kind < 0.9:  # a text, of any length
            texts = bytes(body[texts_at:]).split(b"\0")
            new = choose.choice((*TEXTS, choose.randbytes(choose.randrange(9))))
            texts[choose.randrange(len(texts))] = new
            body[texts_at:] = b"\0".join(texts)
        else:
            at = choose.randrange(len(body))
            body[at : at + choose.randrange(9)] = choose.randbytes(choose.randrange(9))

    def execute_seen(self) -> str:
        """Have a damaged memory read, and believed as far as it can be."""
        body = bytearray(self.good[24:])
        # Of one damaged before, the counts lead nowhere.
        with contextlib.suppress(struct.error, IndexError, ValueError, OverflowError, MemoryError):
            for _ in range(self.choose.choice((1, 1, 1, 2, 4))):
                self.damage(body)
        header = struct.pack(
            "<8sIIQ", snapshot.MAGIC, snapshot.VERSION, zlib.crc32(body), len(body)
        )
        try:
            snapshot.load(header + body)
        except snapshot.SnapshotLostError:
            return "lost"
        if self.choose.random() < 0.2:  # reading it takes a tenth of what a command takes
            self.seen.write_bytes(header + body)
            self.look()
        return "believed"

    # The records of the runs.

    def value(self, depth: int = 0) -> Any:
        """Return something that JSON can say."""
        choose = self.choose
        return choose.choice(
            (
                *(None, True, "", "bin/x000.dll", "\udcff", "\ud800", "ä\0\n", -1, 0.5),
                *(1e400, -1e400, float("nan"), 1 << 64, 10**400),
                choose.getrandbits(70),
                [] if depth > 3 else [self.value(depth + 1) for _ in range(choose.randrange(4))],
                {} if depth > 3 else {"paths": self.value(depth + 1), "low": self.value(depth + 1)},
            )
        )

    def replace(self, value: Any) -> Any:
        """Replace something somewhere in a record."""
        keys: list[Any] = []
        if isinstance(value, dict):
            keys = list(value)
        elif isinstance(value, list):
            keys = list(range(len(value)))
        if not keys or self.choose.random() < 0.2:
            return self.value()
        key = self.choose.choice(keys)
        if self.choose.random() < 0.1:
            del value[key]
        else:
            value[key] = self.replace(value[key])
        return value

    def execute_records(self) -> str:
        """Have a damaged record read, and listed."""
        one = Path(self.state.runs, "1.json")
        if not hasattr(self, "record"):
            self.request = json.loads(one.read_text())["request"]
            group = Group(0x8664, 1 << 33, 1 << 34, ("bin/x000.dll", "\udcff/\udce4.dll"), "run")
            report = Report("", "builtin", failed=(("a", "b"),), unfinished=("c",))
            report = report._replace(overlaps=(group,))
            only = frozenset(("bin/x000.dll",))
            self.state.make()
            made = records.begin(self.state, Request(self.request["options"], "", only), 1.0)
            records.finish(self.state, made, report)
            self.state.clear_staging()
            self.record = Path(self.state.runs, f"{made.number}.json").read_text()
        fields = json.loads(self.record)
        for _ in range(self.choose.choice((1, 1, 2, 4))):
            fields = self.replace(fields)
        data = json.dumps(fields).encode()
        if self.choose.random() < 0.2:
            at = self.choose.randrange(len(data))
            data = data[:at] + self.choose.randbytes(2) + data[at + self.choose.randrange(9) :]
        one.write_bytes(data)
        found = records._read(self.state, 1)
        asked = Request(self.request["options"], "", frozenset(("bin/x000.dll",)))
        records.covering(self.state, asked, records.Asked(0, 0.0))
        if self.choose.random() < (0.2 if found else 0.02):
            self.look()
        return "a record" if found else "no record"

    # Names and times.

    def execute_names(self) -> str:
        """Have a DLL of any name, with sections of any names and any time, moved and listed."""
        choose = self.choose
        name = bytes(choose.choice(range(1, 256)) for _ in range(choose.randrange(1, 20)))
        name = choose.choice((name, *TEXTS[6:])).replace(b"/", b"").replace(b"\0", b"") + b".dll"
        if on_cygwin():  # a name is UTF-16 there
            name = bytes(code for code in name if 32 <= code < 127 and code != ord("\\"))
        name = b"_" + name if len(name) < 6 else name  # none that is there
        folder = os.fsencode(self.root) + choose.choice((b"/bin/", b"/\xff/", "/ä/".encode()))
        shape = Shape()
        names = {section_header(shape, n): choose.randbytes(8) for n in range(choose.randrange(3))}
        old = build(patches=names)
        new = old[:-1] if choose.random() < 0.3 else old
        with open(folder + name, "wb") as file:
            file.write(new)
        time = choose.choice((choose.getrandbits(66) - (1 << 65), *NUMBERS)) * choose.choice(
            (1, -1)
        )
        with contextlib.suppress(OSError, OverflowError):  # what the file system has not
            os.utime(folder + name, ns=(time, time))
        try:
            _, out = _run(*self.command, "--json")
            with open(folder + name, "rb") as file:
                now = file.read()
            assert now in (new, moved(old, base_in(now))), "damaged"
            path = (folder + name)[len(os.fsencode(self.root)) + 1 :]
            said = json.loads(out)
            told = {one["path"].encode("utf-8", "surrogateescape") for one in said["moved"]}
            assert (path in told) == (now != new), "moved, and not told"
            self.look()
        finally:
            os.unlink(folder + name)
        return "moved" if now != new else "left"


def fuzz_state(part: str, seed: int, executions: int) -> Counter[str]:
    """Run; raises what the code under test raised, and says at which execution."""
    cli._bug = tell_all
    results: Counter[str] = Counter()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    top = tempfile.mkdtemp(prefix="rebaser-fuzz-", dir=memory)
    try:
        one = Fuzz(seed, Path(top))
        execute: Callable[[], str] = getattr(one, f"execute_{part}")
        for number in range(executions):
            try:
                results[execute()] += 1
                if number % 1000 == 0:
                    one.check()
            except BaseException:
                print(f"{part}, seed {seed}, execution {number}", file=sys.stderr)
                raise
    finally:
        shutil.rmtree(top, ignore_errors=on_cygwin())  # Wine keeps a folder that is open
    return results


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]] + [0, 10_000][len(sys.argv) - 2 :]
    for result, times in sorted(fuzz_state(sys.argv[1], *numbers).items()):
        print(f"{times:>9,} {result}")
