"""The outbox: what is owed to the outside is owed with what causes it, in order, and done by one node at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

import pytest

from pilot.domain.delivery import Effect, EffectKind, PullState
from pilot.domain.errors import NotFound
from pilot.domain.events import EventType
from pilot.domain.execution import Status
from pilot.domain.outcome import Publication
from pilot.domain.task import Project
from pilot.store.standing import REPORTED
from tests.store.bed import HOUR, MINUTE, Bed, again, asked, broken, done, limited, node

ALL = tuple(EffectKind)
TICKET = {"source": "github", "ref": "acme/api#1"}
PUBLISHED = Publication(repo="acme/api", base="main")


async def take(store: Bed, kinds: Collection[EffectKind] = ALL, node: str = "n1", **more: Any) -> list[Effect]:
    return await store.store.outbox.take(node, kinds, lease=MINUTE, **more)


async def deliver(store: Bed, kinds: Collection[EffectKind] = ALL, node: str = "n1") -> list[tuple[str, str]]:
    """Everything that is due; (kind, what it was of) in the order of its delivery."""
    found = []
    while effects := await take(store, kinds, node):
        for effect in effects:
            found.append((str(effect.kind), str(effect.payload.get("type", ""))))
            assert await store.store.outbox.delivered(effect, node)
    return found


async def published(store: Bed, project: Project, node: str = "n1", **more: Any) -> int:
    """The id of an execution that has ended with a change to publish."""
    execution = await store.take(project, node)
    await store.queue.finish(done(execution, publication=PUBLISHED, head_sha="a" * 40, **more))
    return execution.id


async def test_what_happens_to_a_ticket_is_reported_in_order(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api, origin=TICKET)
    await store.queue.finish(asked(await store.take(api)))
    await store.queue.answer(id, "blue", "me")
    await store.queue.finish(again(await store.take(api)))
    await published(store, api)

    told = await deliver(store)

    assert told == [
        *(("report", f"execution.{what}") for what in ("queued", "started", "asked", "answered", "started")),
        *(("report", f"execution.{what}") for what in ("requeued", "started")),
        ("publish", ""),
        ("report", "execution.completed"),
    ]


async def test_what_has_no_ticket_owes_no_report(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    await store.run(api)

    assert await deliver(store) == []
    assert await store.store.outbox.next_due(ALL) is None


async def test_who_asked_to_be_called_is_with_or_without_a_ticket(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, callback_url="https://example.org/called")
    await store.run(api)

    assert await deliver(store) == [("callback", "execution.completed")]


async def test_the_triggers_and_the_code_agree_on_what_is_reported(url: str, store: Bed) -> None:
    api = await store.project()
    await store.put(api, origin=TICKET)
    await deliver(store)
    for type in EventType:
        await store.sql(
            "INSERT INTO events (at, type, execution_id, project_id, data) VALUES (0, :type, 1, 1, :data)",
            type=type, data='{"kind": "publish", "status": "queued"}',
        )  # fmt: skip

    assert [what for _, what in await deliver(store, (EffectKind.REPORT,))] == [
        type for type in EventType if type in REPORTED
    ]
    await store.sql("DELETE FROM events WHERE at = 0")


async def test_of_one_lane_one_effect_is_worked_on_by_one_node(store: Bed, other: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    for _ in range(2):
        await store.put(api, origin=TICKET)
        await store.run(api)

    both = await asyncio.gather(*(take(by, node=f"n{n}") for n, by in enumerate((store, other) * 5)))

    taken = [effect for effects in both for effect in effects]
    assert [effect.payload["type"] for effect in sorted(taken, key=lambda e: e.id)] == ["execution.queued"] * 2
    assert len({effect.lane for effect in taken}) == 2
    assert await take(store) == []


async def test_an_ended_lease_is_taken_over_and_its_node_writes_nothing(store: Bed, other: Bed) -> None:
    api = await store.project()
    await store.put(api, origin=TICKET)
    outbox = store.store.outbox
    (first,) = await take(store, node="n1")
    store.clock.tick(MINUTE - 1)
    assert await take(other, node="n2") == []
    assert await outbox.renew([first], "n1", MINUTE) == {first.id}
    store.clock.tick(MINUTE - 1)
    assert await take(other, node="n2") == []
    store.clock.tick(1)

    (second,) = await take(other, node="n2")

    assert second.id == first.id
    before = await store.dump()
    assert await outbox.renew([first], "n1", MINUTE) == set()
    assert not await outbox.delivered(first, "n1", {"comment": 1})
    assert not await outbox.postpone(first, "n1", store.clock.now, "x")
    assert not await outbox.give_up(first, "n1", "x")
    assert not await outbox.delivered(first, "n2")
    await outbox.supersede(first, 1000)
    assert await store.dump() == before
    assert await outbox.delivered(second, "n2", {"comment": 2})
    assert (await outbox.report(1)).sent == {"report": {"comment": 2}}


async def test_the_same_node_that_takes_it_again_is_another_claim(store: Bed) -> None:
    api = await store.project()
    await store.put(api, origin=TICKET)
    (first,) = await take(store)
    store.clock.tick(MINUTE)
    (second,) = await take(store)

    assert not await store.store.outbox.delivered(first, "n1")
    assert await store.store.outbox.delivered(second, "n1")


async def test_what_a_dead_node_had_in_hand_is_free_at_once(store: Bed) -> None:
    api = await store.project()
    await store.node("n1")
    await store.put(api, origin=TICKET)
    (effect,) = await take(store, node="n1")
    await store.store.inbox.store("github", "d", "x", "issues", "labeled", "{}")
    assert len(await store.store.inbox.take("n1", "github", lease=HOUR)) == 1
    await store.store.duties.hold("poll", "n1", HOUR)

    await store.queue.recover(["n1"], "gone")

    assert [e.id for e in await take(store, node="n2")] == [effect.id]
    assert await store.store.outbox.renew([effect], "n1", MINUTE) == set()
    assert len(await store.store.inbox.take("n2", "github", lease=HOUR)) == 1
    assert await store.store.duties.hold("poll", "n2", HOUR)


async def test_what_is_put_off_holds_up_its_lane_until_then(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    await store.node()
    await store.put(api, origin=TICKET)
    await store.run(api)
    outbox = store.store.outbox
    (effect,) = await take(store)
    assert await outbox.postpone(effect, "n1", store.clock.now + HOUR, "502\x00")
    await store.put(web, origin=TICKET)

    assert [e.project_id for e in await take(store)] == [web.id]
    assert await outbox.next_due(ALL) == store.clock.now + MINUTE  # the end of that lease
    store.clock.tick(HOUR)
    later = next(e for e in await take(store) if e.project_id == api.id)
    assert (later.id, later.tries) == (effect.id, 1)
    assert await store.value("SELECT error FROM outbox WHERE id = :id", id=effect.id) == "502\ufffd"


async def test_a_report_goes_past_a_publication_that_is_put_off(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, "T", origin=TICKET)
    id = await published(store, api)
    await deliver(store, (EffectKind.REPORT,))
    (publish,) = await take(store)
    assert publish.kind is EffectKind.PUBLISH
    await store.store.outbox.postpone(publish, "n1", store.clock.now + HOUR, "down")

    assert await deliver(store) == [("report", "execution.completed")]
    await store.put(api, "T", origin=TICKET)  # the next of its lane is not published before it
    await published(store, api)
    assert {kind for kind, _ in await deliver(store)} == {"report"}
    store.clock.tick(HOUR)
    (first,) = await take(store)
    assert (first.kind, first.execution) == (EffectKind.PUBLISH, id)


async def test_a_publication_goes_past_reports_that_are_put_off(store: Bed) -> None:
    """The ticket's service is down, and the repository's is not."""
    api = await store.project()
    await store.node()
    await store.put(api, "T", origin=TICKET)
    await published(store, api)
    await down(store)

    assert await deliver(store) == [("publish", "")]


async def down(store: Bed) -> None:
    """Nothing can be told now."""
    while reports := await take(store, (EffectKind.REPORT,)):
        for report in reports:
            await store.store.outbox.postpone(report, "n1", store.clock.now + HOUR, "down")


async def test_a_publication_is_for_its_own_host(store: Bed) -> None:
    api = await store.project()
    await store.node("n1")
    await store.queue.start_node(elsewhere("m1"), HOUR)
    await store.put(api)
    id = await published(store, api)
    outbox = store.store.outbox

    assert await take(store, node="m1") == []
    assert await take(store, node="nobody") == []
    assert await outbox.next_due(ALL, "m1") is None
    assert await outbox.next_due(ALL, "n1") == await outbox.next_due(ALL) == store.clock.now
    await store.node("n2")
    (effect,) = await take(store, node="n2")
    assert (effect.kind, effect.execution, effect.key) == (EffectKind.PUBLISH, id, f"publish:{id}:1")
    assert effect.payload == {
        "pull": 1, "repo": "acme/api", "base": "main", "draft": True, "branch": "pilot/T-1", "head_sha": "a" * 40,
    }  # fmt: skip


async def test_only_what_is_asked_for_is_taken(store: Bed) -> None:
    api, web = await store.project(), await store.project("web")
    first, second = await store.put(api, origin=TICKET), await store.put(web, origin=TICKET)

    assert await take(store, (EffectKind.PUBLISH, EffectKind.TELL)) == []
    assert await take(store, projects=()) == []
    assert [e.execution for e in await take(store, execution=second)] == [second]
    assert [e.execution for e in await take(store, projects=(api.id, web.id), max=1)] == [first]


async def test_later_reports_are_covered_by_one_that_shows_the_newest(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, origin=TICKET)
    execution = await store.take(api)
    outbox = store.store.outbox
    (effect,) = await take(store)
    report = await outbox.report(execution.id)
    assert report.type == EventType.STARTED
    await store.queue.finish(broken(execution))

    await outbox.supersede(effect, report.event)
    await outbox.delivered(effect, "n1")

    assert await deliver(store) == [("report", "execution.failed")]


async def test_more_effects_follow_once_per_key(store: Bed) -> None:
    api = await store.project()
    await store.queue.start_node(telling("n1"), HOUR)
    await store.put(api)
    await store.queue.finish(broken(await store.take(api)))
    (effect,) = await take(store, (EffectKind.NOTIFY,))
    more = [(EffectKind.TELL, f"{effect.key}:{to}", f"tell:{to}", {"target": to}) for to in ("a", "b")]

    for _ in range(2):
        await store.store.outbox.add(more, of=effect)

    tells = await take(store, (EffectKind.TELL,))
    assert [(e.key, e.lane, e.execution, e.event) for e in tells] == [
        (key, lane, effect.execution, effect.event) for _, key, lane, _ in more
    ]
    for tell in tells:
        await store.store.outbox.delivered(tell, "n1", {"message": tell.id})
    assert (await store.store.outbox.report(1)).sent == {t.payload["target"]: {"message": t.id} for t in tells}


async def test_people_are_told_of_what_needs_them_if_some_node_tells(store: Bed) -> None:
    api = await store.project(max_running=3)
    await store.node("n1")
    for name in ("asks", "fails", "parks"):
        await store.put(api, name)

    await store.queue.finish(asked(await store.take(api)))
    assert await deliver(store) == []
    await store.queue.serve("n1", [api.id], notifies=True)
    await store.queue.finish(broken(await store.take(api)))
    await store.queue.finish(limited(await store.take(api), store.clock.now + HOUR))
    assert await deliver(store) == [("notify", "execution.failed"), ("notify", "backend.parked")]
    await store.queue.serve("n1", [api.id])  # as it was
    await store.put(api, "again", backend="other")
    await store.queue.finish(broken(await store.take(api)))
    assert len(await deliver(store)) == 1
    await store.queue.serve("n1", [api.id], notifies=False)
    await store.put(api, "quiet", backend="other")
    await store.queue.finish(broken(await store.take(api)))
    assert await deliver(store) == []


async def test_who_was_told_of_a_question_hears_of_its_answer(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.queue.start_node(telling("n1"), HOUR)
    first, second, third = [await store.put(api) for _ in range(3)]
    for _ in range(2):
        await store.queue.finish(asked(await store.take(api)))
    assert len(await deliver(store)) == 2

    await store.queue.answer(first, "yes", "me")
    await store.queue.cancel(second, "me")
    await store.queue.cancel(third, "me")  # nobody was asked

    assert await deliver(store) == [("notify", "execution.answered"), ("notify", "execution.cancelled")]


async def test_nobody_is_told_of_a_run_that_a_person_watches(store: Bed) -> None:
    api = await store.project()
    await store.queue.start_node(telling("serve"), HOUR)
    await store.node("run")
    for end in (asked, broken):
        await store.put(api, reserved_for="run")
        await store.queue.finish(end(await store.take(api, "run", own=True)))

    assert await deliver(store) == []


async def test_a_publication_that_can_not_be_ends_its_pull_request(store: Bed) -> None:
    api = await store.project()
    await store.queue.start_node(telling("n1"), HOUR)
    await store.put(api, origin=TICKET)
    id = await published(store, api)
    await deliver(store, (EffectKind.REPORT,))
    (publish,) = await take(store, (EffectKind.PUBLISH,))

    assert await store.store.outbox.give_up(publish, "n1", "the token may not push")

    pull = await store.store.pulls.of(id)
    assert pull is not None
    assert (pull.state, pull.error, pull.ended_at) == (PullState.FAILED, "the token may not push", store.clock.now)
    report = await store.store.outbox.report(id)
    assert (report.type, report.data) == (
        EventType.DELIVERY_FAILED,
        {"kind": "publish", "reason": "the token may not push"},
    )
    assert sorted(await deliver(store)) == [
        ("notify", "delivery.failed"), ("report", "delivery.failed"), ("report", "execution.completed"),
    ]  # fmt: skip
    assert await store.status(id) is Status.COMPLETED


async def test_a_report_that_can_not_be_given_is_told_once_and_never_reported(store: Bed) -> None:
    api = await store.project()
    await store.queue.start_node(telling("n1"), HOUR)
    await store.put(api, origin=TICKET)
    (effect,) = await take(store)
    await store.store.outbox.give_up(effect, "n1", "404")
    (notify,) = await take(store)
    assert notify.payload == {"type": "delivery.failed", "data": {"kind": "report", "reason": "404"}}
    await store.store.outbox.give_up(notify, "n1", "and nobody hears it")

    assert await deliver(store) == []


async def test_a_report_says_how_it_stands(store: Bed) -> None:
    api = await store.project()
    await store.node()
    outbox = store.store.outbox
    first, second, third = [await store.put(api, origin=TICKET) for _ in range(3)]
    running = await store.take(api)

    report = await outbox.report(third)
    assert (report.type, report.ahead, report.origin, report.question) == (EventType.QUEUED, 2, TICKET, None)
    await store.queue.finish(asked(running, "which?", options=("a", "b"), default="a"))
    report = await outbox.report(first)
    assert report.question is not None
    assert (report.question.text, report.question.options, report.question.default) == ("which?", ("a", "b"), "a")
    assert (report.ahead, report.event) == (None, await store.value("SELECT max(id) FROM events"))
    await store.queue.cancel(second, "me", "no")
    await store.queue.answer(first, "b", "you")
    question = (await outbox.report(first)).question
    assert question is not None
    assert (question.answer, question.answered_by) == ("b", "you")
    await published(store, api, text="all done")
    report = await outbox.report(first)
    assert (report.summary, report.execution.status) == ("all done", Status.COMPLETED)
    assert report.pull is not None
    assert report.pull.state is PullState.OWED
    with pytest.raises(NotFound):
        await outbox.report(99)


async def test_what_waits_to_be_delivered_keeps_its_execution(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api, origin=TICKET)
    await published(store, api)
    store.clock.tick(HOUR)
    assert await store.queue.prune(store.clock.now) == 0
    await deliver(store)
    assert await store.queue.prune(store.clock.now) == 0  # its pull request is owed
    pull = await store.store.pulls.of(1)
    assert pull is not None
    await store.store.pulls.opened(pull.id, number=1, url="u", head_sha=pull.head_sha)
    await store.store.pulls.saw(pull.id, state=PullState.CLOSED)
    await deliver(store)
    assert await store.queue.prune(store.clock.now) == 1
    for table in ("outbox", "pulls", "pull_executions"):
        assert await store.rows(f"SELECT * FROM {table}") == [], table


def telling(id: str) -> Any:
    return node(id, notifies=True)


def elsewhere(id: str) -> Any:
    return node(id, host="elsewhere")
