"""Workspaces: made, read, preserved, and given up only when nothing in them is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pilot.config.schema import ProjectSettings
from pilot.domain.errors import PilotError, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line
from pilot.domain.work import Made
from pilot.runner import beside
from pilot.runner.files import remove_tree
from pilot.runner.git import Git
from pilot.runner.making import MODES, Maker, home_of
from pilot.runner.safety import is_safe
from pilot.runner.space import Snapshot, Workspace, keep_old, load, lock_folder
from pilot.runner.tree import Tree, pattern

__all__ = ["Snapshot", "Workspace", "Workspaces"]

WIP = "Work in progress"
_GITLINK = "160000"


@dataclass(slots=True)
class Workspaces:
    """All workspaces below one state directory. Raises `WorkspaceError` only; a disk's own errors are `infra`."""

    state_dir: Path
    git: Git = field(default_factory=Git)
    store_id: str = ""

    def __post_init__(self) -> None:
        self.state_dir = Path(os.path.realpath(self.state_dir))  # as git will call what is in it

    async def prepare(
        self,
        project: ProjectSettings,
        execution: Execution,
        live: Collection[str] = (),
        made: Sequence[Made] = (),
    ) -> Workspace:
        """The execution's workspace: the one it has, with the work in it, or a new one.

        A new one of an execution that worked before starts from what was preserved of that. If the task's branch is
        one of those with an open pull request (`live`), what is there goes on: in the workspace that was kept for it,
        else in a new one on top of the branch. A new one starts from what was `made` before it. The workspace is this
        process's alone until `close`. The class of what is raised: `conflict` when a person has to put the repository
        in order, `infra`, `network` or `auth` otherwise.
        """
        with _disk():
            maker = replace(self._maker(project, execution, live), made=made)
            lock = lock_folder(maker.home)
            try:
                ws = await maker.prepare()
            except BaseException:
                if load(maker.home) is None:  # nothing was begun
                    remove_tree(maker.home)
                os.close(lock)
                raise
            ws.lock = lock
            return ws

    async def find(self, project: ProjectSettings, execution: Execution) -> Workspace | None:
        """The execution's workspace as it is, this process's alone until `close`; None when it has none."""
        with _disk():
            maker = self._maker(project, execution)
            if load(maker.home) is None:
                return None
            lock = lock_folder(maker.home)
            record = load(maker.home)
            if record is None or not record.ready:
                os.close(lock)
                return None
            try:
                ws = maker.opened(record)
            except BaseException:
                os.close(lock)
                raise
            ws.lock = lock
            return ws

    async def sweep(self, project: ProjectSettings, execution: Execution) -> bool:
        """Take away what a killed start or end of a workspace left; whether nothing is there any more."""
        with _disk():
            maker = self._maker(project, execution)
            if not maker.home.exists():
                return True
            lock = lock_folder(maker.home)
            try:
                record = load(maker.home)
                if (record is not None and record.ready) or any(maker.home.glob("lost-*")):
                    return False
                if record is not None and record.mode == "in_place" and record.former is not None:
                    return False  # the user's checkout is still to be switched back
                if record is not None and record.mode != "in_place":
                    await MODES[record.mode].remove(maker.opened(record))
                await asyncio.to_thread(remove_tree, maker.home)
                return True
            finally:
                os.close(lock)

    async def set_up(self, ws: Workspace) -> tuple[str, ...]:
        """Set-up is done: what it made, and git would take for work, is no part of the change from now on."""
        with _disk():
            made = await ws.tree.untracked_names()
            if made:
                (ws.home / "exclude").write_bytes(os.fsencode("".join(f"{pattern(path)}\n" for path in made)))
                await MODES[ws.mode].settle(ws, ws.record.head)
                beside.remember(ws, made)
            ws.record.set_up, ws.fresh = True, False
            ws.save()
            return tuple(made)

    async def snapshot(self, ws: Workspace, message: str) -> Snapshot:
        """The work as one commit: the agent's own commits, and what it left over as one more on top of them.

        Not yet in the project's repository. The workspace stands on that commit afterwards, with nothing left over.
        """
        with _disk():
            head, notes = await MODES[ws.mode].head(ws)
            notes = [*notes, *await asyncio.to_thread(beside.notes, ws)]
            if head != ws.record.index:
                await ws.tree.stand_on(head)
            work = await _committed(ws, ws.tree, head, message)
            commit = work.commit
            keeping = ws.pristine.put({"head": commit, "base": ws.record.base})
            snapshot, _ = await asyncio.gather(_measured(ws, work, notes), keeping)
            record = ws.record
            record.head, record.index, record.changed = commit, commit, snapshot.changed
            record.old_wip = record.wip or record.old_wip
            record.wip = None
            ws.save()
            await MODES[ws.mode].settle(ws, commit)
            ws.save()
            return snapshot

    async def preserve(self, ws: Workspace, snapshot: Snapshot) -> None:
        """Put the snapshot on the branch in the project's own repository; nothing when it changes nothing.

        A merge of what other steps have made gets there in any case: it would be on no branch else.

        Compare-and-set against where pilot last saw the branch. Raises `WorkspaceError`, class `conflict`, when
        somebody else moved it or has it checked out; the work is then kept as `refs/pilot/<execution>`.
        """
        with _disk():
            if not snapshot.changed and not ws.record.joined and ws.record.preserved is None:
                await _forget_wip(ws)
                return
            record, head = ws.record, snapshot.head_sha
            branch = await ws.source.branch(ws.branch)
            now = branch.sha if branch is not None else None
            ws.left.note(head, ws.branch, ws.task_id)
            if now != head:
                await ws.source.take(ws.pristine, "head", record.base)
                place = "" if branch is None else branch.checked_out
                # A branch that is gone is nobody's loss; a person who freed its name did that.
                if now not in (None, record.seen) or (place and place != str(ws.path)):
                    raise await _kept_aside(ws, head, place)
                try:
                    await keep_old(ws, head, now)
                    await ws.source.move({f"refs/heads/{ws.branch}": (head, now or "")})
                except WorkspaceError as error:
                    if error.failure is FailureClass.CONFLICT:
                        raise await _kept_aside(ws, head, "") from error
                    raise
                ws.left.forget(now, ws.branch)
            if record.preserved != head:
                ws.left.forget(record.preserved, ws.branch)
            record.seen = record.preserved = head
            ws.save()
            await _forget_wip(ws)

    async def keep_wip(self, ws: Workspace) -> str | None:
        """Keep whatever there is as `refs/pilot/wip/<execution>` in the project's repository; its commit, or None.

        Changes neither the branch nor anything in the workspace: for an attempt that will go on.
        """
        with _disk():
            head, _ = await MODES[ws.mode].head(ws)
            index = ws.home / "wip-index"
            own = ws.tree.git.index or (ws.source.git_dir / "index")
            await asyncio.to_thread(shutil.copyfile, own, index)
            tree = replace(ws.tree, git=replace(ws.tree.git, index=index))
            if head != ws.record.index:
                await tree.stand_on(head)
            work = await _committed(ws, tree, head, WIP)
            commit = work.commit
            index.unlink(missing_ok=True)
            ws.record.head = head
            if commit == ws.record.preserved or work.tree == work.base_tree:
                ws.save()
                return None
            await ws.pristine.put({"wip": commit, "wip-head": head})
            await ws.source.take(ws.pristine, "wip", ws.record.base)
            await ws.source.move({f"refs/pilot/wip/{ws.execution}": (commit, None)})
            ws.record.wip, ws.record.changed = commit, True
            ws.save()
            return commit

    async def restore(self, ws: Workspace) -> tuple[str, ...]:
        """Put the files back to the last snapshot; the paths that were different. Ignored files stay.

        In the user's own checkout new files stay, too: they may be the user's.
        """
        with _disk():
            changes = await ws.tree.changes()
            return await ws.tree.put_back(changes, untracked=ws.mode != "in_place") if changes.any else ()

    async def release(self, ws: Workspace, *, keep: bool) -> bool:
        """Give the workspace up; whether it is gone. One with work that is nowhere else stays, also without `keep`.

        A checkout (`in_place`) is switched back in any case.
        """
        with _disk():
            mode = MODES[ws.mode]
            if ws.mode == "in_place":
                await mode.remove(ws)
            if keep or not await is_safe(ws):
                return False
            # From here on a kill leaves nothing that is precious: whoever goes on makes it anew.
            ws.record.ready = False
            ws.save()
            if ws.mode != "in_place":
                await mode.remove(ws)
            ws.pristine.path.rename(ws.home / "gone")  # half of it would be worse than nothing
            await asyncio.to_thread(remove_tree, ws.home)
            ws.close()
            return True

    def _maker(self, project: ProjectSettings, execution: Execution, live: Collection[str] = ()) -> Maker:
        home = home_of(self.state_dir, self.store_id, execution, live)
        return Maker(project, execution, home, self.state_dir, self.store_id, self.git, live)


