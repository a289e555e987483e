"""The commands over HTTP: the same documents as at home, so that what is shown is the same."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pilot.cli.session import Session
from pilot.client import Client
from pilot.client.documents import execution_of, milliseconds
from pilot.client.wire import checked_url
from pilot.domain.errors import NotFound, PilotError, UsageError
from pilot.domain.events import Event
from pilot.domain.execution import Enqueued, Execution
from pilot.domain.ports import Document, Hold, Why
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.dispatch.intake import TaskRequest
    from pilot.store.history import Piece

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def client_of(session: Session, server: str) -> Client:
    """The client for a server, with the token that is meant for it. Raises `UsageError`."""
    server = checked_url(server)
    return Client(server, _token(session, server))


def _token(session: Session, server: str) -> str:
    """From --token-file, $PILOT_TOKEN, or, for a server of this machine only, the state directory."""
    if session.token_file is not None:
        try:
            with session.token_file.open("rb") as file:
                return file.read(4096).decode("ascii", "replace").strip()
        except OSError as error:
            raise UsageError(f"--token-file {session.token_file}: {error.strerror}") from None
    if given := session.environ.get("PILOT_TOKEN", "").strip():
        return given
    if urlsplit(server).hostname not in _LOOPBACK:  # this machine's own token is nobody else's business
        raise UsageError(
            "no token: give it as $PILOT_TOKEN or --token-file; `pilot token create NAME --scope work` on the "
            "server's machine makes one"
        )
    from pilot.store.token_file import read_token

    try:
        return read_token(session.located().state_dir)
    except NotFound as error:
        raise UsageError(f"{error}; or give one as $PILOT_TOKEN or --token-file") from None


def executions(page: Mapping[str, Any]) -> list[Execution]:
    """Those of a page."""
    return [execution_of(document) for document in page.get("executions", ())]


def why_of(document: Mapping[str, Any]) -> Why:
    """The answer to "why is it not running?" as the value."""
    holds = [
        Hold(
            kind=str(hold.get("kind")),
            detail=str(hold.get("detail")),
            execution=hold.get("execution"),
            until=_when(hold.get("until")),
        )
        for hold in document.get("holds", ())
    ]
    return Why(document["id"], str(document["status"]), document.get("position"), holds, str(document.get("next")))


def _when(text: str | None) -> int | None:
    return None if text is None else milliseconds(text)


def event_of(document: Mapping[str, Any]) -> Event:
    """An event as the value."""
    return Event(
        document["id"],
        _when(document["at"]) or 0,
        document["type"],
        document["execution"],
        document.get("project_id"),
        document["data"],
    )


def piece_of(document: Mapping[str, Any]) -> Piece:
    """A piece of output as the value."""
    from pilot.store.history import Piece

    encoded = document.get("base64")
    data = str(document.get("text", "")).encode() if encoded is None else base64.b64decode(encoded)
    return Piece(document["attempt"], document["seq"], _when(document["at"]) or 0, document["kind"], data)


def attempts_of(document: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Attempts and questions as the values; what they lack is unknown."""
    from dataclasses import fields

    from pilot.store.history import Asked, Attempt

    def made(kind: type[Any], entry: Mapping[str, Any]) -> Any:
        told = {field.name: entry.get(field.name) for field in fields(kind)}
        times = {name: _when(text) for name, text in told.items() if name.endswith("_at") and isinstance(text, str)}
        return kind(**{**told, **times})

    attempts = [made(Attempt, {**entry, "gates": entry.get("gates") or ()}) for entry in document.get("attempts", ())]
    asked = [made(Asked, {**entry, "options": tuple(entry.get("options") or ())}) for entry in document["questions"]]
    return attempts, asked


async def shown(client: Client, id: int) -> tuple[Document, Document, Document | None]:
    """The documents of `show`: the execution, why it does not run, and its attempts where the server tells them."""
    document, why = await client.document(id), await client.why(id)
    try:
        return document, why, await client.attempts(id)
    except PilotError:  # an older server
        return document, why, None


async def reasons(client: Client, named: str) -> tuple[Execution, Document]:
    """The execution that is meant by an id, or by a task's name (its newest), and why it does not run."""
    execution: Execution | None = None
    if named.isascii() and named.isdecimal() and len(named) < 19:
        with suppress(NotFound):
            execution = await client.get(int(named))
    if execution is None:
        found = executions(await client.list(task_id=named, limit=100))
        if not found:
            raise NotFound(f"no execution of a task {named[:80]!r} there; `pilot list --all` shows what there is")
        execution = max(found, key=lambda one: one.id)
    return execution, await client.why(execution.id)


def pages(session: Session, id: int, attempt: int | None, *, follow: bool, every: float) -> Iterator[list[Document]]:
    """An execution's output, page by page; with `follow` until it has ended. An empty page: nothing new yet."""
    import asyncio

    after: str | None = None
    with asyncio.Runner() as runner:

        async def opened() -> Client:
            return client_of(session, session.server or "")

        client = runner.run(opened())
        try:
            while True:
                # The state first: what is written before an end is then still read after it.
                ended = runner.run(client.get(id)).status.final or not follow
                page = runner.run(client.pieces(id, after=after, attempt=attempt))
                found: list[Document] = page.get("output", [])
                after = page.get("next_after") or after
                yield found
                if not found:
                    if ended:
                        return
                    time.sleep(every)
        finally:
            runner.run(client.close())


def follow_events(
    session: Session, after: int, types: Sequence[str], execution: int | None, show: Callable[[Document], None]
) -> None:
    """Show what happens, for ever."""

    async def go(client: Client) -> None:
        async for event in client.events(after=after, types=types, execution=execution):
            if "id" in event and "type" in event:
                show(event)

    session.away(go)


def put_in(session: Session, request: TaskRequest, project: str | None) -> Enqueued:
    """A task into the queue of a server's project, which goes by its name there."""
    if project is None:
        raise UsageError("which project? Name it with -p, as the server calls it (`pilot status` lists them)")
    prompt = request.prompt.strip()
    title = request.title or one_line(prompt.partition("\n")[0], 200)

    async def go(client: Client) -> Enqueued:
        return await client.enqueue(
            project,
            title,
            body=prompt if prompt != title else None,
            task_id=request.task_id,
            kind=str(request.kind),
            priority=request.priority,
            lane=request.lane,
            after=request.after,
            payload=request.payload,
            labels=request.labels,
            callback_url=getattr(request, "callback_url", None),
            available_at=request.available_at,
            source=request.source,
            key=request.idempotency_key,
        )

    return session.away(go)
