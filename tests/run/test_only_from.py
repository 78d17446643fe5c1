"""The list of --only-from, whatever it holds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebaser.errors import UsageError
from rebaser.options import named_paths

# Bytes that mean something in a list or in a path come often.
LISTS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"/", b"..", b".", b"\n", b"\r\n", b"\0", b"/nowhere/tree/", b"x.dll"]),
    ),
    max_size=30,
).map(b"".join)


@settings(max_examples=2000, deadline=None)
@given(LISTS, st.sampled_from(["", "inner/"]), st.booleans())
def test_any_bytes(listed: bytes, scope: str, nul: bool) -> None:
    """Every path that comes out is one of the tree, relative to its root; or -0 is asked for."""
    if b"\0" in listed and not nul:
        with pytest.raises(UsageError, match="-0"):
            named_paths(listed, "/nowhere/tree", scope, nul=nul)
        return
    found = named_paths(listed, "/nowhere/tree", scope, nul=nul)
    for path in found:
        parts = path.split("/")
        assert path
        assert not path.startswith("/")
        assert ".." not in parts
        assert "\0" not in path


@settings(max_examples=500, deadline=None)
@given(
    st.sets(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1), max_size=9)
)
def test_plain_names(names: set[str]) -> None:
    for end, nul in ((b"\n", False), (b"\r\n", False), (b"\0", True)):
        listed = b"".join(name.encode() + end for name in sorted(names))
        assert named_paths(listed, "/nowhere/tree", "inner/", nul=nul) == {
            f"inner/{name}" for name in names
        }
