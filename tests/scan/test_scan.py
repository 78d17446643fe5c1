"""The scan: what is looked at, what is trusted, and what may not be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from trees import FLOOR, LINKERS, add_dll, make_tree

from cygwin.address_space import Range
from rebaser.options import Options
from rebaser.plan.placement import NoRoomError
from rebaser.progress import Progress
from rebaser.run import run
from rebaser.scan import snapshot as snapshots
from rebaser.scan.snapshot import Snapshot
from rebaser.scan.walk import Rules, Scan, scan
from rebaser.state.folder import State
from rebaser.tree import find_tree

LATER = 1 << 62  # a time, in nanoseconds, after all changes: nothing is racy


def look(root: Path, before: Snapshot | None = None, rules: Rules | None = None) -> Scan:
    """Scan a tree with what was remembered."""
    found = scan(str(root), rules or Rules(), before or snapshots.blank())
    assert found is not None
    return found


def remembered(found: Scan, now: int = LATER, root: Path | None = None) -> Snapshot:
    """Return what the next run knows, as if it had been written and read."""
    device = os.stat(root).st_dev if root else next(iter(found.snapshot.folders.values())).stat[3]
    return snapshots.load(snapshots.dump(snapshots.trusted(found.snapshot, now, device)))


def paths(found: Scan) -> set[str]:
    """Return the paths of the files that were found."""
    return {path for path, _ in found.snapshot.files()}


def base_of(found: Scan, path: str) -> int:
    """Return the base that the scan has for a file."""
    return next(seen.base for name, seen in found.snapshot.files() if name == path)


def read_again(found: Scan) -> set[str]:
    """Return the images that the scan had to read."""
    return set(found.images)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a tree of three DLLs in two folders."""
    root = make_tree(tmp_path / "tree", 2)
    add_dll(root / "lib/deep/y.so", 0x5_0000_0000)
    return root


def test_what_is_of_interest(tmp_path: Path) -> None:
    wanted = [
        "a.dll",
        "b.DLL",
        "lib/c.So",
        "lib/d.fas",
        "lib/e.oct",
        "lib/f.mex",
        "lib/g.eln",
        "lib/h.pyd",
        "lib/libz.dll.dll",
        "share/mingw32/i.dll",
        "usr/sys-root/j.dll",
        "lib/var/tmp/k.dll",
        ".hidden/l.dll",
        "[x] (y)\n/m.dll",
    ]
    unwanted = [
        "a.exe",
        "libx.so.1",
        "x.dll.a",
        "dll",
        "var/tmp/a.dll",
        "var/lib/rebaser/a.dll",
        ".rebaser/a.dll",
        "lib/.rebaser/staging-x/a.dll",
        "lib/inner/var/lib/rebaser/staging/a.dll",
        "usr/x86_64-w64-mingw32/sys-root/mingw/a.dll",
        "sys-root/mingw/a.dll",
        "mingw32/a.dll",
        "mingw64/bin/a.dll",
        "ucrt64/a.dll",
        "clang32/a.dll",
        "clang64/a.dll",
        "clangarm64/a.dll",
    ]
    for name in [*wanted, *unwanted]:
        add_dll(tmp_path / name)
    (tmp_path / "folder.dll").mkdir()
    os.symlink("a.dll", tmp_path / "link.dll")
    os.symlink(".", tmp_path / "loop")
    os.symlink("lib", tmp_path / "other")
    os.symlink("nowhere", tmp_path / "broken.dll")
    os.mkfifo(tmp_path / "pipe.dll")
    found = look(tmp_path)
    assert paths(found) == set(wanted)
    assert found.failed == []


def test_suffixes(tmp_path: Path) -> None:
    for name in ("a.dll", "b.Node", "lib/c.dll", "c.exe"):
        add_dll(tmp_path / name)
    assert paths(look(tmp_path, rules=Rules((".node",)))) == {"a.dll", "b.Node", "lib/c.dll"}


