"""`pilot queue`: what a worker does, by hand or from a script: claim, heartbeat, complete, fail, release."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pilot.cli.arguments import id_argument, json_option, words_from
from pilot.cli.hands import claim_document, fences, on_queue, task_text, worker_name
from pilot.cli.session import Session
from pilot.domain.errors import Busy, LeaseLost, UsageError

if TYPE_CHECKING:
    from pilot.cli.hands import Queue
    from pilot.domain.execution import Execution
    from pilot.domain.outcome import Usage
    from pilot.domain.work import Artifact, Claim, Settled

INTERRUPTED = 130
_RESULTS = ("completed", "failed", "needs_human")
"""What a worker's own last word leads to, other than back into the queue."""
_LIMIT = 1 << 20
_worker = click.option("--worker", metavar="NAME", help="As whom; default: $PILOT_WORKER, else user@host.")
_fence = click.option("--fence", type=click.IntRange(0), metavar="F", help="As the claim told it; default: remembered.")
_lease = click.option(
    "--lease", type=click.FloatRange(1, 3600), default=30, show_default=True, metavar="S", help="Seconds it is held."
)
_next = click.option("--next", "more", is_flag=True, help="And claim the next one, held for 30 s.")


@click.group()
def queue() -> None:
    """Claim work, and say what came of it.

    With --server over HTTP, else on the store of this machine. What was claimed has to be renewed (heartbeat)
    before its lease ends, or it goes to somebody else.
    """


@queue.command()
@_worker
@click.option("--max", "most", type=click.IntRange(1, 100), default=1, show_default=True, metavar="N", help="So many.")
@click.option("--lane", "lanes", type=click.IntRange(0), multiple=True, metavar="N", help="Only these; repeatable.")
@click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only these; repeatable.")
@click.option("--project", "-p", "projects", multiple=True, metavar="NAME", help="Only of these; repeatable.")
@_lease
@click.option("--wait", type=click.FloatRange(0, 60), default=0, metavar="S", help="Seconds to wait for the first.")
@json_option
@click.pass_obj
def claim(
    session: Session,
    worker: str | None,
    most: int,
    lanes: tuple[int, ...],
    kinds: tuple[str, ...],
    projects: tuple[str, ...],
    lease: float,
    wait: float,
    json: bool,
) -> int:
    """Take what has waited longest. Exit code 75: there is nothing to take now."""
    from pilot.cli.arguments import kind_of
    from pilot.domain.work import Wanted

    name = worker_name(session, worker)
    wanted = Wanted(lanes=lanes, kinds=tuple(str(kind_of(kind)) for kind in kinds), projects=projects)
    claims = on_queue(session, lambda queue: queue.claim(name, max=most, wanted=wanted, lease=_ms(lease), wait=wait))
    _claimed(session, name, claims, json=json)
    if json:
        session.ui.document({"executions": [claim_document(one) for one in claims]})
    if not claims:
        session.ui.note("nothing to claim now")
        return Busy.exit_code
    return 0


@queue.command()
@id_argument
@_worker
@_fence
@_lease
@click.option("--phase", metavar="WORDS", help="What it does now, for people.")
@click.option("--follow", "-f", is_flag=True, help="Go on until it has ended, or is lost.")
@json_option
@click.pass_obj
def heartbeat(
    session: Session,
    id: int,
    worker: str | None,
    fence: int | None,
    lease: float,
    phase: str | None,
    follow: bool,
    json: bool,
) -> int:
    """Renew a lease. Exit code 130: somebody wants it ended, so stop and release it. 1: it is lost.

    With -f it renews at half the lease, until the execution has its result (exit code 0), or is lost.
    """
    import asyncio

    from pilot.domain.work import Beaten, Progress
    from pilot.store.documents import rfc3339

    name, mine = _mine(session, id, worker, fence)
    progress = Progress(facts={"phase": phase} if phase else {})

    async def beat(queue: Queue) -> Beaten | Execution:
        while True:
            pause = lease / 2
            try:
                beaten = await queue.heartbeat(id, name, mine, lease=_ms(lease), progress=progress)
            except Busy:
                if not follow:
                    raise
                pause = lease / 10
            except LeaseLost:
                now = await queue.get(id)
                if not follow or now.fence != mine or now.status not in _RESULTS:
                    raise
                return now
            else:
                if not follow or beaten.cancel_requested:
                    return beaten
            await asyncio.sleep(pause)

    if not isinstance(beaten := on_queue(session, beat), Beaten):
        return _said(session, beaten, json=json)
    if json:
        session.ui.document({"lease_until": rfc3339(beaten.lease_until), "cancel_requested": beaten.cancel_requested})
    elif beaten.cancel_requested:
        session.ui.line(f"somebody wants {id} ended: stop, then `pilot queue release {id}`")
    else:
        session.ui.line(f"{id} is held until {rfc3339(beaten.lease_until)}")
    return INTERRUPTED if beaten.cancel_requested else 0


