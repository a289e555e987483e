"""What goes into an agent: its prompt, its surroundings, and the fence around them."""

from __future__ import annotations

import errno
from dataclasses import fields
from pathlib import Path

import pytest

from pilot.domain.agent import Places
from pilot.domain.outcome import Ending, FailureClass
from pilot.runner.proctree import MARKER
from pilot.testing.fence import FENCED, Fence
from pilot.testing.script import Script
from pilot.testing.stage import Talk

MB = 1 << 20


class Given(Talk):
    """An agent is given what the request says, whole, and nothing else."""

    async def test_a_prompt_of_1_mb_arrives_whole(self) -> None:
        prompt = "Überprüfe \u2028 this.\r\n" + "".join(f"line {n} 'quoted' \"$HOME\" {{x}}\n" for n in range(40_000))
        assert len(prompt) > MB
        received = self.folder / "received"
        outcome = await self.run(Script().read(received, line=self.one_line).out(self.ends(b"Done.")), prompt=prompt)

        assert outcome.ending is Ending.DONE
        assert self.prompt_in(received.read_bytes()) == prompt

    async def test_it_runs_in_the_workspace_and_sees_only_what_it_was_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PILOT_CANARY", "the daemon's own")
        await self.run(Script().state(self.folder / "state").out(self.ends(b"Done.")))

        place, environment = self.state()
        assert place == str(self.workspace)
        assert environment["GIVEN"] == "yes"
        assert environment["HOME"] == str(self.folder / "home")
        assert environment[MARKER].startswith(self.marker)
        assert not self.strange(environment)

    async def test_it_is_started_in_the_sandbox_that_was_given(self) -> None:
        fence = Fence()
        outcome = await self.run(Script().state(self.folder / "state").out(self.ends(b"Done.")), sandbox=fence)

        if not self.backend(self.program(Script())).capabilities().sandbox:
            # rather no run than one outside of what was asked for
            assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.INVALID_CONFIG)
            assert not (self.folder / "state").exists()
            return
        assert outcome.ending is Ending.DONE
        assert self.state()[1][FENCED] == "yes"
        for start in fence.starts:
            assert start.cwd == str(self.workspace)
            assert start.env["GIVEN"] == "yes"
            for place in fields(Places):
                assert all(Path(path).is_absolute() for path in getattr(start.places, place.name))

    async def test_a_sandbox_that_can_not_be_made_is_a_failure_with_a_reason(self) -> None:
        fence = Fence(broken=OSError(errno.ENOSPC, "no room for a fence"))
        outcome = await self.run(Script().state(self.folder / "state").out(self.ends(b"Done.")), sandbox=fence)

        assert outcome.ending is Ending.FAILED
        assert outcome.detail.strip()
        assert not (self.folder / "state").exists()
