"""Others on the same machine: planted links, folders that are not theirs to make, rights, names."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from stop_at import Call, in_child, intercept
from trees import (
    Rebaser,
    add_dll,
    add_dlls,
    contents,
    damaged,
    listing,
    make_tree,
    overlaps,
)
from users import NOBODY, as_nobody, give

from rebaser.tree import find_tree

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users"),
]


def plant(link: Path, target: Path, user: int = NOBODY) -> None:
    """Make a symbolic link as another user."""
    link.parent.mkdir(parents=True, exist_ok=True)
    os.symlink(target, link)
    os.chown(link, user, user, follow_symlinks=False)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a folder of somebody else's with a file that nobody must touch."""
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "precious").write_text("precious")
    return folder


def test_a_planted_lock_link_makes_no_file(rebaser: Rebaser, tree: Path, victim: Path) -> None:
    plant(tree / "var/lock/rebase.lock", victim / "new")
    before = contents(tree)
    result = rebaser("run", tree)
    assert result.status == 1
    assert "symbolic link" in result.err
    assert str(tree / "var/lock/rebase.lock") in result.err
    assert not (victim / "new").exists()
    assert contents(tree) == before


def test_a_lock_link_to_a_file_changes_nothing_in_it(
    rebaser: Rebaser, tree: Path, victim: Path
) -> None:
    plant(tree / "var/lock/rebase.lock", victim / "precious")
    before = listing(victim)
    rebaser("run", tree)
    assert listing(victim) == before


@pytest.mark.parametrize("user", [0, NOBODY])
@pytest.mark.parametrize(
    "link",
    [
        *("var", "var/lock", "var/lib", "var/lib/rebaser"),
        *("var/lib/rebaser/staging", "var/lib/rebaser/runs"),
    ],
)
def test_links_on_the_way_to_the_state_are_not_followed(
    rebaser: Rebaser, tree: Path, victim: Path, link: str, user: int
) -> None:
    """Whoever made them: a state that is to lie elsewhere is named with --state-dir."""
    if link == "var":
        (tree / "var").rmdir()
    plant(tree / link, victim, user)
    for folder in ("lib/rebaser/staging", "rebaser/staging", "staging", "runs"):
        (victim / folder).mkdir(parents=True)
        for name in ("made-by-rebaser", "0000001.dll", "new", "1.json"):
            (victim / folder / name).write_text("precious")
    before = listing(victim)
    result = rebaser("run", tree)
    assert listing(victim) == before
    assert result.status == 1, result.words
    assert "symbolic link" in result.err
    locked = rebaser("lock", "--root", tree, "--", "true")
    assert locked.status == (66 if link in ("var", "var/lock") else 0), locked.words
    for command in ("status", "check", "map", "info"):
        rebaser(command, tree)
    assert listing(victim) == before
    assert len(overlaps(tree)) == 15
    assert os.path.islink(tree / link)


@pytest.mark.parametrize("name", ["seen", "state.lock", "runs/1.json", "staging/elsewhere-0"])
def test_a_pipe_among_our_files_is_not_waited_for(rebaser: Rebaser, tree: Path, name: str) -> None:
    state = tree / "var/lib/rebaser"
    (state / "runs").mkdir(parents=True)
    if name.startswith("staging"):
        (state / "staging").mkdir()
        (state / "staging/made-by-rebaser").touch()
    os.mkfifo(state / name)
    result = rebaser("run", tree, timeout=20)
    assert result.status == 0, result.words
    assert overlaps(tree) == set()
    assert rebaser("status", tree, timeout=20).status == 0


