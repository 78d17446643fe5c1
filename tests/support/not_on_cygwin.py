"""What of the tests cannot run on Cygwin, and why: the one list. conftest.py loads it there.

A test that is skipped there and is not in the list has failed: nothing is left out silently.
"""

from __future__ import annotations

import fnmatch
import os
import re
from pathlib import Path

import pytest

WINE = os.path.isdir("/proc/registry/HKEY_CURRENT_USER/Software/Wine")

ANOTHER_USER = "needs another user, to become whom Windows wants a password"
LINUX = "of Linux alone: what it shows does not exist on Cygwin"
GROUP_BITS = "Wine keeps no group's and others' bits of a mode"
LOADED = "Wine lets nobody rename over a loaded DLL, where Windows does"
CALLER = "without fdinfo a caller's own lock is not told from one that it handed down"
INHERITED = "Cygwin ends those that lock one inherited descriptor at once: NtCreateEvent(lock)"
ORPHAN = "a lock that a child took on its caller's descriptor ends with the caller there"
NAMES = "Cygwin's fsync of a folder does nothing, and is not called"
SITE = "what the tests' root has for Python imports more when it starts"
REMOVED = "Wine removes, when a removed file is closed, the new one that has its name"
OPEN_FOLDER = "Wine keeps a folder that was removed while somebody has it open"
EXECUTES = "Wine lets its one user execute every file"
SIGNALS = "Cygwin's Python cannot hold signals back: it has no pthread_sigmask"
HAS_REBASE = "Cygwin has the program without which it is to be tried"
NETWORK = "needs a package registry, which the tests' root knows no certificates for"
STRACE = "needs Linux's strace; Cygwin's is another program"
PROGRAM = "needs a program that the tests' root does not have"
BY_NAME = "Cygwin's calls that take a folder's descriptor go by that folder's name"
LIMITS = "Cygwin bounds neither the memory of a process nor the size of its files"
LINKS = "Wine follows a symbolic link of Linux and shows what it leads to"
DEEP = "Wine ends a child that a shell forks where its stack is deep"

#: Marks of tests, and why those cannot run on Cygwin.
MARKS = {
    "cygwin": "drives Cygwin's programs from Linux",
    "wheels": "needs bin/wheel-tree, and with it compiled wheels",
}

#: What tests say that leave themselves out (fnmatch), and why Cygwin lacks what they want.
SKIPS = {
    "needs root*": ANOTHER_USER,
    "only root*": ANOTHER_USER,
    "*setpriv*": ANOTHER_USER,
    "*may not mount*": LINUX,
    "*the right to mount*": LINUX,
    "*lets root mount nothing*": LINUX,
    "*strace*": STRACE,
    "*tmux*": PROGRAM,
    "*chromium*": PROGRAM,
    "*zsh*": PROGRAM,
    "*shtab*": PROGRAM,
    "*mingw32-gcc*": PROGRAM,
    "the checkout's own environment is not made*": "bin/test --cygwin makes no environment",
    "*pyyaml*": PROGRAM,
    "*tooz*": "needs tooz, which the tests' root has not",
    "*fdinfo*": LINUX,
    "*VmHWM*": LINUX,
    "*extended attributes": LINUX,
    "RLIMIT_AS is of no use there": LIMITS,
    "renameat2*": LINUX,
    "needs Linux*": LINUX,
    "there a DLL in use stays": LINUX,
}

