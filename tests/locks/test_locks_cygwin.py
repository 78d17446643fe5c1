"""Locks on real Cygwin, beside its own flock.exe."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pe
import pytest
from cygwin_root import CygwinRoot
from lock_programs import CHECKOUT

pytestmark = [pytest.mark.cygwin, pytest.mark.timeout(1600)]

FREE, SHARED, EXCLUSIVE = [0, 0], [0, 1], [1, 1]


@pytest.fixture(scope="module")
def told(pristine_new_root: CygwinRoot) -> Any:
    """Return what came of every form."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder, "x.dll").write_bytes(pe.build(pe.Shape()))
        there = f"/cygdrive/z{folder}"
        script = f"/cygdrive/z{CHECKOUT}/tests/locks/forms_on_cygwin.py"
        done = pristine_new_root.run(
            "bash",
            "-c",
            'export PYTHONPATH="$1"; shift; exec python3 "$@"',
            "bash",
            f"/cygdrive/z{CHECKOUT}",
            script,
            there,
            f"{there}/x.dll",
            timeout=1500,
        )
        assert done.status == 0, str(done)
        return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("program", ["rebaser lock", "sage-flock"])
def test_the_lock_is_held_across_exec_and_flock_exe_sees_it_and_is_seen(
    told: Any, program: str
) -> None:
    for mode, state in (("-s", SHARED), ("-x", EXCLUSIVE)):
        if (program, mode) == ("sage-flock", "-s"):
            continue
        assert told[f"{program} {mode} against flock.exe"] == state
        assert told[f"{program} {mode} afterwards"] == [0, *FREE]
        assert told[f"flock.exe {mode} against {program}"] == state


@pytest.mark.parametrize("program", ["rebaser lock", "sage-flock"])
def test_it_is_gone_with_a_command_that_is_killed(told: Any, program: str) -> None:
    assert told[f"{program} killed"] == [EXCLUSIVE, -9, FREE]


@pytest.mark.parametrize("program", ["rebaser lock", "sage-flock"])
def test_with_o_a_daemon_has_no_lock_and_a_signal_is_passed_on(told: Any, program: str) -> None:
    assert told[f"{program} -o SIGTERM"] == [EXCLUSIVE, 9, FREE]
    assert told["rebaser lock -o and a daemon"] == FREE
    assert told["rebaser lock without -o and a daemon"] == SHARED


@pytest.mark.parametrize("program", ["rebaser lock --fd", "sage-flock N"])
def test_a_descriptor_of_the_callers(told: Any, program: str) -> None:
    for mode, state in (("-s", SHARED), ("-x", EXCLUSIVE), ("-u", FREE)):
        assert told[f"{program} {mode}"] == [0, state]
    assert told["a closed stream"] == 65


def test_a_run_under_its_callers_lock(told: Any) -> None:
    assert told["run, caller shared"] == [True, True, False]
    assert told["run, caller exclusive"] == [False, False, False]


def test_who_has_it_open_is_named(told: Any) -> None:
    assert told["who"]
