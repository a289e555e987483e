"""What a worker and the queue owe each other, whoever the worker is: a machine, a script, an agent's pane.

One port, `WorkQueue`, with two implementations: the store's own, and `pilot.client.Client` over HTTP.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pilot.domain.agent import OutputKind
from pilot.domain.execution import Execution
from pilot.domain.outcome import Outcome, Usage

LEASE = 30_000
"""ms that a worker holds what it claimed, unless it asks for more; it renews at half of it."""
LEASES = (1_000, 3_600_000)
"""ms: the shortest and the longest lease that a worker may ask for."""
WORKER = "worker:"
"""How a worker's node id begins; its name is the rest."""
MAX_CLAIMED = 100
"""Executions in one claim, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a worker takes; an empty field means any. `projects` are names."""

    lanes: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    projects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that comes with a result. `name` is a relative path with `/`."""

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Its content's hash, in hex: the store keeps it by this."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What an execution that another one waits for has come to."""

    id: int
    task_id: str
    branch: str | None
    head_sha: str | None
    artifacts: tuple[Mapping[str, Any], ...] = ()
    """Each `name`, `sha256`, `size`."""
    direct: bool = True
    """It waited for this one itself; else for one behind which this one stands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What a worker holds until `lease_until` (UTC ms); `fence` goes with everything it says of it."""

    execution: Execution
    fence: int
    lease_until: int
    made: tuple[Made, ...] = ()
    """Of what it waited for, in the order of ids."""


@dataclass(frozen=True, slots=True)
class Beaten:
    """The answer to a heartbeat. `cancel_requested`: somebody wants the end of it: stop, then `release` or `fail`."""

    lease_until: int
    cancel_requested: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """What a worker takes together with its last word, as `claim` would without waiting: one call where two would be.

    It is claimed when the last word counts, also when it had been said before.
    """

    max: int = 1
    wanted: Wanted = Wanted()
    lease: int = LEASE


@dataclass(frozen=True, slots=True)
class Settled:
    """The execution after a worker's last word. `duplicate`: the same claim had said it before; nothing changed.

    `after`: the ids that it waited for. `sandbox`: what its last attempt ran in. `claims`: what came of `Next`.
    """

    execution: Execution
    duplicate: bool = False
    after: tuple[int, ...] = ()
    sandbox: str | None = None
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a worker may say of a run under way, with a heartbeat; only what is set is stored.

    The facts are those of `Journal.note`; `usage` is what the attempt has used up so far, in all.
    """

    facts: Mapping[str, str] = field(default_factory=dict)
    usage: Usage | None = None


class WorkQueue(Protocol):
    """The durable queue as workers use it. Each method is one transaction, durable when it returns.

    `worker` is the name under which it was claimed. All that is said of a claim is fenced: raises `LeaseLost` when
    (id, worker, fence) is not the running claim any more, and then nothing was written. Raises `NotFound` for an id
    that never was, `UsageError` for what makes no sense, `StoreError` and `Busy` as the store does.
    """

    async def claim(
        self,
        worker: str,
        *,
        max: int = 1,
        wanted: Wanted = Wanted(),
        lease: int = LEASE,
        wait: float = 0.0,
    ) -> list[Claim]:
        """Take up to `max` executions, never beyond a project's `max_running`, those that have waited longest first.

        Waits up to `wait` seconds for the first. A worker gets what is left to it (`external`) and everything else.
        """
        ...

    async def heartbeat(
        self,
        id: int,
        worker: str,
        fence: int,
        *,
        lease: int = LEASE,
        progress: Progress = Progress(),
    ) -> Beaten:
        """Renew one lease for `lease` ms from now."""
        ...

    async def output(self, id: int, worker: str, fence: int, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        """Append to the attempt's output, in order."""
        ...

    async def complete(
        self,
        id: int,
        worker: str,
        fence: int,
        outcome: Outcome,
        artifacts: Sequence[Artifact] = (),
        *,
        next: Next | None = None,
    ) -> Settled:
        """It is done, changed nothing, or asks (`outcome.ending` DONE, NO_CHANGE, QUESTION); and what comes next.

        The same again, after an answer that was lost, gives the same answer. Raises `UsageError` for artifacts that
        break the single-writer rule; the claim stands, then.
        """
        ...

    async def fail(self, id: int, worker: str, fence: int, outcome: Outcome, *, next: Next | None = None) -> Settled:
        """It failed (`outcome.ending` FAILED); admission decides what follows. The same again as for `complete`."""
        ...

    async def release(self, id: int, worker: str, fence: int, reason: str = "") -> Settled:
        """Give it back, uncounted; when somebody had asked for its end, it is cancelled. The same again likewise."""
        ...


def writes_once(artifacts: Sequence[Artifact], *, dual: bool) -> str | None:
    """Why these can't be one result, in words; None when they can: one `.diff`, or whole files; both if `dual`.

    Names are relative paths of printable characters that stay inside, each once.
    """
    names = [artifact.name for artifact in artifacts]
    for name in names:
        parts = name.split("/")
        if not name.isprintable() or "\\" in name or len(name) > 500 or not {"", ".", ".."}.isdisjoint(parts):
            return f"an artifact is named by a relative path, not {name[:80]!r}"
        if ".git" in map(str.casefold, parts):
            return f"an artifact can't stand in .git: {name[:80]!r}"
    if len(set(names)) < len(names):
        return "two artifacts have the same name"
    diffs = [name for name in names if name.endswith((".diff", ".patch"))]
    if len(diffs) > 1 and not dual:
        return f"a step gives one .diff, not {len(diffs)}: {', '.join(diffs)[:200]}"
    if diffs and len(names) > len(diffs) and not dual:
        return "a step gives either one .diff or whole files, not both, unless its payload says #dual"
    return None
