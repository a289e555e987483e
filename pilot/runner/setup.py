"""What a project does once in each new workspace, before anybody works there."""

from __future__ import annotations

from collections.abc import Sequence

from pilot.domain.agent import Sandbox
from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line
from pilot.runner.record import Recorder
from pilot.runner.shell import run_shell
from pilot.runner.talk import Talk
from pilot.runner.workspace import Workspace

SETUP_TIMEOUT = 1800.0


async def set_up(
    commands: Sequence[str], ws: Workspace, talk: Talk, recorder: Recorder, sandbox: Sandbox | None
) -> None:
    """Run the operator's commands in order. Raises `WorkspaceError`, class `infra`, for the first that fails."""
    for command in commands:
        await recorder.say(f"set-up: {one_line(command, 500)}")
        ran = await run_shell(
            command,
            cwd=ws.path,
            env=talk.environment,
            marker=talk.marker,
            timeout=min(SETUP_TIMEOUT, talk.time_left),
            emit=recorder,
            sandbox=sandbox,
        )
        if ran.timed_out or ran.exit_code:
            how = "took too long" if ran.timed_out else f"ended with exit code {ran.exit_code}"
            raise WorkspaceError(FailureClass.INFRA, f"set-up {one_line(command)!r} {how}", ran.tail)
