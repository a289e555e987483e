"""The journal: what a run learns and says, in order, whole, and only while it holds its claim."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Execution
from tests.store.bed import SECOND, Bed, again, interrupted

TEXT = OutputKind.TEXT


async def claimed(store: Bed, name: str = "api") -> Execution:
    project = await store.project(name)
    await store.node(f"node of {name}")
    await store.put(project)
    return await store.take(project, f"node of {name}")


async def said(store: Bed, execution: Execution, attempt: int = 1) -> list[tuple[int, str, bytes]]:
    rows = await store.rows(
        "SELECT seq, kind, data FROM output WHERE execution_id = :id AND attempt = :attempt ORDER BY seq",
        id=execution.id,
        attempt=attempt,
    )
    return [(seq, kind, data) for seq, kind, data in rows]


async def test_facts_are_added_to_the_row_and_to_the_attempt(store: Bed) -> None:
    execution = await claimed(store)

    await store.journal.note(execution, phase="workspace", workspace="/w", branch="pilot/T", base_sha="b")
    await store.journal.note(execution, phase="agent", session_id="s", model="big", head_sha="h", input_hash="i")

    row = await store.queue.get(execution.id)
    assert (row.workspace, row.branch, row.base_sha, row.head_sha) == ("/w", "pilot/T", "b", "h")
    assert (row.session_id, row.model, row.input_hash) == ("s", "big", "i")
    assert await store.rows("SELECT phase, session_id, model, head_sha FROM attempts") == [("agent", "s", "big", "h")]


async def test_unknown_leaves_what_is_known(store: Bed) -> None:
    execution = await claimed(store)
    await store.journal.note(execution, session_id="s")

    await store.journal.note(execution, session_id=None, branch="b")

    row = await store.queue.get(execution.id)
    assert (row.session_id, row.branch) == ("s", "b")


async def test_a_fact_that_does_not_exist_is_a_mistake(store: Bed) -> None:
    execution = await claimed(store)

    with pytest.raises(TypeError, match="colour"):
        await store.journal.note(execution, colour="red")


async def test_notes_that_meet_in_one_commit_are_all_kept_the_last_word_last(store: Bed) -> None:
    one, two = await claimed(store, "a"), await claimed(store, "b")

    await asyncio.gather(
        store.journal.note(one, session_id="s1", phase="first"),
        store.journal.note(two, session_id="s2"),
        store.journal.note(one, branch="b1"),
        store.journal.note(one, phase="second", model="m"),
        store.journal.note(two, branch="b2"),
    )

    first, second = await store.queue.get(one.id), await store.queue.get(two.id)
    assert (first.session_id, first.branch, first.model) == ("s1", "b1", "m")
    assert (second.session_id, second.branch, second.model) == ("s2", "b2", None)
    assert await store.rows("SELECT phase FROM attempts ORDER BY execution_id") == [("second",), (None,)]


async def test_output_keeps_its_order_and_its_bytes(store: Bed) -> None:
    execution = await claimed(store)
    data = [b"", bytes(range(256)), b"\xff\xfe\x00" * 100, "é🚀".encode(), b"x" * (1 << 20)]

    await store.journal.write(execution, [(OutputKind.STDOUT, data[0]), (OutputKind.STDERR, data[1])])
    store.clock.tick(SECOND)
    await store.journal.write(execution, [])
    await store.journal.write(execution, [(OutputKind.RAW, piece) for piece in data[2:]])

    assert [piece for _, _, piece in await said(store, execution)] == data
    assert [kind for _, kind, _ in await said(store, execution)] == ["stdout", "stderr", "raw", "raw", "raw"]
    assert [seq for seq, _, _ in await said(store, execution)] == [1, 2, 3, 4, 5]
    assert await store.value("SELECT max(at) - min(at) FROM output") == SECOND


async def test_output_that_meets_in_one_commit_keeps_each_ones_order(store: Bed) -> None:
    one, two = await claimed(store, "a"), await claimed(store, "b")

    await asyncio.gather(
        *(
            store.journal.write(execution, [(TEXT, b"%d.1" % n), (TEXT, b"%d.2" % n)])
            for n in range(50)
            for execution in (one, two)
        )
    )

    expected = [(2 * n + k, "text", b"%d.%d" % (n, k)) for n in range(50) for k in (1, 2)]
    assert await said(store, one) == await said(store, two) == expected


async def test_each_attempt_has_its_own_output(store: Bed) -> None:
    execution = await claimed(store)
    api = await store.project()
    await store.journal.write(execution, [(TEXT, b"one")])
    await store.queue.finish(again(execution))
    second = await store.take(api)

    await store.journal.write(second, [(TEXT, b"two")])

    assert await said(store, execution, 1) == [(1, "text", b"one")]
    assert await said(store, execution, 2) == [(1, "text", b"two")]


async def test_a_lost_claim_says_nothing_even_beside_the_right_one_in_one_commit(store: Bed) -> None:
    late = await claimed(store)
    api = await store.project()
    await store.queue.finish(interrupted(late))
    right = await store.take(api)

    answers = await asyncio.gather(
        store.journal.write(late, [(TEXT, b"late")]),
        store.journal.write(right, [(TEXT, b"right")]),
        store.journal.write(replace(right, fence=right.fence + 1), [(TEXT, b"early")]),
        store.journal.note(late, branch="late", phase="late"),
        store.journal.note(right, branch="right", phase="right"),
        return_exceptions=True,
    )

    assert [type(a) for a in answers] == [LeaseLost, type(None), LeaseLost, LeaseLost, type(None)]
    assert await said(store, right, 1) == []
    assert await said(store, right, 2) == [(1, "text", b"right")]
    assert (await store.queue.get(right.id)).branch == "right"
    assert await store.rows("SELECT phase FROM attempts ORDER BY number") == [(None,), ("right",)]


async def test_an_expired_lease_that_nobody_took_back_may_still_speak(store: Bed) -> None:
    # Recovery decides, in one place, when a claim is over; until then there is nobody whose work could be disturbed.
    execution = await claimed(store)
    store.clock.tick(10**9)

    await store.journal.write(execution, [(TEXT, b"still here")])
    await store.queue.recover([], "")
    with pytest.raises(LeaseLost):
        await store.journal.write(execution, [(TEXT, b"too late")])

    assert [data for _, _, data in await said(store, execution)] == [b"still here"]
