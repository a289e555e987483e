"""What completes by itself: a note, which nobody has to do, and what is there already under its dedupe key.

It needs no lease, no slot and no attempt, so a pause, a park or a time yet to come does not hold it up. Its row says
why (`reason`). Of a result that was known, `artifacts` begins with `{"execution": ID}`, whoever made it, before the
files themselves, and `base_sha` and `head_sha` are those of the one that made it, so that what comes next starts there.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Sequence

from pilot.domain.events import EventType
from pilot.store.database import Dialect, Notify, Rows, Statement, Step
from pilot.store.records import OWED, Table, dumps, event, events_statement, ids, ids_of, short

_DONE = Table(id="bigint", reason="text", made_by="bigint", artifacts="text", base_sha="text", head_sha="text")
_RESULTS = Table(project_id="bigint", key="text", execution_id="bigint")

NOTE = "nobody has to do it"
"""The reason of what is `instant`."""


class Instant:
    """The part of an operation that completes what is queued and that nobody has to do."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._candidates = f"""
            SELECT e.id, e.dedupe, r.execution_id, o.artifacts, o.base_sha, o.head_sha
            FROM executions e LEFT JOIN results r ON r.project_id = e.project_id AND r.key = e.dedupe
              LEFT JOIN executions o ON o.id = r.execution_id
            WHERE e.id IN {ids_of(dialect)} AND e.status || '' = 'queued'
              AND (e.instant = 1 OR r.execution_id IS NOT NULL)
            ORDER BY e.id"""
        self._complete = f"""
            UPDATE executions SET status = 'completed', outcome = 'done', reason = k.reason, due = 0,
              finished_at = :now, reserved_for = NULL, failure_class = NULL, error = NULL,
              artifacts = coalesce(k.artifacts, executions.artifacts),
              base_sha = CASE WHEN k.made_by IS NULL THEN executions.base_sha ELSE k.base_sha END,
              head_sha = CASE WHEN k.made_by IS NULL THEN executions.head_sha ELSE k.head_sha END
            FROM {_DONE.of(dialect, "k")} WHERE executions.id = k.id AND executions.status = 'queued'
            RETURNING executions.id, executions.project_id, executions.has_dependents, executions.reason,
              executions.origin IS NOT NULL OR executions.callback_url IS NOT NULL"""
        self._use = f"""
            INSERT INTO artifact_uses (sha256, execution_id) SELECT u.sha256, k.id
            FROM {_DONE.of(dialect, "k")} JOIN artifact_uses u ON u.execution_id = k.made_by WHERE true
            ON CONFLICT DO NOTHING"""

    def __call__(self, queued: Collection[int], now: int) -> Generator[Step, Rows, dict[int, bool]]:
        """Those of them that it completed, and whether others wait for each."""
        if not queued:
            return {}
        rows = yield Statement(self._candidates, {"ids": ids(queued)})
        if not rows:
            return {}
        items = {"items": _DONE.rows(map(_row, rows))}
        done = sorted((yield Statement(self._complete, {"now": now, **items})))
        if any(row[3] is not None for row in rows):
            yield Statement(self._use, items)
        told = [
            event(EventType.COMPLETED, id, project, outcome="done", reason=reason) for id, project, _, reason, _ in done
        ]
        yield events_statement(self._dialect, now, told)
        yield Notify({str(project) for _, project, *_ in done})
        if any(is_told for *_, is_told in done):
            yield OWED
        return {id: bool(has_dependents) for id, _, has_dependents, *_ in done}


def _row(row: Sequence[object]) -> list[object]:
    id, dedupe, made_by, artifacts, *commits = row
    if made_by is None:
        return [id, NOTE, None, None, *commits]
    reason = f"nobody has to do it again: {dedupe} is what execution {made_by} made"
    return [id, short(reason), made_by, dumps([{"execution": made_by}, *_files(artifacts)]), *commits]


def _files(artifacts: object) -> list[object]:
    # What the one that made it points to itself, since another's history was removed, is not of interest.
    kept = json.loads(artifacts) if isinstance(artifacts, str) else None
    return [file for file in kept if "sha256" in file] if isinstance(kept, list) else []


class Results:
    """What is known under its dedupe key. The first one counts: nobody makes it again."""

    def __init__(self, dialect: Dialect) -> None:
        self._add = f"""
            INSERT INTO results (project_id, key, execution_id, at)
            SELECT k.project_id, k.key, k.execution_id, :now FROM {_RESULTS.of(dialect, "k")} WHERE true
            ON CONFLICT DO NOTHING RETURNING project_id, key, execution_id"""
        self._waiting = f"""
            SELECT e.id FROM {_RESULTS.of(dialect, "k")} JOIN executions e
              ON e.project_id = k.project_id AND e.dedupe = k.key AND e.status = 'queued'"""

    def add(self, made: Sequence[tuple[int, str, int]], now: int) -> Generator[Step, Rows, list[int]]:
        """Keep (project id, key, execution id); the queued executions that nobody has to do any more."""
        first: dict[tuple[int, str], int] = {}
        for project, key, execution in made:
            first.setdefault((project, key), execution)
        results = _RESULTS.rows((*key, execution) for key, execution in first.items())
        new = yield Statement(self._add, {"now": now, "items": results})
        if not new:
            return []
        waiting = yield Statement(self._waiting, {"items": _RESULTS.rows(new)})
        return [id for (id,) in waiting]
