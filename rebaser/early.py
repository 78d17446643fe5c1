"""Whether a look may end early: at the first image that shows that there is work."""

from __future__ import annotations

from cygwin.address_space import GRANULARITY, slot_size
from rebaser.options import Options
from rebaser.plan.placement import must_move
from rebaser.plan.request import Request
from rebaser.plan.survey import LARGEST
from rebaser.scan.skip import globs_of_tree, skip_cause
from rebaser.scan.snapshot import Seen


class Work:
    """Told of image after image, says when one is certain to be moved, whatever else there is.

    That one is in the wrong place by itself, or two of those told of overlap and one of them may
    move. It never says so of a tree that has nothing to do.
    """

    def __init__(self, options: Options, request: Request) -> None:
        self._options = options
        self._arenas = options.arenas
        self._request = request
        self._excludes = globs_of_tree(options.excludes, request.below)
        # Who was the first in each slot of a machine: device, inode, and whether it may move.
        self._taken: dict[tuple[int, int], tuple[int, int, bool]] = {}

    def is_shown_by(self, path: str, seen: Seen) -> bool:
        """Return whether there is work, now that this image is known too."""
        arena = self._arenas.get(seen.machine)
        if arena is None:
            return False
        size = slot_size(seen.image_size)
        skipped = skip_cause(
            [path], seen, force_signed=self._options.force_signed, excludes=self._excludes
        )
        may_move = skipped is None and self._request.names(path)
        if may_move and (
            must_move(seen.base, size, arena) or (seen.dynamic_base and not self._options.keep_aslr)
        ):
            return True
        return not (skipped and size > LARGEST) and self._overlaps(seen, size, may_move)

    def _overlaps(self, seen: Seen, size: int, may_move: bool) -> bool:
        this = (seen.device, seen.inode, may_move)
        for slot in range(seen.base // GRANULARITY, -(-(seen.base + size) // GRANULARITY)):
            other = self._taken.setdefault((seen.machine, slot), this)
            # Another name of the same file is no other image.
            if other[:2] != this[:2] and (may_move or other[2]):
                return True
        return False
