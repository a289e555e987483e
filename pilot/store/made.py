"""What the executions that another one waited for have come to."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pilot.domain.work import Made
from pilot.store.database import Dialect, Rows
from pilot.store.records import ids_of


def made_of(dialect: Dialect) -> str:
    """The statement: of all that these executions (`:ids`) waited for.

    What has no commit of its own (a note, a green test) stands for what it waited for itself: that work is not lost
    for those that come after it. Of what stands behind such a one only what brought something is of interest.
    """
    return (
        "WITH RECURSIVE behind (waiter, id, direct) AS ("
        "  SELECT d.execution_id, d.depends_on, 1 FROM dependencies d "
        f"  WHERE d.execution_id IN {ids_of(dialect)} "
        "  UNION "
        "  SELECT b.waiter, d.depends_on, 0 FROM behind b JOIN executions e ON e.id = b.id AND e.head_sha IS NULL "
        "  JOIN dependencies d ON d.execution_id = e.id"
        ") SELECT b.waiter, e.id, e.task_id, e.branch, e.head_sha, e.artifacts, max(b.direct) "
        "FROM behind b JOIN executions e ON e.id = b.id GROUP BY b.waiter, e.id "
        "HAVING max(b.direct) = 1 OR e.head_sha IS NOT NULL OR e.artifacts IS NOT NULL ORDER BY b.waiter, e.id"
    )


def to_made(rows: Rows) -> Mapping[int, tuple[Made, ...]]:
    """By the id of who waited; files only, not where a known result was pointed to."""
    found: dict[int, list[Made]] = {}
    for waiter, id, task_id, branch, head_sha, artifacts, direct in rows:
        kept = json.loads(artifacts) if artifacts else []
        files = tuple(one for one in kept if isinstance(one, dict) and "sha256" in one)
        made = Made(
            id=id, task_id=task_id, branch=branch, head_sha=head_sha, artifacts=files, direct=bool(direct)
        )  # fmt: skip
        found.setdefault(waiter, []).append(made)
    return {waiter: tuple(made) for waiter, made in found.items()}
