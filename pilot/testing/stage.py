"""A workspace, a request, and how the agent under test talks: what every test of a backend needs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.agent import AgentRequest, Backend
from pilot.domain.outcome import FailureClass, Outcome, Usage
from pilot.runner.proctree import MARKER, is_alive, marker_of, start_ticks
from pilot.testing.script import Script
from pilot.testing.seen import Seen

# so that a promise that is not kept says what was seen instead
pytest.register_assert_rewrite(
    *(f"pilot.testing.{room}" for room in ("outcomes", "sessions", "endings", "outputs", "given", "standing"))
)

SECRET = "sk-suite-0123456789abcdefghij"
"""A key to set your backend up with, if its agent takes one."""
SESSION = "22222222-3333-4444-8555-666666666666"
"""A session to go on in."""


class Stage:
    """What tests of one backend's own need, too."""

    def backend(self, program: Path) -> Backend:
        """Your backend, set up to start this program as its agent."""
        raise NotImplementedError

    def program(self, script: Script) -> Path:
        """The executable that plays the script; override it when your agent's answers depend on what it is asked."""
        return script.program(self.folder)

    @pytest.fixture(autouse=True)
    def stage(self, tmp_path: Path) -> Iterator[None]:
        self.set(tmp_path)
        yield
        self.struck()

    def set(self, folder: Path) -> None:
        """Begin in this folder."""
        self.folder = folder
        self.workspace = folder / "workspace"
        self.scratch = folder / "scratch"
        for made in (self.workspace, self.scratch, folder / "home"):
            made.mkdir()
        self.marker = f"suite-{os.getpid()}-{folder.name}"

    def struck(self) -> None:
        """Expect that nothing is left."""
        assert self.left() == []
        assert list(self.scratch.iterdir()) == []

    def left(self, more: str = "") -> list[int]:
        """Living processes of this test's runs, by their marker."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if (marker_of(pid) or "").startswith(self.marker + more)]

    def request(self, **more: Any) -> AgentRequest:
        given: dict[str, Any] = {
            "prompt": "do it",
            "workspace": str(self.workspace),
            "execution": 7,
            "attempt": 1,
            "project": "api",
            "task_id": "GH-46",
            "environment": {"PATH": os.environ["PATH"], "HOME": str(self.folder / "home"), "GIVEN": "yes"},
            "marker": self.marker,
            "new_session_id": "11111111-2222-4333-8444-555555555555",
            "scratch": str(self.scratch),
        }
        return AgentRequest(**given | more)

    async def run(self, script: Script, seen: Seen | None = None, **more: Any) -> Outcome:
        """Play the script as the agent of one run."""
        backend = self.backend(self.program(script))
        return await backend.execute(self.request(**more), Seen() if seen is None else seen)


class Talk(Stage):
    """How your agent talks: override what is different. As it stands it is a program that prints what it does."""

    failures: frozenset[FailureClass] = frozenset({FailureClass.AGENT})
    """Classes that an agent which exits with 3 and a word on standard error may be given."""

    one_line = False
    """Whether your agent is given its prompt as a line, and is asked to stop by the end of standard input."""

    tools = False
    """Whether your backend sees the tools that its agent calls."""

    stays: float | None = None
    """Seconds for which your agent may stay after its last word, before your backend ends it and keeps the success.

    None: only its exit is the end.
    """

    def says(self, text: bytes) -> bytes:
        """What your agent puts out when it says this."""
        return text + b"\n"

    def calls(self, tool: bytes) -> bytes:
        """What it puts out when it begins to call a tool."""
        return tool + b"\n"

    def answered(self, result: bytes) -> bytes:
        """What it puts out when that tool is done, and gave back this."""
        return result + b"\n"

    def ends(self, text: bytes) -> bytes:
        """What it puts out at the end of a good run, this being its last words."""
        return text + b"\n" if text else b""

    def spends(self) -> tuple[bytes, Usage]:
        """What it puts out at the end of a good run that tells what it used up, and what that is."""
        return self.ends(b"Done."), Usage()

    def opens(self, session: str) -> bytes:
        """What it puts out when it has opened, or gone on in, this session."""
        return b""

    def has_lost(self, session: str) -> Script:
        """The script of an agent that is to go on in a session that it does not have."""
        return Script().err(f"no session {session}\n".encode()).exit(1)

    def prompt_in(self, received: bytes) -> str:
        """The prompt in what your agent was given on standard input."""
        return received.decode()

    def session_in(self, arguments: list[str], received: bytes) -> bool:
        """Whether your agent was told to go on in `SESSION`."""
        return SESSION in arguments or SESSION.encode() in received

    def obedient(self, script: Script) -> Script:
        """The script of an agent that stops when it is asked to, in the way of this kind of agent."""
        if self.one_line:
            script.steps.insert(0, ("obey", None))
        return script

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        """Variables of the agent that nobody gave it."""
        mine = {"PATH", "HOME", "GIVEN", MARKER, "LC_CTYPE"}  # Python sets the last one itself
        return {name for name in environment if name not in mine}

    def hidden(self) -> tuple[int, int]:
        """The process that the script hid, and its start."""
        pid = int((self.folder / "hidden").read_text())
        return pid, start_ticks(pid) or 0

    def state(self) -> tuple[str, dict[str, str]]:
        """Where the agent ran and in which environment, as the step `state` wrote it into `folder/state`."""
        place, environment = json.loads((self.folder / "state").read_text())
        return place, environment

    async def cancelled(self, script: Script, after: int, seen: Seen, *, hidden: bool = False) -> None:
        """Run it, cancel it once so many bytes were seen, and expect the end of everything in good time."""
        task = asyncio.create_task(self.run(self.obedient(script), seen, marker=f"{self.marker}-cancelled"))
        await seen.until(after)
        one = None
        if hidden:
            async with asyncio.timeout(30):
                while not (self.folder / "hidden").exists():
                    await asyncio.sleep(0.01)
            one = self.hidden()
            assert is_alive(*one)
        async with asyncio.timeout(30):
            while not self.left("-cancelled"):
                await asyncio.sleep(0.01)
        await self.ended(task)
        assert one is None or not is_alive(*one)

    async def ended(self, task: asyncio.Task[Outcome]) -> None:
        """Cancel this run, and expect that nothing is left of it in good time."""
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert self.left("-cancelled") == []
        assert time.monotonic() - started < 15
