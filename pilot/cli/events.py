"""`pilot events`: the event log, as it grows if wanted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pilot.cli.session import Session
from pilot.domain.errors import UsageError
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.domain.events import Event

_EVERY = 0.5  # seconds between looks of those that follow


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl-C.")
@click.option("--type", "types", multiple=True, metavar="TYPE", help="Only these, e.g. trigger.refused.")
@click.option("--execution", type=int, metavar="ID", help="Only this execution's.")
@click.option("--after", type=click.IntRange(0, 2**63 - 1), metavar="ID", help="Only those behind this event.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="So many at most.")
@click.option("--json", is_flag=True, help="One JSON document; with -f one a line.")
@click.pass_obj
def events(
    session: Session,
    follow: bool,
    types: tuple[str, ...],
    execution: int | None,
    after: int | None,
    limit: int,
    json: bool,
) -> None:
    """The event log: the last 100, or those behind an id."""
    from pilot.store.documents import event_document
    from pilot.store.glance import answer

    _check_types(types)
    if session.server:
        _events_there(session, types, execution, after, limit, follow=follow, json=json)
        return
    with session.history() as history:
        found = answer(history.events(after=after, types=types, execution=execution, limit=limit))
        if json and not follow:
            last = found[-1].id if found else after
            session.ui.document({"events": [event_document(event) for event in found], "next_after": last})
            return
        last = after or 0
        while True:
            for event in found:
                last = event.id
                if json:
                    session.ui.document_line(event_document(event))
                else:
                    session.ui.line(_event_line(event))
            if not follow:
                return
            session.ui.flush()
            if not found:
                time.sleep(_EVERY)
            found = answer(history.events(after=last, types=types, execution=execution, limit=500))


def _events_there(
    session: Session,
    types: Sequence[str],
    execution: int | None,
    after: int | None,
    limit: int,
    *,
    follow: bool,
    json: bool,
) -> None:
    from pilot.cli import remote

    def show(document: Mapping[str, Any]) -> None:
        if json:
            session.ui.document_line(document)
        else:
            session.ui.line(_event_line(remote.event_of(document)))
        session.ui.flush()

    page = session.away(lambda client: client.event_log(after=after, types=types, execution=execution, limit=limit))
    if json and not follow:
        session.ui.document(page)
        return
    for document in page["events"]:
        show(document)
    if follow:
        remote.follow_events(session, page["next_after"] or after or 0, types, execution, show)


def _check_types(words: Sequence[str]) -> None:
    from difflib import get_close_matches

    from pilot.domain.events import EventType

    for word in words:
        if word not in list(EventType):
            near = get_close_matches(word, list(EventType))
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(EventType)}"
            raise UsageError(f"{word!r} is no event type; {hint}")


def _event_line(event: Event) -> str:
    from pilot.store.documents import rfc3339

    if event.type == "trigger.refused":
        data = _refused(event.data)
        return f"{event.id}\t{rfc3339(event.at)}\t{event.type}\t{one_line(str(event.data.get('task_id')), 80)}\t{data}"
    data = " ".join(f"{name}={one_line(str(value), 120)}" for name, value in event.data.items() if value is not None)
    about = "-" if event.execution_id is None else str(event.execution_id)
    return f"{event.id}\t{rfc3339(event.at)}\t{event.type}\t{about}\t{data}"


def _refused(data: Mapping[str, Any]) -> str:
    said = {name: one_line(str(data.get(name) or ""), 300) for name in ("source", "actor", "reason", "url")}
    where = f" ({said['url']})" if said["url"] else ""
    return f"{said['source']}: {said['actor'] or 'somebody'}: {said['reason']}{where}"
