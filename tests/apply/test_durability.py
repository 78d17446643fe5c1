"""Power loss: what is waited for before what, as strace and a recording shim have it."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stop_at import Call, in_child, intercept
from trees import Rebaser, add_dll, add_dlls, make_tree, overlaps

pytestmark = pytest.mark.slow

Event = tuple[
    str, ...
]  # ("write", path), ("fsync", path), ("link", old, new), ("rename", old, new)


def tree_with_links(root: Path) -> Path:
    """Make a tree of DLLs in two folders, one with two names."""
    make_tree(root, 4)
    add_dll(root / "lib/z.so")
    os.link(root / "bin/x001.dll", root / "lib/again.dll")
    return root


def check_order(events: Sequence[Event], root: Path) -> None:
    """Demand that no file gets its name before it is durable, and that all names are in the end."""
    dirty: set[str] = set()
    synced: set[str] = set()
    folders: set[str] = set()
    renamed: list[str] = []
    for kind, path, *more in events:
        if not path.startswith(f"{root}/"):
            continue  # Python's own, which compiles what it imports for the first time
        if kind == "write":
            assert path not in map(str, renamed), f"{path} is written in its place"
            dirty.add(path)
            synced.discard(path)
        elif kind == "fsync":
            dirty.discard(path)
            synced.add(path)
            folders.discard(path)
        elif kind == "link":
            assert path not in dirty
            synced.add(more[0])
        elif kind == "rename":
            assert path not in dirty, f"{path} was renamed before its bytes were durable"
            assert path in synced, f"nobody waited for {path}"
            synced.discard(path)
            renamed.append(more[0])
            folders.add(os.path.dirname(more[0]))
    assert not folders, f"the names in {folders} may be lost"

    dlls = [path for path in renamed if path.endswith((".dll", ".so"))]
    assert {os.path.relpath(path, root) for path in dlls} == {
        *(f"bin/x{n:03}.dll" for n in range(4)),
        "lib/z.so",
        "lib/again.dll",
    }
    # The run's record is there before the first commit; what was seen is written after the last.
    assert renamed.index(str(root / "var/lib/rebaser/runs/1.json")) < renamed.index(dlls[0])
    seen = str(root / "var/lib/rebaser/seen")
    assert renamed.index(seen) > max(renamed.index(path) for path in dlls)
    # Names of DLLs are durable before the next run is told that they are there.
    at_seen = next(i for i, event in enumerate(events) if event[0] == "rename" and event[2] == seen)
    for folder in ("bin", "lib"):
        last = max(
            i
            for i, event in enumerate(events)
            if event[0] == "rename" and os.path.dirname(event[2]) == str(root / folder)
        )
        assert ("fsync", str(root / folder)) in events[last:at_seen]


_CALL = re.compile(r"^(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"^(\d+) +<\.\.\. (\w+) resumed>(.*)$")
_DESCRIPTOR = re.compile(r"^\d+<(.*?)>[,)]?")
_NAME = re.compile(r'(?:(?:\d+|AT_FDCWD)<(.*?)>, )?"((?:[^"\\]|\\.)*)"')


def traced_events(text: str) -> list[Event]:
    """Return the events of an strace log; a call counts when it is over."""
    events: list[Event] = []
    pending: dict[str, str] = {}
    for line in text.splitlines():
        call = _CALL.match(line)
        if call:
            pid, name, rest = call.groups()
            if rest.endswith("<unfinished ...>"):
                pending[pid] = rest
                continue
        else:
            resumed = _RESUMED.match(line)
            if not resumed:
                continue
            pid, name, tail = resumed.groups()
            rest = pending.pop(pid) + tail
        if " = -1 " in rest or rest.endswith("= ?"):
            continue
        descriptor = _DESCRIPTOR.match(rest)
        strings = [os.path.join(folder, name) for folder, name in _NAME.findall(rest)]
        if name in ("write", "pwrite64") and descriptor:
            events.append(("write", descriptor[1]))
        elif name in ("fsync", "fdatasync") and descriptor:
            events.append(("fsync", descriptor[1]))
        elif name.startswith("rename"):
            events.append(("rename", *strings[:2]))
        elif name.startswith("link"):
            events.append(("link", *strings[:2]))
    return events


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: install strace")
def test_order_of_system_calls(rebaser: Rebaser, tmp_path: Path) -> None:
    root = tree_with_links(tmp_path / "tree")
    trace = tmp_path / "trace"
    calls = "trace=write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,link,linkat"
    result = rebaser("run", root, before=["strace", "-f", "-y", "-o", str(trace), "-e", calls])
    if "ptrace" in result.err:
        pytest.skip("strace may not trace here")
    assert result.status == 0, result.words
    assert overlaps(root) == set()
    check_order(traced_events(trace.read_text(errors="replace")), root)


def test_order_of_pythons_calls(tmp_path: Path) -> None:
    root = tree_with_links(tmp_path / "tree")
    record = tmp_path / "record"
    lock = threading.Lock()

    def note(name: str, real: Call, words: Sequence[Any]) -> None:
        if name in ("write", "pwrite", "fsync"):
            try:
                paths = [os.readlink(f"/proc/self/fd/{words[0]}")]
            except OSError:
                pytest.skip("needs /proc")
        else:
            paths = [str(word) for word in words]
        kind = {"pwrite": "write", "replace": "rename"}.get(name, name)
        with lock, open(record, "a") as file:
            file.write("\t".join([kind, *paths]) + "\n")

    names = ("write", "pwrite", "fsync", "replace", "rename", "link")
    log = tmp_path / "log"
    assert in_child(["run", str(root)], lambda: intercept(names, note), log) == 0, log.read_text()
    check_order([tuple(line.split("\t")) for line in record.read_text().splitlines()], root)


def test_what_cannot_be_made_durable_is_not_put_in_place(tmp_path: Path) -> None:
    root = tree_with_links(tmp_path / "tree")
    before = (root / "bin/x002.dll").read_bytes()

    def fail(name: str, real: Call, words: Sequence[Any]) -> None:
        if os.fstat(words[0]).st_size == len(before):
            raise OSError(5, "Input/output error")

    log = tmp_path / "log"
    same = [p.name for p in root.glob("*/*.*") if p.stat().st_size == len(before)]
    status = in_child(["run", str(root)], lambda: intercept(["fsync"], fail), log)
    assert os.WEXITSTATUS(status) == 1
    said = log.read_text()
    assert "failed bin/x002.dll: its copy could not be made (Input/output error)" in said
    assert (root / "bin/x002.dll").read_bytes() == before
    assert said.count("failed ") == len(same)


def test_a_folder_that_knows_no_fsync(tmp_path: Path) -> None:
    """Some network file systems refuse it: that is no failure; another error is told."""
    for number, (code, status) in enumerate([(22, 0), (95, 0), (5, 1)]):
        root = tmp_path / f"t{number}"
        (root / "var").mkdir(parents=True)
        add_dlls(root, 2)

        def fail(name: str, real: Call, words: Sequence[Any], code: int = code) -> None:
            if os.readlink(f"/proc/self/fd/{words[0]}").endswith("/bin"):
                raise OSError(code, os.strerror(code))

        log = tmp_path / "log"
        done = in_child(["run", str(root)], lambda fail=fail: intercept(["fsync"], fail), log)
        assert os.WEXITSTATUS(done) == status, log.read_text()
        assert overlaps(root) == set()
        assert ("may not survive a power failure" in log.read_text()) is bool(status)
