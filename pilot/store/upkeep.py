"""Looking after a SQLite store from outside: is it sound, copy it.

Each function has a connection of its own and no event loop. The file is never opened by other means than SQLite: in
a process that also holds it open, closing any other handle would drop SQLite's locks.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from pilot.domain.errors import StoreError, UsageError
from pilot.store.migrate import inspect, migrate
from pilot.store.records import LIVE_PULLS, OPEN_STATUSES
from pilot.store.sqlite_dialect import BUSY_TIMEOUT, NO_DATABASE, configure, translate

SHOWN = 20
"""So many examples of one sort of finding are named."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it must be. `check` names the promise, `detail` what breaks it."""

    check: str
    detail: str


# Each gives the rows that break a promise, as one text. Those that the schema promises by itself are here, too:
# a damaged index keeps no promise.
AUDITS = {
    "one running per slot": """
        SELECT 'project ' || project_id || ' runs ' || count(*) || ' executions in slot ' || slot FROM executions
        WHERE status = 'running' GROUP BY project_id, slot HAVING count(*) > 1""",
    "projects count what they run": """
        SELECT p.name || ' counts ' || p.running || ' running, and has ' || count(e.id) FROM projects p
        LEFT JOIN executions e ON e.project_id = p.id AND e.status = 'running'
        GROUP BY p.id HAVING p.running <> count(e.id)""",
    "one open execution per task": f"""
        SELECT 'project ' || project_id || ' has ' || count(*) || ' open executions of ' || task_id
        FROM executions WHERE status IN {OPEN_STATUSES} GROUP BY project_id, task_id HAVING count(*) > 1""",
    "fences rise": """
        SELECT e.id || ' has fence ' || e.fence || ', its project ' || p.fence
        FROM executions e JOIN projects p ON p.id = e.project_id
        WHERE e.status = 'running' AND e.fence > p.fence""",
    "blocked executions count what they wait for": """
        SELECT e.id || ' counts ' || e.deps_left || ' dependencies, and waits for '
          || (SELECT count(*) FROM dependencies d JOIN executions p ON p.id = d.depends_on
              WHERE d.execution_id = e.id AND p.status <> 'completed')
        FROM executions e WHERE e.status = 'blocked' AND e.deps_left <>
          (SELECT count(*) FROM dependencies d JOIN executions p ON p.id = d.depends_on
           WHERE d.execution_id = e.id AND p.status <> 'completed')""",
    "nothing waits for what has failed": """
        SELECT e.id || ' waits for ' || p.id || ', which is ' || p.status
        FROM executions e JOIN dependencies d ON d.execution_id = e.id JOIN executions p ON p.id = d.depends_on
        WHERE e.status = 'blocked' AND p.status IN ('failed', 'cancelled')""",
    "running executions have an owner": """
        SELECT id || ' runs without node, slot or lease' FROM executions
        WHERE status = 'running' AND (node IS NULL OR slot IS NULL OR lease_until IS NULL)""",
    "running executions have an open attempt": """
        SELECT e.id || ' runs attempt ' || e.attempt || ', which is not there or has ended' FROM executions e
        LEFT JOIN attempts a ON a.execution_id = e.id AND a.number = e.attempt
        WHERE e.status = 'running' AND (a.number IS NULL OR a.finished_at IS NOT NULL)""",
    "attempts end with their claim": """
        SELECT a.execution_id || ' is ' || e.status || ', and its attempt ' || a.number || ' has not ended'
        FROM attempts a JOIN executions e ON e.id = a.execution_id
        WHERE a.finished_at IS NULL AND NOT (e.status = 'running' AND a.number = e.attempt)""",
    "held executions say why": """
        SELECT id || ' needs a human, and does not say why' FROM executions
        WHERE status = 'needs_human' AND coalesce(reason, '') = ''""",
    "questions belong to held executions": """
        SELECT q.execution_id || ' is ' || e.status || ', and has an open question'
        FROM questions q JOIN executions e ON e.id = q.execution_id
        WHERE q.answered_at IS NULL AND e.status <> 'needs_human'""",
    "only queued executions can be claimed": """
        SELECT id || ' is ' || status || ', and marked as due' FROM executions
        WHERE due = 1 AND status NOT IN ('queued', 'running')""",
    "a park's probe tries that park": """
        SELECT e.id || ' tries ' || k.backend || ', and runs with ' || e.backend || ' for account ' || a.account
        FROM parks k JOIN executions e ON e.id = k.probe_id AND e.fence = k.probe_fence AND e.status = 'running'
        JOIN attempts a ON a.execution_id = e.id AND a.number = e.attempt
        WHERE e.backend <> k.backend OR k.account NOT IN ('', a.account) OR a.probe <> 1""",
    "money that is set aside is booked": """
        SELECT 'of day ' || a.day || ', ' || a.reserved || ' millionths of a dollar are set aside, and '
          || coalesce(s.reserved, 0) || ' booked'
        FROM (SELECT started_at / 86400000 AS day, sum(reserved) AS reserved FROM attempts
              WHERE reserved IS NOT NULL AND (finished_at IS NULL OR cost_usd IS NULL) GROUP BY 1) a
        LEFT JOIN spending s ON s.day = a.day WHERE coalesce(s.reserved, 0) < a.reserved""",
    "money that was spent is booked": """
        SELECT 'of day ' || a.day || ', ' || a.spent || ' millionths of a dollar are spent, and '
          || coalesce(s.spent, 0) || ' booked'
        FROM (SELECT started_at / 86400000 AS day, sum(round(cost_usd * 1000000)) AS spent FROM attempts
              WHERE reserved IS NOT NULL AND finished_at IS NOT NULL AND cost_usd IS NOT NULL GROUP BY 1) a
        LEFT JOIN spending s ON s.day = a.day WHERE coalesce(s.spent, 0) < a.spent""",
    "ended executions have an end": """
        SELECT id || ' is ' || status || ', and has no end' FROM executions
        WHERE status IN ('completed', 'failed', 'cancelled') AND finished_at IS NULL""",
    "one live pull request per branch": f"""
        SELECT 'branch ' || branch || ' of project ' || project_id || ' has ' || count(*) || ' live pull requests'
        FROM pulls WHERE state IN {LIVE_PULLS} GROUP BY project_id, branch HAVING count(*) > 1""",
    "owed pull requests are to be published": """
        SELECT 'pull request ' || l.id || ' of ' || l.execution_id || ' is owed, and nothing publishes it'
        FROM pulls l WHERE l.state = 'owed' AND NOT EXISTS (SELECT 1 FROM outbox o
          WHERE o.execution_id = l.execution_id AND o.kind = 'publish')""",
    "ended pull requests are seen on their executions": """
        SELECT 'pull request ' || l.id || ' is ' || l.state || ', and the delivery of ' || e.id || ' is ' || e.delivery
        FROM pulls l JOIN pull_executions m ON m.pull_id = l.id JOIN executions e ON e.id = m.execution_id
        WHERE l.state IN ('merged', 'closed') AND e.delivery <> l.state
          AND NOT EXISTS (SELECT 1 FROM pull_executions x WHERE x.execution_id = e.id AND x.pull_id > l.id)""",
    "what happens to a ticket is owed to it": """
        SELECT 'event ' || v.id || ' (' || v.type || ') of ' || e.id || ' is owed to nobody'
        FROM executions e JOIN events v ON v.execution_id = e.id WHERE e.origin IS NOT NULL
          AND v.type IN ('execution.queued', 'execution.started', 'execution.requeued', 'execution.asked',
            'execution.answered', 'execution.completed', 'execution.failed', 'execution.cancelled')
          AND NOT EXISTS (SELECT 1 FROM outbox o WHERE o.key = 'report:' || v.id)""",
    "what nobody has to do waits for nobody": """
        SELECT e.id || ' is queued, and ' || CASE WHEN e.instant = 1 THEN 'a note'
          ELSE e.dedupe || ' was made by ' || r.execution_id END
        FROM executions e LEFT JOIN results r ON r.project_id = e.project_id AND r.key = e.dedupe
        WHERE e.status = 'queued' AND (e.instant = 1 OR r.execution_id IS NOT NULL)""",
    "results were made": """
        SELECT r.key || ' is said to be made by ' || e.id || ', which is ' || e.status || ' and makes '
          || coalesce(e.dedupe, 'nothing')
        FROM results r JOIN executions e ON e.id = r.execution_id
        WHERE e.status <> 'completed' OR e.instant = 1 OR e.dedupe IS DISTINCT FROM r.key
          OR e.project_id <> r.project_id""",
    "artifacts are there": """
        SELECT e.id || ' has ' || (f.value ->> 'name') || ', and what was in it is not there'
        FROM executions e, json_each(e.artifacts) f WHERE e.artifacts IS NOT NULL AND f.value ->> 'sha256' IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM artifact_uses u JOIN artifacts a ON a.sha256 = u.sha256
            WHERE u.execution_id = e.id AND u.sha256 = f.value ->> 'sha256' AND a.size = length(a.content))""",
    "artifacts belong to somebody": """
        SELECT 'artifact ' || a.sha256 || ' belongs to nobody' FROM artifacts a
        WHERE NOT EXISTS (SELECT 1 FROM artifact_uses u WHERE u.sha256 = a.sha256)""",
}


