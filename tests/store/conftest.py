"""One store per test, on every engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilot.store import open_store
from tests.store.bed import ENGINES, Bed, Clock


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store may be made."""
    match request.param:
        case "sqlite":
            return f"sqlite:///{tmp_path}/pilot.db"
        case engine:
            raise AssertionError(f"no such engine: {engine}")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(url: str, clock: Clock) -> AsyncIterator[Bed]:
    """A new store; audited when the test is over."""
    async with open_store(url, clock=clock) as opened:
        bed = Bed(opened, clock)
        yield bed
        await bed.check()


@pytest.fixture
async def other(url: str, store: Bed, clock: Clock) -> AsyncIterator[Bed]:
    """The same store, opened a second time: another process, as far as the database can tell."""
    async with open_store(url, clock=clock) as opened:
        yield Bed(opened, clock, prefix="U")
