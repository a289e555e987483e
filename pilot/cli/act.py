"""`pilot cancel`, `retry`, `answer`, `pause`, `resume`: what people do to executions and projects."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from pilot.cli.arguments import id_argument, json_option, words_from
from pilot.cli.session import Session, spellings
from pilot.domain.errors import NotFound, UsageError

if TYPE_CHECKING:
    from pilot.domain.execution import Status
    from pilot.domain.task import Project
    from pilot.store import Store

_where = click.argument("project", metavar="[PROJECT]", required=False)


@click.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=click.IntRange(1, 2**63 - 1))
@click.option("--reason", default="", help="Why, for the record.")
@json_option
@click.pass_obj
def cancel(session: Session, ids: tuple[int, ...], reason: str, json: bool) -> int:
    """End executions, and the agents of running ones.

    An agent is ended with all its processes, also when another process runs it.
    """
    person = session.person()

    async def each(cancel: Callable[[int], Awaitable[Status]]) -> dict[int, Status | None]:
        states: dict[int, Status | None] = {}
        for id in ids:
            try:
                states[id] = await cancel(id)
            except NotFound:
                states[id] = None
        return states

    if session.server:
        states = session.away(lambda client: each(lambda id: client.cancel(id, reason)))
    else:
        states = session.act(lambda store: each(lambda id: store.queue.cancel(id, person, reason)))
    if json:
        found = [{"id": id, "status": None if state is None else str(state)} for id, state in states.items()]
        session.ui.document({"executions": found})
    for id, state in states.items():
        if state is None:
            session.ui.failure_line(f"no execution {id}; `pilot list --all` shows what there is")
        elif json:
            continue
        elif state == "running":
            session.ui.line(f"{id} is asked to end; `pilot logs {id} -f` shows how it does")
        elif state == "cancelled":
            session.ui.line(f"{id} is cancelled")
        else:
            session.ui.line(f"{id} has ended already: {state}")
    return NotFound.exit_code if None in states.values() else 0


@click.command()
@id_argument
@json_option
@click.pass_obj
def retry(session: Session, id: int, json: bool) -> None:
    """Run an ended execution's task anew; prints the new id."""
    away = session.server is not None
    new = session.away(lambda client: client.retry(id)) if away else session.act(lambda store: store.queue.retry(id))
    if json:
        session.ui.document({"id": new.id, "status": str(new.status), "duplicate": new.duplicate})
        return
    session.ui.line(str(new.id))
    what = "stands for it already" if new.duplicate else f"runs the task of {id} anew"
    session.ui.note(f"{new.id} {what}: {new.status}")


@click.command()
@id_argument
@click.argument("text", metavar="TEXT")
@json_option
@click.pass_obj
def answer(session: Session, id: int, text: str, json: bool) -> None:
    """Answer an execution that needs a human.

    It goes on in the same session. TEXT `-` reads stdin.
    """
    words = words_from(text)
    if session.server:
        session.away(lambda client: client.answer(id, words))
    else:
        session.act(lambda store: store.queue.answer(id, words, session.person()))
    if json:
        session.ui.document({"id": id, "status": "queued"})
    else:
        session.ui.line(f"{id} is queued again, with your answer")


@click.command()
@_where
@click.option("--reason", default="", help="Why; `why` and `status` show it.")
@click.option("--owner", help="In whose name; default: you.")
@json_option
@click.pass_obj
def pause(session: Session, project: str | None, reason: str, owner: str | None, json: bool) -> None:
    """Start nothing new, in one project or at all.

    What runs goes on.
    """
    whose = owner or session.person()

    async def work(store: Store) -> Project | None:
        found = None if project is None else await _project(store, project)
        await store.queue.pause(found.id if found else 0, whose, reason)
        return found

    if session.server:
        name = session.away(lambda client: client.pause(project, owner=whose, reason=reason))["project"]
    else:
        found = session.act(work)
        name = found.name if found else None
    if json:
        session.ui.document({"project": name, "owner": whose, "reason": reason})
        return
    again = f" {name}" if name else ""
    session.ui.line(f"{name or 'everything'} is paused; `pilot resume{again}` lifts it")


@click.command()
@_where
@click.option("--owner", help="Lift this owner's pause; default: yours.")
@click.option("--everybody", is_flag=True, help="Lift everybody's pause.")
@json_option
@click.pass_obj
def resume(session: Session, project: str | None, owner: str | None, everybody: bool, json: bool) -> None:
    """Lift a pause."""
    whose = None if everybody else owner or session.person()

    async def work(store: Store) -> tuple[Project | None, list[str], list[str]]:
        found = None if project is None else await _project(store, project)
        id = found.id if found else 0
        lifted = await store.queue.resume(id, whose)
        return found, lifted, await store.history.paused_by(id)

    if session.server:
        told = session.away(lambda client: client.resume(project, owner=whose, everybody=everybody))
        name, lifted, left = told["project"], told["lifted"], told["still_paused_by"]
    else:
        found, lifted, left = session.act(work)
        name = found.name if found else None
    what = name or "everything"
    if not lifted and left:
        raise UsageError(f"{what} is paused by {', '.join(left)}, not by {whose}; use --owner or --everybody")
    if json:
        session.ui.document({"project": name, "lifted": lifted, "still_paused_by": left})
    elif left:
        session.ui.line(f"lifted; {what} stays paused by {', '.join(left)}")
    elif lifted:
        session.ui.line(f"{what} is no longer paused")
    else:
        session.ui.line(f"{what} was not paused")


async def _project(store: Store, named: str) -> Project:
    for spelling in spellings(named):
        if found := await store.history.find_project(spelling):
            return found
    names = ", ".join(project.name for project in await store.history.projects()) or "none yet"
    raise NotFound(f"the store knows no project {named!r}; it knows {names}")
