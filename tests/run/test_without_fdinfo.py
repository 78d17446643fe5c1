"""Nobody waits for himself where the system does not tell how a descriptor is locked, as Cygwin."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from lock_programs import is_free
from protocol import Shell, finished, first_line, lock_file, make_programs
from trees import HERE, contents, damaged, overlaps

pytestmark = pytest.mark.timeout(100)

# Read by Python at its start. On Cygwin there is nothing to hide.
SITE = """
import builtins
real = builtins.open
def without_fdinfo(path, *words, **more):
    if isinstance(path, str) and "/fdinfo/" in path:
        raise FileNotFoundError(2, "No such file or directory", path)
    return real(path, *words, **more)
builtins.open = without_fdinfo
"""


class Blind(Shell):
    """A shell whose Pythons find no fdinfo."""

    def start(self, script: str, *words: object, **changes: str) -> subprocess.Popen[str]:
        """Start a script."""
        site = Path(self.path.split(os.pathsep)[0]).parent
        (site / "sitecustomize.py").write_text(SITE)
        return super().start(script, *words, PYTHONPATH=f"{site}{os.pathsep}{HERE}", **changes)


@pytest.fixture(scope="module")
def sh(tmp_path_factory: pytest.TempPathFactory) -> Blind:
    """Return a shell that finds sage-flock and rebaser, which find no fdinfo."""
    return Blind(make_programs(tmp_path_factory.mktemp("on-path") / "bin"))


# `(true)`: a shell of Cygwin that starts the next program at once may not have been handed its
# child's lock yet (flock.exe's neither; seen under Wine).
# SageMath's sage-spkg, a subshell, a lock for several words, a caller two processes above.
CALLERS = [
    'exec 200>"$2"; sage-flock -s 200; (true); rebaser run "$1"; exit $?',
    '(sage-flock -s 200; rebaser run --wait 1000 "$1"; exit $?) 200<"$2"',
    'rebaser lock -s --root "$1" -- rebaser run "$1"',
    'rebaser lock -s --root "$1" -- bash -c \'rebaser run "$1"; exit $?\' bash "$1"',
]


@pytest.mark.parametrize("script", CALLERS)
def test_a_caller_that_holds_it_shared_is_told_at_once(sh: Blind, tree: Path, script: str) -> None:
    lock = lock_file(tree)
    before = contents(tree)
    result = sh(script, tree, lock)
    assert result.status == 75, result.words
    assert "holds this lock shared: drop it first" in result.err
    assert "waiting" not in result.err
    assert contents(tree) == before
    assert is_free(lock)


@pytest.mark.parametrize("operation", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_another_holder_is_waited_for_and_the_descriptor_is_named(
    sh: Blind, tree: Path, operation: int
) -> None:
    lock = lock_file(tree)
    before = contents(tree)
    # The holder is no ancestor of the run: a cat, and not this process.
    with open(lock) as file:
        fcntl.flock(file, operation)
        cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[file.fileno()])
    assert cat.stdin
    child = sh.start('exec 200>"$2"; rebaser run "$1"; exit $?', tree, lock)
    said = first_line(child)
    cat.stdin.close()
    result = finished(child)
    cat.wait()
    assert f"waiting for the lock {lock}, " in said
    if operation == fcntl.LOCK_SH:
        assert "descriptor 200, which our caller opened, is this lock too: if it holds it" in said
    assert result.status == 0, result.words
    assert damaged(before, tree) == []
    assert not overlaps(tree)


def test_a_caller_that_holds_it_exclusively_is_worked_for(sh: Blind, tree: Path) -> None:
    lock = lock_file(tree)
    for option in ("-x", "-u"):
        script = f'exec 200>"$2"; sage-flock {option} 200; (true); rebaser run "$1"; exit $?'
        result = sh(script, tree, lock)
        assert result.status == 0, result.words
        assert "waiting" not in result.err
    assert not overlaps(tree)


def test_other_commands_warn_of_the_wait_for_their_own_caller(sh: Blind, tree: Path) -> None:
    lock = lock_file(tree)
    certain = "descriptor 200, which this process has from its caller, holds this lock shared: the"
    for words in ('rebaser lock -w 0.1 --file "$2" true', 'sage-flock --verbose -w 0.1 "$2" true'):
        result = sh(f'exec 200>"$2"; sage-flock -s 200; (true); {words}; exit $?', tree, lock)
        assert result.status == 1
        assert certain in result.err
