"""What known people say and click, and what comes of it: commands, requests to confirm, answers."""

from __future__ import annotations

import re
from contextlib import suppress

import structlog

from pilot.clients.telegram import Bot, BotError, Button
from pilot.clients.telegram_inbox import Click, Message
from pilot.clients.telegram_text import as_command, sayable
from pilot.domain import telling
from pilot.domain.errors import NotFound, UsageError
from pilot.domain.task import Project
from pilot.domain.text import one_line
from pilot.sources.desk import Desk
from pilot.sources.telegram_board import told
from pilot.sources.telegram_commands import Answer, Commands, Reply, person
from pilot.sources.telegram_memory import Memory, Pending

log = structlog.get_logger()

SECOND_CLICK = 10_000
"""Milliseconds within which a click on "Cancel" has to be repeated: phones are full of thumbs."""
_CHOICES = 30  # buttons for projects; more of them are named by /run
_CAPTION = 800
_CLICKS = 100


class People:
    """Deals with one message or click each. Raises `PilotError` with a line for whoever it was."""

    def __init__(self, desk: Desk, bot: Bot, memory: Memory, commands: Commands) -> None:
        self._desk = desk
        self._bot = bot
        self._memory = memory
        self._commands = commands
        self._first_clicks: dict[tuple[int, int], int] = {}

    async def said(self, said: Message) -> None:
        """Act on a message, and answer it."""
        command = as_command(said.text, self._bot.username)
        if command is not None:
            await self.reply(said, await self._commands(command.name, said, command.rest))
            return
        if said.text.lstrip().startswith("/") and not said.private:
            return  # another bot's
        if said.reply_to is not None and said.quoted:
            about = await self._asked_in(said.chat, said.reply_to, said.quoted)
            if about is not None:
                words = await self._commands.answer(about[0], said.text, person(said.name, said.user), about[1])
                await self.reply(said, words)
                return
        text = self._addressed(said)
        if text:
            await self._offer(said, text)

    async def clicked(self, click: Click) -> None:
        """Act on a click, and end its waiting."""
        try:
            words = await self._click(click)
        except (UsageError, NotFound) as error:
            words = str(error)
        with suppress(BotError):  # it is no more than a word on a screen
            await self._bot.acknowledge(click.id, self._desk.redact(one_line(words, 190)))

    async def reply(self, said: Message, answer: Answer) -> None:
        """Answer a message; None: nothing."""
        if answer is None:
            return
        if isinstance(answer, str):
            answer = Reply(answer)
        text = self._desk.redact(answer.text)
        if answer.file:
            end = text[-_CAPTION:].partition("\n")[2] or text[-_CAPTION:]
            await self._bot.send_file(said.chat, answer.file, text.encode(), f"…\n{end}", reply_to=said.id)
        else:
            await self._bot.send(said.chat, text, reply_to=said.id, fixed=answer.fixed, file_name="pilot.txt")

    # Requests in plain words

    def _addressed(self, said: Message) -> str:
        """What is said to the bot; in a group that is what names it."""
        if said.private:
            return said.text.strip()
        name = re.escape(self._bot.username)
        found = re.match(rf"\s*@{name}\b[,:]?\s*(.*)\Z", said.text, re.DOTALL | re.IGNORECASE)
        return found[1].strip() if found else ""

    async def _offer(self, said: Message, text: str) -> None:
        projects = [project for project, _ in self._desk.projects()]
        if not projects:
            raise UsageError("no project is configured yet")
        if len(projects) > _CHOICES:
            raise UsageError(f"write /run PROJECT TEXT; projects: {self._commands.names()}")
        pending = Pending(chat=said.chat, message=said.id, user=said.user, name=said.name, text=text, at=said.at)
        await self._memory.ask(pending)
        words, buttons = _confirmation(pending, projects[0]) if len(projects) == 1 else _choice(pending, projects)
        await self._bot.send(said.chat, self._desk.redact(words), buttons=buttons, reply_to=said.id)

    async def _click(self, click: Click) -> str:
        if token := telling.read_answer_token(click.data):
            return await self._answered(click, *token)
        kind, _, rest = click.data.partition(":")
        numbers = [int(part) for part in rest.split(":") if part.isascii() and part.isdecimal() and len(part) < 19]
        match kind, numbers:
            case "c", [execution]:
                return await self._cancelled(click, execution)
            case "p", [message, project]:
                return await self._chosen(click, message, project)
            case "y", [message, project]:
                return await self._confirmed(click, message, project)
            case "n", [message]:
                return await self._dropped(click, message)
        raise UsageError("I don't know that button any more")

    def _waiting(self, click: Click, message: int) -> Pending:
        """The request that the click is about. Raises `UsageError` for anybody's but its own."""
        pending = self._memory.pending(f"{click.chat}.{message}", self._desk.clock())
        if pending is None:
            raise UsageError("that is over: it was settled, or has waited for too long. Write it again")
        if pending.user != click.user:
            raise UsageError(f"only {one_line(pending.name, 60)} can say that")
        return pending

    def _project(self, id: int) -> Project:
        found = next((project for project, _ in self._desk.projects() if project.id == id), None)
        if found is None:
            raise NotFound("that project is not configured any more")
        return found

    async def _chosen(self, click: Click, message: int, project: int) -> str:
        pending = self._waiting(click, message)
        words, buttons = _confirmation(pending, self._project(project))
        self._bot.edit(click.chat, click.message, self._desk.redact(words), buttons=buttons)
        return ""

    async def _confirmed(self, click: Click, message: int, project: int) -> str:
        try:
            pending = self._waiting(click, message)
        except UsageError:
            self._expire(click, message)
            raise
        said = Message(
            chat=pending.chat, id=pending.message, user=pending.user, name=pending.name, text=pending.text,
            at=pending.at, private=pending.chat > 0,
        )  # fmt: skip
        found, own = self._commands.served(self._project(project).name)
        enqueued = await self._commands.submit(said, found, own, pending.text)
        await self._memory.settle(pending.key)
        self._bot.edit(click.chat, click.message, f"{found.name}: it is number {enqueued.id}")
        return ""

    async def _dropped(self, click: Click, message: int) -> str:
        try:
            pending = self._waiting(click, message)
        except UsageError:
            self._expire(click, message)
            raise
        await self._memory.settle(pending.key)
        self._bot.edit(click.chat, click.message, "Nothing was started.")
        return ""

    def _expire(self, click: Click, message: int) -> None:
        """Take the buttons of what waits no more away."""
        if self._memory.pending(f"{click.chat}.{message}", self._desk.clock()) is None:
            self._bot.edit(click.chat, click.message, "That is over.")

    # Executions

    async def _cancelled(self, click: Click, execution: int) -> str:
        now, key = self._desk.clock(), (click.user, execution)
        if now - self._first_clicks.get(key, 0) > SECOND_CLICK:
            self._first_clicks = {**dict(list(self._first_clicks.items())[-_CLICKS:]), key: now}
            return f"Once more within {SECOND_CLICK // 1000} seconds, and {execution} is ended."
        del self._first_clicks[key]
        return await self._commands.cancel(execution, person(click.name, click.user))

    async def _answered(self, click: Click, execution: int, question: int, option: int) -> str:
        asked = [each for each in await self._desk.history.questions(execution) if each.id == question]
        if not asked or option >= len(asked[0].options):
            raise NotFound("that question is gone")
        by = person(click.name, click.user)
        return await self._commands.answer(execution, asked[0].options[option], by, question)

    async def _asked_in(self, chat: int, message: int, quoted: str) -> tuple[int, int] | None:
        """The execution and question that a message of the bot's is about.

        By what was kept when it was sent, else (nothing was, for its answer was lost) by the very words of a question.
        """
        open = [each.execution_id for each in await self._desk.history.questions()]
        named = telling.named(quoted)
        for id in dict.fromkeys([*([named] if named is not None else []), *open]):
            try:
                report = await self._desk.outbox.report(id)
            except NotFound:
                continue
            for known in told(report, self._bot.id):
                if known.get("chat") != chat:
                    continue
                for question, place in known.get("asked", {}).items():
                    if place == message:
                        return id, int(question)
                if known.get("message") == message and report.question is not None:
                    return id, report.question.id
            asked = report.question
            if id == named and asked is not None and asked.answered_at is None:
                words = self._desk.redact(telling.question(report.execution, asked))
                if sayable(words).split() == quoted.split():
                    return id, asked.id
        return None


def _choice(pending: Pending, projects: list[Project]) -> tuple[str, list[list[Button]]]:
    named = [Button(one_line(project.name, 40), f"p:{pending.message}:{project.id}") for project in projects]
    rows = [named[place : place + 2] for place in range(0, len(named), 2)]
    return f"In which project?\n\n{_shown(pending)}", [*rows, [Button("Nowhere", f"n:{pending.message}")]]


def _confirmation(pending: Pending, project: Project) -> tuple[str, list[list[Button]]]:
    yes = Button("Run it", f"y:{pending.message}:{project.id}")
    words = f"Run this in {one_line(project.name, 60)}?\n\n{_shown(pending)}"
    return words, [[yes, Button("No", f"n:{pending.message}")]]


def _shown(pending: Pending) -> str:
    return telling.body(pending.text, 500)
