"""What plans and their retries promise, in plain Python over the model's rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pilot.domain.errors import UsageError
from pilot.domain.execution import Status
from pilot.domain.task import Task

if TYPE_CHECKING:
    from tests.store.model import Model, Row

Name = tuple[int, str]
VAIN = (Status.FAILED, Status.CANCELLED)


class PlanRules:
    """Each step is known by its name; its newest execution in the run stands for it."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @property
    def rows(self) -> dict[int, Row]:
        return self.model.rows

    def newest_retry(self, id: int) -> Row:
        found = {id}
        for row in self.rows.values():  # ascending: a retry comes after what it retries
            if row.task.parent in found and row.task.task_id == self.rows[id].task.task_id:
                found.add(row.id)
        return self.rows[max(found)]

    def submit(self, tasks: Sequence[Task], after: Mapping[int, Sequence[int]]) -> type[Exception] | dict[int, Row]:
        """What of it is there; the others are to be made."""
        keys = self.model.keys
        known = {
            n: self.newest_retry(keys[task.project_id, task.idempotency_key or ""])
            for n, task in enumerate(tasks)
            if (task.project_id, task.idempotency_key) in keys
        }
        for n, task in enumerate(tasks):
            if n in known:
                continue
            if any(row.open and (row.task.project_id, row.task.task_id) == name(task) for row in self.rows.values()):
                return UsageError
            if any(m in known and known[m].status in VAIN for m in after.get(n, ())):
                return UsageError
        return known

    def submitted(
        self, tasks: Sequence[Task], after: Mapping[int, Sequence[int]], known: Mapping[int, Row], ids: Sequence[int]
    ) -> None:
        runs = [row.plan_run for row in known.values() if row.plan_run is not None]
        fresh = {n: replace(task, after=tuple(ids[m] for m in after.get(n, ()))) for n, task in enumerate(tasks)}
        self._made([(ids[n], task) for n, task in fresh.items() if n not in known], max(runs, default=None))

    def _made(self, new: Sequence[tuple[int, Task]], run: int | None) -> None:
        for id, task in new:
            self.model.insert(id, task, run or new[0][0])
        for id, _ in new:
            self.model.by_itself(self.rows[id])

    # Retries.

    def run(self, number: int) -> dict[Name, Row]:
        """The newest of each step, in the order of the steps."""
        newest: dict[Name, Row] = {}
        for row in self.rows.values():
            if row.plan_run == number:
                newest[name(row.task)] = row
        return newest

    def _waits_for(self, row: Row, run: Mapping[Name, Row]) -> list[Row]:
        rows = [self.rows[id] for id in row.task.after if id in self.rows]
        return [run[name(one.task)] if one.plan_run == row.plan_run else one for one in rows]

    def targets(self, run: Mapping[Name, Row]) -> list[Name]:
        return [which for which, row in run.items() if row.status in VAIN and row.because is None]

    def retry(self, run: Mapping[Name, Row], targets: Collection[Name]) -> type[Exception] | list[Name]:
        """The steps that are made anew."""
        chosen = set(targets)
        while True:
            more = {
                which
                for which, row in run.items()
                if which not in chosen and row.status is Status.CANCELLED and row.because is not None
                and any(name(one.task) in chosen and one.plan_run == row.plan_run for one in self._waits_for(row, run))
                and not self._in_vain(row, run, chosen)
            }  # fmt: skip
            if not more:
                break
            chosen |= more
        if any(self._in_vain(run[which], run, chosen) for which in targets):
            return UsageError
        return [which for which in run if which in chosen]

    def _in_vain(self, row: Row, run: Mapping[Name, Row], chosen: Collection[Name]) -> bool:
        return any(
            one.status in VAIN and not (one.plan_run == row.plan_run and name(one.task) in chosen)
            for one in self._waits_for(row, run)
        )

    def open_elsewhere(self, names: Collection[Name]) -> dict[Name, Row]:
        return {name(row.task): row for row in self.rows.values() if row.open and name(row.task) in names}

    def retried(self, run: Mapping[Name, Row], targets: Collection[Name], new: Mapping[Name, int]) -> None:
        for which in targets:
            self.model.forget(run[which])
        tasks = []
        for which, id in new.items():
            row = run[which]
            after = tuple(
                new[name(one.task)] if one.plan_run == row.plan_run and name(one.task) in new else one.id
                for one in self._waits_for(row, run)
            )
            tasks.append((id, replace(again(row), after=after)))
        if tasks:
            self._made(tasks, next(iter(run.values())).plan_run)


def name(task: Task) -> Name:
    return task.project_id, task.task_id


def again(row: Row) -> Task:
    """The task of a retry."""
    old = row.task
    return replace(
        old, backend=row.backend, fallback=row.fallback, priority=2 if old.priority == -1 else old.priority,
        parent=row.id, idempotency_key=None, reserved_for=None, after=(), available_at=None,
    )  # fmt: skip