def sqlite_version() -> tuple[int, int, int]:
    """Of the library that this Python uses."""
    return sqlite3.sqlite_version_info


def bring_up(path: Path, clock: Callable[[], int]) -> list[str]:
    """Migrate the file to the newest schema; the names of the migrations that were applied."""
    if not path.exists():
        raise StoreError(NO_DATABASE.format(path=path))
    try:
        return migrate(path, clock)
    except sqlite3.Error as error:
        raise translate(error, path) from error


def check(path: Path) -> list[Finding]:
    """Everything that is wrong with the file, its keys and its promises; reads all of it.

    Raises `StoreRefused` for a file that is not pilot's or too damaged to look into.
    """
    with _open(path) as connection:
        pages = connection.execute(f"PRAGMA quick_check({SHOWN})")
        findings = [Finding("file", text) for (text,) in pages if text != "ok"]
        for table, row, parent, _ in connection.execute("PRAGMA foreign_key_check").fetchmany(SHOWN):
            findings.append(Finding("keys", f"row {row} of {table} points to nothing in {parent}"))
        for name, sql in AUDITS.items():
            findings += [Finding(name, text) for (text,) in connection.execute(sql).fetchmany(SHOWN)]
    return findings


def quick_check(path: Path) -> tuple[int, str, list[str]]:
    """Schema number, journal mode and what SQLite's own check finds."""
    with _open(path) as connection:
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        found = [text for (text,) in connection.execute(f"PRAGMA quick_check({SHOWN})") if text != "ok"]
        return inspect(connection, path), str(mode), found


