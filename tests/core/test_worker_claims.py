"""What a worker elsewhere does with its leases, against a server that is there, away, or of another opinion."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pilot.app.worker_choice import _id_of
from pilot.app.worker_claims import PIECE, REQUEST, Claims, Held, requests
from pilot.app.worker_place import place_of
from pilot.client.documents import execution_of
from pilot.dispatch.run import Run, Stop
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, LeaseLost
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage, failed
from pilot.domain.policy import settle
from pilot.domain.ports import Finish
from pilot.domain.work import Artifact, Beaten, Claim, Next, Progress, Settled, Wanted, WorkQueue
from tests.adapters.test_client import document

LEASE = 2000
_ANY, _NOTHING = Wanted(), Progress()
DIFF = Artifact("x.diff", b"diff")


@dataclass(slots=True)
class Server:
    """Says yes, or raises `trouble`; keeps what it was told, with the loop's time."""

    trouble: Exception | None = None
    cancel: bool = False
    told: list[tuple[str, float, Any]] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    def hear(self, verb: str, what: Any = None) -> None:
        self.told.append((verb, asyncio.get_running_loop().time(), what))
        if self.trouble is not None:
            raise self.trouble

    def said(self, verb: str) -> list[Any]:
        return [what for name, _, what in self.told if name == verb]

    async def claim(
        self,
        worker: str,
        *,
        max: int = 1,
        wanted: Wanted = _ANY,
        lease: int = 0,
        wait: float = 0,
    ) -> list[Claim]:
        raise NotImplementedError

    async def heartbeat(
        self,
        id: int,
        worker: str,
        fence: int,
        *,
        lease: int = 0,
        progress: Progress = _NOTHING,
    ) -> Beaten:
        self.hear("heartbeat", progress)
        return Beaten(0, self.cancel)

    async def output(self, id: int, worker: str, fence: int, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        self.hear("output", list(pieces))

    async def complete(
        self,
        id: int,
        worker: str,
        fence: int,
        outcome: Outcome,
        artifacts: Sequence[Artifact] = (),
        *,
        next: Next | None = None,
    ) -> Settled:
        self.hear("complete", list(artifacts))
        self.outcomes.append(outcome)
        return Settled(EXECUTION)

    async def fail(self, id: int, worker: str, fence: int, outcome: Outcome, *, next: Next | None = None) -> Settled:
        self.hear("fail", outcome.failure)
        return Settled(EXECUTION)

    async def release(self, id: int, worker: str, fence: int, reason: str = "") -> Settled:
        self.hear("release", reason)
        return Settled(EXECUTION)


EXECUTION: Execution = execution_of(document(id=7, fence=3))
_IS_ONE: type[WorkQueue] = Server


@dataclass(slots=True)
class Desk:
    server: Server
    claims: Claims
    held: Held
    run: Run

    async def lost(self) -> str:
        """Wait until the run was told to stop; why."""
        async with asyncio.timeout(20):
            while self.run.stopped is None:
                await asyncio.sleep(0.005)
        assert self.run.stopped is not None
        return str(self.run.stopped)


@asynccontextmanager
async def desk(server: Server, lease: int = LEASE) -> AsyncIterator[Desk]:
    """A claim under way, and its lease renewed beside it."""

    async def made(_execution: Execution, _outcome: Outcome) -> Sequence[Artifact]:
        return (DIFF,)

    runs: dict[int, Run] = {}
    claims = Claims(server, "w", lease, runs, made)
    forever: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
    run = runs[7] = Run(EXECUTION, forever)
    held = claims.take(Claim(execution=EXECUTION, fence=3, lease_until=0), asyncio.get_running_loop().time())
    renewing = asyncio.create_task(claims.renew(held))
    try:
        yield Desk(server, claims, held, run)
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})


def finish(outcome: Outcome) -> Finish:
    return Finish(execution=EXECUTION, outcome=outcome, settlement=settle(EXECUTION, outcome, now=0, jitter=0.5))


async def test_a_lease_is_renewed_at_half_of_its_time() -> None:
    async with desk(Server()) as d:
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(20):
            while len(d.server.told) < 3:
                await asyncio.sleep(0.005)
        times = [at - began for _, at, _ in d.server.told[:3]]
        assert d.run.stopped is None
    assert times[0] >= LEASE / 2000 - 0.01
    assert times[2] - times[1] >= LEASE / 2000 - 0.01


async def test_a_connection_that_is_dead_without_a_word_costs_no_lease() -> None:
    class Silent(Server):
        async def heartbeat(
            self, id: int, worker: str, fence: int, *, lease: int = 0, progress: Progress = _NOTHING
        ) -> Beaten:
            self.hear("heartbeat", progress)
            if len(self.told) == 1:
                await asyncio.Event().wait()
            return Beaten(0, False)

    async with desk(Silent(), lease=4000) as d:
        first = d.held.until
        async with asyncio.timeout(20):
            while d.held.until == first and d.run.stopped is None:
                await asyncio.sleep(0.005)
        assert d.run.stopped is None


async def test_one_that_was_waited_for_is_renewed_at_once() -> None:
    async with desk(Server(), lease=60_000) as d:
        held = d.claims.take(d.held.claim, asyncio.get_running_loop().time() - 20)
        renewing = asyncio.create_task(d.claims.renew(held))
        async with asyncio.timeout(10):  # half of its lease would be later
            while not d.server.told:
                await asyncio.sleep(0.005)
        renewing.cancel()
        await asyncio.wait({renewing})


