"""As whom pilot is in Linear, who may ask there, and which project an issue belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from uuid import UUID

from pilot.clients.linear import Client, LinearError, NotFound, RateLimited, Refused, Unauthorized
from pilot.clients.linear_types import Actor, Issue, Kind, Viewer
from pilot.config.schema import LinearSettings
from pilot.domain.outside import GiveUp, Later, SourcePaused
from pilot.domain.text import one_line
from pilot.sources.desk import Served

CLOSED = frozenset({"completed", "canceled", "duplicate"})
"""Types of workflow states in which nobody waits for an issue any more."""
REMEDY = "put a key that is good into sources.linear.api_key"


class Account:
    """The account behind a key, its organization, and its rules. `client` raises `LinearError`."""

    def __init__(self, client: Client, settings: LinearSettings) -> None:
        self.client = client
        self.settings = settings
        self._allowed = {user.casefold() for user in settings.allow.users}
        self._viewer: Viewer | None = None

    async def viewer(self) -> Viewer:
        """Whose key it is; asked once."""
        if self._viewer is None:
            self._viewer = await self.client.viewer()
        return self._viewer

    def forbids(self, actor: Actor | None) -> str | None:
        """Why this one may not ask, in words; None: may."""
        if actor is None:
            return "nobody that Linear names has asked: an automation, or somebody who is gone"
        name = one_line(actor.name, 80)
        match actor.kind:
            case Kind.APP | Kind.BOT:
                return f"{name} is an app, and only people may ask"
            case Kind.EXTERNAL:
                return f"{name} is no member of the organization"
        if self._allowed and not {actor.id.casefold(), actor.email.casefold()} & self._allowed:
            return f"{name} is not among sources.linear.allow.users"
        return None

    def is_trigger(self, label: str) -> bool:
        """Whether it is the label that asks, in any case."""
        return label.casefold() == self.settings.label.casefold()


def route(issue: Issue, projects: Sequence[Served]) -> Served | str:
    """The project whose `linear:` names the issue's team and, if it says so, Linear project; else why there is none."""
    own = {part.casefold() for part in (issue.project.id, issue.project.name)} if issue.project else set()
    of_team, of_project = [], []
    for served in projects:
        place = served[1].linear
        if place is None or place.team.casefold() != issue.team.key.casefold():
            continue
        if place.project is None:
            of_team.append(served)
        elif place.project.casefold() in own:
            of_project.append(served)
    found = of_project or of_team
    if len(found) == 1:
        return found[0]
    within = f"team {issue.team.key}" + (
        f" and Linear project {one_line(issue.project.name)!r}" if issue.project else ""
    )
    if not found:
        return f"no project of pilot.yaml is for {within}; set its `linear: {{team: {issue.team.key}}}`"
    names = ", ".join(project.name for project, _ in found)
    return f"several projects of pilot.yaml are for {within}: {names}; let only one be"


def token(*parts: object) -> UUID:
    """The id (version 4, as Linear wants it) under which a thing is written: the same parts give the same one."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode(errors="replace")).digest()
    return UUID(bytes=digest[:16], version=4)


@contextmanager
def reading() -> Iterator[None]:
    """Linear's errors as a source's: it is paused. What only one issue is to blame for stays a `LinearError`."""
    try:
        yield
    except RateLimited as error:
        raise SourcePaused(str(error), error.until) from error
    except Unauthorized as error:
        raise SourcePaused(str(error), remedy=REMEDY) from error
    except (NotFound, Refused):
        raise
    except LinearError as error:
        raise SourcePaused(str(error)) from error


@contextmanager
def writing() -> Iterator[None]:
    """Linear's errors as those of an effect: later, or never."""
    try:
        yield
    except RateLimited as error:
        raise Later(str(error), error.until) from error
    except (NotFound, Refused) as error:
        raise GiveUp(str(error)) from error
    except LinearError as error:
        raise Later(str(error)) from error
