"""Why an execution is not running, put together from what holds it; each hold is a row somebody wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pilot.domain.execution import Execution, Status
from pilot.domain.ports import Hold, Why
from pilot.domain.text import one_line
from pilot.store.allowance import budget_holds, closed, parked, servers
from pilot.store.database import Database, Dialect
from pilot.store.documents import moment
from pilot.store.holding import passed, pull_holds
from pilot.store.owing import after_its_end
from pilot.store.places import elsewhere
from pilot.store.records import Table

_NAMED = 20  # holds of one sort that are named one by one
_CLOSED = Table(backend="text")


def _line_of(dialect: Dialect) -> str:
    # Due rows of one project that the claim would look at. `due` is brought up to date by the next claim only.
    shut = f"(SELECT c.backend FROM {_CLOSED.of(dialect, 'c', 'closed')})"
    columns = "SELECT id, priority, task_id, backend, fallback, external FROM executions "
    return (
        f"FROM ({columns}WHERE status = 'queued' AND due = 1 AND project_id = :project UNION ALL "
        f"{columns}WHERE status = 'queued' AND due = 0 AND available_at <= :now AND +project_id = :project) AS line "
        "WHERE (line.priority, line.id) < (:priority, :id) AND line.external = 0 "
        f"AND (line.backend NOT IN {shut} OR EXISTS "
        f"(SELECT 1 FROM {dialect.elements('line.fallback', 'f')} WHERE f.value NOT IN {shut}))"
    )


@dataclass(frozen=True, slots=True)
class _Line:
    """Who stands before it in its project's queue."""

    before: int = 0
    first: int | None = None
    task_id: str = ""


async def why(database: Database, execution: Execution, now: int) -> Why:
    """The answer for one execution; `now` is UTC ms."""
    match execution.status:
        case Status.QUEUED:
            return await _queued(database, execution, now)
        case Status.RUNNING:
            return _why(execution, next=await _while_running(database, execution, now))
        case Status.BLOCKED:
            holds = await _dependencies(database, execution)
            named = ", ".join(str(hold.execution) for hold in holds[:3])
            more = f" and {execution.deps_left - 3} more" if execution.deps_left > 3 else ""
            return _why(
                execution,
                holds,
                f"It is queued when {named}{more} completed, cancelled if one fails.",
            )
        case Status.NEEDS_HUMAN:
            return _why(execution, [await _person(database, execution)], _for_a_person(execution))
        case Status.COMPLETED:
            return _why(execution, next=await after_its_end(database, execution))
        case _:
            return _why(
                execution,
                next=f"Nothing: it is {execution.status}{_because(execution)}. "
                f"`pilot retry {execution.id}` runs it anew.",
            )


def _because(execution: Execution) -> str:
    reason = one_line(execution.reason or execution.error or "", 300).rstrip(".")
    return f": {reason}" if reason else ""


def _why(execution: Execution, holds: list[Hold] | None = None, next: str = "", position: int | None = None) -> Why:
    return Why(execution.id, str(execution.status), position, tuple(holds or ()), next)


async def _queued(database: Database, execution: Execution, now: int) -> Why:
    due = execution.available_at <= now
    nodes = await servers(database, execution, now)
    shut = closed(await parked(database, now), nodes)
    line = await _line(database, execution, shut, now) if due else _Line()
    local = [
        *_park(execution, shut),
        *await budget_holds(database, execution, nodes, now),
        *await pull_holds(database, execution, now),
        *_time(execution, due=due),
        *await _place(database, execution, now),
        *await _nodes(database, execution, now),
    ]
    left = f"left to a worker that claims over HTTP{await _workers(database, now) if execution.external else ''}"
    remote = [Hold("external", left), *_time(execution, due=due)]
    holds = [
        *await _pauses(database, execution),
        *(remote if execution.external else local),
        *await _slots(database, execution),
    ]
    if line.before:
        holds.append(
            Hold(
                "ahead",
                f"{line.before} before it in {execution.project}; "
                f"the first is {line.first} ({one_line(line.task_id, 60)})",
                line.first,
            )
        )
    next = _next(execution, holds)
    if await passed(database, execution, now):
        next += " What its project waits for, a pull request, does not hold it up."
    return _why(execution, holds, next, line.before + 1 if due else None)


def _next(execution: Execution, holds: list[Hold]) -> str:
    """What has to happen first, in one sentence."""
    if not holds:
        return "It is next: it starts as soon as a node has room for it."
    hold = holds[0]
    at = "" if hold.until is None else moment(hold.until)
    match hold.kind:
        case "paused":
            which = "" if hold.detail.startswith("everything") else f" {execution.project}"
            return f"It waits until admission is resumed: `pilot resume{which}`."
        case "parked" | "budget":
            return _next_when_allowed(hold, at)
        case "time":
            return f"It may start at {at}."
        case "pull_request":
            return _next_when_reviewed(hold, at)
        case "slot":
            return f"It moves up when {hold.execution} ends."
        case kind if kind in _STARTS:
            return _STARTS[kind]
        case _:
            return f"It starts after the {holds[-1].detail.split()[0]} before it."


