"""Which images lie on the same addresses; pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from cygwin.values import NamedTuple
from rebaser.report import Group


class Span(NamedTuple):
    """What an image occupies, addresses `[low, high)`, or a range that is kept for somebody.

    `path` is the image's, or says whom the range is kept for.
    """

    low: int
    high: int
    path: str
    is_image: bool = True


def clusters(spans: Iterable[Span]) -> list[list[Span]]:
    """Return the groups of spans that hang together by overlaps, those of two or more alone.

    However many images lie at one address, each is named once here; their pairs grow with the
    square of their number.
    """
    found: list[list[Span]] = []
    reach = -1
    for span in sorted(spans):
        if span.low >= reach:
            found.append([])
        found[-1].append(span)
        reach = max(reach, span.high)
    return [group for group in found if len(group) > 1]


def groups(
    by_machine: Mapping[int, Iterable[Span]], stuck: Collection[str], asked: Collection[str]
) -> list[Group]:
    """Return the overlaps of each machine.

    No run moves the paths in `stuck`; those in `asked` are what was asked for.
    """
    return [
        told(machine, cluster, stuck, asked)
        for machine, spans in sorted(by_machine.items())
        for cluster in clusters(spans)
    ]


def told(
    machine: int, cluster: Sequence[Span], stuck: Collection[str], asked: Collection[str]
) -> Group:
    """Return a cluster as it is told: where its images lie, and the names of all that is in it."""
    images = [span for span in cluster if span.is_image]
    free = [image.path for image in images if image.path not in stuck]
    low, high = min(image.low for image in images), max(image.high for image in images)
    paths = tuple(span.path for span in cluster)
    ours = any(path in asked for path in free)
    return Group(machine, low, high, paths, "run" if free else None, ours)