@queue.command()
@id_argument
@_worker
@_fence
@click.option("--outcome", type=click.Choice(["done", "no_change", "question"]), help="Default: done.")
@click.option("--summary", metavar="TEXT|-", help="What was done; `-` reads stdin.")
@click.option("--artifact", "files", metavar="FILE|NAME=FILE", multiple=True, help="Comes with it; repeatable.")
@click.option("--branch", metavar="B", help="Where the work is.")
@click.option("--base-sha", metavar="SHA", help="The commit that it started from.")
@click.option("--head-sha", metavar="SHA", help="The commit that it came to.")
@click.option("--question", metavar="TEXT", help="What a person has to answer, with --outcome question.")
@click.option("--option", "options", metavar="TEXT", multiple=True, help="An answer to choose; repeatable.")
@click.option("--session-id", metavar="S", help="The agent's session, to go on in.")
@click.option("--model", metavar="M", help="Which model did it.")
@click.option("--cost-usd", type=click.FloatRange(0), metavar="USD", help="What it cost.")
@click.option("--input-tokens", type=click.IntRange(0), metavar="N")
@click.option("--output-tokens", type=click.IntRange(0), metavar="N")
@_next
@json_option
@click.pass_obj
def complete(session: Session, /, id: int, worker: str | None, fence: int | None, **given: Any) -> int:
    """It is done, there was nothing to change, or a person has to answer something.

    Said twice it is no error. One .diff or whole files as artifacts, not both.
    """
    from pilot.domain.outcome import Ending, Outcome, Question
    from pilot.domain.work import Next

    asks = given["question"]
    ending = Ending(given["outcome"] or ("question" if asks else "done"))
    if (ending is Ending.QUESTION) != bool(asks):
        raise UsageError("--outcome question needs --question TEXT, and nothing else has one")
    summary = given["summary"]
    outcome = Outcome(
        ending=ending,
        text="" if summary is None else words_from(summary),
        session_id=given["session_id"],
        model=given["model"],
        usage=_usage(given),
        branch=given["branch"],
        base_sha=given["base_sha"],
        head_sha=given["head_sha"],
        question=Question(asks, given["options"]) if asks else None,
    )
    artifacts = [_artifact(file) for file in given["files"]]
    name, mine = _mine(session, id, worker, fence)
    next = Next() if given["more"] else None
    settled = on_queue(session, lambda queue: queue.complete(id, name, mine, outcome, artifacts, next=next))
    return _ended(session, settled, name if next else None, json=given["json"])


@queue.command()
@id_argument
@click.argument("detail", metavar="DETAIL")
@_worker
@_fence
@click.option("--class", "failure", metavar="CLASS", default="agent", show_default=True, help="Why: test, network, …")
@click.option("--excerpt", metavar="TEXT|-", help="The evidence; `-` reads stdin.")
@_next
@json_option
@click.pass_obj
def fail(
    session: Session,
    id: int,
    detail: str,
    worker: str | None,
    fence: int | None,
    failure: str,
    excerpt: str | None,
    more: bool,
    json: bool,
) -> int:
    """It failed; the class decides whether and when it is tried again.

    lint test build ci · agent · refusal · timeout · stall · oom · rate_limit · quota · auth
    network · conflict · infra
    """
    from pilot.domain.outcome import FailureClass, failed
    from pilot.domain.work import Next

    if failure not in list(FailureClass):
        raise UsageError(f"--class {failure!r}: there are {', '.join(FailureClass)}")
    if not detail.strip():
        raise UsageError("DETAIL is empty: say what failed")
    outcome = failed(FailureClass(failure), detail, excerpt="" if excerpt is None else words_from(excerpt))
    name, mine = _mine(session, id, worker, fence)
    settled = on_queue(session, lambda queue: queue.fail(id, name, mine, outcome, next=Next() if more else None))
    return _ended(session, settled, name if more else None, json=json)


