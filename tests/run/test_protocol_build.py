"""SageMath's parallel build, replayed with real processes: many packages install and rebase."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from lock_programs import FLOCK, held, is_free
from protocol import Shell, finished, first_line, held_here, lock_file
from trees import (
    FLOOR,
    Rebaser,
    Result,
    add_dlls,
    clean_environment,
    contents,
    damaged,
    images,
    left_over,
    make_tree,
    overlaps,
)

from rebaser.files import on_cygwin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

PACKAGES = 20
AT_ONCE = 8
DLLS = 6  # a package


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Return a folder of built packages; the DLLs of all of them collide."""
    for number in range(PACKAGES):
        add_dlls(tmp_path / "packages", DLLS, DLLS * number, folder=f"{number}")
    return tmp_path / "packages"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """Return a tree with some DLLs in their place and no lock yet."""
    return make_tree(tmp_path / "local", 10)


def originals(packages: Path, local: Path) -> dict[str, bytes]:
    """Return what every file of the tree was when it came."""
    found = contents(local)
    for number in range(PACKAGES):
        for path in (packages / str(number)).iterdir():
            found[f"lib/{path.name}"] = path.read_bytes()
    return found


def build(sh: Shell, script: str, packages: Path, local: Path) -> list[Result]:
    """Install all packages, some at once: $1 is the built package, $SAGE_LOCAL the tree."""
    (local / "lib").mkdir()

    def install(number: int) -> Result:
        return finished(sh.start(script, packages / str(number), SAGE_LOCAL=str(local)))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(install, range(PACKAGES)))


# Copying takes as long as it may: files grow, and lie half-done in the tree.
COPY = """
for file in "$1"/*.dll; do
    to=$SAGE_LOCAL/lib/${file##*/}
    head -c 1500 "$file" >"$to"
    sleep 0.01
    tail -c +1501 "$file" >>"$to"
done
"""

