"""The list of executions, a page at a time: where a page begins, and the one statement that reads it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pilot.domain.errors import UsageError
from pilot.domain.execution import Status
from pilot.store.records import OPEN_STATUSES
from pilot.store.rows import EXECUTION_SELECT

ENDED_SHOWN = 20
_FOREVER = 2**62


@dataclass(frozen=True, slots=True)
class Page:
    """Where a page begins: among the open ones below an id, or among the ended ones behind (ended_at, id)."""

    open_before: int | None = None
    ended_at: int | None = None
    ended_before: int | None = None

    def cursor(self) -> str:
        """As the caller gets it and brings it back."""
        if self.open_before is not None:
            return f"open.{self.open_before}"
        return f"ended.{self.ended_at or _FOREVER}.{self.ended_before or _FOREVER}"


def first_page() -> Page:
    """The beginning of the list."""
    return Page(open_before=_FOREVER)


def page_after(cursor: str) -> Page:
    """Read a cursor; raises `UsageError` for anything that no list gave out."""
    match cursor.split("."):
        case ["open", before] if _number(before):
            return Page(open_before=int(before))
        case ["ended", at, before] if _number(at) and _number(before):
            return Page(ended_at=int(at), ended_before=int(before))
        case _:
            raise UsageError(f"{cursor[:80]!r} is not a cursor that a list gave out; leave it out to start anew")


def _number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def statements(
    page: Page, statuses: Collection[Status], filters: Mapping[str, Any], limit: int
) -> tuple[str, dict[str, Any]]:
    """The SELECT of one part of the list (open ones or ended ones) and its parameters."""
    given = {name: value for name, value in filters.items() if value is not None}
    params = {**given, "limit": limit}
    also = "".join(f" AND {name} = :{name}" for name in given)
    # The states are our own words, and literal: a bound parameter could not use a partial index.
    among = ", ".join(f"'{status}'" for status in sorted(statuses))
    if page.open_before is not None:
        params["before"] = page.open_before
        # `+`: the project's own index holds all that it ever ran, and is none to walk for the few open ones.
        also = also.replace("project_id =", "+project_id =")
        sql = (
            f"SELECT {EXECUTION_SELECT} FROM executions WHERE status IN {OPEN_STATUSES} "
            f"AND status IN ({among}) AND +id < :before{also} ORDER BY +id DESC LIMIT :limit"
        )
        return sql, params
    params |= {"at": page.ended_at or _FOREVER, "before": page.ended_before or _FOREVER}
    if "project_id" in given or "task_id" in given:
        # A project's or task's own index gives its rows in this order; that of their ends would need a sort.
        sql = (
            f"SELECT {EXECUTION_SELECT} FROM executions WHERE finished_at IS NOT NULL "
            f"AND status || '' IN ({among}) AND id < :before{also} ORDER BY id DESC LIMIT :limit"
        )
        return sql, params
    each = " UNION ALL ".join(
        f"SELECT * FROM (SELECT id, finished_at FROM executions WHERE status = '{status}' "
        f"AND finished_at IS NOT NULL AND (finished_at, id) < (:at, :before){also} "
        "ORDER BY finished_at DESC, id DESC LIMIT :limit) AS part"
        for status in sorted(statuses)
    )
    sql = (
        f"SELECT {EXECUTION_SELECT} FROM ({each}) AS ended JOIN executions ON executions.id = ended.id "
        "ORDER BY ended.finished_at DESC, ended.id DESC LIMIT :limit"
    )
    return sql, params
