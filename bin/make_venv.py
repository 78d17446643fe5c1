"""Make a virtual environment with this checkout installed into it, once, whoever asks."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent


def make(target: Path, extra: str) -> None:
    """Make `target` unless it is there and newer than pyproject.toml.

    `ready` is written last: an environment that a kill left half-made has none and is made anew.
    """
    ready = target / "ready"
    with open(f"{target}.lock", "w") as lock:  # kept open: it is the lock
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (
            ready.exists()
            and ready.stat().st_mtime_ns >= (HERE / "pyproject.toml").stat().st_mtime_ns
        ):
            return
        shutil.rmtree(target, ignore_errors=True)
        venv.create(target, with_pip=True)
        project = f"{HERE}[{extra}]" if extra else str(HERE)
        pip = [
            str(target / "bin" / "python"),
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
        ]
        done = subprocess.run(
            [*pip, "install", "--editable", project],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            errors="replace",
            env={k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")},
        )
        if done.returncode:
            shutil.rmtree(target, ignore_errors=True)
            sys.exit(f"rebaser: pip could not install rebaser into {target}:\n{done.stdout}")
        ready.touch()


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1] or HERE / ".venv"), sys.argv[2])
    except OSError as error:
        sys.exit(f"rebaser: cannot make the virtual environment: {error}")
