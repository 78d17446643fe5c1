"""What whoever hosts the project runs, and the list of the tests that cannot run on Cygwin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from not_on_cygwin import ON_CYGWIN, UNDER_WINE, names_a_test
from trees import HERE

WORKFLOWS = sorted((HERE / ".github/workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflow_parses_and_runs_what_is_there(workflow: Path) -> None:
    yaml = pytest.importorskip("yaml", reason="pyyaml is in the environment that bin/test makes")
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    assert set(jobs) == {"ubuntu", "cygwin", "msys2"}
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    scripts = [word for line in commands for word in re.findall(r"(?:\.ci|bin)/[\w-]+", line)]
    assert set(scripts) == {".ci/run", "bin/test"}
    for script in scripts:
        assert (HERE / script).stat().st_mode & 0o111, script


@pytest.mark.parametrize("pattern", [*ON_CYGWIN, *UNDER_WINE])
def test_each_line_of_the_list_for_cygwin_names_a_test(pattern: str) -> None:
    assert names_a_test(pattern, HERE / "tests")


def test_the_part_for_ci_names_files_that_are_there() -> None:
    text = (HERE / "bin/test_cygwin.py").read_text(encoding="utf-8")
    names = re.findall(r'^    "(tests/\S+)": "', text, re.MULTILINE)
    assert len(names) > 5
    for name in names:
        assert (HERE / name).is_file(), name
