"""Runs programs to their end and keeps what tells why they failed: set-up, gates, and a plan's commands.

A shell is for the operator's own command lines, from pilot.yaml, and never for anything from outside.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pilot.domain.agent import Emit, OutputKind, Sandbox
from pilot.domain.text import for_terminal
from pilot.runner.process import running

TAIL = 8 << 10
"""Bytes of a command's output that are kept with its result."""
_LINE = 300
_FIRST = 24
"""Lines that look like a reason, kept from further up than the tail."""
_REASON = re.compile(
    rb"(?i)error|fail|exception|traceback|panic|fatal|assert|not ok\b|undefined|cannot |can't |\xe2\x9c[\x97\x98]"
)
_LACKING = re.compile(
    r"No such file or directory|: (?:command )?not found|Permission denied|Read-only file system|Docker daemon"
)
_IN_SANDBOX = (
    "pilot: this ran in the sandbox, where nothing of your home is and no socket of this machine; "
    "a file, tool or socket that it lacks can be named in executor.sandbox_paths"
)
_STREAMS = {"stdout": OutputKind.STDOUT, "stderr": OutputKind.STDERR}


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. `duration` is ms; `tail` is what of its output tells why, for people and agents."""

    exit_code: int | None
    timed_out: bool
    duration: int
    tail: str


class Tail:
    """The end of an output, and before it the lines that look like the reason for a failure: 8 KiB in all."""

    def __init__(self, limit: int = TAIL) -> None:
        self._limit = limit
        self._size = 0
        self._end = bytearray()
        self._part = b""
        self._reasons: list[tuple[int, bytes]] = []

    def feed(self, data: bytes) -> None:
        """The next piece, cut anywhere."""
        if len(self._reasons) < _FIRST and (self._part or _REASON.search(data)):
            self._look(data)
        elif len(self._reasons) < _FIRST:
            self._part = data[data.rfind(b"\n") + 1 :][-_LINE:]
        self._size += len(data)
        self._end += data[-self._limit :]
        if len(self._end) > 2 * self._limit:
            del self._end[: -self._limit]

    def text(self) -> str:
        """Both, clean for a terminal."""
        if self._size <= self._limit:
            return self._clean(bytes(self._end))
        reasons: list[bytes] = []
        room = self._limit // 3
        for start, line in self._reasons:
            room -= len(line) + 1
            if room < 0 or start >= self._size - self._limit // 2:
                break
            reasons.append(line)
        above = b"\n".join([*reasons, "[…]".encode(), b""])
        end = bytes(self._end[-(self._limit - len(above)) :])
        newline = end.find(b"\n")
        end = end[newline + 1 :] if 0 <= newline < len(end) // 2 else end
        return self._clean(above + end)

    def _clean(self, data: bytes) -> str:
        """What stands for a bad byte is longer than the byte: the end counts."""
        text = for_terminal(data.decode(errors="replace"))
        return text.encode()[-self._limit :].decode(errors="ignore")

    def _look(self, data: bytes) -> None:
        start = self._size - len(self._part)
        *lines, self._part = (self._part + data).split(b"\n")
        for line in lines:
            if len(self._reasons) < _FIRST and _REASON.search(line):
                self._reasons.append((start, line[:_LINE]))
            start += len(line) + 1
        self._part = self._part[-_LINE:]


async def run_shell(
    command: str,
    *,
    cwd: Path,
    env: Mapping[str, str],
    marker: str,
    timeout: float,
    emit: Emit,
    sandbox: Sandbox | None = None,
) -> Ran:
    """Run it with `/bin/sh -c` to its end, or for `timeout` seconds; its whole process tree is gone afterwards.

    The command is the operator's, but what it runs is the agent's: so it runs in the attempt's `sandbox`.
    Output goes to `emit` as it comes. Raises OSError when there is no shell or no such directory.
    """
    argv = ("/bin/sh", "-c", command)
    return await run_program(argv, cwd=cwd, env=env, marker=marker, timeout=timeout, emit=emit, sandbox=sandbox)


async def run_program(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    marker: str,
    timeout: float,
    emit: Emit,
    sandbox: Sandbox | None = None,
    stdin: bytes | None = None,
) -> Ran:
    """The same for one program, without a shell. Raises OSError when it can't be started."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    tail = Tail()
    code: int | None = None
    timed_out = False
    try:
        async with running(argv, cwd=str(cwd), env=env, marker=marker, stdin=stdin, sandbox=sandbox) as process:
            async with asyncio.timeout(timeout):
                async for stream, data in process.chunks():
                    tail.feed(data)
                    await emit.output(_STREAMS[stream], data)
                code = await process.wait()
    except TimeoutError:
        timed_out = True
    duration, said = int((loop.time() - started) * 1000), tail.text()
    if code and sandbox is not None and _LACKING.search(said):  # else nobody thinks of it
        await emit.output(OutputKind.PILOT, f"{_IN_SANDBOX}\n".encode())
        said = f"{said[-(TAIL - len(_IN_SANDBOX) - 2) :].rstrip()}\n{_IN_SANDBOX}"
    return Ran(code, timed_out, duration, said)
