"""A Linear source on a stage: the fake Linear, a real client, a real store, effects delivered as in `pilot serve`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pilot.clients.linear import Client
from pilot.config.schema import LinearSettings, ProjectLinearSettings, ProjectSettings
from pilot.dispatch.reports import Reports
from pilot.domain.delivery import Arrival, EffectKind
from pilot.domain.execution import Execution
from pilot.domain.outside import GiveUp, Later, SourcePaused
from pilot.domain.ports import Finish, Node, NodeKind
from pilot.sources.desk import Desk, Served
from pilot.sources.linear import DUTY, LinearSource
from pilot.store import Store, open_store, wall_clock
from tests.adapters.desks import desk, executions, served
from tests.e2e.linear_fake import APP, PERSONAL, LinearFake
from tests.e2e.linear_hooks import Delivery
from tests.e2e.linear_world import Row

HOUR = 3_600_000
MINUTE = 60_000


class Clock:
    """The wall's, for the fake's is; what is `ahead` (ms) only a test adds."""

    def __init__(self) -> None:
        self.ahead = 0

    def __call__(self) -> int:
        return wall_clock() + self.ahead


@dataclass
class Stage:
    """`source` is made anew by `restart`, over the same store. `troubles`: why effects were put off or given up."""

    fake: LinearFake
    store: Store
    clock: Clock
    desk: Desk
    settings: LinearSettings
    client: Client
    projects: list[Served]
    source: LinearSource
    troubles: list[Exception] = field(default_factory=list)

    def restart(self) -> None:
        """A new process, as far as the source can tell."""
        self.source = LinearSource(self.desk, self.client, self.settings)

    async def arrive(self, delivery: Delivery, *, tries: int = 0) -> None:
        """One webhook: verified, stored, handled."""
        verified = self.source.verify({name.lower(): value for name, value in delivery.headers.items()}, delivery.body)
        if not self.source.wants(verified):
            return
        await self.source.handle(
            Arrival(
                id=1,
                source="linear",
                event=verified.event,
                action=verified.action,
                payload=verified.payload,
                received_at=self.clock(),
                tries=tries,
            )
        )

    def waiting(self) -> list[Delivery]:
        """The webhooks that were sent since the last call."""
        found = list(self.fake.hooks.deliveries)
        self.fake.hooks.deliveries.clear()
        return found

    async def deliver(self) -> None:
        """Everything that the webhook has sent so far arrives, in order; what pauses the source comes again."""
        for delivery in self.waiting():
            for tries in range(10):
                try:
                    await self.arrive(delivery, tries=tries)
                    break
                except SourcePaused as error:
                    self.troubles.append(error)
            else:
                raise self.troubles[-1]

    async def lose(self) -> None:
        """Nothing of it arrives."""
        self.fake.hooks.deliveries.clear()

    async def sweep(self) -> None:
        """One poll, by whoever holds the duty."""
        assert await self.desk.duties.hold(DUTY, self.desk.node, MINUTE)
        await self.source.poll()

    async def settle(self, rounds: int = 30) -> None:
        """Deliver reports until nothing is owed; what is put off is tried again at once."""
        reports = Reports(self.store.outbox, lambda: {"linear": self.source}, self.clock)
        for _ in range(rounds):
            effects = await self.store.outbox.take("n1", [EffectKind.REPORT], lease=HOUR)
            if not effects:
                return
            for effect in effects:
                try:
                    result = await reports(effect)
                except Later as error:
                    self.troubles.append(error)
                    await self.store.outbox.postpone(effect, "n1", self.clock(), str(error))
                except GiveUp as error:
                    self.troubles.append(error)
                    await self.store.outbox.give_up(effect, "n1", str(error))
                else:
                    await self.store.outbox.delivered(effect, "n1", result)
        raise AssertionError(f"it never came to an end: {self.troubles}")

    async def publish(self, number: int = 7) -> None:
        """The pull request that is owed is opened."""
        for effect in await self.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR):
            pull = await self.store.pulls.of(effect.execution or 0)
            assert pull is not None
            url = f"https://github.com/acme/api/pull/{number}"
            assert await self.store.pulls.opened(pull.id, number=number, url=url, head_sha=pull.head_sha)
            await self.store.outbox.delivered(effect, "n1")
        await self.settle()

    async def take(self, number: int = 0) -> Execution:
        """The project's next execution, claimed."""
        (execution,) = await self.store.queue.claim("n1", projects=(self.projects[number][0].id,), lease=HOUR)
        return execution

    async def finish(self, finish: Finish) -> None:
        """An attempt's end, told."""
        await self.store.queue.finish(finish)
        await self.settle()

    async def executions(self) -> list[Mapping[str, Any]]:
        """All there are, oldest first."""
        return await executions(self.store)

    async def one(self) -> Execution:
        """The only one there is."""
        (row,) = await self.executions()
        return await self.store.queue.get(row["id"])

    async def refusals(self) -> list[tuple[str, str]]:
        """Who was refused, and why."""
        rows = await self.store.database.read("SELECT actor, reason FROM refusals ORDER BY at, key")
        return [(actor, reason) for actor, reason in rows]

    def said(self, session: Row) -> list[tuple[str, str]]:
        """What a session was told: kind and words."""
        mine = [each["content"] for each in session["activities"] if each["user"] is self.fake.world.app]
        return [(each["type"], each.get("body") or f"{each['action']} {each['parameter']}") for each in mine]

    def comments(self, issue: Row) -> list[str]:
        """What pilot wrote below an issue."""
        me = self.fake.keys[self.key]
        return [row["body"] for row in self.fake.world.of("Comment") if row["issue"] is issue and row["user"] is me]

    @property
    def key(self) -> str:
        """What the client authorizes with."""
        key = self.settings.api_key.get_secret_value()
        return key if key.startswith("lin_api_") else f"Bearer {key}"


@asynccontextmanager
async def stage(
    place: Path,
    *,
    key: str = APP,
    linear: tuple[tuple[str, str | None], ...] = (("ENG", None),),
    url: str | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Ann is a member, and the owner of the personal key; `linear`: team and Linear project of each of ours."""
    clock = Clock()
    with LinearFake() as fake:
        own = {"api_key": SecretStr(key), "base_url": fake.url, "webhook_secret": (SecretStr(fake.hooks.secret),)}
        configured = LinearSettings.model_validate(own | settings)
        async with (
            open_store(f"sqlite:///{place}/pilot.db", clock=clock) as store,
            Client(key, url=fake.url, clock=clock) as client,
        ):
            settled = [
                ProjectSettings(
                    name=f"p{n}", path=place / f"p{n}", linear=ProjectLinearSettings(team=team, project=project)
                )
                for n, (team, project) in enumerate(linear)
            ]
            projects = await served(store, *settled)
            await store.queue.start_node(Node("n1", NodeKind.SERVE, "host", "boot", 1, 1, "0"), HOUR)
            at = desk(store, projects, redact=lambda text: text.replace("hunter2", "[redacted]"), public_url=url)
            here = Stage(
                fake, store, clock, at, configured, client, projects, LinearSource(at, client, configured)
            )  # fmt: skip
            yield here


__all__ = ["APP", "PERSONAL", "Stage", "stage"]
