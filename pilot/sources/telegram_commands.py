"""What people may tell the bot: one method for each command, and one line for each mistake."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pilot.clients.telegram import Bot
from pilot.clients.telegram_inbox import Message
from pilot.clients.telegram_text import MESSAGE, units
from pilot.config.schema import ProjectSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.agent import OutputKind
from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.ports import Document, Why
from pilot.domain.task import Project
from pilot.domain.telling import headline, who_settled
from pilot.domain.text import for_terminal, one_line
from pilot.sources.desk import Desk

PRIORITY = 0
"""Somebody waits for it: it goes before what the queue holds, in its turn for the project's slot."""
SOURCE = "telegram"
_SHOWN = 15  # rows of a list
_LOG_BYTES = 1 << 20  # of what an agent wrote, from its end


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered. `fixed`: in a fixed-width font. `file`: the name of the file that it is sent as."""

    text: str
    fixed: bool = False
    file: str = ""


Answer = str | Reply | None

COMMANDS = (
    ("run", "PROJECT TEXT: do it now"),
    ("status", "what runs, what waits, what stands still"),
    ("queue", "what waits, in its order"),
    ("why", "ID: why it is not running"),
    ("logs", "ID: what its agent wrote"),
    ("cancel", "ID: end it"),
    ("answer", "ID TEXT: answer its question"),
    ("retry", "ID: run it anew"),
    ("pause", "[PROJECT]: start nothing new"),
    ("resume", "[PROJECT]: go on"),
    ("projects", "the projects"),
    ("help", "this list"),
)


def person(name: str, user: int) -> str:
    """How the records name who spoke or clicked; the id is what tells people apart."""
    return f"{one_line(name, 60)} (Telegram {user})"


class Commands:
    """Does what is commanded, through the desk. Raises `PilotError` with a line for whoever asked.

    `follow` is told of every execution that comes of it.
    """

    def __init__(self, desk: Desk, bot: Bot, follow: Callable[[int], None]) -> None:
        self._desk = desk
        self._bot = bot
        self._follow = follow
        self._all: Mapping[str, Callable[[Message, str], Awaitable[Answer]]] = {
            "run": self._run, "status": self._status, "queue": self._queue, "why": self._why, "logs": self._logs,
            "cancel": self._cancel, "answer": self._answer, "retry": self._retry, "pause": self._pause,
            "resume": self._resume, "projects": self._projects, "help": self._help, "start": self._help,
        }  # fmt: skip

    async def __call__(self, name: str, said: Message, rest: str) -> Answer:
        """The answer to one command; None: what follows says it."""
        command = self._all.get(name)
        if command is None:
            raise UsageError(f"I don't know /{one_line(name, 32)}; /help says what there is")
        return await command(said, rest)

    def served(self, named: str) -> tuple[Project, ProjectSettings]:
        """A project by its name. Raises `NotFound`."""
        for project, own in self._desk.projects():
            if project.name.lower() == named.lower():
                return project, own
        raise NotFound(f"there is no project {one_line(named, 60)!r}; there are: {self.names()}")

    def names(self) -> str:
        """The projects, for a sentence."""
        return one_line(", ".join(project.name for project, _ in self._desk.projects()) or "none yet", 500)

    async def submit(self, said: Message, project: Project, own: ProjectSettings, text: str) -> Enqueued:
        """Have it done. A message is one request, however often it is read: its id is the key."""
        name = f"{said.chat}:{said.id}"
        origin: dict[str, Any] = {
            "source": SOURCE, "url": _link(said), "ref": f"telegram:{said.chat}", "actor": one_line(said.name, 60),
            "at": said.at, "bot": self._bot.id, "chat": said.chat, "message": said.id, "user": said.user,
        }  # fmt: skip
        enqueued = await self._desk.submit(
            TaskRequest(
                prompt=text,
                source=SOURCE,
                priority=PRIORITY,
                origin=origin,
                idempotency_key=f"telegram:{self._bot.id}:{name}",
            ),
            project,
            own,
        )
        self._follow(enqueued.id)
        return enqueued

    async def answer(self, id: int, text: str, by: str, question: int | None = None) -> str:
        """Answer what it asks; the first answer counts. `question`: that one, or none. Raises `UsageError`."""
        try:
            await self._desk.queue.answer(id, text, by, question)
        except UsageError:
            asked = await self._desk.history.questions(id)
            wanted = [each for each in asked if each.id == question] if question is not None else asked[-1:]
            if not wanted or wanted[0].answered_at is None:
                raise
            if (wanted[0].answered_by, wanted[0].answer) != (by, text.strip()):  # else this very answer was read twice
                raise UsageError(f"that question is not open any more. {who_settled(wanted[0])}") from None
        return f"{id} goes on with your answer: {one_line(text, 200)}"

    async def cancel(self, id: int, by: str) -> str:
        """End it; what came of that."""
        match await self._desk.queue.cancel(id, by):
            case Status.RUNNING:
                return f"{id} is asked to end"
            case Status.CANCELLED:
                return f"{id} is cancelled"
            case state:
                return f"{id} has ended already: {state}"

    async def _run(self, said: Message, rest: str) -> Answer:
        named, _, text = rest.partition(" ") if " " in rest.partition("\n")[0] else rest.partition("\n")
        if not text.strip():
            raise UsageError(f"write /run PROJECT TEXT; projects: {self.names()}")
        await self.submit(said, *self.served(named), text)
        return None  # its own message says how it goes

    async def _status(self, _said: Message, _rest: str) -> Answer:
        document = await self._desk.history.status(self._desk.clock())
        return status_text(document)

    async def _queue(self, _said: Message, _rest: str) -> Answer:
        waiting, more = await self._desk.history.executions(
            statuses=(Status.QUEUED, Status.BLOCKED, Status.NEEDS_HUMAN), limit=200
        )
        if not waiting:
            return "Nothing waits."
        # Each project's own order: that in which they will be claimed.
        waiting.sort(key=lambda execution: (execution.project, execution.priority, execution.id))
        lines = [headline(execution) for execution in waiting[:_SHOWN]]
        left = len(waiting) - len(lines)
        if left or more:
            lines.append(f"and {left}{' or more' if more else ''} others; `pilot list` shows all")
        return "\n".join(lines)

    async def _why(self, _said: Message, rest: str) -> Answer:
        id, _ = _id_first(rest, "/why ID")
        execution = await self._known(id)
        why = await self._desk.history.why(id, self._desk.clock())
        return headline(execution) if why is None else why_text(execution, why)

    async def _logs(self, _said: Message, rest: str) -> Answer:
        id, _ = _id_first(rest, "/logs ID")
        execution = await self._known(id)
        if not execution.attempt:
            raise UsageError(f"{id} has not begun; /why {id} says what it waits for")
        text = await self._output(execution)
        if not text:
            return f"{headline(execution)}\nIts agent has written nothing yet."
        if units(text) <= MESSAGE:
            return Reply(text, fixed=True)
        return Reply(text, file=f"pilot-{id}.log")

    async def _output(self, execution: Execution) -> str:
        """The end of what the last attempt's agents wrote."""
        kept: deque[bytes] = deque()
        size, after = 0, (execution.attempt, 0)
        while pieces := await self._desk.history.output(execution.id, attempt=execution.attempt, after=after):
            after = (pieces[-1].attempt, pieces[-1].seq)
            for piece in pieces:
                if piece.kind != OutputKind.RAW:
                    stdio = piece.kind in (OutputKind.STDOUT, OutputKind.STDERR)
                    kept.append(piece.data if stdio else piece.data.rstrip(b"\n") + b"\n")
                    size += len(kept[-1])
            while size > _LOG_BYTES:
                size -= len(kept.popleft())
        return for_terminal(b"".join(kept).decode(errors="replace")).strip()

    async def _cancel(self, said: Message, rest: str) -> Answer:
        id, _ = _id_first(rest, "/cancel ID")
        return await self.cancel(id, person(said.name, said.user))

    async def _answer(self, said: Message, rest: str) -> Answer:
        id, text = _id_first(rest, "/answer ID TEXT")
        if not text:
            raise UsageError("write /answer ID TEXT")
        return await self.answer(id, text, person(said.name, said.user))

    async def _retry(self, said: Message, rest: str) -> Answer:
        id, _ = _id_first(rest, "/retry ID")
        new = await self._desk.retry(id, person(said.name, said.user))
        self._follow(new)
        return f"{new} runs the task of {id} anew"

    async def _pause(self, said: Message, rest: str) -> Answer:
        project = self.served(rest)[0] if rest else None
        await self._desk.queue.pause(
            project.id if project else 0, person(said.name, said.user), "asked for in Telegram"
        )
        return f"{project.name if project else 'everything'} is paused; /resume{f' {rest}' if rest else ''} lifts it"

    async def _resume(self, said: Message, rest: str) -> Answer:
        named, _, everybody = rest.partition(" ")
        if named == "everybody":
            named, everybody = "", named
        project = self.served(named)[0] if named else None
        id, what = (project.id, project.name) if project else (0, "everything")
        lifted: list[str] = []
        if everybody == "everybody":
            lifted = await self._desk.queue.resume(id, None)
        else:  # names change, ids do not
            mine = f"(Telegram {said.user})"
            for owner in await self._desk.history.paused_by(id):
                if owner.endswith(mine):
                    lifted += await self._desk.queue.resume(id, owner)
        left = await self._desk.history.paused_by(id)
        if left:
            others = one_line(", ".join(left), 200)
            return f"{what} stays paused by {others}; /resume{f' {what}' if project else ''} everybody lifts that, too"
        return f"{what} is no longer paused" if lifted else f"{what} was not paused"

    async def _projects(self, _said: Message, _rest: str) -> Answer:
        document = await self._desk.history.status(self._desk.clock())
        by_name = {each["name"]: each for each in document["projects"]}
        lines = [_project_line(project.name, by_name.get(project.name, {})) for project, _ in self._desk.projects()]
        return "\n".join(lines[:50]) or "No project is configured."

    async def _help(self, _said: Message, _rest: str) -> Answer:
        lines = [f"/{name} {words}" if ":" in words else f"/{name}: {words}" for name, words in COMMANDS]
        return "\n".join([*lines, "", "Or just write what is to be done; I ask for the project."])

    async def _known(self, id: int) -> Execution:
        execution = await self._desk.history.execution(id)
        if execution is None:
            raise NotFound(f"there is no execution {id}; /status and /queue show what there is")
        return execution


