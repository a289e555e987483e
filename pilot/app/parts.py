"""What the settings make of the outside world: sources, what does what is owed to them, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from pilot.app.context import Context
from pilot.config.schema import GithubSettings, Settings
from pilot.dispatch.deliveries import Handler
from pilot.dispatch.reports import Reports, Teller
from pilot.domain.delivery import Effect, EffectKind, Report
from pilot.domain.errors import NotFound, UsageError, WorkspaceError
from pilot.domain.outside import Later, Source
from pilot.runner.git import Git
from pilot.sources.desk import Desk
from pilot.sources.feed import Poller

if TYPE_CHECKING:
    from pilot.clients.github import GitHub
    from pilot.clients.github_login import Login
    from pilot.clients.telegram import Bot
    from pilot.publish.publisher import Publisher

log = structlog.get_logger()
WORDLESS = ("todo_scan", "failing_ci")
"""Sources at which nobody waits for an answer: nothing is owed to them, whether they are configured or not."""
ELSEWHERE = 60 * 60 * 1000
"""ms until a workspace is asked for again whose project is not this node's now."""


def login_of(settings: GithubSettings) -> Login:
    """As whom pilot speaks to GitHub. Raises `UsageError` when the App's key can't be read."""
    from pilot.clients.github_login import App, Token

    app = settings.app
    if app is None:
        assert settings.token is not None  # noqa: S101  the schema wants one of the two
        return Token(settings.token.get_secret_value())
    if app.private_key is not None:
        return App(app.id, app.private_key.get_secret_value(), app.installation)
    assert app.private_key_file is not None  # noqa: S101  likewise
    try:
        return App(app.id, app.private_key_file.read_text(), app.installation)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"sources.github.app.private_key_file {app.private_key_file}: {error}") from error


def hook_secret(settings: Settings, state_dir: Path) -> str:
    """What signs what is POSTed: the configured one, or the one that is kept. Raises `OSError`."""
    from pilot.clients.hooks import kept_secret

    secret = settings.server.callbacks.secret
    return secret.get_secret_value() if secret else kept_secret(state_dir)


def desk_of(context: Context, node: str) -> Desk:
    """What the node's sources work with; all of it by the settings of the moment."""
    store = context.store

    async def retry(execution: int, by: str) -> int:
        new = await store.queue.retry(execution)
        log.info("execution.retried", execution=execution, new=new.id, by=by)
        return new.id

    public_url = context.settings.server.public_url
    return Desk(
        node=node,
        projects=lambda: [(context.stored[id], own) for id, own in context.projects.items()],
        submit=lambda request, project, own: context.intake().submit(request, project, own),
        retry=retry,
        redact=lambda text: context.redact(text),
        queue=store.queue,
        history=store.history,
        refusals=store.refusals,
        outbox=store.outbox,
        inbox=store.inbox,
        pulls=store.pulls,
        duties=store.duties,
        health=store.health,
        clock=store.database.clock,
        public_url=public_url.rstrip("/") if public_url else None,
    )


def publisher_of(context: Context, desk: Desk, github: GitHub, settings: GithubSettings) -> Publisher:
    """What makes pull requests of finished branches."""
    from pilot.publish.publisher import Publisher

    return Publisher(
        outbox=desk.outbox,
        pulls=desk.pulls,
        github=github,
        base_url=settings.base_url,
        own=context.projects.get,
        state_dir=context.state_dir,
        redact=desk.redact,
        clock=desk.clock,
        git=Git(),
    )


