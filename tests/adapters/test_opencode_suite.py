"""What every backend promises, of opencode: with a server that speaks as the program's does."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pilot.backends.opencode import OpenCode
from pilot.backends.opencode_turn import STORED
from pilot.config.executor import OpenCodeSettings
from pilot.domain.agent import AgentRequest, Backend, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Usage
from pilot.testing import SECRET, SESSION, BackendSuite, Script, Seen
from pilot.testing.script import PLAYER
from pilot.testing.stage import Talk

OWN = f"ses_{SESSION.replace('-', '')}"
"""The session to go on in, as this program writes them."""
_IMPORT = "from pilot.testing.player import play"
SERVER = "".join(
    line
    for line in Path(__file__).with_name("opencode_player.py").read_text().splitlines(keepends=True)
    if not line.startswith((_IMPORT, "from __future__"))
)


def order(what: str, **more: object) -> bytes:
    return json.dumps({"oc": what, **more}).encode() + b"\n"


class OpenCodeTalk(Talk):
    """How its server talks."""

    tools = True
    # its process is a server's: gone before the session is there, or after
    failures = frozenset({FailureClass.INFRA, FailureClass.AGENT})

    def backend(self, program: Path) -> Backend:
        settings = OpenCodeSettings(command=str(program), model="some/model", server_url="http://127.0.0.1:9")
        return OpenCode(settings, environ={"PATH": "/usr/bin:/bin", "SOME_API_KEY": SECRET})

    def program(self, script: Script) -> Path:
        path = script.program(self.folder)
        text = f"#!{sys.executable} -ISu\n{PLAYER}\n{SERVER}\nmain(json.loads({json.dumps(script.steps)!r}))\n"
        path.write_text(text)
        return path

    def request(self, **more: Any) -> AgentRequest:
        if more.get("session_id") == SESSION:
            more["session_id"] = OWN
        return super().request(**more)

    def says(self, text: bytes) -> bytes:
        return order("text", text=text.decode())

    def calls(self, tool: bytes) -> bytes:
        return order("call", text=tool.decode())

    def answered(self, result: bytes) -> bytes:
        return order("answer", text=result.decode())

    def ends(self, text: bytes) -> bytes:
        return order("end", text=text.decode())

    def spends(self) -> tuple[bytes, Usage]:
        tokens = {"input": 200, "output": 20, "reasoning": 10, "cache": {"read": 450, "write": 50}}
        return order("end", text="Done.", info={"tokens": tokens, "cost": 0.25}), Usage(700, 30, 0.25)

    def has_lost(self, session: str) -> Script:
        return Script().out(order("lost"))

    def session_in(self, arguments: list[str], received: bytes) -> bool:
        return OWN in arguments

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        ours = ("OPENCODE_", "SOME_API_KEY", "BUN_TMPDIR")
        return {name for name in super().strange(environment) if not name.startswith(ours)}


class TestOpenCode(OpenCodeTalk, BackendSuite):
    """The suite."""


class TestRaces(OpenCodeTalk):
    """What events say too early, too often, or not at all."""

    async def test_idle_is_not_the_end(self) -> None:
        script = Script().out(order("idle")).wait(0.8).out(self.calls(b"make") + self.answered(b"made"))
        seen = Seen()
        outcome = await self.run(script.out(order("idle")).wait(0.8).out(self.ends(b"Whole.")), seen)
        assert (outcome.ending, outcome.text) == (Ending.DONE, "Whole.")
        assert seen.of(OutputKind.RESULT) == b"made\n"

    async def test_an_error_is_not_the_end(self) -> None:
        script = Script().out(order("error", text="too long")).wait(STORED + 1)
        outcome = await self.run(script.out(self.ends(b"Whole.")))
        assert (outcome.ending, outcome.text) == (Ending.DONE, "Whole.")

    async def test_an_error_after_which_nothing_is_stored_is_the_end(self) -> None:
        script = Script().out(order("error", text="no such agent") + order("forget")).wait()
        outcome = await self.run(script)
        assert (outcome.failure, "no such agent" in outcome.detail) == (FailureClass.INVALID_CONFIG, True)

    async def test_an_end_without_a_reason_is_somebody_s_abort(self) -> None:
        outcome = await self.run(Script().out(order("end", info={"finish": None})).wait())
        assert (outcome.failure, "stopped by somebody" in outcome.detail) == (FailureClass.AGENT, True)

    async def test_a_prompt_whose_answer_was_lost_is_sent_again_and_done_once(self) -> None:
        script = Script().out(order("deaf") + self.calls(b"make") + self.answered(b"made")).wait(1.5)
        seen = Seen()
        outcome = await self.run(script.out(self.ends(b"Done.")), seen)
        assert (outcome.ending, outcome.text) == (Ending.DONE, "Done.")
        assert seen.of(OutputKind.TOOL) == b"bash make\n"

    async def test_the_last_word_is_heard_though_the_server_ends_with_it(self) -> None:
        assert (await self.run(Script().out(self.ends(b"Done.")).exit(0))).text == "Done."

    async def test_the_last_word_is_heard_though_the_prompt_was_never_answered(self) -> None:
        assert (await self.run(Script().out(order("slow") + self.ends(b"Done.")).exit(0))).text == "Done."

    async def test_a_long_last_word_is_heard_though_the_prompt_was_never_answered(self) -> None:
        script = Script().out(order("slow") + order("text", text="word") * 100 + self.ends(b"Done.")).exit(0)
        assert (await self.run(script)).text.endswith("word\nDone.")

    async def test_a_server_that_breaks_before_it_answers_the_prompt_has_not_done_it(self) -> None:
        for script in (Script().out(order("slow") + self.ends(b"Done.")).exit(1), Script().out(order("slow")).exit(0)):
            assert (await self.run(script)).ending is Ending.FAILED
