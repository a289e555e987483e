"""What `pilot queue` and `pilot worker` have in common: the worker's name, its queue, and a task as text."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pilot.cli.fences import Fences
from pilot.cli.session import Session
from pilot.domain.errors import UsageError
from pilot.domain.text import for_terminal, one_line, ref_name

if TYPE_CHECKING:
    from typing import Protocol

    from pilot.domain.execution import Execution
    from pilot.domain.work import Claim, WorkQueue

    class Queue(WorkQueue, Protocol):
        """The queue that commands work on: the store's, or a server's."""

        async def get(self, id: int) -> Execution:
            """How it stands."""
            ...


T = TypeVar("T")
LONGEST = 80


def worker_name(session: Session, given: str | None) -> str:
    """The one that was given, $PILOT_WORKER, else user@host: the same each time. Raises `UsageError`."""
    import socket

    name = given or session.environ.get("PILOT_WORKER") or f"{session.person()}@{socket.gethostname()}"[:LONGEST]
    if not name.isprintable() or not 0 < len(name) <= LONGEST:
        raise UsageError(f"a worker's name is 1 to {LONGEST} printable characters, not {one_line(name, 100)!r}")
    return name


def on_queue(session: Session, work: Callable[[Queue], Awaitable[T]]) -> T:
    """Do something to the queue: the server's, or that of the store here."""
    if session.server:
        return session.away(work)
    from pilot.domain.budget import Budget
    from pilot.store import Store

    settings = session.loaded().settings
    budget = settings.budget

    async def here(store: Store) -> T:
        store.work.govern(settings.retry_rules, lambda: Budget(budget.per_execution_usd, budget.per_day_usd))
        return await work(store.work)

    return session.act(here)


def fences(session: Session) -> Fences:
    """What is remembered of claims of this place."""
    located = session.located()
    place = (
        urlsplit(session.server).netloc if session.server else located.store_url.rpartition("@")[2].partition("?")[0]
    )
    return Fences(located.state_dir, place)


def claim_document(claim: Claim) -> dict[str, Any]:
    """As the server shows it."""
    from pilot.client.documents import claim_document as with_the_rest
    from pilot.store.documents import execution_document

    return with_the_rest(claim, execution_document(claim.execution, [made.id for made in claim.made if made.direct]))


def task_text(session: Session, claim: Claim, worker: str, place: str | None) -> str:
    """A task for who is to do it: an agent in a pane, or a person."""
    execution = claim.execution
    where = place or (execution.project_path if Path(execution.project_path).is_dir() else None)
    branch = execution.branch or execution.options.get("branch") or f"pilot/{ref_name(execution.task_id)}"
    about = f"{execution.id}{_asked(session, worker, claim.fence)}"
    lines = [
        f"── {execution.id}  {one_line(execution.task_id)}: {one_line(execution.title)}",
        f"project   {one_line(execution.project)}" + (f", at {one_line(str(where))}" if where else ""),
        f"branch    {one_line(str(branch))}",
    ]
    if execution.payload is not None:
        lines.append(f"payload   {one_line(str(execution.payload), 1000)}")
    lines += [
        f"before    {made.id} {one_line(made.task_id)}: {_what(made.branch, made.head_sha)}" for made in claim.made
    ]
    if execution.feedback:
        lines += ["", "What came of the last attempt, or was answered:", *_quoted(execution.feedback)]
    lines += ["", *_quoted(execution.body or execution.title), ""]
    lines += [
        "When it is done:        " + f'pilot queue complete {about} --summary "WHAT WAS DONE"',
        "If nothing was to do:   " + f"pilot queue complete {about} --outcome no_change",
        "If you have to ask:     " + f'pilot queue complete {about} --outcome question --question "WHAT"',
        "If it can't be done:    " + f'pilot queue fail {about} --class agent "WHY"',
        "To give it back:        " + f"pilot queue release {about}",
    ]
    return "\n".join(lines)


def _quoted(text: str) -> list[str]:
    """Somebody's words, so that none of them can look like ours."""
    return [f"  | {line}" for line in for_terminal(text).splitlines()]


def _asked(session: Session, worker: str, fence: int) -> str:
    from shlex import quote

    server = f" --server {quote(session.server)}" if session.server else ""
    return f" --worker {quote(worker)} --fence {fence}{server}"


def _what(branch: str | None, head: str | None) -> str:
    return "no change" if head is None else f"{one_line(branch or '')} at {one_line(head[:12])}"
