"""What a backend says of itself without running its agent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pilot.domain.agent import Capabilities
from pilot.testing.script import Script
from pilot.testing.stage import SECRET, Talk


class Standing(Talk):
    """Name, capabilities, account and checks: quick, and never an error."""

    async def test_it_says_who_it_is_and_what_it_can(self) -> None:
        backend = self.backend(self.program(Script()))

        assert backend.name
        assert isinstance(backend.capabilities(), Capabilities)
        assert backend.capabilities().cancel

    async def test_doctor_is_told_whether_it_is_there(self) -> None:
        program = self.program(Script().out(b"1.0.0\n"))
        backend = self.backend(program)
        there = await backend.check()
        program.unlink()
        gone = await backend.check()

        assert there[0].ok
        assert gone[0].ok is False
        assert all(check.name for check in there + gone)
        assert gone[0].remedy

    @pytest.mark.parametrize(
        "script",
        [
            lambda: Script().wait(),
            lambda: Script().flood(b"x" * 1000),
            lambda: Script().out(b"\xff\x00\x1b[2J").exit(1),
            lambda: Script().err(b"no such option\n").exit(2),
            lambda: Script().kill(9),
        ],
        ids=["silent", "endless", "junk", "refuses", "dies"],
    )
    async def test_doctor_is_told_whatever_the_agent_does(self, script: Callable[[], Script]) -> None:
        program = self.program(script())
        async with asyncio.timeout(40):
            checks = await self.backend(program).check()

        assert checks
        assert not self.started(program)
        assert all(check.name and check.detail.isprintable() for check in checks)

    def started(self, program: Path) -> list[str]:
        """Living processes that this program is."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                found.append(path.read_text(errors="replace").replace("\0", " "))
        return [line for line in found if str(program) in line]

    async def test_doctor_is_told_that_it_is_no_program(self) -> None:
        program = self.program(Script())
        program.chmod(0o644)
        assert (await self.backend(program).check())[0].ok is False

    def test_whose_allowance_it_uses_up_is_a_short_word_that_gives_no_secret_away(self) -> None:
        program = self.program(Script())
        account = self.backend(program).account()
        again = self.backend(program).account()
        program.unlink()
        gone = self.backend(program).account()

        assert account == again == gone
        assert len(account) <= 40
        assert account.isprintable()
        assert not any(SECRET[at : at + 6] in account for at in range(len(SECRET) - 5))
