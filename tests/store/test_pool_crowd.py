"""Many workers at once, in several processes, some of them killed; and random ones against a small model."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, failed
from pilot.domain.task import Project
from pilot.domain.work import Claim, Settled, Wanted
from pilot.store import open_store
from tests.store.audit import audit
from tests.store.bed import SECOND, Bed, task

ROOT = Path(__file__).parent.parent.parent
PROJECTS, EACH = 20, 25


def started(url: str, name: str, count: int, *mode: str) -> subprocess.Popen[bytes]:
    """A process of workers."""
    arguments = [sys.executable, "-m", "tests.store.pool_worker", url, name, str(count), *mode]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_twenty_claimers_in_several_processes_and_one_that_is_killed(url: str) -> None:
    async with open_store(url) as store:
        places = await store.queue.register([(f"k{n}", f"p{n}", f"/p{n}", 1) for n in range(PROJECTS)])
        await asyncio.gather(*(store.queue.enqueue(task(place, f"T-{n}")) for n in range(EACH) for place in places))
        doomed = started(url, "doomed", 1, "hold")
        assert doomed.stdout is not None
        held = [int(id) for id in (await asyncio.to_thread(doomed.stdout.readline)).split()[1:]]
        assert len(held) == 4
        doomed.kill()
        doomed.communicate()

        processes = [started(url, f"process-{n}", 10) for n in range(2)]
        said = [await asyncio.to_thread(process.communicate, timeout=120) for process in processes]

        assert [(process.returncode, err) for process, (_, err) in zip(processes, said, strict=True)] == [(0, b"")] * 2
        done = [int(line.split()[1]) for out, _ in said for line in out.splitlines() if line.startswith(b"done")]
        assert sorted(done) == list(range(1, PROJECTS * EACH + 1)), "each of them once"
        assert (await store.work.counts())[Status.COMPLETED] == PROJECTS * EACH
        assert await audit(store.database) == []
        rows = await store.database.read(
            "SELECT project_id, execution_id, type FROM events WHERE type IN "
            "('execution.started', 'execution.completed', 'execution.lost') ORDER BY id"
        )
        lost = [id for _, id, type in rows if type == "execution.lost"]
        assert set(held) <= set(lost)
        by_project: dict[int, list[tuple[int, str]]] = defaultdict(list)
        for project, id, type in rows:
            by_project[project].append((id, type))
        for events in by_project.values():
            assert [type == "execution.started" for _, type in events] == [True, False] * (len(events) // 2)
            completed = [id for id, type in events if type == "execution.completed"]
            assert completed == sorted(completed), "first in, first out"


class Model:
    """What must come of a few workers' doings, in plain words: rows by id, and who holds which."""

    def __init__(self, max_running: dict[int, int]) -> None:
        self.max_running = max_running
        self.rows: dict[int, dict[str, Any]] = {}

    def put(self, id: int, project: int, lane: int) -> None:
        self.rows[id] = {"project": project, "lane": lane, "status": Status.QUEUED, "losses": 0, "failures": 0}

    def expire(self, now: int) -> None:
        for row in self.rows.values():
            if row["status"] is Status.RUNNING and row["until"] < now:
                row["losses"] += 1
                row["status"] = Status.FAILED if row["losses"] >= 3 else Status.QUEUED
                row["at"] = now

    def given(self, most: int, lanes: tuple[int, ...], now: int) -> list[int]:
        """What one claim gets: of each project with a free slot its first, in the order of ids."""
        found: list[int] = []
        while len(found) < most:
            free = Counter(self.max_running)
            for id, row in self.rows.items():
                if row["status"] is Status.RUNNING or id in found:
                    free[row["project"]] -= 1
            heads: dict[int, int] = {}
            for id, row in sorted(self.rows.items()):
                able = row["status"] is Status.QUEUED and row.get("at", 0) <= now and id not in found
                if able and free[row["project"]] > 0 and (not lanes or row["lane"] in lanes):
                    heads.setdefault(row["project"], id)
            if not heads:
                break
            found += sorted(heads.values())[: most - len(found)]
        return found


