"""GitHub issues as a source: whoever may sets a label, and the issue shows what becomes of it.

Polls and webhooks go one way: they say which issue to look at, and what GitHub says then counts. A webhook is quicker,
a poll is sure; an unchanged poll is answered by etag and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import structlog

from pilot.clients.github import GitHub
from pilot.clients.github_errors import GitHubError, NotFound, RateLimited, Refused, Unauthorized, Unavailable
from pilot.clients.webhooks import Delivery, GitHubWebhook
from pilot.config.schema import GithubSettings
from pilot.domain import errors
from pilot.domain.delivery import Arrival, Report
from pilot.domain.outside import Later, SourcePaused
from pilot.domain.text import one_line
from pilot.sources.desk import Desk, Served
from pilot.sources.github_commands import Commands
from pilot.sources.github_people import People
from pilot.sources.github_report import Reporter
from pilot.sources.github_requests import SOURCE, Requests
from pilot.sources.github_sweep import Memory, Sweep
from pilot.sources.github_trouble import paused, reading, writing

log = structlog.get_logger()
DUTY = f"source:{SOURCE}"
"""The duty of polling, and where is kept what was read last."""
LEASE = 30_000
"""Milliseconds for which a poll keeps it; the feed renews it."""
SETTLED = 5_000
"""Milliseconds after a change of an issue within which another may have the same time: GitHub's are whole seconds."""

Nudge = Callable[[str, int | str], object]
"""Tell that something is new about a pull request (its number) or a commit (its sha) of a repository."""


def _nobody(repo: str, what: int | str) -> None:
    """Nobody watches pull requests."""


