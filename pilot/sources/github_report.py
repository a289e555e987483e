"""Makes an issue show how things stand: the right label, and one comment that is edited in place.

Every step looks before it writes, so that a write whose answer was lost is found and not done twice.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from pilot.clients.github import GitHub
from pilot.clients.github_errors import Forbidden, NotFound
from pilot.clients.github_values import same_label
from pilot.config.schema import GithubSettings
from pilot.domain.delivery import PullState, Report
from pilot.domain.events import EventType
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending
from pilot.domain.outside import GiveUp
from pilot.domain.task import Project
from pilot.sources.desk import Desk
from pilot.sources.github_requests import Requests
from pilot.sources.github_words import Words, marker

SENT = "report"
"""The name under which `Report.sent` has what this returned."""


class Reporter:
    """Writes to issues. Of several executions of one issue only the newest decides its labels."""

    def __init__(self, desk: Desk, github: GitHub, settings: GithubSettings, requests: Requests) -> None:
        self._desk = desk
        self._github = github
        self._requests = requests
        self._words = Words(settings.label, desk.redact)
        self._trigger = settings.label
        shown = settings.shown()
        self._running, self._done = shown.running or "", shown.done or ""
        self._failed, self._needs_human = shown.failed or "", shown.needs_human or ""
        self._look_of = {
            self._running: ("fbca04", "pilot is at it"),
            self._done: ("0e8a16", "pilot is done"),
            self._failed: ("b60205", "pilot failed or was told to stop"),
            self._needs_human: ("d93f0b", "pilot waits for a person"),
        }
        self._made: set[tuple[str, str]] = set()

    async def report(self, report: Report) -> Mapping[str, Any]:
        """The comment's id, and what it says, for the next time. Raises `GitHubError`, `GiveUp`."""
        origin = report.origin or {}
        repo, number = str(origin.get("repo", "")), origin.get("number")
        if not isinstance(number, int):
            raise GiveUp("its ticket's number is not known")
        this = report.execution
        runs, _ = await self._desk.history.executions(project_id=this.project_id, task_id=this.task_id, limit=100)
        if not _superseded(this, runs):
            await self._label(report, repo, number)
        root = _root(this, runs)
        same = [each for each in runs if _root(each, runs) == root]  # a repair goes on in the comment of what it mends
        if _superseded(this, same):
            return _sent(report) or {}
        return await self._comment(report, repo, number, root, alone=len(same) == 1)

    async def _label(self, report: Report, repo: str, number: int) -> None:
        wanted = self._wanted(report)
        issue = await self._github.issue(repo, number)
        if not issue.has(wanted):
            await self._make(repo, wanted)
            await self._github.add_labels(repo, number, [wanted])
        for label in issue.labels:
            if same_label(label, wanted):
                continue
            if any(same_label(label, ours) for ours in self._look_of):
                await self._github.remove_label(repo, number, label)
        if issue.has(self._trigger) and await self._requests.accepted(_project(report), repo, number):
            # only this request's: one that nobody has seen yet must stay
            await self._github.remove_label(repo, number, self._trigger)

    def _wanted(self, report: Report) -> str:
        execution, pull = report.execution, report.pull
        match execution.status:
            case Status.NEEDS_HUMAN:
                return self._needs_human
            case Status.FAILED | Status.CANCELLED:
                return self._failed
            case Status.COMPLETED:
                if pull is not None and pull.state is PullState.FAILED:
                    return self._failed
                return self._needs_human if report.type == EventType.PULL_GIVEN_UP else self._done
            case _:
                return self._running

    async def _make(self, repo: str, label: str) -> None:
        """With its colour, where the repository has none of that name."""
        if (repo, label) in self._made:
            return
        color, description = self._look_of[label]
        with contextlib.suppress(Forbidden):  # setting it may still be allowed, and makes a grey one
            await self._github.create_label(repo, label, color=color, description=description)
        self._made.add((repo, label))

    async def _comment(self, report: Report, repo: str, number: int, root: int, *, alone: bool) -> Mapping[str, Any]:
        body = self._words.comment(report, root, self._desk.clock())
        digest = hashlib.sha256(body.encode(errors="replace")).hexdigest()[:16]
        known = _sent(report)
        if known is not None:
            if alone and known.get("digest") == digest:
                return known
            with contextlib.suppress(NotFound):  # somebody has deleted it, or all of the issue
                await self._github.edit_comment(repo, known["comment"], body)
                return {**known, "digest": digest}
        found = await self._github.find_comment(repo, number, marker(root))
        if found is None:
            found = await self._github.comment(repo, number, body)
        elif found.body != body:
            await self._github.edit_comment(repo, found.id, body)
        return {"comment": found.id, "url": found.url, "digest": digest}


def _sent(report: Report) -> dict[str, Any] | None:
    """What the last report returned."""
    for known in (report.sent.get(SENT), report.sent):
        if isinstance(known, Mapping) and isinstance(known.get("comment"), int):
            return dict(known)
    return None


def _is_repair(run: Execution) -> bool:
    """It mends the pull request of its parent; `publish.repairs` has asked for it by such a key."""
    return run.parent is not None and (run.idempotency_key or "").startswith(("ci:", "review:"))


def _root(run: Execution, runs: Collection[Execution]) -> int:
    """The run that a person asked for: of a repair, what it mends."""
    known = {each.id: each for each in runs}
    while _is_repair(run) and run.parent in known:
        run = known[run.parent]
    return run.id


def _superseded(this: Execution, runs: Collection[Execution]) -> bool:
    """A newer one says how things stand; but of a repair that changed nothing, what it was to mend still does."""
    return any(
        each.id > this.id and not (_is_repair(each) and each.parent == this.id and each.outcome == Ending.NO_CHANGE)
        for each in runs
    )


def _project(report: Report) -> Project:
    this = report.execution
    return Project(this.project_id, "", this.project, this.project_path)
