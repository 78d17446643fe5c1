"""Locks in every form of docs/locks.md, tried by Cygwin's Python; test_locks_cygwin.py runs it.

Prints one JSON object: for each form what came out of it. argv: a folder of our own.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

REBASER = [sys.executable, "-m", "rebaser"]
LOCK = [*REBASER, "lock", "--file", "L"]
SAGE_FLOCK = [sys.executable, "-c", "from locks.sage_flock import main; main()"]
# Leaves a program behind that has all descriptors; a shell's, under Wine, sometimes never starts.
LEAVE = """
from subprocess import DEVNULL, Popen
print(Popen(["sleep", "1000"], stdout=DEVNULL, stderr=DEVNULL, close_fds=False).pid)
"""
UNTIL_END = ["sh", "-c", "echo ready; read line || :"]


def status(*words: str, **more: object) -> int:
    """Return how a program ends that says nothing of interest."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        words, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=200, **more
    ).returncode


def taken() -> list[int]:
    """Return what Cygwin's flock.exe says: could it have the lock shared, and exclusively?"""
    return [status("flock", "-n", mode, "L", "true") for mode in ("-s", "-x")]


def start(*words: str) -> subprocess.Popen[str]:
    """Start a program that holds a lock, and wait until it does."""
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline() == "ready\n"
    return child


def end(child: subprocess.Popen[str]) -> list[int]:
    """Let a holder end; return its status, and what flock.exe says then."""
    child.communicate(timeout=200)
    return [child.returncode, *taken()]


def forms() -> dict[str, object]:
    """Try them all."""
    told: dict[str, object] = {}
    for name, words in (("rebaser lock", LOCK), ("sage-flock", [*SAGE_FLOCK])):
        lock = ["L"] if name == "sage-flock" else []
        for mode in ("-s", "-x") if name == "rebaser lock" else ("-x",):
            child = start(*words, mode, *lock, *UNTIL_END)
            told[f"{name} {mode} against flock.exe"] = taken()
            told[f"{name} {mode} afterwards"] = end(child)
            child = start("flock", mode, "L", *UNTIL_END)
            told[f"flock.exe {mode} against {name}"] = [
                status(*words, wanted, "-n", *lock, "true") for wanted in ("-s", "-x")
            ]
            end(child)
        child = start(*words, *lock, "sh", "-c", "echo ready; exec sleep 1000")
        before = taken()
        child.send_signal(signal.SIGKILL)
        child.wait(200)
        time.sleep(0.2)
        told[f"{name} killed"] = [before, child.returncode, taken()]
        child = start(*words, "-o", *lock, "sh", "-c", "trap 'exit 9' TERM; echo ready; read x")
        before = taken()
        child.send_signal(signal.SIGTERM)
        told[f"{name} -o SIGTERM"] = [before, child.wait(200), taken()]
        if name == "sage-flock":
            continue
        for option, shown in (("-o", "-o"), ("-s", "without -o")):
            daemon = subprocess.run(
                [*words, option, *lock, sys.executable, "-c", LEAVE],
                stdout=subprocess.PIPE,
                text=True,
                timeout=200,
            )
            told[f"{name} {shown} and a daemon"] = taken()
            os.kill(int(daemon.stdout), signal.SIGKILL)
            time.sleep(0.2)
    file = os.open("L", os.O_RDWR)
    more = {"pass_fds": [file]}
    for mode in ("-s", "-x", "-u"):
        for name, words in (
            ("rebaser lock --fd", [*REBASER, "lock", mode, "--fd", str(file)]),
            ("sage-flock N", [*SAGE_FLOCK, mode, str(file)]),
        ):
            told[f"{name} {mode}"] = [status(*words, **more), taken()]
    told["a closed stream"] = status("sh", "-c", '"$@" <&-', "sh", *REBASER, "lock", "--fd", "0")
    os.makedirs("tree/var/lock")
    dll = sys.argv[2]
    for name in ("a.dll", "b.dll"):
        with open(dll, "rb") as source, open(f"tree/{name}", "wb") as target:
            target.write(source.read())
    caller = os.open("tree/var/lock/rebase.lock", os.O_RDWR | os.O_CREAT)
    run = [*REBASER, "run", "--engine", "builtin", "tree"]
    for name, operation in (("shared", fcntl.LOCK_SH), ("exclusive", fcntl.LOCK_EX)):
        fcntl.flock(caller, operation)
        done = subprocess.run(
            run,
            stderr=subprocess.PIPE,
            text=True,
            timeout=200,
            pass_fds=[caller],
            stdout=subprocess.DEVNULL,
        )
        busy = done.returncode == 75
        told[f"run, caller {name}"] = [busy, *(s in done.stderr for s in ("drop it", "waiting"))]
    os.close(file)
    child = start("flock", "L", *UNTIL_END)
    done = subprocess.run([*LOCK, "-n", "true"], stderr=subprocess.PIPE, text=True, timeout=200)
    told["who"] = f"L, open in pid {child.pid} (flock" in done.stderr
    end(child)
    return told


if __name__ == "__main__":
    os.chdir(sys.argv[1])
    print(json.dumps(forms()))
