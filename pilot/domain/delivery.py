"""How far a result has come outside: effects owed, pull requests, and what a ticket is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pilot.domain.execution import Execution
from pilot.domain.outcome import GateResult


class EffectKind(StrEnum):
    """What is owed to the outside; each has one handler."""

    PUBLISH = "publish"  #: push the branch, then find or open its pull request
    REPORT = "report"  #: make the ticket show how things stand
    NOTIFY = "notify"  #: tell people who asked to be told; becomes one `tell` per target
    TELL = "tell"  #: one message to one target of `notify`
    CALLBACK = "callback"  #: tell the address that came with the task how it stands
    CLEAN = "clean"  #: the pull request has ended: its workspace is not needed any more


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One row of the outbox. Of one `lane`, only the oldest undelivered one is ever worked on.

    Except that a report goes past a publication that has been put off, so that people see what it waits for, and a
    publication past such a report, since the ticket's service may be down.
    `key` is its identity outside, too (a marker, a client's UUID). `event` is the id of the event that caused it.
    `tries` counts those before this one. `payload` is its kind's own: of a publication `pull repo base draft branch
    head_sha`, of a report its event's `type`, of a notification `type` and `data`, of a callback
    `type` and `url`, of a clean-up `pull workspace`.
    `claim` tells this taking of it from others.
    """

    id: int
    kind: EffectKind
    key: str
    lane: str
    execution: int | None
    project_id: int | None
    fence: int
    event: int | None
    payload: Mapping[str, Any]
    tries: int
    created_at: int
    claim: int = 0


class PullState(StrEnum):
    """Where a pull request stands."""

    OWED = "owed"  #: to be opened
    OPEN = "open"
    MERGED = "merged"  #: final
    CLOSED = "closed"  #: final; a person said no
    FAILED = "failed"  #: final: it could not be opened; `error` says why


@dataclass(frozen=True, slots=True, kw_only=True)
class Pull:
    """One pull request of ours: one per (project, branch) at a time. Times are UTC ms.

    `execution` is the last whose work it holds, `head_sha` what that made; `pushed_sha` what the remote branch was
    last seen at after our push. `checks` is SPEC's word; `red` names what failed. `repairs`: executions spent on it.
    `seen` is what reading it back has to remember (etags, the last review), its reader's own.
    """

    id: int
    project_id: int
    execution: int
    task_id: str
    branch: str
    repo: str
    base: str
    draft: bool
    number: int | None
    url: str | None
    head_sha: str
    pushed_sha: str | None
    state: PullState
    checks: str
    red: tuple[str, ...]
    repairs: int
    seen: Mapping[str, Any]
    error: str | None
    created_at: int
    opened_at: int | None
    ended_at: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question of an execution, open or answered. `id` names it: an answer to an older one is too late."""

    id: int
    text: str
    options: tuple[str, ...]
    default: str | None
    asked_at: int
    answer: str | None = None
    answered_by: str | None = None
    answered_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How an execution stands, read in one snapshot, for whoever tells people. Nothing of it is redacted yet.

    `event` is the newest event it knows of, `type` that event's. `ahead`: executions that go first, for a queued one;
    `holds`: for which pull requests it waits, one sentence each.
    `summary`, `gates`, `tree`: of the last attempt that ended. `question` is the newest one. `sent`: what earlier
    effects of this execution returned (ids of comments and messages), by effect kind ("report"), or by the `target`
    that stands in their payload; of several the newest one's keys win.
    """

    execution: Execution
    origin: Mapping[str, Any] | None
    event: int
    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    ahead: int | None = None
    holds: tuple[str, ...] = ()
    summary: str = ""
    gates: tuple[GateResult, ...] = ()
    tree: str | None = None
    question: Asked | None = None
    pull: Pull | None = None
    sent: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Somebody asked who may not, or in a way that does not count; stored once per `key`."""

    key: str
    source: str
    project_id: int | None
    task_id: str
    actor: str
    reason: str
    url: str = ""
    at: int = 0
    """When it was stored (UTC ms); the store's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A webhook that was verified and stored before it was acknowledged."""

    id: int
    source: str
    event: str
    action: str
    payload: Mapping[str, Any]
    received_at: int
    tries: int
    claim: int = 0
    """Tells this taking of it from others."""
