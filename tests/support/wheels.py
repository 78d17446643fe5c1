"""Real DLLs for the tests: the tree of Windows wheels that bin/wheel-tree makes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bin"))

from wheel_tree import location

__all__ = ["location", "wheel_tree"]


@pytest.fixture(scope="session")
def wheel_tree() -> Path:
    """Return the tree as it was made; tests read it and change nothing."""
    path = location()
    if not path.is_dir():
        if os.environ.get("REBASER_DEMAND_WHEELS"):
            pytest.fail("the tree of Windows wheels is not there: run bin/wheel-tree")
        pytest.skip("the tree of Windows wheels is not there: run bin/wheel-tree")
    return path
