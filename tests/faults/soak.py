"""Nodes at work under random faults, and the account of it: `python -m tests.faults.soak [SECONDS [SEED [BUG]]]`.

The log is replayed while it is written; in the end everything has to be done, delivered and true.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pilot.domain.errors import Busy, NotFound, StoreError
from pilot.store import open_store
from tests.faults.auditor import Replay, Story, audit
from tests.faults.proxy import Proxy
from tests.faults.rig import Member, Rig
from tests.postgres import Cluster, name_of

LEASE = 3.0
NODES = 4
TASKS = 5.0
"""Per second and node, as long as fewer than `BACKLOG` are open."""
BACKLOG = 150


@dataclass
class Soak:
    """One run. `say` is told what is done, as it is done."""

    rig: Rig
    server: Cluster
    url: str
    dice: random.Random
    say: Callable[[str], None]
    plant: str = ""
    ways: dict[str, Proxy] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    replay: Replay = field(default_factory=lambda: Replay(Story({}, {}, ())))
    _stack: ExitStack = field(default_factory=ExitStack)
    _replayed: int = 0
    _known: int = 0

    async def run(self, seconds: float) -> Story:
        """So many seconds of faults, then peace, and the account."""
        with self._stack:
            self.rig.follow()
            for _ in range(NODES):
                self._start()
            await self.rig.ready()
            end, told = time.monotonic() + seconds, time.monotonic()
            while time.monotonic() < end:
                name = self.dice.choices(list(FAULTS), [weight for weight, _ in FAULTS.values()])[0]
                self.faults[name] += 1
                await FAULTS[name][1](self)
                await asyncio.sleep(self.dice.expovariate(1 / 0.4))
                await self._look()
                if time.monotonic() - told > 10:
                    told = time.monotonic()
                    self.say(
                        f"{end - told:.0f} s left; {sum(self.faults.values())} faults, {len(self.rig.seen)} events"
                    )
            await self._peace()
            await self._look()
            await self.rig.settle(240)
            story = await self.rig.account()
            assert not self.rig.diary("began") or audit(story) == []
            return story

    def _start(self) -> Member:
        proxy = self._stack.enter_context(Proxy(("127.0.0.1", self.server.port)))
        member = self.rig.start(
            self.server.url(name_of(self.url), port=proxy.port), lease=LEASE, tasks=TASKS, plant=self.plant
        )
        self.ways[member.name] = proxy
        return member

    @property
    def living(self) -> list[Member]:
        return [member for member in self.rig.members if member.gone is None and member.process.poll() is None]

    def one(self) -> Member:
        """One that has started, as long as there is one."""
        ready = {entry["node"] for entry in self.rig.diary("ready")}
        living = self.living
        return self.dice.choice([member for member in living if member.name in ready] or living)

    def way(self) -> Proxy:
        return self.ways[self.one().name]

    async def _look(self) -> None:
        """Replay what the log has got since the last look; fail at once when something is wrong with it."""
        for _ in self.rig.supervise():
            self._start()
        with suppress(StoreError, Busy):
            await self.rig.answer()
            await self.rig.hold_back(BACKLOG)
        facts, self._replayed = self.rig.seen[self._replayed :], len(self.rig.seen)
        story = self.replay.story
        while True:
            with suppress(StoreError, Busy):
                read = self.rig.store.database.read
                rows = await read("SELECT id, priority FROM executions WHERE id > :known", {"known": self._known})
                story.priorities = {**story.priorities, **dict(rows)}
                self._known = max(story.priorities, default=0)
                break
            await asyncio.sleep(0.1)
        found = [words for fact in facts for words in self.replay.take(fact)]
        assert not found, "\n".join(found[:20]) + f"\n{self.rig.told()}"

    async def _peace(self) -> None:
        for proxy in self.ways.values():
            proxy.silent, proxy.delay, proxy.lose_commits = False, 0.0, 0
        for member in self.living:
            member.go_on()
        with suppress(StoreError, Busy):
            await self.rig.store.queue.resume(0)

    # The faults

    async def kill(self) -> None:
        """As a machine that loses its power; another is put in its place."""
        self.one().kill()
        self._start()

    async def stop(self) -> None:
        """It stands still, for less or more than its lease."""
        member = self.one()
        member.stop()
        await asyncio.sleep(self.dice.uniform(0.1, 2 * LEASE))
        member.go_on()

    async def leave(self) -> None:
        """In order, as for an upgrade."""
        member = self.one()
        if any(entry["node"] == member.name for entry in self.rig.diary("ready")):  # it heeds that
            member.send(signal.SIGTERM)
            self._start()

    async def cut_off(self) -> None:
        """Nothing comes through."""
        way = self.way()
        way.silent = True
        await asyncio.sleep(self.dice.uniform(0.1, 2 * LEASE))
        way.silent = False

    async def cut(self) -> None:
        self.way().cut()

    async def slow(self) -> None:
        way = self.way()
        way.delay = self.dice.choice([0.0, 0.002, 0.01])

    async def lose_commits(self) -> None:
        self.way().lose_commits = self.dice.choice([1, 2, 5])

    async def terminate(self) -> None:
        self.server.terminate(self.url)

    async def restart(self) -> None:
        how = self.dice.choice([signal.SIGKILL, signal.SIGQUIT, signal.SIGINT])
        await asyncio.to_thread(self.server.restart, how)

    async def cancel(self) -> None:
        if self._known:
            with suppress(StoreError, Busy, NotFound):
                await self.rig.store.queue.cancel(self.dice.randint(max(1, self._known - 20), self._known), "ann")

    async def pause(self) -> None:
        queue = self.rig.store.queue
        with suppress(StoreError, Busy):
            await queue.pause(0, "ann", "to see it heeded")
            await asyncio.sleep(self.dice.uniform(0.0, 0.5))
        while True:
            with suppress(StoreError, Busy):
                await queue.resume(0, "ann")
                return


FAULTS: Mapping[str, tuple[int, Callable[[Soak], Awaitable[None]]]] = {
    "a node is killed": (4, Soak.kill),
    "a node stands still": (4, Soak.stop),
    "a node leaves": (2, Soak.leave),
    "a node is cut off": (4, Soak.cut_off),
    "connections of a node are cut": (4, Soak.cut),
    "a node's way is slow": (2, Soak.slow),
    "answers to COMMIT are lost": (6, Soak.lose_commits),
    "all sessions are ended": (3, Soak.terminate),
    "the server is restarted": (2, Soak.restart),
    "something is cancelled": (6, Soak.cancel),
    "everything is paused": (1, Soak.pause),
}


async def soak(seconds: float, seed: int, say: Callable[[str], None], server: Cluster, plant: str = "") -> Story:
    """One run on a new database of this server. Raises AssertionError with all that is known."""
    with tempfile.TemporaryDirectory(prefix="pilot-soak-") as folder:
        url = server.url(name_of(server.create()), port=server.port)
        async with open_store(url) as store:
            rig = Rig(store, Path(folder))
            run = Soak(rig, server, url, random.Random(seed), say, plant)
            places = await store.queue.register([(f"key {n}", f"p{n}", f"/p{n}", n % 2 + 1) for n in range(4)])
            run.replay.story.most = {place.id: place.max_running for place in places}
            try:
                story = await run.run(seconds)
            finally:
                say("; ".join(f"{name}: {count}" for name, count in sorted(run.faults.items())))
                rig.clear_away()
            counts = Counter(row.status for row in story.rows)
            takings = sum(fact.type == "execution.lost" for fact in story.log)
            say(f"{dict(counts)}; {takings} taken over; {len(story.log)} events, {len(story.owed)} effects: all true")
            return story


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600.0
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    plant = sys.argv[3] if len(sys.argv) > 3 else ""
    say = print
    say(f"{seconds:g} s, {NODES} nodes; to repeat the dice: SEED={seed}")
    with Cluster.make(tcp=True) as server:
        asyncio.run(soak(seconds, seed, lambda words: say(words, flush=True), server, plant))


if __name__ == "__main__":
    main()