#: Tests (fnmatch on the node id), and why they cannot run on Cygwin at all.
ON_CYGWIN = {
    "tests/state/test_nested.py::test_the_whole_of_another_system_is_no_tree": LINUX,
    "tests/locks/test_locks.py::test_a_signal_that_was_only_noted_is_heard*": SIGNALS,
    "tests/commands/test_lock_command.py::test_the_command_starts_with_the_callers*": SIGNALS,
    "tests/commands/test_lock_command.py::test_a_signal_at_the_fork*[parent-*": SIGNALS,
    "tests/run/test_protocol.py::test_a_lock_that_others_hold_is_waited_for": CALLER,
    "tests/run/test_protocol.py::test_a_caller_that_keeps_its_lock_to_itself": CALLER,
    "tests/run/test_protocol.py::test_the_caller_holds_it_shared[sage-flock*": CALLER,
    "tests/run/test_protocol.py::test_many_runs_under_one_callers_lock*": INHERITED,
    "tests/run/test_protocol.py::test_the_orphan_of_a_killed_caller_keeps_its_lock": ORPHAN,
    "tests/commands/test_command_line.py::test_a_wrong_command_line[run /]": LINUX,
    "tests/commands/test_command_line.py::test_a_wrong_command_line[*--engine cygwin]": HAS_REBASE,
    "tests/apply/test_opens.py::test_a_dll_that_moves_is_opened_once*": STRACE,
    "tests/apply/test_opens.py::test_where_nothing_is_to_do_each_dll_*": STRACE,
    "tests/apply/test_opens.py::test_a_sparse_dll_stays_sparse": LINUX,
    "tests/apply/test_metadata.py::test_times_to_the_nanosecond": (
        "looking at a file sets its access time: there is no O_NOATIME"
    ),
    "tests/cluster/test_lock_of_machines.py::test_what_cannot_be_is_told*cannot be used*": (
        "needs tooz, which the tests' root has not"
    ),
    "tests/apply/test_durability.py::test_order_of_system_calls": STRACE,
    "tests/commands/test_info.py::test_what_a_run_has_seen_is_not_read_again*": STRACE,
    "tests/commands/test_check.py::test_no_folder_is_listed_again_where_nothing_changed": STRACE,
    "tests/commands/test_forget.py::test_a_folder_that_becomes_a_link_at_the_last_*": BY_NAME,
    "tests/commands/test_command_line.py::test_too_little_memory_is_a_sentence": LIMITS,
    "tests/commands/test_map.py::TestSvg::test_where_there_is_no_room_*": LIMITS,
    "tests/apply/test_durability.py::test_order_of_pythons_calls": NAMES,
    "tests/apply/test_durability.py::test_a_folder_that_knows_no_fsync": NAMES,
    "tests/run/test_run.py::test_nothing_to_do_writes_and_locks_nothing": STRACE,
    "tests/state/test_record.py::test_without_the_program_nothing_is_recorded": HAS_REBASE,
    "tests/commands/test_sage_rebase.py::TestAll::test_there_is_no_rebase": HAS_REBASE,
    "tests/run/test_programs_run.py::test_a_missing_program_is_a_usage_error": HAS_REBASE,
    "tests/run/test_bad_input.py::test_a_path_that_is_too_long_is_told_as_such": BY_NAME,
    "tests/project/test_packaging.py::TestWheel*": NETWORK,
    "tests/locks/test_locks.py::test_a_file_that_may_only_be_read_is_locked*": ANOTHER_USER,
    "tests/locks/test_locks.py::test_no_permission_is_an_error*": ANOTHER_USER,
    "tests/locks/test_locks.py::test_a_new_file_in_a_read_only_folder*": ANOTHER_USER,
}

