"""Webhooks: stored before they are acknowledged, each once, and kept until they are dealt with."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pilot.domain.delivery import Arrival
from pilot.domain.text import clean
from pilot.store.database import Database, Notify, Rows, Statement, Step
from pilot.store.records import short

REMEMBERED = 7 * 24 * 60 * 60 * 1000
"""ms for which one that was dealt with is known again."""
_SWEPT = 200  # that are forgotten at a time


@dataclass(frozen=True, slots=True)
class _Webhook:
    source: str
    delivery: str
    digest: str
    event: str
    action: str
    payload: str


@dataclass(frozen=True, slots=True)
class _Taking:
    node: str
    source: str
    lease: int
    max: int


@dataclass(frozen=True, slots=True)
class _End:
    """What a node says of an arrival that it took. `at` None: it is dealt with, else when to try again (UTC ms)."""

    arrival: Arrival
    node: str
    at: int | None = None
    error: str | None = None


class SqlInbox:
    """Implements `outside.Inbox`. Those that come at the same time share one commit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def store(self, source: str, delivery: str, digest: str, event: str, action: str, payload: str) -> bool:
        """See `Inbox.store`. One without a delivery id is known by its digest alone."""
        words = [clean(word) for word in (source, delivery or digest, digest, event, action, payload)]
        return await self._database.write(self._stores, _Webhook(*words))

    async def take(self, node: str, source: str, *, lease: int, max: int = 16) -> list[Arrival]:
        """See `Inbox.take`. To find nothing costs no commit."""
        rows = await self._database.read(
            "SELECT 1 FROM inbox WHERE source = :source AND handled_at IS NULL AND available_at <= :now "
            "AND claimed_until <= :now LIMIT 1",
            {"source": source, "now": self._database.clock()},
        )
        return await self._database.write(self._takes, _Taking(node, source, lease, max)) if rows else []

    async def handled(self, arrival: Arrival, node: str) -> None:
        """See `Inbox.handled`. Its payload is forgotten; who has lost its lease writes nothing."""
        await self._database.write(self._ends, _End(arrival, node))

    async def postpone(self, arrival: Arrival, node: str, until: int, error: str) -> None:
        """See `Inbox.postpone`. Those behind it go on."""
        await self._database.write(self._ends, _End(arrival, node, until, short(error)))

    def _stores(self, webhooks: Sequence[_Webhook]) -> Generator[Step, Rows, list[bool]]:
        now = self._database.clock()
        answers = []
        for one in webhooks:  # one by one: a payload may be 5 MiB
            rows = yield Statement(
                "INSERT INTO inbox (source, delivery, digest, event, action, payload, received_at, available_at) "
                "VALUES (:source, :delivery, :digest, :event, :action, :payload, :now, :now) "
                "ON CONFLICT DO NOTHING RETURNING id",
                {
                    "source": one.source, "delivery": one.delivery, "digest": one.digest, "event": one.event,
                    "action": one.action, "payload": one.payload, "now": now,
                },
            )  # fmt: skip
            answers.append(bool(rows))
        yield Statement(
            f"DELETE FROM inbox WHERE id IN (SELECT id FROM inbox WHERE handled_at < :old LIMIT {_SWEPT})",
            {"old": now - REMEMBERED},
        )
        yield Notify(("inbox",))
        return answers

    def _takes(self, takings: Sequence[_Taking]) -> Generator[Step, Rows, list[list[Arrival]]]:
        now = self._database.clock()
        answers = []
        for taking in takings:
            rows = yield Statement(
                "UPDATE inbox SET claimed_by = :node, claimed_until = :now + :lease, claims = claims + 1 WHERE id IN "
                "(SELECT i.id FROM inbox i WHERE i.source = :source AND i.handled_at IS NULL "
                " AND i.available_at <= :now AND i.claimed_until <= :now ORDER BY i.id LIMIT :max) "
                "RETURNING id, source, event, action, payload, received_at, tries, claims",
                {
                    "node": taking.node, "lease": taking.lease, "source": taking.source, "now": now,
                    "max": taking.max,
                },
            )  # fmt: skip
            answers.append([_to_arrival(*row) for row in sorted(rows)])
        return answers

    def _ends(self, ends: Sequence[_End]) -> Generator[Step, Rows, list[None]]:
        now = self._database.clock()
        for end in ends:
            over = end.at is None
            yield Statement(
                "UPDATE inbox SET claimed_by = NULL, claimed_until = 0, handled_at = :handled, error = :error, "
                "payload = CASE WHEN :over = 1 THEN '' ELSE payload END, tries = tries + 1 - :over, "
                "available_at = coalesce(:at, available_at) "
                "WHERE id = :id AND claims = :claim AND claimed_by = :node AND handled_at IS NULL",
                {
                    "id": end.arrival.id, "claim": end.arrival.claim, "node": end.node, "over": int(over),
                    "handled": now if over else None, "error": end.error, "at": end.at,
                },
            )  # fmt: skip
        return [None] * len(ends)


def _to_arrival(
    id: int, source: str, event: str, action: str, payload: str, received_at: int, tries: int, claim: int
) -> Arrival:
    return Arrival(
        id=id, source=source, event=event, action=action, payload=json.loads(payload), received_at=received_at,
        tries=tries, claim=claim,
    )  # fmt: skip
