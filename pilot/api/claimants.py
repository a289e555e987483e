"""Whose claims are whose: with a token one speaks of what was claimed with it, and of nothing else."""

from __future__ import annotations

from collections import OrderedDict

from pilot.api.problems import NotAllowed
from pilot.domain.access import Caller, Scope

MOST = 10_000
"""Claims that are remembered; those made longest ago are forgotten."""


class Claimants:
    """The tokens of claims that were made at this process, by execution and fence.

    Names and fences of running claims stand in what everybody with the scope read may see: they prove nothing. Of a
    claim that is not known here (pilot was started anew, another process gave it) whoever first renews it has it.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[int, tuple[int, str]] = OrderedDict()

    def has(self, caller: Caller, id: int, fence: int) -> None:
        """It is the caller's from now on."""
        self._known[id] = fence, caller.token
        self._known.move_to_end(id)
        if len(self._known) > MOST:
            self._known.popitem(last=False)

    def allow(self, caller: Caller, id: int, fence: int) -> None:
        """Raise `NotAllowed` when it was claimed with another token; who has the scope admin may speak of any."""
        known = self._known.get(id)
        if known is not None and known[0] == fence and known[1] != caller.token and not caller.may(Scope.ADMIN):
            raise NotAllowed(f"execution {id} was claimed with another token; that one speaks of it, or one of admin's")

    def renewed(self, caller: Caller, id: int, fence: int) -> None:
        """It is the caller's, unless it was known to be somebody's."""
        known = self._known.get(id)
        if known is None or known[0] < fence:
            self.has(caller, id, fence)
