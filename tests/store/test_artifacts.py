"""Artifacts: kept once by content, written with the end of the claim that stood, gone with the last who has them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from pilot.domain.errors import LeaseLost, NotFound, UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.ports import Finish
from pilot.domain.work import Artifact
from pilot.store.artifacts import MAX_ARTIFACTS, MAX_SIZE
from tests.store.bed import HOUR, Bed, done


def bringing(execution: Execution, *artifacts: Artifact, **more: Any) -> Finish:
    """Success that comes with these files; `more` is of the outcome."""
    return replace(done(execution, **{"branch": None, "delivered": False, **more}), artifacts=artifacts)


async def test_they_are_kept_with_the_end_and_come_back_as_they_were(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    files = Artifact("out/a.bin", bytes(range(256))), Artifact("b.txt", "ünïcode".encode()), Artifact("empty", b"")

    await store.queue.finish(bringing(await store.take(api), *files))

    row = await store.queue.get(id)
    assert row.status is Status.COMPLETED
    assert row.artifacts == [{"name": f.name, "sha256": f.sha256, "size": len(f.content)} for f in files]
    for file in files:
        assert await store.store.artifacts.get(file.sha256) == file.content
    assert await store.store.artifacts.of(id) == {f.name: f.content for f in files}


async def test_the_same_content_is_kept_once(store: Bed) -> None:
    api = await store.project(max_running=2)
    await store.node()
    ids = [await store.put(api), await store.put(api)]
    same = Artifact("a", b"same"), Artifact("b", b"same")

    claims = [await store.take(api), await store.take(api)]
    await asyncio.gather(*(store.queue.finish(bringing(claim, *same)) for claim in claims))

    assert await store.value("SELECT count(*) FROM artifacts") == 1
    assert await store.value("SELECT count(*) FROM artifact_uses") == 2
    for id in ids:
        assert await store.store.artifacts.of(id) == {"a": b"same", "b": b"same"}


async def test_who_lost_the_claim_leaves_none(store: Bed) -> None:
    api = await store.project()
    await store.node()
    await store.put(api)
    execution = await store.take(api)
    await store.queue.recover(["n1"], "killed")
    before = await store.dump()

    with pytest.raises(LeaseLost):
        await store.queue.finish(bringing(execution, Artifact("late", b"late")))

    assert await store.dump() == before
    assert await store.value("SELECT count(*) FROM artifacts") == 0
    assert await store.value("SELECT count(*) FROM artifact_uses") == 0


async def test_of_one_end_said_twice_in_one_commit_only_the_first_files_are_kept(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    execution = await store.take(api)

    await asyncio.gather(
        store.queue.finish(bringing(execution, Artifact("first", b"1"))),
        store.queue.finish(bringing(execution, Artifact("second", b"2"))),
        return_exceptions=True,
    )

    assert await store.store.artifacts.of(id) == {"first": b"1"}
    assert await store.value("SELECT count(*) FROM artifacts") == 1


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([Artifact(str(n), b"") for n in range(MAX_ARTIFACTS + 1)], "64 artifacts at most, not 65"),
        ([Artifact("big", bytes(MAX_SIZE + 1))], "'big' has 1048577 bytes, and one has 1048576 at most"),
    ],
)
async def test_too_much_is_refused_and_the_claim_stands(store: Bed, files: list[Artifact], words: str) -> None:
    api, web = await store.project(), await store.project("web")
    await store.node()
    await store.put(api)
    other = await store.put(web)
    execution, fine = await store.take(api), await store.take(web)

    refused, _ = await asyncio.gather(
        store.queue.finish(bringing(execution, *files)), store.queue.finish(done(fine)), return_exceptions=True
    )

    assert isinstance(refused, UsageError)
    assert words in str(refused)
    assert await store.status(other) is Status.COMPLETED  # of one commit, the good one is written
    assert await store.status(execution.id) is Status.RUNNING
    await store.queue.finish(done(execution))


async def test_as_much_as_may_be_is_kept(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)

    await store.queue.finish(
        bringing(
            await store.take(api), *[Artifact(str(n), bytes([n])) for n in range(63)], Artifact("x", bytes(MAX_SIZE))
        )
    )

    assert len(await store.store.artifacts.of(id)) == 64


@pytest.mark.parametrize("name", ["", "0" * 64, "../etc/passwd", "A" * 64, "0" * 63 + "\n", "%", "ü"])
async def test_what_is_no_hash_or_of_nothing_is_not_found(store: Bed, name: str) -> None:
    with pytest.raises(NotFound, match="no artifact"):
        await store.store.artifacts.get(name)


async def test_of_an_execution_that_never_was(store: Bed) -> None:
    api = await store.project()
    id = await store.put(api)

    assert await store.store.artifacts.of(id) == {}
    with pytest.raises(NotFound):
        await store.store.artifacts.of(id + 1)


async def test_hostile_names_are_kept_as_names(store: Bed) -> None:
    api = await store.project()
    await store.node()
    id = await store.put(api)
    name = "a\x00b\ud800'; --\x1b[2J"

    await store.queue.finish(bringing(await store.take(api), Artifact(name, b"x")))

    assert await store.store.artifacts.of(id) == {"a\ufffdb\ufffd'; --\x1b[2J": b"x"}


async def test_what_nobody_has_any_more_is_removed_with_the_history(store: Bed) -> None:
    api = await store.project()
    await store.node()
    shared, own = Artifact("a", b"shared"), Artifact("b", b"own")
    await store.put(api)
    await store.queue.finish(bringing(await store.take(api), shared, own))
    store.clock.tick(HOUR)
    before = store.clock.now
    await store.put(api)
    await store.queue.finish(bringing(await store.take(api), shared))

    assert await store.queue.prune(before) == 1

    assert await store.store.artifacts.get(shared.sha256) == b"shared"
    with pytest.raises(NotFound):
        await store.store.artifacts.get(own.sha256)
    store.clock.tick(HOUR)
    assert await store.queue.prune(store.clock.now) == 1
    assert await store.value("SELECT count(*) FROM artifacts") == 0
