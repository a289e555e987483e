"""`worktree`: a linked work tree of the project's repository; it shares the git directory with it.

What an agent commits is in the project's repository at once, and what it writes into the shared git directory, too.
Pilot still reads the files with its own git directory and index, so that no filter or hook of that directory runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.runner.git import Git
from pilot.runner.git_locks import remove_stale_lock
from pilot.runner.space import Workspace, keep_old
from pilot.runner.tree import Tree


class WorktreeMode:
    """Made by hand, as `git worktree add` does it, so that a crash leaves nothing that has no known name."""

    def tree(self, ws: Workspace) -> Tree:
        """See `Mode.tree`."""
        git = ws.pristine.git.at(ws.pristine.path, work_tree=ws.path, index=ws.home / "index")
        return Tree(ws.path, git, ws.home / "exclude")

    async def make(self, ws: Workspace, files: str, head: str) -> None:
        """See `Mode.make`."""
        await asyncio.to_thread(shutil.rmtree, admin_of(ws), ignore_errors=True)
        await self._put_branch(ws, head, ws.record.seen)
        ws.record.seen = head
        ws.path.mkdir(parents=True)
        admin = admin_of(ws)
        admin.mkdir(parents=True)
        (admin / "commondir").write_text("../..\n")
        (admin / "gitdir").write_bytes(os.fsencode(ws.path / ".git") + b"\n")
        (admin / "HEAD").write_text(f"ref: refs/heads/{ws.branch}\n")
        (ws.path / ".git").write_bytes(b"gitdir: " + os.fsencode(admin) + b"\n")
        await ws.tree.check_out(files)
        shutil.copyfile(ws.home / "index", admin / "index")

    def intact(self, ws: Workspace) -> bool:
        """See `Mode.intact`."""
        return (
            ws.path.is_dir()
            and not ws.path.is_symlink()
            and (ws.home / "index").exists()
            and (admin_of(ws) / "HEAD").exists()
        )

    async def head(self, ws: Workspace) -> tuple[str, list[str]]:
        """See `Mode.head`."""
        if not self.intact(ws):
            raise WorkspaceError(FailureClass.CONFLICT, f"the agent's work tree {ws.path} is gone")
        found = await self._git(ws).run("rev-parse", "--verify", "--quiet", "HEAD^{commit}", ok=(0, 1, 128))
        return (found.text, []) if found.code == 0 else (ws.record.head, ["HEAD leads nowhere; only files are taken"])

    async def settle(self, ws: Workspace, head: str) -> None:
        """See `Mode.settle`. The branch is the project's own, so this delivers it, too."""
        branch = await ws.source.branch(ws.branch)
        if branch is None or branch.sha != head:
            await ws.source.take(ws.pristine, "head", ws.record.start)
            old = branch.sha if branch else None
            await keep_old(ws, head, old)
            await self._put_branch(ws, head, old)
        ws.record.seen = head
        admin = admin_of(ws)
        for name in ("index.lock", "HEAD.lock"):
            if (admin / name).exists() and ws.source.git.hold is not None:
                remove_stale_lock(admin / name, admin, ws.source.git.hold)
        (admin / "HEAD").write_text(f"ref: refs/heads/{ws.branch}\n")
        await asyncio.to_thread(shutil.copyfile, ws.home / "index", admin / "index")

    async def come_back(self, ws: Workspace) -> None:
        """See `Mode.come_back`: one whose removal has begun is not fit to go on in, and made anew."""

    async def remove(self, ws: Workspace) -> None:
        """See `Mode.remove`: what `git worktree list` shows, and a branch on which nothing came to be."""
        admin = admin_of(ws)
        await asyncio.to_thread(shutil.rmtree, admin, ignore_errors=True)
        with contextlib.suppress(OSError):
            admin.parent.rmdir()
        record = ws.record
        if record.preserved is None and not record.named and not record.changed:
            branch = await ws.source.branch(ws.branch)
            if branch is not None and branch.sha in (record.base, record.head) and not branch.checked_out:
                await ws.source.move({f"refs/heads/{ws.branch}": (None, branch.sha)})

    async def _put_branch(self, ws: Workspace, commit: str, old: str | None) -> None:
        if old != commit:
            await ws.source.move({f"refs/heads/{ws.branch}": (commit, old or "")})

    def _git(self, ws: Workspace) -> Git:
        return replace(ws.source.git.at(admin_of(ws)), common=ws.source.common)


def admin_of(ws: Workspace) -> Path:
    """The work tree's own part of the shared git directory."""
    name = hashlib.sha256(os.fsencode(ws.path)).hexdigest()[:8]
    return ws.source.common / "worktrees" / f"pilot-{ws.record.execution}-{name}"
