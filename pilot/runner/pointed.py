"""What a task's payload points to in its workspace: the text of a prompt, read once and kept."""

from __future__ import annotations

from pilot.domain.errors import UsageError, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import FailureClass
from pilot.domain.payload import Payload, Work
from pilot.domain.task import Kind
from pilot.runner.confined import check_sha1, read_confined
from pilot.runner.files import read_regular
from pilot.runner.space import Workspace

PROMPT_LIMIT = 1 << 20
"""Bytes of a file that is a prompt."""


def read_task(ws: Workspace, execution: Execution, payload: Payload | None) -> str:
    """The task's whole text, with what its payload says or points to.

    Raises `WorkspaceError`, class `conflict`. What was read the first time stands for all attempts: the agent may
    have changed the file since. Blocking.
    """
    if payload is None or payload.work is not Work.PROMPT:
        return execution.body
    if payload.path is None:
        return execution.body if payload.words in execution.body else _joined(execution.body, payload.words)
    memo = ws.home / f"prompt-{execution.id}"
    data = read_regular(memo, PROMPT_LIMIT)
    if data is None:
        try:
            data = read_confined(ws.path, payload.path, PROMPT_LIMIT)
            check_sha1(payload.path, data, payload.sha1)
        except UsageError as error:
            raise WorkspaceError(FailureClass.CONFLICT, str(error)) from error
        memo.write_bytes(data)
    return _joined(execution.body, data.decode(errors="replace"))


def is_test(execution: Execution, payload: Payload | None) -> bool:
    """Whether it only looks: it delivers a verdict, and no files."""
    return payload is not None and (payload.work is Work.TEST or execution.kind == Kind.TEST)


def _joined(body: str, text: str) -> str:
    return f"{body.rstrip()}\n\n{text}" if body.strip() else text
