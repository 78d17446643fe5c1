"""Running rebaser as a user without rights."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trees import Rebaser, Result

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user")
NOBODY = 65534
SETPRIV = shutil.which("setpriv")


def as_nobody(rebaser: Rebaser, *words: str | os.PathLike[str]) -> Result:
    """Run rebaser as a user without rights."""
    if SETPRIV is None:
        pytest.skip("needs setpriv: install util-linux")
    before = [SETPRIV, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    probe = subprocess.run(
        [*before, sys.executable, "-c", "import rebaser.cli"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    if probe.returncode:
        pytest.skip("another user cannot read this Python or this checkout")
    return rebaser(*words, before=before)


def give(root: Path, user: int) -> None:
    """Make all of a tree another user's."""
    for path in [root, *root.rglob("*")]:
        os.chown(path, user, user, follow_symlinks=False)
