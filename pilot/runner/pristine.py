"""The bare repository that only pilot writes: where an agent's commits arrive, and what pilot last saw of a branch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilot.runner.git import Git
from pilot.runner.gitdir import Layout, make_bare


@dataclass(frozen=True, slots=True)
class Pristine:
    """One per project. It borrows the project's objects, and no agent ever gets to see it as a place to write.

    Refs: `refs/pilot/{base,head,wip}/KEY` of each execution that has a workspace, `refs/pilot/agent/KEY/…` what
    its agent had, `refs/pilot/seen/…` where pilot left a finished branch.
    """

    path: Path
    git: Git
    layout: Layout

    @property
    def objects(self) -> Path:
        """Where it keeps its objects: clones borrow from here."""
        return self.path / "objects"

    def ensure(self) -> None:
        """Make it, or bring what it takes over from the project up to date."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_bare(self.path, self.layout)

    async def refs(self, *prefixes: str) -> dict[str, str]:
        """Refs under these prefixes, by what follows `refs/pilot/`."""
        done = await self.git.run(
            "for-each-ref", "--format=%(objectname) %(refname)", *(f"refs/pilot/{prefix}" for prefix in prefixes)
        )
        lines = (line.partition(" ") for line in done.text.splitlines())
        return {name.removeprefix("refs/pilot/"): sha for sha, _, name in lines}

    async def put(self, refs: Mapping[str, str | None]) -> None:
        """Set refs (by what follows `refs/pilot/`), or remove them (None), in one transaction."""
        await put(self.git, {f"refs/pilot/{name}": (sha, None) for name, sha in refs.items()})


async def put(git: Git, changes: Mapping[str, tuple[str | None, str | None]]) -> None:
    """Change refs in one transaction: name to (new, old). New None removes, old None asks nothing, "" wants it absent.

    Raises `WorkspaceError`, class `conflict`, when one of them is not as expected; then none is changed.
    """
    lines = []
    for name, (new, old) in changes.items():
        if new is None:
            lines.append(f"delete {name}" + (f" {old}" if old else ""))
        elif old is None:
            lines.append(f"update {name} {new}")
        else:
            lines.append(f"update {name} {new} {old or '0' * len(new)}")
    if lines:
        await git.run("update-ref", "--no-deref", "--stdin", stdin="\n".join([*lines, ""]).encode())


def seen_ref(task_id: str, branch: str) -> str:
    """Where pilot notes how it left this task's branch."""
    return "seen/" + hashlib.sha256(f"{task_id}\n{branch}".encode(errors="replace")).hexdigest()[:32]
