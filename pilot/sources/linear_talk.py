"""What people say to pilot in Linear: prompts of a session, comments on an issue, and that an issue is closed.

A prompt answers the question that is open. While an agent is at work it can't be told anything: what is written then is
kept, and taken up by a new execution in the same session once the present one has ended; so is what is written later.
`stop` ends what runs, and drops what was kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import structlog

from pilot.clients.linear import NotFound
from pilot.clients.linear_types import Actor, Comment, Failure, Issue, Prompt, Response, Thought
from pilot.domain.errors import UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.markdown import in_line
from pilot.domain.text import one_line
from pilot.sources.desk import Desk
from pilot.sources.linear_account import CLOSED, Account
from pilot.sources.linear_asks import Asks
from pilot.sources.linear_runs import Done, Runs
from pilot.sources.linear_tell import Teller, comment_id
from pilot.sources.linear_words import is_signed

log = structlog.get_logger()

SKEW = 5000
"""Milliseconds by which Linear's clock and ours may differ without an answer seeming older than its question."""
_COMMAND = re.compile(r"^/pilot[ \t]+(?P<verb>answer|retry|cancel)\b[ \t]*(?P<text>.*)", re.MULTILINE | re.DOTALL)


def command(text: str) -> tuple[str, str] | None:
    """The first `/pilot …` at a line's start: its verb, and what follows."""
    found = _COMMAND.search(text)
    return None if found is None else (found["verb"], found["text"].strip())


