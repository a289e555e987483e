"""How a run is ended, by whom and whenever it is."""

from __future__ import annotations

import asyncio

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.outcome import Ending
from pilot.runner.proctree import is_alive
from pilot.testing.script import Script
from pilot.testing.seen import Lost, Seen
from pilot.testing.stage import Talk


class Endings(Talk):
    """Cancelled in each of its phases, or ended by itself: nothing of it is left."""

    async def test_cancelled_in_silence_before_any_output(self) -> None:
        await self.cancelled(Script().hide(self.folder / "hidden").wait(), 0, Seen(), hidden=True)

    async def test_cancelled_in_the_middle_of_output(self) -> None:
        script = Script().hide(self.folder / "hidden").flood(self.says(b"again"))
        await self.cancelled(script, 100_000, Seen(keep=False), hidden=True)

    async def test_cancelled_in_silence_while_a_child_sleeps(self) -> None:
        script = Script().hide(self.folder / "hidden").out(self.calls(b"make test")).child()
        await self.cancelled(script, 1, Seen(), hidden=True)

    async def test_cancelled_while_the_one_who_takes_the_output_is_stuck(self) -> None:
        class Stuck(Seen):
            async def output(self, kind: OutputKind, data: bytes) -> None:
                await super().output(kind, data)
                await asyncio.Event().wait()

        await self.cancelled(Script().flood(self.says(b"again")), 1, Stuck(keep=False))

    async def test_one_that_is_cancelled_does_not_disturb_another(self) -> None:
        go = self.folder / "go"
        other = asyncio.create_task(self.run(Script().until(go).out(self.ends(b"Done."))))
        await self.cancelled(Script().out(self.says(b"I wait.")).wait(), 1, Seen())
        go.touch()
        assert (await other).ending is Ending.DONE

    async def test_a_lost_lease_ends_the_agent_and_is_raised(self) -> None:
        script = Script().hide(self.folder / "hidden").out(self.says(b"word")).wait()
        with pytest.raises(LeaseLost):
            await self.run(self.obedient(script), Lost())
        assert self.left() == []

    async def test_cancelled_after_its_last_word(self) -> None:
        said = self.folder / "said"
        script = Script().hide(self.folder / "hidden").out(self.ends(b"Done.")).arguments(said).wait()
        task = asyncio.create_task(self.run(script, marker=f"{self.marker}-cancelled"))
        async with asyncio.timeout(30):
            while not said.exists():
                await asyncio.sleep(0.01)
        await self.ended(task)
        assert not is_alive(*self.hidden())

    async def test_it_may_not_stay_for_ever_after_its_last_word(self) -> None:
        script = Script().hide(self.folder / "hidden").out(self.ends(b"All done.")).wait(600 if self.stays else 0.5)
        async with asyncio.timeout((self.stays or 0.0) + 30):
            outcome = await self.run(script)

        assert outcome.ending is Ending.DONE
        assert "All done." in outcome.text
        assert not is_alive(*self.hidden())

    @pytest.mark.parametrize("code", [0, 3])
    async def test_nothing_is_left_of_a_run_that_ended_by_itself(self, code: int) -> None:
        script = Script().hide(self.folder / "hidden").out(self.ends(b"Done.")).exit(code)
        outcome = await self.run(script)

        assert outcome.ending is (Ending.DONE if code == 0 else Ending.FAILED)
        assert not is_alive(*self.hidden())
        assert self.left() == []
