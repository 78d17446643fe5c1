"""Address maps of x86_64, made of images that are counted in slots."""

from __future__ import annotations

from cygwin.address_space import ARENA, GRANULARITY, RUNTIME, X86_64
from rebaser.plan.overlap import Span
from rebaser.view import AddressMap

ARENA_64 = ARENA[X86_64]
LOW = ARENA_64.low
THE_RUNTIME = Span(RUNTIME[X86_64][0].low, RUNTIME[X86_64][0].high, "runtime")


def image(slot: int, slots: int = 1, path: str | None = None, base: int = LOW) -> Span:
    """Return an image so many slots above the floor of the arena."""
    low = base + slot * GRANULARITY
    return Span(low, low + slots * GRANULARITY, path or f"x{slot}.dll")


def made(*images: Span, others: tuple[Span, ...] = (THE_RUNTIME,)) -> AddressMap:
    """Return the map of these."""
    return AddressMap(X86_64, ARENA_64, images, others)
