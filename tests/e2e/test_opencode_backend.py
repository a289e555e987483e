"""The opencode backend with the real program and a scripted model; each run on a server of its own."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.backends.opencode import OpenCode
from pilot.config.executor import OpenCodeSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.testing import Seen
from tests.e2e.model_server import ModelServer, Turn, status, text
from tests.e2e.opencode import MODEL, NOWHERE, QUIET, bash, configured, opencode_binary, opencode_environment, write


class Bench:
    """One workspace, one home, one model server: everything that a run needs."""

    def __init__(self, tmp_path: Path, server: ModelServer) -> None:
        self.server = server
        self.home = tmp_path / "home"
        self.workspace = tmp_path / "workspace"
        self.workspace.mkdir()
        self.environment = opencode_environment(self.home, server.url)
        self.seen = Seen()
        self.marker = f"test/{uuid.uuid4().hex}"

    def backend(self, environ: dict[str, str] | None = None, **settings: Any) -> OpenCode:
        given = {"command": opencode_binary(), "model": MODEL, "server_url": NOWHERE, **settings}
        return OpenCode(OpenCodeSettings.model_validate(given), environ=environ or self.environment)

    def request(self, prompt: str = "Do it.", **more: Any) -> AgentRequest:
        passed = {name: self.environment[name] for name in ("PATH", "HOME", "LANG")}
        given: dict[str, Any] = {
            "prompt": prompt, "workspace": str(self.workspace), "execution": 1, "attempt": 1, "project": "p",
            "task_id": "T-1", "environment": {**passed, **QUIET}, "marker": self.marker,
        }  # fmt: skip
        return AgentRequest(**given | more)

    async def run(self, request: AgentRequest | None = None, **settings: Any) -> Outcome:
        return await self.backend(**settings).execute(request or self.request(), self.seen)

    def said(self, kind: OutputKind) -> str:
        return self.seen.of(kind).decode()

    async def until(self, what: Callable[[], object], seconds: float = 40) -> None:
        async with asyncio.timeout(seconds):
            while not what():
                await asyncio.sleep(0.02)

    def left(self) -> list[str]:
        """Processes of this bench's runs that still live, by their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"={self.marker}/".encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    with_server: list[ModelServer] = []

    def make(*turns: Turn) -> Bench:
        server = ModelServer(turns)
        with_server.append(server.__enter__())
        return Bench(tmp_path, server)

    yield make
    for server in with_server:
        server.__exit__(None, None, None)


Make = Callable[..., Bench]


async def test_a_success_writes_its_file_and_knows_what_it_cost(bench: Make) -> None:
    b = bench({"text": "I write it.", **write("a.txt")}, text("All done."))

    end = await b.run(b.request("Write a.txt."))

    assert end.ending is Ending.DONE, end
    assert (b.workspace / "a.txt").read_text() == "hi"
    assert (end.text, [end.session_id]) == ("All done.", b.seen.sessions)
    assert (end.usage.input_tokens, end.usage.output_tokens) == (200, 40)
    assert end.usage.cost_usd
    assert end.model == MODEL
    assert b.seen.used[-1] == end.usage
    assert b.said(OutputKind.TEXT) == "I write it.\nAll done.\n"
    assert b.said(OutputKind.TOOL) == f"write {b.workspace}/a.txt\n"
    assert b.said(OutputKind.RESULT) == "Wrote file successfully.\n"
    assert b.left() == []
    assert len(b.server.requests) == 2, "no model is asked for a title"
