"""Red CI on branches that should be green, as tasks: one at a time per branch, and one try per failure.

A branch that is red at a new commit is a new task, unless one is at work, its pull request is open, or the failure is
the one that an agent had its try at: that is turned down in words, until the branch was green in between. What is
green again before the task began is cancelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from pilot.clients.github import GitHub
from pilot.clients.github_checks import Checks
from pilot.clients.github_errors import GitHubError, RateLimited, Refused, Unauthorized
from pilot.clients.github_evidence import evidence
from pilot.clients.github_values import Branch
from pilot.config.schema import FailingCiSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Arrival, Refusal, Report
from pilot.domain.errors import NotFound
from pilot.domain.execution import OPEN, Execution, Status
from pilot.domain.red_checks import OURS_TO_MEND, RedCheck, mark, told
from pilot.domain.text import one_line, slug
from pilot.sources.desk import Desk, Served
from pilot.sources.github_trouble import paused

log = structlog.get_logger()
SOURCE = "failing_ci"
DUTY = f"source:{SOURCE}"
"""The duty of polling, and where is kept what was read last; the feed holds it."""
LOG_PATIENCE = 600_000
"""Milliseconds that a red branch waits for a log while GitHub does not give it."""

Memory = dict[str, Any]
"""Of one branch: `etag`, `sha` and `url`; `checks`, etags of what CI says, and `summary`; `red_at` and `green_at`;
`settled`, the commit that was dealt with."""


class FailingCi:
    """Implements `domain.outside.Source`. Nobody waits for an answer: its tasks' pull requests tell."""

    def __init__(self, desk: Desk, github: GitHub, settings: FailingCiSettings) -> None:
        self._desk = desk
        self._github = github
        self._settings = settings

    @property
    def name(self) -> str:
        """The word for `Task.source`."""
        return SOURCE

    @property
    def every(self) -> float | None:
        """Seconds between polls."""
        return self._settings.every

    async def poll(self) -> None:
        """Look at every branch once. One that can't be read keeps no other from it; its health says why."""
        before = await self._desk.duties.recall(DUTY)
        memory: dict[str, Memory] = {}
        try:
            for served in self._desk.projects():
                if served[1].github:
                    for name in self._settings.branches:
                        key = f"{served[1].github.lower()}@{name}"
                        if key not in memory:  # the first project, where several name the same repository
                            memory[key] = dict(before.get(key, {}))
                            await self._read(served, name, memory[key])
        finally:
            if memory != before:
                await self._desk.duties.remember(DUTY, self._desk.node, {**before, **memory})

    async def _read(self, served: Served, name: str, memory: Memory) -> None:
        repo, words = served[1].github or "", ""
        try:
            await self._look(served, name, memory)
        except (RateLimited, Unauthorized) as error:
            raise paused(error) from error
        except Refused as error:
            words = one_line(str(error), 500)
        except GitHubError as error:
            raise paused(error) from error
        if words != memory.get("trouble", ""):
            memory["trouble"] = words
            status = "failing" if words else "ok"
            await self._desk.health.saw(f"{SOURCE} {repo}@{name}", status, reason=words)
            log.warning("failing_ci.branch", repo=repo, branch=name, status=status, error=words)

    async def _look(self, served: Served, name: str, memory: Memory) -> None:
        repo = served[1].github or ""
        found = await self._github.branch(repo, name, etag=memory.get("etag"))
        if found is not None:
            branch, memory["etag"] = found
            if branch.sha != memory.get("sha"):
                memory |= {"sha": branch.sha, "url": branch.url, "checks": {}, "summary": ""}
                memory.pop("red_at", None)
        branch = Branch(name, memory["sha"], memory["url"])
        # it was remembered by a poll that did not come to an end, or could not decide yet
        undecided = memory["summary"] == "failed" and memory.get("settled") != branch.sha
        checks = await self._github.ci.changed(repo, branch.sha, {} if undecided else memory["checks"])
        if checks is None:
            return
        if checks.summary == "passed":
            await self._green(served, name)
            memory["green_at"] = self._desk.clock()
        memory |= {"checks": dict(checks.etags), "summary": checks.summary}
        if checks.summary != "failed":
            memory.pop("red_at", None)
        elif memory.get("settled") != branch.sha:
            memory.setdefault("red_at", self._desk.clock())
            if await self._red(served, branch, checks, memory):
                memory["settled"] = branch.sha

    async def _red(self, served: Served, branch: Branch, checks: Checks, memory: Memory) -> bool:
        """Make a task of it, or say why not. False: not yet."""
        project, own = served
        if checks.busy or any(check.summary == "pending" for check in checks.all):
            return False
        red = [check for check in checks.failed if check.conclusion in OURS_TO_MEND]
        task_id = f"CI-{slug(branch.name)}"
        if not red:
            return True
        if any(pull.task_id == task_id for pull in await self._desk.pulls.live([project.id])):
            return False  # what mends it waits to be merged
        newest = await self._newest(served, task_id)
        if newest is not None and newest.status in OPEN:
            return False
        repo, key = own.github or "", f"{SOURCE}:{own.github}:{branch.name}:{branch.sha}"
        if await self._desk.refusals.known(project.id, [key]):
            return True
        patient = self._desk.clock() - int(memory["red_at"]) < LOG_PATIENCE
        found = await evidence(self._github.ci, repo, red, patient=patient)
        request = self._request(repo, branch, found, task_id, key)
        origin = request.origin or {}
        if newest is not None and _tried(newest, origin["mark"], int(memory.get("green_at", 0))):
            why = f"{branch.name} fails as it did before execution {newest.id}, which did not mend it: {_names(found)}"
            await self._desk.refusals.refuse(
                Refusal(
                    key=key,
                    source=SOURCE,
                    project_id=project.id,
                    task_id=task_id,
                    actor="",
                    reason=one_line(why, 500),
                    url=branch.url,
                )
            )
            return True
        enqueued = await self._desk.submit(request, project, own)
        log.info("failing_ci.found", repo=repo, branch=branch.name, sha=branch.sha, execution=enqueued.id)
        return True

    def _request(self, repo: str, branch: Branch, found: tuple[RedCheck, ...], task_id: str, key: str) -> TaskRequest:
        origin: Mapping[str, Any] = {
            "source": SOURCE,
            "url": branch.url,
            "ref": f"{repo}@{branch.name}",
            "actor": "",
            "at": self._desk.clock(),
            "repo": repo,
            "branch": branch.name,
            "sha": branch.sha,
            "mark": mark(found),
        }
        prompt = (
            f"CI is red on the branch {branch.name} of {repo}, at the commit {branch.sha}. Find the cause and mend it "
            "(the code, not the check). If it is nothing that a change of the repository can mend, change nothing and "
            f"say why.\n\nThese checks are red:\n\n{told(found, self._desk.redact)}"
        )
        return TaskRequest(
            prompt=prompt,
            title=f"CI is red on {branch.name}: {_names(found)}",
            task_id=task_id,
            source=SOURCE,
            base=branch.name,
            origin=origin,
            idempotency_key=key,
        )

    async def _green(self, served: Served, name: str) -> None:
        """What has not begun yet is not needed any more."""
        newest = await self._newest(served, f"CI-{slug(name)}")
        if newest is not None and newest.source == SOURCE and newest.status in (Status.QUEUED, Status.BLOCKED):
            await self._desk.queue.cancel(newest.id, SOURCE, f"{name} is green again")

    async def _newest(self, served: Served, task_id: str) -> Execution | None:
        found, _ = await self._desk.history.executions(project_id=served[0].id, task_id=task_id, limit=1)
        return found[0] if found else None

    # It takes no webhooks, and has nobody to tell

    def verify(self, headers: Mapping[str, str], body: bytes) -> Any:
        """See `Source.verify`."""
        raise NotFound("failing_ci takes no webhooks")

    async def handle(self, arrival: Arrival) -> None:
        """See `Source.handle`."""
        raise NotFound("failing_ci takes no webhooks")

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.acknowledge`."""
        return None

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.report`."""
        return None


def _tried(newest: Execution, fingerprint: str, green_at: int) -> bool:
    """An agent had its try at this failure, and the branch was not green since."""
    before = (newest.origin or {}).get("mark")
    return newest.created_at > green_at and bool(fingerprint) and before == fingerprint


def _names(found: tuple[RedCheck, ...]) -> str:
    return ", ".join(each.label for each in found)
