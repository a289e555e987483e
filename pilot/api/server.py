"""The HTTP server inside `pilot serve`: it shares the loop and leaves the signals to the application."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp

from pilot.api import given
from pilot.api.acts import ActRoutes
from pilot.api.answers import json_answer
from pilot.api.description import PATH, describe, operation_id
from pilot.api.executions import ExecutionRoutes
from pilot.api.packets import HttpProtocol
from pilot.api.plans import PlanRoutes
from pilot.api.posting import Route
from pilot.api.problems import handle_problems
from pilot.api.reads import ReadRoutes
from pilot.api.services import Services
from pilot.api.webhooks import Webhooks
from pilot.api.work import WorkRoutes
from pilot.domain.errors import Busy, UsageError

SOURCES_WITH_WEBHOOKS = ("github", "linear")
KEPT_ALIVE = 60
"""Seconds that a connection without a request stays open."""
VANISHED = 30_000
"""ms until the kernel ends a connection whose other end takes nothing of what it was sent."""


def build(ready: Callable[[], bool], webhooks: Webhooks | None = None, services: Services | None = None) -> FastAPI:
    """The application. `ready` says whether work is taken in; `services` are what the API needs."""
    app = FastAPI(
        title="pilot",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # whatever the environment asks for
    )
    app.router.route_class = Route
    handle_problems(app, services.redact if services else str)
    if services is not None:
        # Those that are called most come first: they are looked for in this order.
        for routes in (WorkRoutes, ExecutionRoutes, ActRoutes, PlanRoutes, ReadRoutes):
            routes(services).add_to(app)
        version = services.version

        async def openapi() -> Response:
            """What can be asked here, for machines."""
            return json_answer(describe(app, version))

        app.add_api_route(PATH, openapi, include_in_schema=False)
    _health(app, ready)
    if webhooks is not None:
        for source in SOURCES_WITH_WEBHOOKS:
            app.add_route(f"/webhooks/{source}", webhooks.endpoint(source), methods=["POST"])
    return app


def _health(app: FastAPI, ready: Callable[[], bool]) -> None:
    async def livez() -> Response:
        """The process and its loop are alive."""
        return json_answer({"status": "ok"})

    async def readyz() -> Response:
        """Work is taken in; 503 before the first and while draining."""
        return json_answer({"status": "ok"}) if ready() else json_answer({"status": "not ready"}, 503)

    app.add_api_route("/livez", livez, tags=["health"], response_model=given.HealthGiven)
    unready = {503: {"model": given.HealthGiven, "description": "It takes no work: it starts, or goes down."}}
    app.add_api_route("/readyz", readyz, tags=["health"], response_model=given.HealthGiven, responses=unready)  # type: ignore[arg-type]


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: a signal means drain, and that is the application's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def server(app: ASGIApp) -> Server:
    """A server for the application; call `serve(sockets=[listen(...)])`, end it by `should_exit`."""
    config = uvicorn.Config(
        app,
        http=HttpProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        proxy_headers=False,  # else anybody on this machine could choose the address that the audit names
        server_header=False,
        timeout_keep_alive=KEPT_ALIVE,
        timeout_graceful_shutdown=2,
    )
    return Server(config)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises `Busy` when the port is taken, `UsageError` when the address is not ours."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(f"server.host {host!r}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, VANISHED)  # what is accepted inherits it
        sock.bind(address)
        sock.listen(1024)  # a burst of webhooks waits here, and not for its sender's second try
    except OSError as error:
        sock.close()
        raise Busy(
            f"can't listen on {host}:{port}: {error.strerror}. Is another `pilot serve` running? "
            "Stop it, or choose another port with --port"
        ) from error
    sock.setblocking(False)
    return sock
