"""Every source over its fake, in the words of the one suite that all of them pass."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pilot.clients.telegram import Bot
from pilot.config.schema import FailingCiSettings, ProjectSettings, TelegramSettings, TodoScanSettings
from pilot.domain.outside import Source
from pilot.sources.desk import Desk
from pilot.sources.failing_ci import FailingCi
from pilot.sources.telegram import TelegramSource
from pilot.sources.todo_scan import TodoScan
from pilot.store import open_store
from tests.adapters import github_stage, linear_stage, pull_rig, telegram_stage
from tests.adapters.desks import Clock, desk, served
from tests.core.worksite import git, repository
from tests.e2e.telegram_fake import ANN, EVE, TOKEN, TelegramFake

HOUR = 3_600_000


@dataclass
class Case:
    """One source. `ask` and `stranger` do at the service what somebody does who may, or may not.

    `hear` brings what webhooks were sent; `drop` loses them. `shown`: how many things of ours people see. `lose`: of
    the next write, its answer (True) or the request itself. `pause` and `recover`: the service says no for a while.
    """

    desk: Desk
    make: Callable[[], Source]
    source: Source
    ask: Callable[[], None]
    look: Callable[[], Any] | None = None
    stranger: Callable[[], None] | None = None
    hear: Callable[[], Any] | None = None
    drop: Callable[[], None] | None = None
    shown: Callable[[], int] | None = None
    lose: Callable[[bool], None] | None = None
    pause: Callable[[], None] | None = None
    recover: Callable[[], None] | None = None
    forged: tuple[Mapping[str, str], bytes] | None = None

    async def poll(self) -> None:
        """As the feed does it."""
        if self.look is not None:
            await self.look()
            return
        await self.desk.duties.hold(f"source:{self.source.name}", self.desk.node, HOUR)
        await self.source.poll()

    def restart(self) -> None:
        """Another process over the same store."""
        self.source = self.make()


Opened = Callable[[Path], AbstractAsyncContextManager[Case]]


@asynccontextmanager
async def github(place: Path) -> AsyncIterator[Case]:
    async with github_stage.stage(place) as here:
        here.fake.hooks.keep()

        def made() -> Source:
            here.restart()
            return here.source

        def asked(actor: str) -> None:
            number = here.fake.issue(here.repo, "Fix the login", actor="mona")
            here.fake.label(here.repo, number, "pilot", actor)

        yield Case(
            desk=here.desk,
            make=made,
            source=here.source,
            ask=lambda: asked("mona"),
            stranger=lambda: asked("tess"),
            hear=here.deliver,
            drop=here.fake.hooks.deliveries.clear,
            shown=lambda: len(here.said()),
            lose=lambda after: here.fake.lose_next("POST", r"/issues/1/comments", after=after),
            pause=lambda: here.fake.use_up(600),
            recover=here.fake.recover,
            forged=(
                {
                    "x-hub-signature-256": "sha256=" + "0" * 64,
                    "x-github-event": "issues",
                    "x-github-delivery": "1",
                    "content-type": "application/json",
                },
                b"{}",
            ),
        )


@asynccontextmanager
async def linear(place: Path) -> AsyncIterator[Case]:
    async with linear_stage.stage(place) as here:
        issues = []
        external = here.fake.world.person("Bot", "bot@example.org", app=True)

        def made() -> Source:
            here.restart()
            return here.source

        def asked(actor: Any) -> None:
            issues.append(here.fake.world.issue("Fix the login"))
            here.fake.label(issues[-1], "pilot", actor)

        yield Case(
            desk=here.desk,
            make=made,
            source=here.source,
            ask=lambda: asked(None),
            stranger=lambda: asked(external),
            hear=here.deliver,
            drop=here.fake.hooks.deliveries.clear,
            shown=lambda: len(here.comments(issues[0])),
            lose=lambda after: here.fake.lose_next("commentCreate", after=after),
            pause=lambda: here.fake.limit(retry_after=600),
            recover=here.fake.unlimit,
            forged=({"linear-signature": "0" * 64}, b"{}"),
        )


@asynccontextmanager
async def todo_scan(place: Path) -> AsyncIterator[Case]:
    path = repository(place / "api")
    own = ProjectSettings(name="api", path=path)
    async with open_store(f"sqlite:///{place}/pilot.db", clock=Clock()) as store:
        at = desk(store, await served(store, own))

        def made() -> Source:
            return TodoScan(at, TodoScanSettings(), place)

        def asked() -> None:
            (path / "src" / "b.py").write_text("# TODO(pilot): fix the login\n")
            git(path, "add", "-A")
            git(path, "commit", "-qm", "ask")

        yield Case(
            desk=at,
            make=made,
            source=made(),
            ask=asked,
            pause=lambda: os.rename(path, place / "away"),  # noqa: PTH104  which gives nothing back
            recover=lambda: os.rename(place / "away", path),  # noqa: PTH104
        )


@asynccontextmanager
async def failing_ci(place: Path) -> AsyncIterator[Case]:
    async with pull_rig.rig(place) as here:
        at = here.desk()

        def made() -> Source:
            return FailingCi(at, here.github, FailingCiSettings())

        def asked() -> None:
            job = next(here.fake.ids)
            here.repo.logs[job] = b"it is red"
            here.fake.check_run(here.repo, here.repo.branches["main"], "test", "failure", job=job)

        yield Case(
            desk=at,
            make=made,
            source=made(),
            ask=asked,
            pause=lambda: here.fake.use_up(600),
            recover=here.fake.recover,
        )


@asynccontextmanager
async def telegram(place: Path) -> AsyncIterator[Case]:
    """It is read by its own loop: a look is a while of that, and then everything is forgotten but the store."""
    with TelegramFake() as fake:
        async with telegram_stage.stage(place, fake) as here:

            def polls() -> int:
                return sum(call.method == "getUpdates" for call in fake.calls)

            async def look() -> None:
                before = polls()
                here.start(delivering=False)
                await telegram_stage.until(lambda: polls() > before + 1, "a poll that was not the first", 30)
                await here.stop()

            def made() -> Source:
                bot = Bot(TOKEN, base_url=fake.base_url, every=0.05)
                users = {"token": TOKEN, "allowed_users": [telegram_stage.ANN_ID]}
                here.bot = bot
                here.source = TelegramSource(here.desk, bot, TelegramSettings.model_validate(users), every=0.05, poll=2)
                return here.source

            def said(user: Mapping[str, Any]) -> None:
                fake.says(dict(user), "/run api Fix the login")

            yield Case(
                desk=here.desk,
                make=made,
                source=made(),
                ask=lambda: said(ANN),
                look=look,
                stranger=lambda: said(EVE),
            )


CASES: Mapping[str, Opened] = {
    "github": github,
    "linear": linear,
    "telegram": telegram,
    "todo_scan": todo_scan,
    "failing_ci": failing_ci,
}
ASKED_BY_PEOPLE = ("github", "linear", "telegram")
WITH_WEBHOOKS = ("github", "linear")
IDEMPOTENT = ("github", "linear")
"""Telegram knows no idempotency: a message whose answer was lost may be there twice."""
PAUSED = ("github", "linear", "todo_scan", "failing_ci")
