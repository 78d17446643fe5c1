"""The programs of a checkout: they make .venv, once, and run the code that lies beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from trees import HERE, clean_environment

# The fake takes the place of the module venv: its Python is this one, and its pip writes that it
# was called.
FAKE_VENV = """\
import os, subprocess, time
def create(target, with_pip=False, **options):
    time.sleep(0.2)
    if with_pip and os.path.exists(LOG + ".nowheels"):
        raise subprocess.CalledProcessError(1, "ensurepip", b"no wheels")
    with open(LOG, "a") as log:
        print("create", file=log)
    os.makedirs(f"{target}/bin")
    with open(f"{target}/bin/python", "w") as file:
        file.write('''#!/bin/sh
case "$*" in
*find_spec*) exit 0 ;;
*"-m pip --version") [ ! -e LOG.nopip ]; exit ;;
*"-m pip"*) echo pip >>LOG; [ ! -e LOG.fails ]; exit ;;
esac
exec PYTHON "$@"
''')
    os.chmod(f"{target}/bin/python", 0o755)
"""


def test_the_demo_says_what_it_does_and_makes_no_folder_of_an_option(tmp_path: Path) -> None:
    for word, status in (("--help", 0), ("--hlep", 2)):
        done = subprocess.run(
            [HERE / "bin/demo", word], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, "demo [DIR]" in done.stdout) == (status, True)
    assert list(tmp_path.iterdir()) == []


class Checkout:
    """A copy of this checkout, whose .venv costs nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout"
        self.log = folder / "log"
        self.python = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
        for name in ("rebaser", "locks", "cygwin"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(HERE / name, self.folder / name, ignore=ignore)
        shutil.copytree(HERE / "bin", self.folder / "bin")
        shutil.copy(HERE / "pyproject.toml", self.folder)
        fake = FAKE_VENV
        for name in ("fails", "nopip"):
            fake = fake.replace(f"LOG.{name}", f"'{self.log}.{name}'")
        fake = fake.replace(">>LOG", f">>'{self.log}'").replace("LOG", repr(str(self.log)))
        (self.folder / "bin/venv.py").write_text(fake.replace("PYTHON", self.python))
        os.utime(self.folder / "pyproject.toml", (10**9, 10**9))

    def start(self, **options: object) -> subprocess.Popen[str]:
        """Start `rebaser --version`."""
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [str(self.folder / "bin/rebaser"), "--version"],
            env={**clean_environment(), "REBASER_PYTHON": self.python},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def __call__(self, **options: object) -> tuple[str, str]:
        """Return what `rebaser --version` says on its two streams; it must succeed."""
        child = self.start(**options)
        said = child.communicate(timeout=100)
        assert child.returncode == 0, said
        return said

    def done(self) -> list[str]:
        """Return what was made so far."""
        return self.log.read_text().split()

    def touch(self) -> None:
        """Make pyproject.toml newer than .venv, as a pull does."""
        at = (self.folder / ".venv/ready").stat().st_mtime_ns + 10**9
        os.utime(self.folder / "pyproject.toml", ns=(at, at))


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    """Return a checkout that other users can reach."""
    with tempfile.TemporaryDirectory(prefix="rebaser-test-") as folder:
        os.chmod(folder, 0o755)
        yield Checkout(Path(folder))


def test_first_use_and_the_next(checkout: Checkout) -> None:
    said = checkout()
    assert said[0].startswith("rebaser 0.")
    assert said[1] == f"rebaser: first use: making {checkout.folder}/.venv, once\n"
    assert checkout()[1] == ""
    assert checkout.done() == ["create", "pip"]


def test_twenty_first_uses_at_once(checkout: Checkout) -> None:
    children = [checkout.start() for _ in range(20)]
    said = [child.communicate(timeout=100) for child in children]
    assert [child.returncode for child in children] == [0] * 20, said
    assert sum("first use" in err for _, err in said) == 1
    assert checkout.done() == ["create", "pip"]


def test_a_moved_checkout_runs_its_own_code(checkout: Checkout) -> None:
    checkout()
    old = checkout.folder
    checkout.folder = old.rename(old.with_name("moved"))
    shutil.copytree(checkout.folder, old)
    source = checkout.folder / "rebaser/__init__.py"
    source.write_text(source.read_text().replace('__version__ = "', '__version__ = "moved-'))
    assert checkout()[0].startswith("rebaser moved-0.")
    assert checkout.done() == ["create", "pip"]


def test_a_python_that_is_gone(checkout: Checkout) -> None:
    checkout()
    python = checkout.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python")
    assert "making" in checkout()[1]
    assert checkout.done() == ["create", "pip"] * 2


def test_a_python_whose_venv_finds_no_wheels_uses_its_own_pip(checkout: Checkout) -> None:
    Path(f"{checkout.log}.nowheels").touch()
    assert checkout()[0].startswith("rebaser 0.")
    assert checkout.done() == ["create", "pip"]


def test_a_python_without_any_pip_names_the_package(checkout: Checkout) -> None:
    for name in ("nowheels", "nopip"):
        Path(f"{checkout.log}.{name}").touch()
    child = checkout.start()
    said = child.communicate(timeout=100)
    assert child.returncode == 1, said
    assert f"{checkout.folder}/.venv was not made.\nInstall the package python3" in said[1]
    assert "Traceback" not in said[1]
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize("fails", [False, True])
def test_an_update_leaves_in_place_what_others_use(checkout: Checkout, fails: bool) -> None:
    checkout()
    used = checkout.folder / ".venv/used"
    used.touch()
    checkout.touch()
    if fails:
        Path(f"{checkout.log}.fails").touch()
    said = checkout()
    assert f"rebaser: updating {checkout.folder}/.venv" in said[1]
    assert ("could not update" in said[1]) is fails
    assert said[0].startswith("rebaser 0.")
    assert used.exists()
    assert checkout.done() == ["create", "pip", "pip"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_another_users_checkout(checkout: Checkout, mode: int) -> None:
    checkout()
    checkout.touch()
    os.chmod(checkout.folder / ".venv.lock", mode)
    said = checkout(user=65534, group=65534, extra_groups=[])
    assert said[0].startswith("rebaser 0.")
    assert said[1] == ""
    assert checkout.done() == ["create", "pip"]