class Talk:
    """Deals with each prompt and comment once. Raises `LinearError`, and `Later` while another node is at it."""

    def __init__(self, desk: Desk, account: Account, asks: Asks, teller: Teller, runs: Runs) -> None:
        self._desk = desk
        self._account = account
        self._asks = asks
        self._teller = teller
        self._runs = runs

    # Sessions

    async def session(self, id: str) -> None:
        """See to whatever of a session was not dealt with: its beginning, and what was written into it since."""
        client, viewer = self._account.client, await self._account.viewer()
        try:
            session = await client.session(id)
        except NotFound:
            return
        if session.app != viewer.actor.id:
            return
        async with self._runs.turn(f"linear:session:{id}") as done:
            prompts = [prompt for prompt in await client.prompts(id) if prompt.id not in done]
            stopped = next((prompt for prompt in prompts if prompt.stop), None)
            runs = await self._of_session(id, session.issue, session.names)
            if not runs and stopped is None:
                await self._asks.session(session)
                runs = await self._of_session(id, session.issue, session.names)
            elif not runs:
                await self._asks.stopped(session)
            if runs:
                await self._prompts(runs, id, prompts, done, (session.issue or "", session.names))
                return
            for prompt in prompts:
                words = (
                    "Nothing is being done here."
                    if prompt.stop
                    else "There is nothing here to go on with: begin a new session."
                )
                await self._teller.say(id, f"{prompt.id}:told", Response(words))
                done.add([prompt.id])

    async def _of_session(self, id: str, issue: str | None, names: Iterable[str]) -> list[Execution]:
        runs = [] if issue is None else await self._runs.of(issue, names)
        return [run for run in runs if (run.origin or {}).get("session") == id]

    async def _prompts(
        self, runs: list[Execution], id: str, prompts: Sequence[Prompt], done: Done, where: tuple[str, tuple[str, ...]]
    ) -> None:
        waiting: list[Prompt] = []
        for prompt in prompts:
            latest = (await self._of_session(id, *where) or runs)[0]
            if why := self._account.forbids(prompt.author):
                await self._asks.turned_down(
                    latest, f"linear:prompt:{prompt.id}", prompt.author, why, latest.project_id
                )
                await self._teller.say(id, f"{prompt.id}:told", Thought(f"I can't do that: {in_line(why)}."))
                done.add([prompt.id])
            elif prompt.stop:
                await self._stop(id, latest, prompt)
                done.add([*(one.id for one in prompts[: prompts.index(prompt) + 1])])
                waiting.clear()
            elif (asked := command(prompt.body)) is not None:
                words = await self._obey(asked, latest, prompt.author, f"linear:prompt:{prompt.id}")
                if words:
                    await self._teller.say(id, f"{prompt.id}:told", Thought(words))
                done.add([prompt.id])
            elif latest.status.final:
                waiting.append(prompt)
            elif not done.noted(prompt.id) and await self._is_answer(latest, prompt.at):
                if words := await self._answer(latest, prompt.body, prompt.author):
                    await self._teller.say(id, f"{prompt.id}:told", Thought(words))
                done.add([prompt.id])
            elif not done.noted(prompt.id):
                words = "The agent is at work and hears nothing now. I'll take this up when it has ended."
                await self._teller.say(id, f"{prompt.id}:noted", Thought(words))
                done.note(prompt.id)
        if waiting:
            await self._follow_up(id, runs, waiting, where)
            done.add([prompt.id for prompt in waiting])

    async def _follow_up(
        self, id: str, runs: list[Execution], prompts: Sequence[Prompt], where: tuple[str, tuple[str, ...]]
    ) -> None:
        latest = (await self._of_session(id, *where) or runs)[0]
        words = "\n\n".join(f"{one_line(prompt.author.name, 80)} wrote:\n{prompt.body.strip()}" for prompt in prompts)
        key = f"linear:prompt:{prompts[-1].id}"
        try:
            await self._asks.again(latest, key, feedback=words, prompted=prompts[-1].at)
        except UsageError as error:
            await self._teller.say(
                id, f"{prompts[-1].id}:told", Failure(f"I can't take that on: {in_line(str(error))}")
            )

    async def _stop(self, id: str, latest: Execution, prompt: Prompt) -> None:
        name = one_line(prompt.author.name, 80)
        if latest.status.final:  # its end was told; but who says stop is told so, too
            await self._teller.say(id, f"{prompt.id}:told", Response("Nothing is being done any more."))
        else:
            await self._desk.queue.cancel(latest.id, f"{name} in Linear", f"stopped by {name} in Linear")

    # Issues

    async def comments(self, id: str) -> None:
        """See to the comments on an issue that is being worked on, or was."""
        try:
            issue = await self._account.client.issue(id)
        except NotFound:
            return
        await self.comments_of(issue)

    async def comments_of(self, issue: Issue) -> None:
        """The same, with the issue at hand."""
        runs = await self._runs.of(issue.id, (issue.identifier, *issue.previous))
        if not runs:
            return
        ours = {str(comment_id(run)) for run in runs}
        since = min(int((run.origin or {}).get("at", 0)) for run in runs)
        viewer = (await self._account.viewer()).actor.id
        async with self._runs.turn(f"linear:issue:{issue.id}") as done:
            for comment in issue.comments or ():
                own = comment.id in ours or (
                    comment.author is not None and comment.author.id == viewer and is_signed(comment.body)
                )
                if own or comment.created_at <= since or comment.id in done:
                    continue
                await self._comment(issue, comment, ours)
                done.add([comment.id])

    async def _comment(self, issue: Issue, comment: Comment, ours: set[str]) -> None:
        runs = await self._runs.of(issue.id, (issue.identifier, *issue.previous))
        latest, asked = runs[0], command(comment.body)
        in_session = (latest.origin or {}).get("session") is not None
        if comment.edited_at is not None or (in_session and comment.parent is not None):
            return  # what is written into a session's thread comes as a prompt
        plain = asked is None
        if plain and not (comment.parent in ours and await self._is_answer(latest, comment.created_at)):
            return
        key = f"linear:comment:{comment.id}"
        if why := self._account.forbids(comment.author):
            await self._asks.turned_down(latest, key, comment.author, why, latest.project_id)
            return
        words = await self._obey(asked or ("answer", comment.body), latest, comment.author, key, comment.created_at)
        if words:
            await self._teller.reply(issue.id, comment, words, latest)

    async def closed(self, id: str, names: Iterable[str], how: str, by: str) -> None:
        """An issue that nobody waits for any more: nothing of it runs on. `how`, `by` whom: in words."""
        for run in await self._runs.of(id, names):
            if not run.status.final:
                await self._desk.queue.cancel(run.id, f"{by} in Linear", f"{run.task_id} was {how} in Linear")

    async def look_after(self, run: Execution) -> None:
        """What a lost webhook may have told of an execution's issue: that it is closed, or comments."""
        origin = run.origin or {}
        names = (run.task_id, str(origin.get("ref", run.task_id)))
        try:
            issue = await self._account.client.issue(str(origin["issue"]))
        except NotFound:
            await self.closed(str(origin["issue"]), names, "deleted", "somebody")
            return
        if how := ended(issue):
            await self.closed(issue.id, (issue.identifier, *issue.previous), how, "somebody")
        else:
            await self.comments_of(issue)

    # Both

    async def _is_answer(self, latest: Execution, at: int) -> bool:
        if latest.status is not Status.NEEDS_HUMAN:
            return False
        questions = await self._desk.history.questions(latest.id)
        return not questions or at >= questions[-1].asked_at - SKEW

    async def _obey(
        self, asked: tuple[str, str], latest: Execution, who: Actor | None, key: str, at: int | None = None
    ) -> str:
        """Do it; what to say when nothing comes of it."""
        name = one_line(who.name if who is not None else "somebody", 80)
        match asked:
            case ("answer", text):
                return await self._answer(latest, text, who)
            case ("cancel", _) if latest.status.final:
                return f"Execution {latest.id} is {latest.status} already."
            case ("cancel", _) if at is not None and at < latest.created_at - SKEW:
                return ""  # it was meant for one before
            case ("cancel", _):
                await self._desk.queue.cancel(latest.id, f"{name} in Linear", f"cancelled by {name} in Linear")
                return ""
        if not latest.status.final:
            return f"Execution {latest.id} is {latest.status}; there is nothing to try again."
        try:
            await self._asks.again(latest, key)
        except UsageError as error:
            return in_line(str(error))
        return ""

    async def _answer(self, latest: Execution, text: str, who: Actor | None) -> str:
        try:
            await self._desk.queue.answer(latest.id, text, one_line(who.name if who is not None else "somebody", 80))
        except UsageError as error:
            questions = await self._desk.history.questions(latest.id)
            if questions and questions[-1].answered_by:
                return f"That was answered already, by {in_line(questions[-1].answered_by, 80)}."
            return in_line(str(error))
        return ""


def ended(issue: Issue) -> str | None:
    """How an issue was closed, in words; None: it is open."""
    if issue.trashed:
        return "deleted"
    return f"set to {one_line(issue.state.name, 40)}" if issue.state.type in CLOSED else None
