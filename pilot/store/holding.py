"""Pull requests that hold up their project: `next_after` and `max_open_prs`, as the claim sees them.

Nothing new of such a project starts. What has begun, what a person waits for, and what works on such a pull request
itself goes on: a repair is what ends the waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pilot.domain.execution import Execution
from pilot.domain.ports import Hold
from pilot.domain.text import one_line
from pilot.store.database import Database
from pilot.store.documents import moment
from pilot.store.records import LIVE_PULLS, OPEN_STATUSES

GRACE = 2 * 60 * 1000
"""ms after which a pull request of which no check is known has none, and waits for none."""

# Pull request `l` of project `p` has not come as far as the next task waits for. `:now` is UTC ms.
_WAITED_FOR = f"""
    (l.state = 'owed' OR p.next_after = 'merged' OR (p.next_after = 'checks_passed' AND
      (l.checks IN ('pending', 'failed') OR (l.checks = 'none' AND l.opened_at > :now - {GRACE}))))"""
_LIVE_ONES = f"FROM pulls l WHERE l.project_id = p.id AND l.state IN {LIVE_PULLS}"

HELD = f"""
    ((p.next_after <> 'finish' AND EXISTS (SELECT 1 {_LIVE_ONES} AND {_WAITED_FOR}))
      OR (p.max_open_prs IS NOT NULL AND p.max_open_prs <= (SELECT count(*) {_LIVE_ONES})))"""
"""Whether project `p` starts nothing new."""

EXEMPT = f"""
    SELECT b.id FROM executions b
      WHERE b.project_id = p.id AND b.status = 'queued' AND b.due = 1 AND b.attempt > 0
    UNION ALL SELECT r.id FROM executions r
      WHERE r.reserved_for IS NOT NULL AND r.status IN {OPEN_STATUSES} AND +r.project_id = p.id
    UNION ALL SELECT t.id FROM pulls l JOIN executions t
      ON t.project_id = l.project_id AND t.task_id = l.task_id AND t.status IN {OPEN_STATUSES}
      WHERE l.project_id = p.id AND l.state IN {LIVE_PULLS}"""
"""The ids of what of project `p` may start nevertheless. Few, whatever the backlog."""

GRACE_ENDS = f"""
    SELECT min(l.opened_at) + {GRACE} FROM pulls l
    WHERE l.state IN {LIVE_PULLS} AND l.state = 'open' AND l.checks = 'none' AND l.opened_at > :now - {GRACE}"""
"""When time alone lets the next task of some project start."""


async def pull_holds(database: Database, execution: Execution, now: int) -> list[Hold]:
    """The pull requests that keep a queued execution from starting; for one that passes them, none."""
    params = {"project": execution.project_id, "now": now, "id": execution.id}
    ((next_after, most),) = await database.read(
        "SELECT next_after, max_open_prs FROM projects WHERE id = :project", params
    )
    if next_after == "finish" and most is None:
        return []
    if await _passes(database, params):
        return []
    rows = await database.read(
        "SELECT l.url, l.repo, l.branch, l.execution_id, l.state, l.checks, l.error, l.opened_at, "
        f"p.next_after <> 'finish' AND {_WAITED_FOR} FROM projects p JOIN pulls l ON l.project_id = p.id "
        f"WHERE p.id = :project AND l.state IN {LIVE_PULLS} ORDER BY l.id",
        params,
    )
    holds = [_hold(next_after, row) for row in rows if row[-1]]
    if most is not None and len(rows) >= most:
        which = ", ".join(_name(row) for row in rows[:3]) + ("" if len(rows) <= 3 else ", …")
        holds.append(
            Hold(
                "pull_request",
                f"{len(rows)} pull requests are open, and {most} may be (max_open_prs): {which}; merge or close one",
                rows[0][3],
            )
        )
    return holds[:20]


def _name(row: Sequence[Any]) -> str:
    url, repo, branch = row[:3]
    return one_line(url) if url else f"that of {one_line(branch, 80)} in {one_line(repo, 80)}"


def _hold(next_after: str, row: Sequence[Any]) -> Hold:
    _, _, _, execution, state, checks, error, opened_at, _ = row
    name, until = _name(row), None
    if state == "owed":
        what = f"waits until {name} is opened" + (f", which was put off: {one_line(error)}" if error else "")
    elif next_after == "merged":
        what = f"waits until {name} is merged; merge or close it"
    elif checks == "failed":
        what = f"waits until the checks of {name} pass, and they are red; repair, merge or close it"
    elif checks == "none":
        until = opened_at + GRACE
        what = f"waits for the first checks of {name}, until {moment(until)} at most"
    else:
        what = f"waits until the checks of {name} pass"
    return Hold("pull_request", f"{what} (next_after: {next_after})", execution, until)


async def passed(database: Database, execution: Execution, now: int) -> bool:
    """Whether pull requests hold up its project, and not it."""
    params = {"project": execution.project_id, "now": now, "id": execution.id}
    held = await database.read(f"SELECT 1 FROM projects p WHERE p.id = :project AND {HELD}", params)
    return bool(held) and await _passes(database, params)


async def _passes(database: Database, params: Mapping[str, int]) -> bool:
    return bool(await database.read(f"SELECT 1 FROM projects p WHERE p.id = :project AND :id IN ({EXEMPT})", params))
