"""What the fake GitHub knows, and how GitHub's API shows it.

Fields that nobody here is about are filled in from the description, so that every object is whole.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha1
from pathlib import Path
from typing import Any

from tests.e2e.github_contract import complete

Json = dict[str, Any]
LEVELS: Mapping[str, str] = {"triage": "read", "maintain": "write"}
"""Roles that the permission call shows under the name of an older one."""
RANK = ("none", "read", "triage", "write", "maintain", "admin")
CLOSES = re.compile(
    r"\b(?:close[sd]?|fix(?:e[sd])?|resolve[sd]?):?\s+(?:(?P<repo>[\w.-]+/[\w.-]+))?#(?P<number>\d+)", re.I
)


def stamp(now: float) -> str:
    """GitHub's time, to the second."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(eq=False)
class User:
    id: int
    login: str
    kind: str = "User"  # or Bot, Organization


@dataclass(eq=False)
class Comment:
    id: int
    number: int
    author: User
    body: str
    created: str
    updated: str


@dataclass(eq=False)
class Item:
    """An issue; a pull request has `head` and what follows."""

    id: int
    number: int
    title: str
    body: str
    author: User
    created: str
    updated: str
    labels: list[str] = field(default_factory=list)
    open: bool = True
    closed: str | None = None
    head: str = ""
    base: str = ""
    sha: str = ""
    draft: bool = False
    merged: str | None = None
    fork: Repo | None = None
    edits: list[tuple[User, str]] = field(default_factory=list)  # of the text, the original first
    reviews: list[Json] = field(default_factory=list)
    remarks: list[Json] = field(default_factory=list)

    @property
    def pull(self) -> bool:
        return bool(self.head)


@dataclass(eq=False)
class Repo:
    id: int
    owner: User
    name: str
    private: bool = False
    drafts: bool = True
    default_branch: str = "main"
    roles: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # name: color
    branches: dict[str, str] = field(default_factory=dict)  # name: sha
    git: Path | None = None  # a bare repository, whose branches count instead
    items: dict[int, Item] = field(default_factory=dict)
    comments: dict[int, Comment] = field(default_factory=dict)
    events: dict[int, list[Json]] = field(default_factory=dict)
    check_runs: dict[str, list[Json]] = field(default_factory=dict)  # sha: newest first
    statuses: dict[str, list[Json]] = field(default_factory=dict)
    busy: set[str] = field(default_factory=set)  # apps whose check suites are not over, though their runs are
    runs: list[Json] = field(default_factory=list)  # newest first
    jobs: dict[int, list[Json]] = field(default_factory=dict)
    logs: dict[int, bytes] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def full_name(self) -> str:
        return f"{self.owner.login}/{self.name}"

    def may(self, user: User, least: str) -> bool:
        """The role suffices; a public repository can be read by all."""
        role = self.roles.get(user.login, "none" if self.private else "read")
        return RANK.index(role) >= RANK.index(least)

    def head(self, branch: str) -> str | None:
        """The branch's commit."""
        if self.git is None:
            return self.branches.get(branch)
        found = self._git("rev-parse", "--verify", "--quiet", f"refs/heads/{branch}")
        return found.stdout.strip() or None

    def move(self, branch: str, sha: str) -> None:
        """Have the branch end in that commit."""
        if self.git is None:
            self.branches[branch] = sha
        else:
            self._git("update-ref", f"refs/heads/{branch}", sha).check_returncode()

    def _git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(self.git), *arguments], capture_output=True, text=True)

    def label_named(self, name: str) -> str | None:
        """The label as it is written here."""
        return next((label for label in self.labels if label.casefold() == name.casefold()), None)


def some_sha(*parts: object) -> str:
    return sha1(repr(parts).encode(), usedforsecurity=False).hexdigest()


