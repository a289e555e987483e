"""What GitHub has, as values. Times are UTC milliseconds; who deleted their account is None. Texts are as they came."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pilot.clients.github_errors import Unavailable

T = TypeVar("T")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Rate:
    """The rate limit as the answers so far told it; None: not seen yet. `paused_until`: nothing is asked before."""

    limit: int | None = None
    remaining: int | None = None
    reset_at: int | None = None
    paused_until: int = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody. The id stays when the login is renamed, or taken by another; compare ids."""

    id: int
    login: str
    bot: bool


@dataclass(frozen=True, slots=True)
class Repository:
    """`name` is "owner/name" as it is now; the id stays when it is renamed or moved."""

    id: int
    name: str
    default_branch: str
    private: bool
    archived: bool
    url: str


@dataclass(frozen=True, slots=True)
class Branch:
    """A branch, and the commit in which it ends."""

    name: str
    sha: str
    url: str


@dataclass(frozen=True, slots=True)
class Issue:
    """An issue, or the issue's side of a pull request (`is_pull`). `repository`: its API address.

    `comments`: how many it has.
    """

    id: int
    number: int
    title: str
    body: str
    author: Account | None
    labels: tuple[str, ...]
    open: bool
    is_pull: bool
    url: str
    repository: str
    created_at: int
    updated_at: int
    comments: int

    def has(self, label: str) -> bool:
        """GitHub takes labels that differ in case for the same."""
        return any(same_label(label, mine) for mine in self.labels)


@dataclass(frozen=True, slots=True)
class Listing:
    """Issues, and the `etag` to ask with next time; None: it must be read anew (more than a page has no one tag)."""

    issues: tuple[Issue, ...]
    etag: str | None


@dataclass(frozen=True, slots=True)
class Labeled:
    """The event of a label's being set. `event` is its id: it is another one when the label is set again."""

    event: int
    label: str
    actor: Account | None
    at: int


@dataclass(frozen=True, slots=True)
class Permission:
    """What somebody may do in a repository. `level`: admin, write, read or none; `role` is the finer or custom name."""

    level: str
    role: str
    account: Account | None

    @property
    def may_write(self) -> bool:
        """Triage, which may set labels, is `read` here."""
        return self.level in ("admin", "write")


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment of an issue or pull request. `edited_at` differs from `created_at` when somebody edited it."""

    id: int
    issue: int
    author: Account | None
    body: str
    created_at: int
    edited_at: int
    url: str


@dataclass(frozen=True, slots=True)
class Pull:
    """A pull request. `own`: its branch is in the repository itself and not in somebody's fork."""

    id: int
    number: int
    title: str
    body: str
    author: Account | None
    open: bool
    draft: bool
    merged_at: int | None
    branch: str
    sha: str
    own: bool
    base: str
    url: str


@dataclass(frozen=True, slots=True)
class Review:
    """One submitted review; `state`: APPROVED, CHANGES_REQUESTED, COMMENTED or DISMISSED."""

    id: int
    author: Account | None
    state: str
    body: str
    sha: str | None
    at: int
    url: str


@dataclass(frozen=True, slots=True)
class Remark:
    """What a reviewer wrote beside a line; `line` is None where that line is no more."""

    id: int
    review: int | None
    author: Account | None
    path: str
    line: int | None
    body: str
    url: str


def same_label(one: str, other: str) -> bool:
    """GitHub keeps a label's case and does not compare it."""
    return one.casefold() == other.casefold()


def understood(parse: Callable[[Any], T], data: Any) -> T:
    """The parsed answer. Raises `Unavailable`: after a write it is still unknown what became of it."""
    try:
        return parse(data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__} {error}"[:100]
        raise Unavailable(f"GitHub's answer is not understood ({parse.__name__}: {reason})") from error


def rate(headers: Mapping[str, str]) -> Rate | None:
    """What an answer's headers say of the limit."""
    try:
        limit, remaining, reset = (
            int(float(headers[f"x-ratelimit-{name}"])) for name in ("limit", "remaining", "reset")
        )
    except (KeyError, ValueError, OverflowError):
        return None
    return Rate(limit, remaining, reset * 1000)


