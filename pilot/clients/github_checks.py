"""What CI says: check runs, commit statuses, workflow runs and the logs of their jobs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import httpx2

from pilot.clients.github_errors import NotFound, Unavailable
from pilot.clients.github_values import Json, at, understood
from pilot.clients.github_wire import PAGE, Wire, listed, path_of

CONNECT = 10.0
"""Seconds for a connection to where the logs are kept, and for each piece of a log."""
LOG_LIMIT = 256 << 20
"""Bytes of a log that are looked through for its end."""

Summary = Literal["none", "pending", "passed", "failed"]


@dataclass(frozen=True, slots=True)
class Check:
    """A check run or a commit status. `conclusion` is GitHub's word; `job`: the Actions job that has its log."""

    name: str
    kind: Literal["run", "status"]
    summary: Summary
    conclusion: str | None
    app: str | None
    job: int | None
    text: str
    url: str


@dataclass(frozen=True, slots=True)
class Checks:
    """Everything that reported on a commit. `busy`: apps that have reported and are not through yet.

    A job that waits for another has no check run before its turn, so that all runs may be over and more come.
    `etags` are those to ask with next time.
    """

    sha: str
    all: tuple[Check, ...]
    busy: tuple[str, ...] = ()
    etags: Mapping[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> tuple[Check, ...]:
        """Those that are over and not green."""
        return tuple(check for check in self.all if check.summary == "failed")

    @property
    def summary(self) -> Summary:
        """A failure counts at once, success when all are through. "none": nobody has reported, perhaps not yet."""
        found = {check.summary for check in self.all} | ({"pending"} if self.busy else set())
        order: tuple[Summary, ...] = ("failed", "pending", "passed")
        return next((summary for summary in order if summary in found), "none")


@dataclass(frozen=True, slots=True)
class Run:
    """A run of a workflow on a branch of the repository itself. `conclusion` is None until it is over."""

    id: int
    workflow: int
    name: str
    branch: str
    sha: str
    event: str
    attempt: int
    conclusion: str | None
    url: str
    created_at: int


@dataclass(frozen=True, slots=True)
class Job:
    """A job of a run."""

    id: int
    name: str
    conclusion: str | None
    url: str


_JOB = re.compile(r"/actions/runs/\d+/job/(\d+)")
_RUN: Mapping[str, Summary] = {"success": "passed", "neutral": "passed", "skipped": "passed"}
_STATUS: Mapping[str, Summary] = {"success": "passed", "pending": "pending"}


class CI:
    """The calls; part of `github.GitHub`. They raise `GitHubError`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def checks(self, repo: str, sha: str) -> Checks:
        """Check runs and commit statuses, of each name the latest."""
        found = await self.changed(repo, sha, {})
        assert found is not None  # noqa: S101  without etags there is no 304
        return found

    async def changed(self, repo: str, sha: str, etags: Mapping[str, str]) -> Checks | None:
        """The same; None: nothing has changed since the answer that brought these etags. That is not counted."""
        commit = f"{path_of(repo)}/commits/{quote(sha, safe='')}"
        lists: Mapping[str, tuple[str, Mapping[str, Any]]] = {
            "check_runs": (f"{commit}/check-runs", {"filter": "latest", "per_page": PAGE}),
            "statuses": (f"{commit}/status", {"per_page": PAGE}),
            "check_suites": (f"{commit}/check-suites", {"per_page": PAGE}),
        }
        first = {
            name: await self._wire.get(path, parameters, etag=etags.get(name))
            for name, (path, parameters) in lists.items()
        }
        if all(answer.status == 304 for answer in first.values()):
            return None
        items: dict[str, list[Any]] = {}
        tags: dict[str, str] = {}
        for name, (path, parameters) in lists.items():
            page = first[name] if first[name].status != 304 else await self._wire.get(path, parameters)
            if (tag := page.headers.get("etag")) and not page.link("next"):  # more than a page has no one tag
                tags[name] = tag
            items[name] = [
                item async for each in self._wire.pages(path, first=page) for item in listed(path, each.data, name)
            ]
        reported = (
            *(understood(_run_of_check, item) for item in items["check_runs"]),
            *(understood(_status, item) for item in items["statuses"]),
        )
        busy = tuple(app for item in items["check_suites"] if (app := understood(_busy, item)) is not None)
        return Checks(sha, reported, busy, tags)

    async def runs(self, repo: str, branch: str, *, count: int = 30) -> tuple[Run, ...]:
        """The last `count` (at most 100) workflow runs for that branch of the repository itself, newest first."""
        path = f"{path_of(repo)}/actions/runs"
        answer = await self._wire.get(path, {"branch": branch, "per_page": count, "exclude_pull_requests": True})
        found = [understood(_run, item) for item in listed(path, answer.data, "workflow_runs")]
        return tuple(each for each in found if each is not None and each.branch == branch)

    async def jobs(self, repo: str, run: int) -> tuple[Job, ...]:
        """The jobs of a run's latest attempt."""
        items = await self._wire.items(f"{path_of(repo)}/actions/runs/{run}/jobs", {"filter": "latest"}, under="jobs")
        return tuple(understood(_job, item) for item in items)

    async def log_end(self, repo: str, job: int, limit: int = 65_536) -> str:
        """The end of an Actions job's log, at most `limit` bytes, from a whole line on. Raw: with escapes and times."""
        path = f"{path_of(repo)}/actions/jobs/{job}/logs"
        answer = await self._wire.get(path)
        place = answer.headers.get("location")
        if answer.status != 302 or not place:
            raise Unavailable(f"GET {path}: GitHub does not say where the log is (HTTP {answer.status})")
        return await _end_of(place, limit, plain_http=self._wire.plain_http)


def _run_of_check(data: Json) -> Check:
    """From a commit's check runs. What is over and neither green nor neutral has failed: cancelled and stale, too."""
    conclusion = data["conclusion"]
    over = data["status"] == "completed" and conclusion is not None
    details = str(data["details_url"] or data["html_url"] or "")
    app = data["app"]["slug"] if data["app"] is not None else None
    job = _JOB.search(details) if app == "github-actions" else None
    output = data["output"]
    return Check(
        name=str(data["name"]),
        kind="run",
        summary=_RUN.get(conclusion, "failed") if over else "pending",
        conclusion=conclusion,
        app=app,
        job=int(job.group(1)) if job else None,
        text="\n\n".join(text for text in (output["title"], output["summary"]) if text),
        url=details,
    )


def _busy(data: Json) -> str | None:
    """From a commit's check suites: whose is not over. Apps that never report have one for ever, without runs."""
    if data["status"] == "completed" or not data["latest_check_runs_count"]:
        return None
    return "" if data["app"] is None else str(data["app"]["slug"])


def _status(data: Json) -> Check:
    """From a commit's combined status."""
    state = str(data["state"])
    return Check(
        name=str(data["context"]),
        kind="status",
        summary=_STATUS.get(state, "failed"),
        conclusion=None if state == "pending" else state,
        app=None,
        job=None,
        text=data["description"] or "",
        url=data["target_url"] or "",
    )


def _run(data: Json) -> Run | None:
    """From a repository's workflow runs; None for a fork's, whose branch may have the same name."""
    head = data["head_repository"]
    if head is None or head["id"] != data["repository"]["id"]:
        return None
    return Run(
        id=int(data["id"]),
        workflow=int(data["workflow_id"]),
        name=data["name"] or "",
        branch=data["head_branch"] or "",
        sha=str(data["head_sha"]),
        event=str(data["event"]),
        attempt=int(data.get("run_attempt") or 1),
        conclusion=data["conclusion"] if data["status"] == "completed" else None,
        url=str(data["html_url"]),
        created_at=at(data["created_at"]),
    )


def _job(data: Json) -> Job:
    """From a workflow run's jobs."""
    return Job(int(data["id"]), str(data["name"]), data["conclusion"], data["html_url"] or "")


async def _end_of(url: str, limit: int, *, plain_http: bool) -> str:
    """The last `limit` bytes, as text, of a log behind an address that GitHub gave and that expires within minutes.

    It is another company's server: it gets no credential, and may not send elsewhere. The address is one, too, in a
    way (whoever has it can read the log), and stays out of what is raised.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and not (plain_http and parts.scheme == "http"):
        raise Unavailable("the log's address is not one of https")
    end, seen = bytearray(), 0
    try:
        async with (
            httpx2.AsyncClient(timeout=CONNECT) as http,
            http.stream("GET", url) as response,
        ):
            if response.status_code in (404, 410):
                raise NotFound(f"the log is no longer kept at {parts.hostname}")
            if response.status_code != 200:
                raise Unavailable(f"{parts.hostname} does not give the log (HTTP {response.status_code})")
            async for piece in response.aiter_bytes():
                seen += len(piece)
                end += piece
                del end[:-limit]
                if seen > LOG_LIMIT:
                    raise Unavailable(f"the log is longer than {LOG_LIMIT >> 20} MiB")
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise Unavailable(f"the log can't be read from {parts.hostname}: {type(error).__name__}") from None
    text = end.decode(errors="replace")
    return text if seen <= limit else text.partition("\n")[2]
