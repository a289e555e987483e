"""What keeps work from agents, for people: parked backends, and money that is spent or set aside. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pilot.domain.budget import MILLIONTHS, Budget, day_after, day_of
from pilot.domain.execution import Execution
from pilot.domain.ports import Document, Hold
from pilot.domain.text import one_line
from pilot.store.database import Database
from pilot.store.documents import rfc3339
from pilot.store.parks import TRIED
from pilot.store.spending import fits


@dataclass(frozen=True, slots=True)
class Parked:
    """One park as it stands; `probe` is the execution that tries it at `now`. Times are UTC ms."""

    now: int
    backend: str
    account: str
    failure: str
    reason: str
    until: int | None
    since: int
    tries: int
    probe: int | None

    @property
    def state(self) -> str:
        """`probed` | `for_a_person` | `parked` (until a time) | `half_open`."""
        if self.probe is not None:
            return "probed"
        if self.until is None:
            return "for_a_person"
        return "parked" if self.until > self.now else "half_open"

    @property
    def closed(self) -> bool:
        """Whether nothing may start with it."""
        return self.state != "half_open"

    def holds(self, account: str) -> bool:
        """Whether it keeps that account from work."""
        return self.closed and self.account in ("", account)

    def hold(self) -> Hold:
        """As a reason."""
        why = f"{self.failure}: {one_line(self.reason)}"
        if self.probe is not None:
            return Hold("parked", f"{self.backend} is being tried by {self.probe}, after {why}", self.probe)
        return Hold("parked", f"{self.backend} takes no work: {why}", None, self.until)

    def document(self) -> Document:
        """As `status --json` and `backend list --json` have it."""
        return {
            "backend": self.backend,
            "account": self.account or None,
            "state": self.state,
            "failure_class": self.failure,
            "reason": self.reason,
            "until": rfc3339(self.until) if self.state == "parked" else None,
            "since": rfc3339(self.since),
            "tries": self.tries,
            "probe": self.probe,
        }


def words(park: Document) -> str:
    """Where a park stands, for a line: what `status`, `doctor` and `backend list` say alike."""
    match park["state"]:
        case "probed":
            return f"is being tried by {park['probe']}"
        case "half_open":
            return "open for one task to try it"
        case "parked":
            return f"until {park['until']}"
        case _:
            return "until somebody unparks it"


async def parked(database: Database, now: int) -> list[Parked]:
    """Every park, by backend and account."""
    rows = await database.read(
        f"SELECT k.backend, k.account, k.failure, k.reason, k.until, k.since, k.tries, "
        f"CASE WHEN {TRIED} THEN k.probe_id END FROM parks k ORDER BY k.backend, k.account"
    )
    return [Parked(now, *row) for row in rows]


@dataclass(frozen=True, slots=True)
class Server:
    """A node that may run a project's work: its accounts by backend, and its limits."""

    accounts: Mapping[str, str]
    budget: Budget


async def servers(database: Database, execution: Execution, now: int) -> list[Server]:
    """The nodes that are up and could run it: the one it is reserved for, else all that serve its project."""
    which = "n.id = :own" if execution.reserved_for is not None else "n.kind = 'serve'"
    rows = await database.read(
        "SELECT n.id, n.per_execution_usd, n.per_day_usd, a.backend, a.account FROM nodes n "
        "LEFT JOIN node_accounts a ON a.node_id = n.id AND a.project_id = :project "
        f"WHERE n.lease_until > :now AND {which} AND (n.choosy = 0 OR EXISTS (SELECT 1 FROM node_projects s "
        "WHERE s.node_id = n.id AND s.project_id = :project))",
        {"now": now, "project": execution.project_id, "own": execution.reserved_for},
    )
    found: dict[str, tuple[dict[str, str], Budget]] = {}
    for id, per_execution, per_day, backend, account in rows:
        accounts, _ = found.setdefault(id, ({}, Budget(per_execution, per_day)))
        if backend is not None:
            accounts[backend] = account
    return [Server(accounts, budget) for accounts, budget in found.values()]


def closed(parks: Sequence[Parked], nodes: Sequence[Server]) -> dict[str, list[Hold]]:
    """The backends that none of these nodes may use, and why."""
    found: dict[str, list[Hold]] = {}
    for backend in dict.fromkeys(park.backend for park in parks):
        own = [park for park in parks if park.backend == backend and park.closed]
        per_node = [[p for p in own if p.holds(node.accounts.get(backend, ""))] for node in nodes] or [own]
        if all(per_node):
            holding = sorted(
                {p for parks in per_node for p in parks}, key=lambda p: (p.probe is None, p.until or 2**62)
            )
            found[backend] = [park.hold() for park in holding]
    return found


async def budget_holds(database: Database, execution: Execution, nodes: Sequence[Server], now: int) -> list[Hold]:
    """What money keeps it from: what it has cost itself, or what the day has left on every node."""
    if not nodes or any(node.budget == Budget() for node in nodes):
        return []
    spent, reserved = await booked(database, now)
    found: list[Hold] = []
    for budget in dict.fromkeys(node.budget for node in nodes):
        hold = _budget_hold(budget, execution, spent, reserved, now)
        if hold is None:
            return []
        found.append(hold)
    return found[:1]


def _budget_hold(budget: Budget, execution: Execution, spent: int, reserved: int, now: int) -> Hold | None:
    cost = max(0.0, (execution.cost_usd or 0.0) - execution.forgiven_usd)
    if budget.left(execution) == 0:
        limit = f"${budget.per_execution:.2f} that a task may cost (budget.per_execution_usd)"
        return Hold("budget", f"it has cost ${cost:.2f} of the {limit}")
    if fits(budget, execution.cost_usd, execution.forgiven_usd, spent + reserved):
        return None
    wanted = (budget.reservation(execution.cost_usd, execution.forgiven_usd) or 0) / MILLIONTHS
    return Hold(
        "budget",
        f"${spent / MILLIONTHS:.2f} spent and ${reserved / MILLIONTHS:.2f} set aside of this day's "
        f"${budget.per_day:.2f} (budget.per_day_usd); it would set aside ${wanted:.2f} more",
        None,
        day_after(now),
    )


async def booked(database: Database, now: int) -> tuple[int, int]:
    """Millionths of a dollar of this UTC day: (spent, set aside)."""
    rows = await database.read("SELECT spent, reserved FROM spending WHERE day = :day", {"day": day_of(now)})
    return (rows[0][0], rows[0][1]) if rows else (0, 0)


async def budget_document(database: Database, now: int) -> Document | None:
    """This day's money, by the tightest limits of the nodes that are up; None: nobody limits it."""
    ((per_execution, per_day),) = await database.read(
        "SELECT min(per_execution_usd), min(per_day_usd) FROM nodes WHERE lease_until > :now", {"now": now}
    )
    if per_execution is None and per_day is None:
        return None
    spent, reserved = await booked(database, now)
    return {
        "per_execution_usd": per_execution,
        "per_day_usd": per_day,
        "spent_usd": spent / MILLIONTHS,
        "reserved_usd": reserved / MILLIONTHS,
        "until": rfc3339(day_after(now)),
    }
