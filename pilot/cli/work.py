"""`pilot serve`, `run` and `enqueue`: work gets in and gets done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pilot.cli import arguments
from pilot.cli.codes import exit_code
from pilot.cli.session import Session, session_of
from pilot.cli.show import Json
from pilot.domain.errors import UsageError
from pilot.domain.text import for_terminal, one_line

if TYPE_CHECKING:
    from pilot.app.direct import Progress
    from pilot.domain.execution import Execution

Project = Annotated[
    str | None,
    typer.Option("--project", "-p", metavar="PROJECT", help="By name or path; default: where one stands."),
]
TaskId = Annotated[str | None, typer.Option("--task-id", metavar="R", help="The task's name outside, such as GH-46.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (serve, run, enqueue):
        app.command()(command)


def serve(
    context: typer.Context,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = None,
) -> None:
    """Run the dispatcher and the HTTP server until SIGTERM; what runs then is drained."""
    import asyncio

    from pilot import app

    session = session_of(context)
    loaded = session.loaded()
    _logs(session, "INFO")
    asyncio.run(app.serve(loaded, host=host, port=port))


def run(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT|-]", help="What to do; `-` reads stdin.", show_default=False)
    ] = None,
    project: Project = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="F", help="Read the prompt from a file.")] = None,
    backend: Annotated[str | None, typer.Option("--backend", metavar="B", help="This agent or profile.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="This model.")] = None,
    task_id: TaskId = None,
    branch: Annotated[str | None, typer.Option("--branch", metavar="B", help="Work on this branch.")] = None,
    base: Annotated[str | None, typer.Option("--base", metavar="B", help="Start from this branch.")] = None,
    publish: Annotated[
        str | None, typer.Option("--publish", metavar="HOW", help="none, branch or pull_request.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="S", help="For the attempt: seconds, or 10m, 1h.")
    ] = None,
    attempts: Annotated[int, typer.Option("--attempts", metavar="N", min=1, help="Try so often.")] = 1,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Give up with 75 when the project is busy.")] = False,
    json: Json = False,
) -> int:
    """Do a task here and now, with live progress, when its project's turn comes."""
    import asyncio

    from pilot import app
    from pilot.dispatch.intake import TaskRequest
    from pilot.store.documents import execution_document

    session = session_of(context)
    if publish not in (None, "none", "branch", "pull_request"):
        raise UsageError(f"--publish {publish!r}: there are none, branch, pull_request")
    task = TaskRequest(
        prompt=arguments.prompt_from(prompt, file),
        source="cli",
        task_id=task_id,
        backend=backend,
        model=model,
        branch=branch,
        base=base,
        publish=publish,
        timeout=None if timeout is None else arguments.milliseconds(timeout, "--timeout"),
        max_attempts=attempts,
    )
    loaded = session.loaded()
    _logs(session, "WARNING")
    request = app.DirectRequest(task=task, project=project, wait=not no_wait)
    execution = asyncio.run(app.run_direct(loaded, request, _Progress(session).show))
    if json:
        session.ui.document(execution_document(execution))
    else:
        _ended(session, execution)
    return exit_code(execution)


class _Progress:
    """Live progress on stderr; stdout stays for the result."""

    def __init__(self, session: Session) -> None:
        self._ui = session.ui

    def show(self, progress: Progress) -> None:
        """One thing that happened."""
        match progress.kind:
            case "queued":
                self._ui.note(f"execution {progress.text}")
            case "waiting":
                self._ui.note(f"waiting: {progress.text}")
            case "phase":
                self._ui.note(f"• {progress.text}")
            case _ if progress.output == "raw":
                pass
            case _:
                mark = {"tool": "▸ ", "pilot": "• ", "result": "  "}.get(progress.output or "", "")
                for line in for_terminal(progress.text).rstrip("\n").split("\n"):
                    self._ui.note(mark + line)


def _ended(session: Session, execution: Execution) -> None:
    """What came of it, in a few lines."""
    outcome = f" ({execution.outcome})" if execution.outcome else ""
    session.ui.line(f"{execution.id} {execution.status}{outcome}", "bold")
    session.ui.fields(
        [
            ("reason", execution.reason),
            ("branch", execution.branch),
            ("commit", execution.head_sha),
            ("pull request", execution.pr_url),
            ("workspace", execution.workspace if execution.status != "completed" else None),
        ]
    )
    if execution.status == "needs_human":
        session.ui.line(f'  pilot answer {execution.id} "…"', "dim")
    session.ui.line(f"  pilot show {execution.id}", "dim")


def enqueue(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to do; `-` reads stdin.")],
    project: Project = None,
    task_id: TaskId = None,
    title: Annotated[str | None, typer.Option("--title", help="Default: the prompt's first line.")] = None,
    kind: Annotated[
        str, typer.Option("--kind", metavar="KIND", help="build, test, deploy, code, content or plan.")
    ] = "code",
    priority: Annotated[
        int, typer.Option("--priority", metavar="N", min=0, max=1_000_000, help="Lower goes first.")
    ] = 2,
    lane: Annotated[int, typer.Option("--lane", metavar="N", min=0, max=1_000_000, help="Worker speciality.")] = 0,
    after: Annotated[
        list[int] | None,
        typer.Option("--after", metavar="ID", min=1, help="Not before this one completed; may be repeated."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="K", help="The same key is the same request, for ever.")
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="L", help="May be repeated.")] = None,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Not before: 2026-12-31T18:00:00Z, or 2h from now.")
    ] = None,
    source: Annotated[str, typer.Option("--source", metavar="S", help="Where the task comes from.")] = "cli",
    payload: Annotated[str | None, typer.Option("--payload", metavar="JSON", help="Anything to keep with it.")] = None,
    json: Json = False,
) -> None:
    """Put a task into its project's queue; prints the execution's id."""
    import asyncio

    from pilot import app
    from pilot.dispatch.intake import TaskRequest

    session = session_of(context)
    request = TaskRequest(
        prompt=arguments.prompt_from(prompt, None),
        title=title,
        task_id=task_id,
        source=source,
        kind=arguments.kind_of(kind),
        labels=tuple(label or ()),
        priority=priority,
        lane=lane,
        after=tuple(after or ()),
        payload=None if payload is None else arguments.json_value(payload, "--payload"),
        available_at=None if at is None else arguments.moment(at, session.now()),
        idempotency_key=key,
    )
    loaded = session.loaded()
    _logs(session, "WARNING")
    new = asyncio.run(app.enqueue(loaded, request, project))
    if json:
        session.ui.document({"id": new.id, "status": str(new.status), "duplicate": new.duplicate})
        return
    session.ui.line(str(new.id))
    if new.duplicate:
        session.ui.note(f"{one_line(task_id or key or 'this task')} is execution {new.id} already: {new.status}")


def _logs(session: Session, level: str) -> None:
    from pilot.telemetry.logs import configure

    configure(level="DEBUG" if session.debug else level)
