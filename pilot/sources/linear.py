"""Linear: issues with a label and agent sessions become executions, and hear what becomes of them.

Webhooks come first; a sweep every ten minutes finds what a lost one told of, and comes to the same keys. What a webhook
says is never believed: it names an issue, comment or session, which is then read from Linear.

* A label that somebody adds asks. Its entry in the issue's history names who and when, and is the trigger's key. Once
  accepted, the label is taken away, so that it can be set again; the execution answers by one comment, edited in place.
* A session (the issue is delegated to pilot's app, or the app mentioned) asks, too. It hears within seconds.
* Who may: members of the organization, or `allow.users`. Never apps, automations, or anybody whom Linear can't name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from pilot.clients.linear import Client, NotFound, Refused
from pilot.clients.linear_types import Kind
from pilot.clients.webhooks import Delivery, LinearWebhook
from pilot.config.schema import LinearSettings
from pilot.domain import errors
from pilot.domain.delivery import Arrival, Report
from pilot.domain.execution import Execution, Status
from pilot.domain.outside import Later
from pilot.domain.text import one_line
from pilot.sources.desk import Desk
from pilot.sources.linear_account import CLOSED, Account, reading, writing
from pilot.sources.linear_asks import Asks
from pilot.sources.linear_runs import SOURCE, Runs
from pilot.sources.linear_talk import Talk, ended
from pilot.sources.linear_tell import Teller, already_told

log = structlog.get_logger()

DUTY = f"source:{SOURCE}"
EVERY = 600.0
OVERLAP = 120_000
"""Milliseconds that a sweep looks back behind the one before: Linear's clock is not ours, nor its index at once."""
SETTLED = 60_000
"""Milliseconds after which an issue's history tells all."""
FIRST_LOOK = 86_400_000
"""How far back (ms) the very first sweep looks for sessions; labels are found however old."""
PATIENCE = 5
"""Tries after which what an issue's history does not tell is taken to have been so from its creation."""


