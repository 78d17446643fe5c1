"""How the programs stand towards their caller: standard streams, signals, what is not installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pe
import pytest
from trees import HERE, Rebaser, clean_environment, contents, damaged, make_tree

from rebaser.files import on_cygwin

REBASER = (sys.executable, "-m", "rebaser")


def sh(script: str, *words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run a script of sh, in which "$@" is rebaser and `words`."""
    return subprocess.run(
        ["sh", "-c", script, "sh", *REBASER, *map(str, words)],
        env=clean_environment(**changes),
        capture_output=True,
        text=True,
        timeout=100,
    )


class TestStreams:
    @pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
    def test_closed(self, tree: Path, closed: str) -> None:
        before = contents(tree)
        done = sh(f'exec "$@" {closed}', "run", tree, "--progress", "never")
        assert (done.returncode, done.stderr) == (0, "")
        assert damaged(before, tree) == []
        for command in ("check", "info", "map", "status", "flags"):
            what = tree / "bin/x001.dll" if command == "flags" else tree
            done = sh(f'exec "$@" {closed}', command, what)
            assert "bug" not in done.stdout + done.stderr
            assert done.returncode in (0, 1)

    def test_nothing_that_is_printed_lands_in_a_file(self, tree: Path) -> None:
        done = sh('exec "$@" >&- 2>&-', "run", tree, "--json", "--progress", "always")
        assert done.returncode == 0
        for path in tree.rglob("*"):
            if path.is_file():
                assert b'"kept"' not in path.read_bytes()

    @pytest.mark.parametrize("words", [["run", "--only-from", "-"], ["flags", "-T", "-"]])
    def test_closed_where_it_is_read(self, tree: Path, words: list[str]) -> None:
        words = [*words, str(tree)] if words[0] == "run" else words
        done = sh('exec "$@" <&-', *words)
        assert done.returncode in (0, 2)
        assert "bug" not in done.stderr

    def test_a_command_under_a_lock_has_them_closed_as_we_had(self, tmp_path: Path) -> None:
        script = "[ ! -e /proc/self/fd/1 ] || exit 5"
        done = sh('exec "$@" >&-', "lock", "--file", tmp_path / "L", "--", "sh", "-c", script)
        assert done.returncode == 0

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    def test_full(self, tree: Path) -> None:
        before = contents(tree)
        done = sh('exec "$@" >/dev/full', "run", tree)
        assert done.returncode == 1
        assert "rebaser: standard output cannot be written (No space left" in done.stderr
        assert "the work itself is done" in done.stderr
        assert done.stderr.count("rebaser: standard") == 1
        assert damaged(before, tree) == []
        assert "nothing to do" in sh('exec "$@"', "run", tree).stdout

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    @pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"]])
    def test_full_for_help(self, words: list[str]) -> None:
        done = sh('exec "$@" >/dev/full', *words)
        assert done.returncode == 1
        assert done.stderr.count("rebaser: standard") == 1
        assert sh('exec "$@" 2>/dev/full', "run", "/nowhere").returncode == 2

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
    def test_nobody_can_be_told(self, tree: Path) -> None:
        """The work is done, and its status stands."""
        assert sh('exec "$@" 2>/dev/full', "run", tree).returncode == 0


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = sh(f'cd {gone} && rmdir {gone} && exec "$@"', "run", ".", "--engine", "builtin")
    assert done.returncode in (1, 2)
    assert "Errno" not in done.stderr


def test_a_package_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "pefile.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pefile'\", name='pefile')"
    )
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/a.dll").write_bytes(pe.build())
    path = f"{tmp_path}:{HERE}"
    done = sh('exec "$@"', "run", tmp_path / "tree", PYTHONPATH=path)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "rebaser: rebaser is not installed completely: No module named 'pefile'; install it with "
    )


