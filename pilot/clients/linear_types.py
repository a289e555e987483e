"""What Linear knows, as frozen values; times are UTC milliseconds. Reading is strict: a gap raises a LookupError."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pilot.domain.text import clean

Json = Any


class Kind(StrEnum):
    """Who acted: only a user is a member of the organization."""

    USER = "user"
    APP = "app"
    EXTERNAL = "external"
    BOT = "bot"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did something. `email` is empty but for users; `id` may be empty for a bot."""

    id: str
    name: str
    kind: Kind
    email: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A label, or a project."""

    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Team:
    """A team; `key` is what its issues' identifiers begin with."""

    id: str
    key: str
    name: str


@dataclass(frozen=True, slots=True)
class State:
    """A team's workflow state. `type`: triage, backlog, unstarted, started, completed, canceled."""

    id: str
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment. `author` None: nobody that Linear still knows; `edited_at` None: never edited."""

    id: str
    body: str
    author: Actor | None
    created_at: int
    edited_at: int | None
    parent: str | None
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Issue:
    """An issue. `creator` None: nobody that Linear still knows; `comments` (oldest first) None: not asked for.

    `previous`: the identifiers that it had in other teams. `trashed`: somebody deleted it.
    """

    id: str
    identifier: str
    previous: tuple[str, ...]
    title: str
    description: str
    url: str
    labels: tuple[Named, ...]
    team: Team
    project: Named | None
    state: State
    creator: Actor | None
    delegate: Actor | None
    created_at: int
    updated_at: int
    trashed: bool = False
    comments: tuple[Comment, ...] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """That somebody added a label: the id of this entry of the issue's history, who, when."""

    id: str
    actor: Actor | None
    at: int


@dataclass(frozen=True, slots=True)
class Edit:
    """That an issue's words were changed, last at `at`, and by whom; None: nobody that is known.

    `title`: what it was before, if it was changed; what the description was, nobody tells.
    """

    actors: tuple[Actor | None, ...]
    at: int
    title: str | None
    description: bool


@dataclass(frozen=True, slots=True)
class Story:
    """What an issue's history says of a label and of its words. `labelled` None: it does not say who added it."""

    labelled: Labelled | None
    edits: tuple[Edit, ...]


@dataclass(frozen=True, slots=True)
class Viewer:
    """Whose key it is, and the organization it is good for."""

    actor: Actor
    organization: str
    organization_name: str


@dataclass(frozen=True, slots=True)
class Session:
    """An agent session of the app `app`. `status`: pending, active, awaitingInput, error, complete, stale, stopping.

    `creator` None: an automation, or another agent, with no person to answer for it. `names`: the identifiers that
    its issue has and had.
    """

    id: str
    status: str
    app: str
    issue: str | None
    names: tuple[str, ...]
    creator: Actor | None
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """What somebody wrote into a session. `stop`: the agent is to stop at once."""

    id: str
    body: str
    author: Actor
    at: int
    stop: bool


@dataclass(frozen=True, slots=True)
class Thought:
    """What the agent thinks; may be ephemeral."""

    body: str


@dataclass(frozen=True, slots=True)
class Action:
    """What the agent does, and to what; may be ephemeral."""

    action: str
    parameter: str
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Elicitation:
    """A question: the session waits for an answer. `options` are for choice; other words may come all the same."""

    body: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """The agent's last word: the session is complete."""

    body: str


@dataclass(frozen=True, slots=True)
class Failure:
    """The agent gave up: the session has failed."""

    body: str


Activity = Thought | Action | Elicitation | Response | Failure


def activity_input(activity: Activity) -> dict[str, Json]:
    """The content of an activity as Linear takes it, with the signal that shows options."""
    match activity:
        case Thought(body):
            return {"content": {"type": "thought", "body": clean(body)}}
        case Action(action, parameter, result):
            content = {"type": "action", "action": clean(action), "parameter": clean(parameter)}
            return {"content": content if result is None else {**content, "result": clean(result)}}
        case Elicitation(body, options):
            content = {"type": "elicitation", "body": clean(body)}
            if not options:
                return {"content": content}
            choice = {"options": [{"label": option, "value": option} for option in map(clean, options)]}
            return {"content": content, "signal": "select", "signalMetadata": choice}
        case Response(body):
            return {"content": {"type": "response", "body": clean(body)}}
        case Failure(body):
            return {"content": {"type": "error", "body": clean(body)}}


