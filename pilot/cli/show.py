"""`pilot show` and `pilot why`: one execution, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from pilot.cli.arguments import id_argument, json_option
from pilot.cli.session import Session, known
from pilot.cli.ui import ago, lasted
from pilot.domain.errors import NotFound
from pilot.domain.text import for_terminal, one_line, tail

if TYPE_CHECKING:
    from pilot.domain.delivery import Refusal
    from pilot.domain.execution import Execution
    from pilot.domain.ports import Why
    from pilot.store.history import Asked, Attempt, History


@click.command()
@id_argument
@json_option
@click.pass_obj
def show(session: Session, id: int, json: bool) -> None:
    """One execution: state, attempts, gates, question."""
    found = _there_of(session, id) if session.server else _here_of(session, id)
    execution, document, attempts, questions, reasons = found
    if json:
        session.ui.document(document)
        return
    _head(session, execution, document["after"])
    _body(session, execution)
    _attempts(session, attempts)
    _questions(session, questions)
    if reasons is not None:
        session.ui.line()
        _reasons(session, reasons)
        _hints(session, execution, questions)


Found = tuple["Execution", dict[str, Any], "list[Attempt]", "list[Asked]", "Why | None"]


def _here_of(session: Session, id: int) -> Found:
    from pilot.store.glance import answer

    with session.history() as history:
        execution = known(answer(history.execution(id)), id)
        attempts, questions = answer(history.attempts(id)), answer(history.questions(id))
        reasons = answer(history.why(id, session.now()))
        return execution, answer(history.document(execution)), attempts, questions, reasons


def _there_of(session: Session, id: int) -> Found:
    from pilot.cli import remote
    from pilot.client.documents import execution_of

    document, reasons, told = session.away(lambda client: remote.shown(client, id))
    attempts, questions = ([], []) if told is None else remote.attempts_of(told)
    execution = replace(execution_of(document), body=str((told or {}).get("body") or ""))
    return execution, document, attempts, questions, remote.why_of(reasons)


def _head(session: Session, execution: Execution, after: Sequence[int]) -> None:
    now = session.now()
    times = [f"queued {ago(execution.created_at, now)} ago"]
    if execution.started_at is not None:
        times.append(f"started {ago(execution.started_at, now)} ago")
    if execution.finished_at is not None:
        took = execution.finished_at - (execution.started_at or execution.finished_at)
        times.append(f"ended {ago(execution.finished_at, now)} ago, took {lasted(took)}")
    outcome = f", {execution.outcome}" if execution.outcome not in (None, str(execution.status)) else ""
    tokens = [f"{n:,} {name}" for n, name in _tokens(execution) if n is not None]
    if execution.cost_usd is not None:
        tokens.append(f"${execution.cost_usd:.4f}")
    session.ui.line(f"{execution.id}  {one_line(execution.task_id)}  {one_line(execution.title)}", "bold")
    session.ui.fields(
        [
            ("status", f"{execution.status}{outcome}"),
            ("reason", execution.reason),
            ("error", execution.error if execution.error != execution.reason else None),
            ("project", f"{execution.project} ({execution.project_path})"),
            ("times", ", ".join(times)),
            ("after", ", ".join(map(str, after))),
            ("source", f"{execution.source}, kind {execution.kind}, priority {execution.priority}"),
            ("labels", ", ".join(execution.labels)),
            ("agent", _agent(execution)),
            ("session", execution.session_id),
            ("attempts", f"{execution.attempt} made, {execution.failures} of {execution.max_attempts} failed"),
            ("branch", execution.branch),
            ("commit", execution.head_sha),
            ("delivery", _delivery(execution)),
            ("files", _files(execution)),
            ("callback", execution.callback_url),
            ("workspace", _workspace(execution)),
            ("usage", ", ".join(tokens)),
            ("parent", str(execution.parent) if execution.parent else None),
        ]
    )


def _agent(execution: Execution) -> str:
    """Who does it, with which model, by which rule, and who else may."""
    rule = one_line(str(execution.options.get("route") or ""))
    parts = [
        execution.backend,
        f"model {one_line(execution.model)}" if execution.model else "",
        f"by {rule}" if rule and rule != "asked for" else rule,
    ]
    chain = f"; else {', '.join(execution.fallback)}" if execution.fallback else ""
    return ", ".join(part for part in parts if part) + chain


def _workspace(execution: Execution) -> str | None:
    """Where it is, as far as it can be known: on another machine's disk it is as it was left."""
    path = execution.workspace
    if path is None or Path(path).exists():
        return path
    if execution.place is None or execution.status in ("completed", "cancelled"):
        return None
    return f"{path} on {execution.place}"


