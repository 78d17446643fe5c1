"""Fixtures that several test modules share."""

from __future__ import annotations

from cygwin_root import cygwin_root, pristine_root, real_programs

__all__ = ["cygwin_root", "pristine_root", "real_programs"]
