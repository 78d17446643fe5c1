"""What a lock is called on every machine, and which trees lie on a network's file system."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from trees import make_tree

from rebaser.errors import BusyError, UsageError
from rebaser.state import machines
from rebaser.state.machines import name_of_lock, network_file_system
from rebaser.tree import find_tree

URL = "redis://server"


def test_a_lock_has_one_name_wherever_the_tree_is_mounted(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    (tmp_path / "export").symlink_to(tmp_path)
    name = name_of_lock(URL, find_tree(str(root)))
    root.rename(tmp_path / "elsewhere")
    assert name_of_lock(URL, find_tree(str(tmp_path / "elsewhere"))) == name
    assert name_of_lock(URL, find_tree(str(make_tree(tmp_path / "other")))) != name
    assert name_of_lock(URL, find_tree(str(tmp_path / "other")), "pip") != name


def test_a_name_in_the_url_counts_for_any_state_folder(tmp_path: Path) -> None:
    root, state = make_tree(tmp_path / "tree"), tmp_path / "state"
    tree = find_tree(str(root), state_dir=str(state))
    with pytest.raises(UsageError, match="--coordinator URL#NAME"):
        name_of_lock(URL, tree)
    assert name_of_lock(f"{URL}#farm", tree) == "rebaser/farm/rebase"
    assert not state.exists()


def test_twenty_that_name_a_lock_at_once_agree(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree")
    code = (
        "import sys; from rebaser.state.machines import name_of_lock;"
        "from rebaser.tree import find_tree;"
        "print(name_of_lock('redis://server', find_tree(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(root)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(20)]
    assert len({one.communicate(timeout=60)[0] for one in running}) == 1


def test_a_name_that_a_killed_run_left_half_written_is_told(tmp_path: Path) -> None:
    tree = find_tree(str(make_tree(tmp_path / "tree")))
    path = Path(tree.state_dir, "name")
    path.parent.mkdir(parents=True)
    path.write_text("012")
    with pytest.raises(BusyError, match=f"{path} does not hold the name of the lock: remove it"):
        name_of_lock(URL, tree)


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
