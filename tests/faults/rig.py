"""Several nodes on one store, what is done to them, and the account that is given of it afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from pilot.domain.errors import Busy, NotFound, StoreError, UsageError
from pilot.domain.execution import OPEN
from pilot.domain.task import Task
from pilot.store import Store
from tests.faults.auditor import Fact, Story, audit, follow, missed, read
from tests.faults.node import AWAY, Settings, argument, orders
from tests.store.audit import audit as audit_rows

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 60.0
"""Seconds until something that never came true fails its test; generous, for a loaded machine."""

MOMENT = 1_000_000_000
"""ns that a node which stood still may need to see what has happened."""
_ENDS = tuple(f"execution.{word}" for word in ("requeued", "asked", "completed", "failed", "cancelled"))


@dataclass
class Member:
    """One node's process. `gone`: when (monotonic ns) it was killed; `still`: from when on it was stopped, `again`:
    from when on it went on.
    """

    settings: Settings
    process: subprocess.Popen[bytes]
    log: Path
    gone: int | None = None
    still: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.settings.name

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.process.pid, number)

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        self.gone = time.monotonic_ns()

    def stop(self) -> None:
        self.still.append(time.monotonic_ns())
        self.send(signal.SIGSTOP)

    def go_on(self) -> None:
        self.again.append(time.monotonic_ns())
        self.send(signal.SIGCONT)


@dataclass
class Rig:
    """Nodes that share `place`, a directory, and a store. `store` is the rig's own way to it, past all faults."""

    store: Store
    place: Path
    members: list[Member] = field(default_factory=list)
    seen: list[Fact] = field(default_factory=list)
    """The log as somebody saw it who followed it all the time."""
    held: int = 0
    lag: float = 0.0
    """Seconds by which this machine was late at most, with what was due at a time."""
    _read: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _entries: list[dict[str, Any]] = field(default_factory=list)
    _following: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        (self.place / "outside").mkdir(parents=True, exist_ok=True)

    def start(self, url: str, *, prefix: Sequence[str] = (), **settings: Any) -> Member:
        """A new node. `prefix`: words before its command, `ip netns exec …`."""
        number = len(self.members)
        given = Settings(url, f"node-{number}", str(self.place), seed=number, **settings)
        log = self.place / f"{given.name}.log"
        command = [*prefix, sys.executable, "-m", "tests.faults.node", argument(given)]
        with log.open("wb") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.members.append(Member(given, process, log))
        return self.members[-1]

    def follow(self) -> None:
        """Read the log by a cursor from now on, as the stream of events does."""
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            with suppress(StoreError, Busy):
                self.seen += await follow(self.store.database, self.seen[-1].id if self.seen else 0)
            asked = time.monotonic()
            await asyncio.sleep(0.1)
            self.lag = max(self.lag, time.monotonic() - asked - 0.1)

    def diary(self, *what: str) -> list[dict[str, Any]]:
        """What the nodes wrote down, in order of time; only these words, if any are given. `node`: whose."""
        new = False
        for path in self.place.glob("*.diary"):
            with path.open("rb") as file:
                file.seek(self._read[path.stem])
                lines = file.read().splitlines(keepends=True)
            for line in lines:
                if line.endswith(b"\n"):  # the last one may be in the middle of being written
                    self._read[path.stem] += len(line)
                    self._entries.append({"node": path.stem, **json.loads(line)})
                    new = True
        if new:
            self._entries.sort(key=lambda entry: entry["at"])
        return [entry for entry in self._entries if not what or entry["what"] in what]

    async def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """The condition's first true value; it may be a coroutine's."""
        end = time.monotonic() + seconds
        while True:
            with suppress(StoreError, Busy):
                value = condition()
                if isinstance(value, Awaitable):
                    value = await value
                if value:
                    return value
            assert not self.supervise(), f"its store was away:\n{self.told()}"
            if time.monotonic() > end:
                raise AssertionError(f"never came true in {seconds:g} s: {what}\n{self.told()}")
            await asyncio.sleep(0.1)

    def supervise(self) -> list[Member]:
        """No node ends but when it is told to, or when its store is away at its start: those are to be replaced."""
        ended = [member for member in self.members if member.gone is None and member.process.poll() not in (None, 0)]
        for member in ended:
            member.gone = time.monotonic_ns()
            if member.process.returncode != AWAY or member.name in {entry["node"] for entry in self.diary("ready")}:
                raise AssertionError(f"{member.name} ended by itself: {member.process.returncode}\n{self.told()}")
        return ended

    async def ready(self, *members: Member) -> None:
        """All of these have started."""
        names = {member.name for member in members or self.members}
        await self.until(lambda: names <= {entry["node"] for entry in self.diary("ready")}, f"{names} are ready")

    async def hold(self, seconds: float = 600.0, projects: int | None = None) -> list[int]:
        """A task for each project, whose first attempt goes on for so long; their ids, once all have begun."""
        count = projects or self.members[0].settings.projects
        places = await self.store.queue.register([(f"key {n}", f"p{n}", f"/p{n}", None) for n in range(count)])
        while True:
            ids = [await self._held(place.id, seconds) for place in places]
            await self.until(lambda ids=ids: set(ids) <= {e["id"] for e in self.diary("began")}, f"{ids} have begun")  # type: ignore[misc]
            if len(self.at_work(ids)) == len(ids):
                return ids
            for id in ids:  # a busy machine: a node could not renew its lease in time, and gave up
                await self.store.queue.cancel(id, "ann")

    async def _held(self, place: int, seconds: float) -> int:
        key = f"held {self.held}"
        self.held += 1
        task = Task(
            project_id=place, task_id=key, title=key, body=orders(hold=seconds), backend="agent", priority=0,
            idempotency_key=key, origin={"source": "x"},
        )  # fmt: skip
        return (await self.store.queue.enqueue(task)).id

    def at_work(self, ids: Collection[int]) -> dict[int, str]:
        """Which node is at each of these now."""
        found: dict[int, str] = {}
        for entry in self.diary("began", "stopped"):
            if entry["id"] in ids and entry["what"] == "began":
                found[entry["id"]] = entry["node"]
            elif found.get(entry["id"]) == entry["node"]:
                del found[entry["id"]]
        return found

    async def taken_over(self, ids: Collection[int], since: int, victims: Collection[str]) -> float:
        """Wait until others have begun all of these again; how many seconds that took, of the last of them."""

        def begun() -> dict[int, int]:
            others = [e for e in self.diary("began") if e["at"] > since and e["node"] not in victims]
            return {entry["id"]: entry["at"] for entry in reversed(others) if entry["id"] in ids}

        await self.until(lambda: begun().keys() == set(ids), f"{ids} are taken over")
        return (max(begun().values()) - since) / 1e9

    async def hold_back(self, most: int) -> None:
        """Let nothing new come while more than so many are open."""
        rows = await self.counts()
        full = self.place / "full"
        if sum(rows.get(status, 0) for status in OPEN) > most:
            full.touch()
        else:
            full.unlink(missing_ok=True)

    async def counts(self) -> Mapping[str, int]:
        """Executions by status."""
        return dict(await self.store.database.read("SELECT status, count(*) FROM executions GROUP BY status"))

    async def answer(self) -> None:
        """Be the person that tasks wait for."""
        rows = await self.store.database.read("SELECT id FROM executions WHERE status = 'needs_human'")
        for (id,) in rows:
            with suppress(UsageError, NotFound, StoreError, Busy):
                await self.store.queue.answer(id, "green", "ann")

    async def settle(self, seconds: float = PATIENCE) -> None:
        """Let nothing new come, and wait until all is done and delivered; then the nodes leave."""
        (self.place / "enough").touch()
        await self.until(self._at_rest, "all is done and delivered", seconds)
        living = [member for member in self.members if member.gone is None]
        for member in living:
            member.go_on()
            member.send(signal.SIGTERM)
        await self.until(lambda: all(m.process.poll() is not None for m in living), "the nodes have left")
        assert [member.process.returncode for member in living] == [0] * len(living), self.told()

    async def _at_rest(self) -> bool:
        await self.answer()
        ((left,),) = await self.store.database.read("SELECT count(*) FROM executions WHERE finished_at IS NULL")
        ((owed,),) = await self.store.database.read("SELECT count(*) FROM outbox WHERE delivered_at IS NULL")
        return not left and not owed

    async def account(self) -> Story:
        """Fail unless every promise was kept, by the rows, the log and what the nodes were told."""
        story, found = await self.findings()
        assert not found, "\n".join(found[:40]) + f"\n({len(found)} in all)\n{self.told()}"
        return story

    async def findings(self) -> tuple[Story, list[str]]:
        """All there is to know, and what is wrong with it."""
        story = await read(self.store.database)
        found = await audit_rows(self.store.database)
        found += audit(story, at_rest=True)
        found += self.broken(story)
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
            self.seen += await follow(self.store.database, self.seen[-1].id if self.seen else 0)
            found += missed(story, self.seen)
        return story, found

    def broken(self, story: Story) -> list[str]:
        """Where the nodes were told something that is not so, or two were at work on one project."""
        return [*self._untrue(story), *self._overlaps(), *self._outside()]

    def _untrue(self, story: Story) -> Iterator[str]:
        keys = {row.key: row.id for row in story.rows}
        ends = {(f.execution, f.data["fence"]): f for f in story.log if f.type in _ENDS and "fence" in f.data}
        lost = {f.id + 1 for f in story.log if f.type == "execution.lost"}
        unsure = {(e["id"], e["fence"]) for e in self.diary("unknown") if "not known" in e["error"]}
        asked: defaultdict[str, set[int]] = defaultdict(set)
        for entry in self.diary("queued", "ended", "refuted"):
            if entry["what"] == "queued":
                asked[entry["key"]].add(entry["id"])
                if keys.get(entry["key"]) != entry["id"]:
                    yield f"{entry['key']} was acknowledged as {entry['id']}, and is {keys.get(entry['key'])}"
                continue
            claim = (entry["id"], entry["fence"])
            if entry["what"] == "ended" and claim not in ends:
                yield f"the end of {claim[0]} under fence {claim[1]} was acknowledged, and is not there"
            if entry["what"] == "refuted" and claim in ends and ends[claim].id not in lost and claim not in unsure:
                yield f"{entry['node']} was told that {claim[0]} is another's, and had ended it under fence {claim[1]}"
        yield from (f"{key} is {ids}" for key, ids in asked.items() if len(ids) > 1)

    def _overlaps(self) -> Iterator[str]:
        """Two agents in one slot at a time. One whose node stands still does nothing."""
        members = {member.name: member for member in self.members}
        spans: defaultdict[tuple[int, ...], list[list[Any]]] = defaultdict(list)
        begun: dict[tuple[str, int, int], list[Any]] = {}
        for entry in self.diary("began", "stopped"):
            claim = (entry["node"], entry["id"], entry["fence"])
            if entry["what"] == "began":
                begun[claim] = span = [entry["at"], None, claim]
                spans[tuple(entry["lane"])].append(span)
            elif claim in begun:
                begun[claim][1] = entry["at"]
        for lane, found in spans.items():
            for span in found:
                member = members[span[2][0]]
                ends = [span[1], member.gone, *(at for at in member.still if at > span[0])]
                span[1] = min((end for end in ends if end is not None), default=time.monotonic_ns())
                if any(0 <= span[0] - at < MOMENT for at in member.again):
                    span[1] = span[0]  # it stood still on the way to it, and sees at its next word that it is late
            for one, other in pairwise(found):
                if other[0] < one[1]:
                    yield f"{one[2]} and {other[2]} in slot {lane} at once, for {(one[1] - other[0]) / 1e6:.1f} ms"

    def _outside(self) -> Iterator[str]:
        delivered = [entry["key"] for entry in self.diary("delivered")]
        yield from (f"{key} was delivered twice" for key in set(delivered) if delivered.count(key) > 1)
        turns = [entry["turn"] for entry in self.diary("duty")]
        yield from (f"turn {turn} of the duty was taken by two" for turn in set(turns) if turns.count(turn) > 1)
        last: dict[str, int] = {}
        for entry in self.diary("delivered"):
            if entry["effect"] < last.get(entry["lane"], 0):
                yield f"effect {entry['effect']} came after {last[entry['lane']]} in lane {entry['lane']}"
            last[entry["lane"]] = entry["effect"]

    def told(self) -> str:
        """Logs, for whoever has to find out."""
        logs = [f"--- {m.name} ({m.process.poll()})\n{m.log.read_text(errors='replace')[-2500:]}" for m in self.members]
        return "\n".join(logs)

    def clear_away(self) -> None:
        """End whatever is left."""
        if self._following is not None:
            self._following.cancel()
        for member in self.members:
            if member.process.poll() is None:
                member.kill()