def instant(text: str) -> int:
    """UTC milliseconds of an ISO 8601 time."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"a time without a zone: {text!r}")
    return round(moment.timestamp() * 1000)


def read_issue(data: Json, comments: Sequence[Comment] | None = None) -> Issue:
    """An issue; without `comments`, as lists have it."""
    project = data["project"]
    return Issue(
        id=data["id"],
        identifier=data["identifier"],
        previous=tuple(data["previousIdentifiers"]),
        title=data["title"],
        description=data["description"] or "",
        url=data["url"],
        labels=tuple(Named(label["id"], label["name"]) for label in data["labels"]["nodes"]),
        team=Team(data["team"]["id"], data["team"]["key"], data["team"]["name"]),
        project=None if project is None else Named(project["id"], project["name"]),
        state=read_state(data["state"]),
        creator=read_actor(data["creator"], data["externalUserCreator"], data["botActor"]),
        delegate=read_actor(data["delegate"]),
        created_at=instant(data["createdAt"]),
        updated_at=instant(data["updatedAt"]),
        trashed=data["trashed"] is True,
        comments=None if comments is None else tuple(sorted(comments, key=lambda c: (c.created_at, c.id))),
    )


def read_comment(data: Json) -> Comment:
    """A comment."""
    edited = data["editedAt"]
    return Comment(
        id=data["id"],
        body=data["body"],
        author=read_actor(data["user"], data["externalUser"], data["botActor"]),
        created_at=instant(data["createdAt"]),
        edited_at=None if edited is None else instant(edited),
        parent=data["parentId"],
        url=data["url"],
    )


def read_state(data: Json) -> State:
    """A workflow state."""
    return State(data["id"], data["name"], data["type"])


def read_actor(user: Json, external: Json = None, bot: Json = None) -> Actor | None:
    """Who it was, of those that Linear may name. A bot that acted for somebody is a bot."""
    if bot is not None:
        return Actor(bot["id"] or "", bot["name"] or bot["type"], Kind.BOT)
    if user is not None:
        return read_user(user)
    if external is not None:
        return Actor(external["id"], external["name"], Kind.EXTERNAL)
    return None


def read_user(user: Json) -> Actor:
    """A user, or an app that acts as one."""
    return Actor(user["id"], user["name"], Kind.APP if user["app"] else Kind.USER, user["email"])


def read_session(data: Json) -> Session:
    """An agent session."""
    issue = data["issue"]
    return Session(
        id=data["id"],
        status=data["status"],
        app=data["appUser"]["id"],
        issue=None if issue is None else issue["id"],
        names=() if issue is None else (issue["identifier"], *issue["previousIdentifiers"]),
        creator=read_actor(data["creator"]),
        created_at=instant(data["createdAt"]),
        updated_at=instant(data["updatedAt"]),
    )


def read_prompt(data: Json) -> Prompt:
    """A prompt."""
    stop = data["signal"] == "stop"
    return Prompt(data["id"], data["content"]["body"], read_user(data["user"]), instant(data["createdAt"]), stop)


def read_labelled(entry: Mapping[str, Json]) -> Labelled:
    """An entry of an issue's history."""
    return Labelled(entry["id"], read_actor(entry["actor"], None, entry["botActor"]), instant(entry["createdAt"]))


def read_edit(entry: Mapping[str, Json]) -> Edit | None:
    """The change of words that an entry of an issue's history tells of, if it does.

    Linear joins what one person does within a while in one entry: its last moment counts.
    """
    writers, title = entry["descriptionUpdatedBy"] or (), entry["fromTitle"]
    description = bool(writers) or entry["updatedDescription"] is True
    if title is None and not description:
        return None
    actors = {read_actor(entry["actor"], None, entry["botActor"]), *(read_user(writer) for writer in writers)}
    known = sorted((actor for actor in actors if actor is not None), key=lambda actor: actor.id)
    return Edit(tuple(known) or (None,), instant(entry["updatedAt"]), title, description)
