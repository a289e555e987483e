"""The acp backend with agents made with the protocol's official library, and with programs that are none."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pilot.backends import acp_session
from pilot.backends.acp import Acp
from pilot.config.executor import AcpSettings
from pilot.domain.agent import Backend, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.testing import Seen, Stage

AGENT = Path(__file__).parent / "acp_agent.py"


class TestAcp(Stage):
    """One behaviour of an agent at a time."""

    def backend(self, program: Path, *arguments: str, **settings: Any) -> Backend:
        return Acp(AcpSettings(argv=(str(program), *arguments), **settings), environ={})

    async def plays(self, behaviour: str, seen: Seen | None = None, **more: Any) -> Outcome:
        settings = {name: more.pop(name) for name in ("permissions",) if name in more}
        backend = self.backend(Path(sys.executable), str(AGENT), behaviour, **settings)
        return await backend.execute(self.request(**more), seen or Seen())

    async def runs(self, code: str, seen: Seen | None = None, **more: Any) -> Outcome:
        """A program of a few lines; `hear()` is what it is told, `say()` what it answers."""
        (program := self.folder / "program").write_text(
            f"#!{sys.executable} -ISu\nimport json, os, sys, time\n"
            "def hear(): return json.loads(sys.stdin.readline() or sys.exit(0))\n"
            "def say(**m): print(json.dumps({'jsonrpc': '2.0', **m}), flush=True)\n"
            "def opens():\n"
            "    say(id=hear()['id'], result={'protocolVersion': 1})\n"
            "    say(id=hear()['id'], result={'sessionId': 's'})\n" + code
        )
        program.chmod(0o755)
        return await self.backend(program).execute(self.request(**more), seen or Seen())

    def heard(self) -> dict[str, Any]:
        lines = (self.workspace / "heard").read_text().splitlines()
        return {key: value for line in lines for key, value in json.loads(line).items()}

    async def test_an_agent_of_the_library_works(self) -> None:
        end = await self.plays("plain", prompt="x" * 3_000_000)
        assert (end.ending, end.text, end.session_id) == (Ending.DONE, "Done.", "ses-1"), end
        heard = self.heard()
        assert (heard["cwd"], heard["prompt"]) == (str(self.workspace), 3_000_000)
        assert "pilot" in heard["client"]

    @pytest.mark.parametrize(("permissions", "option"), [("allow", "y"), ("refuse", "n")])
    async def test_it_is_answered_whatever_it_asks(self, permissions: str, option: str) -> None:
        seen = Seen()
        end = await self.plays("asks", seen, permissions=permissions)
        lines = [json.loads(line) for line in (self.workspace / "heard").read_text().splitlines()]
        assert [line["permission"]["option_id"] for line in lines if "permission" in line] == [option]
        assert [line["code"] for line in lines if "code" in line] == [-32601] * 4
        assert not any("answered" in line for line in lines)
        assert end.ending is (Ending.DONE if permissions == "allow" else Ending.QUESTION)
        kinds = [kind for kind, _ in seen.pieces if kind in (OutputKind.TOOL, OutputKind.RESULT)]
        assert kinds == [OutputKind.TOOL, OutputKind.RESULT]

    async def test_a_cancelled_prompt_is_cancelled_by_the_protocols_own_means(self) -> None:
        seen = Seen()
        task = asyncio.create_task(self.plays("waits", seen))
        async with asyncio.timeout(30):
            while b"I wait." not in seen.all:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert self.heard()["cancel"] == "ses-1"

    async def test_a_request_that_waits_while_the_prompt_is_cancelled_is_answered(self) -> None:
        """The store is stuck with the tool's line when the end is asked for."""

        class Stuck(Seen):
            async def output(self, kind: OutputKind, data: bytes) -> None:
                await super().output(kind, data)
                if kind is OutputKind.TOOL:
                    await asyncio.Event().wait()

        code = (
            "opens(); number = hear()['id']\n"
            "options = [{'optionId': 'y', 'kind': 'allow_once', 'name': 'y'}]\n"
            "call = {'toolCallId': '1', 'title': 'push'}\n"
            "say(id='q', method='session/request_permission', params={'options': options, 'toolCall': call})\n"
            "open('heard', 'w').write(json.dumps({'cancel': hear(), 'answer': hear()}))\n"
            "say(id=number, result={'stopReason': 'cancelled'})\n"
            "hear()"
        )
        seen = Stuck()
        task = asyncio.create_task(self.runs(code, seen))
        async with asyncio.timeout(30):
            while OutputKind.TOOL not in [kind for kind, _ in seen.pieces]:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        heard = self.heard()
        assert heard["cancel"]["method"] == "session/cancel"
        assert heard["answer"] == {"jsonrpc": "2.0", "id": "q", "result": {"outcome": {"outcome": "cancelled"}}}

    async def test_a_login_that_asks_nobody_is_made(self) -> None:
        environment = {**self.request().environment, "SOME_KEY": "k"}
        end = await self.plays("login", environment=environment)
        assert end.ending is Ending.DONE
        assert self.heard()["way"] == "key"

    async def test_a_login_that_needs_somebody_is_a_matter_for_a_person(self) -> None:
        end = await self.plays("login")
        assert end.failure is FailureClass.AUTH
        assert "By key" in end.detail

    async def test_a_session_is_lost_with_an_agent_that_can_not_go_on(self) -> None:
        end = await self.plays("plain", session_id="ses-1")
        assert (end.failure, end.session_lost) == (FailureClass.AGENT, True)

    async def test_what_is_told_again_is_not_said_again(self) -> None:
        seen = Seen()
        end = await self.plays("replays", seen, session_id="ses-1")
        assert (end.ending, end.text) == (Ending.DONE, "Done.")
        assert b"old" not in seen.all

    @pytest.mark.parametrize(
        ("behaviour", "failure", "words"),
        [
            ("newer", FailureClass.INVALID_CONFIG, "version 2"),
            ("unwilling", FailureClass.AGENT, "no settings found"),
            ("dies", FailureClass.NETWORK, "ECONNREFUSED"),
        ],
    )
    async def test_what_goes_wrong_is_told_apart(self, behaviour: str, failure: FailureClass, words: str) -> None:
        end = await self.plays(behaviour)
        assert end.failure is failure, end
        assert words in end.detail

    async def test_an_agent_that_never_answers_is_not_waited_for_for_ever(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(acp_session.introduce, "__defaults__", (2.0,))
        end = await self.plays("silent")
        assert end.failure is FailureClass.AGENT
        assert "within 2 s" in end.detail
        chatty = await self.runs("print('Welcome!', flush=True); time.sleep(600)")
        assert chatty.failure is FailureClass.INVALID_CONFIG
        assert "Welcome!" in chatty.excerpt

    async def test_a_program_that_says_something_else_is_a_matter_of_configuration(self) -> None:
        end = await self.runs("print('usage: program [--help]')")
        assert end.failure is FailureClass.INVALID_CONFIG
        assert "usage: program" in end.detail

    async def test_a_model_is_chosen_in_the_way_that_the_agent_offers(self) -> None:
        options = [{"id": "m", "category": "model", "type": "select", "currentValue": "a", "options": [{"value": "a"}]}]
        ways: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
            ({"configOptions": options}, "session/set_config_option", {"configId": "m", "value": "b"}),
            ({"models": {"currentModelId": "a"}}, "session/set_model", {"modelId": "b"}),
        ]
        for opened, method, params in ways:
            code = (
                "say(id=hear()['id'], result={'protocolVersion': 1})\n"
                f"say(id=hear()['id'], result={{'sessionId': 's', **json.loads({json.dumps(opened)!r})}})\n"
                "asked = hear(); open('heard', 'w').write(json.dumps({'asked': asked}))\n"
                "say(id=asked['id'], result={})\n"
                "say(id=hear()['id'], result={'stopReason': 'end_turn'})\n"
            )
            end = await self.runs(code, model="b")
            assert (end.ending, end.model) == (Ending.DONE, "b")
            asked = self.heard()["asked"]
            assert (asked["method"], asked["params"]) == (method, {"sessionId": "s", **params})

    async def test_a_model_that_can_not_be_chosen_is_no_run_with_another(self) -> None:
        end = await self.runs("opens(); hear()", model="b")
        assert end.failure is FailureClass.INVALID_CONFIG
        assert "model" in end.detail

    async def test_an_agent_that_speaks_before_it_reads_is_no_standstill(self) -> None:
        code = (
            "opens()\n"
            "for _ in range(4000): say(method='x/y', params={'z': 'x' * 1000})\n"
            "say(id=hear()['id'], result={'stopReason': 'end_turn'})\n"
        )
        async with asyncio.timeout(60):
            assert (await self.runs(code, prompt="x" * 4_000_000)).ending is Ending.DONE

    async def test_a_question_that_is_too_long_is_answered_all_the_same(self) -> None:
        code = (
            "opens(); number = hear()['id']\n"
            "say(id=7, method='session/request_permission', params={'x': 'x' * (17 << 20)})\n"
            "answer = hear(); open('heard', 'w').write(json.dumps({'answer': answer}))\n"
            "say(id=number, result={'stopReason': 'end_turn'})\n"
        )
        assert (await self.runs(code)).ending is Ending.DONE
        answer = self.heard()["answer"]
        assert (answer["id"], answer["error"]["code"]) == (7, -32600)

    async def test_doctor_is_told_of_one_that_is_no_agent(self) -> None:
        (program := self.folder / "program").write_text("#!/bin/sh\necho Welcome!\n")
        program.chmod(0o755)
        (check,) = await self.backend(program).check()
        assert check.ok is False
        assert "Welcome!" in check.detail
        assert check.remedy
