"""Who may call over HTTP: tokens, of which only a hash is kept, and looked at without a read per request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass

import structlog

from pilot.domain.access import Caller, Scope, Token, scopes_of
from pilot.domain.errors import NotFound, PilotError, UsageError
from pilot.domain.text import clean, one_line
from pilot.store.audit_log import INSERT
from pilot.store.database import Database, Row, Rows, Statement, Step

log = structlog.get_logger()
FRESH = 1_000
"""ms for which what was read counts: after so long at most, a token that another process revoked does not."""
USED_EVERY = 60_000
"""ms between two notes of a token's use."""
LONGEST_NAME = 100
_TOKEN = re.compile(r"pilot_([0-9a-f]{16})_([A-Za-z0-9_-]{43})", re.ASCII)
_NOBODY = ("0" * 16, "0" * 43)
_COLUMNS = "id, name, scopes, created_at, created_by, expires_at, last_used_at, revoked_at, digest"


@dataclass(frozen=True, slots=True)
class _Kept:
    """A row: the token as people see it, and the hash of its secret."""

    token: Token
    digest: str

    def counts(self, now: int) -> bool:
        """Neither revoked nor expired."""
        expires = self.token.expires_at
        return self.token.revoked_at is None and (expires is None or now < expires)


_UNKNOWN = _Kept(Token(id="", name="", scopes=frozenset(), created_at=0, created_by="", revoked_at=0), "0" * 64)


@dataclass(frozen=True, slots=True)
class _Revocation:
    id: str
    by: str


class SqlTokens:
    """Implements `access.Tokens`. There are few tokens: all of them are read, once a second at most."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._kept: dict[str, _Kept] = {}
        self._read_at: int | None = None
        self._reading = asyncio.Lock()
        self._changes = 0
        self._used: dict[str, int] = {}

    async def create(self, name: str, scopes: Collection[Scope], by: str, expires_at: int | None = None) -> str:
        """See `Tokens.create`."""
        name = clean(name).strip()
        if not name or name != one_line(name, LONGEST_NAME):
            raise UsageError(f"a token needs a name: one line of 1 to {LONGEST_NAME} characters")
        if not scopes:
            raise UsageError(f"a token needs a scope: {', '.join(Scope)}")
        now = self._database.clock()
        if expires_at is not None and not now < expires_at < 1 << 53:
            raise UsageError("a token that has expired already is of no use; give a time in the future")
        id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
        token = Token(
            id=id, name=name, scopes=scopes_of(scopes), created_at=now, created_by=clean(by), expires_at=expires_at
        )
        await self._database.write(self._creates, _Kept(token, _digest(secret)))
        self._changed()
        return f"pilot_{id}_{secret}"

    async def check(self, token: str) -> Caller | None:
        """See `Tokens.check`. Whatever is wrong with it, the same is done and answered."""
        parts = _TOKEN.fullmatch(token)
        id, secret = (parts[1], parts[2]) if parts is not None else _NOBODY
        now = await self._refresh()
        kept = self._kept.get(id, _UNKNOWN)
        same = hmac.compare_digest(_digest(secret), kept.digest)
        if not (same and kept.counts(now)):
            return None
        if abs(now - self._used.get(id, kept.token.last_used_at or 0)) >= USED_EVERY:
            await self._note(id, now)
        return Caller(kept.token.id, kept.token.name, kept.token.scopes)

    async def valid(self, id: str) -> bool:
        """Whether the token with this public part still counts, for whoever was let in long ago."""
        now = await self._refresh()
        return self._kept.get(id, _UNKNOWN).counts(now)

    async def revoke(self, id: str, by: str) -> Token:
        """See `Tokens.revoke`. Who did it is in the audit log."""
        token = await self._database.write(self._revokes, _Revocation(clean(id), clean(by)))
        self._changed()
        return token

    async def _refresh(self) -> int:
        """See to it that what is known is not older than `FRESH`; now."""
        if self._is_fresh(now := self._database.clock()):
            return now
        async with self._reading:  # whoever comes meanwhile waits for the same answer
            if self._is_fresh(now := self._database.clock()):
                return now
            changes = self._changes
            rows = await self._database.read(f"SELECT {_COLUMNS} FROM tokens")
            self._kept = {row[0]: _to_kept(row) for row in rows}
            # As old as the question; and if something was changed here meanwhile, the next one asks again.
            self._read_at = now if self._changes == changes else None
        return now

    def _changed(self) -> None:
        self._changes += 1
        self._read_at = None

    def _is_fresh(self, now: int) -> bool:
        # A clock that was set back must not make what is known last for ever.
        return self._read_at is not None and abs(now - self._read_at) < FRESH

    async def _note(self, id: str, now: int) -> None:
        self._used[id] = now  # before it is written: those who come meanwhile needn't write it, too
        try:
            await self._database.write(self._uses, (id, now))
        except PilotError as error:  # a note; nobody is turned away for it
            log.warning("token.use_not_noted", token=id, error=str(error))

    def _creates(self, items: Sequence[_Kept]) -> Generator[Step, Rows, list[None]]:
        yield Statement(
            "INSERT INTO tokens (id, name, digest, scopes, created_at, created_by, expires_at) "
            "VALUES (:id, :name, :digest, :scopes, :at, :by, :expires)",
            many=[
                {
                    "id": each.token.id, "name": each.token.name, "digest": each.digest,
                    "scopes": json.dumps(sorted(each.token.scopes)), "at": each.token.created_at,
                    "by": each.token.created_by, "expires": each.token.expires_at,
                }
                for each in items
            ],
        )  # fmt: skip
        return [None] * len(items)

    def _uses(self, items: Sequence[tuple[str, int]]) -> Generator[Step, Rows, list[None]]:
        yield Statement(
            "UPDATE tokens SET last_used_at = :at WHERE id = :id", many=[{"id": id, "at": at} for id, at in items]
        )
        return [None] * len(items)

    def _revokes(self, items: Sequence[_Revocation]) -> Generator[Step, Rows, list[Token | Exception]]:
        now = self._database.clock()
        answers: list[Token | Exception] = []
        for each in items:
            ended = yield Statement(
                "UPDATE tokens SET revoked_at = :now WHERE id = :id AND revoked_at IS NULL RETURNING id",
                {"now": now, "id": each.id},
            )
            rows = yield Statement(f"SELECT {_COLUMNS} FROM tokens WHERE id = :id", {"id": each.id})
            if ended:
                yield Statement(INSERT, many=[_row_of(each, now)])
            answers.append(
                _to_kept(rows[0]).token if rows else NotFound(f"no token {each.id!r}; `pilot token list` shows them")
            )
        return answers

    async def list(self) -> list[Token]:
        """See `Tokens.list`."""
        rows = await self._database.read(f"SELECT {_COLUMNS} FROM tokens ORDER BY created_at, id")
        return [_to_kept(row).token for row in rows]


def _row_of(revocation: _Revocation, now: int) -> dict[str, str | int]:
    return {
        "at": now, "token": revocation.id, "actor": revocation.by, "peer": "", "method": "REVOKE",
        "path": f"tokens/{revocation.id}", "status": 200,
    }  # fmt: skip


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _to_kept(row: Row) -> _Kept:
    id, name, words, created_at, created_by, expires_at, last_used_at, revoked_at, digest = row
    known = frozenset(scope for scope in Scope if scope in json.loads(words))
    token = Token(
        id=id, name=name, scopes=known, created_at=created_at, created_by=created_by, expires_at=expires_at,
        last_used_at=last_used_at, revoked_at=revoked_at,
    )  # fmt: skip
    return _Kept(token, digest)
