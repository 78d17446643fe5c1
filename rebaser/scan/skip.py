"""Why a file of the tree is never moved, whatever lies around it."""

from __future__ import annotations

from cygwin.address_space import is_runtime
from rebaser.scan import snapshot as snapshots
from rebaser.scan.snapshot import Seen, Snapshot


def count_images(now: Snapshot, force_signed: bool) -> tuple[int, int, list[tuple[str, str]]]:
    """Return the numbers of files and of images in a tree, and its (path, reason) skipped.

    What `survey` would find, without the work of placing each image.
    """
    files = images = 0
    skipped = []
    met = set()
    for path, seen in now.files():
        file = same_file(path, seen)
        if file in met:
            continue
        met.add(file)
        files += 1
        images += bool(seen.base_width)
        reason = skip_reason(path, seen, now.texts[seen.fault], force_signed)
        if reason:
            skipped.append((path, reason))
    return files, images, skipped


def same_file(path: str, seen: Seen) -> object:
    """Return what is equal for two names of one file.

    Its hard links, and its names in two folders that are one: Cygwin mounts /usr/bin as /bin.
    """
    return (seen.device, seen.inode) if seen.inode else path


def skip_reason(path: str, seen: Seen, fault: str, force_signed: bool) -> str:
    """Return why a file is never moved, or an empty text; `fault` is what its reader found."""
    if fault:
        return fault
    if is_runtime(path):
        return "the Cygwin runtime, which every program loads where it is"
    if seen.flags & snapshots.SIGNED and not force_signed:
        return "has an Authenticode signature, which moving would break (--force-signed moves it)"
    return ""
