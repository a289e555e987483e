"""The fake GitHub's calls: what each of them does, may refuse, and shows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlencode

from tests.e2e.github_contract import complete
from tests.e2e.github_state import LEVELS, Item, Json, Repo, User, some_sha, stamp

if TYPE_CHECKING:
    from tests.e2e.github_fake import AppRegistration, GitHubFake

DOCS = "https://docs.github.com/rest"
LONGEST = 65_536


@dataclass(frozen=True)
class Reply:
    """What is answered, before it is sent."""

    code: int
    data: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class Say(Exception):
    """A refusal in GitHub's words."""

    def __init__(self, code: int, message: str, *errors: Any) -> None:
        super().__init__(message)
        said = {"message": message, "documentation_url": DOCS, "status": str(code)}
        self.reply = Reply(code, said | ({"errors": list(errors)} if errors else {}))

    @classmethod
    def not_found(cls) -> Self:
        return cls(404, "Not Found")

    @classmethod
    def invalid(cls, resource: str, field: str = "", code: str = "invalid", message: str = "") -> Self:
        error = {"resource": resource, "code": code} | ({"field": field} if field else {})
        return cls(422, "Validation Failed", error | ({"message": message} if message else {}))


@dataclass
class Call:
    """One request that is allowed to be made."""

    fake: GitHubFake
    method: str
    path: str
    query: dict[str, str]
    body: Any = None
    user: User | None = None
    app: AppRegistration | None = None
    repo: Repo | None = None
    installation: bool = False
    credential: str = ""

    @property
    def login(self) -> str:
        assert self.user is not None
        return self.user.login

    @property
    def here(self) -> Repo:
        assert self.repo is not None
        return self.repo

    def may(self, least: str) -> bool:
        return self.user is not None and self.here.may(self.user, least)

    def need(self, least: str, words: str = "Must have admin rights to Repository.") -> None:
        if not self.may(least):
            raise Say(403, words)

    def item(self, number: str, *, pull: bool = False) -> Item:
        found = self.here.items.get(int(number))
        if found is None or (pull and not found.pull):
            raise Say.not_found()
        return found

    def paged(self, items: Sequence[Any], show: Callable[[Any], Any], wrap: Callable[[list[Any]], Any] = list) -> Reply:
        """One page, with the links to others."""
        size, page = min(int(self.query.get("per_page", 30)), 100), int(self.query.get("page", 1))
        last = max((len(items) + size - 1) // size, 1)
        wanted = {"prev": page - 1, "next": page + 1, "last": last, "first": 1}
        here = f"{self.fake.url}/repositories/{self.here.id}{self.path.removeprefix(f'/repos/{self.here.full_name}')}"
        links = [
            f'<{here}?{urlencode({**self.query, "page": number})}>; rel="{name}"'
            for name, number in wanted.items()
            if 1 <= number <= last and number != page
        ]
        shown = [show(item) for item in items[(page - 1) * size : page * size]]
        return Reply(200, wrap(shown), {"link": ", ".join(links)} if links else {})


def me(call: Call) -> Reply:
    if call.installation:
        raise Say(403, "Resource not accessible by integration")
    assert call.user is not None
    return Reply(200, complete("private-user", {**call.fake.view.user(call.user), "user_view_type": "private"}))


def user(call: Call, login: str) -> Reply:
    found = call.fake.users.get(login)
    if found is None:
        raise Say.not_found()
    return Reply(200, complete("public-user", {**call.fake.view.user(found), "user_view_type": "public"}))


def app(call: Call) -> Reply:
    assert call.app is not None
    owner = call.fake.view.user(call.fake.user("acme", "Organization"))
    shown = {"id": call.app.id, "slug": call.app.slug, "name": call.app.slug, "owner": owner, "events": []}
    return Reply(200, complete("integration", {**shown, "permissions": dict(call.app.permissions)}))


def installation_token(call: Call, installation: str) -> Reply:
    assert call.app is not None
    if int(installation) != call.app.installation:
        raise Say.not_found()
    token = f"ghs_{some_sha(next(call.fake.ids))[:36]}"
    call.fake.tokens[token] = call.app.bot
    expires = stamp(call.fake.clock() + 3600)
    return Reply(201, {"token": token, "expires_at": expires, "permissions": dict(call.app.permissions)})


def repository(call: Call) -> Reply:
    return Reply(200, call.fake.view.repo(call.here))


def permission(call: Call, login: str) -> Reply:
    call.need("write", "Must have push access to view collaborator permission.")
    found = call.fake.users.get(login)
    if found is None or found.kind == "Bot":
        raise Say(404, f"{login} is not a user")
    role = call.here.roles.get(login, "none" if call.here.private else "read")
    shown = complete("nullable-collaborator", {**call.fake.view.user(found), "role_name": role}) if role else None
    return Reply(200, {"permission": LEVELS.get(role, role), "role_name": role, "user": shown})


def issues(call: Call) -> Reply:
    wanted = {label.casefold() for label in call.query.get("labels", "").split(",") if label}
    state, since = call.query.get("state", "open"), call.query.get("since", "")
    found = [
        item
        for item in call.here.items.values()
        if state in ("all", "open" if item.open else "closed")
        and wanted <= {label.casefold() for label in item.labels}
        and item.updated >= since
    ]
    field = call.query.get("sort", "created")
    found.sort(
        key=lambda item: (getattr(item, field), item.number), reverse=call.query.get("direction", "desc") == "desc"
    )
    return call.paged(found, lambda item: call.fake.view.issue(call.here, item))


def issue(call: Call, number: str) -> Reply:
    return Reply(200, call.fake.view.issue(call.here, call.item(number)))


def events(call: Call, number: str) -> Reply:
    call.item(number)

    def shown(event: Json) -> Json:
        label = {"name": event["label"], "color": "ededed"} if "label" in event else None
        actor = call.fake.view.user(event["actor"])
        kept = {
            **event,
            "actor": actor,
            "url": f"{call.fake.url}/repos/{call.here.full_name}/issues/events/{event['id']}",
        }
        kind = "labeled-issue-event" if label else "renamed-issue-event" if "rename" in event else "locked-issue-event"
        return complete(kind, kept | ({"label": label} if label else {"lock_reason": None}))

    return call.paged(call.here.events[int(number)], shown)


def comments(call: Call, number: str | None = None) -> Reply:
    if number is not None:
        call.item(number)
    found = [
        each
        for each in call.here.comments.values()
        if number in (None, str(each.number)) and each.updated >= call.query.get("since", "")
    ]
    return call.paged(found, lambda each: call.fake.view.comment(call.here, each))


def checked(text: Any) -> str:
    if not str(text).strip():
        raise Say.invalid("IssueComment", "body", "missing_field")
    if len(str(text)) > LONGEST:
        raise Say.invalid("IssueComment", "body", "custom", f"body is too long (maximum is {LONGEST} characters)")
    return str(text)


def write_comment(call: Call, number: str) -> Reply:
    call.item(number)
    made = call.fake.comment(call.here, int(number), checked(call.body["body"]), call.login)
    return Reply(201, call.fake.view.comment(call.here, made))


def comment(call: Call, comment: str) -> Reply:
    found = call.here.comments.get(int(comment))
    if found is None:
        raise Say.not_found()
    return Reply(200, call.fake.view.comment(call.here, found))


def change_comment(call: Call, comment: str) -> Reply:
    found = call.here.comments.get(int(comment))
    if found is None:
        raise Say.not_found()
    if found.author is not call.user:
        call.need("write")
    call.fake.edit_comment(call.here, found, checked(call.body["body"]), call.login)
    return Reply(200, call.fake.view.comment(call.here, found))


def add_labels(call: Call, number: str) -> Reply:
    item = call.item(number)
    call.need("triage")
    for name in call.body["labels"]:
        call.fake.label(call.here, item.number, name, call.login)
    return Reply(200, [call.fake.view.label(call.here, name) for name in item.labels])


def remove_label(call: Call, number: str, label: str) -> Reply:
    item = call.item(number)
    call.need("triage")
    if not call.fake.unlabel(call.here, item.number, label, call.login):
        raise Say(404, "Label does not exist")
    return Reply(200, [call.fake.view.label(call.here, name) for name in item.labels])


def make_label(call: Call) -> Reply:
    call.need("write")
    name = call.body["name"]
    if call.here.label_named(name) is not None:
        raise Say.invalid("Label", "name", "already_exists")
    if not re.fullmatch(r"[0-9a-fA-F]{6}", call.body.get("color", "ededed")):
        raise Say.invalid("Label", "color")
    call.here.labels[name] = call.body.get("color", "ededed")
    return Reply(201, call.fake.view.label(call.here, name))


def pulls(call: Call) -> Reply:
    state, base = call.query.get("state", "open"), call.query.get("base")
    owner, colon, branch = call.query.get("head", "").partition(":")
    found = [
        item
        for item in call.here.items.values()
        if item.pull
        and state in ("all", "open" if item.open else "closed")
        and base in (None, item.base)
        # without an owner GitHub takes the filter for none
        and (not colon or (item.head == branch and (item.fork or call.here).owner.login == owner))
    ]
    found.sort(key=lambda item: item.number, reverse=call.query.get("direction", "desc") == "desc")
    return call.paged(found, lambda item: call.fake.view.pull(call.here, item, "pull-request-simple"))


def make_pull(call: Call) -> Reply:
    repo, given = call.here, call.body
    call.need("read")
    owner, _, branch = f"{repo.owner.login}:{given['head']}".rpartition(":")
    owner = owner.rpartition(":")[2]
    if owner != repo.owner.login or repo.head(branch) is None:
        raise Say.invalid("PullRequest", "head")
    if repo.head(given["base"]) is None:
        raise Say.invalid("PullRequest", "base")
    call.need("write", "Resource not accessible by personal access token")
    if repo.head(branch) == repo.head(given["base"]):
        words = f"No commits between {given['base']} and {branch}"
        raise Say.invalid("PullRequest", code="custom", message=words)
    if any(i.head == branch and i.base == given["base"] and i.open and i.fork is None for i in repo.items.values()):
        words = f"A pull request already exists for {repo.owner.login}:{branch}."
        raise Say.invalid("PullRequest", code="custom", message=words)
    if given.get("draft") and not repo.drafts:
        raise Say(422, "Draft pull requests are not supported in this repository.")
    texts = {"body": checked(given["body"]) if given.get("body") else "", "base": given["base"]}
    number = call.fake.pull(repo, branch, given["title"], actor=call.login, draft=bool(given.get("draft")), **texts)
    return Reply(201, call.fake.view.pull(repo, repo.items[number]))


def pull(call: Call, number: str) -> Reply:
    return Reply(200, call.fake.view.pull(call.here, call.item(number, pull=True)))


def change_pull(call: Call, number: str) -> Reply:
    item = call.item(number, pull=True)
    if item.author is not call.user:
        call.need("write")
    call.fake.edit(call.here, item.number, actor=call.login, title=call.body.get("title"), body=call.body.get("body"))
    if "state" in call.body:
        call.fake.set_open(call.here, item.number, call.body["state"] == "open", call.login)
    return Reply(200, call.fake.view.pull(call.here, item))


def reviews(call: Call, number: str) -> Reply:
    return call.paged(call.item(number, pull=True).reviews, lambda each: complete("pull-request-review", each))


def remarks(call: Call, number: str) -> Reply:
    shown = {"diff_hunk": "@@", "created_at": stamp(0), "updated_at": stamp(0)}
    found = call.item(number, pull=True).remarks
    return call.paged(found, lambda each: complete("pull-request-review-comment", {**shown, **each}))


def check_run(fake: GitHubFake, made: Json) -> Json:
    owner = fake.view.user(fake.user("acme", "Organization"))
    app = complete("integration", {**made["app"], "name": made["app"]["slug"], "owner": owner, "permissions": {}})
    output = {"title": made["title"], "summary": made["summary"], "text": None, "annotations_count": 0}
    rest = {name: made[name] for name in made if name not in ("app", "title", "summary")}
    rest |= {"external_id": "", "started_at": stamp(0), "check_suite": {"id": 1}}
    return complete("check-run", {**rest, "app": app, "output": {**output, "annotations_url": f"{fake.url}/x"}})


def check_runs(call: Call, ref: str) -> Reply:
    found = call.here.check_runs.get(ref, [])
    return call.paged(
        found, lambda each: check_run(call.fake, each), lambda shown: {"total_count": len(found), "check_runs": shown}
    )


def check_suites(call: Call, ref: str) -> Reply:
    """One for each app that reported; and one of an app that never does, as GitHub has them."""
    runs = call.here.check_runs.get(ref, [])
    apps = {run["app"]["slug"]: [other for other in runs if other["app"] == run["app"]] for run in runs}
    shown = [_check_suite(call, ref, slug, of) for slug, of in [*sorted(apps.items()), ("quiet-app", [])]]
    return call.paged(shown, lambda each: each, lambda page: {"total_count": len(shown), "check_suites": page})


def _check_suite(call: Call, ref: str, slug: str, runs: list[Json]) -> Json:
    over = bool(runs) and slug not in call.here.busy and all(run["status"] == "completed" for run in runs)
    owner = call.fake.view.user(call.fake.user("acme", "Organization"))
    app = complete("integration", {"id": 1, "slug": slug, "name": slug, "owner": owner, "permissions": {}})
    given = {
        "id": int(some_sha(slug, ref)[:8], 16),
        "head_branch": "main",
        "head_sha": ref,
        "before": ref,
        "after": ref,
    }
    given |= {"status": "completed" if over else "queued", "conclusion": "neutral" if over else None, "app": app}
    commit = complete("simple-commit", {"id": ref, "author": None, "committer": None})
    more: Json = {"pull_requests": [], "created_at": stamp(0), "updated_at": stamp(0), "head_commit": commit}
    more |= {"repository": call.fake.view.repo(call.here, "minimal-repository"), "latest_check_runs_count": len(runs)}
    return complete("check-suite", given | more)


def branch(call: Call, name: str) -> Reply:
    sha = call.here.head(name)
    if sha is None:
        raise Say(404, "Branch not found")
    links = {"self": f"{call.fake.url}{call.path}", "html": f"{call.fake.view.web}/{call.here.full_name}/tree/{name}"}
    commit = complete("commit", {"sha": sha, "author": {}, "committer": {}, "parents": []})
    given = {"name": name, "commit": commit, "_links": links, "protected": False}
    return Reply(200, complete("branch-with-protection", given))


def combined_status(call: Call, ref: str) -> Reply:
    found = call.here.statuses.get(ref, [])
    states = {each["state"] for each in found}
    state = "failure" if states & {"failure", "error"} else "success" if states == {"success"} else "pending"
    more = {"target_url": None, "avatar_url": None, "created_at": stamp(0), "updated_at": stamp(0)}

    def wrap(shown: list[Any]) -> Json:
        repo = call.fake.view.repo(call.here, "minimal-repository")
        given = {"state": state, "sha": ref, "total_count": len(found), "statuses": shown, "repository": repo}
        return complete("combined-commit-status", given)

    return call.paged(found, lambda each: complete("simple-commit-status", {**more, **each, "url": DOCS}), wrap)


def runs(call: Call) -> Reply:
    found = [run for run in call.here.runs if call.query.get("branch") in (None, run["head_branch"])]

    def shown(run: Json) -> Json:
        here = call.fake.view.repo(call.here, "minimal-repository")
        head = call.fake.view.repo(run["fork"] or call.here, "minimal-repository")
        rest = {name: run[name] for name in run if name != "fork"}
        place = f"{call.fake.view.web}/{call.here.full_name}/actions/runs/{run['id']}"
        return complete("workflow-run", {**rest, "repository": here, "head_repository": head, "html_url": place})

    return call.paged(found, shown, lambda shown: {"total_count": len(found), "workflow_runs": shown})


def jobs(call: Call, run: str) -> Reply:
    found = call.here.jobs.get(int(run))
    if found is None:
        raise Say.not_found()

    def shown(job: Json) -> Json:
        status = "in_progress" if job["conclusion"] is None else "completed"
        return complete("job", {**job, "status": status, "html_url": f"{call.fake.view.web}/job/{job['id']}"})

    return call.paged(found, shown, lambda shown: {"total_count": len(found), "jobs": shown})


def logs(call: Call, job: str) -> Reply:
    if int(job) not in call.here.logs:
        raise Say.not_found()
    elsewhere = call.fake.view.web.replace("127.0.0.1", "localhost")
    return Reply(302, None, {"location": f"{elsewhere}/_logs/{job}?sig=secret"})


def _routes() -> Iterable[tuple[str, re.Pattern[str], Callable[..., Reply]]]:
    repo, number = r"/repos/(?P<repo>[^/]+/[^/]+)", r"(?P<number>\d+)"
    table: Sequence[tuple[str, str, Callable[..., Reply]]] = (
        ("GET", "/user", me),
        ("GET", "/users/(?P<login>[^/]+)", user),
        ("GET", "/app", app),
        ("POST", r"/app/installations/(?P<installation>\d+)/access_tokens", installation_token),
        ("GET", repo, repository),
        ("GET", f"{repo}/branches/(?P<name>[^/]+)", branch),
        ("GET", f"{repo}/collaborators/(?P<login>[^/]+)/permission", permission),
        ("GET", f"{repo}/issues", issues),
        ("GET", f"{repo}/issues/{number}", issue),
        ("GET", f"{repo}/issues/{number}/events", events),
        ("GET", f"{repo}/issues/comments", comments),
        ("GET", f"{repo}/issues/{number}/comments", comments),
        ("POST", f"{repo}/issues/{number}/comments", write_comment),
        ("GET", rf"{repo}/issues/comments/(?P<comment>\d+)", comment),
        ("PATCH", rf"{repo}/issues/comments/(?P<comment>\d+)", change_comment),
        ("POST", f"{repo}/issues/{number}/labels", add_labels),
        ("DELETE", f"{repo}/issues/{number}/labels/(?P<label>[^/]+)", remove_label),
        ("POST", f"{repo}/labels", make_label),
        ("GET", f"{repo}/pulls", pulls),
        ("POST", f"{repo}/pulls", make_pull),
        ("GET", f"{repo}/pulls/{number}", pull),
        ("PATCH", f"{repo}/pulls/{number}", change_pull),
        ("GET", f"{repo}/pulls/{number}/reviews", reviews),
        ("GET", f"{repo}/pulls/{number}/comments", remarks),
        ("GET", f"{repo}/commits/(?P<ref>[^/]+)/check-runs", check_runs),
        ("GET", f"{repo}/commits/(?P<ref>[^/]+)/check-suites", check_suites),
        ("GET", f"{repo}/commits/(?P<ref>[^/]+)/status", combined_status),
        ("GET", f"{repo}/actions/runs", runs),
        ("GET", rf"{repo}/actions/runs/(?P<run>\d+)/jobs", jobs),
        ("GET", rf"{repo}/actions/jobs/(?P<job>\d+)/logs", logs),
    )
    for method, pattern, route in table:
        yield method, re.compile(pattern), route


ROUTES = tuple(_routes())
