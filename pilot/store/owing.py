"""What is owed to the outside, for people: of one execution, and of all. Reads only."""

from __future__ import annotations

from pilot.domain.execution import Execution
from pilot.domain.ports import Document
from pilot.domain.text import one_line
from pilot.store.database import Database
from pilot.store.documents import moment, rfc3339

_WHAT = {
    "publish": "Its pull request",
    "report": "A word on its ticket",
    "notify": "A message to people",
    "tell": "A message to people",
    "clean": "The end of its workspace",
}


async def after_its_end(database: Database, execution: Execution) -> str:
    """The next thing that happens to a completed execution, in a sentence or two."""
    owed = await database.read(
        "SELECT kind, tries, created_at, available_at, error FROM outbox "
        "WHERE execution_id = :id AND delivered_at IS NULL ORDER BY id",
        {"id": execution.id},
    )
    if owed:
        # what has been tried and did not work says more than what stands behind it
        kind, tries, since, at, error = next((row for row in owed if row[1]), owed[0])
        what = _WHAT.get(kind, kind)
        if not tries:
            return f"{what} is owed since {moment(since)}: a node delivers it."
        times = "once" if tries == 1 else f"{tries} times"
        return (
            f"{what} is owed since {moment(since)}, and was tried {times}: {one_line(error or '', 300)}. "
            f"It is tried again at {moment(at)}."
        )
    rows = await database.read(
        "SELECT l.state, l.url, l.error, l.checks FROM pulls l "
        "WHERE l.id = (SELECT max(pull_id) FROM pull_executions WHERE execution_id = :id)",
        {"id": execution.id},
    )
    if rows:
        state, url, error, checks = rows[0]
        if state == "failed":
            return (
                f"Its pull request could not be made: {one_line(error or '', 300)}. "
                f"The change is on branch {one_line(execution.branch or '', 100)}; "
                f"`pilot retry {execution.id}` runs it anew."
            )
        if state == "open":
            seen = "" if checks == "none" else f" (checks: {checks})"
            return f"Nothing: it is completed. Its pull request waits to be merged{seen}: {one_line(url or '')}"
    return "Nothing: it is completed."


async def outbox_document(database: Database) -> Document:
    """How much is owed to the outside, and since when."""
    ((owed, oldest),) = await database.read("SELECT count(*), min(created_at) FROM outbox WHERE delivered_at IS NULL")
    return {"owed": owed, "oldest": rfc3339(oldest)}


async def inbox_document(database: Database) -> Document:
    """How many webhooks wait to be dealt with, and since when."""
    ((owed, oldest),) = await database.read("SELECT count(*), min(received_at) FROM inbox WHERE handled_at IS NULL")
    return {"owed": owed, "oldest": rfc3339(oldest)}


async def source_documents(database: Database) -> list[Document]:
    """How each source does."""
    rows = await database.read("SELECT name, status, until, reason, last_poll FROM sources ORDER BY name")
    return [
        {
            "name": name,
            "status": status,
            "until": rfc3339(until),
            "reason": reason or None,
            "last_poll": rfc3339(last_poll),
        }
        for name, status, until, reason, last_poll in rows
    ]
