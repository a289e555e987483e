"""What is new at GitHub, asked in ways that cost nothing while nothing is: lists with etags, and single things."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from pilot.clients.github_edits import EDITS, Edit, renamed, text_edits
from pilot.clients.github_errors import Unavailable
from pilot.clients.github_values import Comment, Issue, Labeled, comment, issue, labeled, same_label, understood
from pilot.clients.github_wire import PAGES, Answer, Wire, listed, path_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """What has changed since a time, and the etag to ask for the same again; None: more than a page has no one tag."""

    items: tuple[T, ...]
    etag: str | None


@dataclass(frozen=True, slots=True)
class Asking:
    """The newest time that a label was set, and the changes of the title after that, in their true order."""

    labeled: Labeled
    renamed: tuple[Edit, ...]


class News:
    """Asked of one login. Lists keep their address, and with it their etag, as long as `since` is the same."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def comments(self, repo: str, since: int, *, etag: str | None = None) -> Page[Comment] | None:
        """All the repository's comments written or edited since then, oldest first; None: the same as with `etag`."""
        parameters = {"sort": "created", "direction": "asc", "since": time_text(since)}
        found = await self._list(f"{path_of(repo)}/issues/comments", parameters, comment, etag)
        if found is None:
            return None
        return replace(found, items=tuple(each for each in found.items if each.edited_at >= since - since % 1000))

    async def closed(self, repo: str, since: int, *, etag: str | None = None) -> Page[Issue] | None:
        """Closed issues that changed since then, longest unchanged first; None: the same as with `etag`."""
        parameters = {"state": "closed", "since": time_text(since), "sort": "updated", "direction": "asc"}
        found = await self._list(f"{path_of(repo)}/issues", parameters, issue, etag)
        if found is None:
            return None
        return replace(found, items=tuple(each for each in found.items if not each.open and not each.is_pull))

    async def comment(self, repo: str, comment_id: int) -> Comment:
        """One comment as it is now."""
        return understood(comment, (await self._wire.get(f"{path_of(repo)}/issues/comments/{comment_id}")).data)

    async def asking(self, repo: str, number: int, label: str) -> Asking | None:
        """The newest event of that label's being set, and what became of the title since."""
        path = f"{path_of(repo)}/issues/{number}/events"
        first = await self._wire.get(path, {"per_page": 100})
        renames: list[Edit] = []
        last = first.link("last")  # events come oldest first
        start = first if last is None else await self._wire.follow(last)
        async for page in self._wire.pages(path, first=start, relation="prev"):
            for event in reversed(listed(path, page.data)):
                if event.get("event") == "renamed":
                    renames.append(understood(renamed, event))
                elif event.get("event") == "labeled":
                    found = understood(labeled, event)
                    if same_label(found.label, label):
                        return Asking(found, tuple(reversed(renames)))
        return None

    async def rewritten(self, repo: str, number: int) -> tuple[Edit, ...]:
        """All changes of an issue's text, oldest first; the first brings the original along, as its author's."""
        owner, _, name = repo.partition("/")
        wanted: dict[str, Any] = {"owner": owner, "name": name, "number": number, "after": None}
        found: list[Edit] = []
        for _ in range(PAGES):
            page, wanted["after"] = understood(text_edits, await self._wire.query(EDITS, wanted))
            found += page
            if wanted["after"] is None:
                return tuple(reversed(found))
        raise Unavailable(f"{path_of(repo)}/issues/{number}: more than {PAGES} pages of edits")

    async def _list(
        self, path: str, parameters: dict[str, Any], parse: Callable[[Any], T], etag: str | None
    ) -> Page[T] | None:
        first: Answer = await self._wire.get(path, {**parameters, "per_page": 100}, etag=etag)
        if first.status == 304:
            return None
        items: list[T] = []
        async for page in self._wire.pages(path, first=first):
            items += [understood(parse, item) for item in listed(path, page.data)]
        return Page(tuple(items), None if first.link("next") else first.headers.get("etag"))


def time_text(at: int) -> str:
    """GitHub's way of writing a time (UTC ms), to the second."""
    return datetime.fromtimestamp(at // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
