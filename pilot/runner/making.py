"""The three kinds of workspace, and how one is opened or made."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pilot.config.schema import ProjectSettings
from pilot.domain.errors import WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import FailureClass
from pilot.domain.text import slug
from pilot.domain.work import Made
from pilot.runner.branches import Choice, Start
from pilot.runner.clone import CloneMode
from pilot.runner.files import remove_tree
from pilot.runner.git import Git
from pilot.runner.in_place import InPlaceMode
from pilot.runner.pristine import Pristine
from pilot.runner.source import Branches, Source, left_of, open_source, pristine_of
from pilot.runner.space import Record, Workspace, keep_old, load
from pilot.runner.tree import Tree
from pilot.runner.worktree import WorktreeMode

_KEPT = frozenset({".lock", ".hold", "workspace.json", "git"})


class Mode(Protocol):
    """What the three kinds of workspace do differently."""

    def tree(self, ws: Workspace) -> Tree:
        """How pilot reads its files."""
        ...

    async def make(self, ws: Workspace, files: str, head: str) -> None:
        """Make it, with the files of one commit and standing on another (the same, or the one before it)."""
        ...

    def intact(self, ws: Workspace) -> bool:
        """Whether an attempt can go on in it."""
        ...

    async def head(self, ws: Workspace) -> tuple[str, list[str]]:
        """The commit on which the agent left it, readable in the pristine repository; and what is to be said."""
        ...

    async def settle(self, ws: Workspace, head: str) -> None:
        """Make it stand on the commit that pilot made of it, so that whoever goes on in it sees that."""
        ...

    async def come_back(self, ws: Workspace) -> None:
        """Undo a `remove` that a kill broke off, where that can be seen."""
        ...

    async def remove(self, ws: Workspace) -> None:
        """Take away what it has outside of its folder. Raises `WorkspaceError` when work would be lost."""
        ...


MODES: Mapping[str, Mode] = {"clone": CloneMode(), "worktree": WorktreeMode(), "in_place": InPlaceMode()}
"""By what `workspace` in pilot.yaml says."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Opens or makes the workspace of one execution. `home` is its folder, which nobody else works in now.

    `live`: branches of the project that have an open pull request. `made`: what the work starts from.
    """

    project: ProjectSettings
    execution: Execution
    home: Path
    state_dir: Path
    store_id: str
    git: Git
    live: Collection[str] = ()
    made: Sequence[Made] = ()

    async def prepare(self) -> Workspace:
        """The workspace that is there, if it is fit to go on in; else a new one with the work of the old."""
        record = load(self.home)
        if record is not None and record.ready:
            ws = self.opened(record)
            if record.common == str(ws.source.common) and MODES[ws.mode].intact(ws):
                return await self._taken_up(ws)
            if ws.path.exists() and ws.mode != "in_place":
                # Not usable, and maybe the only place where something is: out of the way, not away.
                ws.path.rename(self.home / f"lost-{secrets.token_hex(4)}")
        source = open_source(self._git, self.project, self.state_dir)
        await source.update()
        return await self._made(source)

    def opened(self, record: Record, source: Source | None = None) -> Workspace:
        """The workspace that a record tells of."""
        source = source or open_source(self._git, self.project, self.state_dir)
        in_place = source.top if record.mode == "in_place" else None
        ws = Workspace(
            path=in_place or self.home / (record.folder or slug(self.project.name)),
            branch=record.branch,
            base_sha=record.base,
            mode=record.mode,
            fresh=not record.set_up,
            execution=self.execution.id,
            task_id=self.execution.task_id,
            home=self.home,
            record=record,
            source=source,
            pristine=pristine_of(source, self.home),
            left=left_of(source, self.execution.project_id, self.state_dir),
            tree=Tree(self.home, self.git),
        )
        ws.tree = MODES[ws.mode].tree(ws)
        return ws

    @property
    def _git(self) -> Git:
        return self.git.marked(f"{self.store_id}:{self.execution.id}:{self.execution.fence}")

    async def _taken_up(self, ws: Workspace) -> Workspace:
        """One that is there. A kill may have come between a change and its record."""
        for name in ("index.lock", "wip-index", "wip-index.lock"):
            (ws.home / name).unlink(missing_ok=True)
        await MODES[ws.mode].come_back(ws)
        branch = await ws.source.branch(ws.branch)
        if branch is not None and branch.sha == ws.record.head:
            ws.record.seen = branch.sha
        ws.scratch.mkdir(exist_ok=True)
        record = ws.record
        if (record.owner or record.execution) != self.execution.id:
            record.owner, record.since = self.execution.id, record.kept
            record.asked = record.allowed = None
            ws.save()
        return ws

    async def _made(self, source: Source) -> Workspace:
        mode = self.project.workspace
        if source.is_partial:
            raise WorkspaceError(
                FailureClass.CONFLICT,
                f"{source.where} is a partial clone, and lacks what a workspace needs; `git fetch --refetch` without a "
                "filter completes it, or the project's `url` lets pilot keep a mirror of its own",
            )
        if mode == "in_place" and source.top is None:
            raise WorkspaceError(FailureClass.CONFLICT, f"{source.where} has no checkout to work in (in_place)")
        pristine = pristine_of(source, self.home)
        left = left_of(source, self.execution.project_id, self.state_dir)
        branches = await source.branches()
        stands_ok = str(source.top if mode == "in_place" else self.home / slug(self.project.name))
        shared = mode != "clone"
        choice = Choice(
            source, pristine, branches, self.project, self.execution, left, stands_ok, shared, self.live, self.made
        )
        start = await choice.start()
        last = await self._last_work(source, pristine, branches, start.branch)
        if last is not None and shared and start.seen is not None:
            last = await _later(pristine, last, start.seen)
        files, head, base = last or (start.start, start.start, start.base)
        killed = load(self.home)
        record = Record(
            store=self.store_id,
            execution=self.execution.id,
            mode=mode,
            common=str(source.common),
            branch=start.branch,
            base_name=start.base_name,
            base=base,
            start=head,
            seen=start.seen,
            head=head,
            index=files,
            wip=files if files != head else None,
            changed=files != base,
            former=killed.former if killed is not None and mode == killed.mode == "in_place" else None,
            named=start.named,
            refs=_refs_of_clone(branches.packed(), start),
            task=self.execution.task_id,
            owner=self.execution.id,
            since=start.start if start.start != start.base else None,
            joined=start.joined,
            folder=slug(self.project.name),
        )
        ws = self.opened(record, source)
        await asyncio.to_thread(self._clear)
        ws.save()
        await self._ready(ws, files)
        return ws

    async def _ready(self, ws: Workspace, files: str) -> None:
        record = ws.record
        await ws.pristine.put({"base": record.base, "head": record.head})
        if ws.mode != "clone":
            for name, commit in (("wip", files), ("head", record.head)):
                if commit not in (record.base, record.seen):
                    await ws.source.take(ws.pristine, name, record.base)
            await keep_old(ws, record.head, record.seen)
        await MODES[ws.mode].make(ws, files, record.head)
        ws.scratch.mkdir(exist_ok=True)
        record.ready = True
        ws.save()

    async def _last_work(
        self, source: Source, pristine: Pristine, branches: Branches, own: str
    ) -> tuple[str, str, str] | None:
        """Files, head and base to go on from when this execution worked before and its workspace is gone."""
        execution = self.execution
        known = await pristine.refs("wip", "wip-head", "head", "base")
        base = known.get("base")
        if base is not None:
            wip, head = known.get("wip"), known.get("head", base)
            if wip is not None:
                return wip, known.get("wip-head", wip), base
            return None if head == base else (head, head, base)
        if execution.attempt < 2 or execution.base_sha is None:
            return None
        aside, other = f"wip/{execution.id}", str(execution.id)
        kept = await source.kept(aside, other)
        commit = kept.get(aside) or kept.get(other)
        branch = branches.local.get(own) if own == execution.branch else None
        if commit is None and branch is not None and branch.sha == execution.head_sha:
            commit = branch.sha  # it had ended, and the node died before that was written down
        return None if commit is None else (commit, commit, execution.base_sha)

    def _clear(self) -> None:
        """Take away what a start that was killed left; no agent has been in it."""
        for entry in self.home.iterdir():
            if entry.name not in _KEPT and not entry.name.startswith("lost-"):
                remove_tree(entry)


async def _later(pristine: Pristine, last: tuple[str, str, str], tip: str) -> tuple[str, str, str]:
    """The branch itself, if the agent went on committing there after pilot last looked."""
    files, _, base = last
    done = await pristine.git.run("merge-base", "--is-ancestor", files, tip, ok=(0, 1))
    return last if done.code else (tip, tip, base)


def home_of(state_dir: Path, store_id: str, execution: Execution, live: Collection[str] = ()) -> Path:
    """The folder of an execution's workspace: the same for all of its attempts.

    It is another execution's when the row says so (a repair), or when the task's pull request is still open and
    that one's workspace was kept for it.
    """
    top = state_dir / "workspaces"
    named = Path(execution.workspace or "").parent
    if named.parent == top and _fits(load(named), store_id, execution):
        return named
    name = f"{execution.id}-{slug(execution.task_id, 40)}"
    home = top / name
    record = load(home)
    if record is not None and record.store != store_id:
        home = home.with_name(f"{name}-{slug(store_id)}")
        record = load(home)
    if record is None and live:
        kept = {path: load(path) for path in top.glob(f"*-{slug(execution.task_id, 40)}*")}
        fit = [
            (record.owner, path)
            for path, record in kept.items()
            if record is not None and record.branch in live and _fits(record, store_id, execution)
        ]
        return max(fit)[1] if fit else home
    return home


def _fits(record: Record | None, store_id: str, execution: Execution) -> bool:
    """Whether the task can be gone on with in a workspace. A checkout is nobody's to hand on."""
    return (
        record is not None
        and record.ready
        and record.store == store_id
        and record.mode != "in_place"
        and execution.task_id == (record.task or execution.task_id)
        and (record.task != "" or record.execution == execution.id)
    )


def _refs_of_clone(packed: Mapping[str, str], start: Start) -> dict[str, str]:
    refs = dict(packed)
    if start.base_name != start.branch and f"refs/remotes/origin/{start.base_name}" in packed:
        refs[f"refs/heads/{start.base_name}"] = start.tip or start.base
    return refs