@pytest.mark.parametrize(
    "note",
    [
        "{victim}",
        "{victim}/.rebaser/staging-1",
        "{tree}/.rebaser/staging-link",
        "{tree}/.rebaser/staging-link/",
        "{tree}/.rebaser/staging-link/deeper",
        "{tree}/.rebaser/staging-1/../../../victim",
        "{tree}/.rebaser/staging-1/..",
        "{tree}/bin",
        ".rebaser/staging-link",
        ".rebaser/staging-link/deeper",
        ".rebaser/../.rebaser/staging-1",
        "link/.rebaser/staging-1",
        "../victim/.rebaser/staging-1",
        ".rebaser/staging-mine",
        "bin",
        "/",
        "",
    ],
)
def test_a_planted_note_removes_nothing(
    rebaser: Rebaser, tree: Path, victim: Path, note: str
) -> None:
    (victim / ".rebaser/staging-1").mkdir(parents=True)
    (victim / "deeper").mkdir()
    (tree / ".rebaser/staging-mine").mkdir(parents=True)
    (tree / ".rebaser/staging-mine/0000001.dll").write_text("precious")
    for folder in (".rebaser/staging-1", "deeper"):
        for name in ("made-by-rebaser", "0000001.dll"):
            (victim / folder / name).write_text("precious")
    os.symlink(victim, tree / "link")
    os.symlink(victim, tree / ".rebaser/staging-link")
    staging = tree / "var/lib/rebaser/staging"
    staging.mkdir(parents=True)
    (staging / "made-by-rebaser").touch()
    (staging / "elsewhere-0").write_text(note.format(victim=victim, tree=tree))
    give(tree, NOBODY)
    before = listing(victim)
    files = contents(tree)
    assert rebaser("run", tree).status == 0
    assert listing(victim) == before
    assert damaged(files, tree) == []
    assert (tree / ".rebaser/staging-mine/0000001.dll").exists()


def test_a_planted_staging_folder_in_the_tree(
    rebaser: Rebaser, tree: Path, victim: Path, tmp_path: Path
) -> None:
    plant(tree / ".rebaser", victim)
    before = listing(victim)
    outside = ["--state-dir", str(tmp_path / "state"), "--lock-file", str(tmp_path / "lock")]
    result = rebaser("run", tree, *outside)
    assert result.status == 1
    assert "symbolic link" in result.err
    assert listing(victim) == before


def test_a_folder_above_that_others_can_write(tmp_path: Path) -> None:
    """Another user makes /tmp look like a tree: ours below it is still our own tree."""
    shared = tmp_path / "shared"
    root = make_tree(shared / "mine", 1)
    shared.chmod(0o1777)
    (shared / ".rebaser/runs").mkdir(parents=True)
    assert find_tree(str(root)).root == str(shared)  # it is root's own
    for path in (shared / ".rebaser", shared / ".rebaser/runs"):
        os.chown(path, NOBODY, NOBODY)
    assert find_tree(str(root)).root == str(root)
    os.chown(root, NOBODY, NOBODY)
    assert find_tree(str(root)).root == str(shared)  # one user's both
    (shared / ".rebaser").rename(tmp_path / "elsewhere")
    (shared / ".rebaser").symlink_to(tmp_path / "elsewhere")
    assert find_tree(str(root)).root == str(root)


