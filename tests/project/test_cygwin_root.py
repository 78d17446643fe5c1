"""The tests' own Cygwin: it is real, and its fork really fails when DLLs collide."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot, location

pytestmark = pytest.mark.cygwin


def test_the_root_is_whole(pristine_root: CygwinRoot) -> None:
    assert len(pristine_root.dlls()) == 234
    assert len(pristine_root.extensions()) == 59


def test_making_it_again_changes_nothing(pristine_root: CygwinRoot) -> None:
    script = Path(__file__).resolve().parents[2] / "bin" / "cygwin-root"
    before = pristine_root.path.stat()
    again = [
        subprocess.Popen([script], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    for process in again:
        assert process.communicate(timeout=60)[0].splitlines()[-1] == str(location().resolve())
        assert process.returncode == 0
    assert pristine_root.path.stat() == before


@pytest.mark.slow
def test_fork_works_until_dlls_collide(cygwin_root: CygwinRoot) -> None:
    shipped = cygwin_root.forks()
    assert shipped.failed == 0
    assert any(name.endswith("/_socket.dll") for name in shipped.bases)
    cygwin_root.collide()
    collided = cygwin_root.forks()
    assert collided.failed == 3
    assert "Resource temporarily unavailable" in collided.words
