"""Run the project's own tests by the Python of the Cygwin root that bin/cygwin-root has made.

bin/test --cygwin [--ci] [--jobs N] [--minutes N] [tests/… …] [words for pytest]

Each file of tests is a pytest of its own, because a fault of Wine may end or hang one. A test that
hangs has failed, and the rest of its file goes on in another pytest. A few that failed are run once
more, by themselves, which is said. What each one said is in build/cygwin/. --ci runs the tests that
concern what differs there, and of one with parameters the first and the last case; --minutes ends
the run, and what was not reached has failed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
CYGWIN = HERE / "bin" / "cygwin"
WORDS = HERE / "build" / "cygwin"
#: Seconds that one test may take before the file's pytest is killed; pytest's own time-out is less.
HUNG = 600
#: How many tests that failed are run once more, by themselves: Wine ends a process now and then.
MOST_AGAIN = 5
PYTEST = (
    "python3",
    "-m",
    "pytest",
    "-p",
    "no:cacheprovider",
    "-o",
    "timeout=400",
    "-v",
    "--durations=20",
)
QUICK = ("-m", "not long")

#: What --ci runs: what differs there, of each file the tests that -k names. The longest is first.
CI = {
    "tests/run/test_protocol.py": "",
    "tests/run/test_crowd.py": "",
    "tests/apply/test_kill.py": "",
    "tests/state/test_nested.py": "ends or inner or first_time or waited",
    "tests/state/test_covered.py": "covers or nested or killed or began or at_once",
    "tests/run/test_run.py": "safe or second or wait or covered or own or streams or from",
    "tests/apply/test_in_use.py": "",
    "tests/apply/test_programs_engine.py": "",
    "tests/commands/test_hook.py": "",
    "tests/state/test_state.py": "layout or lost or staging or places or written",
    "tests/locks/test_locks.py": "",
    "tests/locks/test_locks_inherited.py": "",
    "tests/locks/test_locks_holders.py": "",
    "tests/project/test_attributes.py": "",
}

#: Set where all is to end at once.
STOPPED = threading.Event()

Results = dict[str, tuple[str, str]]  # test: outcome (see read_log), words


class Room:
    """A folder of Wine's own, so that nothing of one worker is killed with another's."""

    def __init__(self, template: Path, folder: Path) -> None:
        self.scratch = tempfile.TemporaryDirectory(prefix="rebaser-cygwin-")
        self.environment = {**os.environ, "WINEPREFIX": str(folder)}
        shutil.copytree(template, folder, symlinks=True, copy_function=_link)
        self.open()

    def open(self) -> None:
        """Start what keeps Wine's server and Cygwin's shared memory: each start is quicker then.

        Waits for it: first processes that start at the same time may not find one another.
        """
        words = "echo open; exec sleep 86400"
        for _ in range(5):
            with tempfile.TemporaryFile() as out:
                self.idle = self.start("bash", "-c", words, out=out.fileno())
                for _ in range(240):
                    time.sleep(0.5)
                    out.seek(0)
                    if b"\nopen" in out.read():
                        return
                    if self.idle.poll() is not None:
                        break  # Wine may crash when it starts
        raise TimeoutError("Cygwin's bash did not start")

    def start(self, *words: str, out: int) -> subprocess.Popen[bytes]:
        """Start a program in a process group of its own."""
        return subprocess.Popen(
            [CYGWIN, *words],
            cwd=HERE,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def close(self) -> None:
        """End every Windows process of this room."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.start("--wine", "wineserver", "-k", out=subprocess.DEVNULL).wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.idle.pid, signal.SIGKILL)
        self.idle.wait()

    def remove(self) -> None:
        """Close it for good."""
        self.close()
        shutil.rmtree(self.scratch.name, ignore_errors=True)


