"""Every command of README and docs on real Cygwin, in its bash, by its own Python."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from cygwin_root import CygwinRoot, copied
from trees import HERE

pytestmark = [pytest.mark.cygwin, pytest.mark.slow, pytest.mark.timeout(3000)]

Told = dict[str, tuple[int, str, str]]
CHECKOUT = ("rebaser", "cygwin", "locks", "bin", "pyproject.toml")


@pytest.fixture
def checkout(pristine_new_root: CygwinRoot) -> Iterator[CygwinRoot]:
    """Return a root with a copy of this checkout in /opt/rebaser."""
    with copied(pristine_new_root) as root:
        folder = root.path / "opt/rebaser"
        for name in CHECKOUT:
            if (HERE / name).is_dir():
                shutil.copytree(HERE / name, folder / name)
            else:
                shutil.copy(HERE / name, folder / name)
        # What bin/make-venv makes, without pip: the root's Python has what is needed.
        python = folder / ".venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text('#!/bin/sh\nexec python3 "$@"\n')
        python.chmod(0o755)
        (folder / ".venv/ready").touch()
        yield root


def tell(root: CygwinRoot, part: str) -> Told:
    """Run a part of commands_on_cygwin.py and return what came of each line of shell."""
    script = f"/cygdrive/z{HERE}/tests/run/commands_on_cygwin.py"
    call = 'export PATH=/opt/rebaser/bin:$PATH; cd /tmp && exec python3 "$@"'
    outcome = root.run("bash", "-c", call, "bash", script, part, timeout=2500)
    result = root.path / "tmp/told"
    assert result.exists(), str(outcome)
    told: Told = json.loads(result.read_text(encoding="utf-8"))
    return told


def report(told: Told, line: str, status: int = 0) -> Any:
    """Return the JSON object that a line of shell has printed."""
    ended, out, err = told[line]
    assert ended == status, (line, out, err)
    return json.loads(out)


def test_in_a_tree(checkout: CygwinRoot) -> None:
    told = tell(checkout, "in_a_tree")
    wanted: dict[str, tuple[int, str]] = {
        "rebaser check /opt/sage": (1, "BREAKS FORK: 6 of 6 DLLs"),
        "rebaser run /opt/sage -n": (0, "lib/_csv.dll"),
        "rebaser run": (0, ""),
        "rebaser check /opt/sage -v": (0, "nothing here breaks fork"),
        "rebaser map /opt/sage": (0, "6 DLLs, no overlap"),
        "rebaser map /opt/sage --svg /tmp/map.svg; head -c 100 /tmp/map.svg": (0, "<svg"),
        "rebaser status /opt/sage": (0, "moved 6 DLLs"),
        "rebaser flags /opt/sage/lib/_csv.dll": (0, "_csv.dll"),
        "rebaser hook sage /opt/src": (0, "/opt/src/build/bin/sage-spkg"),
        "rebaser hook pacman": (0, "[Trigger]"),
        "rebaser hook cygwin /opt/sage": (0, "/etc/postinstall/zp_rebaser-"),
        "rebaser help run": (0, "--only-from"),
        "rebaser lock --root /opt/sage -- echo locked": (0, "locked"),
        "rebaser lock --name pip3 --root /opt/sage -- echo named": (0, "named"),
        "sage-flock -x /opt/sage/var/lock/rebase.lock echo flocked": (0, "flocked"),
        "sage-rebase /opt/other": (0, ""),
        'SAGE_LOCAL="$(cygpath -m /opt/sage)" rebaser status': (0, "moved 6 DLLs"),
    }
    for line, (status, words) in wanted.items():
        ended, out, err = told[line]
        assert (ended, words in out) == (status, True), (line, ended, out, err)
    for engine, tree in (("builtin", "/opt/sage"), ("cygwin", "/opt/other")):
        done = report(told, f"rebaser run {tree} --engine {engine} --json")
        assert (done["engine"], len(done["moved"]), done["overlaps"]) == (engine, 6, [])
    assert told["what both engines do not make the same"] == [0, "", ""]
    images = report(told, "rebaser info /opt/sage --json")["images"]
    assert len({image["base"] for image in images}) == 6
    line = 'windows="$(cygpath -w /opt/sage)"; rebaser run "$windows" --json'
    done = report(told, line)
    assert (done["root"], done["moved"]) == ("/opt/sage", [])
    assert not report(told, 'mixed="$(cygpath -m /opt/sage)"; rebaser check "$mixed" --json')[
        "broken"
    ]
    line = 'drive="/cygdrive/z$(cygpath -m /opt/other | cut -c3-)"; rebaser run "$drive" --json'
    assert report(told, line)["moved"] == []
    ended, _, err = told["rebaser run 'C:/there/is/nothing'"]
    assert (ended, "does not exist" in err) == (2, True), err
    line = "printf 'lib/_csv.dll\\r\\nlib/_queue.dll\\r\\n' | rebaser run --only-from - --json"
    assert report(told, line)["scanned"] == 6, "no name of a list with CRLF is missed"
    done = report(told, "rebaser run /opt/sage --suffix .dll. --json")
    moved = {move["path"] for move in done["moved"]}
    assert moved == {f"lib/{name}" for name in ("a:b.dll", "dot.dll.", "what?.dll", "dot.dll.dll")}
    ended, out, err = told[
        "rebaser forget /opt/sage --yes; ls -A /opt/sage/var/lib /opt/sage/var/lock"
    ]
    assert (ended, "/opt/sage/var/lib:\n\n" in out) == (0, True), (out, err)


def test_nobody_undoes_what_another_did(checkout: CygwinRoot) -> None:
    told = tell(checkout, "with_rebases_database")
    done = report(told, "rebaser run /opt/db --json")
    assert (len(done["moved"]), done["overlaps"]) == (6, [])
    listed = report(told, "rebaser info --db /etc/rebase.db.x86_64 --json")
    assert len(listed["images"]) > 200
    for line in told:
        if line.startswith(("sha1sum -c", "rebase ", "peflags -d0", "ls ")):
            assert told[line][0] == 0, (line, told[line])
    assert report(told, "rebaser run /opt/db --json # again")["moved"] == []
    line = "peflags -d1 /opt/db/lib/_csv.dll; rebaser run /opt/db --json # peflags -d1"
    out = told[line][1]
    (move,) = json.loads(out[out.index("{") :])["moved"]
    assert move["old_base"] == move["new_base"], "only the flag is cleared"


def test_on_a_mount_without_access_lists(checkout: CygwinRoot) -> None:
    told = tell(checkout, "with_noacl")
    done = report(told, "rebaser run /mnt/noacl/tree --json")
    assert (len(done["moved"]), done["overlaps"]) == (6, [])
    assert report(told, "rebaser run /mnt/noacl/tree --json # again")["moved"] == []


def test_a_run_of_the_whole_root_from_a_shell(checkout: CygwinRoot) -> None:
    told = tell(checkout, "whole_root")
    first = report(told, "rebaser run / --json # first")
    assert len(first["moved"]) > 100
    in_use = {one["path"]: one["reason"] for one in first["skipped"] if "in use" in one["reason"]}
    for name in ("bin/cygintl-8.dll", "bin/libpython3.9.dll"):
        assert "in use: process " in in_use[name]
    second, third = (report(told, f"rebaser run / --json # {n}") for n in ("second", "third"))
    assert third["moved"] == []
    assert {one["path"] for one in third["skipped"] if "in use" in one["reason"]}
    assert "plan" not in third["seconds"] or third["seconds"]["plan"] == 0, "what is left is known"
    assert set(second["failed"]) == set(third["failed"]) == set()
    line = 'drive="/cygdrive/z$(cygpath -m /opt/drive | cut -c3-)"; rebaser run "$drive" --json'
    assert len(report(told, line)["moved"]) == 6, "a drive is no part of /"
    for name in ("old bash", "new bash"):
        line = "for i in 1 2 3 4 5 6 7 8 9 10; do (exit 7); printf $?; done"
        assert told[name if name in told else line][1] == "7" * 10
    for name in ("old python", "new python"):
        assert told[name][1] == "10\n", told[name]
    (perl,) = (line for line in told if line.startswith("exec perl"))
    assert told[perl][1] == "7" * 10, told[perl]
    (git,) = (line for line in told if line.startswith("git init"))
    assert told[git][0] == 0
    assert "No commits yet" in told[git][1]
