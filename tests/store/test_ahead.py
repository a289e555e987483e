"""Rows that are wanted later: they are there once they were heard, and what fails meanwhile fails as ever.

Behind `LAST` that may be when all is committed: what goes on there makes results, and nothing else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator, Sequence

import psycopg
import pytest

from pilot.domain.errors import StoreError
from pilot.store import open_store
from pilot.store.database import HEARD, LAST, Ahead, Rows, Statement, Step
from tests.store.bed import Bed, Clock

CROWDS = pytest.mark.parametrize("many", [1, 20])
"""Alone, or sent part by part."""
GROW = Statement("UPDATE projects SET path = path || '!' RETURNING path")
MORE = Statement("UPDATE projects SET path = path || '?'")
NEVER = Statement("UPDATE projects SET running = -1")
NEVER_TOLD = Statement("UPDATE projects SET running = -1 RETURNING path")


async def all_of(store: Bed, steps: Sequence[Step], many: int) -> list[Rows | BaseException]:
    """What each of so many callers gets from an operation of these steps: the rows of what it sent ahead."""

    def operation(items: Sequence[None]) -> Generator[Step, Rows, list[Rows]]:
        found: list[Rows] = []
        for step in steps:
            rows = yield step
            if isinstance(step, Ahead):
                found.append(rows)
        return [[row for rows in found for row in rows]] * len(items)

    writes = (store.database.write(operation, None) for _ in range(many))
    return await asyncio.gather(*writes, return_exceptions=True)


@CROWDS
async def test_rows_are_there_once_they_were_heard(store: Bed, many: int) -> None:
    api = await store.project()

    found = await all_of(store, (Ahead(GROW), MORE, HEARD, Ahead(GROW), HEARD, HEARD), many)

    assert found == [[(f"{api.path}!",), (f"{api.path}!?!",)]] * many
    assert await store.value("SELECT path FROM projects") == f"{api.path}!?!"
    assert (
        await all_of(store, (Ahead(GROW), HEARD, Ahead(GROW), MORE, LAST), many)
        == [[(f"{api.path}!?!!",), (f"{api.path}!?!!!",)]] * many
    )
    assert await store.value("SELECT path FROM projects") == f"{api.path}!?!!!?"


@CROWDS
@pytest.mark.parametrize(
    "steps",
    [
        (Ahead(NEVER_TOLD), MORE, HEARD),
        (MORE, Ahead(NEVER_TOLD), HEARD, MORE),
        (Ahead(GROW), NEVER, HEARD, MORE),
        (Ahead(GROW), NEVER, HEARD, Ahead(GROW), HEARD),
        (Ahead(GROW), NEVER),
        (NEVER, MORE, Ahead(GROW)),
        (Ahead(NEVER_TOLD), MORE, LAST),
        (Ahead(GROW), NEVER, LAST),
        (NEVER, Ahead(GROW), LAST),
    ],
)
async def test_what_fails_before_or_behind_is_said_and_nothing_is_written(
    store: Bed, many: int, steps: Sequence[Step]
) -> None:
    api = await store.project()

    found = await all_of(store, steps, many)

    assert all(isinstance(one, StoreError) for one in found)
    assert await store.value("SELECT path FROM projects") == api.path
    assert await all_of(store, (Ahead(GROW), HEARD), many) == [[(f"{api.path}!",)]] * many


async def test_what_stands_behind_is_under_way_when_rows_are_heard(postgres_url: str) -> None:
    async with open_store(postgres_url, clock=Clock()) as opened:
        await Bed(opened, Clock()).project()
        busy: list[object] = []

        def slow(items: Sequence[None]) -> Generator[Step, Rows, list[int]]:
            rows = yield Ahead(GROW)
            yield Statement("UPDATE projects SET path = path || coalesce(pg_sleep(2)::text, '')")
            yield HEARD
            with psycopg.connect(postgres_url) as other:
                asked = (
                    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%coalesce(pg_sleep%'"
                )
                busy.append(other.execute(f"{asked} AND pid <> pg_backend_pid()").fetchone())
            return [len(rows)] * len(items)

        assert await asyncio.gather(*(opened.database.write(slow, None) for _ in range(20))) == [1] * 20

        assert busy == [(1,)]


@CROWDS
async def test_nothing_goes_on_behind_the_last(store: Bed, many: int) -> None:
    await store.project()

    for error in await all_of(store, (Ahead(GROW), LAST, MORE), many):
        assert isinstance(error, RuntimeError)

    assert "?" not in str(await store.value("SELECT path FROM projects"))


@CROWDS
async def test_what_fails_behind_the_last_is_the_answer_and_the_next_group_goes_on(store: Bed, many: int) -> None:
    await store.project()

    def bad(items: Sequence[None]) -> Generator[Step, Rows, list[Rows]]:
        rows = yield Ahead(GROW)
        yield LAST
        raise StoreError(f"{len(rows)}")

    writes = (store.database.write(bad, None) for _ in range(many))
    for error in await asyncio.gather(*writes, return_exceptions=True):
        assert isinstance(error, StoreError)
        assert str(error) == "1"

    assert len(await all_of(store, (Ahead(GROW), LAST), many)) == many


@CROWDS
async def test_results_are_made_while_it_is_committed(postgres_url: str, many: int) -> None:
    async with open_store(postgres_url, clock=Clock()) as opened:
        api = await Bed(opened, Clock()).project()
        seen: list[object] = []

        def slow(items: Sequence[None]) -> Generator[Step, Rows, list[int]]:
            rows = yield Ahead(GROW)
            yield LAST
            with psycopg.connect(postgres_url, autocommit=True) as other:
                deadline = time.monotonic() + 5
                while not seen and time.monotonic() < deadline:
                    (path,) = other.execute("SELECT path FROM projects").fetchone() or ("",)
                    seen.extend([path] if path != api.path else [])
            return [len(rows)] * len(items)

        assert await asyncio.gather(*(opened.database.write(slow, None) for _ in range(many))) == [1] * many

        assert seen == [f"{api.path}!"]