@dataclass(frozen=True, slots=True)
class _Work:
    commit: str
    tree: str
    base_tree: str
    notes: tuple[str, ...]


async def _committed(ws: Workspace, tree: Tree, head: str, message: str) -> _Work:
    """What the files are now as a commit on top of `head`, or that itself when nothing is left over."""
    changes = await tree.changes()
    trees = tree.git.run("rev-parse", f"{head}^{{tree}}", f"{ws.record.base}^{{tree}}")
    _, known = await asyncio.gather(tree.add(changes), trees)
    notes = [f"{one_line(path)} is a repository of its own; it is not taken" for path in changes.nested]
    notes += [f"{one_line(path)} can't be read; it is not taken" for path in changes.unreadable]
    head_tree, base_tree = known.text.split("\n")
    written = await tree.write()
    if written == head_tree:
        return _Work(head, head_tree, base_tree, tuple(notes))
    words = (
        f"{one_line(message, 100)}\n\nPilot-Execution: {ws.execution}\nPilot-Task: {one_line(ws.task_id)}\n"
    ).encode(errors="replace")
    done = await tree.git.run("commit-tree", "-p", head, "-F", "-", written, stdin=words)
    return _Work(done.text, written, base_tree, tuple(notes))


async def _measured(ws: Workspace, work: _Work, more_notes: Sequence[str]) -> Snapshot:
    """What the commit changes, counted from the base."""
    notes = [*more_notes, *work.notes]
    git, commit, tree = ws.tree.git, work.commit, work.tree
    if tree == work.base_tree:
        return Snapshot(commit, tree, changed=False, notes=tuple(notes))
    done = await git.run(
        "diff-tree", "-r", "-z", "--raw", "--numstat", "--no-renames", "--no-ext-diff", "--no-textconv",
        ws.record.base, commit,
    )  # fmt: skip
    files, insertions, deletions = [], 0, 0
    parts = iter(done.parts)
    for part in parts:
        if part.startswith(":"):
            old, new = part[1:7], part[8:14]
            path = next(parts)
            if new == _GITLINK and old != _GITLINK:
                notes.append(f"{one_line(path)} is a repository of its own, of which only the address was committed")
            continue
        added, removed, path = part.split("\t", 2)
        files.append(path)
        insertions += int(added) if added.isdigit() else 0
        deletions += int(removed) if removed.isdigit() else 0
    if any(path.rpartition("/")[2] == ".gitignore" for path in files):
        notes.append("the change edits .gitignore: gates may see files that are no part of it")
    return Snapshot(commit, tree, True, tuple(files), insertions, deletions, tuple(notes))