#: Tests that cannot run where Wine plays Windows.
UNDER_WINE = {
    "tests/state/test_nested.py::test_a_state_that_others_may_write_makes_no_tree[509]": GROUP_BITS,
    "tests/locks/test_locks.py::test_a_lock_file_is_made_as_flock_1_makes_it": GROUP_BITS,
    "tests/apply/test_programs_engine.py::test_mode_is_kept": GROUP_BITS,
    "tests/apply/test_metadata.py::test_mode*": GROUP_BITS,
    "tests/run/test_protocol.py::test_a_waiting_runs_own_dlls_are_not_in_use": LOADED,
    "tests/commands/test_lock_command.py::test_status_of_a_command_that_cannot_run*": EXECUTES,
    "tests/commands/test_lock_command.py::test_a_free_lock_needs_none*": SITE,
    "tests/project/test_bench.py::test_a_run_with_nothing_to_do_imports_little": SITE,
    "tests/commands/test_sage_flock.py::test_it_runs_through_a_symbolic_link": LINKS,
    "tests/project/test_checkout.py::*": DEEP,
    "tests/cygwin/test_programs.py::test_what_hangs_is_killed_with_its_children": DEEP,
    "tests/commands/test_process.py::test_a_folder_that_is_gone": OPEN_FOLDER,
    "tests/state/test_covered.py::TestRecords::test_cleared_away*": OPEN_FOLDER,
    "tests/apply/test_full_disk.py::test_a_folder_that_vanishes_at_every_step": OPEN_FOLDER,
    "tests/apply/test_meanwhile.py::test_what_an_installer_changed_before_a_run_was*": REMOVED,
    "tests/apply/test_in_use.py::test_on_cygwin_rebasers_own_dlls_do_not_count": LOADED,
}

REASON = "not on Cygwin: "
#: Seconds that each test may take at the least.
LEAST = 400


def reason(test: str, marks: set[str]) -> str | None:
    """Return why a test is left out, or None."""
    for mark, why in MARKS.items():
        if mark in marks:
            return why
    for pattern, why in {**ON_CYGWIN, **(UNDER_WINE if WINE else {})}.items():
        # A node id is full of brackets, which fnmatch takes for sets.
        if fnmatch.fnmatchcase(test.replace("[", "("), pattern.replace("[", "(")):
            return why
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what the list names, and in CI all but the first and last of a test's cases."""
    if os.environ.get("REBASER_TEST_PART"):
        cases: dict[str, list[pytest.Item]] = {}
        for item in items:
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
        items[:] = [item for same in cases.values() for item in (same[:1] + same[1:][-1:])]
    for item in items:
        # Each process takes its time there.
        limit = item.get_closest_marker("timeout")
        if limit and limit.args[0] < LEAST:
            item.add_marker(pytest.mark.timeout(LEAST), append=False)
        why = reason(item.nodeid, {mark.name for mark in item.iter_markers()})
        if why:
            item.add_marker(pytest.mark.skip(reason=REASON + why), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    """Let a test that skips itself fail."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        why = why.removeprefix("Skipped: ")
        known = [text for words, text in SKIPS.items() if fnmatch.fnmatchcase(why, words)]
        if known and REASON not in why:
            report.longrepr = (str(item.path), item.location[1] or 0, REASON + known[0])
        elif REASON not in why:
            report.outcome = "failed"
            report.longrepr = f"skipped, and tests/support/not_on_cygwin.py does not say so: {why}"
    return report


def _log(test: str, outcome: str, words: str = "") -> None:
    path = os.environ.get("REBASER_TEST_LOG")
    if path:
        with open(path, "a") as out:
            out.write(f"{test}\t{outcome}\t{' '.join(words.split())[:300]}\n")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note what is to be run."""
    for item in session.items:
        _log(item.nodeid, "waiting")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note which test has begun: it may end the process."""
    _log(nodeid, "running")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how it ended."""
    if report.failed:
        crash = getattr(report.longrepr, "reprcrash", None)
        _log(report.nodeid, "failed", crash.message if crash else str(report.longrepr))
    elif report.skipped and not hasattr(report, "wasxfail"):
        _log(report.nodeid, "left out", str(report.longrepr[2]).partition(REASON)[2])
    elif report.when == "teardown":
        _log(report.nodeid, "passed")


def names_a_test(pattern: str, tests: Path) -> bool:
    """Return whether a pattern's file is there, and has the test or class that it names."""
    file, *names = pattern.split("::")
    path = tests.parent / file
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    starts = (name.partition("[")[0].partition("*") for name in names)
    return bool(text) and all(
        re.search(rf"\b(def|class) {start}{'' if star else '[(:]'}", text)
        for start, star, _ in starts
    )
