"""The house: which room may know of which; the arrows between rooms go one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from trees import HERE

# From the roof down: a room imports from itself and from lines below its own, never upward. A name
# stands for the module or the folder.
FLOORS = """
rebaser.__main__ rebaser.sage_rebase
rebaser.cli
rebaser.commands
rebaser.api
rebaser.process rebaser.check rebaser.run rebaser.view
rebaser.remember
rebaser.apply
rebaser.job
rebaser.apply.engines
rebaser.plan
rebaser.tree
rebaser.state
rebaser.progress
rebaser.options rebaser.report
rebaser.scan
rebaser.hooks rebaser.files rebaser.text
rebaser.errors
locks cygwin
""".strip().splitlines()
FLOOR_OF = {room: number for number, line in enumerate(FLOORS) for room in line.split()}
NEVER = {("locks", "cygwin"), ("cygwin", "locks")}
# What is large to import, and the only rooms that may.
LIBRARIES = {"pefile": "cygwin", "fasteners": "locks", "tooz": "locks"}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the program, by its dotted name."""
    for package in ("rebaser", "locks", "cygwin"):
        for path in sorted((HERE / package).rglob("*.py")):
            parts = path.relative_to(HERE).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


NAMES = {name for name, _ in modules()}


def imports_of(name: str, path: Path) -> Iterator[str]:
    """Yield what a module imports, wherever in it, for types alone too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports by a relative name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else str(node.module)


def room_of(module: str) -> str | None:
    """Return the room of a module: the longest name in FLOORS that it lies in."""
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in FLOOR_OF), None)


def test_every_module_is_in_a_room() -> None:
    # The package itself and its list of public names stand before the house.
    homeless = [name for name in NAMES if name != "rebaser" and room_of(name) is None]
    assert homeless == []


def test_no_arrow_goes_up() -> None:
    wrong = []
    for name, path in modules():
        room = room_of(name)
        for imported in imports_of(name, path):
            other = room_of(imported)
            if name == "rebaser" or room is None or other is None or room == other:
                continue
            if FLOOR_OF[other] <= FLOOR_OF[room] or (room, other) in NEVER:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []


def test_no_circles() -> None:
    graph = {n: {i for i in imports_of(n, p) if i in NAMES} for n, p in modules()}
    del graph["rebaser"]  # whose names are looked up in rebaser.api at first use
    while True:
        ends = {name for name, others in graph.items() if not others & graph.keys()}
        if not ends:
            break
        for name in ends:
            del graph[name]
    assert sorted(graph) == []


def test_every_module_may_be_imported_first() -> None:
    """`from rebaser import files` asks rebaser.api for the name before it looks for the module."""
    script = """if True:
        import importlib, sys
        for name in sys.argv[1:]:
            for known in list(sys.modules):
                if known.partition(".")[0] in ("rebaser", "locks", "cygwin"):
                    del sys.modules[known]
            importlib.import_module(name)
    """
    names = sorted(name for name in NAMES if not name.endswith("__main__"))
    subprocess.run([sys.executable, "-c", script, *names], cwd=HERE, check=True)


def test_libraries_stay_in_their_rooms() -> None:
    for name, path in modules():
        for imported in imports_of(name, path):
            home = LIBRARIES.get(imported.partition(".")[0])
            assert home is None or room_of(name) == home, f"{name} imports {imported}"


def test_no_two_helpers_of_the_tests_have_one_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in sorted(HERE.glob("tests/support/*.py")):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(path.name)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_the_size_of_the_house() -> None:
    lines = sum(len(path.read_text().splitlines()) for _, path in modules())
    print(f"{lines:,} lines in {len(NAMES)} modules")
    assert lines <= 10065  # 8,500 is what it is to shrink to
