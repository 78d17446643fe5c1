"""`rebaser flags` says and does what Cygwin's peflags says and does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cygwin_root import CygwinRoot
from pe import Shape, build, checksum, checksum_field, opened, read_data

from cygwin.address_space import ARM64, I386
from cygwin.fault import ImageError
from cygwin.flags import FLAGS, change_flags, describe, image_flags

COFF = 0x80 + 22
PE = 0x80 + 24 + 70


def flags(*words: str | Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "rebaser", "flags", *map(os.fspath, words)],
        input=stdin,
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).resolve().parents[2],
    )


@pytest.fixture
def dll(tmp_path: Path) -> Path:
    path = tmp_path / "x.dll"
    path.write_bytes(build(dll_characteristics=0x0160))
    return path


# What peflags 4.6.3 prints for a file with these fields, after these options.
@pytest.mark.parametrize(
    ("options", "output"),
    [
        ((), "coff(0x2022) pe(0x0160) "),
        (("-d",), "coff(0x2022) pe(0x0160[+dynamicbase]) "),
        (("-l", "--no-seh", "-e"), "coff(0x2022[+bigaddr]) pe(0x0160[+high-entropy-va,-no-seh]) "),
        (
            ("-v",),
            "coff(0x2022[+executable_image,+bigaddr,+dll]) "
            "pe(0x0160[+high-entropy-va,+dynamicbase,+nxcompat]) ",
        ),
        (("-d0", "-d"), "coff(0x2022) pe(0x0160[+dynamicbase]==>0x0120[-dynamicbase]) "),
        (("--dynamicbase=1", "-n"), "coff(0x2022) pe(0x0160[+nxcompat]) "),
        (("-d", "-l0"), "coff(0x2022==>0x2002) pe(0x0160[+dynamicbase]) "),
        (("-d0",), None),
    ],
)
def test_output(options: tuple[str, ...], output: str | None, dll: Path) -> None:
    result = flags(*options, dll)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode() == ("" if output is None else f"{dll}: {output}\n")


@pytest.mark.parametrize("flag", [flag for flag in FLAGS if flag.letter], ids=lambda f: f.name)
def test_only_the_flag_and_the_checksum_are_written(flag: object, dll: Path) -> None:
    before = dll.read_bytes()
    one = next(f for f in FLAGS if f is flag)
    for option, value in ((f"-{one.letter}1", True), (f"--{one.name}=no", False)):
        stat = dll.stat()
        assert flags(option, dll).returncode == 0
        after = bytearray(dll.read_bytes())
        assert image_flags(read_data(bytes(after), dll)) & one.bit == value * one.bit
        at, bit = (COFF, one.bit) if one.bit < 0x10000 else (PE, one.bit >> 16)
        field = int.from_bytes(after[at : at + 2], "little") & ~bit
        assert field == int.from_bytes(before[at : at + 2], "little") & ~bit
        right = int.from_bytes(after[checksum_field(after)], "little") == checksum(after)
        assert right or after == before, "it was as wanted, and nothing was written"
        after[at : at + 2] = before[at : at + 2]
        after[checksum_field(after)] = before[checksum_field(before)]
        assert after == before
        assert (dll.stat().st_ino, dll.stat().st_mode) == (stat.st_ino, stat.st_mode)


@pytest.mark.parametrize("before", [0, 1, 0xFFFF_FFFF])
@pytest.mark.parametrize("option", ["-d0", "-l0", "-d0 -l0 -t1"])
def test_the_checksum_is_right_whatever_it_was(before: int, option: str, tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    data = bytearray(build(overlay=b"odd", e_lfanew=0x401))
    data[checksum_field(data)] = before.to_bytes(4, "little")
    path.write_bytes(data)
    assert flags("-v", path).returncode == 0
    assert flags("-d1", path).returncode == 0
    assert path.read_bytes() == data, "what changes no flag writes nothing"
    assert flags(*option.split(), path).returncode == 0
    data = bytearray(path.read_bytes())
    assert int.from_bytes(data[checksum_field(data)], "little") == checksum(data)


def test_flags_and_checksum_go_in_one_write(dll: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill finds the old file or the new one."""
    before = dll.read_bytes()
    image = read_data(before, dll)

    def killed(*_: object) -> int:
        raise KeyboardInterrupt

    with opened(dll) as descriptor:
        monkeypatch.setattr(os, "fsync", killed)
        monkeypatch.setattr(os, "pwrite", lambda *_: killed())
        with pytest.raises(KeyboardInterrupt):
            change_flags(descriptor, image, 0x0100_2002)
        assert dll.read_bytes() == before
        monkeypatch.undo()
        write, writes = os.pwrite, []
        monkeypatch.setattr(os, "pwrite", lambda *words: writes.append(words[1]) or write(*words))
        change_flags(descriptor, image, 0x0100_2002)
    assert [len(data) for data in writes] == [74]


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_spellings(value: str, dll: Path) -> None:
    for spelling in (f"-t{value}", f"--tsaware={value}"):
        result = flags(spelling, "--tsaware", dll)
        assert result.stdout.endswith(b"[+tsaware]) \n"), result