def at(text: str) -> int:
    """Milliseconds of GitHub's time."""
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def account(data: Json | None) -> Account | None:
    """None for a deleted account."""
    return None if data is None else some_account(data)


def some_account(data: Json) -> Account:
    """From an account itself."""
    return Account(int(data["id"]), str(data["login"]), data.get("type") == "Bot")


def app_slug(data: Json) -> str:
    """From `GET /app`: the App's name in addresses, and before `[bot]` in its bot's login."""
    return str(data["slug"])


def repository(data: Json) -> Repository:
    """From `GET /repos/…`."""
    return Repository(
        int(data["id"]),
        str(data["full_name"]),
        str(data["default_branch"]),
        bool(data["private"]),
        bool(data["archived"]),
        str(data["html_url"]),
    )


def branch(data: Json) -> Branch:
    """From a branch."""
    return Branch(str(data["name"]), str(data["commit"]["sha"]), str(data["_links"]["html"]))


def issue(data: Json) -> Issue:
    """From a list of issues or an issue."""
    return Issue(
        id=int(data["id"]),
        number=int(data["number"]),
        title=str(data["title"]),
        body=data["body"] or "",
        author=account(data["user"]),
        labels=tuple(label if isinstance(label, str) else str(label["name"]) for label in data["labels"]),
        open=data["state"] == "open",
        is_pull="pull_request" in data,
        url=str(data["html_url"]),
        repository=str(data["repository_url"]),
        created_at=at(data["created_at"]),
        updated_at=at(data["updated_at"]),
        comments=int(data["comments"]),
    )


def labeled(data: Json) -> Labeled:
    """From an event of that name."""
    return Labeled(int(data["id"]), str(data["label"]["name"]), account(data["actor"]), at(data["created_at"]))


def permission(data: Json) -> Permission:
    """From a collaborator's permission."""
    level = str(data["permission"])
    return Permission(level, str(data.get("role_name") or level), account(data["user"]))


def comment(data: Json) -> Comment:
    """From a list of comments or a comment."""
    return Comment(
        id=int(data["id"]),
        issue=int(str(data["issue_url"]).rpartition("/")[2]),
        author=account(data["user"]),
        body=data["body"] or "",
        created_at=at(data["created_at"]),
        edited_at=at(data["updated_at"]),
        url=str(data["html_url"]),
    )


def pull(data: Json) -> Pull:
    """From a list of pull requests or a pull request."""
    head, base = data["head"], data["base"]
    return Pull(
        id=int(data["id"]),
        number=int(data["number"]),
        title=str(data["title"]),
        body=data["body"] or "",
        author=account(data["user"]),
        open=data["state"] == "open",
        draft=bool(data.get("draft")),
        merged_at=None if data["merged_at"] is None else at(data["merged_at"]),
        branch=str(head["ref"]),
        sha=str(head["sha"]),
        own=head["repo"] is not None and head["repo"]["id"] == base["repo"]["id"],
        base=str(base["ref"]),
        url=str(data["html_url"]),
    )


def review(data: Json) -> Review:
    """From a pull request's reviews, those that were submitted."""
    return Review(
        id=int(data["id"]),
        author=account(data["user"]),
        state=str(data["state"]),
        body=data["body"] or "",
        sha=data["commit_id"],
        at=at(data["submitted_at"]),
        url=str(data["html_url"]),
    )


def remark(data: Json) -> Remark:
    """From a pull request's review comments."""
    return Remark(
        id=int(data["id"]),
        review=data["pull_request_review_id"],
        author=account(data["user"]),
        path=str(data["path"]),
        line=data.get("line"),
        body=data["body"] or "",
        url=str(data["html_url"]),
    )


def requests_changes(reviews: Sequence[Review]) -> tuple[Review, ...]:
    """The reviews that stand in the way: of each reviewer the last that approves, asks for changes or was dismissed."""
    last: dict[int, Review] = {}
    for each in sorted(reviews, key=lambda review: review.at):
        if each.author is not None and each.state != "COMMENTED":
            last[each.author.id] = each
    return tuple(each for each in last.values() if each.state == "CHANGES_REQUESTED")
