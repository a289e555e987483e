"""Who may do what over HTTP: tokens, their scopes, and what is kept of every call that changes something."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Scope(StrEnum):
    """What a token is good for; each includes those before it."""

    READ = "read"  #: look at everything
    WORK = "work"  #: put tasks and plans in, claim, and speak of what it claimed
    ADMIN = "admin"  #: cancel, retry, answer, pause; tasks that run commands


def scopes_of(scopes: Collection[Scope]) -> frozenset[Scope]:
    """With all that they include."""
    order = list(Scope)
    highest = max((order.index(scope) for scope in scopes), default=-1)
    return frozenset(order[: highest + 1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as people see it. Times are UTC ms; `id` is its public part."""

    id: str
    name: str
    scopes: frozenset[Scope]
    created_at: int
    created_by: str
    expires_at: int | None = None
    last_used_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a token that counts, and the address it came from."""

    token: str
    name: str
    scopes: frozenset[Scope]
    peer: str = ""

    def may(self, scope: Scope) -> bool:
        """Whether its scopes include this one."""
        return scope in self.scopes


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that was to change something; `at` is UTC ms, `status` that of the answer."""

    at: int
    token: str
    actor: str
    peer: str
    method: str
    path: str
    status: int
    id: int = 0


class Tokens(Protocol):
    """Where tokens are kept: hashed, so that whoever reads the store can't call."""

    async def create(self, name: str, scopes: Collection[Scope], by: str, expires_at: int | None = None) -> str:
        """A new one, whole: `pilot_<id>_<secret>`; it is never shown again. Raises `UsageError`."""
        ...

    async def check(self, token: str) -> Caller | None:
        """Whose it is; None for one that does not count (unknown, wrong, revoked, expired). Notes its last use."""
        ...

    async def list(self) -> list[Token]:
        """All, the revoked ones, too; the oldest first."""
        ...

    async def revoke(self, id: str, by: str) -> Token:
        """It counts no more, from the next call on. Raises `NotFound`."""
        ...


class Audit(Protocol):
    """What was asked over HTTP."""

    async def write(self, *calls: Call) -> None:
        """Keep them, in this order, durable on return."""
        ...

    async def read(self, *, before: int | None = None, limit: int = 100) -> Sequence[Call]:
        """The newest first, those before an id."""
        ...
