"""What a session with PostgreSQL is set to, and how its values are read."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.adapt import Loader

from pilot.store.postgres_dialect import PATIENCE

LOCKED = round(PATIENCE * 1000)  # ms that a statement waits for a lock
LONGEST = 15_000
"""ms that a statement may take."""
SILENCE = 2.0
"""Seconds that the server may leave unanswered what it was sent; a statement's own time is on top."""
IDLE = 2_000
"""ms that somebody who stopped in the middle of a transaction keeps the others from writing."""

# The plans that the statements were written for: as on SQLite, by index and row by row. What the planner knows of a
# table that was empty a minute ago is nothing, and a plan is kept for as long as the connection.
_PLANS = ("enable_seqscan", "enable_hashjoin", "enable_mergejoin", "enable_bitmapscan", "enable_material")
LIMITED: dict[str, object] = {
    **dict.fromkeys(_PLANS, "off"), "plan_cache_mode": "force_generic_plan", "random_page_cost": 1.1,
    "statement_timeout": LONGEST, "idle_in_transaction_session_timeout": IDLE,
    "default_transaction_isolation": "'read committed'",
}  # fmt: skip
_UNLIMITED: dict[str, object] = {"statement_timeout": 0, "idle_in_transaction_session_timeout": 0}


def settings(*, read_only: bool, patient: bool) -> str:
    """The script that sets them. `patient`: for what reads or changes everything."""
    wanted: dict[str, object] = {"client_min_messages": "error", "extra_float_digits": 1, "jit": "off"}
    wanted |= {"lock_timeout": LOCKED, "default_transaction_read_only": int(read_only)}
    wanted |= _UNLIMITED if patient else LIMITED
    return (
        ";".join(f"SET {name} = {value}" for name, value in wanted.items())
        # a commit that was acknowledged survives the loss of power
        + ";SELECT set_config('synchronous_commit', 'on', false)"
        " WHERE current_setting('synchronous_commit') IN ('off', 'local')"
    )


class _Int(Loader):
    def load(self, data: Any) -> int:
        return int(data == b"t")


class _Number(Loader):
    def load(self, data: Any) -> int | float:
        text = bytes(data)
        return float(text) if b"." in text or not text.lstrip(b"-").isdigit() else int(text)


def load(connection: psycopg.Connection) -> None:
    """Have it read truth values and sums as numbers, as SQLite gives them."""
    connection.adapters.register_loader("bool", _Int)
    connection.adapters.register_loader("numeric", _Number)
