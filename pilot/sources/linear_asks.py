"""From an issue and whoever asked to an execution, or to a refusal: who may, which project, and the input frozen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import structlog

from pilot.clients.linear import LinearError, NotFound
from pilot.clients.linear_types import Actor, Comment, Edit, Failure, Issue, Response, Session, Story
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Refusal
from pilot.domain.errors import NotFound as Gone
from pilot.domain.errors import UsageError
from pilot.domain.execution import Execution
from pilot.domain.outside import Later
from pilot.domain.task import Kind
from pilot.domain.text import as_page, one_line
from pilot.sources.desk import Desk, Served
from pilot.sources.linear_account import CLOSED, Account, route
from pilot.sources.linear_runs import SOURCE, of_linear
from pilot.sources.linear_tell import Teller
from pilot.sources.linear_words import is_signed, moment

log = structlog.get_logger()

SLACK = 2000
"""Milliseconds by which the comment that mentions pilot may be younger than the session it began."""
UNTOLD = "Linear's history does not tell yet who set the label"


@dataclass(frozen=True, slots=True)
class Trigger:
    """Somebody asked. `key` is the same however often, and by whatever way, it is heard of."""

    key: str
    actor: Actor | None
    at: int
    session: str | None = None


class Asks:
    """Decides once per trigger. Raises `LinearError`; `Later` when Linear does not know yet who asked."""

    def __init__(self, desk: Desk, account: Account, teller: Teller) -> None:
        self._desk = desk
        self._account = account
        self._teller = teller

    async def labelled(self, id: str, *, sure: bool) -> None:
        """Somebody may have set the label. `sure`: what the history does not tell was so from the beginning."""
        try:
            issue = await self._account.client.issue(id)
        except NotFound:
            return
        if issue.trashed or not any(self._account.is_trigger(label.name) for label in issue.labels):
            return
        story = await self._account.client.story(issue.id, self._account.settings.label)
        if (found := story.labelled) is not None:
            trigger = Trigger(f"linear:{issue.id}:label:{found.id}", found.actor, found.at)
        elif sure:
            trigger = Trigger(f"linear:{issue.id}:label:created", issue.creator, issue.created_at)
        else:
            raise Later(UNTOLD, self._desk.clock() + 2000)
        await self._decide(issue, trigger, story)

    async def session(self, session: Session) -> None:
        """Somebody has begun a session with us: it hears at once that it is accepted, or why not."""
        if session.issue is None:
            words = "I work on issues only: mention me in one, or delegate one to me."
            await self._teller.say(session.id, "refused", Failure(words))
            return
        issue = await self._account.client.issue(session.issue)
        trigger = Trigger(_session_key(session), session.creator, session.created_at, session.id)
        await self._decide(issue, trigger, await self._account.client.story(issue.id))

    async def stopped(self, session: Session) -> None:
        """Somebody has thought better of it, before it was heard: it is never begun."""
        if session.issue is None:
            return
        issue = await self._account.client.issue(session.issue)
        place = route(issue, self._desk.projects())
        project = None if isinstance(place, str) else place[0].id
        key = _session_key(session)
        await self.turned_down(issue, key, session.creator, "it was stopped before it began", project)

    async def refuse(self, issue: Issue, trigger: Trigger, reason: str, project_id: int | None = None) -> None:
        """Store a refusal; a session is told as well."""
        if trigger.session is not None:  # before it is known as refused: that is once, and this may be lost
            await self._teller.say(trigger.session, "refused", Failure(f"I can't take this on: {reason}."))
        await self.turned_down(issue, trigger.key, trigger.actor, reason, project_id)

    async def turned_down(
        self, issue: Issue | Execution, key: str, actor: Actor | None, reason: str, project_id: int | None
    ) -> None:
        """Keep that somebody asked for something and why nothing comes of it, once."""
        task, url = (
            (issue.task_id, str((issue.origin or {}).get("url", "")))
            if isinstance(issue, Execution)
            else (issue.identifier, issue.url)
        )
        who = "" if actor is None else one_line(actor.name, 80)
        refusal = Refusal(
            key=key, source=SOURCE, project_id=project_id, task_id=task, actor=who, reason=reason, url=url
        )
        if await self._desk.refusals.refuse(refusal):
            log.info("trigger.refused", source=SOURCE, task=task, actor=who, reason=reason)

    async def again(self, old: Execution, key: str, *, feedback: str | None = None, prompted: int | None = None) -> int:
        """A new execution of an ended one, in its session if that may be gone on with; once per key.

        Raises `UsageError` in words.
        """
        served = next((one for one in self._desk.projects() if one[0].id == old.project_id), None)
        if served is None:
            raise UsageError(f"project {old.project} is not among those of this pilot any more")
        resumes = feedback is not None and old.session_id is not None and old.workspace is not None
        options = old.options
        request = TaskRequest(
            prompt=old.body or old.title, title=old.title, task_id=old.task_id, source=SOURCE, kind=Kind(old.kind),
            labels=old.labels, priority=max(old.priority, 0), lane=old.lane, payload=old.payload,
            branch=options.get("branch"), base=options.get("base"), publish=options.get("publish"),
            timeout=options.get("timeout"), max_attempts=old.max_attempts, idempotency_key=key, parent=old.id,
            origin={**(old.origin or {}), "trigger": key, **({} if prompted is None else {"prompted": prompted})},
            backend=old.backend if resumes else None, model=old.model if resumes else None, feedback=feedback,
            session_id=old.session_id if resumes else None, workspace=old.workspace if resumes else None,
        )  # fmt: skip
        return (await self._desk.submit(request, *served)).id

    async def _decide(self, issue: Issue, trigger: Trigger, story: Story) -> None:
        place = route(issue, self._desk.projects())
        if isinstance(place, str):
            await self.refuse(issue, trigger, place)
            return
        project = place[0].id
        if (await self._desk.refusals.known(project, [trigger.key])).get(trigger.key) == "refused":
            return
        if why := self._account.forbids(trigger.actor):
            await self.refuse(issue, trigger, why, project)
        elif issue.trashed or issue.state.type in CLOSED:
            state = "deleted" if issue.trashed else one_line(issue.state.name, 40)
            await self.refuse(issue, trigger, f"{issue.identifier} is {state}", project)
        else:
            await self._submit(issue, trigger, story, place)

    async def _submit(self, issue: Issue, trigger: Trigger, story: Story, place: Served) -> None:
        project, own = place
        try:
            done = await self._desk.submit(await self._request(issue, trigger, story), project, own)
        except UsageError as error:
            await self.refuse(issue, trigger, str(error), project.id)
            return
        try:
            execution = await self._desk.queue.get(done.id)
        except Gone:  # an old one, that was pruned
            return
        if done.duplicate and execution.idempotency_key != trigger.key:
            await self._join(issue, trigger, execution)
        elif trigger.session is not None and not execution.status.final:
            try:
                await self._teller.acknowledge(trigger.session, execution)
            except LinearError as error:
                log.warning("linear.acknowledged_late", execution=execution.id, error=str(error))

    async def _join(self, issue: Issue, trigger: Trigger, execution: Execution) -> None:
        """What is asked for is being done already, on another's behalf; the store has kept the key as that one's."""
        words = f"{issue.identifier} is being worked on already, as execution {execution.id}"
        if trigger.session is not None:
            about = "; its own comment or session tells how it goes" if of_linear(execution) else ""
            await self._teller.say(trigger.session, "refused", Response(f"{words}{about}."))
        else:
            await self._teller.unlabel(issue)

    async def _request(self, issue: Issue, trigger: Trigger, story: Story) -> TaskRequest:
        late = [edit for edit in story.edits if edit.at > trigger.at]
        foreign = [edit for edit in late if any(self._account.forbids(actor) for actor in edit.actors)]
        viewer, actor = await self._account.viewer(), trigger.actor
        comments = [c for c in issue.comments or () if self._counts(c, trigger, viewer.actor.id)]
        title = next((edit.title for edit in foreign if edit.title is not None), issue.title)
        withheld = any(edit.description for edit in foreign)
        return TaskRequest(
            prompt=prompt(title, None if withheld else issue.description, comments),
            title=title,
            task_id=issue.identifier,
            source=SOURCE,
            labels=tuple(label.name for label in issue.labels if not self._account.is_trigger(label.name)),
            idempotency_key=trigger.key,
            held=_held(issue, foreign, withheld) if foreign else None,
            origin={
                "source": SOURCE, "url": issue.url, "ref": issue.identifier, "issue": issue.id,
                "session": trigger.session, "actor": "" if actor is None else one_line(actor.name),
                "at": trigger.at, "trigger": trigger.key, "prompted": trigger.at,
                "edited_after": sorted({_name(actor) for edit in late for actor in edit.actors}),
            },
        )  # fmt: skip

    def _counts(self, comment: Comment, trigger: Trigger, viewer: str) -> bool:
        """Whether a comment is part of what is asked: from before, by somebody who may ask, and not our own."""
        if comment.created_at > trigger.at + (SLACK if trigger.session else 0) or self._account.forbids(comment.author):
            return False
        return not (comment.author is not None and comment.author.id == viewer and is_signed(comment.body))


def prompt(title: str, description: str | None, comments: Sequence[Comment]) -> str:
    """What the agent is asked to do. Each piece is cleaned by itself, so that none can swallow the next."""
    words = (
        "(Somebody who may not ask has changed the description; it is left out.)"
        if description is None
        else (as_page(description).strip())
    )
    parts = [words] if words else []
    if comments:
        parts.append("Comments, oldest first:")
        parts += [f"{_name(c.author)}, {moment(c.created_at)}:\n{_indented(as_page(c.body))}" for c in comments]
    return "\n\n".join(parts) or title


def _session_key(session: Session) -> str:
    return f"linear:session:{session.id}"


def _indented(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())


def _held(issue: Issue, edits: Iterable[Edit], withheld: bool) -> str:
    names = ", ".join(sorted({_name(actor) for edit in edits for actor in edit.actors}))
    what = "description" if withheld else "title"
    left = "is left out of the task" if withheld else "is as it was before"
    return (
        f"{issue.identifier} was changed by {names}, who may not ask, after it was asked for. The {what} {left}. "
        "Answer with what is to be done, or cancel, look it over and ask again."
    )


def _name(actor: Actor | None) -> str:
    return "somebody unknown" if actor is None else one_line(actor.name, 80) or "somebody without a name"
