"""The tests' own Cygwin: it is real, and its fork really fails when DLLs collide."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from cygwin_root import NEW, OLD, CygwinRoot, pristine
from trees import HERE

pytestmark = pytest.mark.cygwin

SCRIPT = HERE / "bin" / "cygwin-root"
PROGRAMS = ("zstd", "xz", "npm", "python3")
STARTS_AND_FORKS = """
import os, subprocess
programs = sum(subprocess.check_output(["echo", "x"]) == b"x\\n" for _ in range(10))
forks = 0
for _ in range(10):
    child = os.fork()
    if not child:
        os._exit(7)
    forks += os.waitpid(child, 0)[1] == 7 << 8
print(programs, "programs,", forks, "forks")
"""


def test_the_old_root_is_whole(pristine_root: CygwinRoot) -> None:
    assert len(pristine_root.dlls()) == 234
    assert len(pristine_root.extensions()) == 59
    assert "rebase version 4.6.3" in str(pristine_root.run("rebase", "-V"))


def test_the_new_root_is_whole(pristine_new_root: CygwinRoot) -> None:
    assert len(pristine_new_root.dlls()) == 278
    assert "rebase version 4.6.6" in str(pristine_new_root.run("rebase", "-V"))
    script = (
        "import os, sys, pefile, fasteners, rich, hypothesis; print(sys.platform, os.uname()[2])"
    )
    outcome = pristine_new_root.run("python3.9", "-c", script)
    assert outcome.stdout.startswith("cygwin 3.5.3"), str(outcome)


def test_cygwins_python_starts_programs_and_forks(pristine_new_root: CygwinRoot) -> None:
    outcome = pristine_new_root.run("python3.9", "-c", STARTS_AND_FORKS, timeout=300)
    assert outcome.stdout == "10 programs, 10 forks", str(outcome)


@pytest.mark.parametrize(("option", "name"), [((), NEW), (("--old",), OLD)])
def test_making_it_again_changes_nothing(option: tuple[str, ...], name: str) -> None:
    root = pristine(name).path
    before = root.stat()
    again = [
        subprocess.Popen(
            [SCRIPT, *option], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        for _ in range(2)
    ]
    for process in again:
        assert process.communicate(timeout=60)[0].splitlines()[-1] == str(root.resolve())
        assert process.returncode == 0
    assert root.stat() == before


def test_whoever_lacks_rights_is_told_one_command(tmp_path: Path) -> None:
    """The programs on PATH are those that are needed anyway, but no Wine."""
    for name in ("sh", "dirname", "realpath", "mkdir", "flock", "tr", *PROGRAMS):
        program = shutil.which(name)
        if program:
            (tmp_path / name).symlink_to(program)
        else:
            (tmp_path / name).symlink_to("/bin/true")
    (tmp_path / "id").write_text("#!/bin/sh\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path / "home")}
    done = subprocess.run([SCRIPT], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 1
    *_, command = done.stderr.splitlines()
    cache = tmp_path / "home/.cache"
    assert command == f"cygwin-root:   sudo env XDG_CACHE_HOME='{cache}' '{SCRIPT}'", done.stderr
    assert not list((cache / "rebaser").glob("*/"))


def test_other_words_are_a_usage_error() -> None:
    done = subprocess.run([SCRIPT, "--new"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "cygwin-root: usage: cygwin-root [--old]\n")


@pytest.mark.slow
def test_fork_works_until_dlls_collide(cygwin_root: CygwinRoot) -> None:
    shipped = cygwin_root.forks()
    assert shipped.failed == 0
    assert any(name.endswith("/_socket.dll") for name in shipped.bases)
    cygwin_root.collide()
    collided = cygwin_root.forks()
    assert collided.failed == 3
    assert "Resource temporarily unavailable" in collided.words
