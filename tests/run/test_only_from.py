"""The list of --only-from, whatever it holds."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import Rebaser, make_tree

from rebaser.commands.lists import named_paths
from rebaser.errors import UsageError

# Bytes that mean something in a list or in a path come often.
LISTS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"/", b"..", b".", b"\n", b"\r\n", b"\0", b"/nowhere/tree/", b"x.dll"]),
    ),
    max_size=30,
).map(b"".join)


@settings(max_examples=2000, deadline=None)
@given(LISTS, st.sampled_from(["", "inner/"]), st.booleans())
def test_any_bytes(listed: bytes, scope: str, nul: bool) -> None:
    """Every path that comes out is one of the tree, relative to its root; or -0 is asked for."""
    if listed and nul != (b"\0" in listed):
        with pytest.raises(UsageError, match="-0"):
            named_paths(listed, "/nowhere/tree", scope, nul=nul)
        return
    found, folders = named_paths(listed, "/nowhere/tree", scope, nul=nul)
    assert {path[: path.rfind("/") + 1] for path in found} <= folders
    for path in found:
        parts = path.split("/")
        assert path
        assert not path.startswith("/")
        assert ".." not in parts
        assert "\0" not in path


@settings(max_examples=500, deadline=None)
@given(
    st.sets(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), max_size=9)
)
def test_plain_names(names: set[str]) -> None:
    for end, nul in ((b"\n", False), (b"\r\n", False), (b"\0", True)):
        listed = b"".join(name.encode() + end for name in sorted(names))
        assert named_paths(listed, "/nowhere/tree", "inner/", nul=nul)[0] == {
            f"inner/{name}" for name in names
        }


def test_a_million_names_take_a_moment(rebaser: Rebaser, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", 3)
    manifest = tmp_path / "manifest"
    manifest.write_text("".join(f"usr/lib/p{n % 500}/x{n}.dll\n" for n in range(10**6)))
    with open(manifest, "a") as file:
        file.write("bin/x001.dll\n")
    began = time.process_time()
    names, _ = named_paths(manifest.read_bytes(), str(tree), "", nul=False)
    took = time.process_time() - began
    began = time.process_time()
    plain = {line for line in manifest.read_text().split("\n") if line}
    print(
        f"a million names: {took:.2f} s, {took / (time.process_time() - began):.1f} x reading them"
    )
    assert names == plain
    report = rebaser.report("run", tree, "--only-from", manifest)
    assert [move["path"] for move in report["moved"]] == ["bin/x001.dll"]


def test_names_in_many_folders_take_a_moment(
    rebaser: Rebaser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each folder is looked at once, whatever lies above it, and no link is missed."""
    tree = make_tree(tmp_path / "tree", 3)
    (tree / "lib").mkdir()
    (tree / "lib" / "link").symlink_to("../bin")
    names = [f"lib/p{n % 1000}/q{n}/x.dll" for n in range(10**5)]
    listed = "\n".join([*names, "lib/link/x001.dll", "lib/p1/../link/./x002.dll"]).encode()
    looks = []
    for name in ("islink", "realpath"):
        real = getattr(os.path, name)
        monkeypatch.setattr(
            os.path, name, lambda path, real=real, name=name: looks.append(name) or real(path)
        )
    found, _ = named_paths(listed, str(tree), "", nul=False)
    monkeypatch.undo()
    # Asked from the root on, each was a realpath with four looks: 30 s in place of 0.7 s.
    assert looks.count("realpath") < 10
    assert looks.count("islink") < 101_100
    assert found == {*names, "bin/x001.dll", "bin/x002.dll"}
    report = rebaser.report("run", tree, "--only-from", "-", stdin=listed)
    assert [move["path"] for move in report["moved"]] == ["bin/x001.dll", "bin/x002.dll"]


@pytest.mark.parametrize("listed", [b"usr/lib/a.dll\n/elsewhere/b.dll\n", b"lib\\a.dll\r\n"])
def test_a_list_of_other_names_is_told(rebaser: Rebaser, tmp_path: Path, listed: bytes) -> None:
    tree = make_tree(tmp_path / "tree", 3)
    result = rebaser("run", tree, "--only-from", "-", stdin=listed)
    assert result.status == 0
    first = listed.splitlines()[0].decode()
    assert f"none of the names given to --only-from is there, such as {first}" in result.err
    assert f"relative to {tree}" in result.err
    assert "none of the names" not in rebaser("run", tree, "--only-from", "-").err
    assert rebaser("run", tree, "--only-from", "-", stdin=b"bin/\n").err == ""


def test_a_list_that_cannot_be_read(rebaser: Rebaser, tree: Path) -> None:
    result = rebaser("run", tree, "--only-from", tree)
    assert result.status == 2
    assert f"--only-from {tree}: cannot be read (Is a directory); nothing was changed" in result.err


def test_lines_where_nul_is_promised(rebaser: Rebaser, tree: Path) -> None:
    result = rebaser("run", tree, "--only-from", "-", "-0", stdin=b"bin/x001.dll\nbin/x002.dll\n")
    assert result.status == 2
    assert "-0" in result.err
