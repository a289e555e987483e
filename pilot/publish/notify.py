"""`notify`: tells people what needs a person, has failed, or is parked; in Telegram, and by signed POSTs.

A notification becomes one `tell` per target, each in a lane of its own: a target that is down holds up nobody else's.
When a question is open no more, the messages that asked it say so, and their buttons go.

A message whose answer was lost may be in Telegram twice: its API knows no idempotency. A POST that is sent twice has
the same `X-Pilot-Delivery`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

from pilot.clients.hooks import HookError, Hooks, Rejected, Unavailable, address_name, place
from pilot.clients.telegram import Bot, BotError, Button, RateLimited, Refused
from pilot.domain import telling
from pilot.domain.delivery import Effect, EffectKind, Report
from pilot.domain.errors import NotFound
from pilot.domain.events import EventType
from pilot.domain.outside import GiveUp, Later, Outbox
from pilot.domain.ports import Clock
from pilot.domain.redact import redacted
from pilot.domain.text import one_line
from pilot.store.documents import moment, rfc3339
from pilot.store.history import History

log = structlog.get_logger()

OLD = 3 * 24 * 60 * 60 * 1000
"""Milliseconds after which it is no news any more: a target that was down for so long is not told."""
ELSEWHERE = 60 * 60 * 1000
"""Milliseconds until it is asked again whether this node knows the target."""
PATIENCE = 20.0
"""Seconds that an edit is waited for."""
_BUTTONS = 10
_OWED = {str(EffectKind.PUBLISH): "its pull request", str(EffectKind.CALLBACK): "its callback"}
_NEWS = frozenset(
    type.value
    for type in (
        EventType.ASKED, EventType.FAILED, EventType.DELIVERY_FAILED, EventType.PULL_GIVEN_UP, EventType.PARKED,
    )
)  # fmt: skip


class Notify:
    """The handlers of `notify` and `tell`.

    `telegram`: chats, told by `bot` (one that may not be open yet); `webhooks`: addresses, told by `hooks`. All may
    be changed while it runs. `redact` takes secrets out of what goes outside.
    """

    def __init__(
        self,
        outbox: Outbox,
        history: History,
        *,
        clock: Clock,
        redact: Callable[[str], str],
        bot: Bot | None = None,
        telegram: Sequence[int] = (),
        hooks: Hooks | None = None,
        webhooks: Sequence[str] = (),
    ) -> None:
        if (telegram and bot is None) or (webhooks and hooks is None):
            raise ValueError("targets need what tells them")
        self._outbox = outbox
        self._history = history
        self._clock = clock
        self._redact = redact
        self._bot = bot
        self._hooks = hooks
        self.telegram: Sequence[int] = ()
        self.webhooks: Mapping[str, str] = {}
        self.reconfigure(telegram, webhooks)

    def reconfigure(self, telegram: Sequence[int], webhooks: Sequence[str]) -> None:
        """Tell these from now on."""
        self.telegram = tuple(dict.fromkeys(telegram))
        self.webhooks = {f"webhook:{address_name(url)}": url for url in webhooks}

    # One for all

    async def notify(self, effect: Effect) -> Mapping[str, Any] | None:
        """Handle NOTIFY: owe one `tell` to each target that it is news for."""
        type, data = str(effect.payload["type"]), dict(effect.payload.get("data") or {})
        report = await self._report(effect)
        told = self._told(report)
        news = type in _NEWS
        targets: dict[str, None] = {}
        if news:
            for chat in self.telegram:
                if report is None or type == EventType.DELIVERY_FAILED or not _follows(report, chat):
                    targets[f"telegram:{chat}"] = None
            targets |= dict.fromkeys(self.webhooks)
        else:  # what was told is taken back, also where it is being told just now: its lane is in order
            targets = dict.fromkeys(f"telegram:{chat}" for chat in self.telegram)
        targets |= dict.fromkeys(target for target, known in told.items() if known.get("asked"))
        await self._outbox.add(
            [
                (
                    EffectKind.TELL,
                    f"{effect.key}:{target}",
                    f"tell:{target}",
                    {"target": target, "type": type, "data": data, "at": effect.created_at},
                )
                for target in targets
            ],
            of=effect,
        )
        return None

    # One for one

    async def tell(self, effect: Effect) -> Mapping[str, Any] | None:
        """Handle TELL: one message to one target. Raises `Later`, `GiveUp`."""
        target = str(effect.payload["target"])
        old = self._clock() - effect.created_at > OLD
        kind, _, name = target.partition(":")
        try:
            if kind == "telegram" and self._bot is not None:
                return await self._tell_chat(effect, int(name))
            if target in self.webhooks and self._hooks is not None:
                await self._post(effect, self.webhooks[target])
                return None
        except Later as error:
            if old:
                raise GiveUp(f"it is no news any more, and still: {error}") from None
            raise
        if old:
            raise GiveUp("no node tells this target any more")
        raise Later("this node does not tell this target", self._clock() + ELSEWHERE)

    async def _tell_chat(self, effect: Effect, chat: int) -> Mapping[str, Any] | None:
        bot = self._bot
        assert bot is not None  # noqa: S101  for the reader: `tell` has looked
        report = await self._report(effect)
        if report is None and effect.execution is not None:
            return None  # pruned meanwhile
        try:
            await bot.open()
            return await self._in_chat(bot, effect, report, chat)
        except TimeoutError:
            raise Later("Telegram's edits are not through yet") from None
        except RateLimited as error:
            raise Later(str(error), error.until) from None
        except Refused as error:
            raise GiveUp(str(error)) from None
        except BotError as error:
            raise Later(str(error)) from None

    async def _in_chat(self, bot: Bot, effect: Effect, report: Report | None, chat: int) -> Mapping[str, Any]:
        known = self._told(report).get(f"telegram:{chat}", {})
        asked, closed = dict(known.get("asked", {})), list(known.get("closed", ()))
        found = {"bot": bot.id, "chat": chat, "asked": asked, "closed": closed}
        if report is not None:
            await self._close(bot, report, chat, asked, closed)
        type = str(effect.payload["type"])
        if type not in _NEWS or chat not in self.telegram:
            return found
        if type == EventType.ASKED and report is not None:
            question = report.question
            if question is None or question.answered_at is not None or report.execution.status.final:
                return found  # somebody was quicker
            if str(question.id) not in asked:
                asked[str(question.id)] = await bot.send(
                    chat,
                    self._redact(telling.question(report.execution, question)),
                    buttons=[
                        [
                            Button(
                                self._redact(telling.button(option)),
                                telling.answer_token(report.execution.id, question.id, number),
                            )
                        ]
                        for number, option in enumerate(question.options[:_BUTTONS])
                    ],
                )
            return found
        message = await bot.send(chat, self._redact(_words(effect, report, self._clock(), chat=True)))
        return {**found, "message": message}

    async def _close(self, bot: Bot, report: Report, chat: int, asked: Mapping[str, int], closed: list[str]) -> None:
        """Have the messages of questions that are open no more say so."""
        if not set(asked) - set(closed):
            return
        execution = report.execution
        for question in await self._history.questions(execution.id):
            key = str(question.id)
            if key in asked and key not in closed and (question.answered_at is not None or execution.status.final):
                with suppress(Refused):  # somebody has removed it
                    text = self._redact(telling.settled(execution, question))
                    async with asyncio.timeout(PATIENCE):
                        await asyncio.shield(bot.edit(chat, asked[key], text))
                closed.append(key)

    async def _post(self, effect: Effect, url: str) -> None:
        hooks = self._hooks
        assert hooks is not None  # noqa: S101  for the reader: `tell` has looked
        report = await self._report(effect)
        type = str(effect.payload["type"])
        execution = None if report is None else await self._history.document(report.execution)
        question = None
        if report is not None and report.question is not None and type == EventType.ASKED:
            asked = report.question
            question = {
                "id": asked.id,
                "text": asked.text,
                "options": list(asked.options),
                "default": asked.default,
                "answered": asked.answered_at is not None,
            }
        at = int(effect.payload.get("at") or effect.created_at)
        document = {
            "event": type,
            "id": effect.key,
            "at": rfc3339(at),
            "execution": execution,
            "text": _words(effect, report, self._clock()),
            "question": question,
            "data": effect.payload.get("data") or {},
        }
        try:
            await hooks.post(url, type, effect.key, redacted(document, self._redact))
        except Rejected as error:
            raise GiveUp(f"{error}; the address stands in notify.webhook") from None
        except Unavailable as error:
            raise Later(str(error), error.until) from None
        except HookError as error:
            raise Later(f"{place(url)}: {error}") from None

    # What is known

    async def _report(self, effect: Effect) -> Report | None:
        if effect.execution is None:
            return None
        try:
            return await self._outbox.report(effect.execution)
        except NotFound:
            return None

    def _told(self, report: Report | None) -> dict[str, Mapping[str, Any]]:
        """What this bot has told of it so far, by target."""
        if report is None or self._bot is None:
            return {}
        return {
            target: known
            for target, known in report.sent.items()
            if target.startswith("telegram:") and isinstance(known, Mapping) and known.get("bot") == self._bot.id
        }


def _follows(report: Report, chat: int) -> bool:
    """Whether that chat asked for it, and so sees it anyway."""
    origin = report.origin or {}
    return origin.get("source") == "telegram" and origin.get("chat") == chat


def _words(effect: Effect, report: Report | None, now: int, *, chat: bool = False) -> str:
    type, data = str(effect.payload["type"]), effect.payload.get("data") or {}
    if type == EventType.PARKED:
        return _parked(data)
    if report is None:
        return one_line(f"{type}: {data.get('reason') or ''}", 500)
    if type == EventType.DELIVERY_FAILED:
        what = _OWED.get(str(data.get("kind")), "a word to its ticket")
        reason = one_line(str(data.get("reason") or "no reason given"), 500)
        return f"{telling.headline(report.execution, '⚠️')}\n{what} could not be delivered: {reason}{_ticket(report)}"
    if type == EventType.PULL_GIVEN_UP:
        why = one_line(str(data.get("why") or "its repairs are used up"), 500)
        pull = f"\n{telling.pull(report.pull)}" if report.pull is not None else ""
        return f"{telling.headline(report.execution, '⚠️')}\nit is red, and a person has to look: {why}{pull}"
    if type == EventType.ASKED and report.question is not None:
        return telling.question(report.execution, report.question, chat=chat)
    return telling.standing(report, now, chat=chat) + _ticket(report)


def _ticket(report: Report) -> str:
    url = (report.origin or {}).get("url")
    return f"\n{one_line(str(url), 300)}" if url else ""


def _parked(data: Mapping[str, Any]) -> str:
    backend = one_line(str(data.get("backend") or "a backend"), 60)
    reason = one_line(str(data.get("reason") or "no reason given"), 500)
    until = data.get("until")
    if isinstance(until, int):
        return f"⏸ {backend} is parked until {moment(until)}: {reason}\nIt goes on by itself then."
    return f"⏸ {backend} is parked until somebody mends it: {reason}\nThen: pilot backend unpark {backend}"
