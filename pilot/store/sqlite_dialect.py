"""What every connection to a SQLite store shares: its settings, its own bits of SQL, its errors in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path

from pilot.domain.errors import Busy, PilotError, StoreError, StoreRefused, UsageError

BUSY_TIMEOUT = 5_000  # ms
NO_DATABASE = "no database at {path}; `pilot serve`, `pilot run` or `pilot enqueue` makes one"
UNSTORABLE = (OverflowError, UnicodeEncodeError)
"""What Python raises for a parameter that SQLite can't hold: a number beyond 64 bits, a lone surrogate."""
FAILURES = (sqlite3.Error, *UNSTORABLE)
"""All that a statement can fail with, for `translate`."""

_OF_ITEM = ("ERROR", "CONSTRAINT", "MISMATCH", "TOOBIG", "RANGE", "MISUSE")


class SqliteDialect:
    """What is SQLite's own in the shared SQL."""

    def records(self, name: str, alias: str, columns: Mapping[str, str]) -> str:
        """Rows come as JSON arrays: a third cheaper than objects, measured."""
        picked = ", ".join(f"value ->> '$[{i}]' AS {column}" for i, column in enumerate(columns))
        return f"(SELECT {picked} FROM json_each(:{name})) AS {alias}"

    def elements(self, column: str, alias: str) -> str:
        """See `Dialect.elements`."""
        return f"(SELECT key AS n, value FROM json_each({column})) AS {alias}"


def configure(connection: sqlite3.Connection, *, read_only: bool) -> None:
    """The settings that every connection needs before its first statement."""
    pragmas: Iterable[str] = ("foreign_keys = ON", "temp_store = MEMORY", "cache_size = -16000")
    # FULL: a commit that was acknowledged survives the loss of power, not only of the process.
    pragmas = (*pragmas, "query_only = ON") if read_only else (*pragmas, "synchronous = FULL")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")


def error_code(error: Exception) -> str:
    """SQLite's own name of the error, or nothing."""
    return getattr(error, "sqlite_errorname", None) or ""


def blames_item(error: Exception) -> bool:
    """Whether the statement's own values are at fault, and not the disk, the lock or the file."""
    code = error_code(error).removeprefix("SQLITE_")
    return not code or code.startswith(_OF_ITEM)


def translate(error: Exception, path: Path) -> PilotError:
    """An engine's error in words that say what to do."""
    if isinstance(error, UNSTORABLE):
        return UsageError(f"no database holds such a value: {error}")
    code = error_code(error)
    if code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return Busy(f"{path} is locked by another process for more than {BUSY_TIMEOUT // 1000} s; try again")
    if code == "SQLITE_FULL":
        return StoreError(f"the disk of {path} is full; nothing was written. Make room and try again")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreRefused(
            f"{path} is damaged or no SQLite database ({error}); it is left as it is. "
            "Restore a backup made with `pilot db backup`, or move the file away to start empty"
        )
    if code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN")):
        return StoreError(f"can't open {path} for writing ({error}); check its owner and mode")
    return StoreError(f"{path}: {error}")
