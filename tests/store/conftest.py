"""One store per test, on every engine."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from pilot.store import open_store
from tests.store.bed import Bed, Clock
from tests.store.engines import ENGINES, Places, engines_of, in_memory


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # a test may say itself which it is for
    said = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "engine" in metafunc.fixturenames and not any("engine" in names for names in said):
        metafunc.parametrize("engine", engines_of(metafunc.module.__name__, metafunc.function.__name__))


@pytest.fixture
def url(engine: str, request: pytest.FixtureRequest) -> str:
    """Where a new store may be made."""
    if engine == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path')}/pilot.db"
    assert engine in ENGINES
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def places(engine: str, request: pytest.FixtureRequest) -> Places:
    """For tests that need one store after the other."""
    if engine == "sqlite":
        return in_memory
    assert engine in ENGINES
    found: Places = request.getfixturevalue("postgres").database
    return found


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
