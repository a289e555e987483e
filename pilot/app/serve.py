"""`pilot serve`: dispatcher, sources, deliveries and HTTP server in one loop, and what signals mean to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import structlog

from pilot.api.server import listen, server
from pilot.api.webhooks import Webhooks
from pilot.app import agents
from pilot.app.api import Api
from pilot.app.context import HURRY, Context, limits_of, open_context
from pilot.app.outside import Outside
from pilot.config.load import Loaded, load
from pilot.dispatch.dispatcher import Dispatcher
from pilot.domain.errors import PilotError
from pilot.domain.ports import NodeKind
from pilot.runner.proctree import become_subreaper
from pilot.store.token_file import ensure_token

log = structlog.get_logger()
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
            node = context.node(NodeKind.SERVE, settings.dispatcher.max_running)
            outside = Outside(context, node.id)
            try:
                outside.adopt(await outside.prepare(settings))
                node = replace(node, notifies=outside.notifies)
                dispatcher = context.dispatcher(node, limits_of(settings), context.stored.values())
                webhooks = Webhooks(outside.inbox, outside.receivers, outside.feed.nudge)
                api = Api(context, lambda: dispatcher.accepting, webhooks, host)
                token = await ensure_token(context.state_dir, context.store.tokens)
                with _signals(dispatcher, outside, context, loaded, api):
                    await _run(dispatcher, outside, api, sock, node.id, len(context.stored), token)
            finally:
                await outside.close()


async def _run(
    dispatcher: Dispatcher, outside: Outside, api: Api, sock: socket.socket, node: str, projects: int, token: Path
) -> None:
    http = server(api.app)
    serving = asyncio.create_task(http.serve(sockets=[sock]))
    telling = asyncio.create_task(api.run())
    trading: asyncio.Task[None] | None = None

    async def told() -> None:
        outside.stop()  # what has just ended may still be told
        if trading is not None:
            await asyncio.wait([trading])

    dispatching = asyncio.create_task(dispatcher.run(told))
    try:
        await dispatcher.started(dispatching)
        trading = asyncio.create_task(outside.run())
        host, port = sock.getsockname()[:2]
        log.info(
            "serve.started",
            node=node,
            pid=os.getpid(),
            url=f"http://{host}:{port}",
            projects=projects,
            token=str(token),
        )
        _notify_systemd("READY=1")
        await asyncio.wait({serving, dispatching, trading, telling}, return_when=asyncio.FIRST_COMPLETED)
        for task in (serving, trading, telling):
            if task.done():
                task.result()  # it can't go on without having been told: say why
    finally:
        _notify_systemd("STOPPING=1")
        outside.stop_asking()
        dispatcher.drain()
        api.refuse_work()
        try:
            await dispatching
        finally:
            outside.stop()
            api.close()
            telling.cancel()
            http.should_exit = True
            await asyncio.gather(serving, telling, *filter(None, [trading]), return_exceptions=True)
            await api.settled()
            log.info("serve.stopped", node=node)


@contextlib.contextmanager
def _signals(dispatcher: Dispatcher, outside: Outside, context: Context, loaded: Loaded, api: Api) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def stop(name: str) -> None:
        if dispatcher.accepting:
            log.info("serve.draining", signal=name, running=len(dispatcher.worker_status()))
            outside.stop_asking()
            dispatcher.drain()
            api.refuse_work()
        else:
            log.warning("serve.forced", signal=name)
            force()

    def force() -> None:
        dispatcher.force()
        outside.force()
        loop.call_later(HURRY, force)

    def hangup() -> None:
        task = asyncio.create_task(_reload(dispatcher, outside, context, loaded))
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


async def _reload(dispatcher: Dispatcher, outside: Outside, context: Context, loaded: Loaded) -> None:
    """Take the new configuration's projects, agents and sources whole, or keep the old ones.

    The rest counts after a restart.
    """
    try:
        new = await asyncio.to_thread(load, loaded.path, os.environ)
        await asyncio.to_thread(agents.check, new.settings)
        parts = await outside.prepare(new.settings)
        try:
            await context.configure(new.settings)
        except BaseException:
            await outside.discard(parts)
            raise
        outside.adopt(parts)
    except PilotError as error:
        log.error("config.refused", problems=str(error).splitlines())
        return
    accounts = context.accounts(context.stored)
    await dispatcher.reconfigure(context.stored.values(), accounts, context.budget(), notifies=outside.notifies)
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
