"""Turns: how many executions a node runs at once, first come first served between its projects."""

from __future__ import annotations

import asyncio

from pilot.domain.execution import Execution


class Turns:
    """A fair semaphore that can say who else waits, and give a turn together with what is claimed for it.

    A project that has had its turn goes behind those that wait, so none starts twice while another waits.
    """

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: dict[asyncio.Future[Execution | None], int] = {}

    @property
    def contended(self) -> bool:
        """Whether a turn given back now would be taken at once."""
        return bool(self._waiting)

    @property
    def waiting(self) -> tuple[int, ...]:
        """The projects (ids) that wait for one, in their order."""
        return tuple(self._waiting.values())

    async def take(self, project: int = 0) -> Execution | None:
        """Wait for a turn, in the order of asking. What comes with it: an execution of the project, claimed already."""
        if self._free:
            self._free -= 1
            return None
        given: asyncio.Future[Execution | None] = asyncio.get_running_loop().create_future()
        self._waiting[given] = project
        try:
            return await given
        except asyncio.CancelledError:
            if not given.cancelled():  # it had its turn already
                self.give_back()
            raise
        finally:
            self._waiting.pop(given, None)

    def give_back(self) -> None:
        """Let the next one in."""
        given = next((given for given in self._waiting if not given.done()), None)
        if given is None:
            self._free += 1
        else:
            del self._waiting[given]
            given.set_result(None)

    def hand(self, execution: Execution) -> bool:
        """Give a turn, with what is claimed for it, to its project; whether that still waited for one."""
        for given, project in self._waiting.items():
            if project == execution.project_id and not given.done():
                del self._waiting[given]
                given.set_result(execution)
                return True
        return False
