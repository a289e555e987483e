"""`pilot status`: a line for each kind of work, as soon as there is more than code; workers among the nodes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from pilot.cli.main import main
from pilot.domain.outcome import FailureClass
from pilot.domain.task import Kind
from pilot.store import open_store, wall_clock
from tests.store.bed import HOUR, MINUTE, Bed, Clock, asked, broken, done


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOT_HOME", str(tmp_path))
    return tmp_path


def status(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What it prints."""
    capsys.readouterr()
    assert main(["status", *more]) == 0
    return capsys.readouterr().out


async def fill(state: Path, *kinds: Kind) -> None:
    """Of each kind one that waits, done, failed, asks and waits for another; a worker has the first of all."""
    clock = Clock(wall_clock() - 2 * HOUR)
    async with open_store(f"sqlite:///{state}/pilot.db", clock=clock) as store:
        bed = Bed(store, clock)
        await bed.node()
        for kind in kinds:
            place = await bed.project(kind)
            for finish in (done, broken, asked):
                await bed.put(place, kind=kind)
                await store.queue.finish(finish(await bed.take(place)))
            parent = await bed.put(place, kind=kind)
            await bed.put(place, kind=kind, after=(parent,))
        clock.now = wall_clock() - MINUTE
        await store.work.claim("pane-1", lease=HOUR)


def test_code_alone_needs_no_line(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(fill(state, Kind.CODE))

    page = status(capsys)

    assert not [line for line in page.splitlines() if line.startswith("code:")]
    assert "node worker:pane-1: worker, up since " in page
    assert ", pid" not in next(line for line in page.splitlines() if "worker:pane-1" in line)


def test_other_kinds_are_told_apart(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asyncio.run(fill(state, Kind.BUILD, Kind.CODE))

    page, document = status(capsys), json.loads(status(capsys, "--json"))

    assert [line for line in page.splitlines() if line.startswith(("build:", "code:"))] == [
        "build: 0 queued, 1 blocked, 1 running, 1 for a person; in 24 h 1 completed, 1 failed",
        "code: 1 queued, the oldest for 2h, 1 blocked, 0 running, 1 for a person; in 24 h 1 completed, 1 failed",
    ]
    figures: dict[str, Any] = document["stats"]
    assert figures["kinds"]["code"]["oldest_wait_seconds"] >= 7200
    assert figures["failures"] == {"rate": 0.5, "by_class": {str(FailureClass.AGENT): 2}}
