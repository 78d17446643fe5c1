"""The address space as an SVG picture: for a browser, in light and dark, with titles on hover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from cygwin.address_space import Range, machine_name
from rebaser.address_map import (
    AddressMap,
    Drawing,
    Kind,
    Region,
    Row,
    binary_size,
    draw,
    extent,
    use_of,
    zones,
)
from rebaser.text import address, plural, printable

WIDTH = 1240
LEFT = 130
ROW_WIDTH = 1024
ROW_HEIGHT = 16
ROW_STEP = 19
# A row has at least so many slots of 64 KiB: then a slot is four units wide.
SLOTS = 256
MOST_ROWS = 32
MOST_ROWS_ELSEWHERE = 8
# A DLL is never drawn narrower, nor an overlap: one among thousands must be seen.
LEAST = 2.0
LEAST_COLLISION = 9.0
LISTED = 40
LONGEST = 132  # characters of a line of text

STYLE = """\
:root{color-scheme:light dark}
svg{--paper:#fff;--ink:#1b1f24;--soft:#59636e;--free:#eef1f4;--line:#c8cfd6;--i:#3b6fb5;--j:#7fb2e5;
--r:#d5d9de;--d:#d9b44a;--a:#a58bc7;--x:#c01c28}
@media (prefers-color-scheme:dark){svg{--paper:#14171b;--ink:#e8eaed;--soft:#9aa4af;--free:#23282f;
--line:#3b444e;--i:#5b93dd;--j:#a9cdf3;--r:#3a414a;--d:#a98522;--a:#7a5fa0;--x:#ff5a5f}}
text{font:13px ui-monospace,'DejaVu Sans Mono',Consolas,monospace;fill:var(--ink)}
.big{font-size:18px;font-weight:bold}.head{font-weight:bold}.soft{fill:var(--soft)}
.alarm{font-weight:bold;fill:var(--x)}
.paper{fill:var(--paper)}.free{fill:var(--free)}
.i{fill:var(--i)}.j{fill:var(--j)}.r{fill:var(--r)}.d{fill:var(--d)}.a{fill:var(--a)}
.i,.j{stroke:var(--paper);stroke-width:.4}
.x{fill:url(#hatch);stroke:var(--ink);stroke-width:1.2}.mark{fill:var(--x)}
.hatch{fill:var(--x)}.stripe{stroke:var(--paper);stroke-width:2}
.i:hover,.j:hover,.d:hover,.a:hover{stroke:var(--ink);stroke-width:2}
"""

_CLASSES = {Kind.RUNTIME: "r", Kind.DATABASE: "d", Kind.AVOID: "a"}
_LEGEND = (
    ("i", "DLL"),
    ("j", "next DLL"),
    ("x", "OVERLAP"),
    ("r", "Cygwin runtime"),
    ("d", "Cygwin's database"),
    ("a", "--avoid"),
    ("free", "free"),
)


def svg(root: str, maps: Sequence[AddressMap]) -> str:
    """Return the picture of a tree's address space as one SVG document (SVG 1.1, CSS variables).

    Whatever the names hold, the document is well-formed XML.
    """
    drawing = _Sheet()
    drawing.text(_clean(root), "big", x=16)
    drawing.y += 8
    drawing.legend({_CLASSES[r.kind] for found in maps for r in found.others})
    for found in maps:
        drawing.machine(found)
    drawing.y += 16
    summary = _clean("; ".join(_summary(found) for found in maps))
    return "\n".join(
        [
            '<?xml version="1.0" encoding="UTF-8"?>',
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {drawing.y}" '
            f'width="{WIDTH}" height="{drawing.y}" role="img">',
            f"<title>{_clean(root)}: {summary}</title>",
            f"<style>{STYLE}</style>",
            '<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" '
            'patternTransform="rotate(45)"><rect class="hatch" width="6" height="6"/>'
            '<path class="stripe" d="M0 0V6"/></pattern></defs>',
            f'<rect class="paper" width="{WIDTH}" height="{drawing.y}"/>',
            *drawing.parts,
            "</svg>",
            "",
        ]
    )


class _Sheet:
    """The parts of the picture, from the top down; `y` is where the next one begins."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.y = 12

    def text(self, text: str, style: str = "", x: float = LEFT) -> None:
        """Add a line of text, which is XML already."""
        self.y += 18
        self.parts.append(f'<text class="{style}" x="{x:g}" y="{self.y - 4}">{text}</text>')

    def rect(self, style: str, x: float, width: float, title: str) -> None:
        """Add a rectangle in the present row."""
        self.parts.append(
            f'<rect class="{style}" x="{x:.2f}" y="{self.y}" width="{width:.2f}" '
            f'height="{ROW_HEIGHT}"><title>{title}</title></rect>'
        )

    def legend(self, reserved: set[str]) -> None:
        """Add a sample of each kind; of what is reserved only those that there are."""
        x = 16.0
        for style, name in _LEGEND:
            if style in _CLASSES.values() and style not in reserved:
                continue
            self.rect(style, x, 22, name)
            self.parts.append(f'<text x="{x + 28:g}" y="{self.y + 13}">{name}</text>')
            x += 28 + 8 * len(name) + 24
        self.y += ROW_STEP + 8

    def machine(self, found: AddressMap) -> None:
        """Add the picture of one machine."""
        self.y += 10
        self.text(_clean(_summary(found)), "alarm" if found.colliding else "head", x=16)
        turns = {region: "ij"[index % 2] for index, region in enumerate(found.images)}
        for zone in zones(found.machine, found.arena):
            most = MOST_ROWS if zone.is_arena else MOST_ROWS_ELSEWHERE
            drawing = draw(found, zone, cells=SLOTS, most_rows=most)
            if zone.is_arena or drawing.lines:
                self.zone(found, drawing, turns)
        self.overlaps(found)

    def zone(self, found: AddressMap, drawing: Drawing, turns: dict[Region, str]) -> None:
        """Add the rows of a zone under its heading."""
        zone = drawing.zone
        self.y += 10
        self.text(_clean(_heading(found, drawing)), "head")
        if zone.is_arena:
            self.text(_clean(_room(found)))
        if not drawing.lines:
            self.rect("free", LEFT, ROW_WIDTH, f"all {binary_size(zone.high - zone.low)} free")
            self.y += ROW_STEP
        for line in drawing.lines:
            if isinstance(line, Row):
                self.row(line, drawing, found, turns)
            else:
                self.text(f"… {binary_size(line.high - line.low)} {zone.free} …", "soft")

    def row(self, row: Row, drawing: Drawing, found: AddressMap, turns: dict[Region, str]) -> None:
        """Add one row: what is reserved, the DLLs, and on top what overlaps."""
        size = drawing.row_size
        label = address(row.low)
        self.parts.append(
            f'<text class="soft" x="{LEFT - 10}" y="{self.y + 13}" text-anchor="end">{label}</text>'
        )
        inside = _clip(drawing.zone.low, drawing.zone.high, row.low, size)
        if drawing.zone.is_arena and inside:
            self.rect("free", *inside, "free")
        for region in sorted(row.parts, key=lambda part: part.kind is Kind.IMAGE):
            at = _clip(region.low, region.high, row.low, size)
            if at:
                style = turns.get(region) or _CLASSES[region.kind]
                self.rect(style, at[0], max(at[1], LEAST), _title(region))
        for part, sharers in _shared(row):
            at = _clip(part.low, part.high, row.low, size)
            if at:
                wide = max(at[1], LEAST_COLLISION)
                x = max(LEFT, at[0] - (wide - at[1]) / 2)
                self.rect("x", x, wide, _collision_title(part, sharers))
        if row.collisions:
            x, y = LEFT + ROW_WIDTH + 8, self.y + ROW_HEIGHT / 2
            self.parts.append(f'<path class="mark" d="M{x} {y:g}l12 -7v14z"/>')
            self.parts.append(f'<text class="alarm" x="{x + 18}" y="{self.y + 13}">overlap</text>')
        self.y += ROW_STEP

    def overlaps(self, found: AddressMap) -> None:
        """Add the names of what overlaps."""
        if not found.groups:
            return
        self.y += 10
        self.text("Overlaps: a process that loads two of a group cannot fork", "alarm")
        for group in found.groups[:LISTED]:
            low, high = extent(found, group)
            names = ", ".join(printable(region.path) for region in group[:4])
            more = f" and {len(group) - 4:,} more" if len(group) > 4 else ""
            line = f"{address(low)}-{address(high)}  {names}"
            if len(line) > LONGEST - len(more):
                line = line[: LONGEST - len(more) - 1] + "…"
            self.text(_clean(line + more))
        if len(found.groups) > LISTED:
            self.text(f"… and {len(found.groups) - LISTED:,} more", "soft")


def _clip(low: int, high: int, row_low: int, row_size: int) -> tuple[float, float] | None:
    """Return where a range begins in a row and how wide it is there, in units of the picture."""
    low, high = max(low, row_low), min(high, row_low + row_size)
    if low >= high:
        return None
    return LEFT + (low - row_low) / row_size * ROW_WIDTH, (high - low) / row_size * ROW_WIDTH


def _heading(found: AddressMap, drawing: Drawing) -> str:
    zone = drawing.zone
    high = f"-{address(zone.high)}" if zone.high < 1 << 47 else " and up"
    scale = f"; a row is {binary_size(drawing.row_size)}" if drawing.lines else ""
    count = sum(zone.low <= region.low < zone.high for region in found.images)
    held = plural(count, "DLL") if count else "no DLLs"
    return f"{address(zone.low)}{high}  {zone.name}: {held}{scale}"


def _room(found: AddressMap) -> str:
    use = use_of(found)
    room = [f"{binary_size(use.images)} used"]
    if use.others:
        room.append(f"{binary_size(use.others)} kept for others")
    room.append(f"{binary_size(use.free)} free")
    if use.largest_gap:
        gap = use.largest_gap
        room.append(f"largest gap {binary_size(gap.high - gap.low)} at {address(gap.low)}")
    return ", ".join(room)


def _summary(found: AddressMap) -> str:
    text = f"{machine_name(found.machine)}: {plural(len(found.images), 'DLL')}"
    if found.colliding:
        return f"{text}, {found.colliding:,} overlapping"
    return f"{text}, no overlap" if found.images else f"{machine_name(found.machine)}: no DLLs"


def _title(region: Region) -> str:
    if region.kind is not Kind.IMAGE:
        return _clean(f"{region.path}\n{address(region.low)}-{address(region.high)}")
    name = region.path.rpartition("/")[2]
    size = region.high - region.low
    return "\n".join(
        _clean(line)
        for line in (
            name,
            f"base {address(region.low)}, size {address(size)} ({binary_size(size)})",
            region.path,
        )
    )


def _shared(row: Row) -> Iterator[tuple[Range, Sequence[Region]]]:
    """Yield each collision of a row with the regions that share it; both are sorted by address."""
    coming = list(reversed(row.parts))
    there: list[Region] = []
    for part in row.collisions:
        while coming and coming[-1].low < part.high:
            there.append(coming.pop())
        there = [region for region in there if region.high > part.low]
        yield part, there


def _collision_title(part: Range, sharers: Sequence[Region]) -> str:
    lines = [f"OVERLAP {address(part.low)}-{address(part.high)}", *_names(sharers)]
    return "\n".join(map(_clean, lines))


def _names(regions: Sequence[Region]) -> Iterator[str]:
    for region in regions[:12]:
        yield f"{address(region.low)} {region.path}"
    if len(regions) > 12:
        yield f"and {len(regions) - 12:,} more"


def _clean(text: str) -> str:
    """Return text for XML: no control character is left, and nothing that is markup."""
    return escape(printable(text))
