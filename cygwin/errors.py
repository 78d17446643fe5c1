"""The failures that reading and relocating images expect."""

from __future__ import annotations

from cygwin.fault import Fault


class ImageError(Exception):
    """A file could not be read or changed as an image; the text is one short reason."""


class FaultError(ImageError):
    """What is wrong, as a value; `detail` is printable ASCII, or empty."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(fault.reason(detail))
        self.fault = fault
        self.detail = detail


class NotAnImage(FaultError):  # noqa: N818 - it says what the file is, not that we failed
    """The file has no usable PE header, so it has no address range either."""


class RelocationError(ImageError):
    """An image could not be relocated, or is not what relocating must have made of it."""


class TableError(FaultError, RelocationError):
    """The base relocation table of an image cannot be believed."""