_STARTS = {
    "external": "It starts when such a worker claims it.",
    "unserved": "It starts once a `pilot serve` has the project in its pilot.yaml.",
    "full": "It starts when one of what runs there ends and its turn comes.",
    "node": "It starts once a node runs: `pilot serve`.",
    "reserved": "It is cancelled as soon as a node sees that its direct run is gone.",
}


def _next_when_allowed(hold: Hold, at: str) -> str:
    if hold.kind == "budget":
        if at:
            return f"It may start at {at}, when the day's budget begins anew, or once budget.per_day_usd is raised."
        return "It waits until budget.per_execution_usd is raised."
    if hold.execution is not None:
        return f"It may start once {hold.execution} has an answer."
    unpark = f"`pilot backend unpark {hold.detail.split()[0]}`"
    return (
        f"It may start at {at}, or after {unpark}." if at else f"It waits for a person: mend the cause, then {unpark}."
    )


def _next_when_reviewed(hold: Hold, at: str) -> str:
    if "(max_open_prs)" in hold.detail:
        return "It starts when fewer of them are open."
    timed = f", or at {at}" if at else ""
    return f"It starts when that has come so far{timed}: `pilot show {hold.execution}` says how far it is."


async def _line(database: Database, execution: Execution, shut: Iterable[str], now: int) -> _Line:
    line = _line_of(database.dialect)
    params: Mapping[str, Any] = {
        "closed": _CLOSED.rows((backend,) for backend in shut),
        "project": execution.project_id,
        "priority": execution.priority,
        "id": execution.id,
        "now": now,
    }
    ((before,),) = await database.read(f"SELECT count(*) {line}", params)
    if not before:
        return _Line()
    first = await database.read(
        f"SELECT line.id, line.task_id {line} ORDER BY line.priority, line.id LIMIT 1",
        params,
    )
    return _Line(before, *first[0]) if first else _Line()


async def _pauses(database: Database, execution: Execution) -> list[Hold]:
    rows = await database.read(
        "SELECT project_id, owner, reason, since FROM pauses WHERE project_id IN (0, :project) "
        "ORDER BY project_id, owner",
        {"project": execution.project_id},
    )
    return [
        Hold(
            "paused",
            f"{'everything' if project == 0 else execution.project} is paused by {one_line(owner, 60)} "
            f"since {moment(since)}: {one_line(reason) or 'no reason given'}",
        )
        for project, owner, reason, since in rows
    ]


def _park(execution: Execution, shut: Mapping[str, list[Hold]]) -> list[Hold]:
    names = list(dict.fromkeys((execution.backend, *execution.fallback)))
    if not all(name in shut for name in names):
        return []  # one of them takes it
    holds = [hold for name in names for hold in shut[name]]
    return sorted(holds, key=lambda hold: (hold.execution is None, hold.until is None, hold.until or 0))


def _time(execution: Execution, *, due: bool) -> list[Hold]:
    if due:
        return []
    detail = f"not before {moment(execution.available_at)}"
    if execution.reason:
        detail += f", after {one_line(execution.reason)}"
    return [Hold("time", detail, None, execution.available_at)]


async def _place(database: Database, execution: Execution, now: int) -> list[Hold]:
    """Where alone it goes on: whoever asks, there is a node elsewhere."""
    nowhere = elsewhere("''", "e")
    rows = await database.read(
        "SELECT (SELECT max(y.until) FROM places y WHERE y.place = e.place AND y.until >= :now) FROM executions e "
        f"WHERE e.id = :id AND {nowhere}",
        {"id": execution.id, "now": now},
    )
    if not rows:
        return []
    here = await database.read(
        "SELECT n.id, n.state, n.max_running, "
        "(SELECT count(*) FROM executions x WHERE x.status = 'running' AND x.node = n.id) FROM nodes n "
        "WHERE n.place = :place AND n.place <> '' AND n.lease_until > :now AND n.kind = 'serve' ORDER BY n.id",
        {"place": execution.place, "now": now},
    )
    if any(state == "up" and (most == 0 or running < most) for _, state, most, running in here):
        return []
    where = f"what was begun of it lies on {one_line(execution.place or '', 80)}"
    if not here:
        return [Hold("place", f"{where}, whose node has left and is waited for", None, rows[0][0])]
    names = ", ".join(one_line(id, 80) for id, *_ in here[:_NAMED])
    return [Hold("place", f"{where}, where {names} is full or draining")]


