"""Attempts whose task is a pointer: the machine's own backend, in the runner, with and without a sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pilot.backends import build
from pilot.config.executor import ExecutorSettings, SandboxSettings
from pilot.domain.agent import Backend, Sandbox
from pilot.domain.execution import Execution
from pilot.domain.outcome import Outcome
from pilot.domain.pointer import MACHINE
from pilot.domain.work import Made
from pilot.runner.runner import AttemptRunner
from pilot.runner.sandbox import make_sandbox
from pilot.runner.workspace import Workspace
from tests.core.cell import bwrap
from tests.core.worksite import ENVIRON, STORE, Scripted, Site, execution


def runner(
    s: Site, backend: Backend | None = None, made: Sequence[Made] = (), *, confined: bool = False
) -> AttemptRunner:
    """The runner as the composition root makes it; `confined`: in this machine's sandbox."""

    async def known(_: Execution) -> Sequence[Made]:
        return made

    def confine(one: Execution, _: ExecutorSettings, ws: Workspace) -> Sandbox | None:
        if not confined:
            return None
        return make_sandbox(
            bwrap(), state_dir=s.state, project_id=one.project_id, workspace=ws, paths=SandboxSettings()
        )

    return AttemptRunner(
        project=lambda _: s.project,
        backend=lambda one: backend or build(one.backend, s.executor),
        executor=lambda _: s.executor,
        workspaces=s.workspaces,
        journal=s.notebook,
        state_dir=s.state,
        store_id=STORE,
        environ=ENVIRON,
        confine=confine,
        made=known,
    )


def step(payload: str, **more: Any) -> Execution:
    """An execution for the machine."""
    return execution(**{"payload": payload, "backend": MACHINE, "plan": "p", "task_id": "p::step"} | more)


async def does(s: Site, payload: str, *, confined: bool = False, **more: Any) -> Outcome:
    """One attempt of it."""
    return await runner(s, confined=confined)(step(payload, **more))


async def prompted(s: Site, payload: str, script: str = "cat $1", **more: Any) -> Outcome:
    """One attempt of an agent's, that says what it is told."""
    s.backend = Scripted([script])
    return await runner(s, s.backend)(step(payload, **{"backend": "fake"} | more))


def sha1(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def script(path: Path, text: str, mode: int = 0o755) -> Path:
    """A file of the repository."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path