def _tokens(execution: Execution) -> list[tuple[int | None, str]]:
    return [(execution.input_tokens, "tokens in"), (execution.output_tokens, "tokens out")]


def _delivery(execution: Execution) -> str | None:
    parts = [execution.delivery if execution.delivery != "none" else None, execution.pr_url]
    checks = f"checks {execution.checks}" if execution.checks != "none" else None
    return ", ".join(part for part in (*parts, checks) if part) or None


def _files(execution: Execution) -> str | None:
    """What came with the result, or where it was taken from."""
    told = [
        f"{one_line(str(one.get('name')))} ({one.get('size') or 0:,} bytes, sha256 {one['sha256']})"
        if "sha256" in one
        else f"as of {one['execution']}"
        for one in execution.artifacts or ()
        if isinstance(one, dict) and ("sha256" in one or "execution" in one)
    ]
    return "; ".join(told) or None


def _body(session: Session, execution: Execution) -> None:
    if execution.body.strip() and execution.body.strip() != execution.title.strip():
        session.ui.line()
        lines = execution.body.strip().splitlines()
        for line in lines[:20]:
            session.ui.line(f"  | {line}")
        if len(lines) > 20:
            session.ui.line(f"  | … {len(lines) - 20} more lines", "dim")


def _attempts(session: Session, attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        end = attempt.finished_at or session.now()
        state = attempt.outcome or f"running: {attempt.phase or 'starts'}"
        account = f" (account {attempt.account})" if attempt.account else ""
        session.ui.line()
        session.ui.line(
            f"attempt {attempt.number}: {state}, {lasted(end - attempt.started_at)} with {attempt.backend}{account} "
            f"on {attempt.node}",
            "bold",
        )
        cost = f"${attempt.cost_usd:.4f}" if attempt.cost_usd is not None else None
        failure = f"{attempt.failure_class}: {attempt.detail}" if attempt.failure_class else attempt.detail
        session.ui.fields(
            [
                ("sandbox", attempt.sandbox),
                ("cost", cost),
                ("failure", failure if attempt.outcome == "failed" else None),
                ("evidence", tail(attempt.excerpt, 1000) if attempt.excerpt else None),
                ("said", tail(attempt.summary.strip(), 1000) if attempt.summary else None),
            ]
        )
        for gate in attempt.gates:
            _gate(session, gate)


def _gate(session: Session, gate: dict[str, Any]) -> None:
    passed = gate.get("exit_code") == 0 and not gate.get("timed_out")
    mark = "ok" if passed else "timed out" if gate.get("timed_out") else f"exit {gate.get('exit_code')}"
    optional = "" if gate.get("required", True) else " (not required)"
    took = lasted(int(gate.get("duration") or 0))
    session.ui.line(
        f"  gate {one_line(str(gate.get('name')))}: {mark}, {took}{optional}  {one_line(str(gate.get('command')))}",
        "" if passed else "red",
    )
    if not passed and gate.get("tail"):
        for line in tail(str(gate["tail"]), 1000).splitlines()[-10:]:
            session.ui.line(f"    | {line}")


def _questions(session: Session, questions: Sequence[Asked]) -> None:
    for asked in questions:
        session.ui.line()
        session.ui.line("question" if asked.answered_at is None else "question, answered", "bold")
        session.ui.fields(
            [
                ("asked", asked.text),
                ("options", "; ".join(one_line(option) for option in asked.options)),
                ("default", asked.preset),
                ("answer", f"{asked.answer} ({asked.answered_by})" if asked.answer is not None else None),
            ]
        )


def _reasons(session: Session, reasons: Why) -> None:
    if reasons.position is not None:
        session.ui.line(f"position {reasons.position} in its project's queue")
    for hold in reasons.holds:
        session.ui.line(f"{hold.kind}: {hold.detail}", "yellow")
    session.ui.line(reasons.next)


def _hints(session: Session, execution: Execution, questions: Sequence[Asked]) -> None:
    hints = []
    unanswered = [asked for asked in questions if asked.answered_at is None]
    if execution.status == "needs_human":
        offered = unanswered[-1].options if unanswered else ()
        hints.append(f"pilot answer {execution.id} {pasted(offered[0] if offered else '…')}")
        hints.append(f"pilot cancel {execution.id}")
    elif execution.status in ("failed", "cancelled"):
        hints.append(f"pilot retry {execution.id}")
    if execution.attempt:
        hints.append(f"pilot logs {execution.id}{' -f' if execution.status == 'running' else ''}")
    if hints:
        session.ui.line("  " + "\n  ".join(hints), "dim")


def pasted(words: str) -> str:
    """An agent's words as an argument that a shell takes for these words, whoever pastes it."""
    line = one_line(for_terminal(words))
    return quote(line) if set(line) & set('"$`\\!') else f'"{line}"'


@click.command()
@click.argument("id", metavar="ID|TASK")
@json_option
@click.pass_obj
def why(session: Session, id: str, json: bool) -> None:
    """Why an execution is not running, and what happens next.

    TASK: a task id such as GH-46; of that the newest execution, or why there is none.
    """
    from pilot.store.documents import why_document
    from pilot.store.glance import answer

    if session.server:
        _why_there(session, id, json=json)
        return
    with session.history() as history:
        execution = _meant(history, id)
        refusals = answer(history.refused(id if execution is None else execution.task_id))
        reasons = None if execution is None else answer(history.why(execution.id, session.now()))
    if execution is None or reasons is None:
        _refused_only(session, id, refusals, json=json)
        return
    later = [refusal for refusal in refusals if refusal.at >= execution.created_at]
    if json:
        session.ui.document(why_document(reasons) | ({"refused": list(map(_refusal, later))} if later else {}))
        return
    session.ui.line(f"{execution.id}  {one_line(execution.task_id)}  {execution.status}", "bold")
    session.ui.line(f"agent {_agent(execution)}")
    _reasons(session, reasons)
    for refusal in later:
        session.ui.line(f"refused since then: {_refusal(refusal)['detail']}", "yellow")


def _why_there(session: Session, named: str, *, json: bool) -> None:
    from pilot.cli import remote

    execution, document = session.away(lambda client: remote.reasons(client, named))
    if json:
        session.ui.document(document)
        return
    session.ui.line(f"{execution.id}  {one_line(execution.task_id)}  {execution.status}", "bold")
    session.ui.line(f"agent {_agent(execution)}")
    _reasons(session, remote.why_of(document))


def _meant(history: History, named: str) -> Execution | None:
    """By its id, else the newest of the task of that name. Raises `NotFound` for an id that there is not."""
    from pilot.store.glance import answer

    number = int(named) if named.isascii() and named.isdecimal() and len(named) < 19 else None
    if number is not None and (found := answer(history.execution(number))) is not None:
        return found
    executions, _ = answer(history.executions(task_id=named, limit=100))
    if executions:
        return max(executions, key=lambda execution: execution.id)
    if number is not None:
        known(None, number)
    return None


def _refused_only(session: Session, named: str, refusals: Sequence[Refusal], *, json: bool) -> None:
    """Nothing was made of a request; raises `NotFound` where there was none."""
    if not refusals:
        raise NotFound(
            f"no execution of a task {one_line(named, 80)!r}, and no request for it that was refused; "
            "`pilot list --all` shows what there is, `pilot status` how the sources do"
        )
    following = "Nothing: who may has to ask for it (again), by the same label, command or message."
    if json:
        session.ui.document(
            {"id": None, "status": None, "position": None, "holds": list(map(_refusal, refusals)), "next": following}
        )
        return
    session.ui.line(f"{one_line(named)}  was asked for, and refused", "bold")
    for refusal in refusals:
        session.ui.line(f"refused: {_refusal(refusal)['detail']}", "yellow")
    session.ui.line(following)


def _refusal(refusal: Refusal) -> dict[str, Any]:
    """As a hold."""
    from pilot.store.documents import moment

    where = f" ({one_line(refusal.url)})" if refusal.url else ""
    who = one_line(refusal.actor, 80) or "somebody"
    detail = f"{one_line(refusal.source, 40)}, {who} at {moment(refusal.at)}: {one_line(refusal.reason, 300)}{where}"
    return {"kind": "refused", "detail": detail, "execution": None, "until": None}
