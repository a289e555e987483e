"""GitHub's REST API, as far as it is needed: issues, labels, comments, pull requests, CI; Enterprise Server, too.

One `GitHub` is one login, and everything that this login asks goes one by one through it: GitHub asks for that, counts
by login, and punishes who goes on after a limit. Writes are sent once: whether a write took effect whose answer was
lost only the caller can find out, by looking (`find_comment`, `find_pull`) before it sends again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from pilot.clients.github_checks import CI
from pilot.clients.github_edits import Edit, renamed
from pilot.clients.github_errors import Conflict, NotFound, Unprocessable
from pilot.clients.github_login import App, Login
from pilot.clients.github_news import News, time_text
from pilot.clients.github_values import (
    Account,
    Branch,
    Comment,
    Issue,
    Labeled,
    Listing,
    Permission,
    Pull,
    Rate,
    Remark,
    Repository,
    Review,
    app_slug,
    branch,
    comment,
    issue,
    labeled,
    permission,
    pull,
    remark,
    repository,
    review,
    same_label,
    some_account,
    understood,
)
from pilot.clients.github_wire import Wire, listed, path_of
from pilot.store import wall_clock

PUBLIC = "https://api.github.com"
COMMENT_LIMIT = 65_536
"""Characters of a comment's or a pull request's body."""
TITLE_LIMIT = 256
"""Characters of a title."""
DESCRIPTION_LIMIT = 100
"""Characters of a label's description."""


