"""`pilot serve`: the dispatcher and the HTTP server in one loop, and what signals mean to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import structlog

from pilot.api.server import build, listen, server
from pilot.app import agents
from pilot.app.context import Context, limits_of, new_node, open_context
from pilot.config.load import Loaded, load
from pilot.dispatch.dispatcher import Dispatcher
from pilot.domain.errors import PilotError
from pilot.domain.ports import NodeKind
from pilot.runner.proctree import become_subreaper

log = structlog.get_logger()
HURRY = 2.0
"""Seconds between the steps in which a second signal ends what runs: asked, ended without grace, left as it is."""
_AT_START = ("state_dir", "store", "server", "dispatcher", "retry")
"""Settings that are looked at when `serve` starts, and not again."""


async def serve(loaded: Loaded, *, host: str | None = None, port: int | None = None) -> None:
    """Run until SIGTERM or SIGINT; what runs then drains, a second signal ends it at once. SIGHUP reloads."""
    settings = loaded.settings
    agents.check(settings)
    host, port = host or settings.server.host, settings.server.port if port is None else port
    become_subreaper()
    sock = listen(host, port)
    with contextlib.closing(sock):
        async with open_context(loaded) as context:
            node = new_node(NodeKind.SERVE, settings.dispatcher.max_running)
            dispatcher = context.dispatcher(node, limits_of(settings), context.stored.values())
            with _signals(dispatcher, context, loaded):
                await _run(dispatcher, sock, node.id, len(context.stored))


async def _run(dispatcher: Dispatcher, sock: socket.socket, node: str, projects: int) -> None:
    http = server(build(lambda: dispatcher.accepting))
    serving = asyncio.create_task(http.serve(sockets=[sock]))
    dispatching = asyncio.create_task(dispatcher.run())
    try:
        await dispatcher.started(dispatching)
        host, port = sock.getsockname()[:2]
        log.info("serve.started", node=node, pid=os.getpid(), url=f"http://{host}:{port}", projects=projects)
        _notify_systemd("READY=1")
        await asyncio.wait({serving, dispatching}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            serving.result()  # the server can't go on without having been told: say why
    finally:
        _notify_systemd("STOPPING=1")
        dispatcher.drain()
        try:
            await dispatching
        finally:
            http.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            log.info("serve.stopped", node=node)


@contextlib.contextmanager
def _signals(dispatcher: Dispatcher, context: Context, loaded: Loaded) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def stop(name: str) -> None:
        if dispatcher.accepting:
            log.info("serve.draining", signal=name, running=len(dispatcher.worker_status()))
            dispatcher.drain()
        else:
            log.warning("serve.forced", signal=name)
            force()

    def force() -> None:
        dispatcher.force()
        loop.call_later(HURRY, force)

    def hangup() -> None:
        task = asyncio.create_task(_reload(dispatcher, context, loaded))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: lambda: stop("SIGTERM"),
        signal.SIGINT: lambda: stop("SIGINT"),
        signal.SIGHUP: hangup,
    }
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


async def _reload(dispatcher: Dispatcher, context: Context, loaded: Loaded) -> None:
    """Take the new configuration's projects and agents whole, or keep the old ones; the rest counts after a restart."""
    try:
        new = await asyncio.to_thread(load, loaded.path, os.environ)
        await asyncio.to_thread(agents.check, new.settings)
        await context.configure(new.settings)
    except PilotError as error:
        log.error("config.refused", problems=str(error).splitlines())
        return
    await dispatcher.reconfigure(context.stored.values(), context.accounts(context.stored), context.budget())
    later = [name for name in _AT_START if getattr(new.settings, name) != getattr(loaded.settings, name)]
    log.info("config.reloaded", projects=len(context.stored), after_restart=later)


def _notify_systemd(state: str) -> None:
    """One datagram to the service manager, if there is one (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(state.encode())
