"""A node of its own: `python -m tests.faults.node SETTINGS`, a JSON object with the fields of `Settings`.

The dispatcher, leases, recovery and deliveries are pilot's; only the agents are played, in this process, and the
outside is a directory. What it is told by the store it writes down, line by line, where no kill -9 can take it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from pilot.dispatch.deliveries import Deliveries
from pilot.dispatch.dispatcher import Dispatcher, Limits
from pilot.domain.agent import OutputKind
from pilot.domain.delivery import Effect, EffectKind
from pilot.domain.errors import Busy, LeaseLost, StoreError, UsageError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.policy import RULES, Rule
from pilot.domain.ports import Finish, Node, NodeKind
from pilot.domain.task import Project, Task
from pilot.store import Store, open_store
from tests.faults.plants import PLANTS

QUICK = (50, 400)
"""ms that a failed attempt waits, where pilot's own rules have a tired service or a human in mind."""
PAUSE = 0.1
"""Seconds before a store that could not do it is asked again."""
DUTY = "singleton"
AWAY = Busy.exit_code
"""How a node ends whose store is away when it starts, or leaves."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One node. `lease` in seconds; `tasks` per second; `place`: a directory that all nodes of a rig share."""

    url: str
    name: str
    place: str
    projects: int = 4
    lease: float = 3.0
    tasks: float = 0.0
    most: int = 4
    seed: int = 0
    plant: str = ""
    """The name of a bug in `plants`, for whoever wants to see it found."""


class Diary:
    """What the node was told, and what its agents do: one JSON line each, with the machine's monotonic time (ns)."""

    def __init__(self, place: Path, name: str) -> None:
        self._handle = os.open(place / f"{name}.diary", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, **facts: object) -> None:
        os.write(self._handle, (json.dumps({"what": what, "at": time.monotonic_ns(), **facts}) + "\n").encode())


class Told:
    """The queue, and a diary of what it has answered about ends."""

    def __init__(self, queue: Any, diary: Diary) -> None:
        self._queue = queue
        self._diary = diary

    def __getattr__(self, name: str) -> Any:
        return getattr(self._queue, name)

    async def finish(self, finish: Finish) -> Execution | None:
        facts = {"id": finish.execution.id, "fence": finish.execution.fence}
        try:
            following: Execution | None = await self._queue.finish(finish)
        except LeaseLost:
            self._diary.write("refuted", **facts)
            raise
        except (StoreError, Busy) as error:
            self._diary.write("unknown", error=str(error), **facts)
            raise
        self._diary.write("ended", to=finish.settlement.to, **facts)
        return following


async def insist(ask: Callable[[], Awaitable[Any]], diary: Diary) -> Any:
    """What the store answers once it can."""
    while True:
        try:
            return await ask()
        except (StoreError, Busy) as error:
            diary.write("refused", error=str(error))
            await asyncio.sleep(PAUSE)


def orders(**changed: object) -> str:
    """What a task has its agent do: `steps`, `pause` seconds for each, or `hold` in its first attempt; how it ends.

    `quiet`: it writes nothing before that.
    """
    return json.dumps({"steps": 1, "pause": 0.0, "hold": 0.0, "fails": 0, "end": "done", "quiet": False} | changed)


@dataclass
class Agents:
    """The runner."""

    store: Store
    diary: Diary

    async def __call__(self, execution: Execution) -> Outcome:
        facts = {"id": execution.id, "lane": (execution.project_id, execution.slot), "fence": execution.fence}
        journal, store = self.store.journal, self.diary
        order = json.loads(execution.body)
        pause = order["hold"] if execution.attempt == 1 and order["hold"] else order["pause"]
        await insist(lambda: journal.note(execution, phase="begin"), store)  # as pilot's own, before its agent starts
        self.diary.write("began", **facts)
        try:
            for n in range(order["steps"]):
                await insist(lambda n=n: journal.note(execution, phase=f"step {n}"), store)  # type: ignore[misc]
                await asyncio.sleep(pause)
                if order["quiet"]:
                    continue
                pieces = [(OutputKind.TEXT, f"{execution.fence}.{n}".encode())]
                await insist(lambda p=pieces: journal.write(execution, p), store)  # type: ignore[misc]
                self.diary.write("wrote", **facts)
        except LeaseLost:
            self.diary.write("late", **facts)
            raise
        finally:
            self.diary.write("stopped", **facts)
        if execution.failures < order["fails"]:
            return failed(FailureClass.AGENT, f"it broke, {'again ' * execution.failures}")
        if order["end"] == "asks" and execution.feedback is None:
            return Outcome(ending=Ending.QUESTION, question=Question("What colour?"))
        return Outcome(ending=Ending.DONE, branch=f"pilot/{execution.task_id}")


