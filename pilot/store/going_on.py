"""What follows an end in its turn, claimed in the transaction that writes it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence

from pilot.domain.execution import Execution
from pilot.domain.ports import Finish
from pilot.store.claim import Claim
from pilot.store.database import Dialect, Rows, Statement, Step
from pilot.store.heads import PAUSED, ClaimRequest, head
from pilot.store.places import elsewhere
from pilot.store.records import ids, ids_of


class GoingOn:
    """The operation: of the projects that wait for the turn the first that has something, else the same one's next.

    So a node that has more work than room goes from one project to the next in one transaction, tells nobody of work
    that it takes itself, and gives its turn to none whose work another node has by now.
    """

    def __init__(self, dialect: Dialect, claim: Claim) -> None:
        self._claim = claim
        self._ready = f"""
            SELECT p.id FROM projects p LEFT JOIN nodes n ON n.id = :node
              JOIN executions e ON e.id = ({head(dialect, ":node", external=False)})
            WHERE p.id IN {ids_of(dialect)} AND p.running < p.max_running AND NOT {PAUSED.format(project="p.id")}
              AND (e.reserved_for = :node OR NOT {elsewhere("coalesce(n.place, '')", "e")})"""

    def __call__(
        self, finishes: Mapping[int, Finish], now: int, handed: Collection[int]
    ) -> Generator[Step, Rows, dict[int, Execution]]:
        """By the finishes' keys, of which those in `handed` have their slots still."""
        found: dict[int, Execution] = {}
        yield from self._claim.promote([None], now)
        waiting: dict[str, dict[int, None]] = {}
        for finish in finishes.values():
            waiting.setdefault(finish.execution.node or "", {}).update(dict.fromkeys(finish.first))
        for node, projects in waiting.items():
            mine = [n for n, finish in finishes.items() if finish.execution.node == node]
            left = (yield from self._those_ready(node, projects, now)) if projects else []
            while left and mine:
                asked = dict(zip(mine, left, strict=False))
                left = left[len(asked) :]
                found |= yield from self._claimed(finishes, asked, now, ())
                mine = [n for n in mine if n not in found]
        own = {n: finish.execution.project_id for n, finish in finishes.items() if n not in found}
        return found | (yield from self._claimed(finishes, own, now, handed))

    def _those_ready(self, node: str, projects: Mapping[int, None], now: int) -> Generator[Step, Rows, list[int]]:
        rows = yield Statement(self._ready, {"node": node, "ids": ids(projects), "now": now})
        there = {id for (id,) in rows}
        return [id for id in projects if id in there]

    def _claimed(
        self, finishes: Mapping[int, Finish], asked: Mapping[int, int], now: int, handed: Collection[int]
    ) -> Generator[Step, Rows, dict[int, Execution]]:
        """`asked`: from which project each wants its next."""
        requests = [_request(finishes[n], project, n in handed) for n, project in asked.items()]
        answers: Sequence[Execution | None] = (yield from self._claim.take(requests, now)) if requests else ()
        return {n: execution for n, execution in zip(asked, answers, strict=True) if execution is not None}


def _request(finish: Finish, project: int, handed: bool) -> ClaimRequest:
    execution = finish.execution
    own = execution.reserved_for is not None
    return ClaimRequest(project, execution.node or "", finish.next_lease or 0, own, handed=handed)