def test_lists_come_before_arguments(tmp_path: Path, dll: Path) -> None:
    names = [tmp_path / name for name in ("a b.dll", "c\n.dll")]
    for name in names:
        shutil.copyfile(dll, name)
    listed = f"{names[0]}\r\n\n{dll}\n".encode()
    (tmp_path / "list").write_bytes(listed)
    for result in (
        flags("-T", tmp_path / "list", names[1]),
        flags("-T", "-", names[1], stdin=listed),
    ):
        lines = result.stdout.decode().splitlines()
        shown = [str(names[0]), str(dll), str(names[1]).replace("\n", "\\x0a")]
        assert lines == [f"{name}: coff(0x2022) pe(0x0160) " for name in shown]


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, dll: Path) -> None:
    (tmp_path / "text.dll").write_text("text", encoding="ascii")
    (tmp_path / "empty.dll").touch()
    os.mkfifo(tmp_path / "fifo.dll")
    bad = [tmp_path / name for name in ("text.dll", "empty.dll", "none.dll", "fifo.dll", ".")]
    result = flags("-d0", *bad, dll)
    assert result.returncode == 1
    lines = result.stderr.decode().splitlines()
    assert len(lines) == len(bad)
    for path, line in zip(bad, lines):
        assert line.startswith(f"rebaser: {path}: ")
        assert line.endswith("; left as it was")
    assert image_flags(read_data(dll.read_bytes(), dll)) == 0x0120_2022
    assert (tmp_path / "text.dll").read_text(encoding="ascii") == "text"


def test_usage(tmp_path: Path, dll: Path) -> None:
    for words in (
        (),
        ("-d0",),
        ("--dynamicbase=maybe", dll),
        ("-dmaybe", dll),
        ("--frobnicate", dll),
    ):
        result = flags(*words)
        assert result.returncode == 2, words
        assert result.stderr
    result = flags("-T", tmp_path / "none", dll)
    assert result.returncode == 2
    assert b"none" in result.stderr
    assert dll.read_bytes() == build()


def test_options_between_the_files(tmp_path: Path, dll: Path) -> None:
    other = tmp_path / "-y.dll"
    shutil.copy(dll, other)
    done = flags("-d", dll, "-v", tmp_path / "none.dll", "-n")
    assert done.returncode == 1
    assert str(dll).encode() in done.stdout
    assert b"none.dll: No such file" in done.stderr
    assert flags("-d", "--", dll, other).stdout.count(b"\n") == 2


def test_a_value_that_is_none(dll: Path) -> None:
    for option in ("-d2", "--dynamicbase=2"):
        done = flags(option, dll)
        assert done.returncode == 2
        assert b"a BOOL is one of 1, true, yes, t, y, 0, false, no, f, n" in done.stderr


@pytest.mark.parametrize("option", ["-v", "-d0"])
def test_what_is_no_file(tmp_path: Path, option: str) -> None:
    fifo = tmp_path / "fifo.dll"
    os.mkfifo(fifo)
    done = flags(option, fifo)
    assert done.returncode == 1
    assert b"fifo.dll: not a regular file" in done.stderr


def test_arm64_keeps_dynamicbase(tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    data = build(machine=ARM64, dll_characteristics=0x0140)
    image = read_data(data, path)
    with opened(path) as descriptor:
        with pytest.raises(ImageError, match="ARM64"):
            change_flags(descriptor, image, image.characteristics)
        assert path.read_bytes() == data
        change_flags(descriptor, image, image.characteristics | 0x0040 << 16)
    assert read_data(path.read_bytes(), path).dll_characteristics == 0x0040


def test_a_broken_signature_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.dll"
    path.write_bytes(build(directories={4: (len(build()), 8)}, overlay=bytes(8)))
    assert b"signature" not in flags("-d", path).stderr
    assert b"its signature is no longer valid" in flags("-d0", path).stderr


def test_i386_shows_its_bits(tmp_path: Path) -> None:
    shape = Shape(machine=I386, base=0x6D00_0000, characteristics=0x2103)
    found = image_flags(read_data(build(shape), tmp_path / "x.dll"))
    assert describe(found, found, (), verbose=True).startswith(
        "coff(0x2103[+relocs_stripped,+executable_image,+32bit_machine,+dll])"
    )


@pytest.mark.cygwin
def test_as_peflags(pristine_root: CygwinRoot, tmp_path: Path) -> None:
    names = ("cygz.dll", "libpython2.7.dll", "perl.exe", "cygcrypto-3.dll")
    for options in (
        (),
        ("-v",),
        ("-d", "-e", "-c", "-f", "-n", "-i", "-s", "-b", "-W", "-t", "-w", "-l", "-S"),
        ("-d1", "-d", "-l0", "-l"),
        ("-v", "-d1", "--tsaware=no", "--no-bind=true"),
    ):
        for name in names:
            file = tmp_path / name
            shutil.copyfile(pristine_root.path / "bin" / name, file)
            cygwin_name = pristine_root.name(file)
            outcome = pristine_root.run("peflags", *options, cygwin_name)
            assert outcome.status == 0
            theirs, shown = bytearray(file.read_bytes()), outcome.stdout
            shutil.copyfile(pristine_root.path / "bin" / name, file)
            before = file.read_bytes()
            done = flags(*options, file).stdout.decode().strip()
            assert done == shown.replace(cygwin_name, str(file)), options
            # peflags 4.6.3 leaves the CheckSum as it was.
            if theirs != before:
                theirs[checksum_field(theirs)] = checksum(theirs).to_bytes(4, "little")
            assert file.read_bytes() == theirs, options
