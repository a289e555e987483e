"""A pull request of pilot's as it is once it was opened: a real store, a fake GitHub, and what reads the one back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.clients.github import GitHub
from pilot.clients.github_login import Token
from pilot.config.schema import ProjectSettings, Settings
from pilot.dispatch.intake import Intake
from pilot.domain.delivery import Pull
from pilot.domain.execution import Execution
from pilot.domain.outcome import Publication
from pilot.domain.task import Project
from pilot.publish.watch import PullWatch
from pilot.sources.desk import Desk
from pilot.store import Store, open_store
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Repo
from tests.store.bed import Bed, Clock, done

REPO = "acme/api"
SECRET = "hunter2-hunter2"
ORIGIN = {"source": "github", "url": "https://github.test/acme/api/issues/1", "ref": "acme/api#1", "actor": "mona"}


def settings(**project: Any) -> Settings:
    """One project at GitHub."""
    own = {"name": "api", "path": "/src/api", "github": REPO, "base": "main"} | project
    sources = {"github": {"token": "x"}, "failing_ci": {"branches": ["main"]}}
    return Settings.model_validate({"projects": [own], "sources": sources})


@dataclass
class Rig:
    """The parts. `own` may be exchanged, as a reload does."""

    fake: GitHubFake
    repo: Repo
    github: GitHub
    store: Store
    clock: Clock
    settings: Settings
    project: Project
    bed: Bed
    node: str = "n1"
    hurried: list[str] = field(default_factory=list)

    @property
    def own(self) -> ProjectSettings:
        return self.settings.projects[0]

    def intake(self) -> Intake:
        return Intake(self.settings, self.store.queue, lambda executor: ("claude-code", "codex"))

    def watch(self, **more: Any) -> PullWatch:
        """A watcher that knows nothing but what the store knows."""
        store = self.store
        given: dict[str, Any] = {
            "node": self.node,
            "projects": lambda: [(self.project, self.own)],
            "pulls": store.pulls,
            "duties": store.duties,
            "health": store.health,
            "history": store.history,
            "task": self.intake().task,
            "redact": lambda text: text.replace(SECRET, "[redacted]"),
            "clock": self.clock,
            "every": 30.0,
            "hurry": self.hurried.append,
        }
        return PullWatch(more.pop("github", self.github), **given | more)

    def desk(self) -> Desk:
        store, intake = self.store, self.intake()

        async def retry(id: int, by: str) -> int:
            return (await store.queue.retry(id)).id

        return Desk(
            node=self.node,
            projects=lambda: [(self.project, self.own)],
            submit=intake.submit,
            retry=retry,
            redact=lambda text: text.replace(SECRET, "[redacted]"),
            queue=store.queue,
            history=store.history,
            refusals=store.refusals,
            outbox=store.outbox,
            inbox=store.inbox,
            pulls=store.pulls,
            duties=store.duties,
            health=store.health,
            clock=self.clock,
        )

    async def finished(self, task_id: str = "GH-1", *, sha: str, **more: Any) -> Execution:
        """An execution of that task that ended with a change for a pull request, which is owed now."""
        open_ones, _ = await self.store.history.executions(project_id=self.project.id, task_id=task_id, limit=1)
        if not [one for one in open_ones if not one.status.final]:
            given = {"title": "Mend the crash", "body": "It crashes.", "backend": "claude-code", "origin": ORIGIN}
            await self.bed.put(self.project, task_id, **given | more)
        execution = await self.bed.take(self.project, self.node)
        publication = Publication(repo=REPO, base="main")
        facts: dict[str, Any] = {"head_sha": sha, "session_id": "session-1", "publication": publication}
        await self.store.queue.finish(done(execution, **facts))
        return await self.store.queue.get(execution.id)

    async def pushed(self, execution: Execution) -> Pull:
        """What the publisher does: the branch is there, and its pull request open."""
        pull = await self.pull(execution.id)
        assert pull.state in ("owed", "open")
        self.fake.branch(self.repo, pull.branch, pull.head_sha)
        await self.store.pulls.pushed(pull.id, pull.head_sha)
        number = pull.number or self.fake.pull(self.repo, pull.branch, "Mend the crash", actor="robot")
        url = f"https://github.test/{REPO}/pull/{number}"
        await self.store.pulls.opened(pull.id, number=number, url=url, head_sha=pull.head_sha)
        return await self.pull(execution.id)

    async def opened(self, sha: str = "a" * 40, **more: Any) -> Pull:
        """An open pull request of task GH-1."""
        return await self.pushed(await self.finished(sha=sha, **more))

    async def pull(self, execution: int) -> Pull:
        found = await self.store.pulls.of(execution)
        assert found is not None
        return found

    async def events(self, *types: str) -> list[Any]:
        return await self.store.history.events(after=0, types=types)

    async def executions(self, task_id: str = "GH-1") -> list[Execution]:
        """All of the task, oldest first."""
        found, _ = await self.store.history.executions(
            project_id=self.project.id, task_id=task_id, everything=True, limit=50
        )
        return sorted(found, key=lambda one: one.id)

    def sent(self, since: int = 0) -> list[str]:
        """Paths that were asked for and cost something."""
        return [request.path for request in self.fake.requests[since:] if request.code != 304]


@asynccontextmanager
async def rig(tmp_path: Path, *, waits: Sequence[float] = (0,), **project: Any) -> AsyncIterator[Rig]:
    """Everything, with the clock standing still."""
    clock = Clock()
    with GitHubFake(clock=lambda: clock.now / 1000) as fake:
        repo = fake.repo(REPO, mona="admin", robot="write", tess="triage")
        async with (
            open_store(f"sqlite:///{tmp_path / 'pilot.db'}", clock=clock) as store,
            GitHub(Token(fake.token("robot")), base_url=fake.url, clock=clock, spacing=0, waits=waits) as github,
        ):
            bed = Bed(store, clock)
            own = settings(**project)
            await bed.node()
            (row,) = await store.queue.register([("host:/src/api/.git", "api", "/src/api", 1)])
            yield Rig(fake, repo, github, store, clock, own, row, bed)
