"""Projects, pauses, and the removal of old history."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from pilot.domain.events import EventType
from pilot.domain.task import Project
from pilot.domain.text import clean
from pilot.store.artifacts import Artifacts
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.records import OPEN_STATUSES, Table, event, events_statement, ids, ids_of

PRUNE_BATCH = 1000

_PROJECTS = Table(
    n="bigint", key="text", name="text", path="text", max_running="bigint", next_after="text", max_open_prs="bigint"
)

Registration = tuple[str, str, str, int | None] | tuple[str, str, str, int | None, str, int | None]
"""(key, name, path, max_running) and, where it is not `finish` and any number, (next_after, max_open_prs)."""


@dataclass(frozen=True, slots=True)
class Pause:
    """`project_id` 0 means all projects; `owner` None (resume only) means every owner."""

    project_id: int
    owner: str | None
    reason: str = ""


_OPENLY = ("finish", None)


class Admin:
    """The operations."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._artifacts = Artifacts(dialect)
        # Another that has the same result stands for it now.
        self._hand_on = f"""
            UPDATE results SET execution_id = coalesce((SELECT max(c.id) FROM executions c
              WHERE c.project_id = results.project_id AND c.dedupe = results.key AND c.status = 'completed'
                AND c.instant = 0 AND c.id NOT IN {ids_of(dialect)}), execution_id)
            WHERE execution_id IN {ids_of(dialect)}"""
        self._old = f"""
            SELECT e.id, e.plan_run FROM executions e WHERE e.status IN ('completed', 'failed', 'cancelled')
              AND e.finished_at IS NOT NULL AND e.finished_at < :before
              AND (e.plan_run IS NULL OR e.plan_run NOT IN {ids_of(dialect, "kept")})
              AND NOT EXISTS (SELECT 1 FROM dependencies d JOIN executions c ON c.id = d.execution_id
                WHERE d.depends_on = e.id AND c.status IN {OPEN_STATUSES})
              AND NOT EXISTS (SELECT 1 FROM pull_executions m JOIN pulls l ON l.id = m.pull_id
                WHERE m.execution_id = e.id AND l.state IN ('owed', 'open'))
              AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.execution_id = e.id AND o.delivered_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM executions c WHERE c.parent = e.id) LIMIT {PRUNE_BATCH}"""
        self._going_on = f"""
            SELECT DISTINCT plan_run FROM executions WHERE plan_run IN {ids_of(dialect)}
              AND (finished_at IS NULL OR finished_at >= :before)"""
        source = _PROJECTS.of(dialect, "n")
        self._add = f"""
            INSERT INTO projects (key, name, path, max_running, next_after, max_open_prs)
            SELECT n.key, n.name, n.path, coalesce(n.max_running, 1), n.next_after, n.max_open_prs FROM {source}
            WHERE true ORDER BY n.n ON CONFLICT DO NOTHING"""
        self._update = f"""
            UPDATE projects SET name = n.name, path = n.path, max_running = n.max_running, next_after = n.next_after,
              max_open_prs = n.max_open_prs FROM {source}
            WHERE projects.key = n.key AND n.max_running IS NOT NULL AND (projects.name <> n.name
              OR projects.path <> n.path OR projects.max_running <> n.max_running
              OR projects.next_after <> n.next_after
              OR coalesce(projects.max_open_prs, -1) <> coalesce(n.max_open_prs, -1))
            RETURNING projects.id"""
        self._select = f"""
            SELECT p.id, p.key, p.name, p.path, p.max_running FROM {source} JOIN projects p ON p.key = n.key
            ORDER BY n.n"""

    def register(
        self, batches: Sequence[Sequence[Registration]], now: int
    ) -> Generator[Step, Rows, list[list[Project]]]:
        """Projects in the order given; only a configured one (max_running given) changes what is stored."""
        answers = []
        for batch in batches:
            items = {
                "items": _PROJECTS.rows(
                    (n, *map(_clean, entry), *_OPENLY[len(entry) - 4 :]) for n, entry in enumerate(batch)
                )
            }
            yield Statement(self._add, items)
            changed = yield Statement(self._update, items)
            yield Notify({str(id) for (id,) in changed})  # what held it up may do so no longer
            rows = yield Statement(self._select, items)
            answers.append([Project(*row) for row in rows])
        return answers

    def pause(self, pauses: Sequence[Pause], now: int) -> Generator[Step, Rows, list[None]]:
        """Admission stops; an owner's second pause changes its reason."""
        for pause in pauses:
            yield Statement(
                "INSERT INTO pauses (project_id, owner, reason, since) VALUES (:project, :owner, :reason, :now) "
                "ON CONFLICT (project_id, owner) DO UPDATE SET reason = excluded.reason",
                {
                    "project": pause.project_id, "owner": clean(pause.owner or ""), "reason": clean(pause.reason),
                    "now": now,
                },
            )  # fmt: skip
            yield events_statement(
                self._dialect,
                now,
                [
                    event(
                        EventType.PAUSED,
                        None,
                        pause.project_id or None,
                        owner=pause.owner,
                        reason=clean(pause.reason),
                    )
                ],
            )
        return [None] * len(pauses)

    def resume(self, pauses: Sequence[Pause], now: int) -> Generator[Step, Rows, list[list[str]]]:
        """Lift one owner's pause, or all; the owners whose pause was lifted."""
        answers = []
        for pause in pauses:
            rows = yield Statement(
                "DELETE FROM pauses WHERE project_id = :project AND (:owner IS NULL OR owner = :owner) "
                "RETURNING pauses.owner",
                {"project": pause.project_id, "owner": pause.owner},
            )
            owners = [owner for (owner,) in rows]
            if owners:
                yield events_statement(
                    self._dialect,
                    now,
                    [event(EventType.RESUMED, None, pause.project_id or None, owner=owner) for owner in owners],
                )
                yield Notify({str(pause.project_id) if pause.project_id else "*"})
            answers.append(owners)
        return answers

    def prune(self, befores: Sequence[int], now: int) -> Generator[Step, Rows, list[int]]:
        """Remove a batch of what ended before a time (UTC ms) and nothing open needs; how many went."""
        counts = []
        for before in befores:
            rows = yield from self._old_ones(before)
            gone = {"ids": ids(rows)}
            yield Statement(f"DELETE FROM events WHERE execution_id IN {ids_of(self._dialect)}", gone)
            # An ended pull request goes with the last execution whose work it holds.
            yield Statement(f"DELETE FROM pulls WHERE execution_id IN {ids_of(self._dialect)}", gone)
            yield Statement(f"DELETE FROM pull_executions WHERE execution_id IN {ids_of(self._dialect)}", gone)
            had = yield from self._artifacts.used_by(gone["ids"])
            yield Statement(self._hand_on, gone)
            yield Statement(f"DELETE FROM executions WHERE id IN {ids_of(self._dialect)}", gone)
            yield from self._artifacts.forget(had)
            counts.append(len(rows))
        return counts

    def _old_ones(self, before: int) -> Generator[Step, Rows, list[int]]:
        """What may go. A plan's run goes as a whole: what comes later in it starts from all that came before, and the
        same plan again, or a retry, has to find each step that was done.
        """
        kept: set[int] = set()
        while rows := (yield Statement(self._old, {"before": before, "kept": ids(kept)})):
            runs = {run for _, run in rows if run is not None}
            if runs:
                kept |= {run for (run,) in (yield Statement(self._going_on, {"before": before, "ids": ids(runs)}))}
            if found := [id for id, run in rows if run not in kept]:
                return found
        return []


def _clean(value: str | int | None) -> str | int | None:
    return clean(value) if isinstance(value, str) else value