@queue.command()
@id_argument
@_worker
@_fence
@click.option("--reason", default="", help="Why, for the record.")
@json_option
@click.pass_obj
def release(session: Session, id: int, worker: str | None, fence: int | None, reason: str, json: bool) -> int:
    """Give it back: it is queued again, and no failure is counted."""
    name, mine = _mine(session, id, worker, fence)
    settled = on_queue(session, lambda queue: queue.release(id, name, mine, reason))
    return _ended(session, settled, json=json)


@queue.command()
@id_argument
@_worker
@_fence
@click.argument("text", metavar="TEXT|-", default="-")
@click.pass_obj
def output(session: Session, id: int, text: str, worker: str | None, fence: int | None) -> None:
    """Add to what `pilot logs` shows: TEXT, or `-` what comes on stdin."""
    from pilot.app.worker_claims import requests
    from pilot.domain.agent import OutputKind
    from pilot.domain.work import WorkQueue

    data = sys.stdin.buffer.read(64 << 20) if text == "-" else f"{text}\n".encode(errors="surrogateescape")
    name, mine = _mine(session, id, worker, fence)

    async def write(queue: WorkQueue) -> None:
        for pieces in requests([(OutputKind.STDOUT, data)]):
            await queue.output(id, name, mine, pieces)

    on_queue(session, write)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _mine(session: Session, id: int, worker: str | None, fence: int | None) -> tuple[str, int]:
    """Under which name, and with which fence."""
    name = worker_name(session, worker)
    return name, fences(session).get(name, id) if fence is None else fence


def _claimed(session: Session, name: str, claims: Sequence[Claim], *, json: bool) -> None:
    """Remember the fences, and show what is to be done."""
    known = fences(session)
    for one in claims:
        known.put(name, one.execution.id, one.fence)
        if not json:
            session.ui.line(task_text(session, one, name, None))


def _ended(session: Session, settled: Settled, more: str | None = None, *, json: bool) -> int:
    """`more`: as whom the next one was claimed."""
    from pilot.store.documents import execution_document

    execution, claims = settled.execution, settled.claims
    if json:
        if more:
            _claimed(session, more, claims, json=True)
        document = {"execution": execution_document(execution), "duplicate": settled.duplicate}
        session.ui.document(document | ({"next": [claim_document(one) for one in claims]} if more else {}))
        return 0
    if settled.duplicate:
        session.ui.note("it had been said before; nothing changed")
    _said(session, execution)
    if more:
        _claimed(session, more, claims, json=False)
    if more and not claims:
        session.ui.note("nothing to claim now")
    return 0


def _said(session: Session, execution: Execution, *, json: bool = False) -> int:
    """How it stands."""
    from pilot.store.documents import execution_document

    if json:
        session.ui.document({"execution": execution_document(execution)})
        return 0
    why = f": {execution.reason}" if execution.reason else ""
    session.ui.line(f"{execution.id} is {execution.status}{why}")
    return 0


def _usage(given: dict[str, Any]) -> Usage:
    from pilot.domain.outcome import Usage

    return Usage(given["input_tokens"], given["output_tokens"], given["cost_usd"])


def _artifact(text: str) -> Artifact:
    """`FILE`, named as it stands there, or by its last part when it is elsewhere; or `NAME=FILE`."""
    from pilot.domain.work import Artifact

    name, equals, path = text.partition("=")
    file = Path(path if equals else text)
    outside = file.is_absolute() or ".." in file.parts
    try:
        with file.open("rb") as stream:
            content = stream.read(_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"--artifact {file}: {error.strerror}") from None
    if len(content) > _LIMIT:
        raise UsageError(f"--artifact {file}: more than {_LIMIT >> 20} MiB")
    return Artifact(name if equals else file.name if outside else file.as_posix(), content)
