"""What comes out of an agent, however much and whatever it is."""

from __future__ import annotations

import asyncio

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.outcome import Ending
from pilot.testing.memory import Peak
from pilot.testing.script import Script
from pilot.testing.seen import Seen
from pilot.testing.stage import Talk


class Outputs(Talk):
    """Output is handed on as it is, and costs no memory."""

    async def test_a_line_of_100_mb_costs_no_memory(self) -> None:
        seen = Seen(keep=False)
        script = Script().out(self.says(b"first")).fill(100).out(b"\n").out(self.ends(b"last"))
        with Peak() as peak:
            outcome = await self.run(script, seen)

        assert outcome.ending in (Ending.DONE, Ending.FAILED)
        assert peak.rise < 80

    async def test_output_that_nobody_takes_waits_outside(self) -> None:
        class Slow(Seen):
            async def output(self, kind: OutputKind, data: bytes) -> None:
                await super().output(kind, data)
                await asyncio.sleep(0.005)

        with Peak() as peak:
            await self.cancelled(Script().flood(self.says(b"x" * 1000) * 1000), 200_000, Slow(keep=False))
        assert peak.rise < 80

    @pytest.mark.parametrize(
        "junk",
        [b"\xff\xfe\x80", b"a\x00b", b"\x1b]52;c;aGk=\x07\x1b[2J", b"\xed\xa0\x80", b'{"type":', b"null", b"[1]"],
    )
    async def test_bytes_that_are_no_text_pass_as_they_are(self, junk: bytes) -> None:
        seen = Seen()
        script = Script().out(b"<" + junk + b">\n").err(b"<" + junk + b">\n").out(self.ends(b"Done."))
        outcome = await self.run(script, seen)

        assert outcome.ending is Ending.DONE
        assert b"<" + junk + b">" in seen.all
        for text in (outcome.text, outcome.detail, outcome.excerpt):
            assert "\0" not in text
            text.encode()