def why_text(execution: Execution, why: Why) -> str:
    """What holds it, and what happens next."""
    place = f"place {why.position} in its project's queue" if why.position is not None else ""
    holds = [f"- {one_line(hold.detail, 300)}" for hold in why.holds]
    return "\n".join(line for line in (headline(execution), place, *holds, one_line(why.next, 500)) if line)


def status_text(document: Document) -> str:
    """The status document in a few lines."""
    counts = document["counts"]
    lines = [", ".join(f"{counts[name]} {words}" for name, words in _COUNTED if counts.get(name)) or "Nothing is open."]
    for each in document["running"][:_SHOWN]:
        phase = f" ({one_line(each['phase'], 60)})" if each.get("phase") else ""
        title = one_line(each["title"], 80)
        lines.append(f"▶️ {each['id']} · {one_line(each['project'], 60)} · {title}{phase}")
    for each in document["parked"][:_SHOWN]:
        until = f" until {each['until']}" if each.get("until") else "; a person is needed"
        lines.append(f"⏸ {one_line(each['backend'], 60)} is parked{until}: {one_line(each['reason'], 200)}")
    for each in document.get("paused", ())[:_SHOWN]:
        reason = one_line(each["reason"] or "no reason given", 100)
        lines.append(f"⏸ {each['project'] or 'everything'} is paused by {one_line(each['owner'], 80)}: {reason}")
    for each in document["sources"]:
        if each["status"] != "ok":
            lines.append(f"⚠️ {each['name']} is {each['status']}: {one_line(each['reason'], 200)}")
    return "\n".join(lines)


_COUNTED = (
    ("running", "running"), ("queued", "queued"), ("blocked", "blocked"), ("needs_human", "waiting for a person"),
)  # fmt: skip


def _project_line(name: str, row: Document) -> str:
    figures = [f"{row[key]} {key}" for key in ("running", "queued") if row.get(key)]
    return " · ".join([one_line(name, 60), *figures, *(["paused"] if row.get("paused") else [])])


def _id_first(rest: str, usage: str) -> tuple[int, str]:
    number, _, text = rest.replace("\n", " \n", 1).partition(" ")
    number = number.removeprefix("#")
    if not (number.isascii() and number.isdecimal() and 0 < len(number) < 19):
        raise UsageError(f"write {usage}; the ID is the number of an execution")
    return int(number), text.strip()


def _link(said: Message) -> str:
    """The message's address, which only messages of supergroups have."""
    group = str(said.chat)
    return f"https://t.me/c/{group.removeprefix('-100')}/{said.id}" if group.startswith("-100") else ""
