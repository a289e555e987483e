"""What a run comes to."""

from __future__ import annotations

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.outcome import Ending, FailureClass
from pilot.testing.script import Script
from pilot.testing.seen import Seen
from pilot.testing.stage import Talk


class Outcomes(Talk):
    """Success, failure, and why; tools and usage as they were."""

    async def test_a_good_run_is_done_with_its_last_words(self) -> None:
        seen = Seen()
        script = Script().out(self.says(b"I look.")).wait(0.05).out(self.ends(b"All done."))
        outcome = await self.run(script, seen)

        assert (outcome.ending, outcome.failure, outcome.detail) == (Ending.DONE, None, "")
        assert "All done." in outcome.text
        assert b"I look." in seen.all

    async def test_a_run_without_a_word_is_no_error(self) -> None:
        outcome = await self.run(Script().out(self.ends(b"")))

        assert outcome.ending is Ending.DONE
        assert outcome.text.strip() == ""

    async def test_a_failure_has_a_class_a_reason_and_evidence(self) -> None:
        seen = Seen()
        outcome = await self.run(Script().out(self.says(b"I try.")).err(b"boom: no disk\n").exit(3), seen)

        assert outcome.ending is Ending.FAILED
        assert outcome.failure in self.failures
        assert outcome.detail.strip()
        assert "boom: no disk" in outcome.excerpt
        assert b"I try." in seen.all

    async def test_an_agent_that_dies_without_a_word_is_a_failure_with_a_reason(self) -> None:
        outcome = await self.run(Script().kill(11))

        assert outcome.ending is Ending.FAILED
        assert outcome.failure in self.failures
        assert outcome.detail.strip()

    async def test_an_agent_that_is_killed_is_a_failure_with_a_reason(self) -> None:
        outcome = await self.run(Script().out(self.says(b"I try.")).kill(9))

        assert outcome.ending is Ending.FAILED
        assert outcome.failure in self.failures | {FailureClass.OOM}
        assert outcome.detail.strip()

    @pytest.mark.parametrize("how", ["missing", "not executable"])
    async def test_an_agent_that_is_not_there_is_a_matter_of_configuration(self, how: str) -> None:
        program = self.program(Script())
        program.unlink() if how == "missing" else program.chmod(0o644)
        outcome = await self.backend(program).execute(self.request(), Seen())

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.INVALID_CONFIG)
        assert program.name in outcome.detail

    async def test_a_workspace_that_is_gone_is_not_the_configurations_fault(self) -> None:
        outcome = await self.run(Script(), workspace=str(self.folder / "gone"))

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.INFRA)
        assert "gone" in outcome.detail

    async def test_an_empty_prompt_is_refused_before_anything_starts(self) -> None:
        started = self.folder / "started"
        outcome = await self.run(Script().state(started), prompt=" \n")

        assert outcome.ending is Ending.FAILED
        assert not started.exists()

    async def test_a_pause_is_no_end(self) -> None:
        seen = Seen()
        outcome = await self.run(Script().out(self.says(b"I think.")).wait(1.5).out(self.ends(b"All done.")), seen)

        assert outcome.ending is Ending.DONE
        assert b"I think." in seen.all

    async def test_a_tool_call_has_its_beginning_and_its_end(self) -> None:
        seen = Seen()
        script = Script().out(self.calls(b"first")).out(self.answered(b"one"))
        script.out(self.calls(b"second")).out(self.answered(b"two")).out(self.ends(b"All done."))
        outcome = await self.run(script, seen)

        assert outcome.ending is Ending.DONE
        kinds = [kind for kind, _ in seen.pieces if kind in (OutputKind.TOOL, OutputKind.RESULT)]
        assert kinds == ([OutputKind.TOOL, OutputKind.RESULT] * 2 if self.tools else [])

    async def test_what_it_used_up_is_told_and_what_is_unknown_is_not_nothing(self) -> None:
        words, spent = self.spends()
        seen, silent = Seen(), Seen()
        told = await self.run(Script().out(words), seen)
        untold = await self.run(Script().out(self.says(b"word")).err(b"boom\n").exit(3), silent)

        assert told.usage == spent
        for usage in (told.usage, untold.usage, *seen.used, *silent.used):
            assert 0 not in (usage.input_tokens, usage.output_tokens, usage.cost_usd)
