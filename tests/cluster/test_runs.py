"""Runs of several machines on one tree: one works at a time, and nobody without the lock."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import machine
import pytest
from halted import Check
from installer import content
from servers import Etcd, Postgres, Server
from stop_at import Call, in_child, intercept
from trees import (
    Rebaser,
    add_dlls,
    base_in,
    clean_environment,
    contents,
    left_over,
    make_tree,
    moved,
    overlaps,
)

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(100)]

SUPPORT = Path(machine.__file__).parent


class Machine(Rebaser):
    """Runs the command line on a machine of that name."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.name = name
        self.url = url
        self.lock_file = folder / f"{name}.lock"
        super().__init__(["--lock-file", str(self.lock_file), "--coordinator", url])

    def command(self, *words: str | os.PathLike[str]) -> list[str]:
        return [
            sys.executable,
            str(SUPPORT / "machine.py"),
            self.name,
            *super().command(*words)[3:],
        ]

    def installer(self, root: Path, number: int, seconds: float) -> subprocess.Popen[bytes]:
        words = [str(self.lock_file), self.url, str(root), str(number), str(seconds)]
        environment = clean_environment()
        environment["PYTHONPATH"] += os.pathsep + str(SUPPORT)
        return subprocess.Popen(
            [*self.command("install")[:4], *words], stdout=subprocess.PIPE, env=environment
        )


def machines(server: Server, tmp_path: Path, lease: int = 10) -> tuple[Machine, Machine]:
    """Return two machines, which a busy tester's own pauses do not cost a lease."""
    url = server.url(lease=lease)
    return Machine("one", tmp_path, url), Machine("two", tmp_path, url)


