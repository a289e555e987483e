"""What is owed to the outside, for people: of one execution, and of all. Reads only."""

from __future__ import annotations

import json

from pilot.domain.execution import Execution
from pilot.domain.ports import Document
from pilot.domain.text import one_line
from pilot.store.database import Database
from pilot.store.documents import moment, rfc3339
from pilot.store.records import OPEN_STATUSES

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
    return await _its_pull_request(database, execution) or "Nothing: it is completed."


async def _its_pull_request(database: Database, execution: Execution) -> str | None:
    rows = await database.read(
        "SELECT l.state, l.url, l.error, l.checks, l.red, l.used_up, (SELECT v.data FROM events v WHERE v.id = "
        "(SELECT max(x.id) FROM events x WHERE x.execution_id = l.execution_id AND x.type = 'pull.repairs_used_up')), "
        "(SELECT max(t.id) FROM executions t WHERE t.project_id = l.project_id AND t.task_id = l.task_id "
        f"AND t.status IN {OPEN_STATUSES}) "
        "FROM pulls l WHERE l.id = (SELECT max(pull_id) FROM pull_executions WHERE execution_id = :id)",
        {"id": execution.id},
    )
    if not rows:
        return None
    state, url, error, checks, red, used_up, told, at_work = rows[0]
    where, anew = one_line(url or ""), f"`pilot retry {execution.id}` runs it anew."
    match state:
        case "failed":
            branch = one_line(execution.branch or "", 100)
            why = one_line(error or "", 300)
            return f"Its pull request could not be made: {why}. The change is on branch {branch}; {anew}"
        case "merged":
            return f"Nothing: it is completed, and its pull request is merged: {where}"
        case "closed":
            return f"Nothing: it is completed. Its pull request was closed without being merged: {where}; {anew}"
        case "open":
            names = one_line(", ".join(json.loads(red)), 200) if checks == "failed" else ""
            seen = "" if checks == "none" else f" (checks: {checks}{names and f': {names}'})"
            words = f"Nothing: it is completed. Its pull request waits to be merged{seen}: {where}"
            if at_work:
                return f"{words}; {at_work} works on it."
            if used_up:
                why = one_line(str(json.loads(told or "{}").get("why") or "its repairs are used up"), 300)
                return f"{words}; a person has to look, for {why}."
            return words
    return None


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