def test_modes_of_what_is_made(rebaser: Rebaser, tree: Path) -> None:
    (tree / "bin/x000.dll").chmod(0o4755)
    result = rebaser("run", tree, before=["sh", "-c", 'umask 077 && exec "$@"', "sh"])
    assert result.status == 0
    for path in [tree / "var/lock/rebase.lock", *(tree / "var/lib/rebaser").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    other = tree.parent / "other"
    make_tree(other, 2)
    result = rebaser("run", other, before=["sh", "-c", 'umask 022 && exec "$@"', "sh"])
    for path in [other / "var/lock/rebase.lock", *(other / "var/lib/rebaser").rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path


def test_copies_are_private_until_they_have_their_owner(tree: Path, tmp_path: Path) -> None:
    """A DLL that only its owner may read is not readable by others while it is copied."""
    for path in tree.glob("bin/*"):
        path.chmod(0o600)
    modes = tmp_path / "modes"

    def note(name: str, real: Call, words: Sequence[Any]) -> None:
        if words[1] & os.O_CREAT and str(words[0]).endswith(".dll"):
            with open(modes, "a") as file:
                file.write(f"{words[1] & os.O_EXCL:x} {words[2]:o}\n")

    log = tmp_path / "log"
    assert in_child(["run", str(tree)], lambda: intercept(["open"], note), log) == 0
    lines = modes.read_text().splitlines()
    assert len(lines) == 6
    assert set(lines) == {f"{os.O_EXCL:x} 600"}


def test_a_tree_of_another_user(rebaser: Rebaser, tree: Path) -> None:
    """Root rebases a user's tree: the files stay the user's."""
    give(tree, NOBODY)
    assert rebaser("run", tree).status == 0
    for path in tree.glob("bin/*"):
        assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    assert overlaps(tree) == set()


def test_the_owner_after_root(rebaser: Rebaser, open_tree: Path) -> None:
    """What root has left does not keep the owner from running it."""
    tree = open_tree
    give(tree, NOBODY)
    assert rebaser("run", tree).status == 0
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 0, result.words
    assert "nothing to do" in result.out


def test_somebody_without_rights(rebaser: Rebaser, open_tree: Path) -> None:
    tree = open_tree
    rebaser.report("run", tree)
    before = listing(tree)
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 0, result.words
    assert "nothing to do" in result.out
    assert listing(tree) == before
    add_dlls(tree, 2, first=20)
    kept = contents(tree)
    result = as_nobody(rebaser, "run", tree)
    assert result.status == 1
    assert "othing was changed" in result.err
    assert "Permission denied" in result.err
    assert contents(tree) == kept


def test_no_shell_sees_a_name(rebaser: Rebaser, tmp_path: Path) -> None:
    """Names with $(…), `…` and ; stay names, in every command's every use."""
    evil = "x$(touch pwned1)`touch pwned2`;touch pwned3;.dll"
    root = make_tree(tmp_path / "a;touch pwned4;b", 1)
    add_dll(root / "bin" / evil)
    work = tmp_path / "work"
    work.mkdir()
    for words in (["run"], ["run", "--dry-run"], ["check"]):
        result = rebaser(*words, root, cwd=work)
        assert result.status == 0, result.words
    assert list(work.iterdir()) == []
    assert not list(tmp_path.rglob("pwned?"))


def test_staging_names_cannot_be_foreseen(tree: Path, tmp_path: Path) -> None:
    """On another file system the staging folder lies in the tree: nobody knows its name before."""
    from rebaser.apply.stage import StagingFolders

    places = {"state_dir": str(tmp_path / "state"), "lock_file": str(tmp_path / "lock")}
    made = find_tree(str(tree), **places)
    made.state.make()
    names = set()
    for _ in range(3):
        folder = StagingFolders(made).beside("bin")
        names.add(folder.path)
        assert stat.S_IMODE(os.stat(folder.path).st_mode) == 0o700
        assert os.path.dirname(folder.path) == str(tree / ".rebaser")
    assert len(names) == 3
    made.state.clear_staging()
    assert not any(os.path.exists(name) for name in names)
    assert not (tree / ".rebaser").exists()
    shutil.rmtree(tmp_path / "state")


def test_environment_that_points_elsewhere(rebaser: Rebaser, tree: Path, victim: Path) -> None:
    """TMPDIR plays no part: nothing is staged where others can write."""
    before = listing(victim)
    assert rebaser("run", tree, env={"TMPDIR": str(victim)}).status == 0
    assert listing(victim) == before


def test_set_user_id_is_not_lent(rebaser: Rebaser, tree: Path) -> None:
    """A set-user-ID file keeps that bit only with its own owner."""
    file = tree / "bin/x000.dll"
    os.chown(file, NOBODY, NOBODY)
    file.chmod(0o4755)
    rebaser.report("run", tree)
    st = file.stat()
    assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (NOBODY, 0o4755)


@pytest.mark.parametrize(
    ("owner", "mode"),
    [("a stranger", 0o644), ("ROOT's owner", 0o644), ("ROOT's owner", 0o664), ("others", 0o646)],
)
def test_options_that_a_stranger_wrote(rebaser: Rebaser, tree: Path, owner: str, mode: int) -> None:
    """He may write below `var`, and make the state; ROOT is another's, who alone is followed."""
    state = tree / "var/lib/rebaser"
    state.mkdir(parents=True)
    (state / "options").write_text("--exclude *\n")
    (state / "options").chmod(mode)
    give(tree, NOBODY)
    if owner == "a stranger":
        os.chown(tree, 0, 0)
    result = rebaser("run", tree)
    if owner == "a stranger" or mode != 0o644:
        assert result.status == 2
        assert f"{state}/options: others may write these options" in result.err
    else:
        assert (result.status, len(overlaps(tree))) == (0, 15)