@pytest.mark.parametrize("seed", range(10))
async def test_random_workers_do_as_a_small_model_says(store: Bed, seed: int) -> None:
    dice = random.Random(seed)
    places = [await store.project(f"p{n}", max_running=n // 2 + 1) for n in range(4)]
    model = Model({place.id: place.max_running for place in places})
    known: list[tuple[str, Claim]] = []
    for n in range(60):
        step = dice.choices(["put", "claim", "beat", "complete", "fail", "release", "time"], [5, 8, 2, 5, 2, 2, 2])[0]
        await STEPS[step](store, model, places, known, dice)
        if n % 6 == 0:
            await store.check()
    for id, row in model.rows.items():
        assert (await store.queue.get(id)).status is row["status"]


async def _put(store: Bed, model: Model, places: list[Project], _known: Any, dice: random.Random) -> None:
    place, lane = dice.choice(places), dice.choice([1, 2, 12])
    model.put(await store.put(place, lane=lane, max_attempts=3), place.id, lane)


async def _claim(store: Bed, model: Model, _places: Any, known: list[tuple[str, Claim]], dice: random.Random) -> None:
    worker, lanes, most = dice.choice("abc"), dice.choice([(), (1,), (2, 12)]), dice.choice([1, 2, 9])
    lease = dice.choice([5, 30]) * SECOND
    model.expire(store.clock.now)
    expected = model.given(most, lanes, store.clock.now)
    claims = await store.store.work.claim(worker, max=most, wanted=Wanted(lanes=lanes), lease=lease)
    assert [claim.execution.id for claim in claims] == expected
    for claim in claims:
        model.rows[claim.execution.id] |= {
            "status": Status.RUNNING, "fence": claim.fence, "until": store.clock.now + lease, "worker": worker
        }  # fmt: skip
        known.append((worker, claim))


def _settles(name: str, to: Callable[[dict[str, Any]], Status]) -> Callable[..., Any]:
    async def step(store: Bed, model: Model, _places: Any, known: list[tuple[str, Claim]], dice: random.Random) -> None:
        if not known:
            return
        worker, claim = dice.choice(known)
        row, id = model.rows[claim.execution.id], claim.execution.id
        stands = row["status"] is Status.RUNNING and row["fence"] == claim.fence
        said = row.setdefault("said", {}).get(claim.fence)
        outcome = (
            failed(FailureClass.AGENT, "broke" + "n" * claim.fence) if name == "fail" else Outcome(ending=Ending.DONE)
        )
        arguments = () if name == "release" else (outcome,)
        before = None if stands else await store.dump()
        settled: Settled | None = None
        try:
            settled = await getattr(store.store.work, name)(id, worker, claim.fence, *arguments)
        except LeaseLost:
            assert not stands
            assert said != name
        else:
            assert settled.duplicate is not stands
            assert stands or said == name
        if settled is None or not stands:
            assert await store.dump() == before
            return
        row["said"][claim.fence] = name
        row["losses"] = 0
        row["failures"] += name == "fail"
        row |= {"status": to(row), "at": settled.execution.available_at}

    return step


async def _beat(store: Bed, model: Model, _places: Any, known: list[tuple[str, Claim]], dice: random.Random) -> None:
    if not known:
        return
    worker, claim = dice.choice(known)
    row = model.rows[claim.execution.id]
    try:
        await store.store.work.heartbeat(claim.execution.id, worker, claim.fence, lease=10 * SECOND)
    except LeaseLost:
        assert (row["status"], row["fence"]) != (Status.RUNNING, claim.fence)
    else:
        assert (row["status"], row["fence"]) == (Status.RUNNING, claim.fence)
        row["until"] = store.clock.now + 10 * SECOND


async def _time(store: Bed, _model: Any, _places: Any, _known: Any, dice: random.Random) -> None:
    store.clock.tick(dice.choice([1, 6, 40]) * SECOND)


STEPS: dict[str, Callable[..., Any]] = {
    "put": _put,
    "claim": _claim,
    "beat": _beat,
    "complete": _settles("complete", lambda _: Status.COMPLETED),
    "fail": _settles("fail", lambda row: Status.FAILED if row["failures"] >= 3 else Status.QUEUED),
    "release": _settles("release", lambda _: Status.QUEUED),
    "time": _time,
}
