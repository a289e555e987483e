"""`pilot list`, `status` and `events`: what there is, in rows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session, spellings
from pilot.cli.ui import ago
from pilot.domain.errors import NotFound, UsageError
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.domain.execution import Execution, Status
    from pilot.domain.task import Project
    from pilot.store.history import History


@click.command("list")
@click.option("--status", multiple=True, metavar="STATUS", help="Only these; may be repeated.")
@click.option("--project", "-p", help="Only this project's.")
@click.option("--source", help="Only tasks from there: github, cli, …")
@click.option("--task-id", help="Only this task's.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="So many at most.")
@click.option("--cursor", help="Go on where the last page ended.")
@click.option("--all", "everything", is_flag=True, help="All that ended, too.")
@json_option
@click.pass_obj
def list_(
    session: Session,
    status: tuple[str, ...],
    project: str | None,
    source: str | None,
    task_id: str | None,
    limit: int,
    cursor: str | None,
    everything: bool,
    json: bool,
) -> None:
    """Executions: the open ones, and the last 20 that ended."""
    from pilot.store.glance import answer

    statuses = _statuses(status)
    if session.server:
        from pilot.cli import remote

        page = session.away(
            lambda client: client.list(
                status=[str(one) for one in statuses],
                project=project,
                source=source,
                task_id=task_id,
                everything=everything,
                limit=limit,
                cursor=cursor,
            )
        )
        if json:
            session.ui.document(page)
        else:
            _show_list(session, remote.executions(page), page.get("next_cursor"))
        return
    with session.history() as history:
        project_id = None if project is None else project_named(history, project).id
        found, following = answer(
            history.executions(
                statuses=statuses,
                project_id=project_id,
                source=source,
                task_id=task_id,
                everything=everything,
                limit=limit,
                cursor=cursor,
            )
        )
        if json:
            documents = answer(history.documents(found))
            session.ui.document({"executions": documents, "next_cursor": following})
            return
    _show_list(session, found, following)


def _show_list(session: Session, found: Sequence[Execution], following: str | None) -> None:
    now = session.now()
    rows = [
        [
            str(e.id),
            e.status,
            e.task_id,
            e.project,
            when(session, e.finished_at or e.started_at or e.created_at, now),
            _title(e),
        ]
        for e in found
    ]
    session.ui.table(["ID", "STATUS", "TASK", "PROJECT", "WHEN", "TITLE"], rows)
    if following:
        session.ui.note(f"There is more: --cursor {following}")
    if not found:
        session.ui.note("Nothing here. `pilot run` does a task at once, `pilot enqueue` queues one.")


def _title(execution: Execution) -> str:
    reason = execution.reason if execution.status in ("needs_human", "failed", "cancelled") else None
    return f"{execution.title} ({reason})" if reason else execution.title


def when(session: Session, at: int | None, now: int) -> str:
    """A time for people on a terminal, for programs in a pipe."""
    from pilot.store.documents import rfc3339

    return ago(at, now) if session.ui.terminal else rfc3339(at) or ""


def _statuses(words: Sequence[str]) -> list[Status]:
    from pilot.domain.execution import Status

    names = [name.strip() for word in words for name in word.split(",")]
    unknown = [name for name in names if name not in list(Status)]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no status; there are {', '.join(Status)}")
    return [Status(name) for name in names]


def project_named(history: History, named: str) -> Project:
    """The stored project of this name, key or path. Raises `NotFound`."""
    from pilot.store.glance import answer

    for spelling in spellings(named):
        if found := answer(history.find_project(spelling)):
            return found
    names = ", ".join(project.name for project in answer(history.projects())) or "none yet"
    raise NotFound(f"the store knows no project {named!r}; it knows {one_line(names)}")


@click.command()
@click.option("--watch", "-w", is_flag=True, help="Show it again every second, until Ctrl-C.")
@json_option
@click.pass_obj
def status(session: Session, watch: bool, json: bool) -> None:
    """Counts, what runs since when, projects, parked backends, nodes."""
    from pilot.store.glance import answer

    with nullcontext(None) if session.server else session.history() as history:
        while True:
            if history is None:
                document = session.away(lambda client: client.status())
            else:
                document = answer(history.status(session.now()))
            if watch and json:
                session.ui.document_line(document)
            elif json:
                session.ui.document(document)
            else:
                if watch:
                    session.ui.clear()
                _show_status(session, document)
            if not watch:
                return
            session.ui.flush()
            time.sleep(1)


def _left(budget: Mapping[str, Any]) -> float:
    left: float = budget["per_day_usd"] - budget["spent_usd"] - budget["reserved_usd"]
    return left


def _money(budget: Mapping[str, Any]) -> str:
    day = budget["per_day_usd"]
    limit = "" if day is None else f" of ${day:.2f}, until {budget['until']}"
    line = f"budget: ${budget['spent_usd']:.2f} spent and ${budget['reserved_usd']:.2f} set aside today{limit}"
    each = budget["per_execution_usd"]
    return line if each is None else f"{line}; ${each:.2f} for a task"


def _show_status(session: Session, document: Mapping[str, Any]) -> None:
    from pilot.store.allowance import words

    ui = session.ui
    ui.line("  ".join(f"{name} {count}" for name, count in document["counts"].items()))
    _show_kinds(session, document["stats"]["kinds"])
    for pause in document["paused"]:
        whose = pause["project"] or "everything"
        ui.line(f"paused: {one_line(whose)} by {one_line(pause['owner'])}: {one_line(pause['reason'])}", "yellow")
    for park in document["parked"]:
        ui.line(f"parked: {one_line(park['backend'])} {words(park)}: {one_line(park['reason'])}", "yellow")
    if (budget := document["budget"]) is not None:
        ui.line(_money(budget), "" if budget["per_day_usd"] is None or _left(budget) > 0 else "yellow")
    if document["running"]:
        ui.line()
        ui.table(
            ["ID", "TASK", "PROJECT", "SINCE", "DOES", "TITLE"],
            [
                [
                    str(row["id"]),
                    row["task_id"],
                    row["project"],
                    row["since"] or "-",
                    "is being cancelled" if row["cancel_requested"] else row["phase"] or "starts",
                    row["title"],
                ]
                for row in document["running"]
            ],
        )
    busy = [p for p in document["projects"] if p["running"] or p["queued"] or p["paused"]]
    if busy:
        ui.line()
        ui.table(
            ["PROJECT", "RUNNING", "QUEUED", "", "PATH"],
            [
                [
                    p["name"],
                    f"{p['running']}/{p['max_running']}",
                    str(p["queued"]),
                    "paused" if p["paused"] else "",
                    p["path"],
                ]
                for p in busy
            ],
        )
    _show_outside(session, document)
    ui.line()
    _show_nodes(session, document["nodes"])


def _show_nodes(session: Session, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Those that are up, and those that were lost with the time when they were last heard of."""
    ui = session.ui
    up = [node for node in nodes if node["state"] != "lost"]
    if not up:
        ui.line("no node is up: `pilot serve` runs one", "yellow")
    for node in up:
        where = f", pid {node['pid']}" if node["pid"] else ""  # a worker's is its own business
        version = f", version {one_line(node['version'], 40)}" if node["version"] else ""
        runs = f", runs {node['running']}" if node["running"] else ""
        of = f" of {node['max_running']}" if runs and node["max_running"] else ""
        name = one_line(node["id"], 100)
        ui.line(f"node {name}: {node['kind']}, {node['state']} since {node['started_at']}{where}{version}{runs}{of}")
    for node in nodes:
        if node["state"] == "lost" and node["kind"] == "serve":
            ui.line(f"node {one_line(node['id'], 100)}: lost, last heard of at {node['seen_at']}", "yellow")


