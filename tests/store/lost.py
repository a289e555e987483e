"""A connection that is lost at its COMMIT, before or after the server has done it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from pilot.store.database import Statement
from pilot.store.postgres_dialect import Lost
from pilot.store.postgres_wire import Wire

_ask = Wire.ask


def nothing(_wire: Wire, _commit: Statement) -> None:
    """It never comes there."""


def heard(wire: Wire, commit: Statement) -> None:
    """It is done, and all that was asked for before was heard."""
    _ask(wire, commit)
    wire.rows()


def unheard(wire: Wire, commit: Statement) -> None:
    """It is done, and nothing was heard of what was sent with it."""
    _ask(wire, commit)
    wire._sent = deque(one._replace(heard=None) for one in wire._sent)
    wire.rows()


def lose(
    monkeypatch: pytest.MonkeyPatch, become: Callable[[Wire, Statement], None], *, every: bool = False
) -> list[Wire]:
    """Have the next one lost, or all; the connections that were. `become`: of the COMMIT."""
    lost: list[Wire] = []

    def losing(self: Wire, statement: Statement) -> None:
        if statement.sql != "COMMIT" or (lost and not every):
            _ask(self, statement)
            return
        lost.append(self)
        become(self, statement)
        self.close()
        raise Lost("", "gone")

    monkeypatch.setattr(Wire, "ask", losing)
    return lost
