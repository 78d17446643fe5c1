"""Cygwin's Python lacks some of what the system modules have elsewhere: nothing of it is needed."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from trees import HERE

MODULES = ("errno", "fcntl", "os", "signal", "socket", "stat")

#: A Python has all of these or none.
XATTR = frozenset(f"os.{what}xattr" for what in ("list", "get", "set", "remove"))


def used(source: str) -> set[str]:
    """Return the attributes of MODULES that a source needs.

    What it asks for first is not needed: `hasattr(os, "x")`, `getattr(os, "x", None)`.
    """
    found: set[str] = set()
    asked: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in MODULES:
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("hasattr", "getattr"):
            module, name = node.args[:2]
            if isinstance(module, ast.Name) and isinstance(name, ast.Constant):
                asked.add(f"{module.id}.{name.value}")
    if asked & XATTR:
        asked |= XATTR
    return found - asked


def sources() -> list[Path]:
    return sorted(
        path for room in ("rebaser", "locks", "cygwin") for path in (HERE / room).rglob("*.py")
    )


def needs() -> dict[str, str]:
    """Return each attribute that is needed, and a file that needs it."""
    found = {
        name: str(path.relative_to(HERE))
        for path in sources()
        for name in used(path.read_text(encoding="utf-8"))
    }
    assert "os.fsync" in found
    return found


def test_what_is_needed_is_there() -> None:
    """By the Python that runs this: on Cygwin it is the proof."""
    for name, path in needs().items():
        module, attribute = name.split(".")
        assert hasattr(importlib.import_module(module), attribute), f"{path}: {name}"


@pytest.mark.cygwin
def test_what_is_needed_is_there_in_cygwins_python(pristine_new_root: CygwinRoot) -> None:
    ask = """import importlib, sys
for name in sys.argv[1:]:
    module, attribute = name.split(".")
    if not hasattr(importlib.import_module(module), attribute):
        print(name)
print("asked", sys.platform, len(sys.argv) - 1)"""
    names = sorted(needs())
    outcome = pristine_new_root.run("python3.9", "-c", ask, *names)
    *missing, asked = outcome.stdout.splitlines()
    assert asked.split() == ["asked", "cygwin", str(len(names))], str(outcome)
    assert [f"{name} in {needs()[name]}" for name in missing] == []


@pytest.mark.parametrize("call", ["getattr(os, 'x', None)", "hasattr(os, 'x') and os.x"])
def test_what_is_asked_for_first_may_be_missing(call: str) -> None:
    assert used(f"import os\n{call}\n") == set()
    assert used("import os\nos.x\n") == {"os.x"}
