"""A GitHub of one's own on loopback: stateful, and held to GitHub's own description at every request and answer.

    with GitHubFake() as fake:
        repo = fake.repo("acme/api", mona="admin")
        number = fake.issue(repo, "Crash", labels=["pilot"])
        GitHub(Token(fake.token("mona")), base_url=fake.url)

What is done through methods is done by people in their browsers; `actor` is a login. Leaving the block fails when a
client sent what GitHub's description does not have, or the fake answered so, or a credential went where it must not.

By hand, as GitHub is known to behave: ETags (by token) and 304 that does not count, rate limits of both kinds, 401, 404
for what one may not see, 403 and 422 with GitHub's words, labels that ignore case, drafts that a repository lacks,
renamed repositories (301, 307), closing keywords, logs on another host. Answers get lost on wish: `lose_next`.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.e2e.git_host import GitHost
from tests.e2e.github_hooks import Hooks
from tests.e2e.github_routes import check_run
from tests.e2e.github_server import Loss, Recorded, Server
from tests.e2e.github_state import CLOSES, Comment, Item, Json, Repo, User, View, some_sha, stamp


@dataclass(eq=False)
class AppRegistration:
    """A GitHub App and its one installation."""

    id: int
    slug: str
    bot: User
    installation: int
    public_key: str
    permissions: Mapping[str, str]


class GitHubFake:
    """The server and its world. `url` is the API's base; with `prefix="/api/v3"` it is an Enterprise Server."""

    def __init__(self, *, prefix: str = "", clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.users: dict[str, User] = {}
        self.repos: dict[str, Repo] = {}
        self.moved: dict[str, Repo] = {}
        self.tokens: dict[str, User] = {}
        self.apps: dict[int, AppRegistration] = {}
        self.requests: list[Recorded] = []
        self.losses: list[Loss] = []
        self.violations: list[str] = []
        self.used: dict[str, int] = {}  # counted requests by login
        self.limit = 5000
        self.at_once = 0  # the most requests that were under way together
        self.limited: Callable[[], tuple[int, Json, dict[str, str]]] | None = None
        self.hooks = Hooks()
        self.git_host: GitHost | None = None
        self.ids = itertools.count(1001)
        self._server = Server(self, prefix)
        self.view = View(self.url, self._server.url)

    @property
    def url(self) -> str:
        """The API's base address."""
        return f"{self._server.url}{self._server.prefix}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hooks.close()
        self._server.close()
        found = self.violations + self.hooks.violations
        if error is None and found:
            raise AssertionError("\n".join(found))

    # Set-up

    def user(self, login: str, kind: str = "User") -> User:
        """The account of that name, made when there is none."""
        with self.lock:
            return self.users.setdefault(login, User(next(self.ids), login, kind))

    def token(self, login: str) -> str:
        """A new token of that account."""
        token = f"ghp_{some_sha(login, next(self.ids))[:36]}"
        self.tokens[token] = self.user(login)
        return token

    def revoke(self, token: str) -> None:
        """The token is good for nothing from now on."""
        del self.tokens[token]

    def app(self, slug: str, public_key: str, **permissions: str) -> AppRegistration:
        """Register an App with the PEM of its public key."""
        bot = self.user(f"{slug}[bot]", "Bot")
        app = AppRegistration(next(self.ids), slug, bot, next(self.ids), public_key, permissions)
        self.apps[app.id] = app
        return app

    def repo(self, full_name: str, *, private: bool = False, drafts: bool = True, **roles: str) -> Repo:
        """Make a repository; `roles`: admin, maintain, write, triage or read, by login."""
        owner, _, name = full_name.partition("/")
        repo = Repo(next(self.ids), self.user(owner, "Organization"), name, private, drafts, roles=dict(roles))
        repo.branches["main"] = some_sha(full_name, "main")
        for login in roles:
            self.user(login)
        self.repos[full_name] = repo
        return repo

    def rename(self, repo: Repo, name: str) -> None:
        """The old name leads to the new one, as GitHub does it."""
        with self.lock:
            self.moved[repo.full_name] = self.repos.pop(repo.full_name)
            repo.name = name
            self.repos[repo.full_name] = repo

    # What people do

    def issue(self, repo: Repo, title: str, body: str = "", *, actor: str = "mona", labels: Iterable[str] = ()) -> int:
        """Open an issue; its number. Labels are set by the same person, after it."""
        with self.lock:
            item = self._item(repo, title, body, actor)
            self.emit(repo, "issues", "opened", actor, item)
            for label in labels:
                self.label(repo, item.number, label, actor)
            return item.number

    def label(self, repo: Repo, number: int, name: str, actor: str = "mona") -> None:
        """Set a label; the repository gets it when it has none of that name."""
        with self.lock:
            item = repo.items[number]
            name = repo.label_named(name) or name
            repo.labels.setdefault(name, "ededed")
            if name in item.labels:
                return
            item.labels.append(name)
            self._event(repo, number, "labeled", actor, label=name)
            self.touch(item)
            self.emit(repo, "issues", "labeled", actor, item, label=self.view.label(repo, name))

    def unlabel(self, repo: Repo, number: int, name: str, actor: str = "mona") -> bool:
        """Take a label away; False: it is not set."""
        with self.lock:
            item = repo.items[number]
            found = next((label for label in item.labels if label.casefold() == name.casefold()), None)
            if found is None:
                return False
            item.labels.remove(found)
            self._event(repo, number, "unlabeled", actor, label=found)
            self.touch(item)
            self.emit(repo, "issues", "unlabeled", actor, item, label=self.view.label(repo, found))
            return True

    def edit(
        self, repo: Repo, number: int, *, actor: str = "mona", title: str | None = None, body: str | None = None
    ) -> None:
        """Change an issue's or a pull request's text."""
        with self.lock:
            item, changes = repo.items[number], {}
            if title is not None and title != item.title:
                changes["title"] = {"from": item.title}
                self._event(repo, number, "renamed", actor, rename={"from": item.title, "to": title})
                item.title = title
            if body is not None and body != item.body:
                changes["body"] = {"from": item.body}
                item.body = body
                item.edits = [*(item.edits or [(item.author, item.created)]), (self.user(actor), stamp(self.clock()))]
            if changes:
                self.touch(item)
                self.emit(repo, "issues", "edited", actor, item, changes=changes)

    def close(self, repo: Repo, number: int, actor: str = "mona") -> None:
        """Close an issue, or a pull request without merging it."""
        self.set_open(repo, number, False, actor)

    def reopen(self, repo: Repo, number: int, actor: str = "mona") -> None:
        """Open it again."""
        self.set_open(repo, number, True, actor)

    def set_open(self, repo: Repo, number: int, wanted: bool, actor: str) -> None:
        with self.lock:
            item = repo.items[number]
            if item.open == wanted:
                return
            item.open = wanted
            item.closed = None if wanted else stamp(self.clock())
            self._event(repo, number, "reopened" if wanted else "closed", actor)
            self.touch(item)
            self.emit(repo, "issues", "reopened" if wanted else "closed", actor, item)

    def comment(self, repo: Repo, number: int, body: str, actor: str = "mona") -> Comment:
        """Write a comment."""
        with self.lock:
            now = stamp(self.clock())
            made = Comment(next(self.ids), number, self.user(actor), body, now, now)
            repo.comments[made.id] = made
            self.touch(repo.items[number])
            self._emit_comment(repo, "created", actor, made)
            return made

    def edit_comment(self, repo: Repo, comment: Comment, body: str, actor: str = "mona") -> None:
        """Change a comment."""
        with self.lock:
            changes = {"body": {"from": comment.body}}
            comment.body, comment.updated = body, stamp(self.clock())
            self._emit_comment(repo, "edited", actor, comment, changes=changes)

    def branch(self, repo: Repo, name: str, sha: str | None = None) -> str:
        """Push a branch; its commit. An open pull request from it moves along."""
        with self.lock:
            sha = sha or some_sha(repo.id, name, next(self.ids))
            repo.move(name, sha)
            for item in repo.items.values():
                if item.head == name and item.open and item.fork is None:
                    self.touch(item)
            return sha

    def pull(
        self,
        repo: Repo,
        head: str,
        title: str,
        body: str = "",
        *,
        actor: str = "mona",
        base: str = "main",
        draft: bool = False,
        fork: Repo | None = None,
    ) -> int:
        """Open a pull request; its number. `fork`: the branch is there."""
        with self.lock:
            item = self._item(repo, title, body, actor)
            item.head, item.base, item.draft, item.fork = head, base, draft, fork
            item.sha = (fork or repo).head(head) or some_sha(head)
            self.emit(repo, "issues", "opened", actor, item)
            return item.number

    def merge(self, repo: Repo, number: int, actor: str = "mona") -> None:
        """Merge a pull request; into the default branch it closes the issues that its text names so."""
        with self.lock:
            item = repo.items[number]
            item.sha = (item.fork or repo).head(item.head) or item.sha
            item.merged = item.closed = stamp(self.clock())
            item.open, item.draft = False, False
            repo.move(item.base, some_sha("merge", item.sha) if repo.git is None else item.sha)
            self._event(repo, number, "merged", actor)
            self._event(repo, number, "closed", actor)
            self.touch(item)
            self.emit(repo, "issues", "closed", actor, item)
            if item.base != repo.default_branch:
                return
            for found in CLOSES.finditer(item.body):
                named = self.repos.get(found["repo"] or repo.full_name)
                if named is not None and int(found["number"]) in named.items:
                    self.close(named, int(found["number"]), actor)

    def review(self, repo: Repo, number: int, state: str, body: str = "", actor: str = "mona") -> int:
        """Review a pull request: APPROVED, CHANGES_REQUESTED, COMMENTED, or DISMISSED; the review's id."""
        with self.lock:
            item, user = repo.items[number], self.view.user(self.user(actor))
            url = f"{self.view.web}/{repo.full_name}/pull/{number}"
            made: Json = {"id": next(self.ids), "user": user, "body": body, "state": state, "commit_id": item.sha}
            made |= {"html_url": url, "pull_request_url": url, "submitted_at": stamp(self.clock())}
            item.reviews.append(made)
            self.touch(item)
            if self.hooks.wanted and state != "DISMISSED":
                pull, shown = self.view.pull(repo, item, "pull-request-simple"), {**made, "state": state.lower()}
                self._send(repo, "pull_request_review", "submitted", actor, pull_request=pull, review=shown)
            return int(made["id"])

    def remark(self, repo: Repo, number: int, review: int, path: str, line: int | None, body: str) -> None:
        """Write beside a line, as part of a review."""
        item = repo.items[number]
        user = next(each["user"] for each in item.reviews if each["id"] == review)
        shown = {"id": next(self.ids), "pull_request_review_id": review, "user": user, "path": path, "body": body}
        item.remarks.append({**shown, "line": line, "commit_id": item.sha})

    # What CI does

    def check_run(
        self, repo: Repo, sha: str, name: str, conclusion: str | None = None, *, job: int = 0, summary: str = ""
    ) -> None:
        """Report a check run; None: it goes on. One of the same name takes the place of the one before."""
        with self.lock:
            runs = repo.check_runs.setdefault(sha, [])
            runs[:] = [run for run in runs if run["name"] != name]
            place = (
                f"{self.view.web}/{repo.full_name}/actions/runs/1/job/{job}" if job else f"{self.view.web}/ci/{name}"
            )
            slug = "github-actions" if job else "some-ci"
            made = {
                "id": job or next(self.ids),
                "name": name,
                "head_sha": sha,
                "status": "in_progress" if conclusion is None else "completed",
                "conclusion": conclusion,
                "html_url": place,
                "details_url": place,
                "app": {"id": 1, "slug": slug},
                "title": f"{name} {conclusion}",
                "summary": summary,
            }
            runs.insert(0, made)
            if self.hooks.wanted and conclusion is not None:
                self._send(repo, "check_run", "completed", "mona", check_run=check_run(self, made))

    def status(self, repo: Repo, sha: str, context: str, state: str, description: str = "") -> None:
        """Report a commit status: pending, success, failure or error."""
        with self.lock:
            known = repo.statuses.setdefault(sha, [])
            known[:] = [each for each in known if each["context"] != context]
            known.insert(0, {"id": next(self.ids), "context": context, "state": state, "description": description})

    def run(
        self,
        repo: Repo,
        branch: str,
        conclusion: str | None,
        jobs: Mapping[str, tuple[str | None, str]] | None = None,
        *,
        fork: Repo | None = None,
        name: str = "CI",
        event: str = "push",
    ) -> int:
        """A workflow run with its jobs, {name: (conclusion, log)}; its id."""
        with self.lock:
            made: Json = {
                "id": next(self.ids),
                "name": name,
                "workflow_id": int(some_sha(name)[:6], 16),
                "head_branch": branch,
                "head_sha": (fork or repo).head(branch),
                "event": event,
                "run_attempt": 1,
                "status": "in_progress" if conclusion is None else "completed",
                "conclusion": conclusion,
                "created_at": stamp(self.clock()),
                "fork": fork,
            }
            repo.runs.insert(0, made)
            repo.jobs[made["id"]] = []
            for job, (result, log) in (jobs or {}).items():
                number = next(self.ids)
                repo.jobs[made["id"]].append({"id": number, "name": job, "conclusion": result, "run_id": made["id"]})
                repo.logs[number] = log.encode()
            return int(made["id"])

    # What goes wrong

    def lose_next(self, method: str, path: str = "", *, after: bool = True, code: int = 502, times: int = 1) -> None:
        """The next such requests (`path`: a regular expression, searched for) are done (`after`) or not, and answered
        with `code` either way; code 0 breaks the connection."""
        self.losses.append(Loss(method, re.compile(path), after, code, times))

    def use_up(self, seconds: int = 1800, *, code: int = 403) -> None:
        """The primary rate limit is used up for that long."""
        reset = int(self.clock()) + seconds
        words = {"message": "API rate limit exceeded for user ID 1.", "documentation_url": "https://docs.github.com"}

        def answer() -> tuple[int, Json, dict[str, str]]:
            return code, words, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(reset)}

        self.limited = answer

    def slow_down(self, seconds: int | None = None, *, code: int = 403) -> None:
        """The secondary rate limit, with or without a Retry-After."""
        words = "You have exceeded a secondary rate limit. Please wait a few minutes before you try again."

        def answer() -> tuple[int, Json, dict[str, str]]:
            return code, {"message": words}, {} if seconds is None else {"retry-after": str(seconds)}

        self.limited = answer

    def recover(self) -> None:
        """No limit any more."""
        self.limited = None

    # What both people and the API do

    def touch(self, item: Item) -> None:
        item.updated = stamp(self.clock())

    def _item(self, repo: Repo, title: str, body: str, actor: str) -> Item:
        now = stamp(self.clock())
        item = Item(next(self.ids), next(repo.numbers), title, body, self.user(actor), now, now)
        repo.items[item.number] = item
        repo.events[item.number] = []
        return item

    def _event(self, repo: Repo, number: int, event: str, actor: str, **more: Any) -> None:
        made = {"id": next(self.ids), "event": event, "actor": self.user(actor), "created_at": stamp(self.clock())}
        repo.events[number].append(made | more)

    def emit(self, repo: Repo, event: str, action: str, actor: str, item: Item, **more: Any) -> None:
        """Tell the webhook; what is about a pull request comes as its event."""
        if not self.hooks.wanted:
            return
        if item.pull:
            pull = self.view.pull(repo, item, "pull-request-webhook")
            more = {"number": item.number, "pull_request": pull, **more}
            self._send(repo, "pull_request", action, actor, **more)
        else:
            self._send(repo, event, action, actor, issue=self.view.issue(repo, item, "webhooks_issue"), **more)

    def _emit_comment(self, repo: Repo, action: str, actor: str, comment: Comment, **more: Any) -> None:
        if self.hooks.wanted:
            issue = self.view.issue(repo, repo.items[comment.number], "webhooks_issue")
            shown = self.view.comment(repo, comment)
            self._send(repo, "issue_comment", action, actor, issue=issue, comment=shown, **more)

    def _send(self, repo: Repo, event: str, action: str, actor: str, **more: Any) -> None:
        about = {"repository": self.view.repo(repo, "repository-webhooks"), "sender": self.view.user(self.user(actor))}
        self.hooks.send(event, {"action": action, **more, **about})
