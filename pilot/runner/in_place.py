"""`in_place`: the agent works in the project's checkout itself, by the operator's wish and with their git config.

Nothing of anybody's is overwritten: a checkout that is not clean is refused, and what is left at the end is switched
back by merges that refuse to touch what they do not know.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line
from pilot.runner.git import Git
from pilot.runner.git_locks import remove_stale_lock
from pilot.runner.space import Workspace
from pilot.runner.tree import Changes, Tree

_UNDER_WAY = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}
"""What git is in the middle of, by what it leaves in its directory."""
_SHOWN = 5


class InPlaceMode:
    """`path` is the checkout. What a checkout stood on before is in the record, so that a later start finds it."""

    def tree(self, ws: Workspace) -> Tree:
        """See `Mode.tree`."""
        return Tree(ws.path, self._git(ws), ws.home / "exclude", shared=True)

    async def make(self, ws: Workspace, files: str, head: str) -> None:
        """See `Mode.make`."""
        await self._refuse_unless_clean(ws)
        git, record = self._git(ws), ws.record
        stood = (await git.run("symbolic-ref", "--quiet", "HEAD", ok=(0, 1))).text
        if record.former is None or stood != f"refs/heads/{ws.branch}":  # else a start that was killed got so far
            record.former = stood or (await git.run("rev-parse", "--verify", "HEAD")).text
        ws.save()
        if stood != f"refs/heads/{ws.branch}" or record.seen != head:
            await git.run("switch", "--quiet", "--no-track", "--no-recurse-submodules", "-C", ws.branch, head)
        record.seen = head
        if files != head:
            await git.run("read-tree", "-m", "-u", "--no-recurse-submodules", head, files)

    def intact(self, ws: Workspace) -> bool:
        """See `Mode.intact`: whether the checkout still stands where the last attempt left it."""
        head = ws.source.git_dir / "HEAD"
        return ws.record.former is not None and _text(head) == f"ref: refs/heads/{ws.branch}"

    async def head(self, ws: Workspace) -> tuple[str, list[str]]:
        """See `Mode.head`."""
        lock = ws.source.git_dir / "index.lock"
        if lock.exists() and ws.source.git.hold is not None:
            remove_stale_lock(lock, ws.source.git_dir, ws.source.git.hold)
        return (await self._git(ws).run("rev-parse", "--verify", "HEAD^{commit}")).text, []

    async def settle(self, ws: Workspace, head: str) -> None:
        """See `Mode.settle`."""
        git = self._git(ws)
        here = (await git.run("rev-parse", "--verify", "HEAD^{commit}")).text
        if here != head:
            await git.run("update-ref", "HEAD", head, here)
        if (await git.run("symbolic-ref", "--quiet", "HEAD", ok=(0, 1))).text == f"refs/heads/{ws.branch}":
            ws.record.seen = head

    async def remove(self, ws: Workspace) -> None:
        """See `Mode.remove`: back to what the checkout stood on, if it is as pilot left it."""
        record, git = ws.record, self._git(ws)
        if record.former is None:
            return
        kept = record.kept
        here = (await git.run("rev-parse", "--verify", "HEAD^{commit}")).text
        changes = await ws.tree.changes()
        if kept == record.wip:
            await ws.tree.add(changes)
            changes = Changes()
        if here != record.head or changes.any or await self._trees_differ(ws, kept):
            raise WorkspaceError(
                FailureClass.CONFLICT,
                f"{ws.path} was changed after the attempt; it stays on {ws.branch}. Commit or stash, then switch back",
            )
        for name, word in _UNDER_WAY.items():
            if (ws.source.git_dir / name).exists():
                await git.run(word, "--quit")
        back = record.former
        record.leaving = True
        ws.save()
        await self._switch_files(ws, kept, back)
        if back.startswith("refs/"):
            await git.run("symbolic-ref", "-m", f"pilot: back from {ws.branch}", "HEAD", back)
        else:
            await git.run("update-ref", "--no-deref", "HEAD", back)
        record.former, record.leaving = None, False
        ws.save()
        branch = await ws.source.branch(ws.branch)
        if branch is not None and not branch.checked_out and self._is_unused(ws, branch.sha):
            await ws.source.move({f"refs/heads/{ws.branch}": (None, branch.sha)})

    async def come_back(self, ws: Workspace) -> None:
        """The files of the work again, if a kill came while they were being switched for what was there before."""
        record = ws.record
        if record.leaving and record.former is not None:
            await self._switch_files(ws, record.former, record.kept)
            record.leaving = False
            ws.save()

    async def _switch_files(self, ws: Workspace, old: str, new: str) -> None:
        """Nothing where it is done already."""
        git = self._git(ws)
        await git.run("update-index", "-q", "--refresh", ok=(0, 1))
        await git.run("read-tree", "-m", "-u", "--no-recurse-submodules", old, new)

    async def _trees_differ(self, ws: Workspace, commit: str) -> bool:
        """Whether the index is another tree than the commit's."""
        done = await self._git(ws).run("diff-index", "--cached", "--quiet", commit, ok=(0, 1))
        return done.code == 1

    def _is_unused(self, ws: Workspace, sha: str) -> bool:
        """Whether a branch at that commit says nothing that is not kept elsewhere."""
        record = ws.record
        nothing = not record.changed or record.wip is not None
        return record.preserved is None and not record.named and nothing and sha in (record.base, record.head)

    async def _refuse_unless_clean(self, ws: Workspace) -> None:
        git_dir = ws.source.git_dir
        under_way = [word for name, word in _UNDER_WAY.items() if (git_dir / name).exists()]
        if under_way:
            raise WorkspaceError(
                FailureClass.CONFLICT, f"{ws.path} is in the middle of a {under_way[0]}; finish or abort it first"
            )
        done = await self._git(ws).run(
            "status", "--porcelain", "-z", "--untracked-files=normal", "--no-renames", "--ignore-submodules=dirty"
        )
        if done.parts:
            shown = ", ".join(one_line(part[3:], 80) for part in done.parts[:_SHOWN])
            more = f" and {len(done.parts) - _SHOWN} more" if len(done.parts) > _SHOWN else ""
            raise WorkspaceError(
                FailureClass.CONFLICT,
                f"{ws.path} has changes that are not committed ({shown}{more}); commit, stash or ignore them",
            )

    def _git(self, ws: Workspace) -> Git:
        git = ws.source.git.at(ws.source.git_dir, work_tree=ws.path, own_config=True)
        return replace(git, common=ws.source.common)


def _text(path: Path) -> str:
    try:
        return os.fsdecode(path.read_bytes()).strip()
    except OSError:
        return ""
