"""Seams to the outside world: what is owed to it, what comes from it, and who of several nodes deals with it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from pilot.domain.delivery import Arrival, Effect, EffectKind, Pull, PullState, Refusal, Report
from pilot.domain.errors import PilotError
from pilot.domain.execution import Enqueued
from pilot.domain.task import Task


class Later(PilotError):
    """A handler can't do it now: the effect waits until `at` (UTC ms; None: a growing pause) and is tried again."""

    def __init__(self, reason: str, at: int | None = None) -> None:
        super().__init__(reason)
        self.at = at


class GiveUp(PilotError):
    """A handler will never be able to do it, as things stand; the effect ends with this reason, and people see it."""


class SourcePaused(PilotError):
    """A source can't be read now. `until` (UTC ms; None: a growing pause). `remedy`: only a person can change that."""

    def __init__(self, reason: str, until: int | None = None, *, remedy: str = "") -> None:
        super().__init__(reason)
        self.until = until
        self.remedy = remedy


class Outbox(Protocol):
    """Effects owed, in order per lane, at most one node at each. All durable on return."""

    async def take(
        self,
        node: str,
        kinds: Collection[EffectKind],
        *,
        lease: int,
        max: int = 8,
        projects: Collection[int] | None = None,
        execution: int | None = None,
    ) -> list[Effect]:
        """Lease the oldest due undelivered effect of up to `max` lanes, of these kinds, for `lease` ms.

        An effect that is bound to a host is given to that host's nodes only. `projects`: only theirs, and those of
        no project. `execution`: only this one's.
        """
        ...

    async def renew(self, effects: Collection[Effect], node: str, lease: int) -> set[int]:
        """Extend the node's leases of these, for `lease` ms from now; the ids of those that it still has.

        A node that is known to be dead (`Queue.recover`) holds nothing any more.
        """
        ...

    async def delivered(self, effect: Effect, node: str, result: Mapping[str, Any] | None = None) -> bool:
        """It is done; `result` is kept for later ones (`Report.sent`). False: the lease was lost, nothing written."""
        ...

    async def supersede(self, effect: Effect, upto: int) -> None:
        """The execution's other undelivered effects of this kind, up to this event, are covered by this one."""
        ...

    async def postpone(self, effect: Effect, node: str, until: int, error: str) -> bool:
        """Not now; `tries` rises."""
        ...

    async def give_up(self, effect: Effect, node: str, error: str) -> bool:
        """Never; with the event `delivery.failed`. A `publish` that ends so ends its pull request as `failed`."""
        ...

    async def add(self, effects: Sequence[tuple[EffectKind, str, str, Mapping[str, Any]]], *, of: Effect) -> None:
        """More effects (kind, key, lane, payload) that follow from one, once per key."""
        ...

    async def next_due(self, kinds: Collection[EffectKind], node: str | None = None) -> int | None:
        """When (UTC ms) the next of them can be tried, by this node if one is named; None: nothing is owed."""
        ...

    async def owing(self, execution: int, kinds: Collection[EffectKind]) -> str | None:
        """Why the oldest undelivered one of an execution waits ("": not tried yet); None: it owes nothing."""
        ...

    async def report(self, execution: int) -> Report:
        """How it stands, for whoever tells people. Raises `NotFound`."""
        ...


class Inbox(Protocol):
    """Webhooks, stored before they are acknowledged."""

    async def store(self, source: str, delivery: str, digest: str, event: str, action: str, payload: str) -> bool:
        """Keep it. False: seen before, by delivery id or by the digest of its body."""
        ...

    async def take(self, node: str, source: str, *, lease: int, max: int = 16) -> list[Arrival]:
        """Lease the oldest unhandled ones that are due, in order."""
        ...

    async def handled(self, arrival: Arrival, node: str) -> None:
        """Done with."""
        ...

    async def postpone(self, arrival: Arrival, node: str, until: int, error: str) -> None:
        """Not now; `tries` rises."""
        ...


class Refusals(Protocol):
    """Requests that were turned down, each once, with the event `trigger.refused`."""

    async def known(self, project_id: int, keys: Collection[str]) -> Mapping[str, str]:
        """Of these trigger keys (idempotency keys of tasks): those decided, as `accepted` or `refused`."""
        ...

    async def refuse(self, refusal: Refusal) -> bool:
        """Store it; False: known already."""
        ...