def test_twenty_runs_of_two_machines_move_each_dll_once(server: Server, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", 40)
    before = contents(root)
    both = machines(server, tmp_path)
    running = [both[number % 2].start("run", root, "--json") for number in range(20)]
    reports = []
    for one in running:
        out, err = one.communicate(timeout=90)
        assert one.returncode == 0, out + err
        reports.append(json.loads(out))
    assert sum(len(report["moved"]) for report in reports) == 40
    assert sum(report["bytes_written"] for report in reports) == sum(map(len, before.values()))
    assert overlaps(root) == set()
    assert left_over(root) == []


def test_twenty_runs_and_eight_installers_on_two_machines(server: Server, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", 10)
    expected = contents(root)
    both = machines(server, tmp_path)
    installing = [both[number % 2].installer(root, number, 2) for number in range(8)]
    running = [both[number % 2].start("run", root) for number in range(20)]
    for one in running:
        out, err = one.communicate(timeout=90)
        assert one.returncode == 0, out + err
    for installer in installing:
        there = json.loads(installer.communicate(timeout=60)[0])
        assert installer.returncode == 0
        expected.update({path: content(size) for path, size in there.items()})

    result = both[1]("run", root)
    assert result.status == 0, result.words
    assert overlaps(root) == set()
    now = contents(root)
    assert now.keys() == expected.keys()
    for path, old in expected.items():
        assert now[path] == moved(old, base_in(now[path])), path
    assert left_over(root) == []
    assert both[0].report("run", root)["moved"] == []


def test_who_holds_the_lock_is_named_to_a_run_of_another_machine(
    server: Server, tmp_path: Path
) -> None:
    root = make_tree(tmp_path / "tree")
    one, two = machines(server, tmp_path)
    before = contents(root)
    with held(two, root):
        result = one("run", "--wait", "0.5", root)
    assert result.status == 75, result.words
    who = "somebody (this server cannot tell whom)" if isinstance(server, Postgres) else "two, pid "
    assert f"held by {who}" in result.err
    assert result.err.count("waiting for the lock rebaser/") == 1
    assert contents(root) == before
    assert len(one.report("run", root)["moved"]) == 6


@contextlib.contextmanager
def held(one: Machine, root: Path) -> Iterator[None]:
    """Hold the tree's lock as this machine, in a process of its own."""
    code = (
        f"import sys; sys.path.append({str(SUPPORT)!r}); import machine;"
        f"machine.become({one.name!r});"
        "from rebaser.state.machines import take_lock; from rebaser.state.folder import State;"
        f"state = State({str(root / 'var/lib/rebaser')!r}, {str(root)!r});"
        f"lock = take_lock({one.url!r}, state, 20, print);"
        "print('held', flush=True); sys.stdin.read(); lock.release()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        yield
    finally:
        holder.communicate(timeout=30)


def test_with_nothing_to_do_nobody_is_asked(tmp_path: Path, rebaser: Rebaser) -> None:
    root = make_tree(tmp_path / "tree")
    rebaser.report("run", root)
    for url in ("redis://:x@127.0.0.1:1", "carrier-pigeon://roof"):
        assert rebaser.report("run", "--coordinator", url, root)["moved"] == []
    code = (
        "import sys; from rebaser.cli import status_of; status_of(sys.argv[1:]);"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in"
        " ('tooz', 'redis', 'queue', 'logging') or m.endswith(('coordinator', 'machines'))))"
    )
    for words in (["--coordinator", "redis://:x@127.0.0.1:1"], []):
        command = [sys.executable, "-c", code, "run", "--quiet", str(root), *words]
        assert subprocess.check_output(command, env=clean_environment(), text=True) == "[]\n"


def test_a_tree_s_settings_may_name_the_coordinator(server: Server, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    state = root / "var/lib/rebaser"
    state.mkdir(parents=True)
    (state / "options").write_text(f"--coordinator {server.url()}\n")
    one, two = machines(server, tmp_path)
    one.always = one.always[:2]
    with held(two, root):
        assert one("run", "--no-wait", root).status == 75
    assert len(one.report("run", root)["moved"]) == 6


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("carrier-pigeon://roof", 2, "must begin with redis://"),
        ("redis://:secret@127.0.0.1:1", 75, "the coordinator redis://127.0.0.1:1 cannot be used"),
        ("redis://h?lock_timeout=x", 2, "lock_timeout"),
    ],
)
def test_a_coordinator_that_cannot_be_used_is_told_in_one_sentence_and_nothing_is_changed(
    rebaser: Rebaser, tmp_path: Path, url: str, status: int, words: str
) -> None:
    if status == 75:
        pytest.importorskip("tooz")
    root = make_tree(tmp_path / "tree")
    before = contents(root)
    result = rebaser("run", "--coordinator", url, root)
    assert result.status == status, result.words
    assert words in result.err
    assert "nothing was changed" in result.err
    assert "secret" not in result.err
    assert result.err.count("\n") == 1
    assert contents(root) == before


# Faults. They strike when the server was asked before the second DLL, and just before its rename.


class Struck:
    """A run on which a fault strikes at its second commit, and what it left.

    `strike` is called with the run's process id, and the run goes on when it returns.
    """

    def __init__(self, server: Server, tmp_path: Path, strike: Callable[[int], None]) -> None:
        self.root = make_tree(tmp_path / "tree")
        self.check = Check(self.root)
        one, self.two = machines(server, tmp_path, lease=2)
        (asks, is_asked), (goes_on, may_go_on) = os.pipe(), os.pipe()
        count = 0

        def at_replace(name: str, real: Call, words: Sequence[Any]) -> None:
            nonlocal count
            if str(words[1]).endswith(".dll"):
                count += 1
                if count == 2:
                    os.write(is_asked, str(os.getpid()).encode())
                    os.read(goes_on, 1)

        def prepare() -> None:
            machine.become("one")
            intercept(["replace"], at_replace)

        def answer() -> None:
            strike(int(os.read(asks, 20)))
            os.write(may_go_on, b"x")

        log = tmp_path / "log"
        thread = threading.Thread(target=answer)
        thread.start()
        words = ["run", *one.always, "--progress", "never", str(self.root)]
        self.status = os.waitstatus_to_exitcode(in_child(words, prepare, log))
        thread.join(30)
        for descriptor in (asks, is_asked, goes_on, may_go_on):
            os.close(descriptor)
        self.said = log.read_text()
        now = self.check.sound()
        self.moved = sum(now[path] != old for path, old in self.check.before.items())

    def ended_without_the_lock(self) -> None:
        """Demand that nothing was committed when the lock was lost, and that this was said."""
        assert self.status == 75, self.said
        assert "the coordinator's lock was lost when 2 of 6 DLLs were moved" in self.said
        assert self.moved == 2
        assert "this is a bug" not in self.said

    def is_finished_by_the_next(self) -> None:
        """Demand that the next run does the rest."""
        moved = self.two.report("run", self.root, "--wait", "30")["moved"]
        assert len(moved) == 6 - self.moved
        assert overlaps(self.root) == set()
        assert left_over(self.root) == []


def test_a_server_killed_between_two_commits(server: Server, tmp_path: Path) -> None:
    try:
        struck = Struck(server, tmp_path, lambda _: server.kill())
    finally:
        server.start()
    struck.ended_without_the_lock()
    struck.is_finished_by_the_next()


def test_a_server_killed_and_started_again_between_two_commits(
    server: Server, tmp_path: Path
) -> None:
    def strike(_: int) -> None:
        server.kill()
        server.start()

    struck = Struck(server, tmp_path, strike)
    if isinstance(server, Etcd) and struck.status == 0:  # it keeps its locks on disk
        assert struck.moved == 6
    else:
        struck.ended_without_the_lock()
    struck.is_finished_by_the_next()


def test_a_server_that_stands_still_between_two_commits(server: Server, tmp_path: Path) -> None:
    try:
        struck = Struck(server, tmp_path, lambda _: server.send(signal.SIGSTOP))
    finally:
        server.send(signal.SIGCONT)
    struck.ended_without_the_lock()
    struck.is_finished_by_the_next()


def test_a_holder_that_stands_still_past_its_lease_between_two_commits(
    server: Server, tmp_path: Path
) -> None:
    """Meanwhile a run of another machine does the work, where the server let go of the lock.

    It has cleared away the copy that was to be renamed, so not even that rename is made.
    """
    said = []

    def strike(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        two = machines(server, tmp_path, lease=2)[1]
        said.append(two("run", "--json", "--wait", "4", tmp_path / "tree"))
        os.kill(pid, signal.SIGCONT)

    struck = Struck(server, tmp_path, strike)
    assert struck.moved == 6
    if isinstance(server, Postgres):  # it has no lease: who holds its lock stands still with it
        assert said[0].status == 75
        assert struck.status == 0, struck.said
    else:
        assert len(said[0].json["moved"]) == 5
        assert struck.status == 75, struck.said
        assert "the coordinator's lock was lost when 1 of 6 DLLs were moved" in struck.said
    struck.is_finished_by_the_next()


def test_a_server_killed_while_a_run_waits(server: Server, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    before = contents(root)
    one, two = machines(server, tmp_path, lease=3)
    with held(two, root):
        waiting = one.start("run", root)
        assert waiting.stderr is not None
        assert "waiting for the lock" in waiting.stderr.readline()
        server.kill()
        out, err = waiting.communicate(timeout=40)
    server.start()
    assert waiting.returncode == 75, out + err
    assert "cannot be used" in err
    assert contents(root) == before
    assert len(one.report("run", root)["moved"]) == 6


def test_a_killed_run_is_cleared_away_by_another_machine(server: Server, tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    check = Check(root)
    one, two = machines(server, tmp_path, lease=2)

    def prepare() -> None:
        machine.become("one")
        intercept(["replace"], lambda *_: os.kill(os.getpid(), signal.SIGKILL))

    in_child(["run", *one.always, str(root)], prepare, tmp_path / "log")
    check.sound()
    add_dlls(root, 1, first=7)
    assert len(two.report("run", root)["moved"]) == 7
    assert overlaps(root) == set()
    assert left_over(root) == []
