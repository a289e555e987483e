"""The same random operations on every engine leave the same history: rows, ids, and what happened in which order."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest

from pilot.store.database import Row
from tests.postgres import Cluster
from tests.store.bed import Bed
from tests.store.engines import in_memory
from tests.store.machine import Queueing, at
from tests.store.walk import STEPS

TABLES = (
    *("projects", "executions", "dependencies", "attempts", "output", "questions", "outbox", "idempotency_keys"),
    *("nodes", "node_projects", "node_accounts", "parks", "pauses", "spending", "results", "artifact_uses"),
)
WALKS, LENGTH = 3, 70


def story(machine: Queueing) -> dict[str, Any]:
    """All that is in its store. Events by what they are of: within one operation, the engine chooses the order."""
    read = machine.store.database.read
    told: dict[str, Any] = {table: sorted(machine.run(read(f"SELECT * FROM {table}")), key=repr) for table in TABLES}
    events: dict[tuple[Any, Any], list[Row]] = defaultdict(list)
    for _, *event in machine.run(read("SELECT id, execution_id, project_id, at, type, data FROM events ORDER BY id")):
        events[event[0], event[1]].append(tuple(event))
    return {**told, "events": dict(events)}


def together(one: Queueing, other: Queueing, dice: random.Random, steps: int) -> None:
    """Take the same steps on both, each of which agrees with its model by itself."""
    limited = dice.random() < 0.3
    one.start(limited=limited)
    other.start(limited=limited)
    names, weights = list(STEPS), [weight for weight, _ in STEPS.values()]
    while steps > 0:
        (name,) = dice.choices(names, weights)
        if all(condition(one) for condition in getattr(one, name).hypothesis_stateful_rule.preconditions):
            arguments = {key: draw(dice) for key, draw in STEPS[name][1].items()}
            one.trail.append((name, arguments))
            getattr(one, name)(**arguments)
            getattr(other, name)(**arguments)
            steps -= 1
            if steps % 10 == 0:
                assert story(one) == story(other)


@pytest.fixture
def pair(postgres: Cluster) -> tuple[Queueing, Queueing]:
    return at(in_memory)(), at(postgres.database)()


@pytest.mark.parametrize("_walk", range(WALKS))
def test_both_engines_tell_the_same_story(pair: tuple[Queueing, Queueing], _walk: int) -> None:
    number = random.randrange(1 << 32)
    print(f"to repeat this: number = {number}")
    try:
        together(*pair, random.Random(number), LENGTH)
    except BaseException:
        for name, arguments in pair[0].trail[-20:]:
            print(f"  {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
        raise
    finally:
        for machine in pair:
            machine.teardown()


@pytest.mark.parametrize("change", ["UPDATE executions SET priority = 1 - priority", "DELETE FROM events WHERE id = 5"])
def test_a_difference_is_found(pair: tuple[Queueing, Queueing], change: str) -> None:
    one, other = pair
    together(one, other, random.Random(1), 9)
    same = story(one) == story(other)

    other.run(Bed(other.store, other.clock).sql(change))
    differ = story(one) != story(other)
    for machine in pair:
        machine.teardown()

    assert same
    assert differ
