"""Make a tree of the DLLs of Windows wheels: downloaded by pip, unpacked side by side."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

# None of their DLLs has an Authenticode signature, which rebaser would not break.
WHEELS = (
    "aiohttp==3.14.5",
    "astropy==8.0.2",
    "cython==3.3.1",
    "gevent==26.9.0",
    "h5py==3.16.0",
    "lxml==6.1.3",
    "matplotlib==3.11.2",
    "numba==0.68.1",
    "pillow==13.0.0",
    "pydantic-core==2.50.4",
    "pyzmq==27.3.0",
    "scikit-image==0.26.0",
    "scipy==1.17.1",
    "statsmodels==0.15.0",
)
SUFFIXES = (".dll", ".pyd")
SITE_PACKAGES = "lib/python3.11/site-packages"


def location() -> Path:
    """Return where the tests' tree is: $REBASER_WHEEL_TREE, or in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("REBASER_WHEEL_TREE") or Path(cache, "rebaser", "wheel-tree"))


def make(target: Path, wheels: Sequence[str] = WHEELS) -> None:
    """Make `target` unless it is there; it appears whole or not at all, however many make it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return
        with tempfile.TemporaryDirectory(prefix="wheel-tree-", dir=target.parent) as room:
            download(Path(room, "wheels"), wheels)
            unpack(Path(room, "wheels"), Path(room, "tree"))
            os.chmod(room, 0o755)
            os.rename(Path(room, "tree"), target)


def download(folder: Path, wheels: Sequence[str]) -> None:
    """Fetch wheels for Windows and Python 3.11 into a new folder."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download"]
    platform = ["--platform", "win_amd64", "--python-version", "3.11", "--implementation", "cp"]
    done = subprocess.run(
        [*pip, "--no-deps", "--only-binary=:all:", *platform, "--dest", str(folder), *wheels],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
    )
    if done.returncode:
        sys.exit(f"wheel-tree: pip could not download the wheels; nothing was made:\n{done.stdout}")


def unpack(folder: Path, target: Path) -> None:
    """Unpack the DLLs of all wheels in a folder, as pip would install them."""
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(SUFFIXES)]
            archive.extractall(target / SITE_PACKAGES, names)
    for path in target.rglob("*"):
        path.chmod(0o755)  # Cygwin maps no DLL that is not executable


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve() if sys.argv[1:] else location()
    try:
        make(where, sys.argv[2:] or WHEELS)
    except OSError as error:
        sys.exit(f"wheel-tree: {error}; nothing was made")
    print(where)