@dataclass(slots=True)
class Parts:
    """What one configuration makes, `made_from` its part of it; `close` lets go of its connections."""

    made_from: object = None
    sources: list[Source] = field(default_factory=list)
    pollers: list[Poller] = field(default_factory=list)
    handlers: dict[EffectKind, Handler] = field(default_factory=dict)
    notifies: bool = False
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def close(self) -> None:
        """Nothing of it is used afterwards."""
        await self._open.aclose()

    def add(self, settings: Settings, context: Context, desk: Desk, hurry: Callable[[str], None]) -> None:
        """Everything that is configured. Raises `UsageError` for what can't be a login."""
        if settings.sources.github is not None:
            self._github(settings, settings.sources.github, context, desk, hurry)
        self._linear(settings, desk)
        bot = self._telegram(settings, desk)
        if settings.sources.todo_scan is not None:
            from pilot.sources.todo_scan import TodoScan

            self.sources.append(TodoScan(desk, settings.sources.todo_scan, context.state_dir))
        self._notify(settings, context, desk, bot)
        self._callbacks(settings, context, desk)
        if self.sources:
            tellers: dict[str, Teller] = {name: _Wordless() for name in WORDLESS}
            tellers |= {source.name: source for source in self.sources}
            self.handlers[EffectKind.REPORT] = Reports(desk.outbox, lambda: tellers, desk.clock)
        self.handlers[EffectKind.CLEAN] = _Cleaner(context)

    def _github(
        self,
        settings: Settings,
        own: GithubSettings,
        context: Context,
        desk: Desk,
        hurry: Callable[[str], None],
    ) -> None:
        from pilot.clients.github import GitHub
        from pilot.publish.watch import PullWatch
        from pilot.sources.github import GitHubSource

        github = GitHub(login_of(own), base_url=own.base_url, clock=desk.clock)
        self._open.push_async_callback(github.aclose)
        watch = PullWatch(
            github,
            projects=desk.projects,
            pulls=desk.pulls,
            duties=desk.duties,
            node=desk.node,
            health=desk.health,
            history=desk.history,
            task=lambda request, project, served: context.intake().task(request, project, served),
            redact=desk.redact,
            clock=desk.clock,
            every=own.poll_interval,
            hurry=hurry,
        )
        self.sources.append(GitHubSource(desk, github, own, nudge=watch.nudge))
        self.pollers.append(watch)
        self.handlers[EffectKind.PUBLISH] = publisher_of(context, desk, github, own)
        if settings.sources.failing_ci is not None:
            from pilot.sources.failing_ci import FailingCi

            self.sources.append(FailingCi(desk, github, settings.sources.failing_ci))

    def _linear(self, settings: Settings, desk: Desk) -> None:
        own = settings.sources.linear
        if own is None:
            return
        from pilot.clients.linear import Client
        from pilot.clients.linear_errors import LinearError
        from pilot.sources.linear import LinearSource

        try:
            client = Client(own.api_key.get_secret_value(), url=own.base_url, clock=desk.clock)
        except LinearError as error:
            raise UsageError(f"sources.linear: {error}") from error
        self._open.push_async_exit(client)
        self.sources.append(LinearSource(desk, client, own))

    def _telegram(self, settings: Settings, desk: Desk) -> Bot | None:
        own = settings.sources.telegram
        if own is None:
            return None
        from pilot.clients.telegram import Bot
        from pilot.clients.telegram_errors import BotError
        from pilot.sources.telegram import TelegramSource

        try:
            bot = Bot(own.token.get_secret_value(), base_url=own.base_url, clock=desk.clock)
        except BotError as error:
            raise UsageError(f"sources.telegram: {error}") from error
        self._open.push_async_callback(bot.close)
        groups = [chat for chat in settings.notify.telegram if chat < 0]  # as Telegram numbers them
        self.sources.append(TelegramSource(desk, bot, own, chats=groups))
        return bot

    def _notify(self, settings: Settings, context: Context, desk: Desk, bot: Bot | None) -> None:
        own = settings.notify
        self.notifies = bool(own.telegram or own.webhook)
        if not self.notifies:
            return
        from pilot.clients.hooks import Hooks
        from pilot.publish.notify import Notify

        hooks = None
        if own.webhook:
            hooks = Hooks(hook_secret(settings, context.state_dir), clock=desk.clock)
            self._open.push_async_callback(hooks.close)
        notify = Notify(
            desk.outbox,
            desk.history,
            clock=desk.clock,
            redact=desk.redact,
            bot=bot if own.telegram else None,
            telegram=own.telegram,
            hooks=hooks,
            webhooks=own.webhook,
        )
        self.handlers[EffectKind.NOTIFY] = notify.notify
        self.handlers[EffectKind.TELL] = notify.tell

    def _callbacks(self, settings: Settings, context: Context, desk: Desk) -> None:
        from pilot.clients.addresses import CheckedTransport
        from pilot.clients.hooks import Hooks
        from pilot.publish.callbacks import Callbacks

        own = settings.server.callbacks
        checked = CheckedTransport(allow_hosts=own.allow_hosts, private=own.allow_private)
        hooks = Hooks(hook_secret(settings, context.state_dir), clock=desk.clock, transport=checked)
        self._open.push_async_callback(hooks.close)
        self.handlers[EffectKind.CALLBACK] = Callbacks(
            desk.outbox, desk.history, hooks, clock=desk.clock, redact=desk.redact
        )


class _Wordless:
    """Tells nobody anything."""

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        return None

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        return None


@dataclass(frozen=True, slots=True)
class _Cleaner:
    """The handler of `EffectKind.CLEAN`: a pull request has ended, and nobody goes on in its workspace."""

    context: Context

    async def __call__(self, effect: Effect) -> Mapping[str, Any] | None:
        context, id = self.context, effect.execution
        if id is None:
            return None
        try:
            execution = await context.store.queue.get(id)
        except NotFound:
            return None  # pruned meanwhile
        own = context.projects.get(execution.project_id)
        if own is None:
            raise Later(
                "its project is not in this node's configuration now", context.store.database.clock() + ELSEWHERE
            )
        try:
            keep = own.keep_workspace == "always"
            gone = await context.attempts(context.store.journal).release_workspace(execution, keep=keep)
        except WorkspaceError as error:
            raise Later(str(error)) from error
        return {"gone": gone}
