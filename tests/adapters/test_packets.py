"""What an answer is written in, over a real connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from pilot.api.packets import HttpProtocol, Joining
from pilot.api.server import listen, server


class Counted(HttpProtocol):
    """Counts what really goes to the socket."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        write = transport.write

        def counted(data: Any) -> None:
            made.append(bytes(data))
            write(data)

        transport.write = counted  # type: ignore[method-assign]


made: list[bytes] = []


@asynccontextmanager
async def answering(app: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    made.clear()
    http = server(app)
    http.config.http = Counted
    sock = listen("127.0.0.1", 0)
    serving = asyncio.create_task(http.serve(sockets=[sock]))
    reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
    try:
        yield reader, writer
    finally:
        writer.close()
        http.should_exit = True
        await serving
        sock.close()


async def test_head_and_body_leave_together_and_a_stream_at_once() -> None:
    more = asyncio.Event()

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"transfer-encoding", b"chunked")]})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await more.wait()
        await send({"type": "http.response.body", "body": b"last"})

    async with answering(app) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"first" in await asyncio.wait_for(reader.readuntil(b"first"), 10)
        assert len(made) == 1
        assert made[0].startswith(b"HTTP/1.1 200")
        more.set()
        assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 10)).endswith(b"0\r\n\r\n")
        assert len(made) == 2


class Sink(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[bytes | str] = []

    def write(self, data: Any) -> None:
        self.said.append(bytes(data))

    def close(self) -> None:
        self.said.append("closed")

    def abort(self) -> None:
        self.said.append("aborted")

    def is_closing(self) -> bool:
        return bool({"closed", "aborted"} & set(self.said))


async def test_an_end_in_order_comes_behind_what_was_written_and_an_abort_before() -> None:
    orderly, hasty = Sink(), Sink()
    Joining(orderly).write(b"unheard")  # of another one
    await asyncio.sleep(0)
    orderly.said.clear()

    for sink, end in ((orderly, Joining.close), (hasty, Joining.abort)):
        joining = Joining(sink)
        joining.write(b"a")
        joining.write(b"b")
        end(joining)
    await asyncio.sleep(0)

    assert orderly.said == [b"ab", "closed"]
    assert hasty.said == ["aborted"]