UNRAISABLE = """
from rebaser.cli import start
class Odd:
    def __init__(self, error): self.error = error
    def __del__(self): raise self.error
def work(words):
    Odd(MemoryError())
    Odd(ValueError("unseen"))
    return 0
start(work, [])
"""


INTERRUPTED = """
import os, signal
from rebaser.cli import start
start(lambda words: eval("(os.kill(os.getpid(), signal.SIGINT), sum(range(10**7)))"), [])
"""


def test_an_interrupt_in_an_import_is_told_by_the_status_too(tmp_path: Path) -> None:
    """Imports evaluate strings (namedtuple's), and if that breaks off python -m dies of SIGINT."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", "interrupted"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.stderr == "rebaser: interrupted; every file is whole, old or new\n"
    assert done.returncode == 130


def test_an_error_that_nobody_can_catch_is_told_unless_it_is_no_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNRAISABLE], cwd=HERE, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "ValueError: unseen" in done.stderr
    assert "MemoryError" not in done.stderr


OUT_OF_MEMORY = """
import os, resource, sys
most = int(sys.argv[1]) << 20
resource.setrlimit(resource.RLIMIT_AS, (most, most))
os.execv(sys.executable, [sys.executable, "-m", "rebaser", *sys.argv[2:]])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is of no use there")
@pytest.mark.parametrize("command", ["run", "check", "status", "map"])
def test_out_of_memory_anywhere_is_one_sentence(tmp_path: Path, command: str) -> None:
    """At the start, while it scans, plans, copies, reports: wherever it ends."""
    tree = make_tree(tmp_path / "tree", 3)
    for number in range(1500):  # so that the tree takes more memory than Python itself
        os.link(tree / "bin/x000.dll", tree / f"bin/y{number}.dll")
        (tree / f"bin/z{number}.dll").write_bytes(pe.build(data_size=0x1000))
    before = contents(tree)
    told = 0
    for megabytes in range(14, 200, 2):  # with less Python itself does not always come to an end
        done = subprocess.run(
            [sys.executable, "-c", OUT_OF_MEMORY, str(megabytes), command, str(tree), "--json"],
            cwd=HERE,
            env=clean_environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.stderr.startswith("rebaser: ") and not done.stdout:
            assert done.returncode == 1
            assert done.stderr.count("\n") == 1, done.stderr
            assert "every file is whole" in done.stderr
            told += 1
        elif done.stdout:
            assert not done.stderr, done.stderr
            break
        else:
            assert not told, done.stderr  # Python itself had no room to start
    assert told > 3
    assert damaged(before, tree) == []


class TestSignals:
    def test_ignored_stay_ignored(self, rebaser: Rebaser, tree: Path) -> None:
        lock = tree / "var/lock/rebase.lock"
        lock.parent.mkdir()
        holder = subprocess.Popen(
            ["flock", lock, "sh", "-c", "echo; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout
        holder.stdout.readline()
        words = rebaser.command("run", tree)
        child = subprocess.Popen(
            ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *words],
            env=clean_environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert child.stderr
            assert "waiting" in child.stderr.readline()
            child.send_signal(signal.SIGHUP)
            time.sleep(0.2)
            assert child.poll() is None
            child.terminate()
            assert child.wait(50) == 143
        finally:
            holder.communicate()  # its cat ends

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("close", [[], ["-o"]])
    def test_are_the_commands_own(self, tmp_path: Path, number: int, close: list[str]) -> None:
        words = ["lock", *close, "--file", str(tmp_path / "L"), "--", "sh", "-c"]
        child = subprocess.Popen(
            [*REBASER, *words, "echo; exec sleep 1000"],
            env=clean_environment(),
            stdout=subprocess.PIPE,
        )
        assert child.stdout
        child.stdout.readline()
        # Cygwin loses a signal that comes while one program becomes another, and sh becomes sleep.
        time.sleep(0.3 if on_cygwin() else 0)
        child.send_signal(number)
        assert child.wait(50) == (128 + number if close else -number)
