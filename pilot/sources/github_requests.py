"""From an issue with the label that asks to an execution, or to a refusal in words: one way, for polls and webhooks."""

from __future__ import annotations

import hashlib
from typing import Any

import structlog

from pilot.clients.github import GitHub
from pilot.clients.github_errors import NotFound
from pilot.clients.github_news import Asking
from pilot.clients.github_values import Issue, same_label
from pilot.config.schema import GithubSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Refusal
from pilot.domain.errors import UsageError
from pilot.domain.execution import OPEN, Execution, Status
from pilot.domain.task import Project
from pilot.sources.desk import Desk, Served
from pilot.sources.github_freeze import Frozen, freeze
from pilot.sources.github_people import People

log = structlog.get_logger()
SOURCE = "github"


def task_id(number: int) -> str:
    """The reference that people use."""
    return f"GH-{number}"


def trigger_key(repo: str, number: int, event: int) -> str:
    """One time that the label was set: whoever comes upon it, and however often, it is the same request."""
    return f"github:{repo}#{number}:labeled:{event}"


async def runs_of(desk: Desk, project: Project, repo: str, number: int) -> list[Execution]:
    """What came of an issue, the newest first: open ones, and the last that ended."""
    found, _ = await desk.history.executions(project_id=project.id, task_id=task_id(number), limit=20)
    mine = [each for each in found if is_about(each, repo, number)]
    return sorted(mine, key=lambda each: each.id, reverse=True)


def is_about(execution: Execution, repo: str, number: int) -> bool:
    """It came from that issue. Others may have its task id."""
    origin = execution.origin or {}
    where = str(origin.get("repo", "")).casefold()
    return origin.get("source") == SOURCE and origin.get("number") == number and where == repo.casefold()


class Requests:
    """Decides on requests. Everything may be asked again; the store knows what was decided."""

    def __init__(self, desk: Desk, github: GitHub, settings: GithubSettings, people: People) -> None:
        self._desk = desk
        self._github = github
        self._people = people
        self._label = settings.label
        shown = settings.shown()
        ours = (settings.label, shown.running, shown.done, shown.failed, shown.needs_human)
        self._ours = [label for label in ours if label]

    async def look(self, served: Served, number: int, listed: Issue | None = None) -> bool:
        """Deal with an issue as it is now (`listed`: read a moment ago). False: GitHub doesn't say yet who asked."""
        project, own = served
        repo = own.github or ""
        try:
            issue = listed or await self._github.issue(repo, number)
            if issue.is_pull or not issue.open or not issue.has(self._label):
                return True
            asking = await self._github.news.asking(repo, number, self._label)
        except NotFound:
            await self._github.repository(repo)  # raises when it is the repository that is not there
            return True
        if asking is None:
            return False
        if listed and issue.updated_at < asking.labeled.at:  # what is asked for is what it said later than that
            return await self.look(served, number)
        key = trigger_key(repo, number, asking.labeled.event)
        if not await self._desk.refusals.known(project.id, [key]):
            await self._decide(served, issue, asking, key)
        return True

    async def accepted(self, project: Project, repo: str, number: int) -> bool:
        """The newest request of the issue has become an execution, or was found to be one's."""
        asking = await self._github.news.asking(repo, number, self._label)
        if asking is None:
            return False
        key = trigger_key(repo, number, asking.labeled.event)
        return (await self._desk.refusals.known(project.id, [key])).get(key) == "accepted"

    async def _decide(self, served: Served, issue: Issue, asking: Asking, key: str) -> None:
        project, own = served
        repo, actor = own.github or "", asking.labeled.actor
        if why := await self._people.why_not(repo, actor):
            await self._refuse(project, issue, asking, key, why)
            return
        frozen = await freeze(self._github, self._people, repo, issue, asking)
        await self._make_room(project, repo, issue.number, key)
        request = TaskRequest(
            prompt=frozen.prompt,
            title=frozen.title,
            task_id=task_id(issue.number),
            source=SOURCE,
            labels=tuple(label for label in issue.labels if not any(same_label(label, mine) for mine in self._ours)),
            idempotency_key=key,
            origin=self._origin(repo, issue, asking, key, frozen),
            held=frozen.held,
        )
        try:
            enqueued = await self._desk.submit(request, project, own)
        except UsageError as error:
            await self._refuse(project, issue, asking, key, str(error))
            return
        log.info("github.accepted", ref=f"{repo}#{issue.number}", execution=enqueued.id, duplicate=enqueued.duplicate)

    async def _make_room(self, project: Project, repo: str, number: int, key: str) -> None:
        """A run that is held before it began gives way to one that is asked for anew, by somebody who may."""
        for run in await runs_of(self._desk, project, repo, number):
            # a poll and a webhook may come upon the same request at once
            if run.status is Status.NEEDS_HUMAN and not run.attempt and run.idempotency_key != key:
                await self._desk.queue.cancel(run.id, "github", "it was asked for anew")

    def _origin(self, repo: str, issue: Issue, asking: Asking, key: str, frozen: Frozen) -> dict[str, Any]:
        actor = asking.labeled.actor
        origin: dict[str, Any] = {
            "source": SOURCE,
            "url": issue.url,
            "ref": f"{repo}#{issue.number}",
            "repo": repo,
            "number": issue.number,
            "issue_id": issue.id,
            "actor": actor.login if actor else "",
            "at": asking.labeled.at,
            "trigger": key,
            "sha256": hashlib.sha256(f"{frozen.title}\n{frozen.prompt}".encode(errors="replace")).hexdigest(),
        }
        return origin | ({"edited_after": list(frozen.edited)} if frozen.edited else {})

    async def _refuse(self, project: Project, issue: Issue, asking: Asking, key: str, why: str) -> None:
        actor = asking.labeled.actor
        refusal = Refusal(
            key=key,
            source=SOURCE,
            project_id=project.id,
            task_id=task_id(issue.number),
            actor=actor.login if actor else "",
            reason=why,
            url=issue.url,
        )
        if await self._desk.refusals.refuse(refusal):
            log.warning("github.refused", key=key, actor=refusal.actor, reason=why)

    async def closed(self, project: Project, repo: str, number: int) -> None:
        """The issue is closed, or gone: nobody wants what is still to be done."""
        for run in await runs_of(self._desk, project, repo, number):
            if run.status in OPEN and not run.cancel_requested:
                await self._desk.queue.cancel(run.id, "github", f"{repo}#{number} was closed")
