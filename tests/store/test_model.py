"""Thousands of random steps over the real queue: it does what the model says, and the auditor finds nothing."""

from __future__ import annotations

import random

from hypothesis import Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.store.machine import Queueing
from tests.store.walk import walk

PROFILE = settings(
    deadline=None,
    database=None,
    print_blob=True,
    max_examples=35,
    stateful_step_count=40,
    phases=(Phase.generate, Phase.shrink),
)


def test_short_walks_that_hypothesis_chooses() -> None:
    number = random.randrange(1 << 32)
    print(f"to repeat this: number = {number}")

    run_state_machine_as_test(seed(number)(Queueing), settings=PROFILE)


def test_long_walks() -> None:
    for _ in range(40):
        number = random.randrange(1 << 32)
        machine = Queueing()
        try:
            walk(machine, random.Random(number), 80)
        except BaseException:
            print(f"to repeat this: number = {number}; its last steps:")
            for name, arguments in machine.trail[-20:]:
                print(f"  {name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
            raise
