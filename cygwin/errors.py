"""The failures that reading and relocating images expect."""

from __future__ import annotations


class ImageError(Exception):
    """A file could not be read or changed as an image; the text is one short reason."""


class NotAnImage(ImageError):  # noqa: N818 - it says what the file is, not that we failed
    """The file has no usable PE header, so it has no address range either."""


class RelocationError(ImageError):
    """An image could not be relocated, or is not what relocating must have made of it."""
