"""`rebaser lock --coordinator`: the command runs while the lock is held on every machine."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from servers import Postgres, Server
from trees import Rebaser, make_tree

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(100)]


def words(server: Server, root: Path, *more: str) -> list[str]:
    """Return the options of a lock of this tree on some machine, whose flock is its own."""
    flock = root.with_name(f"lock-{time.monotonic_ns()}")
    return [
        "lock",
        *("--root", str(root), "--lock-file", str(flock), "--coordinator", server.url()),
        *more,
    ]


def test_a_command_runs_alone_on_all_machines(
    server: Server, tmp_path: Path, rebaser: Rebaser
) -> None:
    root, log = make_tree(tmp_path / "tree"), tmp_path / "log"
    script = f"echo in >> {log}; sleep 0.3; echo out >> {log}"
    running = [rebaser.start(*words(server, root, "-s", "-c", script)) for _ in range(4)]
    for one in running:
        out, err = one.communicate(timeout=60)
        assert one.returncode == 0, out + err
    assert log.read_text() == "in\nout\n" * 4
    # A lock of another name is another lock.
    command = words(server, root, "--name", "pip", "--", *rebaser.command("lock")[:-1])
    inner = words(server, root, "-n", "true")
    result = rebaser(*command, *inner, env={"REBASER_COORDINATOR_LOCK": ""})
    assert result.status == 0, result.words


def test_the_command_s_status_and_signals_are_its_own(
    server: Server, tmp_path: Path, rebaser: Rebaser
) -> None:
    root = make_tree(tmp_path / "tree")
    assert rebaser(*words(server, root, "sh", "-c", "exit 7")).status == 7
    assert rebaser(*words(server, root, "sh", "-c", "kill -9 $$")).status == 128 + 9
    assert rebaser(*words(server, root, "/does/not/exist")).status == 127
    # Each gave the lock back at once.
    assert rebaser(*words(server, root, "-n", "true")).status == 0
    running = rebaser.start(*words(server, root, "sh", "-c", "echo; exec sleep 60"))
    assert running.stdout is not None
    running.stdout.readline()
    running.terminate()
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM


def test_who_waits_in_vain_is_told_by_whom_it_is_held(
    server: Server, tmp_path: Path, rebaser: Rebaser
) -> None:
    root = make_tree(tmp_path / "tree")
    holder = rebaser.start(*words(server, root, "sh", "-c", "echo; exec sleep 60"))
    assert holder.stdout is not None
    holder.stdout.readline()
    result = rebaser(*words(server, root, "-w", "0.5", "-E", "9", "true"))
    assert result.status == 9, result.words
    assert "of the coordinator" in result.err
    assert "held by" in result.err
    holder.terminate()
    holder.communicate(timeout=30)


def test_the_wait_is_for_both_locks_together(
    server: Server, tmp_path: Path, rebaser: Rebaser
) -> None:
    root = make_tree(tmp_path / "tree")
    holder = rebaser.start(*words(server, root, "sh", "-c", "echo; exec sleep 60"))
    flock = tmp_path / "flock"
    local = rebaser.start("lock", "--file", flock, "sh", "-c", "echo; exec sleep 3")
    for one in (holder, local):
        assert one.stdout is not None
        one.stdout.readline()
    began = time.monotonic()
    coordinator = ("--root", root, "--lock-file", flock, "--coordinator", server.url())
    assert rebaser("lock", *coordinator, "-w", "4", "true").status == 1
    assert 4 <= time.monotonic() - began < 6.5  # 7 are both waits after each other
    for one in (holder, local):
        one.terminate()
        one.communicate(timeout=30)


def test_a_lost_lease_ends_the_command(server: Server, tmp_path: Path, rebaser: Rebaser) -> None:
    root, log = make_tree(tmp_path / "tree"), tmp_path / "log"
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('told to end'))\n"
        "print('begun', flush=True)\n"
        "time.sleep(60)"
    )
    running = rebaser.start(*words(server, root, "--", sys.executable, "-c", code))
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    server.send(signal.SIGSTOP)
    try:
        out, err = running.communicate(timeout=30)
    finally:
        server.send(signal.SIGCONT)
    assert running.returncode == 75, out + err
    assert "told to end" in err
    assert "the coordinator's lock was lost" in err
    assert not log.exists()


def test_a_run_inside_such_a_command_does_not_wait_for_its_caller(
    server: Server, tmp_path: Path, rebaser: Rebaser
) -> None:
    root = make_tree(tmp_path / "tree")
    run = rebaser.command("run", "--coordinator", server.url(), str(root))
    result = rebaser(*words(server, root, "--", *run), timeout=30)
    assert result.status == 75, result.words
    assert "held by our own caller" in result.err


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--coordinator", "carrier-pigeon://roof"], 64, "must begin with redis://"),
        (["--coordinator", "redis://:secret@127.0.0.1:1"], 1, "cannot be used"),
        (["--coordinator", "redis://h", "--file", "x"], 64, "--coordinator"),
        (["--coordinator", "redis://h", "--fd", "1"], 64, "--coordinator"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence_and_no_command_runs(
    rebaser: Rebaser, tmp_path: Path, options: list[str], status: int, said: str
) -> None:
    if status == 1:
        pytest.importorskip("tooz")
    root = make_tree(tmp_path / "tree")
    command = [] if "--fd" in options else ["touch", str(tmp_path / "ran")]
    result = rebaser("lock", "--root", str(root), *options, *command, cwd=tmp_path)
    assert result.status == status, result.words
    assert said in result.err
    assert "secret" not in result.err
    assert not (tmp_path / "ran").exists()


def test_postgresql_s_lock_ends_with_its_connection(
    server: Server, tmp_path: Path, rebaser: Rebaser
) -> None:
    if not isinstance(server, Postgres):
        pytest.skip("the others' locks end with a lease")
    root = make_tree(tmp_path / "tree")
    running = rebaser.start(*words(server, root, "sh", "-c", "echo; exec sleep 60"))
    assert running.stdout is not None
    running.stdout.readline()
    server.kill()
    server.start()
    out, err = running.communicate(timeout=30)
    assert running.returncode == 75, out + err
