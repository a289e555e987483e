"""A session of OpenCode before its turn: the directory set up, the session made or found, what is in it already."""

from __future__ import annotations

import secrets
from pathlib import Path

from pilot.backends.opencode_cli import Model, is_session, message_id
from pilot.backends.opencode_events import ids_of
from pilot.backends.opencode_outcome import session_lost
from pilot.backends.reading import Event, as_event, as_list, as_text
from pilot.clients.opencode import Client, Rejected
from pilot.domain.outcome import FailureClass, Outcome, failed
from pilot.domain.text import one_line
from pilot.store import wall_clock

_CHILDREN = 200
"""Sub-agents of a session that are looked at, at most."""


class Ended(Exception):
    """The turn can't go on, and this is what it comes to."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.detail)
        self.outcome = outcome


async def set_up(client: Client, directory: str, model: Model) -> None:
    """Have the directory's providers set up, since an abort meanwhile would break them for good, and find the model.

    Raises `Ended` when it is not there.
    """
    for last in (False, False, True):
        try:
            answer = as_event(await client.providers(directory))
        except Rejected as error:
            if last or error.status < 500:
                raise
            await client.dispose_of(directory)  # somebody's abort has broken it; a second try may be needed
        else:
            _find(answer, model)
            return


def _find(answer: Event, model: Model) -> None:
    models = {
        as_text(as_event(one).get("id")): as_event(as_event(one).get("models"))
        for one in as_list(answer.get("providers"))
    }
    if model.provider not in models:
        detail = f"OpenCode has no account with {one_line(model.provider)}, or knows no such provider"
        remedy = "run `opencode auth login`, set the provider's key, or correct executor.opencode.model"
        raise Ended(failed(FailureClass.AUTH, f"{detail}; {remedy}"))
    if model.id not in models[model.provider]:
        some = one_line(", ".join(sorted(models[model.provider])) or "none", 300)
        detail = f"OpenCode knows no model {one_line(model.id)} of {model.provider}; it knows {some}"
        raise Ended(failed(FailureClass.INVALID_CONFIG, f"{detail}; correct executor.opencode.model"))


async def begin(client: Client, directory: str, title: str) -> str:
    """A new session's id."""
    made = as_event(await client.create(directory, title))
    session = as_text(made.get("id"))
    if not is_session(session):
        raise Ended(failed(FailureClass.AGENT, f"OpenCode made no session, but {one_line(repr(made))}"))
    return session


async def check(client: Client, directory: str, session: str) -> None:
    """Raise `Ended` unless the session is there, and works in this directory."""
    if not is_session(session):
        raise Ended(session_lost(f"{one_line(session)} is no session of OpenCode"))
    try:
        found = as_text(as_event(await client.session(session)).get("directory"))
    except Rejected as error:
        if error.status == 404:
            raise Ended(session_lost(str(error))) from error
        raise
    if not _same(found, directory):
        # it would go on where it began: in another checkout, or in somebody's own
        raise Ended(session_lost(f"it belongs to {one_line(found)}"))


async def so_far(client: Client, session: str) -> frozenset[str]:
    """Ids of the messages that are in it and its sub-agents' already."""
    found = ids_of(await client.messages(session))
    for child in await descendants(client, session):
        found |= ids_of(await client.messages(child))
    return found


async def descendants(client: Client, session: str) -> list[str]:
    """The sessions of its sub-agents, and of theirs."""
    found: list[str] = []
    left = [session]
    while left and len(found) < _CHILDREN:
        for child in as_list(await client.children(left.pop())):
            id = as_text(as_event(child).get("id"))
            if is_session(id) and id not in found:
                found.append(id)
                left.append(id)
    return found


def new_id(prefix: str) -> str:
    """An id for a message or a part."""
    return message_id(wall_clock(), secrets.randbits(90), prefix)


def _same(one: str, other: str) -> bool:
    return Path(one).resolve() == Path(other).resolve()
