"""Random walks over the outbox beside a model of it; and planted bugs, each of which the walks find."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from pilot.domain.delivery import Effect, EffectKind
from pilot.domain.execution import Execution
from pilot.domain.outcome import Publication
from pilot.domain.ports import Finish, Node
from pilot.store import open_store
from pilot.store.outbox import _Taking
from tests.store.bed import HOUR, Bed, Clock, again, asked, broken, done, node
from tests.store.engines import Places, in_memory
from tests.store.test_mutants import replace

LEASE = 5_000
NODES = ("n1", "n2", "far")  # the last one is another host's
KINDS = (EffectKind.PUBLISH, EffectKind.REPORT, EffectKind.NOTIFY, EffectKind.TELL)
ENDS: Sequence[Callable[[Execution], Finish]] = (
    lambda e: done(e, publication=Publication(repo="a/b", base="main"), head_sha="a" * 40),
    broken,
    asked,
    lambda e: again(e, 0),
)
Mutation = Callable[[Bed], Awaitable[None]]


@dataclass
class Model:
    """What is owed, in plain words; it learns of new effects from the rows and of nothing else."""

    clock: Clock
    owed: dict[int, tuple[str, str, str | None, int]] = field(default_factory=dict)  # lane, kind, host, due
    seen: set[int] = field(default_factory=set)
    tried: set[int] = field(default_factory=set)
    claims: dict[int, tuple[str, int, Effect]] = field(default_factory=dict)  # node, until, what it was given

    def due(self, node: str) -> set[int]:
        return {id for id, (_, _, host, due) in self.owed.items() if due <= self.clock.now and self._free(id)
                and host in (None, "elsewhere" if node == "far" else "host")}  # fmt: skip

    def _free(self, id: int) -> bool:
        if id in self.claims and self.claims[id][1] > self.clock.now:
            return False
        lane, kind = self.owed[id][:2]
        return not self.waits(id, lane, kind)

    def waits(self, id: int, lane: str, kind: str) -> bool:
        """Something of its lane goes first."""
        before = {other: what for other, (its, what, _, _) in self.owed.items() if other < id and lane == its}
        return any(
            not ({kind, what} == {"report", "publish"} and self.put_off(before, what, other))
            for other, what in before.items()
        )

    def put_off(self, before: Mapping[int, str], kind: str, upto: int) -> bool:
        return any(id <= upto and what == kind and id in self.tried for id, what in before.items())

    def holds(self, effect: Effect, node: str) -> bool:
        if effect.id not in self.owed or effect.id not in self.claims:
            return False
        holder, _, given = self.claims[effect.id]
        return holder == node and given is effect


class Walk:
    def __init__(self, bed: Bed, dice: Random) -> None:
        self.bed, self.dice, self.model = bed, dice, Model(bed.clock)
        self.outbox = bed.store.outbox
        self.taken: list[tuple[Effect, str]] = []
        self.tasks = 0

    async def step(self) -> None:
        steps: Mapping[Callable[[], Awaitable[None]], int] = {
            self.work: 5, self.take: 6, self.end: 6, self.tick: 3, self.race: 1, self.die: 1, self.renew: 1,
        }  # fmt: skip
        (step,) = self.dice.choices(list(steps), list(steps.values()))
        await step()
        await self.learn()
        assert await self.bed.store.outbox.next_due(KINDS) == self.next_due()

    def next_due(self) -> int | None:
        heads = [
            max(due, self.model.claims[id][1] if id in self.model.claims else 0)
            for id, (lane, kind, _, due) in self.model.owed.items()
            if not self.model.waits(id, lane, kind)
        ]
        return min(heads, default=None)

    async def learn(self) -> None:
        for id, lane, kind, host, due in await self.bed.rows("SELECT id, lane, kind, host, available_at FROM outbox"):
            if id not in self.model.seen:
                self.model.seen.add(id)
                self.model.owed[id] = lane, kind, host, due

    async def work(self) -> None:
        """One more thing happens to some task."""
        queue, dice = self.bed.queue, self.dice
        (project,) = await queue.register([("k", "api", "/", 3)])
        if dice.random() < 0.3:
            self.tasks += 1
            await self.bed.put(project, f"T-{dice.randrange(3)}-{self.tasks}", origin={"source": "x"})
            return
        held = await self.bed.rows("SELECT id FROM executions WHERE status = 'needs_human'")
        if held and dice.random() < 0.5:
            await queue.answer(held[0][0], "yes", "me")
            return
        for execution in await self.bed.claim(project, dice.choice(NODES), lease=HOUR):
            await queue.finish(dice.choice(ENDS)(execution))

    async def take(self) -> None:
        node = self.dice.choice(NODES)
        expected = self.model.due(node)
        found = await self.outbox.take(node, KINDS, lease=LEASE, max=1000)
        assert {effect.id for effect in found} == expected, (node, expected)
        assert [effect.id for effect in found] == sorted(expected)
        self._claimed(found, node)

    def _claimed(self, found: list[Effect], node: str) -> None:
        for effect in found:
            self.model.claims[effect.id] = node, self.bed.clock.now + LEASE, effect
            self.taken.append((effect, node))

    async def race(self) -> None:
        """Two nodes have found the same, and both want it."""
        due = self.model.due("n1") & self.model.due("n2")
        both = await asyncio.gather(
            *(self.bed.database.write(self.outbox._takes, _Taking(node, LEASE, tuple(due))) for node in NODES[:2])
        )
        ids = [effect.id for found in both for effect in found]
        assert sorted(ids) == sorted(due)
        for found, who in zip(both, NODES, strict=False):
            self._claimed(found, who)

    async def end(self) -> None:
        if not self.taken:
            return
        effect, node = self.taken.pop(self.dice.randrange(len(self.taken)))
        if self.dice.random() < 0.2:
            self.taken.append((effect, node))  # it will come back, too late
        holds, later = self.model.holds(effect, node), self.bed.clock.now + self.dice.choice([0, 1000, LEASE])
        what = self.dice.choice(["delivered", "delivered", "postpone", "give_up"])
        match what:
            case "delivered":
                wrote = await self.outbox.delivered(effect, node, {"n": effect.id})
            case "postpone":
                wrote = await self.outbox.postpone(effect, node, later, "later")
            case _:
                wrote = await self.outbox.give_up(effect, node, "never")
        assert wrote == holds, (what, effect)
        if not holds:
            return
        del self.model.claims[effect.id]
        if what == "postpone":
            lane, kind, host, _ = self.model.owed[effect.id]
            self.model.owed[effect.id] = lane, kind, host, later
            self.model.tried.add(effect.id)
        else:
            del self.model.owed[effect.id]

    async def renew(self) -> None:
        if not self.taken:
            return
        effect, node = self.dice.choice(self.taken)
        holds = self.model.holds(effect, node)
        assert await self.outbox.renew([effect], node, LEASE) == ({effect.id} if holds else set())
        if holds:
            self.model.claims[effect.id] = node, self.bed.clock.now + LEASE, effect

    async def tick(self) -> None:
        self.bed.clock.tick(self.dice.choice([1, 1000, LEASE - 1, LEASE]))

    async def die(self) -> None:
        name = self.dice.choice(NODES)
        await self.bed.queue.recover([name], "gone")
        self.model.claims = {id: claim for id, claim in self.model.claims.items() if claim[0] != name}
        await self.bed.queue.start_node(_node(name), HOUR)


def _node(name: str) -> Node:
    return node(name, host="elsewhere" if name == "far" else "host", notifies=True)


async def walk(number: int, steps: int, mutation: Mutation | None = None, places: Places = in_memory) -> None:
    with places() as url:
        async with open_store(url, clock=(clock := Clock())) as store:
            bed = Bed(store, clock)
            for name in NODES:
                await store.queue.start_node(_node(name), HOUR * 1000)
            if mutation is not None:
                await mutation(bed)
            walking = Walk(bed, Random(number))
            for _ in range(steps):
                await walking.step()
            await bed.check()


async def test_the_outbox_does_what_the_model_says(places: Places, engine: str) -> None:
    for _ in range({"sqlite": 12, "postgres": 3}[engine]):
        number = Random().randrange(1 << 32)
        print(f"to repeat this: number = {number}")
        await walk(number, 120, places=places)


async def caught(mutation: Mutation) -> None:
    async def walks() -> None:
        for number in range(30):
            await walk(number, 120, mutation)

    with pytest.raises(AssertionError):
        await walks()


LIVE_LEASE = "o.claimed_until <= :now"
BUGS: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "a living lease is taken": (("_due", f"AND {LIVE_LEASE}", ""), ("_take", f"AND {LIVE_LEASE}", "")),
    "two that found it both take it": (("_take", f"AND {LIVE_LEASE}", ""),),
    "time is ignored": (("_due", "o.available_at <= :now", "1"),),
    "there is no order": tuple((name, "b.lane = o.lane", "0") for name in ("_due", "_take", "_next")),
    "the lane is everybody's": (("_due", "b.lane = o.lane AND", ""), ("_take", "b.lane = o.lane AND", "")),
    "nothing goes past what is put off": (("_due", "f.tries > 0", "0"), ("_take", "f.tries > 0", "0")),
    "reports and publications never wait": (("_due", "f.tries > 0", "1"), ("_take", "f.tries > 0", "1")),
    "publications wait for reports": tuple((name, ", ('publish', 'report')", "") for name in ("_due", "_take")),
    "any host will do": (("_due", "o.host IS NULL OR", "1 OR"),),
    "a renewal needs no lease": (("_renew", "AND outbox.claims = h.claim", ""),),
    "a renewal is anybody's": tuple(
        ("_renew", what, "") for what in ("AND outbox.claimed_by = :node", "AND outbox.claims = h.claim")
    ),
    "claims are all alike": (("_take", "claims = claims + 1", "claims = 1"),),
    "the next is due too late": (("_next", "o.available_at > o.claimed_until", "1"),),
}  # fmt: skip


@pytest.mark.parametrize("name", BUGS)
async def test_a_bug_in_a_statement_is_found(name: str) -> None:
    async def mutation(bed: Bed) -> None:
        for statement, old, new in BUGS[name]:
            replace(bed.store.outbox, statement, old, new)

    await caught(mutation)


async def test_a_trigger_that_is_gone_is_found() -> None:
    async def mutation(bed: Bed) -> None:
        await bed.sql("DROP TRIGGER events_report")

    await caught(mutation)


async def test_a_node_that_died_keeping_what_it_had_is_found() -> None:
    async def mutation(bed: Bed) -> None:
        setattr(bed.queue._nodes, "_let_go", ())  # noqa: B010  its type has three

    await caught(mutation)
