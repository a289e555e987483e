"""The auditor finds what is wrong: a good story, spoilt in one place after the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.delivery import EffectKind
from pilot.store import open_store
from tests.faults.auditor import Fact, Story, audit, missed, read
from tests.store.bed import HOUR, MINUTE, Bed, Clock, again, asked, done

Spoil = Callable[[list[Fact]], Any]


async def tell(bed: Bed) -> Story:
    """A bit of everything: priorities, a retry, a loss, a question, a pause, a ticket, a callback."""
    api, web = await bed.project("api"), await bed.project("web", max_running=2)
    for name in ("n1", "n2"):
        await bed.node(name)
    ids = [await bed.put(api, origin={"source": "x"}) for _ in range(3)]
    await bed.put(api, priority=1, callback_url="https://example.org/called")
    for _ in range(3):
        bed.clock.tick(1000)
        await bed.put(web)
    bed.clock.tick(1000)
    await bed.run(api)
    first = await bed.take(api, "n2")
    assert first.id == ids[0]
    bed.clock.tick(2 * MINUTE)
    await bed.queue.recover([], "")
    bed.clock.tick(1000)
    lost = await bed.take(api, "n1")
    await bed.queue.finish(again(lost, bed.clock.now + MINUTE))
    asks = await bed.take(api, "n2")
    await bed.journal.write(asks, [])
    await bed.queue.finish(asked(asks))
    await bed.queue.pause(api.id, "ann", "lunch")
    assert await bed.claim(api) == []
    await bed.take(web, lease=HOUR)
    await bed.run(web)
    await bed.queue.resume(api.id)
    await bed.queue.answer(asks.id, "green", "ann")
    bed.clock.tick(2 * MINUTE)
    for _ in range(3):
        await bed.run(api)
    (held,) = await bed.queue.held_by(["n1"])
    await bed.queue.finish(done(held))
    await bed.run(web)
    bed.clock.tick(1000)
    while effects := await bed.store.outbox.take("n1", tuple(EffectKind), lease=HOUR):
        for effect in effects:
            bed.clock.tick(10)
            assert await bed.store.outbox.delivered(effect, "n1")
    await bed.queue.recover(["n2"], "it has left")
    return await read(bed.database)


@pytest.fixture
async def story(tmp_path: Path) -> Story:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=(clock := Clock())) as opened:
        bed = Bed(opened, clock)
        told = await tell(bed)
        await bed.check()
        return told


def spot(log: list[Fact], type: str, nth: int = 0) -> int:
    return [n for n, fact in enumerate(log) if fact.type == f"execution.{type}"][nth]


def data(log: list[Fact], at: int, **facts: object) -> None:
    log[at] = log[at]._replace(data={**log[at].data, **facts})


def swap(log: list[Fact], one: int, other: int) -> None:
    """What happened, the other way round."""
    ids = log[one].id, log[other].id
    log[one], log[other] = log[other]._replace(id=ids[0]), log[one]._replace(id=ids[1])


def drop(type: str, nth: int = 0) -> Spoil:
    return lambda log: log.pop(spot(log, type, nth))


def twice(type: str, nth: int = 0) -> Spoil:
    def spoil(log: list[Fact]) -> None:
        at = spot(log, type, nth)
        log.append(log[at]._replace(id=log[-1].id + 1, at=log[-1].at))

    return spoil


def says(type: str, nth: int = 0, **facts: object) -> Spoil:
    return lambda log: data(log, spot(log, type, nth), **facts)


def started_as(log: list[Fact], nth: int, **facts: object) -> None:
    at = spot(log, "started", nth)
    log[at] = log[at]._replace(**facts)  # type: ignore[arg-type]


def one_after_the_end(log: list[Fact]) -> None:
    at = log[spot(log, "completed")]
    log.append(at._replace(id=log[-1].id + 1, at=log[-1].at, type="execution.rerouted"))


def two_at_once(log: list[Fact]) -> None:
    end, start = spot(log, "completed"), spot(log, "started", 1)
    swap(log, end, start)


def in_a_pause(log: list[Fact]) -> None:
    paused = next(n for n, fact in enumerate(log) if fact.type == "project.resumed")
    log.append(log.pop(paused)._replace(id=log[-1].id + 1))


SPOILT: Mapping[str, tuple[Spoil, str]] = {
    "an end is lost": (drop("completed"), "where"),
    "a start is lost": (drop("started"), "a claim of execution 4 ended, which was queued"),
    "an enqueue is lost": (drop("queued"), "was never queued"),
    "a loss without its end": (drop("requeued"), "was lost, and"),
    "it is queued twice": (twice("queued"), "was queued twice"),
    "it completes twice": (twice("completed"), "which had completed"),
    "something comes after the end": (one_after_the_end, "which had completed"),
    "two run in one slot": (two_at_once, "started in slot"),
    "more than may run": (says("started", -2, slot=7), "one in slot 7, and has places for"),
    "a fence stands still": (says("started", 2, fence=1), "started with fence 1 after"),
    "an attempt is left out": (says("started", 0, attempt=2), "began attempt 2 after 0"),
    "a late end counts": (says("requeued", 1, fence=1), "was ended under 1"),
    "an unknown node": (says("started", 0, node="n9"), "node n9, which is not there"),
    "a claim in a pause": (in_a_pause, "while project 1 was paused"),
    "time runs back": (lambda log: started_as(log, 3, at=log[0].at), "older than the one before it"),
    "ids are not in order": (lambda log: started_as(log, 3, id=1), "comes after event"),
    "lost, and not at work": (
        lambda log: swap(log, spot(log, "lost"), spot(log, "requeued")),
        "was lost while it was queued",
    ),
}


def test_a_good_story_is_found_good(story: Story) -> None:
    assert audit(story, at_rest=True) == []
    assert missed(story, story.log) == []
    assert missed(story, story.log[:-1]) == [f"event {story.log[-1].id} ({story.log[-1].type}) came behind the cursor"]


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_log_is_found_out(story: Story, name: str) -> None:
    spoil, words = SPOILT[name]
    log = list(story.log)
    spoil(log)
    found = audit(dataclasses.replace(story, log=log))
    assert any(word in line for line in found for word in words.split("|")), found
    # and by the log alone, as it is read while nodes are at work
    alone = audit(Story(story.most, story.priorities, log))
    assert alone or name in ("an end is lost",), found


def test_rows_that_do_not_agree_with_the_log_are_found_out(story: Story) -> None:
    row, tried = story.rows[0], list(story.tried)
    ended = next(n for n, one in enumerate(tried) if one.finished_at is not None)
    tried[ended] = tried[ended]._replace(wrote=(tried[ended].finished_at or 0) + 1000)
    other = dataclasses.replace
    spoilt = {
        "the log says": other(story, rows=[row._replace(status="queued"), *story.rows[1:]]),
        "and gone": other(story, rows=story.rows[1:]),
        "the log does not know it": other(story, rows=[*story.rows, row._replace(id=99, key="k")]),
        "has executions": other(story, rows=[one._replace(key="k") for one in story.rows]),
        "in the log only": other(story, tried=story.tried[1:]),
        "ms after its end": other(story, tried=tried),
        "owes 0 reports": other(story, owed=[one for one in story.owed if one.kind != "report"]),
        "owes 0 callbacks": other(story, owed=[one for one in story.owed if one.kind != "callback"]),
        "owes 2 reports": other(story, owed=[*story.owed, *story.owed[-1:]]),
        "was delivered before": other(
            story, owed=[story.owed[0]._replace(delivered_at=1 << 50, lane="l")]
            + [one._replace(lane="l") for one in story.owed[1:]],
        ),
        "left undelivered": other(story, owed=[story.owed[0]._replace(delivered_at=None), *story.owed[1:]]),
    }  # fmt: skip
    for words, told in spoilt.items():
        found = audit(told, at_rest=True)
        assert any(words in line for line in found), (words, found)


def test_whose_turn_it_was_is_found_out(story: Story) -> None:
    ids = sorted(id for id, row in ((row.id, row) for row in story.rows) if row.project == 1)
    for id in ids[1:3]:
        found = audit(dataclasses.replace(story, priorities={**story.priorities, id: 0}))
        assert any("which was to go first" in line for line in found), id


def test_what_is_left_is_found_out(story: Story) -> None:
    log = list(story.log)
    end = max(n for n, fact in enumerate(log) if fact.type == "execution.completed")
    found = audit(Story(story.most, story.priorities, log[:end]), at_rest=True)
    assert any("is left running" in line for line in found)
    assert any("slots taken" in line for line in found)