def test_an_unchanged_tree_is_not_read_again(root: Path) -> None:
    first = look(root)
    assert not first.unchanged
    assert len(read_again(first)) == 3
    second = look(root, remembered(first))
    assert second.unchanged
    assert read_again(second) == set()
    assert dict(second.snapshot.files()) == dict(first.snapshot.files())


def test_other_rules_start_anew(root: Path) -> None:
    add_dll(root / "bin/z.node")
    first = look(root)
    second = look(root, remembered(first), Rules((".node",)))
    assert "bin/z.node" in paths(second)
    # The files that both know need not be read again.
    assert read_again(second) == {"bin/z.node"}


def test_what_is_new_changed_or_gone(root: Path) -> None:
    before = remembered(look(root))
    add_dll(root / "bin/x000.dll", 0x5_5000_0000, data_size=0x9000)
    add_dll(root / "bin/new/n.dll")
    (root / "bin/x001.dll").unlink()
    shutil.rmtree(root / "lib")
    found = look(root, before)
    assert paths(found) == {"bin/x000.dll", "bin/new/n.dll"}
    assert base_of(found, "bin/x000.dll") == 0x5_5000_0000
    assert not found.unchanged
    assert found.failed == []


def set_times(path: Path, st: os.stat_result) -> None:
    """Set a file's or folder's times back, as `cp -Rp` and `tar -x` do."""
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns), follow_symlinks=False)


def test_a_folder_whose_time_was_set_back(root: Path) -> None:
    before = remembered(look(root))
    st = os.stat(root / "bin")
    add_dll(root / "bin/late.dll")
    set_times(root / "bin", st)
    assert os.stat(root / "bin").st_mtime_ns == st.st_mtime_ns
    assert "bin/late.dll" in paths(look(root, before))


def test_a_rebase_by_somebody_else(root: Path) -> None:
    """Only the ImageBase changes, size and modification time do not: Cygwin's rebase at work."""
    first = look(root)
    file = root / "bin/x000.dll"
    st = os.stat(file)
    offset = first.images["bin/x000.dll"].base_offset
    with open(file, "r+b") as dll:
        dll.seek(offset)
        dll.write(FLOOR.to_bytes(8, "little"))
    set_times(file, st)
    now = os.stat(file)
    assert (now.st_size, now.st_mtime_ns) == (st.st_size, st.st_mtime_ns)
    # Even where the change time tells nothing either, as on FAT: put the new one into the memory.
    before = remembered(first)
    folder = before.folders["bin"]
    rows = [
        (row[0], row[1], now.st_ctime_ns, *row[3:]) if name == "x000.dll" else row
        for name, row in zip(folder.names, folder.files)
    ]
    before.folders["bin"] = folder._replace(files=rows)
    found = look(root, before)
    assert base_of(found, "bin/x000.dll") == FLOOR
    assert read_again(found) == {"bin/x000.dll"}


def test_another_file_of_the_same_size_and_time(root: Path) -> None:
    before = remembered(look(root))
    file = root / "lib/deep/y.so"
    st = os.stat(file)
    other = root / "lib/deep/other"
    add_dll(other, 0x5_0000_0000, words=(0x1000,))  # the same base, another table
    os.replace(other, file)
    set_times(file, st)
    set_times(file.parent, os.stat(file.parent))
    assert (os.stat(file).st_size, os.stat(file).st_mtime_ns) == (st.st_size, st.st_mtime_ns)
    assert read_again(look(root, before)) == {"lib/deep/y.so"}


def test_overwritten_in_the_same_tick_of_the_clock(root: Path) -> None:
    """The rule for racy entries: what changed at or after the scan's own time is not trusted."""
    first = look(root)
    st = os.stat(root / "bin/x000.dll")
    before = remembered(first, now=st.st_ctime_ns)
    found = look(root, before)
    assert "bin/x000.dll" in read_again(found)
    # A tick later it is trusted.
    after = max(os.stat(p).st_ctime_ns for p in [root, *root.rglob("*")]) + 1
    assert look(root, remembered(first, now=after)).unchanged


