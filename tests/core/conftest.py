"""The stage on which nodes play; the audit that nobody leaves without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pilot.store import open_store
from tests.core.stage import Clock, Stage, audit


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    clock = Clock()
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=clock) as store:
        yield Stage(store, clock)
        assert await audit(store) == []