class View:
    """The JSON of things; `api` and `web` are where the server is."""

    def __init__(self, api: str, web: str) -> None:
        self.api = api
        self.web = web

    def user(self, user: User) -> Json:
        return complete(
            "simple-user",
            {
                "id": user.id,
                "login": user.login,
                "type": user.kind,
                "gravatar_id": "",
                "url": f"{self.api}/users/{user.login}",
                "html_url": f"{self.web}/{user.login}",
            },
        )

    def repo(self, repo: Repo, schema: str = "full-repository") -> Json:
        url = f"{self.api}/repos/{repo.full_name}"
        return complete(
            schema,
            {
                "id": repo.id,
                "name": repo.name,
                "full_name": repo.full_name,
                "owner": self.user(repo.owner),
                "private": repo.private,
                "archived": False,
                **dict.fromkeys(("created_at", "pushed_at", "updated_at"), stamp(0)),
                "default_branch": repo.default_branch,
                "url": url,
                "html_url": f"{self.web}/{repo.full_name}",
                "clone_url": f"{self.web}/{repo.full_name}.git",
                "visibility": "private" if repo.private else "public",
            },
        )

    def label(self, repo: Repo, name: str) -> Json:
        url = f"{self.api}/repos/{repo.full_name}/labels/{name}"
        number = int(some_sha(repo.id, name)[:8], 16)
        return complete(
            "label", {"id": number, "name": name, "color": repo.labels[name], "url": url, "description": ""}
        )

    def issue(self, repo: Repo, item: Item, schema: str = "issue") -> Json:
        url = f"{self.api}/repos/{repo.full_name}/issues/{item.number}"
        shown = {
            "id": item.id,
            "number": item.number,
            "title": item.title,
            "body": item.body or None,
            "user": self.user(item.author),
            "labels": [self.label(repo, name) for name in item.labels],
            "state": "open" if item.open else "closed",
            "state_reason": None if item.open else "completed",
            "comments": sum(each.number == item.number for each in repo.comments.values()),
            "created_at": item.created,
            "updated_at": item.updated,
            "closed_at": item.closed,
            "url": url,
            "html_url": f"{self.web}/{repo.full_name}/{'pull' if item.pull else 'issues'}/{item.number}",
            "repository_url": f"{self.api}/repos/{repo.full_name}",
            "author_association": "NONE",
        }
        if item.pull:
            pull = f"{self.api}/repos/{repo.full_name}/pulls/{item.number}"
            links = dict.fromkeys(("url", "html_url", "diff_url", "patch_url"), pull)
            shown["pull_request"] = {**links, "merged_at": item.merged}
        return complete(schema, shown)

    def pull(self, repo: Repo, item: Item, schema: str = "pull-request") -> Json:
        source = item.fork or repo
        if item.open:
            item.sha = source.head(item.head) or item.sha

        def end(of: Repo, branch: str, sha: str) -> Json:
            label = f"{of.owner.login}:{branch}"
            kind = "repository-webhooks" if schema == "pull-request-webhook" else "repository"
            return {"label": label, "ref": branch, "sha": sha, "user": self.user(of.owner), "repo": self.repo(of, kind)}

        issue = self.issue(repo, item)
        kept = ("id", "number", "title", "body", "user", "labels", "state", "created_at", "updated_at", "closed_at")
        url = f"{self.api}/repos/{repo.full_name}/pulls/{item.number}"
        more = {
            "url": url,
            "html_url": issue["html_url"],
            "issue_url": issue["url"],
            "draft": item.draft,
            "merged_at": item.merged,
            "merge_commit_sha": some_sha("merge", item.sha) if item.merged else None,
            "head": end(source, item.head, item.sha),
            "base": end(repo, item.base, repo.head(item.base) or some_sha(item.base)),
        }
        if schema != "pull-request-simple":
            more["merged"] = item.merged is not None
        return complete(schema, {name: issue[name] for name in kept} | more)

    def comment(self, repo: Repo, comment: Comment) -> Json:
        url = f"{self.api}/repos/{repo.full_name}/issues"
        return complete(
            "issue-comment",
            {
                "id": comment.id,
                "body": comment.body,
                "user": self.user(comment.author),
                "created_at": comment.created,
                "updated_at": comment.updated,
                "url": f"{url}/comments/{comment.id}",
                "issue_url": f"{url}/{comment.number}",
                "html_url": f"{self.web}/{repo.full_name}/issues/{comment.number}#issuecomment-{comment.id}",
                "author_association": "NONE",
                "performed_via_github_app": None,
            },
        )