class Pulls(Protocol):
    """Our pull requests, as last seen. A final state never changes. All changes come with their events."""

    async def live(self, projects: Collection[int]) -> list[Pull]:
        """Owed and open ones, oldest first."""
        ...

    async def of(self, execution: int) -> Pull | None:
        """The one that holds this execution's work."""
        ...

    async def pushed(self, pull: int, sha: str) -> None:
        """Our push has been seen to have taken effect."""
        ...

    async def opened(self, pull: int, *, number: int, url: str, head_sha: str) -> bool:
        """It is there, with our push. Its executions get `delivery: pr_open`, `pr_url`; event `pull.opened` once each.

        False: it has ended, and nothing was written.
        """
        ...

    async def saw(
        self,
        pull: int,
        *,
        state: PullState | None = None,
        checks: str | None = None,
        red: Sequence[str] = (),
        seen: Mapping[str, Any] | None = None,
        stuck: str | None = None,
        sha: str | None = None,
    ) -> bool:
        """What reading it back has shown; True when its state or checks changed, or it is `stuck` for the first time.

        `sha`: the commit that `checks` are of; those of one that is not ours any more are not written. Of an ended
        one: the commit that it ended with; work that had not come to it then is owed a pull request of its own.
        `checks` is written to its execution, `merged` and `closed` become the delivery of all its executions, with
        an effect `clean` for each that kept a workspace. Events `pull.checks`, `pull.merged`, `pull.closed`.
        `seen` replaces what was remembered. `stuck`: why nobody repairs it any more, so that a person has to look;
        event `pull.repairs_used_up` with that `why`, in the same transaction.
        """
        ...

    async def repair(self, pull: int, task: Task, *, limit: int) -> Enqueued | None:
        """Enqueue a repair, once per idempotency key, and count it.

        None: `limit` is used up (event, once), or it has ended. Raises `UsageError`, `NotFound` as `Queue.enqueue`.
        """
        ...

    async def by_number(self, project_id: int, number: int) -> Pull | None:
        """By its number outside."""
        ...


class Duties(Protocol):
    """Work that one node of all does at a time, and what it has to remember for whoever does it next."""

    async def hold(self, name: str, node: str, lease: int) -> bool:
        """Take it, or keep it, for `lease` ms; False: another living node has it."""
        ...

    async def free_at(self, name: str) -> int:
        """When (UTC ms) another may have it, if it is not kept; in the past: now."""
        ...

    async def release(self, name: str, node: str) -> None:
        """Let another have it at once."""
        ...

    async def recall(self, name: str) -> Mapping[str, Any]:
        """What was remembered; empty at first."""
        ...

    async def remember(self, name: str, node: str, state: Mapping[str, Any]) -> bool:
        """Replace it; False: the duty is another's now, nothing written."""
        ...


class SourceHealth(Protocol):
    """How each source does, for `status`, `why` and `doctor`."""

    async def saw(self, name: str, status: str, *, reason: str = "", until: int | None = None) -> None:
        """`ok`, `paused` (until a time) or `failing` (a person is needed), at this moment."""
        ...


class Source(Protocol):
    """A place that tasks come from. Idempotent throughout: everything may be called again after a crash.

    `name` is the word for `Task.source`. `every`: seconds between polls; None: there is nothing to poll. `lanes`:
    duties that this source's polls take, so that one node of all does them.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def every(self) -> float | None: ...  # noqa: D102

    async def poll(self) -> None:
        """Look once, and put through the intake what is new. Raises `SourcePaused`."""
        ...

    def verify(self, headers: Mapping[str, str], body: bytes) -> Any:
        """A webhook's `clients.webhooks.Delivery`; raises its `NotAccepted`. Fast and without I/O.

        Raises `NotFound` when this source takes no webhooks.
        """
        ...

    async def handle(self, arrival: Arrival) -> None:
        """Act on a stored webhook. Raises `Later`, `SourcePaused`; any other error is retried a few times."""
        ...

    async def acknowledge(self, report: Report) -> Mapping[str, Any] | None:
        """The first word to whoever asked (event `execution.queued`)."""
        ...

    async def report(self, report: Report) -> Mapping[str, Any] | None:
        """Make the ticket show how things stand now; what it returns is kept (`Report.sent`). `Later`, `GiveUp`."""
        ...
