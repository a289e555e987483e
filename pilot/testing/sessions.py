"""Conversations that are gone on with."""

from __future__ import annotations

import asyncio
import json

from pilot.domain.agent import OutputKind
from pilot.domain.outcome import Ending
from pilot.testing.script import Script
from pilot.testing.seen import Seen
from pilot.testing.stage import SESSION, Talk


class Held(Seen):
    """An Emit that does not let go of a session until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()
        self.go = asyncio.Event()
        self.early = b""

    async def output(self, kind: OutputKind, data: bytes) -> None:
        if not self.go.is_set() and kind is OutputKind.TEXT:
            self.early += data
        await super().output(kind, data)

    async def session(self, session_id: str) -> None:
        await super().session(session_id)
        self.told.set()
        await self.go.wait()


class Sessions(Talk):
    """A backend that can resume names its session at once, and goes on in it; another one says that it can't."""

    async def test_a_session_is_stored_before_anything_is_built_on_it(self) -> None:
        seen = Held()
        script = Script().out(self.opens(SESSION)).out(self.says(b"word")).out(self.ends(b"Done."))
        task = asyncio.create_task(self.run(script, seen))
        if self.resumes():
            async with asyncio.timeout(30):
                await seen.told.wait()
            await asyncio.sleep(0.5)  # what is wrong would come now; what is right comes whenever it likes
            assert seen.early == b""
            assert not task.done()
        seen.go.set()
        outcome = await task

        assert outcome.ending is Ending.DONE
        assert bool(seen.sessions) is self.resumes()
        assert outcome.session_id in (None, *seen.sessions[-1:])

    async def test_cancelled_while_its_session_is_stored(self) -> None:
        script = Script().out(self.opens(SESSION)).out(self.says(b"word")).wait()
        seen = Held()
        task = asyncio.create_task(self.run(self.obedient(script), seen, marker=f"{self.marker}-cancelled"))
        if self.resumes():
            async with asyncio.timeout(30):
                await seen.told.wait()
        else:
            await seen.until(1)
        await self.ended(task)

    async def test_a_session_is_gone_on_with(self) -> None:
        arguments, received = self.folder / "arguments", self.folder / "received"
        seen = Seen()
        script = Script().arguments(arguments).read(received, line=self.one_line)
        outcome = await self.run(script.out(self.opens(SESSION)).out(self.ends(b"Done.")), seen, session_id=SESSION)

        if self.resumes():
            assert outcome.ending is Ending.DONE
            assert set(seen.sessions) <= {SESSION}
            assert self.session_in(json.loads(arguments.read_text()), received.read_bytes())
        else:
            assert outcome.ending is Ending.FAILED
            assert not arguments.exists()

    async def test_a_session_that_is_gone_is_told_apart_from_a_failed_task(self) -> None:
        outcome = await self.run(self.has_lost(SESSION), session_id=SESSION)

        assert outcome.ending is Ending.FAILED
        assert outcome.detail.strip()
        assert outcome.session_lost is self.resumes()

    def resumes(self) -> bool:
        return self.backend(self.program(Script())).capabilities().resume