def _link(source: str, target: str) -> None:
    # Wine writes these in place where they have two names.
    if source.endswith((".reg", "wineserver")):
        shutil.copy2(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def run_file(room: Room, target: str, words: list[str], deadline: float) -> Results:
    """Run one file's tests (or one test) and return what came of each."""
    name = re.sub(r"[^\w.]+", "-", target)
    log, said = WORDS / f"{name}.log", WORDS / f"{name}.txt"
    results: Results = {}
    said.unlink(missing_ok=True)
    for _ in range(5):
        if time.time() > deadline or STOPPED.is_set():
            results[target] = ("failed", "the time was over")
            return results
        log.write_text("")
        without = (f"--deselect={test}" for test in results)
        # Not as words: a command line of Windows makes something else of the quotes in a name.
        room.environment["PYTEST_ADDOPTS"] = shlex.join([target, *without])
        room.environment["REBASER_TEST_LOG"] = f"/cygdrive/z{log}"
        with open(said, "ab") as out:
            scratch = f"TMPDIR=/cygdrive/z{room.scratch.name}"
            part = ("-k", CI.get(target, "")) if "REBASER_TEST_PART" in os.environ else ()
            call = ("env", scratch, *PYTEST, *QUICK, *part, *words)
            pytest = room.start(*call, out=out.fileno())
            status = wait(pytest, log, deadline)
        now = read_log(log)
        reached = {test: end for test, end in now.items() if end[0] != "waiting"}
        results.update(reached)
        for test, (outcome, _) in reached.items():
            if outcome == "running":
                results[test] = ("failed", "it hung, or ended the whole process")
        if status is None:
            room.close()
            if not STOPPED.is_set():
                room.open()
        # 5: no test is left. The status alone proves nothing: a fault may end Python with 0.
        if status in (0, 1, 5) and len(reached) == len(now):
            return results
        if not reached:
            results[target] = ("failed", f"pytest ended with status {status}: see {said}")
            return results
    results[target] = ("failed", "five pytests did not get to the end: the rest was not tried")
    return results


def wait(pytest: subprocess.Popen[bytes], log: Path, deadline: float) -> int | None:
    """Wait for a pytest; return its status, or None where it had to be killed."""
    while True:
        try:
            return pytest.wait(2)
        except subprocess.TimeoutExpired:
            if time.time() < min(log.stat().st_mtime + HUNG, deadline) and not STOPPED.is_set():
                continue
            os.killpg(pytest.pid, signal.SIGKILL)
            pytest.wait()
            return None


def read_log(log: Path) -> Results:
    """Read what tests/support/not_on_cygwin.py has written: test, outcome and words a line.

    Outcomes: waiting (it was not reached), running (it did not end), passed, failed, left out.
    """
    results: Results = {}
    for line in log.read_text(errors="replace").splitlines():
        test, outcome, words = line.split("\t", 2)
        if results.get(test, ("",))[0] not in ("failed", "left out"):
            results[test] = (outcome, words)
    return results


def files_of(target: str) -> list[str]:
    """Return the files of tests in a folder; other names as they are."""
    path = HERE / target
    if not path.is_dir():
        return [target]
    return [str(file.relative_to(HERE)) for file in sorted(path.rglob("test_*.py"))]


@contextlib.contextmanager
def rooms(count: int) -> Iterator[list[Room]]:
    """Make rooms beside Wine's own folder, where hard links reach, and take them away again."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rebaser")
    with tempfile.TemporaryDirectory(dir=cache, prefix="wine-", ignore_cleanup_errors=True) as room:
        made = [Room(cache / "cygwin-3.5.3.wine", Path(room, str(i))) for i in range(count)]
        try:
            yield made
        finally:
            for one in made:
                one.remove()


def main() -> int:
    """Run the tests and print what came of them; return the exit status."""
    parser = argparse.ArgumentParser(prog="bin/test --cygwin", description=__doc__)
    parser.add_argument("--ci", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--minutes", type=float, default=24 * 60)
    options, words = parser.parse_known_args()
    deadline = time.time() + 60 * options.minutes
    targets = [word for word in words if word.startswith("tests/") or word == "tests"]
    words = [word for word in words if word not in targets]
    if options.ci:
        os.environ["REBASER_TEST_PART"] = "1"
    files = [name for one in targets or (CI if options.ci else ["tests"]) for name in files_of(one)]

    WORDS.mkdir(parents=True, exist_ok=True)
    results: Results = {}
    with rooms(min(options.jobs, len(files))) as made, _pool(made) as pool:
        free, lock = list(made), threading.Lock()

        def work(name: str) -> Results:
            with lock:
                room = free.pop()
            began = time.time()
            try:
                done = run_file(room, name, words, deadline)
            except BaseException as error:
                done = {name: ("failed", f"bin/test_cygwin.py: {error!r}")}
            with lock:
                free.append(room)
                results.update(done)
                print(f"{name}: {numbers(done)}; {time.time() - began:.0f} s", flush=True)
                for test, (outcome, why) in done.items():
                    if outcome == "failed":
                        print(f"  FAILED {test}: {why}", flush=True)
            return done

        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        try:
            list(pool.map(work, files))
            failed = [name for name, (outcome, _) in results.items() if outcome == "failed"]
            for name in failed[:MOST_AGAIN]:
                print("once more, by itself:", flush=True)
                if (done := work(name)) and name not in done:
                    del results[name]  # of a whole file: its tests speak for themselves by now
        except BaseException:
            STOPPED.set()
            raise
    reasons: dict[str, int] = {}
    for outcome, why in results.values():
        if outcome == "left out":
            reasons[why] = reasons.get(why, 0) + 1
    for why, count in sorted(reasons.items()):
        print(f"left out {count}: {why}")
    print(f"on Cygwin: {numbers(results)}")
    return int(not results or any(outcome == "failed" for outcome, _ in results.values()))


def _pool(made: list[Room]) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(len(made))


def numbers(results: Results) -> str:
    """Return how many passed, failed and were left out."""
    outcomes = [outcome for outcome, _ in results.values()]
    return ", ".join(f"{outcomes.count(word)} {word}" for word in ("passed", "failed", "left out"))


if __name__ == "__main__":
    sys.exit(main())
