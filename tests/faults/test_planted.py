"""Bugs planted into the store: the account finds each, and nothing where there is none."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.task import Project
from pilot.store import Store, open_store
from tests.faults.node import Diary, Settings, Told
from tests.faults.plants import PLANTS
from tests.faults.proxy import Proxy
from tests.faults.rig import Member, Rig
from tests.postgres import Cluster, name_of
from tests.store.bed import HOUR, done, node, task

FOUND: Mapping[str, str] = {
    "": "",
    "the_fence_is_not_checked": "which runs under fence|was told that|not so in the log|the log says",
    "late_output_is_kept": "after its end",
    "nobody_waits_for_the_lock": "came behind the cursor",
    "a_lost_answer_is_taken_for_a_failure": "is another's, and had ended it",
}


async def clash(one: Store, mine: Told, other: Store, theirs: Told, place: Project, proxy: Proxy) -> None:
    """Both want the same, and neither is quick."""
    for n in range(3):
        await other.queue.enqueue(task(place, f"clash {n}", origin={"source": "x"}))
    proxy.delay = 0.03
    claims = [
        (told, store.queue.claim(name, lease=HOUR, projects=(place.id,)))
        for name, store, told in (("one", one, mine), ("other", other, theirs))
    ]
    taken = await asyncio.gather(*(claim for _, claim in claims), return_exceptions=True)
    proxy.delay = 0.0
    for (told, _), found in zip(claims, taken, strict=True):
        for execution in () if isinstance(found, BaseException) else found:
            with suppress(LeaseLost):
                await told.finish(done(execution))


async def overtake(one: Store, mine: Told, other: Store, places: Sequence[Project], proxy: Proxy) -> None:
    """One has written into the log, and takes its time to commit; the other has begun after it, and is quicker."""
    for n in range(2):
        await other.queue.enqueue(task(places[0], f"slow {n}"))
        (execution,) = await one.queue.claim("one", lease=HOUR, projects=(places[0].id,))
        proxy.delay = 0.15  # more than whoever follows the log waits between two looks
        slow = asyncio.create_task(mine.finish(done(execution)))
        await asyncio.sleep(proxy.delay)
        await other.queue.enqueue(task(places[1], f"quick {n}"))
        await slow
        proxy.delay = 0.0


async def late(one: Store, mine: Told, other: Store, theirs: Told, place: Project) -> None:
    """What one does when its lease has ended, and the other has what it had."""
    await other.queue.enqueue(task(place, "late"))
    (old,) = await one.queue.claim("one", lease=50, projects=(place.id,))
    while not await other.queue.recover([], ""):
        await asyncio.sleep(0.02)
    (new,) = await other.queue.claim("other", lease=HOUR, projects=(place.id,))
    assert new.id == old.id
    await asyncio.sleep(0.02)  # more than what clocks may differ by
    for attempt in (one.journal.write(old, [(OutputKind.TEXT, b"late")]), mine.finish(done(old))):
        with suppress(LeaseLost):
            await attempt
    with suppress(LeaseLost):
        await theirs.finish(done(new))


async def lost(one: Store, mine: Told, place: Project, proxy: Proxy) -> None:
    """The answer to a commit never comes."""
    await one.queue.enqueue(task(place, "lost"))
    (execution,) = await one.queue.claim("one", lease=HOUR, projects=(place.id,))
    proxy.lose_commits = 1
    with suppress(LeaseLost):
        await mine.finish(done(execution))
    assert proxy.lose_commits == 0


@pytest.mark.parametrize("plant", FOUND)
async def test_each_planted_bug_is_found(url: str, postgres: Cluster, tmp_path: Path, plant: str) -> None:
    assert FOUND.keys() == {"", *PLANTS}
    with Proxy(str(postgres.folder / f".s.PGSQL.{postgres.port}")) as proxy:
        there = postgres.url(name_of(url), port=proxy.port)
        async with open_store(there) as one, open_store(there) as other, open_store(url) as own:
            rig = Rig(own, tmp_path)
            mine, theirs = Told(one.queue, Diary(tmp_path, "one")), Told(other.queue, Diary(tmp_path, "other"))
            places = await other.queue.register([(f"key {n}", f"p{n}", f"/p{n}", 1) for n in range(2)])
            for name in ("one", "other"):
                await other.queue.start_node(node(name), HOUR)
            if plant:
                for store in (one, other):
                    PLANTS[plant](store)
            rig.follow()
            await clash(one, mine, other, theirs, places[0], proxy)
            await overtake(one, mine, other, places, proxy)
            await late(one, mine, other, theirs, places[1])
            await lost(one, mine, places[1], proxy)
            found = [
                line
                for line in (await rig.findings())[1]
                if not line.startswith(("execution", "effect")) or "is left" not in line
            ]
    words = FOUND[plant]
    assert bool(found) is bool(words), found
    assert not words or any(word in line for line in found for word in words.split("|")), found


def write(place: Path, name: str, *entries: Mapping[str, object]) -> None:
    lines = [json.dumps({"at": n, **entry}) for n, entry in enumerate(entries)]
    (place / f"{name}.diary").write_text("\n".join(lines) + "\n")


async def test_what_agents_and_the_outside_see_is_judged(tmp_path: Path) -> None:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db") as store:
        rig = Rig(store, tmp_path)
        process = subprocess.Popen(["true"])
        process.wait()
        for name in ("a", "b"):
            rig.members.append(Member(Settings("", name, ""), process, tmp_path / "log"))
        began, stopped = ({"what": what, "id": 1, "lane": [1, 0]} for what in ("began", "stopped"))
        effect = {"what": "delivered", "lane": "l"}
        write(
            tmp_path, "a", began | {"fence": 1}, stopped | {"fence": 1, "at": 10},
            effect | {"key": "k2", "effect": 2}, effect | {"key": "k1", "effect": 1},
            {"what": "ended", "id": 1, "fence": 1}, {"what": "queued", "key": "k", "id": 9},
            {"what": "duty", "turn": 7},
        )  # fmt: skip
        write(
            tmp_path, "b", began | {"fence": 2, "at": 9}, stopped | {"fence": 2, "at": 20},
            effect | {"key": "k1", "effect": 1, "at": 30}, {"what": "queued", "key": "k", "id": 8},
            {"what": "duty", "turn": 7},
        )  # fmt: skip
        story, found = await rig.findings()
        for words in ("in slot (1, 0) at once", "k1 was delivered twice", "came after 2 in lane l", "k is {8, 9}",
                      "turn 7 of the duty",
                      "was acknowledged as 9, and is None", "the end of 1 under fence 1 was acknowledged"):  # fmt: skip
            assert any(words in line for line in found), (words, found)
        rig.members[0].still = [8]  # it stood still from then on
        assert not [line for line in rig.broken(story) if "at once" in line]
