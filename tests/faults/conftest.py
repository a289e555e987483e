"""A PostgreSQL of its own for tests that break it, and a rig on a new database of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pilot.store import open_store
from tests.faults.rig import Rig
from tests.postgres import Cluster


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """Reached by TCP, as nodes of other machines would."""
    with Cluster.make(tcp=True) as made:
        yield made


@pytest.fixture
def url(server: Cluster) -> str:
    """A new store's."""
    return server.url(server.create().rpartition("/")[2].partition("?")[0], port=server.port)


@pytest.fixture
async def rig(url: str, tmp_path: Path) -> AsyncIterator[Rig]:
    """Nodes are started by the test, and ended when it is over."""
    async with open_store(url) as store:
        rig = Rig(store, tmp_path / "rig")
        try:
            yield rig
        finally:
            rig.clear_away()
