"""`pilot serve`, `run` and `enqueue`: work gets in and gets done."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pilot.cli import arguments
from pilot.cli.codes import exit_code
from pilot.cli.session import Session
from pilot.domain.text import for_terminal, one_line

if TYPE_CHECKING:
    from pilot.app.direct import Progress
    from pilot.dispatch.intake import TaskRequest
    from pilot.domain.execution import Enqueued, Execution

_NUMBER = click.IntRange(0, 1_000_000)
_project = click.option("--project", "-p", metavar="PROJECT", help="By name or path; default: where one stands.")
_task_id = click.option("--task-id", metavar="R", help="The task's name outside, such as GH-46.")


@click.command()
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="0: any that is free.")
@click.pass_obj
def serve(session: Session, host: str | None, port: int | None) -> None:
    """Run dispatcher and HTTP server until SIGTERM.

    What runs then may end within dispatcher.drain_timeout; a second signal interrupts it at once. SIGHUP reloads
    the configuration.
    """
    import asyncio

    from pilot.app.serve import serve as serve_until_told

    loaded = session.loaded()
    _logs(session, "INFO")
    asyncio.run(serve_until_told(loaded, host=host, port=port))


@click.command()
@click.argument("prompt", metavar="[PROMPT|-]", required=False)
@_project
@click.option("--file", metavar="F", type=click.Path(path_type=Path), help="Read the prompt from a file.")
@click.option("--backend", metavar="B", help="This agent or profile.")
@click.option("--model", metavar="M", help="This model.")
@_task_id
@click.option("--branch", metavar="B", help="Work on this branch.")
@click.option("--base", metavar="B", help="Start from this branch.")
@click.option("--publish", type=click.Choice(["none", "branch", "pull_request"]), help="What to do with it.")
@click.option("--timeout", metavar="S", help="For the attempt: seconds, or 10m, 1h.")
@click.option("--attempts", metavar="N", type=click.IntRange(1, 1000), default=1, help="Try so often.")
@click.option("--no-wait", is_flag=True, help="Give up with 75 when the project is busy.")
@arguments.json_option
@click.pass_obj
def run(
    session: Session,
    *,
    prompt: str | None,
    project: str | None,
    file: Path | None,
    backend: str | None,
    model: str | None,
    task_id: str | None,
    branch: str | None,
    base: str | None,
    publish: str | None,
    timeout: str | None,
    attempts: int,
    no_wait: bool,
    json: bool,
) -> int:
    """Do a task here and now, with live progress.

    It waits for its project's turn. Ctrl-C cancels it.
    """
    import asyncio

    from pilot.app.direct import DirectRequest, run_direct
    from pilot.dispatch.intake import TaskRequest
    from pilot.store.glance import answer

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
    request = DirectRequest(task=task, project=project, wait=not no_wait)
    execution = asyncio.run(run_direct(loaded, request, _Progress(session).show))
    if json:
        with session.history() as history:
            session.ui.document(answer(history.document(execution)))
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
    outcome = f" ({execution.outcome})" if execution.outcome not in (None, str(execution.status)) else ""
    session.ui.line(f"{execution.id} {execution.status}{outcome}", "bold")
    session.ui.fields(
        [
            ("reason", execution.reason),
            ("branch", execution.branch if execution.head_sha else None),  # made with its first commit
            ("commit", execution.head_sha),
            ("pull request", execution.pr_url),
            ("workspace", execution.workspace if execution.status != "completed" else None),
        ]
    )
    if execution.status == "needs_human":
        session.ui.line(f'  pilot answer {execution.id} "…"', "dim")
    session.ui.line(f"  pilot show {execution.id}", "dim")


@click.command()
@click.argument("prompt", metavar="PROMPT|PAYLOAD")
@_project
@_task_id
@click.option("--title", help="Default: the prompt's first line.")
@click.option("--kind", metavar="KIND", default="code", help="build, test, deploy, code, content or plan.")
@click.option("--priority", metavar="N", type=_NUMBER, default=2, show_default=True, help="Lower goes first.")
@click.option("--lane", metavar="N", type=_NUMBER, default=0, help="Worker speciality.")
@click.option("--after", metavar="ID", type=arguments.ID, multiple=True, help="Not before this completed; repeatable.")
@click.option("--key", metavar="K", help="The same key is the same request, for ever.")
@click.option("--callback", metavar="URL", help="Tell this address how it ends, or that it asks.")
@click.option("--label", "labels", metavar="L", multiple=True, help="May be repeated.")
@click.option("--at", metavar="TIME", help="Not before: 2026-12-31T18:00:00Z, or 2h from now.")
@click.option("--source", metavar="S", default="cli", help="Where the task comes from.")
@click.option("--payload", metavar="JSON", help="Anything to keep with it.")
@arguments.json_option
@click.pass_obj
def enqueue(
    session: Session,
    *,
    prompt: str,
    project: str | None,
    task_id: str | None,
    title: str | None,
    kind: str,
    priority: int,
    lane: int,
    after: tuple[int, ...],
    key: str | None,
    callback: str | None,
    labels: tuple[str, ...],
    at: str | None,
    source: str,
    payload: str | None,
    json: bool,
) -> None:
    """Put a task into its project's queue; prints its id.

    PROMPT `-` reads stdin. PAYLOAD points to what is to be done: @cmd:make test, @file:a.diff#apply, @file:t.sh#test,
    @file:task.md, @doc:LLM_TASK words. The same open task, or the same key, gives the id that stands for it.
    """
    from pilot.dispatch.intake import TaskRequest

    request = TaskRequest(
        prompt=arguments.prompt_from(prompt, None),
        title=title,
        task_id=task_id,
        source=source,
        kind=arguments.kind_of(kind),
        labels=labels,
        priority=priority,
        lane=lane,
        after=after,
        payload=None if payload is None else arguments.json_value(payload, "--payload"),
        available_at=None if at is None else arguments.moment(at, session.now()),
        idempotency_key=key,
        callback_url=callback,
    )
    new = _put_in(session, request, project)
    if json:
        session.ui.document({"id": new.id, "status": str(new.status), "duplicate": new.duplicate})
        return
    session.ui.line(str(new.id))
    if new.duplicate:
        session.ui.note(f"{one_line(task_id or key or 'this task')} is execution {new.id} already: {new.status}")


def _put_in(session: Session, request: TaskRequest, project: str | None) -> Enqueued:
    """Here, or at the server."""
    import asyncio

    from pilot.app.context import enqueue as put_in

    _logs(session, "WARNING")
    if session.server:
        from pilot.cli.remote import put_in as put_in_there

        return put_in_there(session, request, project)
    return asyncio.run(put_in(session.loaded(), request, project))


def _logs(session: Session, level: str) -> None:
    from pilot.telemetry.logs import configure

    configure(level="DEBUG" if session.debug else level)