class GitHubSource:
    """Implements `domain.outside.Source`. `nudge`: who watches pull requests."""

    def __init__(self, desk: Desk, github: GitHub, settings: GithubSettings, *, nudge: Nudge = _nobody) -> None:
        self._desk = desk
        self._github = github
        self._settings = settings
        self._nudge = nudge
        people = People(github, settings.allow, desk.clock)
        self._requests = Requests(desk, github, settings, people)
        self._commands = Commands(desk, people)
        self._sweep = Sweep(desk, github, self._requests, self._commands)
        self._reporter = Reporter(desk, github, settings, self._requests)
        secrets = settings.webhook_secret
        self._webhook = GitHubWebhook([each.get_secret_value() for each in secrets]) if secrets else None

    @property
    def name(self) -> str:
        """The word for `Task.source`."""
        return SOURCE

    @property
    def every(self) -> float | None:
        """Seconds between polls."""
        return self._settings.poll_interval

    # Looking

    async def poll(self) -> None:
        """Look at every repository once. One that can't be read keeps no other from it; its health says why."""
        node = self._desk.node
        if not await self._desk.duties.hold(DUTY, node, LEASE):
            return
        before = await self._desk.duties.recall(DUTY)
        served = self._served()
        memory: dict[str, Memory] = {repo: dict(before.get(repo, {})) for repo in served}
        try:
            troubles = [await self._read(one, memory[repo]) for repo, one in served.items()]
        finally:
            if memory != before:
                await self._desk.duties.remember(DUTY, node, memory)
        if troubles and all(isinstance(trouble, Unavailable) for trouble in troubles):
            raise SourcePaused(str(troubles[0]))

    async def _read(self, served: Served, memory: Memory) -> GitHubError | None:
        repo = served[1].github or ""
        trouble: GitHubError | None = None
        try:
            await self._issues(served, memory)
            await self._sweep.look(served, memory)
        except (RateLimited, Unauthorized) as error:
            raise paused(error) from error
        except GitHubError as error:
            trouble = error
        said, known = one_line(str(trouble or ""), 500), memory.get("trouble", "")
        if said != known:
            memory["trouble"] = said
            status = "failing" if isinstance(trouble, Refused) else "paused" if trouble else "ok"
            await self._desk.health.saw(f"{SOURCE} {repo}", status, reason=said)
            log.warning("github.repository", repo=repo, status=status, error=said)
        return trouble

    async def _issues(self, served: Served, memory: Memory) -> None:
        repo, label = served[1].github or "", self._settings.label
        same = memory.get("label") == label
        listing = await self._github.issues(repo, label, etag=memory.get("etag") if same else None)
        if listing is None:
            return
        seen: Mapping[str, int] = memory.get("seen", {}) if same else {}
        memory |= {"label": label, "etag": None, "seen": {}}
        whole = True
        for issue in listing.issues:
            number = str(issue.number)
            if seen.get(number) != issue.updated_at:
                at = self._desk.clock()
                if not await self._requests.look(served, issue.number, issue):
                    whole = False
                    continue
                if issue.updated_at + SETTLED > at:
                    continue
            memory["seen"][number] = issue.updated_at
        # only now: an etag that was kept before would hide what was not dealt with
        memory["etag"] = listing.etag if whole else None

    def _served(self) -> dict[str, Served]:
        """The project of each repository; the first, where several name the same."""
        found: dict[str, Served] = {}
        for project, own in self._desk.projects():
            if own.github:
                found.setdefault(own.github.casefold(), (project, own))
        return found

    # Webhooks

    def verify(self, headers: Mapping[str, str], body: bytes) -> Delivery:
        """See `Source.verify`."""
        if self._webhook is None:
            raise errors.NotFound("sources.github.webhook_secret is not set")
        return self._webhook.delivery(headers, body)

    def wants(self, delivery: Delivery) -> bool:
        """It is of a repository that is served here; else nobody need keep it."""
        repo = _at(delivery.payload, "repository", "full_name")
        return isinstance(repo, str) and repo.casefold() in self._served()

    async def handle(self, arrival: Arrival) -> None:
        """See `Source.handle`. What it says is only where to look; other repositories' and events are left alone."""
        payload = arrival.payload
        repo = _at(payload, "repository", "full_name")
        served = self._served().get(repo.casefold()) if isinstance(repo, str) else None
        if served is None:
            return
        try:
            with reading():
                await self._handle(served, arrival.event, arrival.action, payload)
        except NotFound:
            return  # it is gone, or not for us: polls say so, where it matters
        except Refused as error:
            raise paused(error) from error

    async def _handle(self, served: Served, event: str, action: str, payload: Mapping[str, Any]) -> None:
        repo = served[1].github or ""
        number = _at(payload, "issue", "number")
        match event, action:
            case "issues", "labeled" | "opened" | "reopened" if isinstance(number, int):
                await self._labeled(served, number, payload)
            case "issues", "closed" | "deleted" | "transferred" if isinstance(number, int):
                await self._closed(served, number)
            case "issue_comment", "created":
                await self._commented(served, payload)
            case "pull_request" | "pull_request_review", _:
                self._tell(repo, _at(payload, "pull_request", "number"))
            case "check_run" | "check_suite" | "workflow_run", _:
                self._tell(repo, _at(payload, event, "head_sha"))
            case "status", _:
                self._tell(repo, payload.get("sha"))

    async def _labeled(self, served: Served, number: int, payload: Mapping[str, Any]) -> None:
        label = _at(payload, "label", "name")
        if isinstance(label, str) and label.casefold() != self._settings.label.casefold():
            return
        if not await self._requests.look(served, number):
            raise Later("GitHub does not say yet who set the label")

    async def _closed(self, served: Served, number: int) -> None:
        project, own = served
        repo = own.github or ""
        try:
            if (await self._github.issue(repo, number)).open:
                return
        except NotFound:
            await self._github.repository(repo)  # raises when the repository itself is gone
        await self._requests.closed(project, repo, number)

    async def _commented(self, served: Served, payload: Mapping[str, Any]) -> None:
        comment_id = _at(payload, "comment", "id")
        if isinstance(comment_id, int) and _at(payload, "sender", "type") != "Bot":
            comment = await self._github.news.comment(served[1].github or "", comment_id)
            await self._commands.heed(served, comment, on_pull=_at(payload, "issue", "pull_request") is not None)

    def _tell(self, repo: str, what: Any) -> None:
        if isinstance(what, int | str) and what:
            self._nudge(repo, what)

    # Telling

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.acknowledge`."""
        return await self.report(report)

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.report`."""
        with writing():
            return await self._reporter.report(report)


def _at(payload: Mapping[str, Any], *path: str) -> Any:
    found: Any = payload
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
