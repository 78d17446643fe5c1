"""What belongs to the tree is none of the others': --avoid, --exclude."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from trees import Rebaser, make_tree


@pytest.mark.parametrize("avoided", ["", "lib"])
def test_a_tree_does_not_avoid_itself(rebaser: Rebaser, tmp_path: Path, avoided: str) -> None:
    root = make_tree(tmp_path / "tree")
    assert rebaser("run", str(root)).status == 0
    avoid = next(root.rglob("*.dll")).parent if avoided else root
    again = rebaser("run", str(root), "--avoid", str(avoid), "--json")
    assert (again.status, again.json["moved"]) == (0, []), again.words
    assert rebaser("check", str(root), "--avoid", str(avoid)).status == 0


def test_globs_are_relative_to_the_folder_that_was_asked_for(
    rebaser: Rebaser, tmp_path: Path
) -> None:
    outer = tmp_path / "outer"
    inner = make_tree(outer / "inner", 2)
    (outer / "var").mkdir()
    assert rebaser("run", str(outer), "--only-from", os.devnull).status == 0
    one = sorted(inner.rglob("*.dll"))[0]
    glob = str(one.relative_to(inner))
    done = rebaser("run", str(inner), "--exclude", glob, "--json")
    assert done.status == 0, done.words
    assert len(done.json["moved"]) == 1
    assert str(one.relative_to(outer)) not in [move["path"] for move in done.json["moved"]]
