"""Cygwin names and host names of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cygwin_root import cygwin_path

from cygwin.paths import host_path, posix_path


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("/usr/bin/cygz.dll", "/c/root/bin/cygz.dll"),
        ("/usr/lib/a/b.dll", "/c/root/lib/a/b.dll"),
        ("/bin/x", "/c/root/bin/x"),
        ("/usr/libexec/x", "/c/root/usr/libexec/x"),
        ("/opt/../usr//bin/x", "/c/root/bin/x"),
        ("//usr/bin/x", "/c/root/bin/x"),
        ("/", "/c/root"),
        ("/cygdrive/z/home/x", "/home/x"),
        ("/cygdrive/z", "/"),
        ("/cygdrive/c/windows/x", None),
        ("/cygdrive/zz/x", None),
        ("relative/x", None),
        ("", None),
    ],
)
def test_elsewhere_a_cygwin_name_lies_below_the_root(name: str, host: str | None) -> None:
    assert host_path(name, "/c/root") == host


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("/usr/bin/cygz.dll", "/bin/cygz.dll"),
        ("/lib/x", "/lib/x"),
        ("/usr/lib/x", "/lib/x"),
        ("/usr/local/lib/x", "/usr/local/lib/x"),
        ("/cygdrive/c/x", "/cygdrive/c/x"),
    ],
)
def test_on_cygwin_two_names_of_one_file_are_equal(name: str, host: str) -> None:
    assert host_path(name) == host


@pytest.mark.parametrize("file", ["/c/root/bin/x", "/c/root/lib/a/x", "/c/root/opt/x", "/other/x"])
def test_there_and_back(file: str) -> None:
    assert host_path(cygwin_path(file, "/c/root"), "/c/root") == file


def test_lists_use_the_names_below_usr() -> None:
    assert cygwin_path("/c/root/bin/x", "/c/root/") == "/usr/bin/x"
    assert cygwin_path("/c/root/lib/x", "/c/root") == "/usr/lib/x"
    assert cygwin_path("/c/root2/x", "/c/root") == "/cygdrive/z/c/root2/x"


def test_a_path_as_windows_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cygpath"
    program.write_text('#!/bin/sh\nprintf "/there of %s\\n" "$3"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for path in ("C:/x", "C:\\x y", "c:/", "\\\\server\\x", "x\\y"):
        assert posix_path(path) == f"/there of {path}"
    for path in ("/x", "x:y", "a:b.dll", "C:", "//server/x", "", "x/C:/"):
        assert posix_path(path) == path


def test_without_cygpath_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert posix_path("C:/x") == "C:/x"
