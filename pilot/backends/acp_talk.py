"""A conversation over the Agent Client Protocol: JSON-RPC, a message a line, through a program's own pipes.

The official library's connection is not used: it hears every message in a task of its own, so that their order and
the pressure of a full store are lost, and it drops what its version of the schema does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Iterable, Mapping

from pilot.backends.acp_events import Record
from pilot.backends.acp_outcome import Answer
from pilot.backends.reading import Event, Piece, as_event, parsed
from pilot.domain.agent import Emit, OutputKind
from pilot.domain.outcome import Usage
from pilot.runner.lines import Line
from pilot.runner.process import Process

LISTENING = 3.0
"""Seconds in which an agent may answer a prompt that was cancelled: it ends its tools and writes the session down."""
STDERR_TAIL = 8 << 10
NO_METHOD = -32601

_HEAD = 2000
_REQUEST = re.compile(rb'"id":\s*(\d+|"[\w.:-]{1,100}")')


class Talk:
    """What is said to an agent, and heard of it. One request at a time; what comes meanwhile goes into `record`.

    `cancels`: a prompt that is given up is cancelled by the protocol's own means first.
    """

    def __init__(self, record: Record, emit: Emit, *, cancels: bool = True) -> None:
        self.record = record
        self._cancels = cancels
        self.stderr = bytearray()
        self.junk = False
        """Something else than the protocol came on its standard output."""
        self.spoke = False
        """Something of the protocol came."""
        self.asked = ""
        """The last method that was asked for."""
        self._emit = emit
        self._process: Process | None = None
        self._number = 0
        self._open: int | None = None
        """The prompt that is not answered yet."""
        self._owed: object = None
        """The agent's own request that is not answered yet."""
        self._replay = False
        self._used = Usage()

    @property
    def complaint(self) -> str:
        """The end of what it wrote on standard error."""
        return self.stderr.decode(errors="replace")

    def begin(self, process: Process) -> None:
        """This is the program."""
        self._process = process

    async def ask(
        self, method: str, params: Mapping[str, object], *, seconds: float | None = None, replay: bool = False
    ) -> Answer:
        """Send a request and listen until it is answered; `seconds` bound the waiting for the agent only.

        `replay`: what is told meanwhile is old. Raises `TimeoutError`, and `EOFError` when its output ends.
        """
        self._number, self._replay, self.asked = self._number + 1, replay, method
        number = self._number
        self._open = number if method == "session/prompt" else None
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        # it may have to be read before it reads
        sending = asyncio.ensure_future(self._send({"id": number, "method": method, "params": params}))
        try:
            while True:
                message = await self._hear(await self._line(deadline))
                if message is not None and message.get("id") == number:
                    self._open = None
                    return _answer(message)
        finally:
            self._replay = False
            sending.cancel()

    async def named(self) -> None:
        """Have the session's name stored."""
        await self._emit.session(self.record.session or "")

    async def show(self, pieces: Iterable[Piece]) -> None:
        """Hand these on, and what was used up, if more is known than before."""
        for kind, data in pieces:
            await self._emit.output(kind, data)
        if (used := self.record.usage) != self._used:
            self._used = used
            self._emit.usage(used)

    async def quiet(self, seconds: float, most: float) -> None:
        """Let old news pass: until nothing has come for `seconds`, at most for `most`."""
        loop, self._replay = asyncio.get_running_loop(), True
        end = loop.time() + most
        try:
            while (now := loop.time()) < end:
                await self._hear(await self._line(now + seconds))
        except TimeoutError:
            return
        finally:
            self._replay = False

    async def listen(self, seconds: float) -> None:
        """Hear what it has to say until its output ends. Raises `TimeoutError` after `seconds`."""
        deadline = asyncio.get_running_loop().time() + seconds
        with contextlib.suppress(EOFError):
            while True:
                await self._hear(await self._line(deadline))

    async def hang_up(self) -> None:
        """Cancel the prompt that is under way, and wait a little for the agent to have obeyed. Emits nothing."""
        if self._open is None or not self._cancels:
            return
        number, self._open = self._open, None
        deadline = asyncio.get_running_loop().time() + LISTENING
        try:
            async with asyncio.timeout_at(deadline):
                await self._cancel()
                while True:
                    message = parsed((await self._line(deadline)).data) or {}
                    if message.get("id") == number and "method" not in message:
                        return
                    if message.get("method") == "session/request_permission":
                        await self._reply(message.get("id"), {"result": {"outcome": {"outcome": "cancelled"}}})
        except (TimeoutError, EOFError):
            return

    async def interrupt(self, process: Process) -> None:
        """For `running`: ask it to end; the signals come when this returns."""
        if self._open is not None:
            self._open = None
            if not self._cancels:
                return
            await self._cancel()
        await process.close_stdin()
        await process.wait()

    async def _cancel(self) -> None:
        owed, self._owed = self._owed, None
        await self._send({"method": "session/cancel", "params": {"sessionId": self.record.session}})
        if owed is not None:
            await self._reply(owed, {"result": {"outcome": {"outcome": "cancelled"}}})

    async def _line(self, deadline: float | None) -> Line:
        assert self._process is not None  # noqa: S101  nobody is asked anything before `begin`
        async with asyncio.timeout_at(deadline):
            line = await anext(self._process.lines(), None)
        if line is None:
            raise EOFError
        return line

    async def _hear(self, line: Line) -> Event | None:
        """Show a line, and answer it if it asks something; the message if it is an answer itself."""
        if line.stream == "stderr":
            self._complain(line.data)
            await self._emit.output(OutputKind.STDERR, line.data + b"\n")
            return None
        if line.cut:
            await self._emit.output(OutputKind.RAW, line.data + b"\n")
            if b'"method"' in line.data[:_HEAD] and (asked := _REQUEST.search(line.data[:_HEAD])):
                await self._reply(json.loads(asked[1]), _error(-32600, "the message is too long"))
            return None
        message = parsed(line.data)
        if message is None or not ("method" in message or {"result", "error"} & message.keys()):
            self.junk = self.junk or bool(line.data.strip())
            self._complain(line.data)
            await self._emit.output(OutputKind.STDOUT, line.data + b"\n")
            return None
        self.spoke = True
        if "method" not in message:
            await self._emit.output(OutputKind.RAW, line.data + b"\n")
            return message
        self._owed = message.get("id")
        if not self._replay:
            await self.show(self.record.read(message, line.data))
        if self._owed is not None:
            await self._serve(message)
        return None

    async def _serve(self, message: Event) -> None:
        """Answer what the agent asks for. It has tools of its own for files and commands: none are offered here."""
        if message.get("method") != "session/request_permission":
            reply = _error(NO_METHOD, f"pilot has no {message.get('method')}")
        else:
            pieces, chosen = self.record.asked(as_event(message.get("params")))
            await self.show(pieces)
            outcome = {"outcome": "cancelled"} if chosen is None else {"outcome": "selected", "optionId": chosen}
            reply = {"result": {"outcome": outcome}}
        owed, self._owed = self._owed, None
        await self._reply(owed, reply)

    async def _reply(self, number: object, reply: Mapping[str, object]) -> None:
        await self._send({"id": number, **reply})

    async def _send(self, message: Mapping[str, object]) -> None:
        assert self._process is not None  # noqa: S101  as above
        with contextlib.suppress(BrokenPipeError):  # that its output ends, too, is noticed by who listens
            await self._process.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    def _complain(self, data: bytes) -> None:
        self.stderr += data[:STDERR_TAIL] + b"\n"
        del self.stderr[:-STDERR_TAIL]


def _answer(message: Event) -> Answer:
    if "error" in message:
        return Answer(error=as_event(message.get("error")))
    return Answer(result=as_event(message.get("result")))


def _error(code: int, words: str) -> dict[str, object]:
    return {"error": {"code": code, "message": words}}