def test_a_folder_that_became_a_link_to_elsewhere(root: Path, tmp_path: Path) -> None:
    before = remembered(look(root))
    os.rename(root / "lib", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", root / "lib")
    found = look(root, before)
    assert paths(found) == {"bin/x000.dll", "bin/x001.dll"}
    assert found.failed == []


def test_a_file_that_became_a_link_or_a_folder(root: Path) -> None:
    before = remembered(look(root))
    (root / "bin/x000.dll").unlink()
    os.symlink("x001.dll", root / "bin/x000.dll")
    (root / "lib/deep/y.so").unlink()
    (root / "lib/deep/y.so").mkdir()
    found = look(root, before)
    assert paths(found) == {"bin/x001.dll"}
    assert found.failed == []


def test_hard_links_come_and_go(root: Path) -> None:
    before = remembered(look(root))
    os.link(root / "bin/x000.dll", root / "bin/again.dll")
    found = look(root, before)
    assert {seen.links for path, seen in found.snapshot.files() if "y.so" not in path} == {1, 2}
    assert len(paths(found)) == 4


def test_ends_where_it_is_told(root: Path) -> None:
    asked = []

    def end(path: str, seen: snapshots.Seen) -> bool:
        asked.append((path, seen.base, seen.fault))
        if path == "bin/x001.dll":
            raise LookupError
        return False

    with pytest.raises(LookupError):
        scan(str(root), at_first_work=end)
    assert asked == [("bin/x000.dll", LINKERS, 0), ("bin/x001.dll", LINKERS, 0)]


def test_goes_on_without_asking_where_it_is_told(root: Path) -> None:
    asked = []

    def go_on(path: str, seen: snapshots.Seen) -> bool:
        asked.append(path)
        return True

    found = scan(str(root), at_first_work=go_on)
    assert asked == ["bin/x000.dll"]
    assert len(paths(found)) == 3


def test_folders_that_changed_are_looked_at_first(root: Path) -> None:
    before = remembered(look(root))
    # Its header only, so that its folder is as it was.
    with open(root / "bin/x000.dll", "r+b") as file:
        file.write(b"MZ")
    add_dll(root / "lib/new.dll")
    asked: list[str] = []

    def note(path: str, seen: snapshots.Seen) -> bool:
        asked.append(path)
        return False

    scan(str(root), Rules(), before, at_first_work=note)
    assert asked == ["lib/new.dll", "bin/x000.dll"]


def test_progress_counts_files(root: Path) -> None:
    seen: list[int] = []
    scan(str(root), Rules(), snapshots.blank(), progress=seen.append)
    assert sum(seen) == 3


def test_memory_of_the_state_folder(root: Path) -> None:
    """What is saved is what is loaded, and only the racy is left out."""
    state = State(str(root / "var/lib/rebaser"), str(root))
    state.make()
    now = state.time()
    assert now.folders_move
    found = look(root)
    state.save_snapshot(found.snapshot, now)
    loaded = state.load_snapshot(lambda text: pytest.fail(text))
    again = look(root, loaded)
    assert read_again(again) == set()
    assert again.snapshot.folders["bin"] == found.snapshot.folders["bin"]


def test_folders_of_a_file_system_without_folder_times(root: Path) -> None:
    state = State(str(root / "var/lib/rebaser"), str(root))
    state.make()
    now = state.time()
    found = look(root)
    state.save_snapshot(found.snapshot, now._replace(folders_move=False))
    loaded = state.load_snapshot(lambda text: pytest.fail(text))
    assert all(folder.stat[0] == snapshots.NEVER for folder in loaded.folders.values())
    assert read_again(look(root, loaded)) == set()  # the files are trusted all the same


def test_trees_below_the_root_are_known(root: Path) -> None:
    """Their state is not looked into, but whoever locks the tree must know of their locks."""
    for inner in ("venv/.rebaser", "opt/x/var/lib/rebaser"):
        add_dll(root / inner / "staging/a.dll")
    (root / "other/.rebaser").mkdir(parents=True)  # the staging folder of a run: no tree's state
    (root / ".rebaser/runs").mkdir(parents=True)
    first = look(root)
    assert first.inner == ()
    before = remembered(first)
    (root / "venv/.rebaser/rebase.lock").touch()
    (root / "opt/x/var/lib/rebaser/runs").mkdir()
    again = look(root, before)
    assert again.unchanged, "no folder that is looked at has changed"
    assert again.inner == ("opt/x", "venv")
    shutil.rmtree(root / "venv/.rebaser")
    assert look(root, before).inner == ("opt/x",)


def test_images_that_were_read_stay_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_dll(root / "lib/exe.dll", characteristics=0x0022)
    (root / "lib/text.dll").write_bytes(b"no image")
    opened = []
    real_open = os.open

    def counting(path: str, *words: int, **more: int) -> int:
        opened.append(path)
        return real_open(path, *words, **more)

    monkeypatch.setattr(os, "open", counting)
    before = set(os.listdir("/proc/self/fd"))
    kept: dict[str, int] = {}
    found = scan(str(root), open_files=kept)
    assert len(opened) == 5, "one open for each file, none for a folder"
    assert set(kept) == {"bin/x000.dll", "bin/x001.dll", "lib/deep/y.so"}
    for name, descriptor in kept.items():
        assert os.path.samestat(os.fstat(descriptor), os.stat(root / name))
    for descriptor in kept.values():
        os.close(descriptor)
    assert set(os.listdir("/proc/self/fd")) == before
    kept.clear()
    scan(str(root), snapshot=remembered(found), open_files=kept)
    assert kept == {}


def test_a_scan_that_ends_early_tells_what_it_left_open(root: Path) -> None:
    def end_at_the_third(path: str, seen: snapshots.Seen) -> bool:
        if path == "lib/deep/y.so":
            raise LookupError
        return False

    before = set(os.listdir("/proc/self/fd"))
    kept: dict[str, int] = {}
    with pytest.raises(LookupError):
        scan(str(root), at_first_work=end_at_the_third, open_files=kept)
    for descriptor in kept.values():
        os.close(descriptor)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_dll_that_goes_while_its_folder_is_looked_at(root: Path) -> None:
    """That folder is listed once more, and each DLL that is there is left open once."""
    going = root / "lib/deep/z.so"
    add_dll(going, 0x6_0000_0000)

    def remove_it(path: str, _: object) -> bool:
        if path == "lib/deep/y.so":
            going.unlink(missing_ok=True)
        return False

    before = set(os.listdir("/proc/self/fd"))
    kept: dict[str, int] = {}
    found = scan(str(root), at_first_work=remove_it, open_files=kept)
    assert paths(found) == kept.keys()
    assert "lib/deep/z.so" not in kept
    for descriptor in kept.values():
        os.close(descriptor)
    assert set(os.listdir("/proc/self/fd")) == before


class Failing(Progress):
    """Ends the run in the middle of its scan."""

    def advance(self, dlls: int, size: int = 0) -> None:
        raise LookupError


def test_a_run_that_fails_leaves_no_dll_open(root: Path) -> None:
    with pytest.raises(LookupError):
        run(find_tree(str(root)), progress=Failing())
    with pytest.raises(NoRoomError):
        run(find_tree(str(root)), Options(arena=Range(FLOOR, FLOOR + 0x1_0000)))
    open_now = [os.path.realpath(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")]
    assert [path for path in open_now if path.endswith((".dll", ".so"))] == []
