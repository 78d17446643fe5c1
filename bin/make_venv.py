"""Make a virtual environment with this checkout installed into it, once, whoever asks."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent.parent
PROJECT = HERE / "pyproject.toml"

# What rebaser imports of others: an environment that has them runs it.
WORKS = """
import importlib.util, sys
sys.exit(not all(map(importlib.util.find_spec, ("pefile", "fasteners", "rich"))))
"""


def make(target: Path, extra: str) -> None:
    """Make `target`, or install into it anew where it is older than pyproject.toml.

    `ready` is written last. An environment that works is never removed, since programs may be
    running in it; one that a kill left half-made, or whose Python is gone, is made anew.
    """
    lock, is_writable = lock_of(target)
    with lock:  # kept open: it is the lock
        there = works(target)
        ready = target / "ready"
        if there and ready.exists() and ready.stat().st_mtime_ns >= PROJECT.stat().st_mtime_ns:
            return
        if not is_writable:
            if there:
                return
            sys.exit(f"rebaser: {target} does not work, and you may not write it: ask its owner")
        if there:
            say(f"updating {target}, once")
        else:
            say(f"first use: making {target}, once")
            shutil.rmtree(target, ignore_errors=True)
            create(target)
        said = install(target, extra)
        if said is None:
            ready.touch()
        elif there:
            say(f"pip could not update {target}, which is used as it is:\n{said}")
        else:
            shutil.rmtree(target, ignore_errors=True)
            sys.exit(f"rebaser: pip could not install rebaser into {target}:\n{said}")


def lock_of(target: Path) -> tuple[IO[str], bool]:
    """Lock the environment; return the lock, and False if it is somebody else's, only to be used.

    Raises OSError where it can be neither made nor used.
    """
    path = f"{target}.lock"
    try:
        lock, is_writable = open(path, "a"), True
    except OSError:
        if not works(target):
            raise
        lock, is_writable = open(path if os.access(path, os.R_OK) else os.devnull), False
    operation = fcntl.LOCK_EX if is_writable else fcntl.LOCK_SH
    try:
        fcntl.flock(lock, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"waiting for {target}, which another process makes")
        fcntl.flock(lock, operation)
    return lock, is_writable


def create(target: Path) -> None:
    """Make the environment, with a pip in it or with this Python's own pip behind it.

    Debian and Cygwin package pip's wheel, which venv wants, by itself. Exits where there is none.
    """
    try:
        venv.create(target, with_pip=True, symlinks=True)
        return
    except (subprocess.CalledProcessError, ImportError):
        venv.create(target, system_site_packages=True, symlinks=True, clear=True)
    command = [str(target / "bin/python"), "-m", "pip", "--version"]
    if subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode:
        shutil.rmtree(target, ignore_errors=True)
        sys.exit(
            f"rebaser: {sys.executable} has no pip, so {target} was not made.\n"
            f"Install {pip_packages()}, then try again."
        )


def pip_packages() -> str:
    """Return which packages of this system hold what venv wants."""
    if sys.platform in ("cygwin", "msys"):
        number = "".join(map(str, sys.version_info[:2]))
        return f"the package python{number}-pip (MSYS2: python-pip)"
    return "the package python3-venv (Debian, Ubuntu) or python3-pip"


def works(target: Path) -> bool:
    """Return whether the environment's Python runs and has what rebaser needs."""
    try:
        command = [str(target / "bin/python"), "-I", "-c", WORKS]
        return not subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode
    except OSError:
        return False


def install(target: Path, extra: str) -> str | None:
    """Install the checkout; return what pip said where it failed."""
    project = f"{HERE}[{extra}]" if extra else str(HERE)
    pip = [str(target / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--editable", project],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
    )
    return done.stdout if done.returncode else None


def say(text: str) -> None:
    """Say one line: this may take half a minute."""
    print(f"rebaser: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1] or HERE / ".venv"), sys.argv[2])
    except OSError as error:
        sys.exit(f"rebaser: cannot make the virtual environment: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
