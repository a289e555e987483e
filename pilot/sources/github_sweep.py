"""Finds what a lost webhook told of, or what nobody told because there are none: comments, and closed issues."""

from __future__ import annotations

from typing import Any

from pilot.clients.github import GitHub
from pilot.domain.execution import OPEN, Execution
from pilot.sources.desk import Desk, Served
from pilot.sources.github_commands import Commands
from pilot.sources.github_requests import SOURCE, Requests, is_about

BEHIND = 5 * 60_000
"""Milliseconds that GitHub's clock may be behind."""
HEEDED = 7 * 24 * 60 * 60_000
"""Milliseconds after its last execution's end for which a repository's comments are read: somebody may say retry."""
SELDOM = 5 * 60_000
"""Milliseconds between two looks where nothing is open: then only a retry can be asked for."""

Memory = dict[str, Any]


class Sweep:
    """Reads what has changed where something is open or has ended lately; at no cost if nothing has."""

    def __init__(self, desk: Desk, github: GitHub, requests: Requests, commands: Commands) -> None:
        self._desk = desk
        self._github = github
        self._requests = requests
        self._commands = commands

    async def look(self, served: Served, memory: Memory) -> None:
        """`memory`: of this repository; changed in place, after what it stands for was dealt with."""
        project, _ = served
        going, _ = await self._desk.history.executions(project_id=project.id, statuses=OPEN, limit=1000)
        opened = [run for run in going if (run.origin or {}).get("source") == SOURCE]  # repairs, too
        latest = opened or (await self._desk.history.executions(project_id=project.id, source=SOURCE, limit=1))[0]
        if not latest or (latest[0].finished_at or self._desk.clock()) < self._desk.clock() - HEEDED:
            memory.pop("comments", None)
            memory.pop("closed", None)
            return
        if not opened and self._desk.clock() < memory.get("swept", 0) + SELDOM:
            return
        memory["swept"] = self._desk.clock()
        start = min(self._desk.clock(), *(each.created_at for each in latest)) - BEHIND
        await self._comments(served, memory, start)
        if opened:
            await self._closed(served, memory, start, opened)
        else:
            memory.pop("closed", None)

    async def _comments(self, served: Served, memory: Memory, start: int) -> None:
        cursor = memory.get("comments") or {"since": start}
        page = await self._github.news.comments(served[1].github or "", cursor["since"], etag=cursor.get("etag"))
        if page is None:
            return
        for comment in page.items:
            await self._commands.heed(served, comment, on_pull="/pull/" in comment.url)
        newest = max((each.edited_at for each in page.items), default=cursor["since"])
        # the tag belongs to the address, and so to `since`
        memory["comments"] = {"since": newest} if newest != cursor["since"] else {**cursor, "etag": page.etag}

    async def _closed(self, served: Served, memory: Memory, start: int, opened: list[Execution]) -> None:
        project, own = served
        repo = own.github or ""
        cursor = memory.get("closed") or {"since": start}
        page = await self._github.news.closed(repo, cursor["since"], etag=cursor.get("etag"))
        if page is None:
            return
        for issue in page.items:
            if any(is_about(run, repo, issue.number) for run in opened):
                await self._requests.closed(project, repo, issue.number)
        newest = max((each.updated_at for each in page.items), default=cursor["since"])
        memory["closed"] = {"since": newest} if newest != cursor["since"] else {**cursor, "etag": page.etag}
