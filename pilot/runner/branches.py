"""On which branch an execution works, and from where: decided once, before anything is made."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from pilot.config.schema import ProjectSettings
from pilot.domain.errors import WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line, ref_name
from pilot.domain.work import Made
from pilot.runner.joining import join
from pilot.runner.pristine import Left, Pristine
from pilot.runner.source import Branches, Source, is_branch_name

PREFIX = "pilot/"


@dataclass(frozen=True, slots=True)
class Start:
    """`seen`: the branch's commit in the project now, None when there is no such branch yet.

    `base` is what changes are counted from, `start` where the work begins: later than it when there is work already.
    """

    branch: str
    base_name: str
    base: str
    seen: str | None
    start: str
    named: bool = False
    tip: str = ""
    """Where the base's own branch is, when the work begins elsewhere: at what other steps have made."""
    joined: bool = False
    """Whether the base is a merge of what other steps have made, which is on no branch yet."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Chooses for one execution.

    `left`: what pilot remembers of branches. `stands_ok`: the one work tree that may stand on the branch.
    `shared`: agents commit on the project's branch itself, so it need not be where pilot saw it last.
    `live`: branches that have an open pull request. `made`: what the steps before this one have come to.
    """

    source: Source
    pristine: Pristine
    branches: Branches
    project: ProjectSettings
    execution: Execution
    left: Left
    stands_ok: str | None = None
    shared: bool = False
    live: Collection[str] = ()
    made: Sequence[Made] = ()

    async def start(self) -> Start:
        """Branch and start. Raises `WorkspaceError`, class `conflict`, when the branch is not to be had."""
        options = self.execution.options
        wanted = self.project.base if options.get("base") is None else options["base"]
        base_name, tip = await self.source.base(None if wanted is None else _plain(str(wanted)), self.branches)
        base = await self._joined(tip)
        start = await self._start(base_name, base)
        joined = start.base == base and base not in (tip, *(one.head_sha for one in self.made))
        return replace(start, tip=tip, joined=joined)

    async def _start(self, base_name: str, base: str) -> Start:
        options = self.execution.options
        named = options.get("branch")
        if named is not None:
            return await self._named(str(named), base_name, base)
        branch, seen = await self._own()
        pushed = self.branches.remote.get(branch) if self.source.url is not None and branch in self.live else None
        if seen is None and pushed is not None:
            # Another machine's mirror has made it: what people see in its pull request is all that there is.
            return Start(branch, base_name, await self._fork(base, pushed), None, pushed)
        if seen is None or branch not in self.live:
            return Start(branch, base_name, base, seen, base)
        # Its pull request is open: what comes now goes on top of what people see there.
        start = await self._ahead(branch, seen)
        return Start(branch, base_name, await self._fork(base, start), seen, start)

    async def _joined(self, tip: str) -> str:
        """The base, or what steps before this one have made of it."""
        if not self.made:
            return tip
        base = await join(self.source, self.pristine, tip, self.made)
        if base != tip and self.project.workspace == "in_place":
            raise _conflict(
                f"a step that starts from other steps' branches can't work in {self.source.where} itself (in_place); "
                f"set the project's `workspace` to clone or worktree, and answer to go on"
            )
        return base

    async def _fork(self, base: str, start: str) -> str:
        """Where the branch left the base: what its pull request shows is counted from there."""
        done = await self.pristine.git.run("merge-base", base, start, ok=(0, 1))
        return base if done.code else done.text

    async def _ahead(self, branch: str, ours: str) -> str:
        """The remote's branch as far as it is known here, if all of ours is in it; else ours."""
        theirs = self.branches.remote.get(branch)
        if theirs is None:
            return ours
        done = await self.source.git.run("merge-base", "--is-ancestor", ours, theirs, ok=(0, 1))
        return ours if done.code else theirs

    async def _named(self, branch: str, base_name: str, base: str) -> Start:
        """The task says on which branch: it goes on there, or makes it."""
        if not is_branch_name(branch):
            raise _conflict(f"{one_line(branch)!r} can't be the name of a branch")
        local = self.branches.local.get(branch)
        remote = self.branches.remote.get(branch) if self.source.url is not None else None
        if local is not None:
            self._check_free(branch)
            start = local.sha if remote is None else await self._later(branch, local.sha, remote)
            if branch in self.live:
                return Start(branch, base_name, await self._fork(base, start), local.sha, start, named=True)
            return Start(branch, branch, start, local.sha, start, named=True)
        self._check_possible(branch)
        if remote is not None:
            return Start(branch, branch, remote, None, remote, named=True)
        return Start(branch, base_name, base, None, base, named=True)

    async def _later(self, branch: str, ours: str, theirs: str) -> str:
        """Of a mirror's branch and its remote one, that which has the other in it."""
        for old, new in ((ours, theirs), (theirs, ours)):
            done = await self.source.git.run("merge-base", "--is-ancestor", old, new, ok=(0, 1))
            if done.code == 0:
                return new
        raise _conflict(f"branch {branch} and the one at {self.source.url} have parted; make one of them")

    async def _own(self) -> tuple[str, str | None]:
        """`pilot/TASK`, or beside it where another task has that name; and where it is now."""
        task, id = self.execution.task_id, self.execution.id
        first = f"{PREFIX}{ref_name(task)}"
        beside = f"{PREFIX}{ref_name(task).replace('/', '-')}-{id}"
        if self.execution.branch == beside:  # no other name counts: a worker elsewhere may have told any
            first = beside
        if first not in self.branches.local:
            if self._in_the_way(first):
                first = beside
                self._check_possible(first)
            return first, getattr(self.branches.local.get(first), "sha", None)
        owner = await self._owner(first)
        if owner == "other":
            return beside, getattr(self.branches.local.get(beside), "sha", None)
        if owner == "nobody":
            raise _conflict(
                f"branch {first} in {self.source.where} is not as pilot left it, or is not pilot's at all; "
                f"rename or delete it (git branch -m), or name another one for this task"
            )
        self._check_free(first)
        return first, self.branches.local[first].sha

    async def _owner(self, branch: str) -> str:
        """Whose a branch is, by where pilot left it: this task's, another task's, or nobody's pilot knows."""
        sha = self.branches.local[branch].sha
        known = await self.pristine.refs("head", "wip-head")
        if sha in known.values():
            return "own"
        task = self.left.owner(sha, branch)
        if task is not None:
            return "own" if task == self.execution.task_id else "other"
        told = branch == self.execution.branch and (sha == self.execution.head_sha or self.shared)
        return "own" if told else "nobody"

    def _check_free(self, branch: str) -> None:
        place = self.branches.local[branch].checked_out
        if place and place != self.stands_ok:
            raise _conflict(
                f"branch {branch} is checked out in {place}; switch that checkout to another one (git switch -)"
            )

    def _in_the_way(self, branch: str) -> str | None:
        """A branch that keeps this one from existing: git keeps branches as files in directories."""
        parts = branch.split("/")
        above = ("/".join(parts[:n]) for n in range(1, len(parts)))
        below = (name for name in self.branches.local if name.startswith(branch + "/"))
        return next((name for name in above if name in self.branches.local), next(below, None))

    def _check_possible(self, branch: str) -> None:
        other = self._in_the_way(branch)
        if other is not None:
            raise _conflict(
                f"branch {branch} can't be made in {self.source.where} beside branch {other}; rename that one"
            )


def _plain(name: str) -> str:
    if not name or not name.isprintable() or name.startswith("-"):
        raise _conflict(f"{one_line(name)!r} can't be the name of a branch to start from")
    return name


def _conflict(words: str) -> WorkspaceError:
    return WorkspaceError(FailureClass.CONFLICT, words)