PROTOCOLS = {
    "rebaser run": f"""
        mkdir -p "$SAGE_LOCAL/var/lock"
        exec 200>"$SAGE_LOCAL/var/lock/rebase.lock"
        sage-flock -s 200 || exit
        {COPY}
        sage-flock -u 200 || exit
        exec rebaser run
    """,
    # The lines of sage-spkg.
    "sage-rebase.sh": f"""
        mkdir -p "$SAGE_LOCAL/var/lock"
        exec 200>"$SAGE_LOCAL/var/lock/rebase.lock"
        sage-flock -s 200
        {COPY}
        sage-flock -u 200
        sage-flock -x "$SAGE_LOCAL/var/lock/rebase.lock" sage-rebase.sh "$SAGE_LOCAL"
    """,
    # No lock around the copying; each names its own files only.
    "--only-from": f"""
        {COPY}
        cd "$1"
        ls *.dll | sed s,^,lib/, | rebaser run --only-from - --json
    """,
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_twenty_packages(
    rebaser: Rebaser, sh: Shell, packages: Path, local: Path, name: str
) -> None:
    assert rebaser("run", local).status == 0
    before = originals(packages, local)
    results = build(sh, PROTOCOLS[name], packages, local)
    assert [result.words for result in results if result.status != 0] == []
    assert overlaps(local) == set()
    assert damaged(before, local) == []
    assert left_over(local) == []
    assert is_free(lock_file(local))
    assert all(image.base >= FLOOR for image in images(local).values())
    # A DLL that is in its place stays there: no package was written twice.
    if name == "--only-from":
        written = sum(json.loads(result.out)["bytes_written"] for result in results)
        assert written == sum(len(before[path]) for path in before if path.startswith("lib/"))
    assert rebaser.report("run", local)["moved"] == []


def together(rebaser: Rebaser, words: Callable[[int], list[str]], count: int = 20) -> list[Result]:
    """Start so many runs at once, and wait for all."""
    running = [rebaser.start("run", *words(number), "--json") for number in range(count)]
    return [finished(child) for child in running]


@pytest.mark.parametrize("placed", [False, True], ids=["where the linker put them", "in the arena"])
def test_twenty_runs_on_a_tree_with_work(rebaser: Rebaser, tmp_path: Path, placed: bool) -> None:
    # In the arena and without DYNAMIC_BASE nothing is wrong with any of them alone.
    shape = {"base": FLOOR, "dll_characteristics": 0x0100} if placed else {}
    local = make_tree(tmp_path / "local", 60, **shape)
    before = contents(local)
    traces = [tmp_path / f"{number}.trace" for number in range(20)]
    # Nobody begins before all have come.
    with held_here(lock_file(local), fcntl.LOCK_EX):
        running = [start_traced(rebaser, trace, "run", str(local), "--json") for trace in traces]
        for child in running:
            assert "waiting" in first_line(child)
    results = [finished(child) for child in running]
    assert [result.words for result in results if result.status != 0] == []
    reports = [result.json for result in results]
    (worker,) = (report for report in reports if report["run"] is not None)
    # Who looked after all was done found nothing to do.
    rest = [report for report in reports if report is not worker and not report["scanned"]]
    assert {report["covered_by"] for report in rest} == {worker["run"]}
    assert len(worker["moved"]) == len(before) - (1 if placed else 0)
    assert worker["bytes_written"] == sum(len(before[move["path"]]) for move in worker["moved"])
    assert sum(report["bytes_written"] for report in reports) == worker["bytes_written"]
    assert overlaps(local) == set()
    assert damaged(before, local) == []
    if STRACE:
        full = [trace for trace in traces if len(dlls_opened(trace)) == len(before)]
        # The worker, and perhaps one who looked at what it had just written.
        assert len(full) <= 2


STRACE = None if on_cygwin() else shutil.which("strace")  # Cygwin's is another program


def start_traced(rebaser: Rebaser, trace: Path, *words: str) -> subprocess.Popen[str]:
    """Start it under strace, where there is one, which records the files that it opens."""
    under = [STRACE, "-f", "-qq", "-e", "trace=openat", "-o", str(trace)] if STRACE else []
    return subprocess.Popen(
        [*under, *rebaser.command(*words)],
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def dlls_opened(trace: Path) -> set[str]:
    """Return the DLLs of the tree that a process has opened, by the record of strace."""
    return set(re.findall(r"/bin/(x\d+\.dll)", trace.read_text()))


@pytest.mark.parametrize("kind", ["", "--only-from"])
def test_twenty_runs_on_a_tree_without_work(rebaser: Rebaser, tmp_path: Path, kind: str) -> None:
    local = make_tree(tmp_path / "local", 60)
    assert rebaser("run", local).status == 0
    assert rebaser("run", local).status == 0
    names = tmp_path / "names"
    names.write_text("bin/x001.dll\n")
    only = [kind, str(names)] if kind else []
    before = contents(local)
    # An installer holds the lock shared all the time: whoever wanted it exclusively, or had to wait
    # for another, would end with 75. Another process: on Cygwin one that holds a lock may hang when
    # it forks while a child gets the same (docs/locks.md).
    with held(FLOCK, "-s", lock=lock_file(local)):
        results = together(rebaser, lambda _: [str(local), "--no-wait", *only])
    assert [result.words for result in results if result.status != 0] == []
    assert {result.err for result in results} == {""}
    for report in (result.json for result in results):
        assert (report["run"], report["covered_by"], report["moved"]) == (None, None, [])
    assert contents(local) == before


def test_twenty_runs_for_twenty_manifests(rebaser: Rebaser, packages: Path, local: Path) -> None:
    assert rebaser("run", local).status == 0
    before = originals(packages, local)
    for number in range(PACKAGES):
        shutil.copytree(packages / str(number), local / "lib", dirs_exist_ok=True)
        names = sorted(path.name for path in (packages / str(number)).iterdir())
        (packages / f"{number}.names").write_text("".join(f"lib/{name}\n" for name in names))
    results = together(
        rebaser, lambda number: [str(local), "--only-from", str(packages / f"{number}.names")]
    )
    assert [result.words for result in results if result.status != 0] == []
    assert overlaps(local) == set()
    assert damaged(before, local) == []
    written = sum(result.json["bytes_written"] for result in results)
    assert written == sum(len(before[path]) for path in before if path.startswith("lib/"))
