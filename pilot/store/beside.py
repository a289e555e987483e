"""What an execution's document has besides its row."""

from __future__ import annotations

from collections.abc import Mapping

from pilot.store.database import Dialect, Rows
from pilot.store.records import ids_of

Beside = tuple[tuple[int, ...], str | None]
"""The ids that it depends on, ascending, and what its last attempt ran in."""


def beside_of(dialect: Dialect) -> str:
    """The statement, of these executions (`:ids`)."""
    wanted = ids_of(dialect)
    return (
        "SELECT execution_id, depends_on, 0 AS number, NULL AS sandbox FROM dependencies "
        f"WHERE execution_id IN {wanted} "
        f"UNION ALL SELECT execution_id, NULL, number, sandbox FROM attempts WHERE execution_id IN {wanted} "
        "ORDER BY 1, 2, 3"
    )


def to_beside(rows: Rows) -> Mapping[int, Beside]:
    """By the execution's id."""
    after: dict[int, list[int]] = {}
    sandbox: dict[int, str | None] = {}
    for id, depends_on, number, name in rows:
        if number:
            sandbox[id] = name  # the last one's
        else:
            after.setdefault(id, []).append(depends_on)
    return {id: (tuple(after.get(id, ())), sandbox.get(id)) for id in after.keys() | sandbox.keys()}
