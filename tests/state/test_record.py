"""`sage-rebase --all`: Cygwin's database learns where the tree's DLLs are."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from trees import HERE, clean_environment, make_tree

from cygwin.database import read_database


def sage_rebase(*words: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the program that stands in for SageMath's."""
    return subprocess.run(
        [str(HERE / "bin/sage-rebase"), *words],
        env=clean_environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_without_the_program_nothing_is_recorded(tmp_path: Path) -> None:
    """The DLLs are moved all the same."""
    root = make_tree(tmp_path / "tree")
    done = sage_rebase("--all", str(root))
    assert done.returncode == 1
    assert "no overlap is left" in done.stdout
    assert "rebase was not found; nothing was recorded" in done.stderr


@pytest.mark.cygwin
def test_the_database_knows_the_new_places(cygwin_root: CygwinRoot, real_programs: str) -> None:
    """And Cygwin's own rebase then leaves them there."""
    system = cygwin_root.write_list("system", cygwin_root.images())
    root = cygwin_root.path / "opt/tree"
    root.mkdir(parents=True)
    files = [Path(shutil.copy(file, root)) for file in cygwin_root.extensions()[:5]]
    cygwin_root.rebase("-s", "-b", "0x400000000", "-T", system)
    done = sage_rebase(
        "--all",
        str(root),
        "--",
        "-v",
        REBASER_CYGWIN_ROOT=str(cygwin_root.path),
        PATH=os.environ["PATH"],
    )
    assert done.returncode == 0, done.stderr
    moved = {file: file.read_bytes() for file in files}
    entries = read_database(str(cygwin_root.path / "etc/rebase.db.x86_64")).entries
    assert sum(entry.path.startswith("/opt/tree/") for entry in entries) == 5
    cygwin_root.rebase("-s", "-T", cygwin_root.write_list("tree", files))
    assert {file: file.read_bytes() for file in files} == moved