def backup(path: Path, target: Path) -> int:
    """A whole, consistent copy in a new file of mode 0600, also while others write; its size in bytes.

    Raises `UsageError` when the target exists; nothing is left behind when it fails.
    """
    try:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        raise UsageError(f"{target} is there already; name a new file") from None
    except OSError as error:
        raise UsageError(f"can't make {target}: {error.strerror}") from None
    try:
        with _open(path) as connection:
            connection.execute("PRAGMA query_only = OFF")  # which forbids this, though it only reads
            connection.execute("VACUUM INTO ?", (str(target),))
        _prove(target)
        _sync(target)
    except BaseException as error:
        target.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise translate(error, target) from error
        raise
    return target.stat().st_size


def _prove(target: Path) -> None:
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        # The mode is the file's own: without this, a restored copy would not be in it.
        copy.execute("PRAGMA journal_mode = WAL")
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise StoreError(f"the copy is not sound ({verdict}); `pilot db check` looks at the store itself")


def _sync(target: Path) -> None:
    for place, flags in ((target, os.O_RDWR), (target.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)):
        descriptor = os.open(place, flags | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    if not path.exists():
        raise StoreError(NO_DATABASE.format(path=path))
    try:
        uri = f"{path.absolute().as_uri()}?mode=rw"
        timeout = BUSY_TIMEOUT / 1000
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=timeout)) as connection:
            configure(connection, read_only=True)
            inspect(connection, path)
            yield connection
    except sqlite3.Error as error:
        raise translate(error, path) from error