async def test_a_run_ends_before_its_lease_when_the_server_is_away() -> None:
    async with desk(Server(Busy("away")), lease=5000) as d:
        began = asyncio.get_running_loop().time()
        assert await d.lost() == Stop.LOST
        assert asyncio.get_running_loop().time() - began < 5
        assert "could not be renewed" in d.run.reason
        assert len(d.server.told) > 1, "it tried more than once"


async def test_a_server_that_does_not_answer_is_as_bad_as_none() -> None:
    class Silent(Server):
        async def heartbeat(self, *_: Any, **__: Any) -> Beaten:
            await asyncio.sleep(60)
            raise AssertionError

    async with desk(Silent(), lease=5000) as d:
        began = asyncio.get_running_loop().time()
        assert await d.lost() == Stop.LOST
        assert asyncio.get_running_loop().time() - began < 5


async def test_who_has_lost_it_is_told_and_says_nothing_more() -> None:
    async with desk(Server(LeaseLost("it is somebody else's"))) as d:
        assert await d.lost() == Stop.LOST
        assert d.run.reason == "it is somebody else's", "at the first word, not when its time is up"
        d.server.trouble = None
        before = len(d.server.told)
        with pytest.raises(LeaseLost):
            await d.claims.note(EXECUTION, phase="late")
        with pytest.raises(LeaseLost):
            await d.claims.write(EXECUTION, [(OutputKind.STDOUT, b"late")])
        with pytest.raises(LeaseLost):
            await d.claims.finish(finish(Outcome(ending=Ending.DONE)))
        assert len(d.server.told) == before


async def test_a_wish_that_it_ends_ends_it() -> None:
    async with desk(Server(cancel=True)) as d:
        assert await d.lost() == Stop.CANCEL


async def test_words_wait_for_a_server_that_comes_back() -> None:
    async with desk(Server(Busy("restarts")), lease=60_000) as d:
        note = asyncio.create_task(d.claims.note(EXECUTION, Usage(1, 2, 0.5), phase="tests", model=None))
        write = asyncio.create_task(d.claims.write(EXECUTION, [(OutputKind.STDOUT, b"x")]))
        end = asyncio.create_task(d.claims.finish(finish(Outcome(ending=Ending.DONE))))
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in (note, write, end))
        d.server.trouble = None
        async with asyncio.timeout(20):
            await asyncio.gather(note, write, end)
    assert d.server.said("heartbeat")[-1] == Progress(facts={"phase": "tests"}, usage=Usage(1, 2, 0.5))
    assert d.server.said("output")[-1] == [(OutputKind.STDOUT, b"x")]
    assert d.server.said("complete")[-1] == [DIFF]
    assert d.claims.settled[7].execution is EXECUTION


async def test_words_are_given_up_with_the_lease() -> None:
    async with desk(Server(Busy("away"))) as d, asyncio.timeout(20):
        with pytest.raises(LeaseLost):
            await d.claims.note(EXECUTION, phase="x")
    assert d.held.lost.is_set()


@pytest.mark.parametrize(
    ("outcome", "verb"),
    [
        (Outcome(ending=Ending.NO_CHANGE), "complete"),
        (failed(FailureClass.TEST, "red"), "fail"),
        (Outcome(ending=Ending.INTERRUPTED, detail="shutdown"), "release"),
        (Outcome(ending=Ending.CANCELLED, detail="cancelled"), "release"),
    ],
)
async def test_every_end_has_its_word(outcome: Outcome, verb: str) -> None:
    async with desk(Server()) as d:
        await d.claims.finish(finish(outcome))
        assert len(d.server.said(verb)) == 1


async def test_a_merge_that_only_this_machine_has_is_not_told() -> None:
    async with desk(Server()) as d:
        green = Outcome(ending=Ending.NO_CHANGE, branch="pilot/t", head_sha="a" * 40, tree="b" * 40, delivered=True)
        await d.claims.finish(finish(green))
        assert d.server.outcomes == [Outcome(ending=Ending.NO_CHANGE, delivered=True)]


def test_output_is_cut_into_requests_that_the_server_takes() -> None:
    binary = bytes(range(256)) * 4096
    pieces = [(OutputKind.STDOUT, b"a" * 10), (OutputKind.STDOUT, binary), (OutputKind.TOOL, b"z")]

    cut = requests(pieces)

    assert b"".join(data for some in cut for _, data in some) == b"a" * 10 + binary + b"z"
    assert all(len(data) <= PIECE for some in cut for _, data in some)
    assert all(sum(len(data) * 4 // 3 for _, data in some) <= REQUEST for some in cut)
    assert requests([]) == []


def test_a_name_is_taken_once_per_machine_and_server(tmp_path: Path) -> None:
    place = place_of(tmp_path, "host:1", "w")
    with place.taken():
        with pytest.raises(Busy, match="--holder"), place.taken():
            raise AssertionError
        with place_of(tmp_path, "host:2", "w").taken(), place_of(tmp_path, "host:1", "v").taken():
            pass
    with place.taken():
        pass


def test_a_projects_number_is_its_own_and_no_stores() -> None:
    assert _id_of("host:/a") == _id_of("host:/a") != _id_of("host:/b")
    assert _id_of("host:/a") >= 1 << 48
