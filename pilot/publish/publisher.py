"""A finished branch becomes a pull request: pushed, found or opened, and kept in step with later work.

Everything is looked at before it is done, since pilot may have been killed, or an answer lost, at any point:

    pushed or not?      the remote branch is asked for first
    opened or not?      a pull request is looked for by its head branch, open or ended, before one is opened
    stored or not?      what is found is stored again; that changes nothing the second time
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from pilot.clients.github import GitHub, fitting
from pilot.clients.github_errors import GitHubError, RateLimited, Refused, Unavailable, Unprocessable
from pilot.clients.github_values import Pull as Found
from pilot.config.schema import ProjectSettings
from pilot.domain.delivery import Effect, Pull, PullState, Report
from pilot.domain.errors import UsageError, WorkspaceError
from pilot.domain.outside import GiveUp, Later, Outbox, Pulls
from pilot.domain.ports import Clock
from pilot.domain.text import one_line
from pilot.publish import change, describe
from pilot.publish.patience import put_off
from pilot.publish.push import git_root, prepare, workshop_of
from pilot.runner.git import Git
from pilot.runner.source import open_source

log = structlog.get_logger()
_NO_COMMITS = "no commits between"


@dataclass(frozen=True, slots=True, kw_only=True)
class Publisher:
    """The handler of `EffectKind.PUBLISH`.

    `github` gives the client for a project (id), and `own` its settings; None: not this node's now. `base_url` is the
    API's: the token goes to the git server that belongs to it, and to no other. `redact` takes secrets out of text.
    """

    outbox: Outbox
    pulls: Pulls
    github: GitHub
    base_url: str
    own: Callable[[int], ProjectSettings | None]
    state_dir: Path
    redact: Callable[[str], str]
    clock: Clock
    git: Git

    async def __call__(self, effect: Effect) -> Mapping[str, Any] | None:
        """Publish what the effect's execution has made. `Later`, `GiveUp`."""
        try:
            return await self._published(effect)
        except RateLimited as error:
            raise Later(str(error), error.until) from error
        except Unavailable as error:
            raise Later(str(error)) from error
        except Unprocessable as error:
            raise GiveUp(_in_words(error)) from error
        except (Later, Refused, WorkspaceError, UsageError) as error:
            # somebody may mend it; for ever it is not tried
            at = error.at if isinstance(error, Later) else None
            raise put_off(effect, str(error), self.clock(), at) from error

    async def _published(self, effect: Effect) -> Mapping[str, Any] | None:
        if effect.execution is None:
            raise GiveUp("a publication is of an execution, and this one is of none")
        pull = await self.pulls.of(effect.execution)
        if pull is None or pull.state not in (PullState.OWED, PullState.OPEN):
            return {"nothing": "its pull request has ended"}
        if pull.execution != effect.execution:
            return {"nothing": f"execution {pull.execution} has gone on from there"}
        # by the name of today: git is not led from an old one to the new, for that would be a redirect
        pull = replace(pull, repo=(await self.github.repository(pull.repo)).name)
        found = await self._find(pull)
        if found is not None and not found.open:
            return await self._ended(pull, found)
        report = await self.outbox.report(effect.execution)
        difference = await self._push(pull, report)
        text = describe.title(report.execution, self.redact), fitting(self._body(report, difference, pull))
        shown = await self._show(pull, found, *text)
        await self.pulls.opened(pull.id, number=shown.number, url=shown.url, head_sha=pull.head_sha)
        return {"number": shown.number, "url": shown.url, "head": pull.head_sha}

    async def _find(self, pull: Pull) -> Found | None:
        """The pull request as it is there: ours by its number, else one from the branch; an ended one only if ours."""
        if pull.number is not None:
            answer = await self.github.pull(pull.repo, pull.number)
            if answer is not None:
                return answer[0]
        found = await self.github.find_pull(pull.repo, pull.branch)
        if found is not None:
            return found
        ended = await self.github.find_pull(pull.repo, pull.branch, state="all")
        if ended is None or ended.open:
            return ended
        me = await self.github.me()
        ours = ended.sha == pull.head_sha and ended.author is not None and ended.author.id == me.id
        return ended if ours else None  # else it was an earlier one of that branch

    async def _ended(self, pull: Pull, found: Found) -> Mapping[str, Any]:
        """Merged or closed before we could say so: nothing is pushed any more, no branch comes back to life."""
        if pull.number is None:
            await self.pulls.opened(pull.id, number=found.number, url=found.url, head_sha=pull.head_sha)
        state = PullState.CLOSED if found.merged_at is None else PullState.MERGED
        await self.pulls.saw(pull.id, state=state, sha=found.sha)
        now = await self.pulls.of(pull.execution)
        if now is not None and now.id != pull.id and now.state is PullState.OWED:
            raise Later(f"pull request {found.number} was {state} before this work came to it", self.clock())
        return {"number": found.number, "url": found.url, "nothing": f"the pull request is {state}"}

    async def _push(self, pull: Pull, report: Report) -> change.Change:
        own, state_dir = self._settings(pull), _real(self.state_dir)
        source = open_source(self.git, own, state_dir)
        old = await source.kept("old")
        push = prepare(
            source,
            state_dir,
            root=git_root(self.base_url),
            repo=pull.repo,
            branch=pull.branch,
            head=pull.head_sha,
            token=await self.github.token(),
        )
        ours = {*old.values(), *filter(None, [pull.pushed_sha])}
        pushed = await push(ours)
        if not pushed.adopted and pull.pushed_sha != pushed.sha:
            await self.pulls.pushed(pull.id, pushed.sha)
        log.info("branch.pushed", execution=pull.execution, branch=pull.branch, sha=pushed.sha, adopted=pushed.adopted)
        base = report.execution.base_sha or pull.head_sha
        return await change.read(workshop_of(source, state_dir), base, pull.head_sha)

    async def _show(self, pull: Pull, found: Found | None, title: str, body: str) -> Found:
        """Open it, or bring our part of the text of the one that is open up to date; people's words stay."""
        if found is None:
            found = await self.github.create_pull(
                pull.repo, branch=pull.branch, base=pull.base, title=title, body=body, draft=pull.draft
            )
        text = describe.renewed(found.body.replace("\r\n", "\n"), body)
        me = await self.github.me()
        if found.author is None or found.author.id != me.id or text is None or fitting(text) == found.body:
            return found
        return await self.github.edit_pull(pull.repo, found.number, body=text)

    def _body(self, report: Report, difference: change.Change, pull: Pull) -> str:
        return describe.body(report, difference, pull.repo, self.redact)

    def _settings(self, pull: Pull) -> ProjectSettings:
        own = self.own(pull.project_id)
        if own is None:
            raise Later("its project is not in this node's configuration now")
        return own


def _real(state_dir: Path) -> Path:
    """As the runner names it: locks go by name."""
    return Path(os.path.realpath(state_dir))


def _in_words(error: GitHubError) -> str:
    words = str(error)
    if _NO_COMMITS in words.lower():
        return f"there is nothing to merge: the base branch has all of this work ({one_line(words, 200)})"
    return one_line(words, 300)
