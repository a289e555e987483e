"""`clone`: the agent has a repository of its own, whose git directory pilot's git never enters."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line
from pilot.runner.gitdir import Layout, disarm, put_state, read_state
from pilot.runner.space import Workspace
from pilot.runner.tree import Tree


class CloneMode:
    """A clone made by hand: it borrows all objects (an alternates file, as `git clone --shared` writes one).

    So it costs what its files cost, however long the history is. Nothing is ever pruned from where it borrows
    while it lives: pilot's own repository goes with it, and the base is on a branch of the project's.
    """

    def tree(self, ws: Workspace) -> Tree:
        """See `Mode.tree`."""
        git = ws.pristine.git.at(ws.pristine.path, work_tree=ws.path, index=ws.home / "index")
        return Tree(ws.path, git, ws.home / "exclude")

    async def make(self, ws: Workspace, files: str, head: str) -> None:
        """See `Mode.make`."""
        ws.path.mkdir(parents=True)
        await ws.tree.check_out(files)
        await asyncio.to_thread(self._arrange, ws, head)

    def intact(self, ws: Workspace) -> bool:
        """See `Mode.intact`. Without its git directory it still is: the files are the work."""
        return ws.path.is_dir() and not ws.path.is_symlink() and (ws.home / "index").exists()

    async def head(self, ws: Workspace) -> tuple[str, list[str]]:
        """See `Mode.head`."""
        if not self.intact(ws):
            raise WorkspaceError(FailureClass.CONFLICT, f"the agent's checkout {ws.path} is gone")
        await asyncio.to_thread(disarm, ws.path, self._layout(ws))
        if read_state(ws.path) == (ws.record.head, self._refs(ws, ws.record.head)):
            return ws.record.head, []
        agent = "refs/pilot/agent"
        try:
            await ws.pristine.git.run(
                "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance", "--prune",
                "--upload-pack=git-upload-pack", "--", str(ws.path / ".git"),
                f"+HEAD:{agent}/HEAD", f"+refs/heads/*:{agent}/heads/*", f"+refs/stash*:{agent}/stash*",
            )  # fmt: skip
        except WorkspaceError as error:
            if error.failure is FailureClass.INFRA and "did not end" in str(error):
                raise
            return ws.record.head, [f"the agent's commits can't be read, only its files are taken ({error})"]
        return await self._chosen(ws, await ws.pristine.refs("agent/"))

    async def settle(self, ws: Workspace, head: str) -> None:
        """See `Mode.settle`."""
        await asyncio.to_thread(self._arrange, ws, head)

    async def come_back(self, ws: Workspace) -> None:
        """See `Mode.come_back`: one whose removal has begun is not fit to go on in, and made anew."""

    async def remove(self, ws: Workspace) -> None:
        """See `Mode.remove`: there is nothing outside of its folder."""

    async def _chosen(self, ws: Workspace, refs: dict[str, str]) -> tuple[str, list[str]]:
        """The commit that is the agent's result, of all that it has; the others go on as its branches."""
        own = {name.removeprefix("agent/"): sha for name, sha in refs.items()}
        head = own.pop("HEAD", ws.record.head)
        branches = {name: sha for name, sha in own.items() if name.startswith("heads/") or name == "stash"}
        tip = branches.pop(f"heads/{ws.branch}", head)
        notes = []
        if head == ws.record.head and tip != head:
            # It committed on its branch and then stood back where it began.
            if not (await ws.tree.changes()).any:
                await ws.tree.check_out(tip)
                head = tip
            else:
                branches[f"heads/{ws.branch}-left"] = tip
        for name, sha in branches.items():
            full = f"refs/{name}"
            if ws.record.refs.get(full) != sha:
                notes.append(
                    f"{one_line(name.removeprefix('heads/'))} is another branch of the agent's; it is not taken"
                )
        kept = {name: sha for name, sha in ws.record.refs.items() if name.startswith(("refs/remotes/", "refs/tags/"))}
        ws.record.refs = kept | {f"refs/{name}": sha for name, sha in branches.items()}
        return head, notes

    def _arrange(self, ws: Workspace, head: str) -> None:
        disarm(ws.path, self._layout(ws))
        put_state(ws.path, ws.branch, head, ws.record.refs, ws.home / "index")

    def _layout(self, ws: Workspace) -> Layout:
        layout = ws.pristine.layout
        return replace(
            layout,
            objects=ws.pristine.objects,
            exclude=layout.exclude + _bytes(ws.home / "exclude"),
            author=ws.pristine.git.author,
        )

    def _refs(self, ws: Workspace, head: str) -> dict[str, str]:
        return {**ws.record.refs, f"refs/heads/{ws.branch}": head}


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
