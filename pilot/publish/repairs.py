"""From a red pull request to another execution of its task: on the same branch, in the same session, a few times."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import structlog

from pilot.clients.github import GitHub
from pilot.clients.github_checks import Check, Checks
from pilot.clients.github_errors import NotFound
from pilot.clients.github_evidence import evidence
from pilot.clients.github_values import Review, requests_changes
from pilot.config.schema import ProjectSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Pull
from pilot.domain.errors import UsageError
from pilot.domain.execution import OPEN, Execution
from pilot.domain.outcome import Ending
from pilot.domain.outside import Pulls
from pilot.domain.ports import Clock
from pilot.domain.red_checks import OURS_TO_MEND, RedCheck, mark, told
from pilot.domain.task import Kind, Project, Task
from pilot.domain.text import one_line
from pilot.publish import reviews
from pilot.store.history import History

log = structlog.get_logger()
PATIENCE = 3_600_000
"""Milliseconds that a red commit waits for checks that are still under way."""
LOG_PATIENCE = 600_000
"""Milliseconds that it waits for a log while GitHub does not give it."""
DEBOUNCE = 60_000
"""Milliseconds after a review in which another may follow."""


class _Answer(StrEnum):
    """What became of asking for a repair."""

    MADE = "made"
    USED_UP = "used up"
    NOT_NOW = "not now"  #: another execution of the task, or another change of the branch, got in between


@dataclass(frozen=True, slots=True, kw_only=True)
class Repairs:
    """Decides whether a pull request is to be repaired, and asks for it; the store counts, and knows what was asked.

    `task` is `Intake.task`. What was decided about a commit or a review is remembered in `Pull.seen`, behind the
    request: after a crash in between it is asked for again, and the store has it already.
    """

    github: GitHub
    pulls: Pulls
    history: History
    task: Callable[[TaskRequest, Project, ProjectSettings], Task]
    redact: Callable[[str], str]
    clock: Clock

    async def after_red(
        self, pull: Pull, project: Project, own: ProjectSettings, checks: Checks, seen: dict[str, Any]
    ) -> bool:
        """Decide about a red commit once its checks are over. True: it was decided, and `seen` written so."""
        since = int(seen.get("red_at", 0))
        under_way = checks.busy or any(check.summary == "pending" for check in checks.all)
        if (under_way and self.clock() - since < PATIENCE) or await self._at_work(pull):
            return False
        red = [check for check in checks.failed if check.conclusion in OURS_TO_MEND]
        if not red or own.ci_repairs == 0:
            return await self._decided(pull, checks, seen)
        theirs = await self._red_on_base(pull, red)
        ours = [check for check in red if check.name not in theirs]
        seen["theirs"] = sorted(theirs)
        if not ours:
            names = ", ".join(one_line(check.name, 100) for check in red)
            why = f"what is red here is red on {pull.base}, too, so that this change can't mend it: {names}"
            return await self._decided(pull, checks, seen, stuck=why)
        patient = self.clock() - since < LOG_PATIENCE
        found = await evidence(self.github.ci, pull.repo, ours, patient=patient)
        fingerprint = mark(found)
        if fingerprint and fingerprint == seen.get("mark"):
            why = f"a repair did not change what fails: {', '.join(each.label for each in found)}"
            return await self._decided(pull, checks, seen, stuck=why)
        asked = await self._ask(
            pull,
            project,
            own,
            key=f"ci:{pull.id}:{checks.sha}",
            source="failing_ci",
            feedback=_after_red(pull, checks.sha, found, theirs, self.redact),
            limit=own.ci_repairs + int(seen.get("by_review", 0)),
        )
        if asked is _Answer.NOT_NOW:
            return False
        seen["mark"] = fingerprint
        if asked is _Answer.MADE:
            seen["to_mend"] = checks.sha
        return await self._decided(pull, checks, seen)

    async def after_repair(self, pull: Pull, seen: dict[str, Any]) -> bool:
        """Tell people, once, when the repair of this very commit has ended and changed nothing."""
        found, _ = await self.history.executions(
            project_id=pull.project_id, task_id=pull.task_id, everything=True, limit=1
        )
        if found and found[0].status in OPEN:
            return False
        seen.pop("to_mend")
        no_change = bool(found) and found[0].parent == pull.execution and found[0].outcome == Ending.NO_CHANGE
        why = f"execution {found[0].id} was to mend what is red, and changed nothing" if no_change else None
        return await self.pulls.saw(pull.id, seen=seen, stuck=why)

    async def after_review(self, pull: Pull, project: Project, own: ProjectSettings, seen: dict[str, Any]) -> None:
        """Ask for what reviewers who may write ask for. `review_due`: to be looked at again."""
        assert pull.number is not None  # noqa: S101  only what is open is looked at
        before, done, by_review = dict(seen), int(seen.get("reviewed", 0)), int(seen.get("by_review", 0))
        standing = requests_changes(await self.github.reviews(pull.repo, pull.number))
        new = [each for each in standing if each.id > done and await self._may(pull.repo, each)]
        seen["review_due"] = bool(new)
        if new and self.clock() - max(each.at for each in new) >= DEBOUNCE and not await self._at_work(pull):
            remarks = await self.github.remarks(pull.repo, pull.number)
            newest = max(each.id for each in new)
            asked = await self._ask(
                pull,
                project,
                own,
                key=f"review:{pull.id}:{newest}",
                source="github",
                feedback=reviews.told(new, remarks, pull.url or "", self.redact),
                limit=own.review_repairs + pull.repairs - by_review,
            )
            if asked is not _Answer.NOT_NOW:
                seen |= {"review_due": False, "reviewed": newest}
            if asked is _Answer.MADE:
                seen["by_review"] = by_review + 1
        if seen != before:
            await self.pulls.saw(pull.id, seen=seen)

    async def _decided(self, pull: Pull, checks: Checks, seen: dict[str, Any], *, stuck: str | None = None) -> bool:
        seen["decided"] = checks.sha
        red = red_labels(checks, pull.base, seen.get("theirs", ()))
        why = None if stuck is None else one_line(stuck, 500)
        await self.pulls.saw(pull.id, checks="failed", red=red, seen=seen, stuck=why, sha=checks.sha)
        return True

    async def _ask(
        self,
        pull: Pull,
        project: Project,
        own: ProjectSettings,
        *,
        key: str,
        source: str,
        feedback: str,
        limit: int,
    ) -> _Answer:
        """Enqueue it, if there is one left."""
        parent = await self.history.execution(pull.execution)
        current = await self.pulls.of(pull.execution)
        if parent is None or current is None or current.head_sha != pull.head_sha:
            return _Answer.NOT_NOW
        request = _request(parent, pull, key=key, source=source, feedback=feedback)
        try:
            task = self.task(request, project, own)
        except UsageError:  # its backend is configured no more
            task = self.task(replace(request, backend=None, model=None, session_id=None), project, own)
        asked = await self.pulls.repair(pull.id, task, limit=limit)
        if asked is None:
            log.info("pull.repairs_used_up", pull=pull.number, repo=pull.repo, limit=limit)
            return _Answer.USED_UP
        one = await self.history.execution(asked.id)
        if one is None or one.idempotency_key != key:
            return _Answer.NOT_NOW
        log.info("pull.repair_queued", pull=pull.number, repo=pull.repo, execution=asked.id, source=source)
        return _Answer.MADE

    async def _at_work(self, pull: Pull) -> bool:
        """An execution of the task is open, and will change the branch or say why not."""
        found, _ = await self.history.executions(
            statuses=OPEN, project_id=pull.project_id, task_id=pull.task_id, limit=1
        )
        return bool(found)

    async def _red_on_base(self, pull: Pull, red: Sequence[Check]) -> frozenset[str]:
        """Which of these are red on the branch that it is to be merged into, as far as can be known."""
        try:
            found = await self.github.branch(pull.repo, pull.base)
        except NotFound:
            return frozenset()
        assert found is not None  # noqa: S101  without an etag there is no 304
        there = await self.github.ci.checks(pull.repo, found[0].sha)
        return frozenset(check.name for check in there.failed) & {check.name for check in red}

    async def _may(self, repo: str, review: Review) -> bool:
        if review.author is None or review.author.bot:
            return False
        return (await self.github.permission(repo, review.author.login)).may_write


def red_labels(checks: Checks, base: str, theirs: Collection[str]) -> tuple[str, ...]:
    """What is red, by name; with its conclusion where that says more, and whether the base has the same."""
    return tuple(
        f"{one_line(check.name, 100)} (red on {base}, too)"
        if check.name in theirs
        else RedCheck(check.name, check.conclusion or "failure", check.url).label
        for check in checks.failed
    )


def _after_red(
    pull: Pull, sha: str, found: Sequence[RedCheck], theirs: frozenset[str], redact: Callable[[str], str]
) -> str:
    too = f" (Red on {pull.base}, too, and so not yours: {one_line(', '.join(sorted(theirs)), 300)}.)" if theirs else ""
    return (
        f"Your change became the pull request {pull.url}. CI ran on its commit {sha[:12]}, and these checks are red. "
        f"Find the cause and repair it (the code, not the check), by the rules you have.{too}\n\n{told(found, redact)}"
    )


def _request(parent: Execution, pull: Pull, *, key: str, source: str, feedback: str) -> TaskRequest:
    options = parent.options
    return TaskRequest(
        prompt=parent.body or parent.title,
        title=parent.title,
        task_id=pull.task_id,
        source=source,
        kind=Kind(parent.kind),
        labels=parent.labels,
        priority=max(parent.priority, 0),
        lane=parent.lane,
        payload=parent.payload,
        backend=parent.backend,
        model=parent.model,
        branch=options.get("branch"),
        base=options.get("base"),
        publish=options.get("publish"),
        timeout=options.get("timeout"),
        max_attempts=parent.max_attempts,
        idempotency_key=key,
        origin=parent.origin,
        parent=parent.id,
        session_id=parent.session_id,
        workspace=parent.workspace,
        feedback=feedback,
    )
