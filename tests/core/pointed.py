"""Attempts whose task is a pointer: the machine's own backend, in the runner, with and without a sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pilot.backends import build
from pilot.backends.payload import PayloadBackend
from pilot.config.executor import ExecutorSettings, SandboxSettings
from pilot.domain.agent import AgentRequest, Backend, Sandbox
from pilot.domain.execution import Execution
from pilot.domain.outcome import Outcome
from pilot.domain.payload import parse_payload
from pilot.domain.pointer import MACHINE
from pilot.domain.work import Made
from pilot.runner.record import Recorder
from pilot.runner.runner import AttemptRunner
from pilot.runner.sandbox import make_sandbox
from pilot.runner.workspace import Workspace
from tests.core.cell import bwrap
from tests.core.worksite import ENVIRON, STORE, Notebook, Scripted, Site, execution


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


async def alone(top: Path, payload: str, *, allow: Sequence[str] = ("*",), kind: str = "code") -> tuple[Outcome, str]:
    """The same by the backend alone, in any folder: the outcome, and all that was said."""
    notebook = Notebook()
    request = AgentRequest(
        prompt="p",
        workspace=str(top),
        execution=1,
        attempt=1,
        project="api",
        task_id="t",
        environment={"PATH": ENVIRON["PATH"]},
        marker="m",
        timeout=30.0,
        kind=kind,
        payload=parse_payload(payload),
        allow_commands=tuple(allow),
    )
    async with Recorder(notebook, step(payload)) as emit:
        outcome = await PayloadBackend().execute(request, emit)
    return outcome, notebook.text()


def folder(top: Path, files: Mapping[str, str]) -> Path:
    """A workspace as far as a program sees one."""
    for name, text in files.items():
        script(top / name, text, 0o644)
    return top
