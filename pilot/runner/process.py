"""The one way pilot starts a programme, reads it, and ends it with all that it started."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import structlog

from pilot.domain.agent import Places, Sandbox
from pilot.runner.ending import Patience, end_family, remember
from pilot.runner.lines import Chunks, Line, Lines
from pilot.runner.pipes import Pipes, Stdin, Stream
from pilot.runner.proctree import MARKER, Family, become_subreaper, has_proc, signal_group

__all__ = ["MARKER", "Line", "Process", "Stream", "become_subreaper", "end_marked", "running"]

Interrupt = Callable[["Process"], Awaitable[None]]

NOWHERE = Places()
_log = structlog.get_logger(__name__)
_KILLED = 10.0
"""Seconds that the kernel has to take a killed process away."""


class Process:
    """A programme that runs, in a session of its own. Made by `running`.

    Somebody has to read (`lines` or `chunks`, one reader): a programme that nobody reads stops when its pipe is
    full, and `wait` alone never reads.
    """

    def __init__(
        self,
        transport: asyncio.SubprocessTransport,
        pipes: Pipes,
        stdin: Stdin | None,
        family: Family,
        *,
        interrupt: Interrupt | None,
        grace: float,
        line_limit: int,
    ) -> None:
        self.pid = transport.get_pid()
        self._transport = transport
        self._pipes = pipes
        self._stdin = stdin
        self._family = family
        self._interrupt = interrupt
        self._grace = grace
        self._ended: asyncio.Future[None] | None = None
        self._lines = Lines(pipes, line_limit)

    @property
    def returncode(self) -> int | None:
        """The exit code, -N when signal N ended it, None while it runs."""
        return self._transport.get_returncode()

    def lines(self) -> AsyncIterator[Line]:
        """All lines of both streams in order of arrival.

        Ends when the process has exited and what it wrote is read; whoever else holds its pipes delays that by
        a fraction of a second only. May be left, or its `anext` cancelled, and taken up again: no line is lost.
        """
        return self._lines

    def chunks(self, gather: float = 0.0) -> AsyncIterator[tuple[Stream, bytes]]:
        """The same as raw pieces, as large as they come (up to 1 MiB). Not to be mixed with `lines`.

        `gather`: so many seconds after a silence is waited for more, so that short lines become one piece.
        """
        return Chunks(self._pipes, gather)

    async def write(self, data: bytes) -> None:
        """Send to the programme's input; waits while it does not read.

        Raises `BrokenPipeError` when its input is closed, by either side, or was not kept.
        """
        if self._stdin is None:
            raise BrokenPipeError(errno.EPIPE, "the programme was started without an input")
        await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """End of input. More than once is no error."""
        if self._stdin is not None:
            self._stdin.close()

    async def wait(self) -> int:
        """The exit code, as soon as the process exits, whoever still holds its pipes."""
        await asyncio.shield(self._pipes.exited)
        return cast("int", self.returncode)

    async def end(self) -> None:
        """End the process and everything it started; returns when all are gone, also when called again.

        `interrupt` has `grace` seconds; SIGINT to the group follows when it returns, then after `grace` each
        SIGTERM and SIGKILL. A cancellation meanwhile makes all that short, and is raised at the end.
        """
        patience = Patience()
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            try:
                await self._end(patience)
            finally:
                self._ended.set_result(None)
        else:
            await patience.finish(self._ended)
        patience.settle()

    async def _end(self, patience: Patience) -> None:
        self._pipes.drop()
        if not self._pipes.exited.done():
            await self._climb(patience)
        if self._stdin is not None:
            self._stdin.abort()
        survivors = await end_family(self._family, patience, min(self._grace, 1.0))
        if not has_proc():
            signal_group(self.pid, signal.SIGKILL)
        if survivors:
            _log.error("process.survived", pids=survivors, marker=MARKER)

    async def _climb(self, patience: Patience) -> None:
        """The ladder, up to the step at which the process exits."""
        exited = self._pipes.exited
        await remember(self._family, patience)  # while parents live, descent is seen
        if self._interrupt is not None and not patience.hurry:
            await patience.courtesy(self._interrupt, self, self._grace)
        for number in (signal.SIGINT, signal.SIGTERM):
            if exited.done():
                return
            self._signal(number)
            self._signal(signal.SIGCONT)  # who is stopped can't obey
            if await patience.wait(exited, self._grace):
                return
            await remember(self._family, patience)
        self._signal(signal.SIGKILL)
        await patience.wait(exited, _KILLED, firm=True)

    def _signal(self, number: int) -> None:
        """Signal the group, unless its number may be somebody else's by now."""
        if self.returncode is None and self._family.led():
            signal_group(self.pid, number)

    async def _close(self) -> None:
        patience = Patience()
        self._transport.close()
        await patience.wait(self._pipes.closed, 1.0, firm=True)
        patience.settle()


