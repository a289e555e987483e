"""The whole API over a real socket, on a real store: what a program elsewhere sees of `pilot serve`, without agents.

Every answer that goes through `Rig.call` is held to what the OpenAPI document says of its route.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.routing import Match

from pilot.api.given import Problem
from pilot.api.server import listen, server
from pilot.api.webhooks import Webhooks
from pilot.app.api import Api
from pilot.app.context import Context, open_context
from pilot.config.load import load
from pilot.domain.access import Scope
from pilot.domain.outside import Inbox
from pilot.domain.task import Project
from pilot.store import Store

SECRET = "hunter2-hunter2-hunter2"
NEVER = 60.0
"""Seconds after which something that should have come long ago fails its test."""


@dataclass(slots=True)
class Rig:
    """A served API. `call` asks as admin unless told another token; `ready` is what the dispatcher would say."""

    context: Context
    url: str
    tokens: dict[Scope, str]
    http: httpx2.AsyncClient
    state: Path
    ready: bool = True
    api: Api = field(init=False)

    @property
    def described(self) -> FastAPI:
        return self.api.routes

    @property
    def store(self) -> Store:
        return self.context.store

    def project(self, name: str) -> Project:
        return next(row for row in self.context.stored.values() if row.name == name)

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        scope: Scope | None = Scope.ADMIN,
        code: int | None = None,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
    ) -> httpx2.Response:
        """One request; `code` is the status it has to have. The answer is what the document promises."""
        sent = {"authorization": f"Bearer {self.tokens[scope]}"} if scope is not None else {}
        if body is not None:
            raw = json.dumps(body).encode()
        if raw is not None:
            sent["content-type"] = "application/json"
        answer = await self.http.request(method, path, content=raw, headers=sent | (headers or {}))
        assert code is None or answer.status_code == code, f"{method} {path}: {answer.status_code} {answer.text[:2000]}"
        self._check(method, path, answer)
        return answer

    async def post(self, path: str, body: Any = None, *, code: int = 200, scope: Scope = Scope.ADMIN) -> Any:
        return (await self.call("POST", f"/api/v1{path}", body, code=code, scope=scope)).json()

    async def get(self, path: str, *, code: int = 200, scope: Scope = Scope.READ) -> Any:
        return (await self.call("GET", f"/api/v1{path}", code=code, scope=scope)).json()

    def _check(self, method: str, path: str, answer: httpx2.Response) -> None:
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json" or path == "/readyz", answer.text
            if path != "/readyz":
                conform(Problem, answer.json(), f"{method} {path}")
                assert answer.json()["status"] == answer.status_code
        route = route_of(self.described, method, path)
        if route is None:
            return
        key = answer.status_code
        own = key in (route.status_code or 200, 200) and key < 300
        assert own or key in route.responses, f"{method} {route.path}: {key} is not in the document"
        if own and route.response_model is not None:
            conform(route.response_model, answer.json(), f"{method} {route.path}")


def route_of(app: FastAPI, method: str, path: str) -> APIRoute | None:
    """The route that answers, if it is one of the document."""
    scope = {"type": "http", "method": method, "path": path.partition("?")[0], "headers": [], "root_path": ""}
    for route in routes_of(app):
        if route.matches(scope)[0] is Match.FULL:
            return route
    return None


def routes_of(app: FastAPI) -> list[APIRoute]:
    return [route for route in app.routes if isinstance(route, APIRoute) and route.include_in_schema]


def conform(model: Any, document: Any, where: str) -> None:
    """The document has all the fields of its model, and no other."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        assert isinstance(document, dict), where
        return
    again = model.model_validate(document).model_dump(mode="json", exclude_unset=True)
    assert again == document, f"{where}: {document} is not what {model.__name__} says"


def configuration(root: Path, projects: tuple[str, ...], **sections: Any) -> Path:
    """A pilot.yaml whose tasks are all left to workers."""
    entries = []
    for name in projects:
        place = root / "repos" / name
        place.mkdir(parents=True)
        subprocess.run(["git", "init", "-q", "-b", "main", place], check=True)
        entries.append({"name": name, "path": str(place), "allow_commands": ["make *"]})
    settings = {
        "state_dir": str(root / "state"),
        "server": {"port": 0, "callbacks": {"secret": SECRET}},
        "executor": {"type": "external"},
        "projects": entries,
        **sections,
    }
    file = root / "pilot.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@asynccontextmanager
async def serving(root: Path, projects: tuple[str, ...] = ("api", "web"), **sections: Any) -> AsyncIterator[Rig]:
    """The API, served on this loop."""
    loaded = load(configuration(root, projects, **sections), {})
    sock = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    async with open_context(loaded) as context, httpx2.AsyncClient(base_url=url, timeout=NEVER, verify=False) as http:
        tokens = {scope: await context.store.tokens.create(f"{scope}er", [scope], "a test") for scope in Scope}
        rig = Rig(context, url, tokens, http, root / "state")
        inbox: Inbox = context.store.inbox
        webhooks = Webhooks(inbox, dict, lambda _source: None)
        rig.api = Api(context, lambda: rig.ready, webhooks, "127.0.0.1")
        serving = server(rig.api.app)
        tasks = [asyncio.create_task(serving.serve(sockets=[sock])), asyncio.create_task(rig.api.run())]
        try:
            while not serving.started:
                await asyncio.sleep(0.001)
            yield rig
        finally:
            rig.api.close()
            tasks[1].cancel()
            serving.should_exit = True
            await asyncio.gather(*tasks, return_exceptions=True)
            await rig.api.settled()
            sock.close()


@contextmanager
def serving_beside(root: Path, projects: tuple[str, ...] = ("api", "web"), **sections: Any) -> Iterator[Rig]:
    """The same in a thread of its own, for clients that block."""
    started: list[Rig] = []
    failed: list[BaseException] = []
    ready, end = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def live() -> None:
        async with serving(root, projects, **sections) as rig:
            started.append(rig)
            ready.set()
            await end.wait()

    def run() -> None:
        try:
            loop.run_until_complete(live())
        except BaseException as error:
            failed.append(error)
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name="served")
    thread.start()
    ready.wait(NEVER)
    try:
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        if not failed:
            loop.call_soon_threadsafe(end.set)
        thread.join(NEVER)
        assert not failed, failed
