"""The auditor of the event log: what happened, replayed in the order of its ids, against every promise.

It knows the log, a few columns and what processes say that they were told; nothing of how the store does its work.
The log is read in one SELECT, so that it may be audited while nodes are at work; rows are compared once they rest.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pilot.domain.execution import FINAL, TRANSITIONS, Status
from pilot.store.database import Database, Statement

SLACK = 5
"""ms by which a node's reading of the database's clock may be behind another's."""

_BECOMES = {
    "execution.requeued": Status.QUEUED,
    "execution.unblocked": Status.QUEUED,
    "execution.answered": Status.QUEUED,
    "execution.asked": Status.NEEDS_HUMAN,
    "execution.completed": Status.COMPLETED,
    "execution.failed": Status.FAILED,
    "execution.cancelled": Status.CANCELLED,
}
_LATER = ("pull.", "delivery.")
"""Facts of an ended execution's result."""
_TICKETED = (
    *("execution.queued", "execution.started", "execution.requeued", "execution.asked", "execution.answered"),
    *("execution.completed", "execution.failed", "execution.cancelled"),
)
_CALLED_BACK = ("execution.completed", "execution.failed", "execution.cancelled", "execution.asked")


class Fact(NamedTuple):
    """One row of the log."""

    id: int
    at: int
    type: str
    execution: int | None
    project: int | None
    data: Mapping[str, Any]


class Row(NamedTuple):
    """What is compared of an execution."""

    id: int
    project: int
    task_id: str
    priority: int
    status: str
    fence: int
    attempt: int
    key: str | None
    ticket: int
    callback: int


class Owed(NamedTuple):
    """What is compared of an effect."""

    id: int
    kind: str
    lane: str
    event: int | None
    delivered_at: int | None
    error: str | None


class Tried(NamedTuple):
    """What is compared of an attempt. `wrote`: when its last piece of output was stored."""

    execution: int
    number: int
    fence: int
    node: str
    started_at: int
    finished_at: int | None
    wrote: int | None


_LOG = "SELECT id, at, type, execution_id, project_id, data FROM events WHERE id > :after ORDER BY id"
_ROWS = """SELECT id, project_id, task_id, priority, status, fence, attempt, idempotency_key,
  CASE WHEN origin IS NULL THEN 0 ELSE 1 END, CASE WHEN callback_url IS NULL THEN 0 ELSE 1 END FROM executions"""
_OWED = "SELECT id, kind, lane, event_id, delivered_at, error FROM outbox ORDER BY id"
_TRIED = """SELECT a.execution_id, a.number, a.fence, a.node, a.started_at, a.finished_at,
  (SELECT max(o.at) FROM output o WHERE o.execution_id = a.execution_id AND o.attempt = a.number) FROM attempts a"""


@dataclass
class Story:
    """All there is to know of a store: its log, and its rows (empty, where only the log was read)."""

    most: Mapping[int, int]
    """By project, how many may run at once."""
    priorities: Mapping[int, int]
    log: Sequence[Fact]
    rows: Sequence[Row] = ()
    owed: Sequence[Owed] = ()
    tried: Sequence[Tried] = ()


async def follow(database: Database, after: int) -> list[Fact]:
    """What the log has after an id, as whoever follows it by a cursor sees it."""
    rows = await database.read(_LOG, {"after": after})
    return [Fact(id, at, type, execution, project, json.loads(data)) for id, at, type, execution, project, data in rows]


async def read(database: Database, *, rows: bool = True) -> Story:
    """The story so far. `rows` off: only the log, which is whole at any moment."""
    log = await follow(database, 0)
    asked = [
        Statement("SELECT id, max_running FROM projects"),
        Statement("SELECT id, priority FROM executions"),
        *([Statement(_ROWS), Statement(_OWED), Statement(_TRIED)] if rows else []),
    ]
    most, priorities, *more = await database.read_all(asked)
    story = Story(dict(most), dict(priorities), log)
    if rows:
        story.rows, story.owed, story.tried = (
            [shape(*row) for row in found] for shape, found in zip((Row, Owed, Tried), more, strict=True)
        )
    return story


def audit(story: Story, *, at_rest: bool = False) -> list[str]:
    """Every broken promise in words; none is an empty list. `at_rest`: nothing is left to do."""
    replay = Replay(story)
    found = [words for fact in story.log for words in replay.take(fact)]
    if story.rows:
        found += _rows(story, replay)
        found += _attempts(story, replay)
        found += _effects(story, at_rest=at_rest)
    if at_rest:
        found += [f"execution {id} is left {life.status}" for id, life in replay.lives.items() if not life.final]
        found += [f"project {id} has {len(slots)} slots taken" for id, slots in replay.slots.items() if slots]
    return found


