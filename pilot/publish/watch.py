"""After the pull request: reads back what became of the open ones, each as often as settings say, or when told to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from pilot.clients.github import GitHub
from pilot.clients.github_errors import GitHubError, RateLimited, Refused, Unauthorized
from pilot.config.schema import ProjectSettings
from pilot.dispatch.intake import TaskRequest
from pilot.domain.delivery import Pull, PullState
from pilot.domain.outside import Duties, Pulls, SourceHealth, SourcePaused
from pilot.domain.ports import Clock
from pilot.domain.task import Project, Task
from pilot.domain.text import one_line
from pilot.publish.repairs import Repairs
from pilot.publish.watch_pull import PullReader
from pilot.store.history import History

log = structlog.get_logger()
NAME = "pulls"
"""Its name among the sources in `status`."""
DUTY = f"source:{NAME}"
"""The duty under which one node of all polls; the feed holds it."""
REFUSED_PAUSE = 300_000
"""Milliseconds until one is read again that GitHub does not show us."""


@dataclass(frozen=True, slots=True)
class Looked:
    """One look. `trouble`: why it came to nothing."""

    pull: Pull
    changed: bool
    trouble: str = ""


class PullWatch:
    """Looks after the pull requests of this node's projects. Two at once do no harm: the store decides.

    `every`: seconds between two looks at the same one; unchanged ones cost none of GitHub's rate limit. `hurry` asks
    whoever polls it to do so now.
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
        every: float,
        hurry: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._projects = projects
        self._pulls = pulls
        self._node, self._duties = node, duties
        self._health = health
        self._clock = clock
        self._every = every
        self._hurry = hurry
        repairs = Repairs(github=github, pulls=pulls, history=history, task=task, redact=redact, clock=clock)
        self._reader = PullReader(github=github, pulls=pulls, repairs=repairs, clock=clock)
        self._due: dict[int, int] = {}  # by pull: not before then (UTC ms)
        self._nudged: set[tuple[str, int | str]] = set()

    @property
    def name(self) -> str:
        """The name of what it polls."""
        return NAME

    @property
    def every(self) -> float:
        """Seconds between two polls."""
        return self._every

    def nudge(self, repo: str, what: int | str) -> None:
        """Something happened to the pull request of that number, or to that commit: look soon."""
        self._nudged.add((repo.lower(), what))
        self._hurry(NAME)

    async def poll(self) -> None:
        """Look at what is due, and at what this node was nudged about. Raises `SourcePaused`."""
        nudged, self._nudged = self._nudged, set()
        try:
            looked = await self.look(nudged=nudged)
        except SourcePaused:
            self._nudged |= nudged
            raise
        await self._tell(looked)

    async def look(
        self, wanted: Collection[Pull] | None = None, *, nudged: Collection[tuple[str, int | str]] = ()
    ) -> list[Looked]:
        """Look once at the open ones that are due or `nudged`, or at these. Raises `SourcePaused`.

        One that GitHub does not show us keeps nobody from looking at the others.
        """
        served = {project.id: (project, own) for project, own in self._projects()}
        if wanted is None:
            now = self._clock()
            live = await self._pulls.live(list(served))
            self._reader.keep([pull.id for pull in live])
            self._due = {pull.id: at for pull in live if (at := self._due.get(pull.id)) is not None}
            wanted = [pull for pull in live if self._due.get(pull.id, 0) <= now or _names(pull) & set(nudged)]
        looked = []
        # who was longest ago goes first, so that one that always fails does not starve those behind it
        for pull in sorted(wanted, key=lambda pull: self._due.get(pull.id, 0)):
            if pull.state is PullState.OPEN and pull.number is not None and pull.project_id in served:
                looked.append(await self._look_at(pull, *served[pull.project_id]))
        return looked

    async def _look_at(self, pull: Pull, project: Project, own: ProjectSettings) -> Looked:
        # a little less, for whoever polls has no exact clock
        self._due[pull.id] = self._clock() + int(self._every * 800)
        try:
            return Looked(pull, await self._reader.look(pull, project, own))
        except RateLimited as error:
            self._due[pull.id] = 0
            raise SourcePaused(str(error), error.until) from error
        except Unauthorized as error:
            raise SourcePaused(str(error), remedy="give sources.github a login that is good") from error
        except Refused as error:
            self._due[pull.id] = self._clock() + max(REFUSED_PAUSE, int(self._every * 1000))
            log.warning("pull.not_shown", repo=pull.repo, pull=pull.number, error=one_line(str(error)))
            return Looked(pull, False, str(error))
        except GitHubError as error:
            raise SourcePaused(str(error)) from error

    async def _tell(self, looked: Sequence[Looked]) -> None:
        """Which repositories can't be read, and which can again."""
        before = dict((await self._duties.recall(DUTY)).get("trouble", {})) if looked else {}
        trouble = dict(before)
        for repo in sorted({each.pull.repo for each in looked}):
            words = next((each.trouble for each in looked if each.pull.repo == repo and each.trouble), "")
            said = one_line(f"{words}; does the token see it?", 500) if words else ""
            if said != before.get(repo, ""):
                await self._health.saw(f"{NAME} {repo}", "failing" if said else "ok", reason=said)
                trouble[repo] = said
        trouble = {repo: said for repo, said in trouble.items() if said}
        if trouble != before:
            await self._duties.remember(DUTY, self._node, {"trouble": trouble})


def _names(pull: Pull) -> set[tuple[str, int | str]]:
    """What a webhook may call it by."""
    what = {pull.number, pull.head_sha, pull.pushed_sha, pull.seen.get("head")} - {None}
    return {(pull.repo.lower(), each) for each in what if each is not None}
