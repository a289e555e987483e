"""Thousands of random steps over the real queue: it does what the model says, and the auditor finds nothing."""

from __future__ import annotations

import random

from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.store.engines import Places
from tests.store.machine import at
from tests.store.walk import walk

# The rules are the same text; what an engine makes of it takes fewer.
SHORT = {"sqlite": 35, "postgres": 4}
LONG = {"sqlite": 40, "postgres": 4}
PROFILE = settings(
    deadline=None,
    database=None,
    print_blob=True,
    stateful_step_count=40,
    phases=(Phase.generate, Phase.shrink),
)


def test_short_walks_that_hypothesis_chooses(places: Places, engine: str) -> None:
    number = random.randrange(1 << 32)
    print(f"to repeat this: number = {number}")

    profile = settings(PROFILE, max_examples=SHORT[engine])
    run_state_machine_as_test(seed(number)(at(places)), settings=profile)


def test_long_walks(places: Places, engine: str) -> None:
    for _ in range(LONG[engine]):
        number = random.randrange(1 << 32)
        machine = at(places)()
        try:
            walk(machine, random.Random(number), 80)
        except BaseException:
            print(f"to repeat this: number = {number}; its last steps:")
            for name, arguments in machine.trail[-20:]:
                print(f"  {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            raise
