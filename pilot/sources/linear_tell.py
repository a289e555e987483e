"""How a ticket is told what becomes of it: one comment that is edited in place, or the activities of a session.

Every comment and activity is written under an id that follows from what it is about, so that one whose answer was lost
is not there twice. Linear is not known to hide HTML comments, so ours carry no hidden marker: they are known by their
ids, and end with a line that says which execution they are about.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import structlog

from pilot.clients.linear import NotFound, Refused
from pilot.clients.linear_types import Activity, Comment, Issue, Kind, Thought
from pilot.domain.delivery import Report
from pilot.domain.execution import Execution, Status
from pilot.domain.text import one_line
from pilot.sources.desk import Desk
from pilot.sources.linear_account import Account, token, writing
from pilot.sources.linear_runs import Runs
from pilot.sources.linear_words import Words

log = structlog.get_logger()

BEAT = 600_000
"""Milliseconds that one sign of life stands for; a session without any for half an hour counts as stale."""
_BEFORE = frozenset({"triage", "backlog", "unstarted"})
"""Types of states from which an issue is moved when work on it begins; from no other, so never back."""


class Teller:
    """Writes to Linear, idempotently. `report` raises `Later` and `GiveUp`, the others `LinearError`."""

    def __init__(self, desk: Desk, account: Account, runs: Runs) -> None:
        self._desk = desk
        self._account = account
        self._runs = runs
        self.words = Words(desk.redact, account.settings.label, desk.public_url)

    async def report(self, report: Report) -> Mapping[str, Any]:
        """Make the ticket show it. `told` of what it returns: the names of what is there."""
        session = (report.origin or {}).get("session")
        told = dict.fromkeys(already_told(report))
        with writing():
            if session:
                await self._session(str(session), report, told)
            else:
                await self._comment(report, told)
            await self._issue(report, told)
        return {"told": list(told)}

    async def acknowledge(self, session: str, execution: Execution) -> None:
        """The first word into a session, at once; the outbox says the same, should this be lost."""
        thought = Thought(self.words.accepted(await self._desk.outbox.report(execution.id)))
        await self._account.client.act(token(*seed(execution), "queued"), session, thought)

    async def say(self, session: str, about: str, activity: Activity) -> None:
        """One activity, known by what it is `about`."""
        await self._account.client.act(token(session, about), session, activity)

    async def reply(self, issue: str, comment: Comment, words: str, execution: Execution) -> None:
        """A line below somebody's comment; signed, or it would itself be an answer to what is asked there."""
        body = f"{words}\n\npilot · execution {execution.id}"
        parent = comment.parent or comment.id
        await self._account.client.comment(token(comment.id, "reply"), issue, body, parent=parent)

    async def alive(self, execution: Execution) -> None:
        """A sign of life, once per `BEAT`, gone with the next activity; none before there was that much silence."""
        now, since, words = self._desk.clock(), execution.created_at, "Still waiting for its turn."
        if execution.status is Status.RUNNING and (attempts := await self._desk.history.attempts(execution.id)):
            since = attempts[-1].started_at
            words = f"Still at it, for {(now - since) // 60_000} min: {one_line(attempts[-1].phase or 'working', 60)}"
        if now - since < BEAT:
            return
        id = token(*seed(execution), "alive", now // BEAT)
        with contextlib.suppress(Refused):  # told already, and gone with what came after
            await self._account.client.act(id, str((execution.origin or {})["session"]), Thought(words), ephemeral=True)

    async def unlabel(self, issue: Issue) -> None:
        """Take the label that asked away: it was heard, and can be set again."""
        labels = [label.id for label in issue.labels if self._account.is_trigger(label.name)]
        if labels:
            await self._account.client.update_issue(issue.id, remove_labels=labels)

    async def _session(self, session: str, report: Report, told: dict[str, None]) -> None:
        client = self._account.client
        for name, activity in self.words.activities(report):
            if name not in told:
                await client.act(token(*seed(report.execution), name), session, activity)
                told[name] = None
        pull, page = report.pull, self.words.page(report.execution)
        links = [("Pull request", pull.url)] if pull is not None and pull.url is not None else []
        links += [(f"Execution {report.execution.id}", page)] if page is not None else []
        linked = f"links:{','.join(url for _, url in links)}"
        if links and linked not in told:
            await client.link_session(session, links)
            told[linked] = None

    async def _comment(self, report: Report, told: dict[str, None]) -> None:
        root = await self._runs.root(report.execution)
        if await self._superseded(report, root):
            return
        client, id, body = self._account.client, comment_id(root), self.words.comment(report)
        if "comment" not in told:
            fresh = await client.comment(id, str((report.origin or {})["issue"]), body)
            told["comment"] = None
            if fresh:
                return
        try:
            await client.edit_comment(id, body)
        except NotFound:
            log.info("linear.comment_deleted", execution=report.execution.id)  # somebody did not want it; so be it

    async def _superseded(self, report: Report, root: Execution) -> bool:
        """Whether a newer execution (a repair) writes into the same comment."""
        origin, id = report.origin or {}, report.execution.id
        newer = [run for run in await self._runs.of(origin["issue"], [report.execution.task_id]) if run.id > id]
        return any([(await self._runs.root(run)).id == root.id for run in newer])

    async def _issue(self, report: Report, told: dict[str, None]) -> None:
        """The label that asked goes, and the issue moves to the first state for what is being worked on, each once."""
        execution, origin = report.execution, report.origin or {}
        unlabel = not origin.get("session") and execution.parent is None and "unlabelled" not in told
        move = execution.attempt > 0 and "moved" not in told
        if not unlabel and not move:
            return
        try:
            issue = await self._account.client.issue(str(origin["issue"]))
            if unlabel:
                await self.unlabel(issue)
            if move and issue.state.type in _BEFORE:
                await self._begin(issue, bool(origin.get("session")))
        except (NotFound, Refused) as error:  # the issue's look only
            log.warning("linear.issue_not_changed", execution=execution.id, error=str(error))
        told |= dict.fromkeys([*(["unlabelled"] if unlabel else []), *(["moved"] if move else [])])

    async def _begin(self, issue: Issue, delegate: bool) -> None:
        client, viewer = self._account.client, await self._account.viewer()
        state = await client.started_state(issue.team.id)
        whom = viewer.actor.id if delegate and issue.delegate is None and viewer.actor.kind is Kind.APP else None
        if state is not None:
            await client.update_issue(issue.id, state=state.id, delegate=whom)


def seed(execution: Execution) -> tuple[object, ...]:
    """What distinguishes an execution from those of another store that had the same ticket."""
    return (execution.origin or {}).get("trigger"), execution.id, execution.created_at


def comment_id(execution: Execution) -> UUID:
    """The id of the one comment about an execution and its repairs."""
    return token(*seed(execution), "comment")


def already_told(report: Report) -> list[str]:
    """What earlier reports of this execution have said."""
    of_kind = report.sent.get("report")
    told = (of_kind if isinstance(of_kind, Mapping) else report.sent).get("told")
    return [str(name) for name in told] if isinstance(told, list) else []
