"""The bare repository beside a workspace, which only pilot writes, and what pilot remembers of finished branches."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pilot.runner.git import Git
from pilot.runner.gitdir import Layout, make_bare


@dataclass(frozen=True, slots=True)
class Pristine:
    """One for each workspace, and gone with it. It borrows the project's objects; no agent may write there.

    Refs: `refs/pilot/base` and `head` (where the work begins and how far it is), `wip` and `wip-head` (kept aside,
    with and without what was not committed), `joined` (what the steps before have made, in one), `agent/…` (what
    the agent's clone has).
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


@dataclass(frozen=True, slots=True)
class Left:
    """Where pilot left branches, a file for each: by that it knows them again when their task comes back.

    Files and not refs, since a repository may forget the commits of a branch that somebody deleted.
    """

    folder: Path

    def note(self, sha: str, branch: str, task_id: str) -> None:
        """A branch gets to `sha` for that task. To be written before it does."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.folder / f".{sha}.{secrets.token_hex(4)}"
        part.write_text(json.dumps({"branch": branch, "task": task_id}))
        part.replace(self.folder / sha)

    def forget(self, sha: str | None, branch: str) -> None:
        """The branch went on from there."""
        if sha is not None and self.owner(sha, branch) is not None:
            (self.folder / sha).unlink(missing_ok=True)

    def owner(self, sha: str, branch: str) -> str | None:
        """The task for which pilot left the branch there; None when it did not."""
        try:
            found = json.loads((self.folder / sha).read_text())
            return str(found["task"]) if found["branch"] == branch else None
        except (OSError, ValueError, TypeError, KeyError):
            return None