@dataclass
class Outside:
    """What handlers do to the outside: a file per key, which is how it tells what it has had already."""

    place: Path
    diary: Diary

    async def __call__(self, effect: Effect) -> Mapping[str, Any] | None:
        await asyncio.sleep(0)
        try:
            os.close(os.open(self.place / effect.key.replace("/", "_"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            self.diary.write("known", key=effect.key, lane=effect.lane, effect=effect.id)
        else:
            self.diary.write("delivered", key=effect.key, lane=effect.lane, effect=effect.id)
        return {"sent": effect.key}


@dataclass
class Producer:
    """Asks for work of every sort, each until it is acknowledged."""

    store: Store
    diary: Diary
    places: list[Project]
    settings: Settings
    dice: random.Random

    async def run(self, enough: Callable[[], bool]) -> None:
        number, parent = 0, 0
        while not enough():
            if (Path(self.settings.place) / "full").exists():  # a backlog tells nobody anything new
                await asyncio.sleep(PAUSE)
                continue
            number += 1
            key = f"{self.settings.name}.{number}"
            task = self._task(self.dice.choice(self.places), key, parent)
            try:
                answer = await insist(lambda t=task: self.store.queue.enqueue(t), self.diary)  # type: ignore[misc]
            except UsageError as error:  # what it was to follow has failed meanwhile
                self.diary.write("refused", error=str(error))
                parent = 0
                continue
            self.diary.write("queued", id=answer.id, key=key, duplicate=answer.duplicate)
            parent = answer.id
            await asyncio.sleep(self.dice.expovariate(self.settings.tasks))

    def _task(self, project: Project, key: str, parent: int) -> Task:
        dice = self.dice
        fails = dice.choice([0, 0, 0, 0, 0, 1, 2, 9])
        body = orders(
            steps=dice.choice([0, 1, 2]), pause=dice.choices([0.0, 0.005, 0.05, 2.0], [12, 12, 12, 1])[0], fails=fails,
            quiet=dice.random() < 0.5, end=dice.choice(["done"] * 9 + ["asks"]),
        )  # fmt: skip
        ticket = {"source": "x"} if dice.random() < 0.3 else None
        return Task(
            project_id=project.id, task_id=key, title=f"Do {key}", body=body, backend="agent",
            priority=dice.choice([2, 2, 2, 1, 3]), idempotency_key=key, origin=ticket,
            callback_url="https://example.org/called" if dice.random() < 0.2 else None,
            after=(parent,) if parent and fails == 0 and dice.random() < 0.1 else (),
        )  # fmt: skip


async def keep_duty(store: Store, diary: Diary, name: str, lease: int) -> None:
    """What one node of all does at a time; each turn is remembered, so that two at once would be seen."""
    while True:
        try:
            if await store.duties.hold(DUTY, name, lease):
                state = await store.duties.recall(DUTY)
                if await store.duties.remember(DUTY, name, {"turns": state.get("turns", 0) + 1}):
                    diary.write("duty", turn=state.get("turns", 0) + 1)
        except (StoreError, Busy) as error:
            diary.write("refused", error=str(error))
        await asyncio.sleep(lease / 4000)


def rules() -> Mapping[FailureClass, Rule]:
    """Pilot's own, but nobody waits for long."""
    changed = {}
    for failure, rule in RULES.items():
        changed[failure] = Rule(
            counts=rule.counts, cap=rule.cap, backoff=QUICK if rule.backoff != (0, 0) else (0, 0), resume=rule.resume,
            last=rule.last, parks=rule.parks,
        )  # fmt: skip
    return changed


async def serve(settings: Settings, store: Store, diary: Diary) -> None:
    """Everything a node does, until SIGTERM."""
    place = Path(settings.place)
    dice = random.Random(f"{settings.seed} {settings.name}")
    places = await insist(
        lambda: store.queue.register([(f"key {n}", f"p{n}", f"/p{n}", None) for n in range(settings.projects)]), diary
    )
    node = Node(settings.name, NodeKind.SERVE, f"host of {settings.name}", "boot", os.getpid(), 1, "0")
    lease = int(settings.lease * 1000)
    dispatcher = Dispatcher(
        Told(store.queue, diary), Agents(store, diary), node=node, projects=places, clock=store.database.clock,
        limits=Limits(max_running=settings.most, lease=settings.lease, drain_timeout=5.0, poll_interval=0.5),
        rules=rules(),
    )  # fmt: skip
    outside = Outside(place / "outside", diary)
    deliveries = Deliveries(
        store.outbox, node.id, dict.fromkeys((EffectKind.REPORT, EffectKind.CALLBACK), outside),
        lambda: dispatcher.projects, store.database.clock, lease=lease, poll=0.5, drain_timeout=5.0,
    )  # fmt: skip
    leave = store.queue.listen(lambda tokens: deliveries.nudge() if "outbox" in tokens else None)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    loops = [asyncio.create_task(deliveries.run()), asyncio.create_task(keep_duty(store, diary, node.id, lease))]
    if settings.tasks:
        producer = Producer(store, diary, places, settings, dice)
        loops.append(asyncio.create_task(producer.run(lambda: (place / "enough").exists())))
    main = asyncio.create_task(_until_started(dispatcher, node.id, diary))
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({waiting, main, *loops[:2]}, return_when=asyncio.FIRST_COMPLETED)
    for task in (main, *loops):
        if task.done():
            task.result()
    dispatcher.drain()
    deliveries.stop()
    await main
    await loops[0]
    for task in loops[1:]:
        task.cancel()
    await asyncio.gather(*loops[1:], return_exceptions=True)
    leave()


async def _until_started(dispatcher: Dispatcher, name: str, diary: Diary) -> None:
    running = asyncio.create_task(dispatcher.run())
    try:
        await dispatcher.started(running)
        diary.write("ready", node=name, pid=os.getpid())
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def main(settings: Settings) -> None:
    level = logging.getLevelName(os.environ.get("LEVEL", "WARNING"))
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    diary = Diary(Path(settings.place), settings.name)
    async with contextlib.AsyncExitStack() as stack:
        store = await insist(lambda: stack.enter_async_context(open_store(settings.url)), diary)
        if settings.plant:
            PLANTS[settings.plant](store)
        await serve(settings, store, diary)


def argument(settings: Settings) -> str:
    """What a process of this module is started with."""
    return json.dumps(asdict(settings))


if __name__ == "__main__":
    try:
        asyncio.run(main(Settings(**json.loads(sys.argv[1]))))
    except (StoreError, Busy):  # as a daemon's start does: whoever supervises it starts it again
        sys.exit(AWAY)