@dataclass
class Life:
    """One execution, as far as the log has told."""

    project: int
    status: Status
    available_at: int
    asks: bool = False
    """Held from its beginning: what it asks comes next."""
    slot: int = 0
    fence: int = 0
    attempt: int = 0
    lost: bool = False
    ends: int = 0

    @property
    def final(self) -> bool:
        return self.status in FINAL


@dataclass
class Replay:
    """The log, fact by fact."""

    story: Story
    lives: dict[int, Life] = field(default_factory=dict)
    slots: defaultdict[int, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    fences: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    queued: defaultdict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    pauses: set[tuple[int, str]] = field(default_factory=set)
    nodes: dict[str, bool] = field(default_factory=dict)
    starts: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    """By execution and attempt: fence and node."""
    ends: dict[tuple[int, int], Status] = field(default_factory=dict)
    """By execution and fence: how that claim ended."""
    _last: Fact | None = None

    def take(self, fact: Fact) -> Iterator[str]:
        """What is wrong with the next one."""
        if self._last is not None:
            if fact.id <= self._last.id:
                yield f"event {fact.id} comes after event {self._last.id}"
            if fact.at < self._last.at - SLACK:
                yield f"event {fact.id} ({fact.type}) is {self._last.at - fact.at} ms older than the one before it"
        self._last = fact
        if fact.execution is None:
            yield from self._store(fact)
        elif fact.type == "execution.queued":
            yield from self._queued(fact, fact.execution)
        elif fact.execution not in self.lives:
            yield f"{fact.type} of execution {fact.execution}, which was never queued"
        else:
            yield from self._told(fact, self.lives[fact.execution])

    def _store(self, fact: Fact) -> Iterator[str]:
        match fact.type:
            case "node.started":
                self.nodes[fact.data["node"]] = True
            case "node.stopped":
                if not self.nodes.get(fact.data["node"]):
                    yield f"node {fact.data['node']} stopped, and was not there"
                self.nodes[fact.data["node"]] = False
            case "project.paused":
                self.pauses.add((fact.project or 0, fact.data["owner"]))
            case "project.resumed":
                self.pauses.discard((fact.project or 0, fact.data["owner"]))

    def _queued(self, fact: Fact, id: int) -> Iterator[str]:
        if id in self.lives:
            yield f"execution {id} was queued twice"
            return
        status = Status(fact.data["status"])
        self.lives[id] = Life(fact.project or 0, status, fact.at, asks=status is Status.NEEDS_HUMAN)
        if status is Status.QUEUED:
            self.queued[fact.project or 0].add(id)

    def _told(self, fact: Fact, life: Life) -> Iterator[str]:
        id = fact.execution or 0
        if life.final and not fact.type.startswith(_LATER):
            yield f"{fact.type} of execution {id}, which had {life.status}"
            return
        if life.lost and fact.type not in _BECOMES:
            yield f"execution {id} was lost, and {fact.type} came next"
        if fact.type == "execution.started":
            yield from self._started(fact, id, life)
        elif fact.type == "execution.lost":
            if life.status is not Status.RUNNING:
                yield f"execution {id} was lost while it was {life.status}"
            life.lost = True
        elif fact.type in _BECOMES:
            yield from self._becomes(fact, id, life, _BECOMES[fact.type])

    def _started(self, fact: Fact, id: int, life: Life) -> Iterator[str]:
        project, slot, fence = life.project, fact.data["slot"], fact.data["fence"]
        if Status.RUNNING not in TRANSITIONS[life.status]:
            yield f"execution {id} started while it was {life.status}"
        taken = self.slots[project]
        if slot in taken:
            yield f"execution {id} started in slot {slot} of project {project}, where {taken[slot]} runs"
        taken[slot] = id
        most = self.story.most.get(project, 1)
        if len(taken) > most or slot >= most:
            yield f"project {project} runs {len(taken)}, one in slot {slot}, and has places for {most}"
        if fence <= self.fences[project]:
            yield f"execution {id} started with fence {fence} after {self.fences[project]} in project {project}"
        if fact.data["attempt"] != life.attempt + 1:
            yield f"execution {id} began attempt {fact.data['attempt']} after {life.attempt}"
        if not self.nodes.get(fact.data["node"]):
            yield f"execution {id} was started by node {fact.data['node']}, which is not there"
        if {project, 0} & {paused for paused, _ in self.pauses}:
            yield f"execution {id} started while project {project} was paused"
        mine = (self.story.priorities.get(id, 0), id)
        for other in self.queued[project]:
            theirs = (self.story.priorities.get(other, 0), other)
            if theirs < mine and self.lives[other].available_at < fact.at - SLACK:
                yield f"execution {id} started before {other}, which was to go first"
        self.queued[project].discard(id)
        self.fences[project] = max(fence, self.fences[project])
        life.status, life.slot, life.fence, life.attempt = Status.RUNNING, slot, fence, fact.data["attempt"]
        self.starts[id, life.attempt] = (fence, fact.data["node"])

    def _becomes(self, fact: Fact, id: int, life: Life, after: Status) -> Iterator[str]:
        before = life.status
        if life.asks and after is Status.NEEDS_HUMAN:
            life.asks = False
        elif after not in TRANSITIONS[before]:
            yield f"execution {id} was {before} and became {after}"
        self.queued[life.project].discard(id)
        if before is Status.RUNNING:
            if fact.data.get("fence", life.fence) != life.fence:
                yield f"execution {id}, which runs under fence {life.fence}, was ended under {fact.data['fence']}"
            if self.slots[life.project].pop(life.slot, id) != id:
                yield f"execution {id} ended in a slot that is another's"
            self.ends[id, life.fence] = after
        elif "fence" in fact.data:
            yield f"a claim of execution {id} ended, which was {before}"
        life.status, life.lost = after, False
        if after is Status.QUEUED:
            life.available_at = max(fact.at, fact.data.get("available_at") or 0)
            self.queued[life.project].add(id)


def _rows(story: Story, replay: Replay) -> Iterator[str]:
    keys: dict[tuple[int, str], int] = {}
    there = {row.id for row in story.rows}
    for row in story.rows:
        life = replay.lives.get(row.id)
        if life is None:
            yield f"execution {row.id} is {row.status}, and the log does not know it"
        elif (row.status, row.fence, row.attempt) != (life.status, life.fence, life.attempt):
            yield (
                f"execution {row.id} is {row.status}, fence {row.fence}, attempt {row.attempt}; "
                f"the log says {life.status}, {life.fence}, {life.attempt}"
            )
        if row.key is not None and keys.setdefault((row.project, row.key), row.id) != row.id:
            yield f"key {row.key} has executions {keys[row.project, row.key]} and {row.id}"
    for id in replay.lives.keys() - there:
        yield f"execution {id} is in the log, and gone"


def _attempts(story: Story, replay: Replay) -> Iterator[str]:
    tried = {(one.execution, one.number): one for one in story.tried}
    for key in tried.keys() ^ replay.starts.keys():
        yield f"attempt {key[1]} of execution {key[0]} is in {'the rows' if key in tried else 'the log'} only"
    for key in tried.keys() & replay.starts.keys():
        one = tried[key]
        if (one.fence, one.node) != replay.starts[key]:
            yield f"attempt {key[1]} of execution {key[0]} is of {one.node}, fence {one.fence}: not so in the log"
        if one.wrote is not None and one.finished_at is not None and one.wrote > one.finished_at + SLACK:
            yield f"attempt {key[1]} of execution {key[0]} wrote {one.wrote - one.finished_at} ms after its end"


def _effects(story: Story, *, at_rest: bool) -> Iterator[str]:
    rows = {row.id: row for row in story.rows}
    owed: defaultdict[tuple[str, int], list[Owed]] = defaultdict(list)
    for effect in story.owed:
        owed[effect.kind, effect.event or 0].append(effect)
    for fact in story.log:
        row = rows.get(fact.execution or 0)
        if row is None:
            continue
        for kind, wanted in (
            ("report", row.ticket and fact.type in _TICKETED),
            ("callback", row.callback and fact.type in _CALLED_BACK),
        ):
            if len(owed[kind, fact.id]) != int(bool(wanted)) and not (kind == "report" and not wanted and row.ticket):
                yield f"event {fact.id} ({fact.type}) of execution {row.id} owes {len(owed[kind, fact.id])} {kind}s"
    latest: dict[str, Owed] = {}
    for effect in story.owed:
        if effect.delivered_at is None:
            if at_rest:
                yield f"effect {effect.id} ({effect.kind}) is left undelivered"
            continue
        before = latest.get(effect.lane)
        if before is not None and (before.delivered_at or 0) > effect.delivered_at + SLACK:
            yield f"effect {effect.id} was delivered before {before.id}, which is first in lane {effect.lane}"
        latest[effect.lane] = effect


def missed(story: Story, seen: Iterable[Fact]) -> list[str]:
    """What of the log somebody who followed it by a cursor has not seen."""
    known = {fact.id for fact in seen}
    return [f"event {fact.id} ({fact.type}) came behind the cursor" for fact in story.log if fact.id not in known]
