"""Rigs on a new database, of the server that all tests share, or of one that may be broken."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pilot.store import open_store
from tests.faults.rig import Rig
from tests.postgres import Cluster


@pytest.fixture(scope="session")
def server() -> Iterator[Cluster]:
    """For tests that end it, or its connections."""
    with Cluster.make(tcp=True) as made:
        yield made


@pytest.fixture
def url(postgres: Cluster) -> Iterator[str]:
    """A new store's, on the shared server."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture
async def rig(url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Nodes are started by the test, and ended when it is over."""
    async with open_store(url) as store:
        rig = Rig(store, tmp_path / "rig")
        try:
            yield rig
        finally:
            rig.clear_away()
