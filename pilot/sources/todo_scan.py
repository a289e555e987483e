"""The source todo_scan: comments in the projects' own code that ask for something."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import structlog

from pilot.config.schema import ProjectSettings, TodoScanSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Arrival, Report
from pilot.domain.errors import NotFound, PilotError, WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.outside import SourcePaused
from pilot.domain.task import Project
from pilot.domain.text import clean, one_line
from pilot.runner.git import Git
from pilot.runner.source import Source, open_source
from pilot.sources.desk import Desk
from pilot.sources.todo_comments import Marked, is_vendored, read_comment

log = structlog.get_logger()
NAME = "todo_scan"
DUTY = f"source:{NAME}"
AT_ONCE = 20
"""New tasks of one project in one poll; the rest follows in the next ones."""
HITS = 2000
"""Marked lines of one project that are looked at."""
MAX_FILE = 1 << 20
"""Bytes; larger files are made by machines."""


class TodoScan:
    """Implements `outside.Source`. Reads each project's base branch where it is, without a checkout.

    A comment asks once, by its file and its words; moved or re-indented it is the same. A project whose base branch
    has not moved costs one look at its branches.
    """

    def __init__(self, desk: Desk, settings: TodoScanSettings, state_dir: Path, git: Git | None = None) -> None:
        self._desk = desk
        self._settings = settings
        self._state_dir = state_dir
        self._git = git or Git()

    @property
    def name(self) -> str:
        """The word for `Task.source`."""
        return NAME

    @property
    def every(self) -> float | None:
        """Seconds between polls."""
        return self._settings.every

    async def poll(self) -> None:
        """Look through the projects whose base branch has moved. Raises `SourcePaused` when one can't be read."""
        before = await self._desk.duties.recall(DUTY)
        heads: dict[str, str] = {}
        trouble: list[str] = []
        for project, own in self._desk.projects():
            if own.path is None:
                continue
            known = before.get(str(project.id))
            try:
                head = await self._look(project, own, known)
            except PilotError as error:
                log.warning("todo_scan.failed", project=project.name, error=str(error))
                trouble.append(f"project {project.name}: {error}")
                head = known
            if head is not None:
                heads[str(project.id)] = head
        # Only now, and only what was dealt with: a node that ends before this looks again, and finds the same keys.
        await self._desk.duties.remember(DUTY, self._desk.node, heads)
        if trouble:
            until = self._desk.clock() + int(self._settings.every * 1000)
            more = f" (and {len(trouble) - 1} more)" if len(trouble) > 1 else ""
            raise SourcePaused(f"{trouble[0]}{more}", until, remedy="mend that repository, or its entry in pilot.yaml")

    async def _look(self, project: Project, own: ProjectSettings, known: str | None) -> str | None:
        """The commit that has been dealt with in full, with the marker it was searched for."""
        source = open_source(self._git, own, self._state_dir)
        branches = await source.branches()
        _, sha = await source.base(own.base, branches)
        stamp = f"{sha} {self._settings.marker}"
        if stamp == known:
            return known
        if source.is_partial:
            raise PilotError("a partial clone lacks files; todo_scan needs a whole one")
        found = {self._key(marked): marked for marked in [m async for m in self._comments(source, sha)]}
        decided = await self._desk.refusals.known(project.id, found.keys())
        new = [(key, marked) for key, marked in found.items() if key not in decided]
        for key, marked in new[:AT_ONCE]:
            await self._desk.submit(self._request(marked, key), project, own)
        if len(new) > AT_ONCE:
            log.warning("todo_scan.more", project=project.name, asked=AT_ONCE, left=len(new) - AT_ONCE)
            return known
        return stamp

    async def _comments(self, source: Source, sha: str) -> Any:
        files: dict[str, list[int]] = {}
        for path, line in await self._hits(source, sha):
            files.setdefault(path, []).append(line)
        for path, numbers in files.items():
            lines = await self._lines(source, sha, path)
            for number in numbers:
                if 0 < number <= len(lines):
                    marked = read_comment(path, lines, number - 1, self._settings.marker)
                    if marked is not None:
                        yield marked

    async def _hits(self, source: Source, sha: str) -> list[tuple[str, int]]:
        done = await source.git.run(
            "grep", "-n", "-I", "-F", "-z", "--no-color", "--no-column", "--no-recurse-submodules", "--threads=1",
            "-e", self._settings.marker, sha, ok=(0, 1),
        )  # fmt: skip
        if "error: " in done.err or "fatal: " in done.err:  # it goes on behind a file that it could not read
            raise WorkspaceError(FailureClass.INFRA, f"git grep: {one_line(done.err, 200)}")
        found = [hit for hit in _parsed(done.out, f"{sha}:".encode()) if not is_vendored(hit[0])]
        if len(found) > HITS:
            log.warning("todo_scan.cut", repository=source.where, lines=len(found), read=HITS)
        return found[:HITS]

    async def _lines(self, source: Source, sha: str, path: str) -> list[str]:
        name = f"{sha}:{path}"
        size = await source.git.run("cat-file", "-s", name)
        if int(size.text) > MAX_FILE:
            return []
        blob = await source.git.run("cat-file", "blob", name)
        return blob.out.decode(errors="replace").split("\n")

    def _key(self, marked: Marked) -> str:
        path = clean(marked.path)
        # the digest holds the path, too: what is left out of a long one is not missed
        return f"{NAME}:{path[:200]}:{marked.digest}"

    def _request(self, marked: Marked, key: str) -> TaskRequest:
        place = f"{one_line(marked.path, 300)}:{marked.line}"
        return TaskRequest(
            task_id=f"TODO-{marked.digest[:8]}",
            source=NAME,
            title=marked.title,
            prompt=_prompt(marked, place),
            idempotency_key=key,
            origin={"source": NAME, "url": "", "ref": place, "actor": "", "at": self._desk.clock()},
        )

    def verify(self, headers: Mapping[str, str], body: bytes) -> Any:
        """There are no webhooks of this."""
        raise NotFound("todo_scan takes no webhooks")

    async def handle(self, arrival: Arrival) -> None:
        """There are no webhooks of this."""

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """Nobody waits at a comment."""
        return None

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """The comment goes with the change that it asked for; there is nothing else to show."""
        return None


def _parsed(out: bytes, prefix: bytes) -> Iterator[tuple[str, int]]:
    """Path and line number of each `prefix path NUL number NUL text NEWLINE`; a path may have newlines."""
    at = 0
    while out.startswith(prefix, at):
        path_end = out.index(b"\0", at)
        number_end = out.index(b"\0", path_end + 1)
        yield os.fsdecode(out[at + len(prefix) : path_end]), int(out[path_end + 1 : number_end])
        end = out.find(b"\n", number_end)
        if end < 0:
            return
        at = end + 1


def _prompt(marked: Marked, place: str) -> str:
    return (
        f"A comment in this repository asks for a change. It stands in {place}:\n\n{marked.text}\n\n"
        f"The lines around it, with their numbers as they were:\n\n{marked.around}\n\n"
        "Do what the comment asks for, and remove the comment."
    )
