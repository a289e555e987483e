"""The HTTP server inside `pilot serve`: it shares the loop and leaves the signals to the application."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI, Response

from pilot.api.problems import handle_problems
from pilot.api.webhooks import Webhooks
from pilot.domain.errors import Busy, UsageError

SOURCES_WITH_WEBHOOKS = ("github", "linear")


def build(ready: Callable[[], bool], webhooks: Webhooks | None = None) -> FastAPI:
    """The application. `ready` says whether work is taken in."""
    app = FastAPI(title="pilot", openapi_url=None, docs_url=None, redoc_url=None)

    handle_problems(app)

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        """The process and its loop are alive."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        """Work is taken in; 503 before the first and while draining."""
        if not ready():
            response.status_code = 503
            return {"status": "not ready"}
        return {"status": "ok"}

    if webhooks is not None:
        for source in SOURCES_WITH_WEBHOOKS:
            app.add_route(f"/webhooks/{source}", webhooks.endpoint(source), methods=["POST"])
    return app


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: a signal means drain, and that is the application's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def server(app: FastAPI) -> Server:
    """A server for the application; call `serve(sockets=[listen(...)])`, end it by `should_exit`."""
    return Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2))


def listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises `Busy` when the port is taken, `UsageError` when the address is not ours."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as error:
        raise UsageError(f"server.host {host!r}: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
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
