"""The codex backend and a program that behaves as no version of the CLI should."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from pilot.backends.codex import LINE_LIMIT
from pilot.domain.agent import Backend, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Usage
from pilot.testing.script import Script
from pilot.testing.seen import Seen
from pilot.testing.stage import SESSION, Stage
from tests.adapters.test_codex_suite import TestCodex as Talk
from tests.adapters.test_codex_suite import item, line

OTHER = "33333333-4444-4555-8666-777777777777"
TROUBLE = "Reconnecting... waiting for network (Connection failed)"


class TestProcess(Stage):
    def backend(self, program: Path) -> Backend:
        return Talk().backend(program)

    async def test_another_session_than_the_one_to_go_on_in_is_ended_at_once(self) -> None:
        seen = Seen()
        script = Script().out(line("thread.started", thread_id=OTHER)).out(line("turn.started")).wait()
        async with asyncio.timeout(30):
            outcome = await self.run(script, seen, session_id=SESSION)
        assert (outcome.session_lost, outcome.session_id, seen.sessions) == (True, None, [])

    async def test_what_it_ends_with_is_not_believed_when_it_crashes(self) -> None:
        outcome = await self.run(Script().out(line("turn.completed")).exit(3))
        assert (outcome.failure, "did not" in outcome.detail) == (FailureClass.AGENT, True)

    async def test_a_failed_turn_is_believed_although_it_stays(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pilot.backends.codex.AFTER_END", 0.3)
        error = {"message": "unexpected status 401 Unauthorized"}
        outcome = await self.run(Script().out(line("turn.failed", error=error)).wait())
        assert outcome.failure is FailureClass.AUTH

    async def test_a_turn_that_begins_after_the_last_is_waited_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pilot.backends.codex.AFTER_END", 0.3)
        script = Script().out(line("turn.completed") + line("turn.started")).wait(1)
        script.out(item("completed", "agent_message", text="Both.")).out(line("turn.completed"))
        outcome = await self.run(script)
        assert (outcome.ending, outcome.text) == (Ending.DONE, "Both.")

    async def test_trouble_that_passes_in_time_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pilot.backends.codex.HELD_UP", 2.0)
        trouble = line("error", message=TROUBLE)
        script = Script().out(trouble).out(trouble).out(item("completed", "reasoning", text="Hm.")).wait(3)
        outcome = await self.run(script.out(Talk().ends(b"Done.")))
        assert (outcome.ending, outcome.text) == (Ending.DONE, "Done.")

    async def test_more_words_of_trouble_buy_no_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pilot.backends.codex.HELD_UP", 1.0)
        script = Script()
        for _ in range(100):
            script.out(line("error", message=TROUBLE)).wait(0.3)
        started = time.monotonic()
        seen = Seen()
        outcome = await self.run(script, seen)
        assert outcome.failure is FailureClass.NETWORK
        assert time.monotonic() - started < 15
        assert seen.of(OutputKind.RAW).count(b"waiting for network") == 1

    async def test_usage_is_told_as_soon_as_it_is_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = Seen()
        usage = {"input_tokens": 700, "output_tokens": 30}
        script = Script().out(line("thread.started", thread_id=SESSION)).out(line("turn.completed", usage=usage)).wait()
        used = Usage(600, 10)
        task = asyncio.create_task(self.run(script, seen, session_id=SESSION, session_used=used))
        async with asyncio.timeout(30):
            while not seen.used:
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert seen.used == [Usage(100, 20)]

    async def test_a_line_of_100_mb_is_cut_and_the_run_goes_on(self) -> None:
        seen = Seen()
        outcome = await self.run(Script().fill(100).out(b"\n").out(Talk().ends(b"Done.")), seen)
        assert (outcome.ending, outcome.text) == (Ending.DONE, "Done.")
        assert max(len(data) for _, data in seen.pieces) <= LINE_LIMIT + 1
