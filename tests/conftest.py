"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cygwin_root import (
    cygwin_root,
    new_programs,
    new_root,
    pristine_new_root,
    pristine_root,
    real_programs,
)
from halted import in_memory
from protocol import sh
from trees import Rebaser, make_tree
from wheels import wheel_tree

__all__ = [
    "cygwin_root",
    "in_memory",
    "new_programs",
    "new_root",
    "pristine_new_root",
    "pristine_root",
    "real_programs",
    "sh",
    "wheel_tree",
]

pytest_plugins = ["not_on_cygwin"] if sys.platform in ("cygwin", "msys") else []


@pytest.fixture(scope="session", autouse=True)
def _nothing_steers_rebaser() -> None:
    """Take the user's own settings out of the environment of all tests."""
    for name in list(os.environ):
        if name in ("SAGE_LOCAL", "REBASER_LOCK_FILE", "REBASER_STATE_DIR"):
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def _no_signal_is_ignored() -> None:
    """Children inherit what is ignored: SIGHUP under nohup(1), SIGINT in a shell's background."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            is_int = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)


@pytest.fixture(scope="session")
def rebaser(tmp_path_factory: pytest.TempPathFactory) -> Rebaser:
    """Return the command line, run as a process; this system's own Cygwin database is not seen."""
    if not any(os.path.lexists(f"/etc/rebase.db.{name}") for name in ("x86_64", "i386")):
        return Rebaser()
    return Rebaser(["--cygwin-root", str(tmp_path_factory.mktemp("no-cygwin"))])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree of six DLLs that collide."""
    return make_tree(tmp_path / "tree")


@pytest.fixture
def open_tree() -> Iterator[Path]:
    """Return such a tree where other users can reach it; pytest's own folder is closed to them."""
    with tempfile.TemporaryDirectory(prefix="rebaser-test-") as folder:
        os.chmod(folder, 0o755)
        yield make_tree(Path(folder, "tree"))
