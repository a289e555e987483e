"""Linear's GraphQL API: the dozen reads and writes that turn an issue or an agent session into work and back.

Nothing is tried again here. A write whose answer was lost may be sent again as it was: what creates something takes
an id from its caller, and finds out by that id whether it is there already.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self
from uuid import UUID

import httpx2

from pilot.clients import linear_queries as ask
from pilot.clients.linear_errors import LinearError, NotFound, RateLimited, Refused, Unauthorized, Unavailable, failure
from pilot.clients.linear_types import (
    Activity,
    Comment,
    Issue,
    Json,
    Labelled,
    Named,
    Prompt,
    Session,
    State,
    Story,
    Viewer,
    activity_input,
    read_comment,
    read_edit,
    read_issue,
    read_labelled,
    read_prompt,
    read_session,
    read_state,
    read_user,
)
from pilot.domain.text import clean
from pilot.store import wall_clock

__all__ = [
    "Client",
    "LinearError",
    "NotFound",
    "RateLimited",
    "Refused",
    "Unauthorized",
    "Unavailable",
]

URL = "https://api.linear.app/graphql"
TIMEOUT = 15.0
"""Seconds for an answer."""
PAGES = 20
"""Pages of one list that are read at most; a list that goes on is an error, never cut in silence."""


class Client:
    """One account. An async context manager; calls raise `LinearError`.

    `key`: a personal key (it acts as its owner), or an OAuth access token, which goes out as a bearer's; which of
    the two is told by how personal keys begin, unless `bearer` says so. Issues are named by id or identifier (ENG-12).
    Raises `Unauthorized` at once for what can't be a key.
    """

    def __init__(
        self, key: str, *, url: str = URL, bearer: bool | None = None, clock: Callable[[], int] = wall_clock
    ) -> None:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise Unauthorized("the Linear API key has characters that no key has, a line's end perhaps")
        self._clock = clock
        self._url = url
        if bearer is None:
            bearer = not key.startswith("lin_api_")
        self._http = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}" if bearer else key},
            timeout=httpx2.Timeout(TIMEOUT),
            follow_redirects=False,  # the key is for this address
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def viewer(self) -> Viewer:
        """Whose key it is."""
        with _understood():
            found = (await self._call(ask.VIEWER))["viewer"]
            home = found["organization"]
            return Viewer(read_user(found), home["id"], home["name"])

    async def issue(self, id: str) -> Issue:
        """The issue with all its comments."""
        with _understood():
            found = (await self._call(ask.ISSUE, id=id))["issue"]
            comments: list[Comment] = []
            page, pages = found["comments"], 1
            while True:
                comments += [read_comment(node) for node in page["nodes"]]
                if not page["pageInfo"]["hasNextPage"]:
                    return read_issue(found, comments)
                if (pages := pages + 1) > PAGES:
                    raise Refused(f"{found['identifier']} has more than {PAGES * ask.PAGE} comments")
                page = (await self._call(ask.COMMENTS, id=id, after=page["pageInfo"]["endCursor"]))["issue"]["comments"]

    async def labelled_issues(self, label: str, since: int) -> list[Issue]:
        """Issues that have the label (in any case) and were updated at or after `since` (UTC ms), without comments.

        What changes while the pages are read may be missing or there twice; it is newer than the call.
        """
        moment = datetime.fromtimestamp(since / 1000, UTC).isoformat(timespec="milliseconds")
        wanted = {"labels": {"some": {"name": {"eqIgnoreCase": label}}}, "updatedAt": {"gte": moment}}
        with _understood():
            return [read_issue(node) async for node in self._pages(ask.LABELLED_ISSUES, ("issues",), filter=wanted)]

    async def labelled(self, issue: str, label: str) -> Labelled | None:
        """The last time that somebody added the label (in any case); None: its history does not say so."""
        return (await self.story(issue, label)).labelled

    async def story(self, issue: str, label: str = "") -> Story:
        """What the issue's history says: the last time that the label (in any case) was added, edits, oldest first."""
        newest: Labelled | None = None
        edits = []
        with _understood():
            async for entry in self._pages(ask.HISTORY, ("issue", "history"), id=issue):
                if any(added["name"].casefold() == label.casefold() for added in entry["addedLabels"] or ()):
                    found = read_labelled(entry)
                    newest = found if newest is None or found.at > newest.at else newest
                edits.append(read_edit(entry))
        return Story(newest, tuple(sorted(filter(None, edits), key=lambda edit: edit.at)))

    async def label(self, name: str, team: str) -> Named | None:
        """The label of that name (in any case) that the team's issues may have: its own, else the organization's."""
        with _understood():
            nodes = (await self._call(ask.LABEL, name=name))["issueLabels"]["nodes"]
            own = [node for node in nodes if node["team"] is not None and node["team"]["id"] == team]
            shared = [node for node in nodes if node["team"] is None]
            return next((Named(node["id"], node["name"]) for node in (*own, *shared)), None)

    async def started_state(self, team: str) -> State | None:
        """The first of the team's states for what is being worked on."""
        with _understood():
            nodes = (await self._call(ask.STATES, team=team, type="started"))["team"]["states"]["nodes"]
            return read_state(min(nodes, key=lambda node: node["position"])) if nodes else None

    async def update_issue(
        self,
        id: str,
        *,
        state: str | None = None,
        delegate: str | None = None,
        add_labels: Collection[str] = (),
        remove_labels: Collection[str] = (),
    ) -> None:
        """Change what is given, by ids. Only labels that are to change are touched, whatever others do meanwhile."""
        changes: dict[str, Json] = {}
        if state is not None:
            changes["stateId"] = state
        if delegate is not None:
            changes["delegateId"] = delegate
        if add_labels:
            changes["addedLabelIds"] = list(add_labels)
        if remove_labels:
            changes["removedLabelIds"] = list(remove_labels)
        await self._write(ask.UPDATE_ISSUE, "issueUpdate", id=id, input=changes)

    async def comment(self, id: UUID, issue: str, body: str, *, parent: str | None = None) -> bool:
        """Write a comment (Markdown) under an id (version 4) of the caller's: sent again, it stays one comment.

        False: it is there already, with the words it had.
        """
        words: dict[str, Json] = {"id": str(id), "issueId": issue, "body": clean(body)}
        if parent is not None:
            words["parentId"] = parent
        return await self._create(ask.CREATE_COMMENT, "commentCreate", words, ask.COMMENT_IS_THERE)

    async def edit_comment(self, id: UUID | str, body: str) -> None:
        """Write a comment anew."""
        await self._write(ask.UPDATE_COMMENT, "commentUpdate", id=str(id), input={"body": clean(body)})

    async def session(self, id: str) -> Session:
        """An agent session."""
        with _understood():
            return read_session((await self._call(ask.SESSION, id=id))["agentSession"])

    async def sessions(self, since: int) -> list[Session]:
        """Agent sessions, of any app, that were updated at or after `since` (UTC ms)."""
        found: list[Session] = []
        before, older = 0, 0
        with _understood():
            async for node in self._pages(ask.SESSIONS, ("agentSessions",)):
                session = read_session(node)
                if session.updated_at >= since:
                    found.append(session)
                # They come latest first, but nobody promises it: a page of old ones, each older than the one before,
                # leaves no doubt.
                older = older + 1 if session.updated_at < since and session.updated_at <= before else 0
                before = session.updated_at
                if older >= ask.PAGE:
                    break
        return found

    async def prompts(self, session: str) -> list[Prompt]:
        """What people wrote into a session, oldest first; what it began with is not among it."""
        with _understood():
            found = [
                read_prompt(node) async for node in self._pages(ask.PROMPTS, ("agentSession", "activities"), id=session)
            ]
        return sorted(found, key=lambda prompt: (prompt.at, prompt.id))

    async def act(self, id: UUID, session: str, activity: Activity, *, ephemeral: bool = False) -> None:
        """Tell a session what the agent does, under an id (version 4) of the caller's: sent again, it is told once.

        `ephemeral`: it is gone with the next one; only thoughts and actions may be.
        """
        words = {"id": str(id), "agentSessionId": session, "ephemeral": ephemeral, **activity_input(activity)}
        await self._create(ask.CREATE_ACTIVITY, "agentActivityCreate", words, ask.ACTIVITY_IS_THERE)

    async def link_session(self, session: str, links: Sequence[tuple[str, str]]) -> None:
        """Set the (label, URL)s that a session shows, in place of those it had; it counts as a sign of life, too."""
        urls = [{"label": label, "url": url} for label, url in links]
        await self._write(ask.UPDATE_SESSION, "agentSessionUpdate", id=session, input={"externalUrls": urls})

    async def _pages(self, query: str, path: Sequence[str], **variables: Json) -> AsyncIterator[Json]:
        after: str | None = None
        for _ in range(PAGES):
            page: Json = await self._call(query, **variables, after=after)
            for key in path:
                page = page[key]
            for node in page["nodes"]:
                yield node
            after = page["pageInfo"]["endCursor"]
            if not page["pageInfo"]["hasNextPage"]:
                return
        raise Refused(f"Linear's list goes on after {PAGES * ask.PAGE} entries")

    async def _create(self, mutation: str, name: str, words: Mapping[str, Json], is_there: str) -> bool:
        try:
            await self._write(mutation, name, input=words)
        except Refused:
            # How Linear words the refusal of an id that is taken is not documented: the id itself is looked for.
            try:
                await self._call(is_there, id=words["id"])
            except NotFound:
                pass
            else:
                return False
            raise
        return True

    async def _write(self, mutation: str, name: str, **variables: Json) -> None:
        with _understood():
            done = (await self._call(mutation, **variables))[name]
            if done["success"] is not True:
                raise Refused(f"Linear did not do {name} and gives no reason")

    async def _call(self, query: str, **variables: Json) -> Json:
        try:
            answer = await self._http.post(self._url, json={"query": query, "variables": variables})
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise Unavailable(f"Linear gives no answer: {str(error) or type(error).__name__}") from error
        try:
            body = answer.json()
        except (ValueError, RecursionError):
            body = None
        said = body if isinstance(body, dict) else {}
        errors, data = said.get("errors"), said.get("data")
        if errors or answer.status_code >= 400:
            # Half an answer is none: what is null for an error's sake is not known to be nothing.
            raise failure(answer.status_code, answer.headers, errors if isinstance(errors, list) else [], self._clock())
        if answer.status_code != 200 or not isinstance(data, dict):
            raise Unavailable(f"{self._url} does not answer as Linear does (HTTP {answer.status_code})")
        return data


@contextmanager
def _understood() -> Iterator[None]:
    """An answer that lacks what was asked for is none."""
    try:
        yield
    except (LookupError, TypeError, ValueError) as error:
        raise Unavailable(f"Linear's answer makes no sense: {type(error).__name__} {error}") from error
