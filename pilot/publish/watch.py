"""After the pull request: reads back what became of the open ones, each as often as settings say, or when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from pilot.clients.github import GitHub
from pilot.clients.github_errors import GitHubError, RateLimited, Refused, Unauthorized
from pilot.config.schema import ProjectSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Pull, PullState
from pilot.domain.errors import StoreError
from pilot.domain.outside import Duties, Pulls, SourceHealth, SourcePaused
from pilot.domain.ports import Clock
from pilot.domain.task import Project, Task
from pilot.domain.text import one_line
from pilot.publish.repairs import Repairs
from pilot.publish.watch_pull import PullReader
from pilot.store.history import History

log = structlog.get_logger()
DUTY = "pulls"
"""The duty under which one node of all reads them, and their name among the sources in `status`."""
REFUSED_PAUSE = 300_000
"""Milliseconds until one is read again that GitHub does not show us."""
GATHER = 0.3
"""Seconds in which several words that something happened become one look."""
LONGEST_PAUSE = 300.0


@dataclass(frozen=True, slots=True)
class Looked:
    """One look. `trouble`: why it came to nothing."""

    pull: Pull
    changed: bool
    trouble: str = ""


class PullWatch:
    """Looks after the pull requests of this node's projects. Two at once do no harm: the store decides.

    `every`: seconds between two looks at the same one; unchanged ones cost none of GitHub's rate limit.
    """

    def __init__(
        self,
        github: GitHub,
        *,
        node: str,
        projects: Callable[[], Sequence[tuple[Project, ProjectSettings]]],
        pulls: Pulls,
        duties: Duties,
        health: SourceHealth,
        history: History,
        task: Callable[[TaskRequest, Project, ProjectSettings], Task],
        redact: Callable[[str], str],
        clock: Clock,
        every: Callable[[], float],
    ) -> None:
        self._node = node
        self._projects = projects
        self._pulls = pulls
        self._duties = duties
        self._health = health
        self._clock = clock
        self._every = every
        repairs = Repairs(github=github, pulls=pulls, history=history, task=task, redact=redact, clock=clock)
        self._reader = PullReader(github=github, pulls=pulls, repairs=repairs, clock=clock)
        self._due: dict[int, int] = {}  # by pull: not before then (UTC ms)
        self._trouble: dict[int, str] = {}
        self._nudged: set[tuple[str, int | str]] = set()
        self._wake = asyncio.Event()

    def nudge(self, repo: str, what: int | str) -> None:
        """Something happened to the pull request of that number, or to that commit: look soon."""
        self._nudged.add((repo.lower(), what))
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled, while no other node does; what this node was nudged about it looks at anyway."""
        misses = 0
        while True:
            pause = self._every()
            try:
                if self._nudged:
                    await self._look_at_nudged()
                if await self._duties.hold(DUTY, self._node, int(max(3 * pause, 60) * 1000)):
                    await self.look()
                    await self._tell()
                misses = 0
            except SourcePaused as paused:
                misses += 1
                pause = await self._paused(paused, misses)
            except Exception:  # the border: one look that went wrong must not end all of them
                misses += 1
                pause = min(10.0 * 2.0 ** min(misses, 5), LONGEST_PAUSE)
                log.exception("pulls.look_failed")
            await self._wait(pause)

    async def look(self, wanted: Collection[Pull] | None = None) -> list[Looked]:
        """Look once at the open ones that are due, or at these. Raises `SourcePaused`.

        One that GitHub does not show us keeps nobody from looking at the others.
        """
        served = {project.id: (project, own) for project, own in self._projects()}
        if wanted is None:
            now = self._clock()
            live = await self._pulls.live(list(served))
            self._due = {pull.id: at for pull in live if (at := self._due.get(pull.id)) is not None}
            self._trouble = {id: words for id, words in self._trouble.items() if id in self._due}
            wanted = [pull for pull in live if self._due.get(pull.id, 0) <= now]
        looked = []
        # who was longest ago goes first, so that one that always fails does not starve those behind it
        for pull in sorted(wanted, key=lambda pull: self._due.get(pull.id, 0)):
            if pull.state is PullState.OPEN and pull.number is not None and pull.project_id in served:
                looked.append(await self._look_at(pull, *served[pull.project_id]))
        return looked

    async def _look_at(self, pull: Pull, project: Project, own: ProjectSettings) -> Looked:
        self._due[pull.id] = self._clock() + int(self._every() * 1000)
        try:
            changed = await self._reader.look(pull, project, own)
        except RateLimited as error:
            self._due[pull.id] = 0
            raise SourcePaused(str(error), error.until) from error
        except Unauthorized as error:
            remedy = "put a token that is good into sources.github.token; `pilot doctor` checks it"
            raise SourcePaused(str(error), remedy=remedy) from error
        except Refused as error:
            self._due[pull.id] = self._clock() + max(REFUSED_PAUSE, int(self._every() * 1000))
            self._trouble[pull.id] = f"{pull.repo}#{pull.number}: {error}"
            log.warning("pull.not_shown", repo=pull.repo, pull=pull.number, error=one_line(str(error)))
            return Looked(pull, False, str(error))
        except GitHubError as error:
            raise SourcePaused(str(error)) from error
        self._trouble.pop(pull.id, None)
        return Looked(pull, changed)

    async def _look_at_nudged(self) -> None:
        nudged, self._nudged = self._nudged, set()
        self._wake.clear()
        live = await self._pulls.live([project.id for project, _ in self._projects()])
        try:
            await self.look([pull for pull in live if _names(pull) & nudged])
        except SourcePaused:
            self._nudged |= nudged
            raise

    async def _tell(self) -> None:
        if self._trouble:
            words = "; ".join(sorted(self._trouble.values()))
            await self._health.saw(DUTY, "failing", reason=one_line(words, 500))
        else:
            await self._health.saw(DUTY, "ok")

    async def _paused(self, paused: SourcePaused, misses: int) -> float:
        """Say so; the seconds until it is tried again."""
        pause = min(10.0 * 2.0 ** min(misses, 5), LONGEST_PAUSE)
        if paused.until is not None:
            pause = max((paused.until - self._clock()) / 1000, 1.0)
        until = self._clock() + int(pause * 1000)
        status = "failing" if paused.remedy else "paused"
        reason = one_line(f"{paused}; {paused.remedy}" if paused.remedy else str(paused), 500)
        log.warning("pulls.paused", reason=reason, until=until)
        try:
            await self._health.saw(DUTY, status, reason=reason, until=until)
        except StoreError as error:
            log.warning("pulls.health_not_told", error=str(error))
        return pause

    async def _wait(self, pause: float) -> None:
        """Until the pause is over; a nudge ends an ordinary one, and others come with it."""
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()
        await asyncio.sleep(GATHER)


def _names(pull: Pull) -> set[tuple[str, int | str]]:
    """What a webhook may call it by."""
    what = {pull.number, pull.head_sha, pull.pushed_sha, pull.seen.get("head")} - {None}
    return {(pull.repo.lower(), each) for each in what if each is not None}
