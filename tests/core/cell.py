"""An attempt's sandbox for tests: a real workspace, a home with secrets around it, and a hand inside."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pilot.config.executor import SandboxSettings
from pilot.domain.agent import Places
from pilot.runner.process import Process, running
from pilot.runner.sandbox import Bubblewrap, make_sandbox
from pilot.runner.sandbox_machine import Bwrap, probe
from pilot.runner.workspace import Workspace
from tests.core.worksite import STORE, Site, execution, site

MARKER = f"cell{STORE}/1"
"""Of what runs in a cell of this test process."""

PATH = "/usr/local/bin:/usr/bin:/bin"


@functools.cache
def bwrap() -> Bwrap:
    """This machine's bubblewrap; a machine for tests has one (`make test` sees to it)."""
    found = probe(os.environ)
    assert isinstance(found, Bwrap), f"{found.why}: {found.remedy}"
    return found


@dataclass
class Cell:
    """`home` is the user's own home, which agents name as theirs."""

    site: Site
    workspace: Workspace
    sandbox: Bubblewrap
    env: dict[str, str]
    places: Places = field(default_factory=Places)

    @property
    def home(self) -> Path:
        return Path(self.env["HOME"])

    @property
    def path(self) -> Path:
        return self.workspace.path

    @property
    def kept(self) -> Path:
        """What the agent's home is outside."""
        return self.sandbox.folder / "home"

    @asynccontextmanager
    async def running(self, *argv: str, **more: Any) -> AsyncIterator[Process]:
        async with running(
            argv, cwd=str(self.path), env=self.env, marker=MARKER, sandbox=self.sandbox, places=self.places, **more
        ) as process:
            yield process

    async def run(self, *argv: str) -> tuple[int, str]:
        """Exit code and all that was said."""
        async with self.running(*argv) as process:
            said = [line.data.decode(errors="replace") async for line in process.lines()]
            return await process.wait(), "\n".join(said)

    async def sh(self, script: str) -> str:
        """What a script says that has to succeed."""
        code, said = await self.run("/bin/sh", "-ec", script)
        assert code == 0, said
        return said

    async def fails(self, script: str) -> str:
        """What a script says that has to fail."""
        code, said = await self.run("/bin/sh", "-c", script)
        assert code != 0, said
        return said

    async def refused(self, *commands: str) -> None:
        """Every one of these has to fail."""
        for command in commands:
            code, said = await self.run("/bin/sh", "-c", command)
            assert code != 0, f"{command}: {said}"


async def cell(
    root: Path, *, paths: SandboxSettings | None = None, id: int = 7, at: Site | None = None, **settings: Any
) -> Cell:
    """A sandbox in a new workspace of the project `api`."""
    where = at or site(root, **settings)
    home = root / "ann"
    home.mkdir(parents=True, exist_ok=True)
    workspace = await where.workspaces.prepare(where.project, execution(id=id, task_id=f"GH-{id}"))
    sandbox = make_sandbox(
        bwrap(),
        state_dir=where.state,
        project_id=1,
        workspace=workspace,
        paths=paths or SandboxSettings(),
        hidden=(root / "pilot.yaml", root / ".env"),
    )
    author = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
    }
    return Cell(where, workspace, sandbox, {"PATH": PATH, "HOME": str(home), **author})


def words(*paths: Path | str) -> str:
    """Paths for a script."""
    return shlex.join(map(str, paths))


def script(path: Path, text: str) -> Path:
    """A program of the user's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path
