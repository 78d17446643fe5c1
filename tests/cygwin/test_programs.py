"""Starting programs: what they are given, what is kept of them, and how they are ended."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from cygwin_root import FAKE_PROGRAMS, CygwinRoot

from cygwin.programs import ProgramError, Programs, run

BASE = 0x2_0001_0000
FAST_CWD = """\
Cygwin WARNING:
  Couldn't compute FAST_CWD pointer.  This typically occurs if you're using
  an older Cygwin version on a newer Windows.  Please update to the latest
  available Cygwin version from https://cygwin.com/.  If the problem persists,
  please see https://cygwin.com/problems.html

"""


@pytest.fixture
def recorder(tmp_path: Path) -> Programs:
    """Return programs that print their arguments, one a line, and the list of files."""
    for name in ("rebase", "peflags"):
        script = tmp_path / name
        script.write_text(
            '#!/bin/sh\nfor word; do echo "[$word]"; done\n'
            'while [ $# -gt 1 ]; do [ "$1" = -T ] && cat "$2"; shift; done; exit 0\n'
        )
        script.chmod(0o755)
    found = Programs.find(str(tmp_path))
    assert found is not None
    return found


def test_status_output_and_words() -> None:
    outcome = run(["sh", "-c", "echo out; echo; echo err >&2; exit 3"], timeout=60)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (3, "out", "err")
    assert str(outcome).endswith("exit 3' ended with status 3, saying: err; out")


def test_a_flood_of_words_is_told_by_its_ends() -> None:
    told = str(run(["sh", "-c", "echo begin; seq 10000; echo end"], timeout=60))
    assert "saying: begin; 1; 2" in told
    assert told.endswith("; 10000; end")
    assert len(told) < 600


def test_cygwins_noise_is_dropped() -> None:
    script = 'printf %s "$0" >&2; echo "rebase: no such file" >&2'
    assert run(["sh", "-c", script, FAST_CWD], timeout=60).stderr == "rebase: no such file"
    crlf = FAST_CWD.replace("\n", "\r\n")
    assert run(["sh", "-c", script, crlf], timeout=60).stderr == "rebase: no such file"


def test_standard_input_is_empty_and_the_locale_utf8() -> None:
    assert run(["sh", "-c", "cat; echo $LC_ALL"], timeout=60).stdout == "C.UTF-8"


def test_output_without_end_is_kept_in_part() -> None:
    outcome = run(["sh", "-c", "yes | head -c 10000000; echo last"], timeout=60)
    assert outcome.stdout.endswith("last")
    assert len(outcome.stdout) <= 65536


def test_bytes_that_are_not_utf8_are_shown_as_escapes() -> None:
    assert run(["printf", r"a\377b"], timeout=60).stdout == r"a\xffb"


def test_what_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 1000 & echo $! >{tmp_path}/child; echo waiting; wait"
    outcome = run(["sh", "-c", script], timeout=0.5)
    assert outcome.timed_out == 0.5
    assert "was killed after 0.5 seconds, saying: waiting" in str(outcome)
    child = int((tmp_path / "child").read_text())
    for _ in range(1000):
        if not _is_alive(child):
            break
        time.sleep(0.01)
    else:
        pytest.fail("the child of a killed program lives on")


def _is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_child_left_behind_is_not_waited_for() -> None:
    before = time.monotonic()
    assert run(["sh", "-c", "sleep 30 & echo done"], timeout=60).stdout == "done"
    assert time.monotonic() - before < 25


def test_a_signal_is_named() -> None:
    outcome = run(["sh", "-c", "kill -KILL $$"], timeout=60)
    assert outcome.status == -9
    assert str(outcome) == "sh -c 'kill -KILL $$' was killed by SIGKILL"


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="rebase -V could not be started: No such file"):
        run([str(tmp_path / "rebase"), "-V"], timeout=60)


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENOMEM])
def test_a_fork_that_fails_is_the_programs_failure(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(ProgramError, match=f"could not be started: {os.strerror(code)}"):
        run(["rebase", "-V"], timeout=60)


def test_no_room_for_temporary_files_is_the_programs_failure(
    monkeypatch: pytest.MonkeyPatch, recorder: Programs, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(ProgramError, match="could not be started: No such file or directory"):
        run(["true"], timeout=60)
    names = [f"{number:07d} ü.dll" for number in range(5000)]
    with pytest.raises(ProgramError, match="peflags -d0 -T could not be started: No such file"):
        recorder.clear_dynamic_base(names, cwd=str(tmp_path), timeout=60)
    if not os.path.exists("/dev/full"):
        return
    monkeypatch.undo()
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: open("/dev/full", "wb"))
    with pytest.raises(ProgramError, match="No space left on device"):
        recorder.clear_dynamic_base(names, cwd=str(tmp_path), timeout=60)


def test_both_programs_are_needed(tmp_path: Path) -> None:
    assert Programs.find(str(tmp_path)) is None
    (tmp_path / "rebase").symlink_to("/bin/true")
    assert Programs.find(str(tmp_path)) is None
    (tmp_path / "peflags").symlink_to("/bin/true")
    found = Programs.find(str(tmp_path))
    assert found is not None
    assert found.version() is None
    assert found.rebase_path == str(tmp_path / "rebase")


def test_the_version_is_read() -> None:
    found = Programs.find(f"{FAKE_PROGRAMS / 'obedient'}")
    assert found is not None
    assert found.version() == "4.6.3"


def test_the_arguments_of_rebase(recorder: Programs, tmp_path: Path) -> None:
    names = ["-x.dll", "a b.dll", "ü$(x);.dll"]
    kept = recorder.rebase(BASE, names, machine=0x8664, cwd=str(tmp_path), timeout=60)
    words = ["-8", "-b", "0x200010000", "--", *names]
    assert kept.stdout.splitlines() == [f"[{word}]" for word in words]
    kept = recorder.rebase(0x3800_0000, ["x"], machine=0x14C, cwd=str(tmp_path), timeout=60)
    assert kept.argv[1:] == ("-4", "-b", "0x38000000", "--", "x")


def test_the_arguments_of_peflags(recorder: Programs, tmp_path: Path) -> None:
    kept = recorder.clear_dynamic_base(["a", "b"], cwd=str(tmp_path), timeout=60)
    assert kept.argv[1:] == ("-d0", "--", "a", "b")


def test_many_files_go_through_a_list(recorder: Programs, tmp_path: Path) -> None:
    names = [f"{number:07d} ü.dll" for number in range(5000)]
    kept = recorder.clear_dynamic_base(names, cwd=str(tmp_path), timeout=60)
    assert kept.stdout.splitlines()[-3000:] == names[-3000:]
    assert not Path(kept.argv[-1]).exists()
    with pytest.raises(ValueError, match="not fit"):
        recorder.clear_dynamic_base([*names, "a\nb"], cwd=str(tmp_path), timeout=60)


def test_a_long_command_is_shown_in_part(recorder: Programs, tmp_path: Path) -> None:
    names = [f"{number}" for number in range(100)]
    words = str(recorder.clear_dynamic_base(names, cwd=str(tmp_path), timeout=60))
    assert "peflags -d0 -- 0 1 2 3 4 ... 94 more ... 99 ended with status 0" in words


@pytest.mark.cygwin
def test_the_real_programs(pristine_root: CygwinRoot, real_programs: str, tmp_path: Path) -> None:
    found = Programs.find(real_programs)
    assert found is not None
    assert found.version() == "4.6.3"
    names = [f"{number:07d} ü.dll" for number in range(3)]
    for name, source in zip(names, pristine_root.extensions()):
        (tmp_path / name).write_bytes(source.read_bytes())
    kept = found.rebase(BASE, names, machine=0x8664, cwd=str(tmp_path), timeout=60)
    assert (kept.status, kept.stdout, kept.stderr) == (0, "", "")
    shown = run([found.rebase_path, "-i", *names], cwd=str(tmp_path), timeout=60).stdout
    assert [line.split("base ")[1].split()[0] for line in shown.splitlines()] == [
        "0x000200010000",
        "0x000200020000",
        "0x000200060000",
    ]
    kept = found.rebase(0x1000, names, machine=0x8664, cwd=str(tmp_path), timeout=60)
    assert kept.status == 1
    assert "saying: " in str(kept)


@pytest.mark.cygwin
@pytest.mark.slow
def test_the_real_programs_read_a_list(
    pristine_root: CygwinRoot, real_programs: str, tmp_path: Path
) -> None:
    found = Programs.find(real_programs)
    assert found is not None
    data = (pristine_root.path / "lib" / "engines-3" / "capi.dll").read_bytes()
    names = [f"{number:07d}.dll" for number in range(800)]
    for name in names:
        (tmp_path / name).write_bytes(data)
    kept = found.rebase(BASE, names, machine=0x8664, cwd=str(tmp_path), timeout=100)
    assert kept.argv[-2] == "-T"
    assert (kept.status, kept.stdout, kept.stderr) == (0, "", "")
    bases = [(tmp_path / name).read_bytes()[0xB0:0xB8] for name in names]
    assert bases == [(BASE + 0x10000 * n).to_bytes(8, "little") for n in range(800)]
    kept = found.clear_dynamic_base(names, cwd=str(tmp_path), timeout=100)
    assert kept.status == 0, str(kept)
