"""One message for each execution that was asked for in Telegram, edited as it goes on; questions get their own.

Whatever is shown is made from how things stand when it is made, and an older state never takes the place of a newer
one for good: edits of one node go by the newest event they know of, and the loop looks again after each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog

from pilot.clients.telegram import Bot, BotError, Button, RateLimited, Refused
from pilot.domain import telling
from pilot.domain.agent import OutputKind
from pilot.domain.delivery import EffectKind, Report
from pilot.domain.errors import NotFound
from pilot.domain.execution import OPEN, Status
from pilot.domain.outside import GiveUp, Later
from pilot.sources.desk import Desk
from pilot.sources.telegram_memory import Memory

log = structlog.get_logger()

EVERY = 3.0
"""Seconds between two looks at what runs."""
SCAN = 60.0
"""Seconds between two looks for executions that nobody told of: a retry from elsewhere."""
PATIENCE = 20.0
"""Seconds that a report waits for its edits; they are made later, too, and it asks again whether they were."""
_PIECES = 500
_BUTTONS = 10  # more options than that are for answering in words
_MOST = 200  # executions that are watched at a time
_UNSEEN = frozenset({OutputKind.RAW, OutputKind.PILOT})


@dataclass(slots=True)
class _Followed:
    """What is known of one that runs: where its output was read to, its last line, and what its message says."""

    after: tuple[int, int] = (0, 0)
    line: str = ""
    shown: str = ""
    event: int = 0


class Board:
    """Shows executions to the chats that asked for them. `every`: seconds between two looks at what runs."""

    def __init__(self, desk: Desk, bot: Bot, *, every: float = EVERY) -> None:
        self._desk = desk
        self._bot = bot
        self._every = every
        self._followed: dict[int, _Followed] = {}

    # As the outbox wants it

    async def show(self, report: Report) -> Mapping[str, Any]:
        """Make the chat show how it stands; the ids of its messages. Raises `Later`, `GiveUp`.

        What was sent and not answered may be there twice: the Bot API knows no idempotency.
        """
        try:
            await self._bot.open()
            return await self._shown(report)
        except TimeoutError:
            raise Later("Telegram's edits are not through yet") from None
        except RateLimited as error:
            raise Later(str(error), error.until) from None
        except Refused as error:
            raise GiveUp(str(error)) from None
        except BotError as error:
            raise Later(str(error)) from None

    async def _shown(self, report: Report) -> Mapping[str, Any]:
        origin = report.origin or {}
        chat = int(origin["chat"])
        known = messages(report, self._bot.id)
        asked, closed = dict(known.get("asked", {})), list(known.get("closed", ()))
        execution = report.execution
        for question in await self._desk.history.questions(execution.id):
            key = str(question.id)
            if key in asked and key not in closed and (question.answered_at is not None or execution.status.final):
                text = telling.settled(execution, question)
                await self._edit(chat, asked[key], text)
                closed.append(key)
        found: dict[str, Any] = {"bot": self._bot.id, "chat": chat, "asked": asked, "closed": closed}
        question_now = report.question
        message = known.get("message")
        if message is not None:
            found["message"] = await self._update(report, chat, message)
        # One new message at most: a second one that fails would have the first one sent again.
        if question_now is not None and question_now.answered_at is None and not execution.status.final:
            if str(question_now.id) not in asked:
                asked[str(question_now.id)] = await self._bot.send(
                    chat,
                    self._desk.redact(telling.question(execution, question_now)),
                    buttons=answer_buttons(execution.id, question_now.id, question_now.options, self._desk.redact),
                    reply_to=message or origin.get("message"),
                )
        elif message is None:
            text = await self._text(report)
            found["message"] = await self._bot.send(
                chat, text, buttons=_stop_button(report), reply_to=origin.get("message")
            )
            self._followed_of(execution.id).shown = text
        return found

    async def _update(self, report: Report, chat: int, message: int) -> int:
        """Edit its message; the id of that, or of the one in its place."""
        try:
            done = self._put(report, chat, message, await self._text(report))
            # What is not the end is looked after by `run`, on whatever node: nobody waits for the chat's next turn.
            if done is not None and report.execution.status.final:
                async with asyncio.timeout(PATIENCE):
                    await asyncio.shield(done)
        except Refused as error:
            if not report.execution.status.final:
                return message  # somebody has removed it: nobody wants to see it run
            log.info("telegram.message_gone", execution=report.execution.id, error=str(error))
            return await self._bot.send(chat, await self._text(report))
        return message

    async def _edit(self, chat: int, message: int, text: str) -> None:
        with suppress(Refused):  # removed, or too old
            async with asyncio.timeout(PATIENCE):
                await asyncio.shield(self._bot.edit(chat, message, self._desk.redact(text)))

    def _put(self, report: Report, chat: int, message: int, text: str) -> asyncio.Future[None] | None:
        followed = self._followed_of(report.execution.id)
        if report.event < followed.event:
            return None  # something newer was put there meanwhile
        followed.event, followed.shown = report.event, text
        return self._bot.edit(chat, message, text, buttons=_stop_button(report))

    def follow(self, execution: int) -> None:
        """Look after it from now on."""
        self._followed_of(execution)

    def _followed_of(self, execution: int) -> _Followed:
        if len(self._followed) > 2 * _MOST:  # of a node that does not read the bot's messages
            del self._followed[next(iter(self._followed))]
        return self._followed.setdefault(execution, _Followed())

    # While it runs

    async def run(self, memory: Memory) -> None:
        """Edit the messages of what waits and runs, until cancelled."""
        watched = set(memory.watched)
        loop = asyncio.get_running_loop()
        scanned = -SCAN
        while True:
            if loop.time() - scanned > SCAN:
                scanned = loop.time()
                open, _ = await self._desk.history.executions(statuses=OPEN, source="telegram", limit=_MOST)
                watched |= {execution.id for execution in open}
            watched |= {id for id in self._followed if id not in watched}
            await memory.watch(watched)  # before any of their messages is changed
            for id in sorted(watched):
                if not await self._look(id):
                    watched.discard(id)
            await asyncio.sleep(self._every)

    async def _look(self, id: int) -> bool:
        """Whether it is to be looked at again."""
        try:
            report = await self._desk.outbox.report(id)
        except NotFound:
            self._followed.pop(id, None)
            return False
        known = messages(report, self._bot.id)
        status = report.execution.status
        if "message" in known and report.origin is not None:
            text = await self._text(report)
            if text != self._followed_of(id).shown:
                self._put(report, known["chat"], known["message"], text)
                return True  # and look once more: what was put there may have been older than what another node put
        elif report.origin is None or report.origin.get("source") != "telegram":
            return False
        if status in (Status.QUEUED, Status.RUNNING, Status.BLOCKED):
            return True
        if status.final:
            self._followed.pop(id, None)
        return not status.final

    async def _text(self, report: Report) -> str:
        execution = report.execution
        waits = doing = said = ""
        now = self._desk.clock()
        if execution.status in (Status.QUEUED, Status.BLOCKED):
            why = await self._desk.history.why(execution.id, now)
            if why is not None:
                place = f"place {why.position}; " if why.position is not None and why.position > 1 else ""
                waits = place + (why.holds[0].detail if why.holds else why.next)
        elif execution.status is Status.RUNNING:
            attempts = await self._desk.history.attempts(execution.id)
            doing = (attempts[-1].phase or "") if attempts else ""
            said = await self._last_line(execution.id, execution.attempt)
        return self._desk.redact(telling.standing(report, now, waits=waits, doing=doing, said=said))

    async def _last_line(self, id: int, attempt: int) -> str:
        followed = self._followed_of(id)
        if followed.after[0] != attempt:
            followed.after, followed.line = (attempt, 0), ""
        while pieces := await self._desk.history.output(id, attempt=attempt, after=followed.after, limit=_PIECES):
            followed.after = (pieces[-1].attempt, pieces[-1].seq)
            for piece in reversed(pieces):
                line = "" if piece.kind in _UNSEEN else _last_of(piece.data)
                if line:
                    followed.line = line
                    break
        return followed.line


def messages(report: Report, bot: int) -> Mapping[str, Any]:
    """The ids of this bot's messages about it: chat, message, asked (by question)."""
    known = report.sent.get(EffectKind.REPORT)
    return known if isinstance(known, Mapping) and known.get("bot") == bot else {}


def told(report: Report, bot: int) -> list[Mapping[str, Any]]:
    """What this bot has told of it, to whoever asked and to others: chat, message, asked (message by question)."""
    others = [known for target, known in report.sent.items() if target.startswith("telegram:")]
    return [each for each in (messages(report, bot), *others) if isinstance(each, Mapping) and each.get("bot") == bot]


def answer_buttons(
    execution: int, question: int, options: Sequence[str], redact: Callable[[str], str]
) -> list[list[Button]]:
    """One for each option, below each other."""
    return [
        [Button(redact(telling.button(option)), telling.answer_token(execution, question, number))]
        for number, option in enumerate(options[:_BUTTONS])
    ]


def _stop_button(report: Report) -> list[list[Button]]:
    execution = report.execution
    if execution.status.final or execution.cancel_requested:
        return []
    return [[Button("Cancel", f"c:{execution.id}")]]


def _last_of(data: bytes) -> str:
    lines = data.decode(errors="replace").rstrip().splitlines()
    return lines[-1].strip() if lines else ""
