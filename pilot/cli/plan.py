"""`pilot plan check / show / submit / run`: a written plan, as a check, a picture, a queue, and a thing done."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from pilot.cli.arguments import json_option
from pilot.cli.session import Session
from pilot.domain.errors import PilotError, UsageError

if TYPE_CHECKING:
    from pilot.domain.execution import Execution
    from pilot.domain.plan import Plan, PlanError

_file = click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
_project = click.option("--project", "-p", metavar="PROJECT", help="By name or path; default: where one stands.")
_key = click.option("--key", metavar="K", help="Names this submission; default: what the plan says.")
_retry = click.option("--retry", is_flag=True, help="Do again what failed, and what was cancelled because of it.")


@click.group()
def plan() -> None:
    """Run a written plan: steps that wait for each other.

    FILE is markdown (`- [ ] id=a lane=1 deps=b payload=@cmd:make test`) or JSON; `-` reads stdin.
    """


@plan.command()
@_file
@json_option
@click.pass_obj
def check(session: Session, file: str, json: bool) -> int:
    """Say everything that is wrong with a plan.

    Each problem has its line; exit code 2 when there is any.
    """
    from pilot.cli.plan_view import count
    from pilot.domain.plan import PlanError

    try:
        found = _read(file)
    except PlanError as error:
        if not json:
            raise
        session.ui.document({"ok": False, "plan": None, "steps": None, "problems": _problems(error)})
        return error.exit_code
    if json:
        session.ui.document({"ok": True, "plan": found.slug, "steps": len(found.steps), "problems": []})
    else:
        lanes = len({step.lane for step in found.steps})
        session.ui.line(f"{found.slug}: {count(len(found.steps), 'step')} in {count(lanes, 'lane')}, nothing wrong")
    return 0


@plan.command()
@_file
@_project
@click.option("--mermaid", is_flag=True, help="As a Mermaid flowchart.")
@click.option("--markdown", is_flag=True, help="As a plan in markdown, also from JSON.")
@json_option
@click.pass_obj
def show(session: Session, file: str, project: str | None, mermaid: bool, markdown: bool, json: bool) -> None:
    """Draw a plan: its steps, who waits for whom, and how each stands.

    How they stand is known once it has been submitted.
    """
    if mermaid + markdown + json > 1:
        raise UsageError("--mermaid, --markdown and --json are three ways to show it; choose one")
    from pilot.cli.plan_view import document, draw_plan

    found = _read(file)
    if markdown:
        from pilot.domain.plan_drawing import to_markdown

        session.ui.text(to_markdown(found))
        return
    rows = _standing(session, found, project)
    if mermaid:
        from pilot.domain.plan_drawing import to_mermaid

        session.ui.line(to_mermaid(found, {id: str(row.status) for id, row in rows.items()}))
    elif json:
        session.ui.document(document(found, rows))
    else:
        draw_plan(session, found, rows)


@plan.command()
@_file
@_project
@_key
@_retry
@json_option
@click.pass_obj
def submit(session: Session, file: str, project: str | None, key: str | None, retry: bool, json: bool) -> None:
    """Put all steps of a plan into the queue, or none; prints their ids.

    The same plan again changes nothing. A changed plan is another one: tick off what is done (`- [x]`).
    """
    import asyncio

    from pilot.app.plan_run import PlanRequest, submit_plan

    found = _read(file)
    if session.server:
        steps = _submit_there(session, found, project, key, retry=retry)
    else:
        request = PlanRequest(plan=found, name=_name(file), project=project, key=key, retry=retry)
        _logs(session)
        done = asyncio.run(submit_plan(session.loaded(), request))
        steps = [
            {
                "id": step.id,
                "task_id": found.task_id(step),
                "execution": new.id,
                "status": str(new.status),
                "duplicate": new.duplicate and new.id not in done.retried,
            }
            for step, new in zip(found.steps, done.steps, strict=True)
        ]
    if json:
        session.ui.document({"plan": found.slug, "steps": steps})
        return
    session.ui.table(
        ["EXECUTION", "STEP", "STATUS"], [[str(one["execution"]), one["id"], one["status"]] for one in steps], gives=1
    )
    new = sum(not one["duplicate"] for one in steps)
    session.ui.note(f"plan {found.slug}: {new} new, {len(steps) - new} there already")
    if not new and any(one["status"] in ("failed", "cancelled") for one in steps):
        session.ui.note(f"  {_again('submit', file, project, key)} --retry     does again what failed")


@plan.command()
@_file
@_project
@_key
@_retry
@click.option("--agents", metavar="N", type=click.IntRange(1, 1000), help="Steps at once; max_running is the limit.")
@json_option
@click.pass_obj
def run(
    session: Session,
    *,
    file: str,
    project: str | None,
    key: str | None,
    retry: bool,
    agents: int | None,
    json: bool,
) -> int:
    """Submit a plan and work until no step is left.

    Other nodes may do steps, too. Ctrl-C lets what runs end and leaves the rest queued; a second one ends it at once.
    Exit code 1 when a step failed, 3 when one needs a person.
    """
    import asyncio

    from pilot.app.plan_run import PlanRequest, run_plan
    from pilot.cli.plan_view import Progress, document, draw_plan, say_what_is_left

    if session.server:
        raise UsageError(
            "`pilot plan run` works on this machine (leave out --server and $PILOT_SERVER); `pilot plan submit` queues "
            "it there"
        )
    found = _read(file)
    request = PlanRequest(plan=found, name=_name(file), project=project, key=key, retry=retry, agents=agents)
    _logs(session)
    ended = asyncio.run(run_plan(session.loaded(), request, Progress(session, found).show))
    if json:
        session.ui.document(document(found, ended.steps))
    else:
        draw_plan(session, found, ended.steps)
    say_what_is_left(session, found, ended.steps, _again("run", file, project, key), interrupted=ended.interrupted)
    return _code(ended.steps.values(), interrupted=ended.interrupted)


def _read(file: str) -> Plan:
    """The plan in a file, or (`-`) from stdin. Raises `PlanError` with everything that is wrong with it."""
    from pathlib import Path

    from pilot.domain.plan import MAX_TEXT, parse_plan

    try:
        if file == "-":
            data = sys.stdin.buffer.read(MAX_TEXT + 1)
        else:
            with Path(file).open("rb") as stream:
                data = stream.read(MAX_TEXT + 1)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from None
    if len(data) > MAX_TEXT:
        raise UsageError(f"{_name(file)}: a plan may have 1 MiB at most")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{_name(file)}: not UTF-8 text") from None
    return parse_plan(text, _name(file))


def _again(verb: str, file: str, project: str | None, key: str | None) -> str:
    """The same command once more, to be pasted."""
    import shlex

    words = ["pilot", "plan", verb, "FILE" if file == "-" else file]
    words += [] if project is None else ["-p", project]
    return shlex.join(words + ([] if key is None else ["--key", key]))


def _name(file: str) -> str:
    return "stdin" if file == "-" else file


def _problems(error: PlanError) -> list[dict[str, Any]]:
    return [{"line": p.line or None, "where": error.where(p) or None, "what": p.text} for p in error.problems]


def _standing(session: Session, plan: Plan, project: str | None) -> Mapping[str, Execution]:
    """How its steps stand, by id; nothing is known of them outside of a project, unless one was named."""
    import asyncio

    from pilot.app.plan_run import plan_standing

    if session.server:
        if project is not None:
            raise UsageError(
                "`pilot plan show` looks at this machine's store; leave out -p, or --server and $PILOT_SERVER"
            )
        return {}
    try:
        loaded = session.loaded()
        if not (loaded.settings.state_dir / "pilot.db").exists() and loaded.settings.store == "sqlite":
            return {}
        rows = asyncio.run(plan_standing(loaded, plan, project))
    except PilotError:
        if project is not None:
            raise
        return {}
    by_task = {row.task_id: row for row in rows}
    return {step.id: by_task[plan.task_id(step)] for step in plan.steps if plan.task_id(step) in by_task}


def _code(rows: Any, *, interrupted: bool) -> int:
    statuses = {str(row.status) for row in rows}
    if interrupted and not statuses <= {"completed"}:
        return 130
    if statuses & {"failed", "cancelled"}:
        return 1
    return 3 if "needs_human" in statuses else 0


def _submit_there(
    session: Session, plan: Plan, project: str | None, key: str | None, *, retry: bool
) -> Sequence[dict[str, Any]]:
    """Into the queue of a server's project, which goes by its name there."""
    from pilot.domain.plan_drawing import to_markdown

    if project is None:
        raise UsageError("which project? Name it with -p, as the server calls it (`pilot status` lists them)")
    if retry:
        raise UsageError("--retry works on this machine's store; there, `pilot retry ID` does a failed step again")
    body: dict[str, Any] = {"project": project, "markdown": to_markdown(plan)}
    if key is not None:
        body["key"] = key
    steps: Sequence[dict[str, Any]] = session.away(lambda client: client.submit(body))["steps"]
    return steps


def _logs(session: Session) -> None:
    from pilot.telemetry.logs import configure

    configure(level="DEBUG" if session.debug else "WARNING")
