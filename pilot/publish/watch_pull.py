"""One look at one pull request: how it stands, what CI and reviewers say, and what follows from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pilot.clients.github import GitHub
from pilot.clients.github_checks import Checks
from pilot.clients.github_values import Pull as Found
from pilot.config.schema import ProjectSettings
from pilot.domain.delivery import Pull, PullState
from pilot.domain.outside import Pulls
from pilot.domain.ports import Clock
from pilot.domain.task import Project
from pilot.publish.repairs import Repairs, red_labels

GRACE = 120_000
"""Milliseconds in which CI has to report on a commit at all. Where nobody has by then, there is no CI: `checks` is
`none`, which holds back a next task no longer (the store counts the same time from a pull request's opening)."""
_OURS_KEPT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReader:
    """Reads, writes down what has changed, and asks for repairs. May be called at any time, by several at once.

    `Pull.seen` holds: `etag` of the pull request; `head`, its commit, and `head_at`, when that was first seen;
    `ours`, the commits that we pushed; `checks`, etags of what CI says, and `summary`, what it said; `red_at`;
    `decided`, the commit whose redness was dealt with, and `theirs`, what of it the base has, too; `mark` of the
    failure that was repaired last, and `to_mend`, the commit that a repair was asked for; `reviewed`, the last review
    that was dealt with, `review_due` and `by_review`, how many repairs were for reviews.

    What is merged or closed is final: a pull request that is opened again by hand is its person's affair. So is a
    branch that somebody else pushed to: its checks are told, and it is not repaired.
    """

    github: GitHub
    pulls: Pulls
    repairs: Repairs
    clock: Clock
    last: dict[int, Checks] = field(default_factory=dict)

    def keep(self, pulls: Collection[int]) -> None:
        """Forget what CI said of others."""
        for gone in self.last.keys() - set(pulls):
            del self.last[gone]

    async def look(self, pull: Pull, project: Project, own: ProjectSettings) -> bool:
        """Look once at an open one; True: something has changed. Raises `GitHubError`."""
        assert pull.number is not None  # noqa: S101  only what is open is looked at
        seen = self._known(pull)
        got = await self.github.pull(pull.repo, pull.number, etag=seen.get("etag"))
        if got is not None:
            found, seen["etag"] = got
            if (ended := _ended(found)) is not None:
                return await self.pulls.saw(pull.id, state=ended, seen=seen, sha=found.sha)
            if found.sha != seen.get("head"):
                seen |= {"head": found.sha, "head_at": self.clock(), "checks": {}, "summary": ""}
                for gone in ("red_at", "theirs"):
                    seen.pop(gone, None)
        changed = await self._checks(pull, project, own, seen)
        if own.review_repairs and (got is not None or seen.get("review_due")) and _current(pull, seen):
            await self.repairs.after_review(pull, project, own, seen)
        return changed

    def _known(self, pull: Pull) -> dict[str, Any]:
        seen = dict(pull.seen)
        ours = list(seen.get("ours", ()))
        if pull.pushed_sha and pull.pushed_sha not in ours:
            seen["ours"] = [*ours, pull.pushed_sha][-_OURS_KEPT:]
        return seen

    async def _checks(self, pull: Pull, project: Project, own: ProjectSettings, seen: dict[str, Any]) -> bool:
        """Read and write what CI says of the commit in which the branch ends; `seen` is as it was written."""
        current = _current(pull, seen)
        if not current and seen["head"] in seen.get("ours", ()):
            # GitHub does not show our last push yet, or it is still owed: what was red then is no news
            return await self._write(pull, seen)
        checks = await self._said(pull, seen, undecided=current and seen.get("decided") != seen["head"])
        if checks is not None:
            seen |= {"checks": dict(checks.etags), "summary": checks.summary}
        if seen["summary"] == "failed":
            seen.setdefault("red_at", self.clock())
        else:
            seen.pop("red_at", None)
        changed = await self._write(pull, seen, checks)
        if checks is not None and checks.summary == "failed" and current and seen.get("decided") != seen["head"]:
            changed |= await self.repairs.after_red(pull, project, own, checks, seen)
        elif current and seen["summary"] == "failed" and seen.get("to_mend") == seen["head"]:
            changed |= await self.repairs.after_repair(pull, seen)
        return changed

    async def _said(self, pull: Pull, seen: Mapping[str, Any], *, undecided: bool) -> Checks | None:
        """What CI says; None: nothing new, and nothing that is still to be decided."""
        known = self.last.get(pull.id)
        found = await self.github.ci.changed(pull.repo, seen["head"], seen.get("checks", {}))
        if found is None and undecided and seen["summary"] == "failed":
            # it was written down by somebody who did not come to decide
            found = (
                known if known and known.sha == seen["head"] else await self.github.ci.checks(pull.repo, seen["head"])
            )
        if found is not None:
            self.last[pull.id] = found
        return found

    async def _write(self, pull: Pull, seen: Mapping[str, Any], checks: Checks | None = None) -> bool:
        says = None if checks is None else str(checks.summary)
        if seen.get("summary") == "none":
            # a repository's CI may need a moment to begin
            says = "none" if self.clock() - int(seen["head_at"]) >= GRACE else None
        red = () if checks is None else red_labels(checks, pull.base, seen.get("theirs", ()))
        if says is not None and (says, red) != (pull.checks, pull.red):
            # a push of ours may have come in between, of which nothing is known yet
            sha = seen["head"] if _current(pull, seen) else None
            return await self.pulls.saw(pull.id, checks=says, red=red, seen=seen, sha=sha)
        if seen != pull.seen:
            await self.pulls.saw(pull.id, seen=seen)
        return False


def _current(pull: Pull, seen: Mapping[str, Any]) -> bool:
    """The branch ends in the commit that we made last, and nothing is owed to it."""
    return bool(seen["head"] == pull.head_sha == (pull.pushed_sha or pull.head_sha))


def _ended(found: Found) -> PullState | None:
    if found.merged_at is not None:
        return PullState.MERGED
    return None if found.open else PullState.CLOSED
