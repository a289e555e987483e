"""A GitHub source on a stage: the fake GitHub with one repository, a real client, a real store, a clock that obeys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from pilot.clients.github import GitHub
from pilot.clients.github_login import Token
from pilot.config.schema import GithubSettings, ProjectSettings
from pilot.domain.delivery import Arrival, Asked, Report
from pilot.domain.execution import Execution
from pilot.domain.ports import Node, NodeKind
from pilot.domain.task import Project
from pilot.sources.desk import Desk
from pilot.sources.github import GitHubSource
from pilot.store import Store, open_store
from tests.adapters.desks import Clock, desk, executions, served
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_hooks import headers
from tests.e2e.github_state import Comment, Repo

SECRET = "whsec"
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000


@dataclass
class Stage:
    """`source` is made anew by `restart`, over the same store."""

    fake: GitHubFake
    repo: Repo
    store: Store
    clock: Clock
    desk: Desk
    settings: GithubSettings
    github: GitHub
    project: Project
    source: GitHubSource
    nudged: list[tuple[str, int | str]] = field(default_factory=list)
    sent: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def restart(self) -> None:
        """A new process, as far as the source can tell."""
        self.source = GitHubSource(
            self.desk, self.github, self.settings, nudge=lambda repo, what: self.nudged.append((repo, what))
        )

    async def executions(self) -> list[Mapping[str, Any]]:
        """All there are, oldest first."""
        return await executions(self.store)

    async def one(self) -> Execution:
        """The only one there is."""
        (row,) = await self.executions()
        return await self.store.queue.get(row["id"])

    async def refusals(self) -> list[tuple[str, str]]:
        """Of whom, and why."""
        rows = await self.store.database.read("SELECT actor, reason FROM refusals ORDER BY at, key")
        return [(actor, reason) for actor, reason in rows]

    async def health(self) -> dict[str, str]:
        """Status of each source that said how it does."""
        return dict(await self.store.database.read("SELECT name, status FROM sources"))

    async def deliver(self) -> None:
        """Everything that the webhook has sent so far arrives, in order."""
        deliveries, self.fake.hooks.deliveries = self.fake.hooks.deliveries, []
        for number, delivery in enumerate(deliveries):
            sent = {name.lower(): value for name, value in headers(delivery, SECRET).items()}
            verified = self.source.verify(sent, delivery.body)
            await self.source.handle(
                Arrival(
                    id=number,
                    source="github",
                    event=verified.event,
                    action=verified.action,
                    payload=verified.payload,
                    received_at=self.clock(),
                    tries=0,
                )
            )

    async def take(self) -> Execution:
        """The project's next execution, claimed."""
        (execution,) = await self.store.queue.claim("n1", projects=(self.project.id,), lease=HOUR)
        return execution

    async def report(self, id: int, *, keep: bool = True, **more: Any) -> Report:
        """Tell of an execution as it is now; what is returned is kept for the next time, unless that gets lost."""
        execution = await self.store.queue.get(id)
        asked = await self.store.history.questions(id)
        question = None
        if asked:
            last = asked[-1]
            question = Asked(
                id=last.id,
                text=last.text,
                options=last.options,
                default=last.preset,
                asked_at=last.asked_at,
                answer=last.answer,
                answered_by=last.answered_by,
                answered_at=last.answered_at,
            )
        report = Report(
            execution=execution,
            origin=execution.origin,
            event=1,
            **{"type": "execution.queued", "question": question, "sent": self.sent.get(id, {}), **more},
        )
        result = await self.source.report(report)
        if keep and result is not None:
            self.sent[id] = json.loads(json.dumps({"report": result}))
        return report

    def labels(self, number: int = 1) -> list[str]:
        """What the issue wears."""
        return sorted(self.repo.items[number].labels)

    def said(self, number: int = 1) -> list[Comment]:
        """What pilot wrote there."""
        return [each for each in self.repo.comments.values() if each.number == number and each.author.login == "robot"]

    def writes(self) -> list[tuple[str, str]]:
        """Every request that changes something."""
        return [(each.method, each.path) for each in self.fake.requests if each.method not in ("GET",)]

    def requests(self) -> int:
        """How many there were."""
        return len(self.fake.requests)


@asynccontextmanager
async def stage(
    place: Path, *, repos: Sequence[str] = ("acme/api",), login: str = "robot", **settings: Any
) -> AsyncIterator[Stage]:
    """mona may do everything, tess may triage, robot is pilot; everybody else is a stranger."""
    clock = Clock()
    with GitHubFake(clock=lambda: clock.now / 1000) as fake:
        made = [
            fake.repo(name, mona="admin", maria="maintain", will="write", tess="triage", robot="write")
            for name in repos
        ]
        token = fake.token(login)
        own = {"token": SecretStr(token), "base_url": fake.url, "webhook_secret": (SecretStr(SECRET),)} | settings
        async with (
            open_store(f"sqlite:///{place}/pilot.db", clock=clock) as store,
            GitHub(Token(token), base_url=fake.url, clock=clock, spacing=0, waits=(0, 0)) as github,
        ):
            projects = await served(
                store, *(ProjectSettings(name=name.replace("/", "-"), path=place, github=name) for name in repos)
            )
            await store.queue.start_node(node("n1"), HOUR)
            at = desk(store, projects, redact=lambda text: text.replace("hunter2", "[redacted]"))
            configured = GithubSettings.model_validate(own)
            here = Stage(
                fake, made[0], store, clock, at, configured, github, projects[0][0], None,  # type: ignore[arg-type]
            )  # fmt: skip
            here.restart()
            yield here


def node(id: str) -> Node:
    """One that claims."""
    return Node(id=id, kind=NodeKind.SERVE, host="host", boot_id="boot", pid=1, start_ticks=1, version="0")


def digest(text: str) -> str:
    """Of a title and a prompt."""
    return hashlib.sha256(text.encode()).hexdigest()
