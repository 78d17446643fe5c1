"""Servers for the tests of trees that several machines share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
from servers import SERVERS, Server


def _kinds() -> list[object]:
    drivers = {"Redis": "redis", "Etcd": "etcd3gw", "Postgres": "psycopg2"}
    params = []
    for kind in SERVERS:
        missing = [
            f"the Python package {name} is not installed"
            for name in ("tooz", drivers[kind.__name__])
            if importlib.util.find_spec(name) is None
        ]
        if kind.found() is None:
            missing.append(f"{kind.program} is not installed (apt install {kind.package})")
        skip = pytest.mark.skipif(bool(missing), reason=missing[0] if missing else "")
        params.append(pytest.param(kind, id=kind.__name__.lower(), marks=skip))
    return params


@pytest.fixture(scope="module", params=_kinds())
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """Return a server that runs, of each kind; a test that ends it starts it again."""
    one = request.param()
    try:
        one.start()
        yield one
    finally:
        one.close()
