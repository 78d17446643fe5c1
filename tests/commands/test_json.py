"""The JSON of every command is what docs/json.md shows: the same fields, of the same types."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from trees import HERE, Rebaser, add_dll

EXAMPLES = {
    name: json.loads(example)
    for name, example in re.findall(
        r"^## rebaser (\w+) --json\n\n```json\n(.*?)^```",
        (HERE / "docs/json.md").read_text(encoding="utf-8"),
        re.MULTILINE | re.DOTALL,
    )
}

#: How a lock is held cannot be told then (docs/json.md).
NO_FDINFO = not os.path.isdir("/proc/self/fdinfo")


def differences(example: Any, real: Any, where: str = "") -> list[str]:
    """Return where two values differ in their shape; null may stand for a value, or a value for it.

    Every element of a list is held against the example's first one.
    """
    if example is None or real is None:
        return []
    if isinstance(example, bool) or not isinstance(example, (int, float)):
        if type(example) is not type(real):
            return [f"{where}: {type(real).__name__}, not {type(example).__name__}"]
    elif isinstance(real, bool) or not isinstance(real, (int, float)):
        return [f"{where}: {real!r} is no number"]
    if isinstance(example, dict):
        found = [f"{where}.{name}: in one only" for name in example.keys() ^ real.keys()]
        for name in example.keys() & real.keys():
            found += differences(example[name], real[name], f"{where}.{name}")
        return found
    if isinstance(example, list) and example:
        return [d for one in real for d in differences(example[0], one, f"{where}[]")]
    return []


def emptier(example: Any, real: Any, where: str = "") -> list[str]:
    """Return what the example has something in, and the real value nothing."""
    if isinstance(example, list) and example:
        return emptier(example[0], real[0], f"{where}[]") if real else [where]
    if isinstance(example, dict):
        return [
            d for name in example for d in emptier(example[name], real[name], f"{where}.{name}")
        ]
    return [where] if example is not None and real is None else []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The tree of the examples."""
    root = tmp_path / "tree"
    for name in ("a", "b"):
        add_dll(root / f"lib/{name}.dll")
    size = (root / "lib/a.dll").stat().st_size
    certificate = {"directories": {4: (size, 8)}, "overlay": b"\x08\0\0\0\0\2\2\0"}
    add_dll(root / "lib/signed.dll", **certificate)
    (root / "lib/empty.dll").touch()
    return root


def real(rebaser: Rebaser, tree: Path, name: str) -> Any:
    if name == "run":
        return rebaser.report("run", tree, "--engine", "builtin")
    if name == "check":
        return rebaser.report("check", tree, status=1)
    if name == "info":
        return rebaser.report("info", tree, tree / "no.dll", status=1)
    if name == "map":
        return rebaser.report("map", tree)
    assert rebaser("run", tree, "--engine", "builtin").status == 0
    with rebaser.start("lock", "--root", tree, "--", "sh", "-c", "echo; exec sleep 60") as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            return rebaser.report("status", tree)
        finally:
            holder.kill()


def test_every_command_with_json_is_described() -> None:
    from rebaser.commands import COMMANDS
    from rebaser.commands.parser import command_parser

    takes = {name for name in COMMANDS if "--json" in command_parser(name)._option_string_actions}
    assert set(EXAMPLES) == takes


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_it_is_as_described(rebaser: Rebaser, tree: Path, name: str) -> None:
    example, found = EXAMPLES[name], real(rebaser, tree, name)
    assert differences(example, found) == []
    unknown = [".lock.free", ".lock.open_in[].mode"] if name == "status" and NO_FDINFO else []
    assert emptier(example, found) == unknown
    assert next(iter(found.items())) == ("format", 1)


def test_a_difference_is_found() -> None:
    example = EXAMPLES["info"]
    for wrong in (
        {**example, "more": 1},
        {name: value for name, value in example.items() if name != "failed"},
        {**example, "images": [{**example["images"][0], "size": "36864"}]},
        {**example, "images": [{**example["images"][0], "overlaps": 1}]},
    ):
        assert differences(example, wrong)
    assert emptier(example, {**example, "failed": []}) == [".failed"]