async def _kept_aside(ws: Workspace, head: str, place: str) -> WorkspaceError:
    """The branch can't be moved: keep the work by a name of its own, and say so."""
    name = str(ws.execution)
    before = (await ws.source.kept(name)).get(name)
    await keep_old(ws, head, before)
    await ws.source.move({f"refs/pilot/{name}": (head, None)})
    why = (
        f"is checked out in {place}"
        if place
        else "is not where pilot left it: somebody else moved, made or removed it meanwhile"
    )
    return WorkspaceError(
        FailureClass.CONFLICT,
        f"branch {ws.branch} in {ws.source.where} {why}. The work is kept there as refs/pilot/{name}: take what you "
        "need from it, free the branch (git switch, git branch -m), and answer to go on",
    )


async def _forget_wip(ws: Workspace) -> None:
    """What was kept aside is part of a commit that is preserved."""
    if ws.record.old_wip is None:
        return
    name = f"wip/{ws.execution}"
    if (await ws.source.kept(name)).get(name) == ws.record.old_wip:
        await ws.source.move({f"refs/pilot/{name}": (None, ws.record.old_wip)})
    known = await ws.pristine.refs("wip", "wip-head")
    await ws.pristine.put(dict.fromkeys(known))
    ws.record.old_wip = None
    ws.save()


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """The disk's own errors, in words."""
    try:
        yield
    except OSError as error:
        raise WorkspaceError(FailureClass.INFRA, f"the workspace can't be used: {error}") from error
    except PilotError as error:
        if isinstance(error, WorkspaceError):
            raise
        raise WorkspaceError(FailureClass.CONFLICT, str(error)) from error
