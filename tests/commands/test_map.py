"""rebaser map and rebaser status: what a person sees, as text, JSON and SVG."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from placed import SLOT, put
from trees import FLOOR, Rebaser

from cygwin.address_space import ARM64, I386
from rebaser.cli import status_of

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAGE_LOCAL", "REBASER_LOCK_FILE", "REBASER_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with two DLLs that overlap, two that do not, one of i386 and one of ARM64."""
    root = tmp_path / "tree"
    put(root / "lib/a.dll", FLOOR, 3)
    put(root / "lib/b.dll", FLOOR + 2 * SLOT, 2)
    put(root / "lib/c.dll", FLOOR + 4 * SLOT)
    put(root / "linker.dll", 0x4_1234_0000, 2)
    put(root / "old/i.dll", 0x6B00_0000, machine=I386)
    put(root / "arm.dll", 0x1_8000_0000, machine=ARM64)
    return root


def run(*words: object) -> int:
    return status_of([str(word) for word in words])


def output(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    assert run(*words) == status
    return capsys.readouterr().out


class TestText:
    def test_a_tree(self, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = output(capsys, "map", tree)
        lines = text.splitlines()
        assert lines[0] == str(tree)
        assert "x86_64: 4 DLLs, 2 OVERLAPPING" in lines
        assert "i386: 1 DLL, no overlap" in lines
        assert "arm64" not in text
        row = next(line for line in lines if line.startswith("0x200000000"))
        assert row.split(" ", 1)[1].startswith(" ██X▓█")
        assert row.endswith("<X")
        assert max(len(line) for line in lines if str(tree) not in line) <= 80
        names = "\n".join(lines[lines.index(next(x for x in lines if "Overlaps" in x)) :])
        assert "lib/a.dll" in names
        assert "lib/b.dll" in names
        assert "lib/c.dll" not in names
        assert "X OVERLAP" in text

    def test_no_colours_without_a_terminal(
        self, tree: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "\x1b" not in output(capsys, "map", tree)

    def test_an_empty_tree(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = output(capsys, "map", tmp_path)
        assert "x86_64: no DLLs" in text
        assert "largest gap 8.0 GiB at 0x200010000" in text

    def test_it_writes_nothing(self, tree: Path) -> None:
        before = sorted(tree.rglob("*"))
        assert run("map", tree) == 0
        assert run("status", tree) == 0
        assert sorted(tree.rglob("*")) == before

    def test_a_wide_terminal_gets_more(
        self, tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "200")
        row = next(
            line
            for line in output(capsys, "map", tree).splitlines()
            if line.startswith("0x200000000")
        )
        assert len(row) > 130
        monkeypatch.setenv("COLUMNS", "40")
        assert max(map(len, output(capsys, "map", tree).splitlines()[-9:])) < 120

    def test_what_is_reserved_is_shown(
        self, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(tmp_path / "elsewhere/x.dll", FLOOR + 8 * SLOT, 4)
        write_database(tmp_path / "db", {"/usr/bin/cygother.dll": (FLOOR + 16 * SLOT, 2)})
        text = output(
            capsys, "map", tree, "--avoid", tmp_path / "elsewhere", "--database", tmp_path / "db"
        )
        row = next(line for line in text.splitlines() if line.startswith("0x200000000"))
        assert "OOOO····OO" in row
        assert "O kept for others" in text
        assert "384 KiB kept for others" in text

    def test_a_dll_on_somebody_elses_range_is_an_overlap(
        self, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        put(tmp_path / "elsewhere/x.dll", 0x4_1234_0000)
        text = output(capsys, "map", tree, "--avoid", tmp_path / "elsewhere")
        assert "x86_64: 4 DLLs, 3 OVERLAPPING" in text
        assert "elsewhere/x.dll" in text

    def test_ascii_where_the_terminal_knows_no_more(self, tree: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "rebaser", "map", str(tree)],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=True,
            timeout=60,
        )
        assert b"##X=#" in done.stdout
        assert b"X OVERLAP" in done.stdout

    def test_a_hostile_name(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        put(tmp_path / "evil\x1b[31m\n[red].dll", FLOOR)
        put(tmp_path / os.fsdecode(b"\xff.dll"), FLOOR)
        text = output(capsys, "map", tmp_path)
        assert "evil\\x1b[31m\\x0a[red].dll" in text
        assert "\\xff.dll" in text

    def test_a_part_of_a_tree_is_drawn_with_the_whole(
        self, tree: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tree / "var/lib/rebaser/runs").mkdir(parents=True)
        assert output(capsys, "map", tree / "lib").startswith(f"{tree}\n")

    def test_no_root_is_usage(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run("map") == 2
        assert "SAGE_LOCAL" in capsys.readouterr().err

    def test_many_groups_are_counted(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for number in range(25):
            for name in "xy":
                put(tmp_path / f"{name}{number:02}.dll", FLOOR + 4 * number * SLOT)
        assert "and 15 more places" in output(capsys, "map", tmp_path)
        assert "x24.dll" in output(capsys, "map", tmp_path, "--verbose")


def test_json(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(output(capsys, "map", tree, "--json"))
    assert found["root"] == str(tree)
    machine = found["machines"]["x86_64"]
    (group,) = machine["overlaps"]
    assert group["paths"] == ["lib/a.dll", "lib/b.dll"]
    assert (group["low"], group["high"], group["cure"]) == ("0x200010000", "0x200050000", "run")
    assert machine["range"] == {"low": "0x200010000", "high": "0x400000000"}
    assert machine["used"] == 5 * SLOT
    assert machine["largest_gap"] == {"low": "0x200060000", "high": "0x400000000"}
    assert {one["path"] for one in machine["images"]} == {
        "lib/a.dll",
        "lib/b.dll",
        "lib/c.dll",
        "linker.dll",
    }


class TestSvg:
    def picture(self, root: Path, file: Path) -> ET.Element:
        assert run("map", root, "--svg", file) == 0
        return ET.parse(file).getroot()

    def rects(self, picture: ET.Element, style: str) -> list[str]:
        """Return the titles of all rectangles of a class, without the sample in the legend."""
        return [
            str(rect.findtext(f"{SVG}title"))
            for rect in picture.iter(f"{SVG}rect")
            if rect.get("class") == style
        ][1:]

    def test_every_dll_has_a_title(self, tree: Path, tmp_path: Path) -> None:
        picture = self.picture(tree, tmp_path / "map.svg")
        titles = [*self.rects(picture, "image"), *self.rects(picture, "next_image")]
        assert len(titles) == 5
        title = next(title for title in titles if title.startswith("lib/a.dll"))
        assert title == "lib/a.dll\n0x200010000-0x200040000 (192 KiB)"
        (overlap,) = self.rects(picture, "overlap")
        assert "lib/a.dll" in overlap
        assert "lib/b.dll" in overlap
        assert "2 OVERLAPPING" in str(picture.findtext(f"{SVG}title"))

    def test_light_and_dark(self, tree: Path, tmp_path: Path) -> None:
        picture = self.picture(tree, tmp_path / "map.svg")
        style = str(picture.findtext(f"{SVG}style"))
        assert "prefers-color-scheme:dark" in style

    def test_whatever_the_names_hold_it_is_xml(self, tmp_path: Path) -> None:
        root = tmp_path / 'a <b> & "c" ]]>'
        names = ("<script>.dll", "&amp;\x01\x1b\ufffe.dll", os.fsdecode(b"\xfe\xff.dll"), "\"'.dll")
        for number, name in enumerate(names):
            put(root / name, FLOOR + number * SLOT, 2)
        picture = self.picture(root, tmp_path / "map.svg")
        titles = [*self.rects(picture, "image"), *self.rects(picture, "overlap")]
        assert any("<script>.dll" in title for title in titles)
        assert any("&amp;\\x01\\x1b\\ufffe.dll" in title for title in titles)
        assert any("\\xfe\\xff.dll" in title for title in titles)

    def test_one_overlap_among_many(self, tmp_path: Path) -> None:
        root = tmp_path / "tree"
        root.mkdir()
        for number in range(300):
            put(root / f"{number}.dll", FLOOR + 2 * number * SLOT, 2)
        put(root / "new.dll", FLOOR + 321 * SLOT)
        picture = self.picture(root, tmp_path / "map.svg")
        overlaps = [r for r in picture.iter(f"{SVG}rect") if r.get("class") == "overlap"][1:]
        assert [float(str(r.get("width"))) >= 4 for r in overlaps] == [True]
        assert len([p for p in picture.iter(f"{SVG}path") if p.get("class") == "mark"]) == 1

    def test_everything_lies_inside_the_picture(self, tree: Path, tmp_path: Path) -> None:
        picture = self.picture(tree, tmp_path / "map.svg")
        width, height = map(float, str(picture.get("viewBox")).split()[2:])
        assert picture.get("width") is None  # it is as wide as its window
        for rect in picture.iter(f"{SVG}rect"):
            if rect.get("class") in (None, "hatch", "paper"):
                continue
            assert float(str(rect.get("x"))) >= 0
            assert float(str(rect.get("x"))) + float(str(rect.get("width"))) <= width
            assert float(str(rect.get("y"))) + float(str(rect.get("height"))) <= height

    def test_the_legend_has_the_colours_that_are_used_and_no_other(
        self, tree: Path, tmp_path: Path
    ) -> None:
        def legend(*words: object) -> list[str]:
            assert run("map", tree, "--svg", tmp_path / "map.svg", *words) == 0
            picture = ET.parse(tmp_path / "map.svg").getroot()
            titles = [str(rect.findtext(f"{SVG}title")) for rect in picture.iter(f"{SVG}rect")]
            texts = [text.text for text in picture.iter(f"{SVG}text")]
            return [title for title in titles if title in texts]

        assert legend() == ["DLL", "next DLL", "OVERLAP", "free"]
        put(tmp_path / "elsewhere/x.dll", FLOOR + 8 * SLOT, 4)
        assert legend("--avoid", tmp_path / "elsewhere")[-1] == "kept for others"
        (tree / "lib/b.dll").unlink()
        assert legend() == ["DLL", "next DLL", "free"]

    def test_it_says_what_it_wrote_and_no_more(
        self, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "map.svg"
        assert output(capsys, "map", tree, "--svg", file) == f"wrote {file}\n"
        json.loads(output(capsys, "map", tree, "--svg", file, "--json"))

    def test_where_there_is_no_room_the_old_picture_stays(
        self, rebaser: Rebaser, tree: Path, tmp_path: Path
    ) -> None:
        file = tmp_path / "pictures/map.svg"
        file.parent.mkdir()
        assert rebaser("map", tree, "--svg", file).status == 0
        old = file.read_bytes()
        put(tree / "new.dll", FLOOR + 100 * SLOT)
        small = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh"]  # 1: no file beyond 512 bytes
        result = rebaser("map", tree, "--svg", file, before=small)
        assert result.status == 1
        assert f"{file}: the picture cannot be written there (File too large)" in result.err
        assert file.read_bytes() == old
        assert os.listdir(file.parent) == ["map.svg"]

    def test_what_is_no_file_is_written_into(self, rebaser: Rebaser, tree: Path) -> None:
        with open(os.devnull, "rb") as null:
            before = os.fstat(null.fileno())
            assert rebaser("map", tree, "--svg", os.devnull).status == 0
            assert os.path.samestat(os.stat(os.devnull), before)

    def test_standard_output(self, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
        text = output(capsys, "map", tree, "--svg", "-")
        assert ET.fromstring(text.encode()).tag == f"{SVG}svg"

    def test_one_thing_at_a_time_on_standard_output(self, tree: Path) -> None:
        assert run("map", tree, "--svg", "-", "--json") == 2

    def test_a_file_that_cannot_be_written(
        self, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run("map", tree, "--svg", tmp_path / "no/such/map.svg") == 1
        assert "map.svg: the picture cannot be written" in capsys.readouterr().err

    @pytest.mark.slow
    @pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
    def test_a_browser_shows_it(self, tree: Path, tmp_path: Path, dark: bool) -> None:
        browser = shutil.which("chromium") or shutil.which("chromium-browser")
        if browser is None:
            pytest.skip("chromium is not there: install chromium")
        self.picture(tree, tmp_path / "map.svg")
        shot = tmp_path / "shot.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1200,700",
        ]
        if dark:
            options.append("--blink-settings=preferredColorScheme=0")
        subprocess.run(
            [
                browser,
                *options,
                f"--user-data-dir={tmp_path / 'profile'}",
                f"--screenshot={shot}",
                (tmp_path / "map.svg").as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=100,
        )
        colours = pixels(shot)
        paper = (0x14, 0x17, 0x1B) if dark else (0xFF, 0xFF, 0xFF)
        assert max(colours, key=lambda colour: colours[colour]) == paper
        alarm = (0xFF, 0x5A, 0x5F) if dark else (0xC0, 0x1C, 0x28)
        assert colours.get(alarm, 0) > 20


def pixels(file: Path) -> dict[tuple[int, int, int], int]:
    """Count the colours of a PNG file, 8 bits a channel, not interlaced (PNG specification)."""
    import zlib

    data = file.read_bytes()
    at, body, width, channels = 8, b"", 0, 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IHDR":
            width, _, depth, colour = struct.unpack_from(">IIBB", data, at + 8)
            assert depth == 8
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            body += data[at + 8 : at + 8 + size]
        at += size + 12
    raw = zlib.decompress(body)
    stride = width * channels
    counts: dict[tuple[int, int, int], int] = {}
    above = bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = bytearray(raw[start + 1 : start + 1 + stride])
        for i in range(stride):
            a = line[i - channels] if i >= channels else 0
            b = above[i]
            c = above[i - channels] if i >= channels else 0
            if raw[start] == 1:
                line[i] = (line[i] + a) & 255
            elif raw[start] == 2:
                line[i] = (line[i] + b) & 255
            elif raw[start] == 3:
                line[i] = (line[i] + (a + b) // 2) & 255
            elif raw[start] == 4:
                p = a + b - c
                pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
                line[i] = (line[i] + (a if pa <= pb and pa <= pc else b if pb <= pc else c)) & 255
        for i in range(0, stride, channels):
            colour = (line[i], line[i + 1], line[i + 2])
            counts[colour] = counts.get(colour, 0) + 1
        above = line
    return counts


def write_database(path: Path, entries: dict[str, tuple[int, int]]) -> None:
    """Write a rebase database of version 1: path, base and slots of each entry."""
    names = b"".join(name.encode() + b"\0" for name in entries)
    rows = b"".join(
        struct.pack("<QIQIII", 0, len(name) + 1, base, slots * SLOT, slots * SLOT, 0)
        for name, (base, slots) in entries.items()
    )
    head = struct.pack("<4sHHQIiI", b"rBiI", 0x8664, 1, 0x4_0000_0000, 0, 1, len(entries))
    path.write_bytes(head + rows + names)