@asynccontextmanager
async def running(
    argv: Sequence[str],
    *,
    cwd: str,
    env: Mapping[str, str],
    marker: str,
    stdin: bytes | None = None,
    keep_stdin: bool = False,
    interrupt: Interrupt | None = None,
    grace: float = 5.0,
    line_limit: int = 1 << 20,
    sandbox: Sandbox | None = None,
    places: Places = NOWHERE,
) -> AsyncIterator[Process]:
    """Run a programme in its own session, and leave nothing of it behind.

    `env` is its whole environment; `PILOT_RUN` is added: `marker`, a slash, and a part of this run's own.
    `stdin`: written and closed; None: empty input, or with `keep_stdin` one for `write`. `grace` is seconds,
    `line_limit` bytes. `sandbox`: it runs in there, and finds `places` there.
    Leaving the block, also by cancellation, ends what still runs (`Process.end`) and then
    every process that the programme started, whether or not it succeeded, before the block is left.
    Raises OSError as the system gives it when the programme can't be started.
    """
    own = f"{marker}/{secrets.token_hex(4)}"
    if sandbox is not None:
        argv = await asyncio.to_thread(sandbox.command, argv, cwd=cwd, env=env, places=places)
    family, pipes, patience = Family(lambda value: value == own), Pipes(), Patience()
    piped = stdin is not None or keep_stdin
    transport, feed = await _started(argv, cwd, {**env, MARKER: own}, piped, family, pipes, patience)
    process = Process(transport, pipes, feed, family, interrupt=interrupt, grace=grace, line_limit=line_limit)
    try:
        patience.settle()
        if feed is not None and stdin is not None:
            feed.put(stdin)
            if not keep_stdin:
                feed.close()
        yield process
    finally:
        try:
            await process.end()
        finally:
            await process._close()


async def end_marked(prefix: str, upto: int | None = None) -> list[int]:
    """End every process whose marker starts with `prefix`, with all descendants; returns the pids found.

    For recovery, when nobody is left who started them. Returns when they are gone. A marker ends where its
    slash is: give "n1/7/" rather than "n1/7" unless run 71 is meant, too. `upto` spares those whose marker goes on
    with a higher number: the claims after the one that was lost.
    """
    if not prefix:
        raise ValueError("an empty prefix would be every run of everybody")
    patience = Patience()
    family = Family(lambda value: value.startswith(prefix) and (upto is None or _number(value, prefix) <= upto))
    survivors = await end_family(family, patience, 1.0)
    patience.settle()
    if survivors:
        _log.error("process.survived", pids=survivors, marker=prefix)
    return sorted(family.known)


def _number(marker: str, prefix: str) -> int:
    """The number behind the prefix; 0 where there is none."""
    digits = marker.removeprefix(prefix).partition("/")[0]
    return int(digits) if digits.isdecimal() else 0


async def _started(
    argv: Sequence[str],
    cwd: str,
    env: Mapping[str, str],
    piped: bool,
    family: Family,
    pipes: Pipes,
    patience: Patience,
) -> tuple[asyncio.SubprocessTransport, Stdin | None]:
    """Start it to the end even when cancelled: half a start would leave a process that nobody knows."""
    spawn = asyncio.ensure_future(_spawn(pipes, argv, cwd, env, piped=piped))
    await patience.finish(spawn)
    try:
        transport, feed = spawn.result()
    except OSError:
        patience.settle()
        raise
    except ValueError as error:  # NUL or a lone surrogate, in what may have come from outside
        patience.settle()
        raise OSError(errno.EINVAL, f"can't be a command line: {error}", argv[0]) from error
    except (RuntimeError, asyncio.CancelledError) as error:
        # no thread to watch it with, or the loop is closing: the child may well be there
        await end_family(family, patience, 0.0)
        pipes.close()
        patience.settle()
        if isinstance(error, asyncio.CancelledError):
            raise
        raise OSError(errno.EAGAIN, f"can't be watched: {error}", argv[0]) from error
    family.begin(transport.get_pid())
    return transport, feed


async def _spawn(
    pipes: Pipes, argv: Sequence[str], cwd: str, env: Mapping[str, str], *, piped: bool
) -> tuple[asyncio.SubprocessTransport, Stdin | None]:
    """The child and its input: a pipe, since on asyncio's socket pair `/dev/stdin` can't be opened."""
    loop = asyncio.get_running_loop()
    if not piped:
        transport, _ = await loop.subprocess_exec(
            lambda: pipes, *argv, cwd=cwd, env=env, start_new_session=True, stdin=asyncio.subprocess.DEVNULL
        )
        return transport, None
    ours, theirs = None, -1
    try:
        theirs, write_end = os.pipe()
        ours = os.fdopen(write_end, "wb", buffering=0)
        transport, _ = await loop.subprocess_exec(
            lambda: pipes, *argv, cwd=cwd, env=env, start_new_session=True, stdin=theirs
        )
    except BaseException:
        if ours is not None:
            ours.close()
        raise
    finally:
        if theirs >= 0:
            os.close(theirs)
    _, feed = await loop.connect_write_pipe(Stdin, ours)
    return transport, feed
