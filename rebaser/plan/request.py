"""What a run was asked for: its options, and which images may move."""

from __future__ import annotations

from typing import NamedTuple


class Request(NamedTuple):
    """What a run was asked for: its options as one text, and which images may move.

    `below` is the part of the tree asked for ("" is all of it, else a path that ends in a slash);
    `only` are the paths named by --only-from, or None for every path.
    """

    options: str
    below: str = ""
    only: frozenset[str] | None = None

    @property
    def is_for_all(self) -> bool:
        """Whether every image of the tree may move."""
        return not self.below and self.only is None

    def names(self, path: str) -> bool:
        """Return whether the image at `path`, relative to the root, may move."""
        return path.startswith(self.below) and (self.only is None or path in self.only)

    def concerns(self, path: str) -> bool:
        """Return whether what happened to a file or folder matters to what was asked for."""
        if path == "." or self.names(path):
            return True
        inside = f"{path}/"
        if self.only is not None:
            return any(name.startswith(inside) for name in self.only)
        return self.below.startswith(inside)

    def covers(self, other: Request) -> bool:
        """Return whether a run for this request does all the work of the other."""
        if self.options != other.options:
            return False
        if other.only is not None and self.only is None:
            return all(path.startswith(self.below) for path in other.only)
        return other.below.startswith(self.below) and (
            self.only is None or (other.only is not None and other.only <= self.only)
        )
