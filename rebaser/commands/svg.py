"""The picture of an address space as SVG: for browsers, light and dark, with titles on hover."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from rebaser.text import address, address_size, printable
from rebaser.view import LEFT, AddressMap, Kind, Part, Row, extent, picture, summary

# All in units of the picture, which is as wide as its window.
WIDTH = 1000
ROW_WIDTH = 800
ROW_HEIGHT = 15
STEP = 19
# A DLL is never drawn narrower, nor an overlap: one among thousands must be seen.
LEAST = 1.6
LEAST_OVERLAP = 8.0
LONGEST = 116  # characters of a line of text
NAMED = 12  # in a title

STYLE = """\
:root{color-scheme:light dark}
svg{--paper:#fff;--ink:#1b1f24;--soft:#59636e;--free:#eef1f4;--i:#3b6fb5;--j:#7fb2e5;
--r:#d5d9de;--o:#a58bc7;--x:#c01c28;background:var(--paper);width:100%;height:auto}
@media (prefers-color-scheme:dark){svg{--paper:#14171b;--ink:#e8eaed;--soft:#9aa4af;--free:#23282f;
--i:#5b93dd;--j:#a9cdf3;--r:#3a414a;--o:#7a5fa0;--x:#ff5a5f}}
text{font:13px ui-monospace,'DejaVu Sans Mono',Consolas,monospace;fill:var(--ink);white-space:pre}
.big{font-size:17px;font-weight:bold}.head{font-weight:bold}.soft{fill:var(--soft)}
.alarm{font-weight:bold;fill:var(--x)}
.paper{fill:var(--paper)}.free{fill:var(--free)}.runtime{fill:var(--r)}.others{fill:var(--o)}
.image{fill:var(--i)}.next_image{fill:var(--j)}.image,.next_image{stroke:var(--paper);stroke-width:.4}
.overlap{fill:url(#hatch);stroke:var(--ink);stroke-width:1.2}.mark,.hatch{fill:var(--x)}
.stripe{stroke:var(--paper);stroke-width:2}
.image:hover,.next_image:hover,.others:hover{stroke:var(--ink);stroke-width:2}
"""


def svg(root: str, maps: Sequence[AddressMap]) -> str:
    """Return the picture of a tree's address space as one SVG document (SVG 1.1, CSS variables).

    Whatever the names hold, the document is well-formed XML.
    """
    lines = list(picture(root, maps, cells=256, most_rows=32))
    used = {part.kind for line in lines if isinstance(line, Row) for part in line.parts}
    y = 10
    parts: list[str] = []
    for number, line in enumerate(lines):
        if isinstance(line, Row):
            parts += _row(line, y)
        else:
            *_, style, x, above = line.style.value
            y += above
            parts.append(_text(line.text, style, x, y))
        y += STEP
        if number == 0:
            y += 6
            parts += _legend([kind for kind in Kind if kind in used], y)
            y += STEP
    title = _clean("; ".join([root, *map(summary, maps)]))
    head = f"""\
<?xml version="1.0" encoding="UTF-8"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 10}" role="img">
<title>{title}</title>
<style>{STYLE}</style>
<defs><pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" \
patternTransform="rotate(45)"><rect class="hatch" width="6" height="6"/>\
<path class="stripe" d="M0 0V6"/></pattern></defs>
<rect class="paper" width="{WIDTH}" height="{y + 10}"/>"""
    return "\n".join([head, *parts, "</svg>", ""])


def _legend(kinds: Sequence[Kind], y: float) -> Iterator[str]:
    x = 12.0
    for kind in kinds:
        yield _rect(kind, x, y, 20, kind.value)
        yield _text(kind.value, "", x + 26, y)
        x += 26 + 7.9 * len(kind.value) + 22


def _row(row: Row, y: float) -> Iterator[str]:
    yield _text(address(row.low), 'soft" text-anchor="end', LEFT - 8, y)
    for part in sorted(row.parts, key=lambda part: part.kind is Kind.OVERLAP):  # painted over all
        x = LEFT + (part.low - row.low) / row.size * ROW_WIDTH
        width = (part.high - part.low) / row.size * ROW_WIDTH
        wide = max(width, LEAST_OVERLAP if part.kind is Kind.OVERLAP else LEAST)
        if part.kind is Kind.OVERLAP:
            x = max(LEFT, x - (wide - width) / 2)
        yield _rect(part.kind, x, y, wide, _title(part))
    if row.overlaps:
        x = LEFT + ROW_WIDTH + 6
        yield f'<path class="mark" d="M{x} {y + ROW_HEIGHT / 2:g}l11 -6v12z"/>'
        yield _text("overlap", "alarm", x + 16, y)


def _rect(kind: Kind, x: float, y: float, width: float, title: str) -> str:
    return (
        f'<rect class="{kind.name.lower()}" x="{x:.2f}" y="{y:g}" width="{width:.2f}" '
        f'height="{ROW_HEIGHT}"><title>{title}</title></rect>'
    )


def _text(text: str, style: str, x: float, y: float) -> str:
    if len(text) > LONGEST:
        text = f"{text[: LONGEST - 1]}…"
    return f'<text class="{style}" x="{x:g}" y="{y + 12:g}">{_clean(text)}</text>'


def _title(part: Part) -> str:
    """Return what is shown of a rectangle on hover: whose it is, and from where to where."""
    lines = [f"{part.kind.value} {extent(part)}"] if len(part.owners) != 1 else []
    for one in part.owners[:NAMED]:
        lines += [one.path, f"{extent(one)} ({address_size(one.high - one.low)})"]
    if len(part.owners) > NAMED:
        lines.append(f"and {len(part.owners) - NAMED:,} more")
    return "\n".join(map(_clean, lines))


def _clean(text: str) -> str:
    """Return text for XML: no control character is left, and nothing that is markup."""
    return escape(printable(text))