async def _nodes(database: Database, execution: Execution, now: int) -> list[Hold]:
    if execution.reserved_for is not None:
        # Its own process starts it; something is in the way only when that is gone.
        alive = await database.read(
            "SELECT 1 FROM nodes WHERE id = :id AND lease_until > :now", {"id": execution.reserved_for, "now": now}
        )
        gone = f"kept for the direct run {one_line(execution.reserved_for, 80)}, which is gone"
        return [] if alive else [Hold("reserved", gone)]
    nodes = await database.read(
        "SELECT n.id, n.state, n.max_running, "
        "(SELECT count(*) FROM executions e WHERE e.status = 'running' AND e.node = n.id), "
        "n.choosy = 0 OR EXISTS (SELECT 1 FROM node_projects s WHERE s.node_id = n.id AND s.project_id = :project) "
        "FROM nodes n WHERE n.lease_until > :now AND n.kind = 'serve' ORDER BY n.started_at, n.id",
        {"now": now, "project": execution.project_id},
    )
    serving = [node for node in nodes if node[4]]
    if nodes and not serving:
        where = f"{execution.project} ({one_line(execution.project_path)})"
        return [Hold("unserved", f"no node that is up serves {where}{await _workers(database, now)}")]
    up = [(id, most, running) for id, state, most, running, _ in serving if state == "up"]
    if any(most == 0 or running < most for _, most, running in up):
        return []
    if up:
        full = ", ".join(f"{one_line(id, 80)} runs {running} of {most}" for id, most, running in up[:_NAMED])
        return [Hold("full", f"every node has as much as it may run (dispatcher.max_running): {full}")]
    detail = "the only node is draining" if nodes else "no node is up"
    return [Hold("node", f"{detail}; `pilot serve` runs one{await _workers(database, now)}")]


async def _workers(database: Database, now: int) -> str:
    """Who else may take it. What they want is theirs to say with each claim, so nobody knows whether one will."""
    rows = await database.read(
        "SELECT id FROM nodes WHERE lease_until > :now AND kind = 'worker' ORDER BY id LIMIT 4", {"now": now}
    )
    names = [one_line(id, 80) for (id,) in rows[:3]] + ["…"] * (len(rows) > 3)
    return f"; may take it: {', '.join(names)}" if names else ""


async def _slots(database: Database, execution: Execution) -> list[Hold]:
    ((most,),) = await database.read(
        "SELECT max_running FROM projects WHERE id = :project", {"project": execution.project_id}
    )
    rows = await database.read(
        "SELECT e.id, e.task_id, e.node, a.started_at FROM executions e "
        "LEFT JOIN attempts a ON a.execution_id = e.id AND a.number = e.attempt "
        # it may have been claimed since it was read, and is never in its own way
        "WHERE e.status = 'running' AND e.project_id = :project AND e.id <> :id ORDER BY e.slot",
        {"project": execution.project_id, "id": execution.id},
    )
    if len(rows) < most:
        return []
    return [
        Hold(
            "slot",
            f"{id} ({one_line(task_id, 60)}) runs in {execution.project} on {one_line(node, 80)}"
            + (f" since {moment(started_at)}" if started_at is not None else ""),
            id,
        )
        for id, task_id, node, started_at in rows[:_NAMED]
    ]


async def _dependencies(database: Database, execution: Execution) -> list[Hold]:
    rows = await database.read(
        "SELECT e.id, e.task_id, e.status FROM dependencies d JOIN executions e ON e.id = d.depends_on "
        "WHERE d.execution_id = :id AND e.status <> 'completed' ORDER BY e.id LIMIT :most",
        {"id": execution.id, "most": _NAMED},
    )
    return [
        Hold("dependency", f"waits for {id} ({one_line(task_id, 60)}), which is {status}", id)
        for id, task_id, status in rows
    ]


async def _person(database: Database, execution: Execution) -> Hold:
    rows = await database.read(
        "SELECT text FROM questions WHERE execution_id = :id AND answered_at IS NULL", {"id": execution.id}
    )
    return Hold("person", one_line(rows[0][0] if rows else execution.reason or "", 500))


def _for_a_person(execution: Execution) -> str:
    return (
        f"It waits for a person: `pilot answer {execution.id} TEXT` lets it go on, "
        f"`pilot cancel {execution.id}` ends it."
    )


async def _while_running(database: Database, execution: Execution, now: int) -> str:
    rows = await database.read(
        "SELECT phase, started_at FROM attempts WHERE execution_id = :id AND number = :attempt",
        {"id": execution.id, "attempt": execution.attempt},
    )
    phase, started_at = rows[0] if rows else (None, None)
    if execution.lease_until is not None and execution.lease_until <= now:
        return f"Its lease ended at {moment(execution.lease_until)} and was not renewed: it is taken back."
    if execution.cancel_requested:
        return "It is being cancelled: its agent is ended first."
    since = "" if started_at is None else f" since {moment(started_at)}"
    doing = f", now: {one_line(phase, 80)}" if phase else ""
    return f"It runs on {execution.node}{since} (attempt {execution.attempt}){doing}."
