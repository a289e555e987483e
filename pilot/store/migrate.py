"""Numbered migrations, forward only: `migrations/<engine>/NNNN_name.sql`, applied in one transaction each."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

from pilot.domain.errors import Busy, StoreRefused

WAIT = 30.0
"""Seconds for whoever has the file to be done with it."""
APPLICATION_ID = 0x50494C54
"""`PRAGMA application_id` of a database that pilot made ("PILT")."""
COPYING_ID = 0x50494C43
"""The same, as long as `pilot db copy` is not done with it ("PILC")."""
UNFINISHED = "{place} is a copy that is not whole; the same `pilot db copy` again finishes it. Nothing else may use it"


def migrations(engine: str) -> list[tuple[int, str, str]]:
    """(number, name, SQL), ascending."""
    folder = resources.files("pilot.store") / "migrations" / engine
    found = [(int(f.name[:4]), f.name, f.read_text()) for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted(found)


def newest(engine: str) -> int:
    """The schema number that this version of pilot works with."""
    return migrations(engine)[-1][0]


def statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would commit the transaction they have to share."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(text):
            yield text
            text = ""


def inspect(connection: sqlite3.Connection, path: Path) -> int:
    """The file's schema number, 0 for an empty file. Raises `StoreRefused`; changes nothing."""
    # One statement, one view: between two, another process may make the whole schema.
    version, application, tables = connection.execute(
        "SELECT v.user_version, a.application_id, (SELECT count(*) FROM sqlite_master) "
        "FROM pragma_user_version AS v, pragma_application_id AS a"
    ).fetchone()
    if application == COPYING_ID:
        raise StoreRefused(UNFINISHED.format(place=path))
    if application != APPLICATION_ID and (tables or version or application):
        raise StoreRefused(
            f"{path} was made by another program; it is left as it is. "
            "Set `store:` or `state_dir:` to a place of pilot's own"
        )
    if version > newest("sqlite"):
        raise StoreRefused(
            f"{path} has schema {version}, this pilot knows up to {newest('sqlite')}; it is left as it is. "
            "Use the newer pilot, or restore the backup from before the upgrade"
        )
    return int(version)


def check(path: Path) -> None:
    """Raise `StoreRefused` for a file that this version may not touch, without touching it.

    Read-only: the last writable connection to a file moves its log into it when it closes, whoever wrote that log.
    """
    # Suppressed: there is something to recover, and only a writer can.
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(_connect(path, "ro")) as connection:
        inspect(connection, path)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=WAIT)


def migrate(path: Path, clock: Callable[[], int]) -> list[str]:
    """Bring the file to the newest schema; several processes may try at once. Returns what was applied."""
    check(path)
    connection = _connect(path, "rw")
    try:
        version = inspect(connection, path)
        if version == newest("sqlite"):
            return []
        # Outside the transaction, and before it: WAL is a property of the file.
        _use_wal(connection)
        connection.execute("PRAGMA synchronous = FULL")
        if version:
            _in_nobodys_hands(connection, path, clock())
            _keep_copy(connection, path, version)
        return _apply(connection, path, clock)
    finally:
        connection.close()


def _use_wal(connection: sqlite3.Connection) -> None:
    """The one statement that does not wait for a reader, whatever the timeout: a second process that opens, say."""
    deadline = time.monotonic() + WAIT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _in_nobodys_hands(connection: sqlite3.Connection, path: Path, now: int) -> None:
    """Raise `Busy` while a node is up: it has the older schema in its statements, and knows no newer rule."""
    found = connection.execute(
        # A worker does not hold the file: whoever answers it does, and is a node itself.
        "SELECT id, version, lease_until FROM nodes WHERE lease_until > ? AND kind <> 'worker' "
        "ORDER BY lease_until DESC",
        (now,),
    ).fetchone()
    if found is not None:
        node, version, until = found
        raise Busy(
            f"{path} has the schema of an older pilot, and {node} ({version}) works with it; it is left as it is. "
            f"Stop that one first; if it was killed, try again in {-(-(until - now) // 1000)} s"
        )


def _keep_copy(connection: sqlite3.Connection, path: Path, version: int) -> None:
    copy = path.with_name(f"{path.name}.schema-{version}.backup")
    if copy.exists():
        return
    # Under a name of its own until it is whole: another process may be at the same, or this one be killed.
    handle, part = tempfile.mkstemp(prefix=f"{copy.name}.", dir=path.parent)  # 0600, and empty as VACUUM wants it
    os.close(handle)
    try:
        connection.execute("VACUUM INTO ?", (part,))
        Path(part).replace(copy)
    finally:
        Path(part).unlink(missing_ok=True)


def _apply(connection: sqlite3.Connection, path: Path, clock: Callable[[], int]) -> list[str]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = inspect(connection, path)  # again, now that nobody else can be at it
        if 0 < version < newest("sqlite"):
            _in_nobodys_hands(connection, path, clock())
        applied = [m for m in migrations("sqlite") if m[0] > version]
        for number, _, script in applied:
            for statement in statements(script):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {number}")
        if not version:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("INSERT INTO store VALUES (?, ?)", (uuid.uuid4().hex[:12], clock()))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return [name for _, name, _ in applied]
