"""Who holds a lock, told by /proc of real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lock_programs import FLOCK, UNTIL_END, eventually, held, needs_flock, started

from locks.flock import EXCLUSIVE, Flock
from locks.holders import blocked_in, describe_holders, flock_in, holders, printable

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc/PID/fdinfo")


def test_nobody(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    assert holders(str(tmp_path / "lock")) == []
    assert holders(str(tmp_path / "missing")) == []
    assert describe_holders(str(tmp_path / "missing")) == (
        "held by a process that cannot be seen from here"
    )


@linux
@needs_flock
@pytest.mark.parametrize(("option", "mode"), [("-s", "shared"), ("-x", "exclusive")])
def test_the_holder_and_how_it_holds_it(tmp_path: Path, option: str, mode: str) -> None:
    path = tmp_path / "lock"
    with held(FLOCK, option, lock=path) as child, Flock.open(str(path)) as mine:
        found = holders(str(path))
        assert child.pid in {holder.pid for holder in found}
        assert {holder.mode for holder in found} == {mode}
        assert os.getpid() not in {holder.pid for holder in found}
        assert holders(mine.fileno()) == found
        # flock(1), its shell and cat have the descriptor: one family, one name.
        how = "exclusively" if mode == "exclusive" else "shared"
        assert describe_holders(str(path)).startswith(
            f"held {how} by pid {child.pid} (flock {option} "
        )
        assert describe_holders(str(path)).endswith(")")
        assert "," not in describe_holders(str(path)).replace(str(path), "")


@linux
@needs_flock
def test_who_has_it_open_and_who_waits(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with Flock.open(str(path)) as mine:
        assert mine.try_acquire(EXCLUSIVE)
        with open(path) as file, started(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()]):
            waiter = started(["flock", str(path), "true"])
            with waiter as child:
                eventually(
                    lambda: (
                        {(h.pid, h.mode, h.waiting) for h in holders(str(path)) if h.waiting}
                        == {(child.pid, None, True)}
                    )
                )
                assert [h.command for h in holders(str(path)) if not h.waiting] == ["cat"]
                assert describe_holders(str(path)) == (
                    "held by a process that cannot be seen from here"
                )
                mine.release()
                assert child.wait(20) == 0


@linux
@needs_flock
def test_many_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(FLOCK, "-s", lock=path), held(FLOCK, "-s", lock=path):
        assert " more" not in describe_holders(str(path))
        with held(FLOCK, "-s", lock=path), held(FLOCK, "-s", lock=path):
            assert describe_holders(str(path)).endswith(", 1 more")


@linux
@needs_flock
def test_a_command_line_cannot_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    for word, shown in (("\x1b[2J\n.", r"\x1b[2J\n."), ("x" * 99, "xxx...")):
        with started(["flock", "lock", *UNTIL_END, word], cwd=tmp_path) as child:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
            commands = [holder.command for holder in holders(str(path))]
            assert commands
            assert all(command.isprintable() for command in commands)
            assert any(shown in command for command in commands)


@given(st.text())
def test_printable(text: str) -> None:
    assert printable(text).isprintable()
    assert printable(text) == text or not text.isprintable()


LINES = st.sampled_from(
    [
        "pos:\t0",
        "flags:\t0100002",
        "lock:\t1: POSIX  ADVISORY  WRITE 7 fe:00:12 0 EOF",
        "lock:\t1: OFDLCK ADVISORY  READ 7 fe:00:12 0 EOF",
        "lock:\t1: LEASE  ACTIVE  WRITE 7 fe:00:12 0 EOF",
        "",
        "lock:",
    ]
)


@given(st.lists(LINES), st.sampled_from(["READ", "WRITE"]), st.lists(LINES))
def test_the_lock_line_of_fdinfo(before: list[str], kind: str, after: list[str]) -> None:
    line = f"lock:\t1: FLOCK  ADVISORY  {kind} 1234 fe:00:2532751 0 EOF"
    wanted = {"READ": "shared", "WRITE": "exclusive"}[kind]
    assert flock_in("\n".join([*before, line, *after])) == wanted
    assert flock_in("\n".join([*before, *after])) is None


@given(st.text())
def test_any_text_for_fdinfo_or_locks(text: str) -> None:
    assert flock_in(text) in (None, "shared", "exclusive")
    assert blocked_in(text, 1) == set() or "FLOCK" in text


def test_the_waiting_lines_of_proc_locks() -> None:
    text = (
        "1: FLOCK  ADVISORY  WRITE 10064 fe:00:2532751 0 EOF\n"
        "1: -> FLOCK  ADVISORY  WRITE 10069 fe:00:2532751 0 EOF\n"
        "1: -> FLOCK  ADVISORY  READ 10070 fe:00:2532751 0 EOF\n"
        "2: FLOCK  ADVISORY  WRITE 77 fe:00:32751 0 EOF\n"
        "2: -> FLOCK  ADVISORY  WRITE 78 fe:00:32751 0 EOF\n"
        "3: POSIX  ADVISORY  WRITE 79 fe:00:2532751 0 EOF\n"
        "3: -> POSIX  ADVISORY  WRITE 80 fe:00:2532751 0 EOF\n"
    )
    assert blocked_in(text, 2532751) == {10069, 10070}