def fitting(body: str, limit: int = COMMENT_LIMIT) -> str:
    """The text as GitHub takes it. Too long, it loses its middle, which is said there; markers at both ends stay."""
    if len(body) <= limit:
        return body
    notice = f"\n\n*({len(body) - limit:,} characters and more are left out here: GitHub takes {limit:,}.)*\n\n"
    end = min(2_000, limit // 4)
    return body[: limit - end - len(notice)] + notice + body[-end:]


class GitHub:
    """One login at one server. An async context manager; calls raise `GitHubError`.

    `repo` is always "owner/name". `base_url` of an Enterprise Server is https://HOST/api/v3. `spacing`: seconds between
    writes, GitHub wants one; `waits`: seconds before a read that came to nothing is tried again. `ci`: what CI says.
    `news`: what is new.
    """

    def __init__(
        self,
        login: Login,
        *,
        base_url: str = PUBLIC,
        clock: Callable[[], int] = wall_clock,
        spacing: float = 1.0,
        waits: Sequence[float] = (0.5, 2.0),
    ) -> None:
        self._wire = Wire(login, base_url=base_url, clock=clock, spacing=spacing, waits=waits)
        self.ci = CI(self._wire)
        self.news = News(self._wire)
        self._login = login
        self._me: Account | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connection, behind a request that is under way."""
        await self._wire.aclose()

    @property
    def rate(self) -> Rate:
        """The rate limit as seen so far, without asking."""
        return self._wire.rate

    # Who, and where

    async def me(self) -> Account:
        """Whose comments are our own: the token's account, or the App's bot. Asked once."""
        if self._me is None:
            path = "/user"
            if isinstance(self._login, App):
                slug = understood(app_slug, (await self._wire.get("/app", as_app=True)).data)
                path = f"/users/{quote(f'{slug}[bot]', safe='')}"
            self._me = understood(some_account, (await self._wire.get(path)).data)
        return self._me

    async def token(self) -> str:
        """The token of the moment, for git's pushes; an App's is good for an hour at most, so ask each time."""
        return await self._wire.token()

    async def repository(self, repo: str) -> Repository:
        """The repository, under its present name if it was renamed."""
        return understood(repository, (await self._wire.get(path_of(repo))).data)

    async def branch(self, repo: str, name: str, *, etag: str | None = None) -> tuple[Branch, str | None] | None:
        """The branch as it is now and the etag to ask with next time; None: nothing has changed since `etag`."""
        answer = await self._wire.get(f"{path_of(repo)}/branches/{quote(name, safe='')}", etag=etag)
        return None if answer.status == 304 else (understood(branch, answer.data), answer.headers.get("etag"))

    async def permission(self, repo: str, login: str) -> Permission:
        """What somebody may do there; who is no collaborator has level "none"."""
        try:
            answer = await self._wire.get(f"{path_of(repo)}/collaborators/{quote(login, safe='')}/permission")
        except NotFound:
            return Permission("none", "none", None)
        return understood(permission, answer.data)

    # Issues and their labels

    async def issues(self, repo: str, label: str, *, etag: str | None = None) -> Listing | None:
        """Open issues with that label, oldest first, no pull requests; None: nothing has changed since `etag`.

        With an etag an answer without changes is not counted by GitHub. The address stays the same for that.
        """
        path = f"{path_of(repo)}/issues"
        parameters = {"state": "open", "labels": label, "sort": "created", "direction": "asc", "per_page": 100}
        first = await self._wire.get(path, parameters, etag=etag)
        if first.status == 304:
            return None
        found: list[Issue] = []
        async for page in self._wire.pages(path, first=first):
            found += [understood(issue, item) for item in listed(path, page.data)]
        # looked at again: after a renaming the library follows without the query, and everything comes
        mine = tuple(each for each in found if each.open and not each.is_pull and each.has(label))
        return Listing(mine, None if first.link("next") else first.headers.get("etag"))

    async def issue(self, repo: str, number: int) -> Issue:
        """One issue as it is now."""
        return understood(issue, (await self._wire.get(f"{path_of(repo)}/issues/{number}")).data)

    async def edits(self, repo: str, number: int, *, since: int = 0) -> tuple[Edit, ...]:
        """Changes of an issue's title and text from then on, to the second, and whose they are; oldest first.

        The first change of a text brings the original along, as a change by its author.
        """
        path = f"{path_of(repo)}/issues/{number}/events"
        events = await self._wire.items(path)
        titles = [understood(renamed, event) for event in events if event.get("event") == "renamed"]
        edits = sorted([*titles, *await self.news.rewritten(repo, number)], key=lambda edit: edit.at)
        return tuple(edit for edit in edits if edit.at >= since - since % 1000)

    async def labeled(self, repo: str, number: int, label: str) -> Labeled | None:
        """The newest event of that label's being set."""
        path = f"{path_of(repo)}/issues/{number}/events"
        page = await self._wire.get(path, {"per_page": 100})
        newest_first = page.link("last")  # events come oldest first
        if newest_first is not None:
            page = await self._wire.follow(newest_first)
        found: Labeled | None = None
        async for each in self._wire.pages(path, first=page, relation="prev" if newest_first else "next"):
            events = [
                understood(labeled, event) for event in listed(path, each.data) if event.get("event") == "labeled"
            ]
            found = next((event for event in reversed(events) if same_label(event.label, label)), found)
            if found is not None and newest_first is not None:
                break
        return found

    async def add_labels(self, repo: str, number: int, names: Collection[str]) -> None:
        """Set labels; those that are set stay, those that the repository lacks are made."""
        if names:
            await self._wire.write("POST", f"{path_of(repo)}/issues/{number}/labels", {"labels": list(names)})

    async def remove_label(self, repo: str, number: int, name: str) -> None:
        """Take a label away; it may be gone already."""
        try:
            await self._wire.write("DELETE", f"{path_of(repo)}/issues/{number}/labels/{quote(name, safe='')}")
        except NotFound:
            await self.issue(repo, number)  # raises when it is the issue that is not there, or not for us

    async def create_label(self, repo: str, name: str, *, color: str, description: str = "") -> bool:
        """Make a label (`color`: six hex digits); False: the repository has one of that name, which stays as it is."""
        try:
            body = {"name": name, "color": color, "description": description[:DESCRIPTION_LIMIT]}
            await self._wire.write("POST", f"{path_of(repo)}/labels", body)
        except Conflict:
            return False
        return True

    # Comments

    async def comments(self, repo: str, number: int | None = None, *, since: int | None = None) -> tuple[Comment, ...]:
        """Comments of an issue, or of all the repository's, that were written or edited since then; oldest first."""
        path = f"{path_of(repo)}/issues/comments" if number is None else f"{path_of(repo)}/issues/{number}/comments"
        parameters = {} if since is None else {"since": time_text(since)}
        if number is None:
            parameters |= {"sort": "created", "direction": "asc"}
        found = [understood(comment, item) for item in await self._wire.items(path, parameters)]
        return tuple(each for each in found if since is None or each.edited_at >= since - since % 1000)

    async def find_comment(self, repo: str, number: int, marker: str) -> Comment | None:
        """Our own first comment that has the marker. Somebody else's with the same marker is not ours."""
        me = await self.me()
        return next(
            (
                each
                for each in await self.comments(repo, number)
                if each.author is not None and each.author.id == me.id and marker in each.body
            ),
            None,
        )

    async def comment(self, repo: str, number: int, body: str) -> Comment:
        """Write a comment, `fitting`."""
        path = f"{path_of(repo)}/issues/{number}/comments"
        return understood(comment, (await self._wire.write("POST", path, {"body": fitting(body)})).data)

    async def edit_comment(self, repo: str, comment_id: int, body: str) -> Comment:
        """Put another text, `fitting`, in a comment's place."""
        path = f"{path_of(repo)}/issues/comments/{comment_id}"
        return understood(comment, (await self._wire.write("PATCH", path, {"body": fitting(body)})).data)

    # Pull requests

    async def find_pull(self, repo: str, branch: str, *, base: str | None = None, state: str = "open") -> Pull | None:
        """The newest pull request from that branch of the repository itself; `state`: open, closed or all."""
        parameters = {
            "state": state,
            "head": f"{repo.partition('/')[0]}:{branch}",
            "sort": "created",
            "direction": "desc",
        }
        if base is not None:
            parameters["base"] = base
        pulls = [understood(pull, item) for item in await self._wire.items(f"{path_of(repo)}/pulls", parameters)]
        # looked at again: GitHub lists everything when it can't read `head`, and forks may have such a branch
        return next(
            (
                each
                for each in sorted(pulls, key=lambda pull: pull.number, reverse=True)
                if each.own
                and each.branch == branch
                and base in (None, each.base)
                and (state == "all" or each.open == (state == "open"))
            ),
            None,
        )

    async def create_pull(
        self, repo: str, *, branch: str, base: str, title: str, body: str, draft: bool = False
    ) -> Pull:
        """Open a pull request, or give the one that is open from that branch to that base (then `body` is not used).

        Where a repository has no drafts it is an ordinary one: see `Pull.draft`.
        """
        path = f"{path_of(repo)}/pulls"
        wanted = {"title": title[:TITLE_LIMIT], "head": branch, "base": base, "body": fitting(body), "draft": draft}
        try:
            try:
                answer = await self._wire.write("POST", path, wanted)
            except Unprocessable as error:
                if not draft or "draft pull requests are not supported" not in str(error).lower():
                    raise
                answer = await self._wire.write("POST", path, {**wanted, "draft": False})
        except (Conflict, Unprocessable):
            found = await self.find_pull(repo, branch, base=base)
            if found is None:
                raise
            return found
        return understood(pull, answer.data)

    async def edit_pull(
        self, repo: str, number: int, *, title: str | None = None, body: str | None = None, open: bool | None = None
    ) -> Pull:
        """Change what is given."""
        changes: dict[str, Any] = {}
        if title is not None:
            changes["title"] = title[:TITLE_LIMIT]
        if body is not None:
            changes["body"] = fitting(body)
        if open is not None:
            changes["state"] = "open" if open else "closed"
        return understood(pull, (await self._wire.write("PATCH", f"{path_of(repo)}/pulls/{number}", changes)).data)

    async def pull(self, repo: str, number: int, *, etag: str | None = None) -> tuple[Pull, str | None] | None:
        """The pull request and the etag to ask with next time; None: nothing has changed since `etag`."""
        answer = await self._wire.get(f"{path_of(repo)}/pulls/{number}", etag=etag)
        return None if answer.status == 304 else (understood(pull, answer.data), answer.headers.get("etag"))

    async def reviews(self, repo: str, number: int) -> tuple[Review, ...]:
        """The submitted reviews, oldest first."""
        items = await self._wire.items(f"{path_of(repo)}/pulls/{number}/reviews")
        return tuple(understood(review, item) for item in items if item.get("submitted_at"))

    async def remarks(self, repo: str, number: int) -> tuple[Remark, ...]:
        """What reviewers wrote beside lines, oldest first."""
        items = await self._wire.items(f"{path_of(repo)}/pulls/{number}/comments")
        return tuple(understood(remark, item) for item in items)