def _show_kinds(session: Session, kinds: Mapping[str, Mapping[str, Any]]) -> None:
    """A line for each kind of work, where there is more than code."""
    figures = ("blocked", "queued", "running", "needs_human", "completed_24h", "failed_24h")
    busy = {name: kind for name, kind in kinds.items() if any(kind[figure] for figure in figures)}
    if set(busy) <= {"code"}:
        return
    for name, kind in busy.items():
        wait = "" if (age := kind["oldest_wait_seconds"]) is None else f", the oldest for {_age(age)}"
        held = f", {kind['needs_human']} for a person" if kind["needs_human"] else ""
        later = f", {kind['blocked']} blocked" if kind["blocked"] else ""
        session.ui.line(
            f"{one_line(name, 40)}: {kind['queued']} queued{wait}{later}, {kind['running']} running{held}; "
            f"in 24 h {kind['completed_24h']} completed, {kind['failed_24h']} failed"
        )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def _show_outside(session: Session, document: Mapping[str, Any]) -> None:
    """How the sources do, and what waits on the way in and out."""
    ui = session.ui
    if document["sources"]:
        ui.line()
    for source in document["sources"]:
        name, reason = one_line(source["name"], 80), one_line(source["reason"] or "", 300)
        seen = f", last looked at {source['last_poll']}" if source["last_poll"] else ""
        if source["status"] == "ok":
            ui.line(f"source {name}: ok{seen}")
        else:
            until = f" until {source['until']}" if source["until"] else ""
            style = "red" if source["status"] == "failing" else "yellow"
            ui.line(f"source {name}: {source['status']}{until}: {reason}{seen}", style)
    for box, what in (("inbox", "webhooks wait to be dealt with"), ("outbox", "words and changes wait to go out")):
        if document[box]["owed"]:
            ui.line(f"{document[box]['owed']} {what}, the oldest since {document[box]['oldest']}")
