"""What is PostgreSQL's own in the shared SQL, and its errors in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from pilot.domain.errors import Busy, PilotError, StoreError, StoreRefused, UsageError

PATIENCE = 5.0
"""Seconds that a caller waits for a server that is away, or for a lock."""
_CASTS = {"text": "", "bigint": "::bigint", "float": "::double precision"}
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|::|:([A-Za-z_]\w*)")
OWN_TIME = "current_setting('pilot.now')::bigint"
"""The time (UTC ms) at which a transaction that writes got the lock: what is written later is never of before."""
_LARGEST = 1 << 63
_INT, _TEXT, _FLOAT, _BYTES, _UNKNOWN = 20, 25, 701, 17, 0


class PostgresDialect:
    """See `Dialect`."""

    def records(self, name: str, alias: str, columns: Mapping[str, str]) -> str:
        """Rows come as JSON arrays."""
        picked = ", ".join(
            f"(value ->> {i}){_CASTS[type]} AS {column}" for i, (column, type) in enumerate(columns.items())
        )
        return f"(SELECT {picked} FROM jsonb_array_elements(:{name}::jsonb)) AS {alias}"

    def elements(self, column: str, alias: str) -> str:
        """See `Dialect.elements`."""
        return (
            "(SELECT x.n - 1 AS n, x.value AS value FROM "
            f"jsonb_array_elements_text(({column})::jsonb) WITH ORDINALITY AS x(value, n)) AS {alias}"
        )


class Failed(Exception):
    """What the server answered; `code` is its SQLSTATE."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Lost(Failed):
    """The connection is gone, or could not be made. Whatever it was doing may or may not have been done."""


@lru_cache(maxsize=2048)
def translated(sql: str, *, timed: bool = False) -> tuple[bytes, tuple[str, ...]]:
    """The text with `$n` for each `:name`, and the names by number. `timed`: `:now` is what its transaction says."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        name = match.group(1)
        if timed and name == "now":
            return OWN_TIME
        return match.group() if name is None else f"${names.setdefault(name, len(names) + 1)}"

    return _TOKEN.sub(number, sql).encode(), tuple(names)


Values = tuple[list[bytes | None], list[int], list[int]]
"""What is bound: values, types, formats."""


UNTYPED = ("42P18", "42P08")
"""A NULL whose type nothing in the statement says."""
untyped: set[bytes] = set()
"""The statements in which that has happened: what is NULL in them is a text."""


def bound(text: bytes, names: Sequence[str], params: Mapping[str, Any]) -> Values:
    """The parameters as the protocol takes them. Raises `UsageError` for what no column holds."""
    values: list[bytes | None] = []
    types: list[int] = []
    formats: list[int] = []
    for name in names:
        value = params[name]
        binary = 0
        if value is None:
            kind = _TEXT if text in untyped else _UNKNOWN
        elif isinstance(value, str):
            kind, value = _TEXT, _text(value)
        elif isinstance(value, int):
            if not -_LARGEST <= value < _LARGEST:
                raise UsageError(f"no database holds such a value: {value}")
            kind, value = _INT, b"%d" % value
        elif isinstance(value, float):
            kind, value = _FLOAT, repr(value).encode()
        else:
            kind, value, binary = _BYTES, bytes(value), 1
        values.append(value)
        types.append(kind)
        formats.append(binary)
    return values, types, formats


def _text(value: str) -> bytes:
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"no database holds such a value: {error}") from error
    if b"\0" in data:
        raise UsageError("no database holds such a value: a text with a NUL in it")
    return data


_OF_ITEM = ("21", "22", "23", "42", "44", "54", "P0", "0A")
_AGAIN = frozenset(("40001", "40P01", "57P01", "57P02", "57P03", "57P05", "25P03", "25P04", "53300", "08006", "08001"))
_STALE = "cached plan must not change result type"


def blames_item(error: Exception) -> bool:
    """Whether the statement's own values are at fault, and not the server, the lock or the disk."""
    if not isinstance(error, Failed):
        return True
    return not isinstance(error, Lost) and error.code.startswith(_OF_ITEM) and error.code not in UNTYPED


def passes(error: Failed) -> bool:
    """Whether the same may succeed in a moment, on a new connection."""
    if error.code in _AGAIN or error.code in UNTYPED:
        return True
    return (isinstance(error, Lost) and not error.code) or _STALE in str(error)


def translate(error: Failed, place: str) -> PilotError:
    """An error in words that say what to do; `place` is the store's URL without anything secret."""
    code, text = error.code, " ".join(str(error).split())
    match code:
        case "55P03":
            return Busy(f"{place} is locked by another process for more than {PATIENCE:.0f} s; try again")
        case "57014":
            return Busy(f"{place} took too long, and nothing was written; try again")
        case "53300":
            return Busy(f"{place} has no connection left ({text}); raise max_connections, or stop what holds them")
        case "53100":
            return StoreError(f"the disk of {place} is full; nothing was written. Make room and try again")
        case "25006":
            return StoreError(
                f"{place} is read-only, as a standby is ({text}). Name the primary in `store:`, or add "
                "`?target_session_attrs=read-write` behind all its hosts"
            )
        case "28P01" | "28000":
            return StoreError(f"{place} refuses this login ({text}); check the user, and the password in `store:`, "
                              "PGPASSWORD or ~/.pgpass")  # fmt: skip
        case "3D000":
            return StoreError(f"{place}: there is no such database ({text}); make it: `createdb -O USER NAME`")
        case "42501":
            return StoreError(
                f"{place}: the role may not do that ({text}); make it the owner of the database, or "
                "`GRANT USAGE, CREATE ON SCHEMA public TO` it"
            )
        case "XX001" | "XX002":
            return StoreRefused(f"{place} is damaged ({text}); restore a backup")
    if isinstance(error, Lost) or code in _AGAIN:
        return Busy(f"{place} can't be reached ({text}); is the server up?")
    return StoreError(f"{place}: {text}")


_WORDS = (
    ("28P01", re.compile(r"password authentication failed|no password supplied")),
    ("28000", re.compile(r"no pg_hba\.conf entry|role .* does not exist|authentication failed|is not permitted")),
    ("3D000", re.compile(r"database .* does not exist")),
    ("53300", re.compile(r"too many clients|remaining connection slots|too many connections")),
    ("57P03", re.compile(r"is starting up|is shutting down|in recovery mode|not yet accepting")),
    ("25006", re.compile(r"session is (read-only|not read-only)|server is (in hot standby|not in hot standby)")),
)


def refused(text: str) -> Lost:
    """Why a connection could not be made: libpq says it in words alone."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    code = next((code for code, words in _WORDS if words.search(text)), "")
    return Lost(code, "; ".join(lines) or "no answer")
