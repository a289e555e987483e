"""A server of OpenCode for one attempt: started, heard, and ended with everything that ran in it.

Measured with 1.18: no signal has it stop its tools, which run in sessions of their own; so it is asked over HTTP
first. It ends 50 ms after SIGINT.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
import socket
from collections.abc import AsyncIterator, Mapping

from pilot.backends.opencode_cli import (
    CONTENT,
    PASSWORD,
    UNPACKED,
    USERNAME,
    Model,
    child_environment,
    configuration,
    login,
    places,
)
from pilot.backends.opencode_login import guarded
from pilot.backends.opencode_outcome import server_gone
from pilot.backends.opencode_session import Ended
from pilot.backends.opencode_turn import Turn
from pilot.clients.opencode import Client, OpenCodeError
from pilot.domain.agent import AgentRequest
from pilot.domain.outcome import FailureClass, failed
from pilot.runner.process import Line, Process, running

GRACE = 5.0
"""Seconds for each way of asking it to end: over HTTP, SIGINT, SIGTERM."""
START = 60.0
"""Seconds in which it has to listen; a second is usual."""
_USER = "opencode"
_LISTENING = re.compile(rb"listening on http://127\.0\.0\.1:(\d+)")
_IN_THE_WAY = re.compile(
    r"ServeError|EADDRINUSE|port .{0,20}in use|database is locked|SQLITE_BUSY|Failed query", re.IGNORECASE
)
"""Its port is somebody's by now; or several began at once, and each made the tables of the user's database."""


class InTheWay(Ended):
    """Another was faster: it can be started again."""


class Own:
    """Where a server of one's own is to listen, and what it is started with.

    The password keeps every other program of the machine out; the agent's own tools inherit it, and may do to this
    attempt what they like.
    """

    def __init__(self, command: str, request: AgentRequest, environ: Mapping[str, str], model: Model) -> None:
        self.port = _free_port()
        self._password = secrets.token_urlsafe(24)
        self._request = request
        self._argv = (command, "serve", "--hostname", "127.0.0.1", "--port", str(self.port))
        given = request.environment.get(CONTENT) or environ.get(CONTENT, "")
        server = {CONTENT: configuration(model, given), PASSWORD: self._password, USERNAME: _USER}
        if request.scratch:
            server[UNPACKED] = request.scratch
        self._env = child_environment(request.environment, environ, model, **server)
        self._places = places(self._env, command)

    def client(self) -> Client:
        """For this server."""
        return Client(f"http://127.0.0.1:{self.port}", username=_USER, password=self._password)

    @contextlib.asynccontextmanager
    async def running(self, client: Client, turn: Turn) -> AsyncIterator[Process]:
        """The server, whose news the turn gets. Nothing of it, and of what ran in it, is left behind.

        Raises OSError when it can't be started.
        """

        async def ask_to_end(_: Process) -> None:
            await turn.stop()
            with contextlib.suppress(OpenCodeError):
                await client.dispose()

        async with (
            guarded(login(self._env)),
            running(
                self._argv,
                cwd=self._request.workspace,
                env=self._env,
                marker=self._request.marker,
                interrupt=ask_to_end,
                grace=GRACE,
                sandbox=self._request.sandbox,
                places=self._places,
            ) as process,
        ):
            reading = asyncio.ensure_future(_read(process, turn))
            try:
                yield process
            finally:
                reading.cancel()
                await asyncio.wait({reading})

    async def listening(self, turn: Turn) -> None:
        """Wait until it listens. Raises `Ended`, and `InTheWay` where it can be started again."""
        deadline = asyncio.get_running_loop().time() + START
        while True:
            try:
                news = await turn.take(deadline)
            except TimeoutError:
                detail = f"the agent's server did not listen after {START:.0f} s"
                raise Ended(failed(FailureClass.INFRA, detail, excerpt=turn.complaint)) from None
            if isinstance(news, int):
                gone = server_gone(None, news, turn.complaint, oom=False)
                raise InTheWay(gone) if _IN_THE_WAY.search(turn.complaint) else Ended(gone)
            if isinstance(news, Line) and (found := _LISTENING.search(news.data)) and int(found[1]) == self.port:
                return


async def _read(process: Process, turn: Turn) -> None:
    async for line in process.lines():
        await turn.put(line)
    await turn.put(await process.wait())


def _free_port() -> int:
    # the program itself would take 4096, where the user's own server may be expected
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
