"""What people see of the outside world: what is owed, who was refused, how the sources do."""

from __future__ import annotations

import json
from dataclasses import replace

from pilot.domain.delivery import EffectKind, PullState, Refusal
from pilot.domain.task import Project
from pilot.store.documents import moment, rfc3339
from tests.store.bed import HOUR, MINUTE, Bed
from tests.store.test_outbox import deliver
from tests.store.test_pulls import finish, opened, pull_of


async def next_of(store: Bed, id: int) -> str:
    why = await store.store.history.why(id, store.clock.now)
    assert why is not None
    assert (why.holds, why.position) == ((), None)
    return why.next


async def published(store: Bed, api: Project) -> int:
    await store.put(api, "T")
    return await finish(store, api)


async def test_why_says_what_a_completed_one_still_owes(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id, since = await published(store, api), moment(store.clock.now)
    assert await next_of(store, id) == f"Its pull request is owed since {since}: a node delivers it."

    (effect,) = await store.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR)
    store.clock.tick(MINUTE)
    await store.store.outbox.postpone(effect, "n1", store.clock.now + MINUTE, "502\n\x1b[31mBad Gateway")
    assert await next_of(store, id) == (
        f"Its pull request is owed since {since}, and was tried once: 502 Bad Gateway. "
        f"It is tried again at {moment(store.clock.now + MINUTE)}."
    )
    store.clock.tick(MINUTE)
    (effect,) = await store.store.outbox.take("n1", [EffectKind.PUBLISH], lease=HOUR)
    await store.store.outbox.give_up(effect, "n1", "the token may not push")
    assert await next_of(store, id) == (
        "Its pull request could not be made: the token may not push. The change is on branch pilot/T; "
        f"`pilot retry {id}` runs it anew."
    )


async def test_why_says_that_its_pull_request_waits(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    await deliver(store)

    await store.store.pulls.saw(pull.id, checks="passed")
    await deliver(store)
    assert await next_of(store, pull.execution) == (
        "Nothing: it is completed. Its pull request waits to be merged (checks: passed): https://x/7"
    )
    await store.store.pulls.saw(pull.id, state=PullState.MERGED)
    assert "A word on its ticket is owed" in await next_of(store, pull.execution)
    assert (await pull_of(store, pull.execution)).state is PullState.MERGED
    await deliver(store)
    assert await next_of(store, pull.execution) == (
        "Nothing: it is completed, and its pull request is merged: https://x/7"
    )


async def test_why_says_who_has_to_look_at_a_red_one_and_that_it_was_closed(store: Bed) -> None:
    api = await store.project()
    await store.node()
    pull = await opened(store, api)
    waits = "Nothing: it is completed. Its pull request waits to be merged (checks: failed: ci): https://x/7"

    await store.store.pulls.saw(pull.id, checks="failed", red=["ci"])
    await deliver(store)
    assert await next_of(store, pull.execution) == waits
    repair = await store.put(api, "T")
    await deliver(store)
    assert await next_of(store, pull.execution) == f"{waits}; {repair} works on it."
    await store.store.queue.cancel(repair, "ann")
    await store.store.pulls.saw(pull.id, stuck="a repair changed nothing")
    await deliver(store)
    assert await next_of(store, pull.execution) == f"{waits}; a person has to look, for a repair changed nothing."

    await store.store.pulls.saw(pull.id, state=PullState.CLOSED)
    await deliver(store)
    assert await next_of(store, pull.execution) == (
        "Nothing: it is completed. Its pull request was closed without being merged: https://x/7; "
        f"`pilot retry {pull.execution}` runs it anew."
    )


async def test_the_status_says_how_sources_do_and_what_is_owed(store: Bed) -> None:
    api = await store.project()
    await store.node()
    history, health, now = store.store.history, store.store.health, store.clock.now
    assert (await history.status(now))["outbox"] == {"owed": 0, "oldest": None}
    await published(store, api)
    await store.store.inbox.store("github", "d", "h", "issues", "labeled", "{}")
    await health.saw("linear", "ok")
    await health.saw("github", "paused", reason="rate limit", until=now + HOUR)
    await health.saw("telegram", "failing", reason="401: make a new token")

    status = await history.status(now)

    assert status["outbox"] == status["inbox"] == {"owed": 1, "oldest": rfc3339(now)}
    nobody = {"until": None, "reason": None, "last_poll": None}
    assert status["sources"] == [
        nobody | {"name": "github", "status": "paused", "until": rfc3339(now + HOUR), "reason": "rate limit"},
        nobody | {"name": "linear", "status": "ok", "last_poll": rfc3339(now)},
        nobody | {"name": "telegram", "status": "failing", "reason": "401: make a new token"},
    ]
    json.dumps(status)


async def test_who_was_refused_is_found_by_the_task(store: Bed) -> None:
    api = await store.project()
    first = Refusal(
        key="b", project_id=api.id, source="github", task_id="GH-46", actor="mallory", reason="may not write", url="u"
    )
    await store.store.refusals.refuse(first)
    store.clock.tick(1)
    await store.store.refusals.refuse(replace(first, key="a", project_id=None))

    found = await store.store.history.refused("GH-46")

    assert [(one.key, one.project_id, one.at) for one in found] == [
        ("b", api.id, store.clock.now - 1),
        ("a", None, store.clock.now),
    ]
    assert (found[0].actor, found[0].reason, found[0].url) == ("mallory", "may not write", "u")
    assert await store.store.history.refused("GH-47") == []
