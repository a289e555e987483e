"""The guard and the hub before a small application, on a real socket, in the test's own loop."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response

from pilot.api.auth import needs
from pilot.api.guard import Guard, Hosts
from pilot.api.limits import Bodies
from pilot.api.problems import handle_problems
from pilot.api.server import listen, server
from pilot.api.stream import Hub
from pilot.domain.access import Caller, Scope
from pilot.store import Store, open_store
from tests.store.bed import Bed, Clock

PATIENCE = 20.0


@dataclass(slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Guarded:
    """A server under test. `token` may do everything."""

    bed: Bed
    store: Store
    hub: Hub
    guard: Guard
    port: int
    token: str
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    """What got through to the application: path and body."""

    async def ask(
        self, path: str = "/api/v1/look", *, method: str = "GET", token: str | None = "", body: bytes | None = None,
        headers: Mapping[str, str | list[str]] | None = None,
    ) -> Answer:  # fmt: skip
        """One request on a connection of its own. `token` "" is the rig's, None is none at all."""
        given: dict[str, str | list[str]] = {"host": f"127.0.0.1:{self.port}"}
        if token is not None:
            given["authorization"] = f"Bearer {token or self.token}"
        if body is not None:
            given |= {"content-type": "application/json", "content-length": str(len(body))}
        given |= {name.lower(): value for name, value in (headers or {}).items()}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(
            f"{name}: {each}\r\n"
            for name, value in given.items()
            for each in ([value] if isinstance(value, str) else value)
        )
        return await self.raw(head.encode("latin-1") + b"connection: close\r\n\r\n" + (body or b""))

    async def raw(self, data: bytes) -> Answer:
        """These very bytes, and what is answered to them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            writer.write(data)
            async with asyncio.timeout(PATIENCE):
                return await answer(reader)
        finally:
            writer.close()

    @asynccontextmanager
    async def stream(self, path: str, **headers: str) -> AsyncIterator[Stream]:
        """An answer that goes on."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        try:
            given = {"host": f"127.0.0.1:{self.port}", "authorization": f"Bearer {self.token}", **headers}
            head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
            writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
            async with asyncio.timeout(PATIENCE):
                first = await reader.readuntil(b"\r\n\r\n")
            yield Stream(int(first.split()[1]), first, reader)
        finally:
            writer.close()


@dataclass(slots=True)
class Message:
    """One event of a stream."""

    id: str
    name: str
    data: Any


class Stream:
    """Server-sent events as they come."""

    def __init__(self, status: int, head: bytes, reader: asyncio.StreamReader) -> None:
        self.status = status
        self.head = head
        self._reader = reader
        self._text = b""

    async def _more(self) -> bool:
        """The next piece of the body; False at its end."""
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        self._text += (await self._reader.readexactly(size + 2))[:-2]
        return size > 0

    async def next(self) -> Message | None:
        """The next event; None when the stream has ended, or broke off."""
        while True:
            async with asyncio.timeout(PATIENCE):
                while b"\n\n" not in self._text:
                    try:
                        if not await self._more():
                            return None
                    except (asyncio.IncompleteReadError, ConnectionError):
                        return None
            block, _, self._text = self._text.partition(b"\n\n")
            fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if ": " in line)
            if "data" in fields:
                return Message(fields["id"], fields.get("event", ""), json.loads(fields["data"]))

    async def take(self, count: int) -> list[Message]:
        """So many of them; fewer when it ends."""
        found: list[Message] = []
        while len(found) < count and (each := await self.next()) is not None:
            found.append(each)
        return found


async def answer(reader: asyncio.StreamReader) -> Answer:
    """One whole answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    length = headers.get("content-length")
    body = await reader.readexactly(int(length)) if length else b""
    return Answer(int(first.split()[1]), headers, body)


@asynccontextmanager
async def guarded(
    path: Path, *, clock: Clock | None = None, bodies: Bodies | None = None, hosts: Hosts | None = None, **more: Any
) -> AsyncIterator[Guarded]:
    """A server on a store in this folder."""
    clock = clock or Clock()
    async with open_store(f"sqlite:///{path}/pilot.db", clock=clock) as store:
        token = await store.tokens.create("tester", [Scope.ADMIN], "test")
        hub = Hub(store.database, store.history, valid=store.tokens.valid)
        app = FastAPI(openapi_url="/api/v1/openapi.json")
        guard = Guard(
            app, tokens=store.tokens, audit=store.audit, clock=clock,
            hosts=hosts or Hosts.of("127.0.0.1", "https://pilot.acme.dev", ["other.test"]), bodies=bodies, **more,
        )  # fmt: skip
        sock = listen("127.0.0.1", 0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        rig = Guarded(Bed(store, clock), store, hub, guard, sock.getsockname()[1], token)
        _routes(app, rig)
        http = server(guard)
        serving = asyncio.create_task(http.serve(sockets=[sock]))
        following = asyncio.create_task(hub.run())
        try:
            yield rig
        finally:
            following.cancel()
            await asyncio.wait([following])
            http.should_exit = True
            await serving
            await guard.settled()


def _routes(app: FastAPI, rig: Guarded) -> None:
    handle_problems(app)

    @app.get("/livez")
    async def livez() -> Response:
        return JSONResponse({})

    @app.post("/webhooks/github")
    async def hook(request: Request) -> Response:
        return JSONResponse({"bytes": len(await request.body())})

    @app.get("/api/v1/look")
    async def look(caller: Annotated[Caller, needs(Scope.READ)]) -> Response:
        return JSONResponse({"name": caller.name, "peer": caller.peer})

    async def change(request: Request) -> Response:
        rig.asked.append((request.url.path, await request.body()))
        request.state.worker = request.query_params.get("worker")
        return JSONResponse({}, int(request.query_params.get("status", "200")))

    app.post("/api/v1/work", dependencies=[needs(Scope.WORK)])(change)
    app.post("/api/v1/rule", dependencies=[needs(Scope.ADMIN)])(change)

    @app.post("/api/v1/crash")
    async def crash(caller: Annotated[Caller, needs(Scope.WORK)]) -> Response:
        raise RuntimeError(caller.name)

    @app.get("/api/v1/events")
    async def events(request: Request, execution: int | None = None, project: str = "", type: str = "") -> Response:
        found = await rig.store.history.find_project(project) if project else None
        types = type.split(",") if type else ()
        return await rig.hub.events_response(request, types=types, execution=execution, project=found)

    @app.get("/api/v1/executions/{id}/stream")
    async def stream(request: Request, id: int) -> Response:
        return await rig.hub.execution_response(request, id)
