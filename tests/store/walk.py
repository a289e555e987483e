"""Walks of our own, by weights: hypothesis finds the short ways and shrinks them, these go far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from pilot.domain.outcome import Ending, FailureClass
from tests.store.machine import CHAINS, ENDS, LEASE, LIMITS, MADE, OWNERS, Queueing


def _which(dice: Random) -> int:
    return dice.randrange(41)


def _ending(dice: Random) -> Ending | FailureClass:
    return dice.choice(ENDS)


def _project(dice: Random) -> int:
    return dice.randrange(len(LIMITS))


def steps(dice: Random) -> list[tuple[int, list[int], str | None, bool]]:
    """Of a plan: name, names that it waits for, dedupe key, whether it is a note."""
    names = dice.sample(range(7), dice.randint(1, 6))
    return [
        (name, [dice.randrange(6) for _ in range(dice.randrange(4))], dice.choice(MADE), dice.random() < 0.2)
        for name in names
    ]


Draw = Callable[[Random], Any]
STEPS: Mapping[str, tuple[int, Mapping[str, Draw]]] = {
    "enqueue": (
        6,
        {
            "project": _project,
            "name": lambda dice: dice.randrange(5),
            "priority": lambda dice: dice.choice([2, 2, 1, 0]),
            "delay": lambda dice: dice.choice([0, 0, 0, 1000, 8000]),
            "after": lambda dice: [_which(dice) for _ in range(dice.choice([0, 0, 0, 1, 2]))],
            "backend": lambda dice: dice.choice("aab"),
            "fallback": lambda dice: dice.choice(CHAINS),
            "key": lambda dice: dice.choice([None, None, "k1", "k2"]),
            "external": lambda dice: dice.random() < 0.1,
            "dedupe": lambda dice: dice.choice(MADE),
            "instant": lambda dice: dice.random() < 0.1,
        },
    ),
    "enqueue_behind_open_ones": (
        3,
        {"project": _project, "parents": lambda dice: dice.choice([1, 2]), "name": lambda dice: dice.randrange(5)},
    ),
    "enqueue_many_at_once": (
        1,
        {"project": _project, "names": lambda dice: [dice.randrange(6) for _ in range(dice.randint(2, 5))]},
    ),
    "submit": (2, {"project": _project, "run": lambda dice: dice.choice(["r1", "r2"]), "steps": steps}),
    "retry_plan": (1, {"project": _project}),
    "run_directly": (2, {"project": _project, "name": lambda dice: dice.choice([5, 6])}),
    "claim": (2, {"project": _project, "number": lambda dice: dice.randrange(3)}),
    "claim_what_is_ready": (5, {"number": _which}),
    "run_what_is_ready": (8, {"number": _which, "ending": _ending}),
    "claim_anything": (1, {"number": lambda dice: dice.randrange(2), "most": lambda dice: dice.randint(1, 4)}),
    "claim_at_once": (1, {"project": _project, "count": lambda dice: dice.randint(2, 4)}),
    "claim_everywhere_at_once": (2, {"numbers": lambda dice: [dice.randrange(2) for _ in range(3)]}),
    "finish": (
        4,
        {
            "number": _which,
            "ending": _ending,
            "evidence": lambda dice: dice.randrange(2),
            "going_on": lambda dice: dice.random() < 0.4,
        },
    ),
    "finish_twice_at_once": (1, {"number": _which, "ending": _ending}),
    "come_too_late": (2, {"number": _which, "ending": _ending}),
    "speak": (1, {"number": _which}),
    "hear_from_the_model": (2, {"number": _which}),
    "change_key": (1, {"number": lambda dice: dice.randrange(3), "a": lambda dice: dice.choice(["x", "y", "new"])}),
    "cancel": (3, {"number": _which}),
    "answer": (2, {"number": _which}),
    "answer_anything": (1, {"number": _which}),
    "retry": (2, {"number": _which}),
    "pause": (
        1,
        {"project": lambda dice: dice.randint(-1, len(LIMITS) - 1), "owner": lambda dice: dice.choice(OWNERS)},
    ),
    "resume": (2, {"number": _which, "everybodys": lambda dice: dice.random() < 0.5}),
    "unpark": (1, {"number": _which}),
    "tick": (3, {"ms": lambda dice: dice.choice([1, 1000, LEASE - 1, LEASE, LEASE + 1])}),
    "tick_until_something_is_due": (3, {"early": lambda dice: dice.random() < 0.5}),
    "heartbeat": (2, {"number": lambda dice: dice.randrange(3)}),
    "nodes_die": (3, {"numbers": lambda dice: set(dice.sample(range(3), dice.choice([0, 0, 1, 2])))}),
    "node_leaves": (1, {"number": lambda dice: dice.randrange(3)}),
    "keep_house": (
        3,
        {
            "what": lambda dice: dice.choice(["look", "look", "look", "expire", "prune", "reopen"]),
            "age": lambda dice: dice.choice([0, 10_000, 10_000]),
        },
    ),
}


def walk(machine: Queueing, dice: Random, steps: int, often: Mapping[str, int] | None = None) -> None:
    """So many steps that are possible, each followed by the check; raises what the first broken promise raises.

    `often`: only these, so often.
    """
    chosen = often or {name: weight for name, (weight, _) in STEPS.items()}
    names, weights = list(chosen), list(chosen.values())
    try:
        machine.start(limited=dice.random() < 0.3)
        while steps > 0:
            (name,) = dice.choices(names, weights)
            step = getattr(machine, name)
            if all(condition(machine) for condition in step.hypothesis_stateful_rule.preconditions):
                machine.trail.append((name, arguments := {key: draw(dice) for key, draw in STEPS[name][1].items()}))
                step(**arguments)
                machine.nothing_is_broken()
                steps -= 1
    finally:
        machine.teardown()
