"""Places: on whose disk the work of an execution lies, and who may go on with it.

What was begun goes on where its workspace, its branch and its agent's session are, as long as a node of that place is
up, or left in order and may be back soon. Everything else is for whoever is free. The steps of one run of a plan are
done at one place, since each starts from the branches of those before it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.records import ids, ids_of

BACK = 2 * 60 * 1000
"""ms for which a place is waited for whose node has left in order: it may be an upgrade."""


def elsewhere(place: str, row: str) -> str:
    """Whether execution `row` is to go on at another place than this one. `:now` is UTC ms.

    What is left to workers is not: no node of that place would ever take it.
    """
    return f"""
        ({row}.external <> 1 AND {row}.place IS NOT NULL AND {row}.place <> {place} AND (
          EXISTS (SELECT 1 FROM nodes k WHERE k.place = {row}.place AND k.place <> '' AND k.kind = 'serve'
            AND k.lease_until >= :now AND (k.choosy = 0 OR EXISTS (SELECT 1 FROM node_projects s
              WHERE s.node_id = k.id AND s.project_id = {row}.project_id)))
          OR EXISTS (SELECT 1 FROM places y WHERE y.place = {row}.place AND y.until >= :now)))"""


LEFT = """
    INSERT INTO places (place, until) SELECT DISTINCT n.place, :until FROM nodes n
    WHERE n.id IN (SELECT d.id FROM {names}) AND n.place <> '' AND n.kind = 'serve'
    ON CONFLICT (place) DO UPDATE SET until = excluded.until"""
"""That these nodes (`names`: a table `d` of them) leave in order."""
GONE = "DELETE FROM places WHERE until < :now"


class Places:
    """What a claim writes of places."""

    def __init__(self, dialect: Dialect) -> None:
        among = ids_of(dialect)
        # Nothing of what was begun there is here: not its branch, not its agent's session.
        self._anew = f"""
            UPDATE executions SET session_id = NULL, workspace = NULL, branch = NULL, base_sha = NULL, head_sha = NULL
            WHERE id IN {among}"""
        self._together = f"""
            UPDATE executions SET place = :place
            WHERE plan_run IN (SELECT c.plan_run FROM executions c WHERE c.id IN {among} AND c.plan_run IS NOT NULL)
              AND place IS NULL AND status IN ('blocked', 'queued')"""

    def moved(self, executions: Mapping[int, str]) -> Generator[Step, Rows, None]:
        """These (by id, the place they come from) begin anew."""
        if executions:
            yield Statement(self._anew, {"ids": ids(executions)})

    def together(self, steps: Mapping[int, str]) -> Generator[Step, Rows, None]:
        """What belongs to the same runs of plans as these (by id, their place) is done there, too."""
        for place in sorted(set(steps.values())):
            here = [id for id, other in steps.items() if other == place]
            yield Statement(self._together, {"place": place, "ids": ids(here)})
