"""The stage on which nodes play; the audit that nobody leaves without."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import structlog

from pilot.store import open_store
from tests.core.stage import Clock, Stage, audit


@pytest.fixture(autouse=True)
def _logs_go_nowhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command that runs in this process would bind every logger to an output that is closed after its test."""
    monkeypatch.setattr("pilot.telemetry.logs.configure", lambda **_: None)
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory(), cache_logger_on_first_use=False)
    yield
    structlog.reset_defaults()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = Clock()
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=clock) as store:
        yield Stage(store, clock)
        assert await audit(store) == []
