"""What every backend promises, of this one: pilot's own suite, with a program that speaks as the agent does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pilot_lines import KEY, backend

from pilot.config.executor import EnvironmentSettings, ExecutorSettings
from pilot.domain.agent import Backend
from pilot.domain.errors import ConfigError
from pilot.domain.outcome import Ending, FailureClass, Usage
from pilot.testing import SECRET, BackendSuite, Script


def line(**event: object) -> bytes:
    return json.dumps(event).encode() + b"\n"


class TestLines(BackendSuite):
    tools = True

    def backend(self, program: Path) -> Backend:
        environment = EnvironmentSettings.model_validate({"set": {KEY: SECRET}})
        settings = ExecutorSettings(type="lines", settings={"command": str(program)}, environment=environment)
        return backend("lines", settings)

    def says(self, text: bytes) -> bytes:
        return line(say=text.decode())

    def calls(self, tool: bytes) -> bytes:
        return line(call=tool.decode())

    def answered(self, result: bytes) -> bytes:
        return line(answer=result.decode())

    def ends(self, text: bytes) -> bytes:
        return line(done=text.decode())

    def spends(self) -> tuple[bytes, Usage]:
        return line(used={"in": 700, "out": 30, "usd": 0.25}) + self.ends(b"Done."), Usage(700, 30, 0.25)

    def opens(self, session: str) -> bytes:
        return line(session=session)

    def has_lost(self, session: str) -> Script:
        return Script().out(line(error="session", text=f"no session {session}")).exit(1)

    # -- what only this agent does ----------------------------------------------------------------------------

    async def test_a_limit_names_the_time_until_which_nobody_need_try(self) -> None:
        script = Script().out(line(error="limit", text="come back at noon", until=1_900_000_000_000)).exit(1)
        outcome = await self.run(script)

        assert (outcome.failure, outcome.retry_at) == (FailureClass.RATE_LIMIT, 1_900_000_000_000)
        assert outcome.detail == "come back at noon"

    async def test_an_exit_without_last_words_is_no_success(self) -> None:
        outcome = await self.run(Script().out(self.says(b"I stop here.")).exit(0))

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.AGENT)


def test_what_it_is_told_in_pilot_yaml_is_checked() -> None:
    with pytest.raises(ConfigError, match=r"settings.comand: Extra inputs"):
        backend("lines", ExecutorSettings(type="lines", settings={"comand": "x"}))
