"""Keeps a tree of Cygwin or MSYS2 DLLs fork-safe."""

__version__ = "0.1.0"
