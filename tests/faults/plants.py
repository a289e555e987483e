"""Bugs to plant into a node, by name: an auditor that finds none of them would prove nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence, Set
from typing import Any

from pilot.domain.ports import Finish
from pilot.store import Store
from pilot.store.database import Rows, Statement, Step
from pilot.store.postgres import PostgresDatabase
from pilot.store.postgres_group import Transaction


def _replace(owner: object, name: str, old: str, new: str) -> None:
    sql = getattr(owner, name)
    assert old in sql, f"{name} does not say {old!r} any more: plant this bug anew"
    setattr(owner, name, sql.replace(old, new))


def the_fence_is_not_checked(store: Store) -> None:
    """Whoever runs it now, a late end ends it."""
    finish = store.queue._finish_steps
    _replace(finish, "_end", "AND executions.fence = f.fence", "")
    really = finish.end

    def end(
        finishes: Sequence[Finish], now: int, *, lost: bool, handed: Set[int] = frozenset()
    ) -> Generator[Step, Rows, set[int]]:
        if lost:
            return (yield from really(finishes, now, lost=lost))
        rows = yield Statement("SELECT id, fence, node FROM executions WHERE status = 'running'")
        held: dict[int, tuple[int, str]] = {id: (fence, node) for id, fence, node in rows}
        late = [
            dataclasses.replace(f, execution=dataclasses.replace(f.execution, fence=held[f.execution.id][0]))
            if f.execution.id in held
            else f
            for f in finishes
        ]
        return (yield from really(late, now, lost=lost, handed=handed))

    finish.end = end  # type: ignore[method-assign]


def late_output_is_kept(store: Store) -> None:
    """An attempt that has ended may still write."""
    journal = store.journal

    def standing(writes: Sequence[Any]) -> Generator[Step, Rows, list[Exception | None]]:
        for n, write in enumerate(writes):
            for m, (kind, data) in enumerate(write.pieces):
                yield Statement(
                    "INSERT INTO output (execution_id, attempt, seq, at, kind, data) SELECT :id, :attempt, "
                    "coalesce((SELECT max(o.seq) FROM output o WHERE o.execution_id = :id AND o.attempt = :attempt), 0)"
                    " + 1, :now, :kind, :data",
                    {
                        "id": write.execution.id, "attempt": write.execution.attempt, "now": store.database.clock(),
                        "kind": str(kind), "data": data, "n": n + m,
                    },
                )  # fmt: skip
        return [None] * len(writes)

    journal.output = standing  # type: ignore[method-assign]


def nobody_waits_for_the_lock(store: Store) -> None:
    """Several write at once."""
    transaction = _transaction(store)
    transaction._lock = Statement("SELECT 1")


def a_lost_answer_is_taken_for_a_failure(store: Store) -> None:
    """What was committed and not heard of is done again."""
    _transaction(store)._committed = lambda late: False  # type: ignore[method-assign]


def _transaction(store: Store) -> Transaction:
    database = store.database
    assert isinstance(database, PostgresDatabase)
    return database._transaction


PLANTS: Mapping[str, Callable[[Store], None]] = {
    plant.__name__: plant
    for plant in (
        the_fence_is_not_checked,
        late_output_is_kept,
        nobody_waits_for_the_lock,
        a_lost_answer_is_taken_for_a_failure,
    )
}
