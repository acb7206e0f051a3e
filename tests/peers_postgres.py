"""A real PostgreSQL of the test's own, or a skip that says why there is none."""

import contextlib
from collections.abc import Iterator

import pytest

from benchmarks import postgres as server


@contextlib.contextmanager
def postgres() -> Iterator[server.Postgres]:
    """Run a PostgreSQL with an empty database."""
    if reason := server.why_not():
        pytest.skip(reason)
    with server.postgres() as peer:
        yield peer