class LinearSource:
    """Implements `domain.outside.Source`. `client` must be open; it is closed by whoever opened it."""

    name = SOURCE
    every: float | None = EVERY

    def __init__(self, desk: Desk, client: Client, settings: LinearSettings) -> None:
        self._desk = desk
        self._account = Account(client, settings)
        self._runs = Runs(desk)
        self._teller = Teller(desk, self._account, self._runs)
        self._intake = Asks(desk, self._account, self._teller)
        self._talk = Talk(desk, self._account, self._intake, self._teller, self._runs)
        secrets = [secret.get_secret_value() for secret in settings.webhook_secret or ()]
        self._webhook = LinearWebhook(secrets, clock=desk.clock) if secrets else None

    def verify(self, headers: Mapping[str, str], body: bytes) -> Delivery:
        """See `Source.verify`."""
        if self._webhook is None:
            raise errors.NotFound("sources.linear.webhook_secret is not set: webhooks of Linear are not taken")
        return self._webhook.delivery(headers, body)

    def wants(self, delivery: Delivery) -> bool:
        """Whether anything could follow from it: Linear tells of every edit of every issue."""
        match delivery.event:
            case "Issue":
                return self._asks(delivery.action, delivery.payload) or _closes(delivery.action, delivery.payload)
            case "AgentSessionEvent":
                return True
            case "Comment":
                return delivery.action == "create"
        return False

    async def handle(self, arrival: Arrival) -> None:
        """See `Source.handle`."""
        payload = arrival.payload
        with reading():
            home = (await self._account.viewer()).organization
            if payload.get("organizationId") != home:
                log.warning("linear.foreign_webhook", organization=one_line(str(payload.get("organizationId")), 60))
                return
            match arrival.event:
                case "Issue":
                    await self._issue(arrival)
                case "AgentSessionEvent" if id := _text(payload, "agentSession", "id"):
                    await self._talk.session(id)
                case "Comment" if arrival.action == "create" and (id := _text(payload, "data", "issueId")):
                    await self._talk.comments(id)

    async def poll(self) -> None:
        """See `Source.poll`. Gives signs of life to waiting sessions as well."""
        began = self._desk.clock()
        state = await self._desk.duties.recall(DUTY)
        since = int(state.get("since", 0))
        with reading():
            viewer = await self._account.viewer()
            whole = await self._sweep_labels(since)
            if viewer.actor.kind is Kind.APP:
                whole &= await self._sweep_sessions(since or began - FIRST_LOOK)
            for run in await self._runs.open():
                await self._look_after(run)
        if whole:
            await self._desk.duties.remember(DUTY, self._desk.node, {**state, "since": began - OVERLAP})

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.acknowledge`."""
        return await self.report(report)

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """See `Source.report`."""
        sent = dict(await self._teller.report(report))
        session = (report.origin or {}).get("session")
        if session and report.execution.status.final and "followed" not in already_told(report):
            with writing():  # what was said meanwhile
                await self._talk.session(str(session))
            sent["told"] = [*sent["told"], "followed"]
        return sent

    async def _issue(self, arrival: Arrival) -> None:
        id = _text(arrival.payload, "data", "id")
        if id is None:
            return
        if self._asks(arrival.action, arrival.payload):
            await self._intake.labelled(id, sure=arrival.action == "create" or arrival.tries >= PATIENCE)
        if _closes(arrival.action, arrival.payload) and await self._is_open(id, arrival.payload["data"]):
            await self._close(id, arrival)

    def _asks(self, action: str, payload: Mapping[str, Any]) -> bool:
        """Whether it tells of the label that asks, newly there."""
        data, before = payload.get("data"), payload.get("updatedFrom")
        had = before.get("labelIds") if isinstance(before, Mapping) else None
        if not isinstance(data, Mapping) or not (action == "create" or (action == "update" and had is not None)):
            return False
        known = had if isinstance(had, list) else []
        return any(
            isinstance(label, Mapping)
            and self._account.is_trigger(str(label.get("name", "")))
            and label.get("id") not in known
            for label in _list(data, "labels")
        )

    async def _is_open(self, id: str, data: Mapping[str, Any]) -> bool:
        names = [name for name in (data.get("identifier"), *_list(data, "previousIdentifiers")) if name]
        return any(not run.status.final for run in await self._runs.of(id, map(str, names)))

    async def _close(self, id: str, arrival: Arrival) -> None:
        """What the webhook says is looked up: it may be a copy of an old one."""
        data = arrival.payload["data"]
        who = one_line(_text(arrival.payload, "actor", "name") or "somebody", 80)
        try:
            issue = await self._account.client.issue(id)
        except NotFound:
            await self._talk.closed(id, [str(data.get("identifier"))], "deleted", who)
            return
        if how := ended(issue):
            await self._talk.closed(id, (issue.identifier, *issue.previous), how, who)

    async def _sweep_labels(self, since: int) -> bool:
        """Whether everything could be decided."""
        whole, now = True, self._desk.clock()
        for issue in await self._account.client.labelled_issues(self._account.settings.label, since):
            if issue.state.type in CLOSED:
                continue
            try:
                await self._intake.labelled(issue.id, sure=issue.updated_at < now - SETTLED)
            except Later:
                whole = False
            except (NotFound, Refused) as error:
                log.warning("linear.issue_not_read", issue=issue.identifier, error=str(error))
        return whole

    async def _sweep_sessions(self, since: int) -> bool:
        whole = True
        for session in await self._account.client.sessions(since):
            try:
                await self._talk.session(session.id)
            except Later:
                whole = False
            except (NotFound, Refused) as error:
                log.warning("linear.session_not_read", session=session.id, error=str(error))
        return whole

    async def _look_after(self, run: Execution) -> None:
        try:
            await self._talk.look_after(run)
            waits = run.status in (Status.QUEUED, Status.BLOCKED, Status.RUNNING)
            if waits and (run.origin or {}).get("session"):
                await self._teller.alive(run)
        except Later as error:
            log.info("linear.left_to_another", execution=run.id, reason=str(error))
        except (NotFound, Refused) as error:
            log.warning("linear.issue_not_read", execution=run.id, error=str(error))


def _closes(action: str, payload: Mapping[str, Any]) -> bool:
    """Whether it tells of an issue that nobody waits for any more."""
    data = payload.get("data")
    trashed = isinstance(data, Mapping) and data.get("trashed") is True
    return action == "remove" or trashed or _text(data, "state", "type") in CLOSED


def _text(value: Any, *path: str) -> str | None:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else None


def _list(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    return found if isinstance(found, list) else []
