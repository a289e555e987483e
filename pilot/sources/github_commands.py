"""What people say in comments: `/pilot answer TEXT`, `/pilot retry`, `/pilot cancel`, and replies to a question."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from pilot.clients.github_values import Comment
from pilot.domain.delivery import Refusal
from pilot.domain.errors import UsageError
from pilot.domain.execution import OPEN, Execution, Status
from pilot.domain.task import Project
from pilot.sources.desk import Desk, Served
from pilot.sources.github_people import People
from pilot.sources.github_requests import SOURCE, runs_of
from pilot.store.history import Asked

log = structlog.get_logger()
VERBS = ("answer", "retry", "cancel")
SECOND = 1000
_COMMAND = re.compile(r"/pilot(?:[ \t]+(?P<verb>\S+)(?:[ \t]+(?P<rest>.*))?)?[ \t]*")
_FENCE = re.compile(r" {0,3}(?P<fence>```+|~~~+)")


@dataclass(frozen=True, slots=True)
class Command:
    """`text` is what follows the verb, to the comment's end."""

    verb: str
    text: str


def command(body: str) -> Command | None:
    """The first command at the start of a line, outside of code."""
    lines = body.replace("\r\n", "\n").split("\n")
    fence = ""
    for number, line in enumerate(lines):
        found = _FENCE.match(line)
        if found and not fence:
            fence = found["fence"]
        elif found and found["fence"].startswith(fence):
            fence = ""
        elif not fence and (said := _COMMAND.fullmatch(line)):
            rest = "\n".join([said["rest"] or "", *lines[number + 1 :]])
            return Command((said["verb"] or "").lower(), rest.strip())
    return None


class Commands:
    """Acts on a comment at most once, however often it is shown it: what it did to the store tells it so."""

    def __init__(self, desk: Desk, people: People) -> None:
        self._desk = desk
        self._people = people

    async def heed(self, served: Served, comment: Comment, *, on_pull: bool = False) -> None:
        """Do what the comment says, if anything. `on_pull`: it stands at a pull request of ours; no plain replies."""
        project, own = served
        repo, author = own.github or "", comment.author
        if author is None or author.bot or comment.edited_at != comment.created_at:
            return
        said = command(comment.body)
        runs = await self._runs(project, repo, comment.issue)
        if not runs or (said is None and on_pull):
            return
        if said is None:
            if await self._open_question(runs, comment) is None:
                return
            said = Command("answer", comment.body.strip())
        if await self._people.wrote_it_itself(author, comment.body):
            return
        key = f"github:{repo}#{comment.issue}:comment:{comment.id}"
        if await self._desk.refusals.known(project.id, [key]):
            return
        why = await self._people.why_not(repo, author)
        if not why:
            try:
                why = await self._do(said, runs, comment, f"github:{author.login}")
            except UsageError as error:
                why = str(error)
        if why:
            refusal = Refusal(
                key=key,
                source=SOURCE,
                project_id=project.id,
                task_id=runs[0].task_id,
                actor=author.login,
                reason=why,
                url=comment.url,
            )
            if await self._desk.refusals.refuse(refusal):
                log.warning("github.refused", key=key, actor=author.login, reason=why)

    async def _runs(self, project: Project, repo: str, number: int) -> list[Execution]:
        runs = await runs_of(self._desk, project, repo, number)
        if runs:
            return runs
        pull = await self._desk.pulls.by_number(project.id, number)
        if pull is None or pull.repo.casefold() != repo.casefold():
            return []
        found, _ = await self._desk.history.executions(project_id=project.id, task_id=pull.task_id, limit=20)
        return sorted(found, key=lambda each: each.id, reverse=True)

    async def _open_question(self, runs: Sequence[Execution], comment: Comment) -> tuple[Execution, Asked] | None:
        """What the comment may be the answer to: it was asked before."""
        for run in runs:
            if run.status is Status.NEEDS_HUMAN:
                asks = await self._desk.history.questions(run.id)
                asked = next((each for each in reversed(asks) if each.answered_at is None), None)
                # GitHub's times are cut to the second; nobody reads and answers within one
                if asked is not None and asked.asked_at <= comment.created_at:
                    return run, asked
        return None

    async def _do(self, said: Command, runs: Sequence[Execution], comment: Comment, by: str) -> str:
        """Why it came to nothing; empty: it is done, or was."""
        match said.verb:
            case "answer":
                return await self._answer(said, runs, comment, by)
            case "retry":
                return await self._retry(runs[0], comment, by)
            case "cancel":
                return await self._cancel(runs, comment, by)
        return f"there is no command {said.verb[:40]!r}; there are {', '.join(VERBS)}"

    async def _answer(self, said: Command, runs: Sequence[Execution], comment: Comment, by: str) -> str:
        if not said.text:
            return "an answer needs words"
        found = await self._open_question(runs, comment)
        if found is None:
            return "" if await self._answered(runs, comment, by) else "nothing is asked"
        run, asked = found
        text = said.text
        if text.isdecimal() and len(text) < 4 and 1 <= int(text) <= len(asked.options):
            text = asked.options[int(text) - 1]
        try:
            await self._desk.queue.answer(run.id, text, by)
        except UsageError as error:
            return "" if await self._answered(runs, comment, by) else str(error)
        return ""

    async def _answered(self, runs: Sequence[Execution], comment: Comment, by: str) -> bool:
        """It was done before, most likely: they have answered something since."""
        for run in runs:
            for asked in await self._desk.history.questions(run.id):
                if asked.answered_by == by and (asked.answered_at or 0) >= comment.created_at:
                    return True
        return False

    async def _retry(self, newest: Execution, comment: Comment, by: str) -> str:
        at = comment.created_at
        if newest.created_at >= at + SECOND or (newest.parent is not None and newest.created_at >= at):
            return ""  # that is what came of it
        if newest.status in OPEN:
            return f"execution {newest.id} is {newest.status}; only an ended one can be tried again"
        await self._desk.retry(newest.id, by)
        return ""

    async def _cancel(self, runs: Sequence[Execution], comment: Comment, by: str) -> str:
        going = [run for run in runs if run.status in OPEN and run.created_at < comment.created_at + SECOND]
        for run in going:
            await self._desk.queue.cancel(run.id, by, f"cancelled by {by.partition(':')[2]} on GitHub")
        newest = runs[0]
        done = newest.status is Status.CANCELLED and (newest.finished_at or 0) >= comment.created_at
        return "" if going or done or newest.created_at >= comment.created_at + SECOND else "nothing is to be done"
