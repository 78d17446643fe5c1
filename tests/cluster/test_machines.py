"""What a lock is called on every machine, and which trees lie on a network's file system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import machine
import pytest
from stop_at import in_child
from trees import add_dlls, clean_environment, make_tree

from cygwin import image
from rebaser.errors import BusyError, RebaserError, UsageError
from rebaser.state import machines
from rebaser.state.folder import State
from rebaser.state.machines import name_of_lock, network_file_system

URL = "redis://server"


def state_of(root: Path) -> State:
    """Return the usual state folder of a tree."""
    return State(f"{root}/.rebaser", str(root))


def test_a_lock_has_one_name_wherever_the_tree_is_mounted(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    (tmp_path / "export").symlink_to(tmp_path)
    name = name_of_lock(URL, state_of(root))
    root.rename(tmp_path / "elsewhere")
    assert name_of_lock(URL, state_of(tmp_path / "elsewhere")) == name
    assert name_of_lock(URL, state_of(make_tree(tmp_path / "other"))) != name
    assert name_of_lock(URL, state_of(root.with_name("elsewhere")), "pip") != name


def test_a_name_in_the_url_counts_for_any_state_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    state = State(str(folder), str(make_tree(tmp_path / "tree")))
    with pytest.raises(UsageError, match="--coordinator URL#NAME"):
        name_of_lock(URL, state)
    assert name_of_lock(f"{URL}#farm", state) == "rebaser/farm/rebase"
    assert not folder.exists()


def test_twenty_that_name_a_lock_at_once_agree(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    code = (
        "import sys; from rebaser.state.machines import name_of_lock;"
        "from rebaser.state.folder import State;"
        "print(name_of_lock('redis://server', State(f'{sys.argv[1]}/.rebaser', sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(root)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(20)]
    assert len({one.communicate(timeout=60)[0] for one in running}) == 1


def test_a_name_that_a_killed_run_left_half_written_is_told(tmp_path: Path) -> None:
    state = state_of(make_tree(tmp_path / "tree"))
    path = Path(state.folder, "name")
    path.parent.mkdir(parents=True)
    path.write_text("012")
    with pytest.raises(
        BusyError,
        match=f"{path} does not hold the name of the lock; nothing was changed: remove it",
    ):
        name_of_lock(URL, state)


def test_a_planted_link_leads_nobody_to_write_elsewhere(tmp_path: Path) -> None:
    root, elsewhere = make_tree(tmp_path / "tree"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / ".rebaser").symlink_to(elsewhere)
    with pytest.raises(RebaserError, match="symbolic link"):
        name_of_lock(URL, state_of(root))
    assert list(elsewhere.iterdir()) == []
    (root / ".rebaser").unlink()
    (root / ".rebaser").mkdir()
    (root / ".rebaser/name").symlink_to(elsewhere / "planted")
    with pytest.raises(BusyError, match="cannot be made or read"):
        name_of_lock(URL, state_of(root))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", None),
        ("/srv", None),
        ("/srv/build", "nfs4"),
        ("/srv/build/sage/local", "nfs4"),
        ("/srv/building", None),
        ("/srv/build/sage/ssd", None),
        ("/my farm/x", "cifs"),
        ("/cygdrive/z/x", "smbfs"),
    ],
)
def test_a_network_file_system_is_known_by_the_mount_that_a_folder_is_on(
    path: str, kind: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "rootfs / ext4 rw 0 0\n"
        "server:/build /srv/build nfs4 rw,vers=4.2 0 0\n"
        "/dev/sda1 /srv/build/sage/ssd xfs rw 0 0\n"
        "//server/share /my\\040farm cifs rw 0 0\n"
        "Z: /cygdrive/z smbfs binary,user 0 0\n"
        "nonsense\n"
    )
    monkeypatch.setattr(machines, "MOUNTS", str(mounts))
    assert network_file_system(path) == kind


def test_where_mounts_cannot_be_read_no_file_system_is_a_network_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machines, "MOUNTS", "/does/not/exist")
    assert network_file_system("/") is None


def test_a_tree_on_a_network_file_system_is_told_of_once_by_who_has_work(tmp_path: Path) -> None:
    root, mounts = make_tree(tmp_path / "tree"), tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\n")
    code = (
        "import sys; from rebaser.state import machines; machines.MOUNTS = sys.argv.pop(1);"
        "from rebaser.cli import main; main()"
    )
    command = [sys.executable, "-c", code, str(mounts), "run", "--progress", "never", str(root)]

    def said() -> str:
        done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    warning = said()
    assert warning.count("is on a network's file system (nfs4)") == 1
    assert "--coordinator URL" in warning
    assert said() == ""
    add_dlls(root, 1, first=10)
    mounts.write_text("/dev/sda1 / ext4 rw 0 0\n")
    assert said() == ""


def test_what_another_machine_saw_is_read_again_and_what_this_one_saw_is_not(
    tmp_path: Path,
) -> None:
    """Its inodes and times may be others here, and its clock proves nothing."""
    root = make_tree(tmp_path / "tree")

    def read_by(name: str, *words: str) -> int:
        log = tmp_path / "read"
        log.write_text("")

        def prepare() -> None:
            machine.become(name)
            real = image.read_image

            def read_image(*words: Any) -> image.Image:
                with open(log, "a") as file:
                    file.write("x")
                return real(*words)

            image.read_image = read_image

        assert in_child(["run", str(root), *words], prepare, tmp_path / "log") == 0
        return len(log.read_text())

    read_by("one")
    assert read_by("one") == 0
    unused = ["--coordinator", "redis://127.0.0.1:1"]
    assert read_by("two", *unused) == 6
    assert read_by("two", *unused) == 6, "a look saves nothing where others may be saving"
    add_dlls(root, 1, first=10)
    read_by("two")
    assert read_by("two") == 0
    assert read_by("one") == 7
