"""Finish: every end of a claim, with all that follows from it, in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Sequence, Set
from dataclasses import asdict, replace

from pilot.domain.errors import LeaseLost
from pilot.domain.events import EventType
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.domain.policy import Settlement
from pilot.domain.ports import Finish
from pilot.domain.text import clean, tail
from pilot.store.artifacts import Artifacts, check_artifacts
from pilot.store.claim import Claim
from pilot.store.database import HEARD, Ahead, Dialect, Notify, Rows, Statement, Step
from pilot.store.dependents import Dependents
from pilot.store.going_on import GoingOn
from pilot.store.instant import Results
from pilot.store.parks import Parks
from pilot.store.publications import owe
from pilot.store.records import OWED, EventRow, Table, dumps, event, events_statement, ids, ids_of, known, short
from pilot.store.spending import Spending

EXCERPT = 8_000  # characters of evidence kept per attempt
SUMMARY = 16_000

_ENDS = Table(
    id="bigint", fence="bigint", attempt="bigint", status="text", reason="text", available_at="bigint",
    counted="bigint", lost="bigint", keep_session="bigint", feedback="text", judged="bigint", failure_class="text",
    error="text", outcome="text", model="text", session_id="text", branch="text", base_sha="text", head_sha="text",
    delivery="text", input_tokens="bigint", output_tokens="bigint", cost_usd="float", streak="bigint", mark="text",
)  # fmt: skip
_ATTEMPTS = Table(
    execution_id="bigint", number="bigint", outcome="text", failure_class="text", detail="text", excerpt="text",
    summary="text", gates="text", tree="text", head_sha="text", session_id="text", model="text",
    input_tokens="bigint", output_tokens="bigint", cost_usd="float",
)  # fmt: skip
_FREED = Table(project_id="bigint", n="bigint")
_ASKED = Table(execution_id="bigint", attempt="bigint", text="text", options="text", preset="text")


def _add(column: str) -> str:
    # A sum of what is known: one attempt whose cost nobody told does not hide the others'. What an attempt noted on
    # its way counts when it came to no figure of its own: cancelled, interrupted, lost.
    own = f"coalesce(f.{column}, t.{column})"
    return (
        f"{column} = CASE WHEN {own} IS NULL THEN executions.{column} ELSE coalesce(executions.{column}, 0) + {own} END"
    )


class FinishClaims:
    """The operation. What a row must still be for it to count: running, with the same fence."""

    def __init__(
        self, dialect: Dialect, claim: Claim, dependents: Dependents, parks: Parks, spending: Spending
    ) -> None:
        self._dialect = dialect
        self._going_on = GoingOn(dialect, claim)
        self._dependents = dependents
        self._parks = parks
        self._spending = spending
        self._artifacts = Artifacts(dialect)
        self._results = Results(dialect)
        self._end = f"""
            UPDATE executions SET
              status = f.status, reason = f.reason, slot = NULL, node = NULL, lease_until = NULL,
              cancel_requested = 0,
              available_at = CASE WHEN f.status = 'queued' THEN coalesce(f.available_at, :now)
                ELSE executions.available_at END,
              due = CASE WHEN f.status = 'queued' AND coalesce(f.available_at, :now) <= :now THEN 1 ELSE 0 END,
              reserved_for = CASE WHEN f.status = 'queued' THEN executions.reserved_for END,
              failures = failures + f.counted,
              losses = CASE WHEN f.lost = 1 THEN losses + 1 ELSE 0 END,
              session_id = CASE WHEN f.keep_session = 1 THEN coalesce(f.session_id, executions.session_id) END,
              feedback = CASE WHEN f.status = 'queued' AND f.judged = 0 THEN executions.feedback ELSE f.feedback END,
              failure_class = CASE WHEN f.judged = 1 THEN f.failure_class ELSE executions.failure_class END,
              error = CASE WHEN f.judged = 1 THEN f.error ELSE executions.error END,
              streak = CASE WHEN f.judged = 1 THEN f.streak ELSE executions.streak END,
              mark = CASE WHEN f.judged = 1 THEN f.mark ELSE executions.mark END,
              outcome = f.outcome, model = coalesce(f.model, executions.model),
              branch = coalesce(f.branch, executions.branch),
              base_sha = coalesce(f.base_sha, executions.base_sha),
              head_sha = coalesce(f.head_sha, executions.head_sha),
              delivery = coalesce(f.delivery, executions.delivery),
              {_add("input_tokens")}, {_add("output_tokens")}, {_add("cost_usd")},
              finished_at = CASE WHEN f.status IN ('completed', 'failed', 'cancelled') THEN :now END
            FROM {_ENDS.of(dialect, "f")} LEFT JOIN attempts t ON t.execution_id = f.id AND t.number = f.attempt
            WHERE executions.id = f.id AND executions.fence = f.fence AND executions.status || '' = 'running'
            RETURNING executions.id, executions.fence, executions.has_dependents"""
        self._before = f"""
            SELECT e.id, e.cancel_requested, e.reason, e.forgiven_usd, e.cost_usd, a.cost_usd, n.per_execution_usd
            FROM executions e JOIN attempts a ON a.execution_id = e.id AND a.number = e.attempt
              LEFT JOIN nodes n ON n.id = e.node
            WHERE e.status = 'running' AND e.id IN {ids_of(dialect)}"""
        self._free = f"""
            UPDATE projects SET running = running - r.n FROM {_FREED.of(dialect, "r")}
            WHERE projects.id = r.project_id"""
        self._attempts = f"""
            UPDATE attempts SET finished_at = :now, phase = NULL, outcome = a.outcome,
              failure_class = a.failure_class, detail = a.detail, excerpt = a.excerpt, summary = a.summary,
              gates = a.gates, tree = a.tree, head_sha = coalesce(a.head_sha, attempts.head_sha),
              session_id = coalesce(a.session_id, attempts.session_id), model = coalesce(a.model, attempts.model),
              input_tokens = coalesce(a.input_tokens, attempts.input_tokens),
              output_tokens = coalesce(a.output_tokens, attempts.output_tokens),
              cost_usd = coalesce(a.cost_usd, attempts.cost_usd)
            FROM {_ATTEMPTS.of(dialect, "a")}
            WHERE attempts.execution_id = a.execution_id AND attempts.number = a.number
            RETURNING attempts.execution_id, attempts.account, attempts.probe, attempts.started_at,
              attempts.reserved, attempts.cost_usd"""
        self._ask = f"""
            INSERT INTO questions (execution_id, attempt, text, options, preset, asked_at)
            SELECT q.execution_id, q.attempt, q.text, q.options, q.preset, :now FROM {_ASKED.of(dialect, "q")}"""

    def __call__(
        self, finishes: Sequence[Finish], now: int
    ) -> Generator[Step, Rows, list[Execution | Exception | None]]:
        """The next claim where asked for; `LeaseLost` for what was no longer this claim's."""
        handed = _handed(finishes)
        ended = yield from self.end(finishes, now, lost=False, handed=handed)
        answers: list[Execution | Exception | None] = [
            None
            if n in ended
            else LeaseLost(
                f"execution {finish.execution.id} (fence {finish.execution.fence}) is no longer this run's; "
                "its result was not written"
            )
            for n, finish in enumerate(finishes)
        ]
        going_on = {
            n: finish
            for n, finish in enumerate(finishes)
            if n in ended and finish.next_lease is not None and finish.execution.node is not None
        }
        if going_on:
            for n, claimed in (yield from self._going_on(going_on, now, handed)).items():
                answers[n] = claimed
            yield from self._let_go(finishes[n] for n in handed & ended if answers[n] is None)
        idle = {str(f.execution.project_id) for n, f in enumerate(finishes) if n in ended and not _same(f, answers[n])}
        if idle:
            yield Notify(idle)
        return answers

    def end(
        self, finishes: Sequence[Finish], now: int, *, lost: bool, handed: Set[int] = frozenset()
    ) -> Generator[Step, Rows, set[int]]:
        """End the claims that still stand; returns which of `finishes` did so. `handed`: their slots stay taken."""
        for finish in finishes:
            check_artifacts(finish.artifacts)
        finishes = yield from self._heed(finishes)
        # The same claim twice in one group, as a repeated request brings it: the first counts, the other is late.
        claims: dict[tuple[int, int], int] = {}
        for n, finish in enumerate(finishes):
            claims.setdefault((finish.execution.id, finish.execution.fence), n)
        ends = _ENDS.rows(_end_row(finishes[n], lost) for n in claims.values())
        rows = yield Ahead(Statement(self._end, {"now": now, "items": ends}))
        # In a crowd the server ends them while this is made ready: hardly ever is one of them too late.
        attempts = {n: _attempt_row(finishes[n]) for n in claims.values()}
        told = {n: tuple(_events(finishes[n], lost, now)) for n in claims.values()}
        yield HEARD
        ended = {claims[id, fence]: bool(has_dependents) for id, fence, has_dependents in rows}
        done = [finishes[n] for n in sorted(ended)]
        if not done:
            return set()
        yield from self._let_go(finishes[n] for n in ended if n not in handed)
        items = _ATTEMPTS.rows(attempts[n] for n in sorted(ended))
        facts = yield Ahead(Statement(self._attempts, {"now": now, "items": items}))
        yield from self._artifacts.keep(done, now)
        # Before the events: of what they make people be told, the pull request is to be a part.
        published = yield from owe(done, now)
        yield events_statement(self._dialect, now, [row for n in sorted(ended) for row in told[n]])
        if published or any(_is_told(finish) for finish in done):
            yield OWED
        asked = [f for f in done if f.settlement.question is not None]
        if asked:
            yield Statement(self._ask, {"now": now, "items": _ASKED.rows(map(_question_row, asked))})
        yield HEARD
        accounts: dict[int, str] = {id: account for id, account, *_ in facts}
        yield from self._parks.settle(done, accounts, {id for id, _, probe, *_ in facts if probe}, now)
        yield from self._spending.settle(((begun, reserved, cost) for _, _, _, begun, reserved, cost in facts), now)
        settled = yield from self._know(done, now)
        parents = {
            finishes[n].execution.id: finishes[n].settlement.to
            for n, has_dependents in ended.items()
            if has_dependents and finishes[n].settlement.to.final
        }
        if parents:
            yield from self._dependents.follow(parents, now)
        yield from self._dependents.let_go(settled, now)
        return set(ended)

    def _let_go(self, finishes: Iterable[Finish]) -> Generator[Step, Rows, None]:
        freed = Counter(finish.execution.project_id for finish in finishes)
        if freed:
            yield Statement(self._free, {"items": _FREED.rows(freed.items())})

    def _know(self, done: Sequence[Finish], now: int) -> Generator[Step, Rows, list[int]]:
        """Keep what is known under its dedupe key from now on; the queued ones that may be done by that."""
        keyed = [(f.execution, f.execution.dedupe, f.settlement.to) for f in done if f.execution.dedupe]
        made = [(e.project_id, key, e.id) for e, key, to in keyed if key and to is Status.COMPLETED]
        waiting: list[int] = []
        if made:
            waiting = yield from self._results.add(made, now)
        return [*(e.id for e, _, to in keyed if to is Status.QUEUED), *waiting]

    def _heed(self, finishes: Sequence[Finish]) -> Generator[Step, Rows, Sequence[Finish]]:
        """What would run again, or wait for a person, ends when somebody asked for its end, in that person's words.

        What would run again and has cost what it may waits for a person.
        """
        ending = [f.execution.id for f in finishes if f.settlement.to not in (Status.COMPLETED, Status.FAILED)]
        if not ending:
            return finishes
        rows = yield Statement(self._before, {"ids": ids(ending)})
        stored = {id: row for id, *row in rows}
        return [
            _heeded(f, *stored[f.execution.id])
            if f.execution.id in stored and f.settlement.to not in (Status.COMPLETED, Status.FAILED)
            else f
            for f in finishes
        ]


def _handed(finishes: Sequence[Finish]) -> set[int]:
    """Those whose own project's next takes the slot over: one each, where no other project waits for a turn."""
    if any(finish.first for finish in finishes):
        return set()
    ends = Counter(finish.execution.project_id for finish in finishes)
    going_on = (n for n, finish in enumerate(finishes) if finish.next_lease is not None and finish.execution.node)
    return {n for n in going_on if ends[finishes[n].execution.project_id] == 1}


def _same(finish: Finish, following: object) -> bool:
    """Whether its project goes on."""
    return isinstance(following, Execution) and following.project_id == finish.execution.project_id


def _heeded(
    finish: Finish, cancelled: int, reason: str, forgiven: float, before: float | None, noted: float | None,
    limit: float | None,
) -> Finish:  # fmt: skip
    to = finish.settlement
    if cancelled:
        ended = Settlement(to=Status.CANCELLED, reason=reason, keep_session=True, park=to.park)
        return replace(finish, settlement=ended)
    own = known(finish.outcome.usage)["cost_usd"]
    cost = (before or 0.0) + ((noted if own is None else own) or 0.0)
    if to.to is not Status.QUEUED or limit is None or cost - forgiven < limit:
        return finish
    words = (
        f"budget: it has cost ${cost - forgiven:.2f} of the ${limit:.2f} that a task may cost "
        f"(budget.per_execution_usd). Answer to let it cost as much again"
    )
    held = f"{words}; it was to go on after {to.reason}" if to.reason else words
    settlement = replace(to, to=Status.NEEDS_HUMAN, reason=held, failure=FailureClass.BUDGET, keep_session=True)
    return replace(finish, settlement=settlement)


def _end_row(finish: Finish, lost: bool) -> list[object]:
    execution, outcome, to = finish.execution, finish.outcome, finish.settlement
    judged = to.failure is not None or outcome.ending in (Ending.DONE, Ending.NO_CHANGE, Ending.FAILED)
    error = _text(outcome.detail) if outcome.ending is Ending.FAILED else short(to.reason) if to.failure else None
    return [
        execution.id, execution.fence, execution.attempt, to.to, short(to.reason), to.available_at, int(to.counted),
        int(lost), int(to.keep_session), _text(to.feedback), int(judged), to.failure or outcome.failure,
        error, outcome.ending, outcome.model,
        outcome.session_id, outcome.branch, outcome.base_sha, outcome.head_sha,
        "branch" if outcome.delivered else None, *known(outcome.usage).values(), to.streak, to.mark,
    ]  # fmt: skip


def _attempt_row(finish: Finish) -> list[object]:
    execution, outcome = finish.execution, finish.outcome
    gates = dumps([asdict(gate) for gate in outcome.gates]) if outcome.gates else None
    # Of the attempt alone: nothing plus what nobody told of another is not known to be nothing.
    usage = Usage(0, 0, 0.0) if outcome.unspent else outcome.usage
    return [
        execution.id, execution.attempt, outcome.ending, outcome.failure, _text(outcome.detail) or None,
        clean(tail(outcome.excerpt, EXCERPT)) or None, clean(tail(outcome.text, SUMMARY)) or None,
        gates, outcome.tree, outcome.head_sha, outcome.session_id, outcome.model, *known(usage).values(),
    ]  # fmt: skip


def _question_row(finish: Finish) -> list[object]:
    question = finish.settlement.question
    assert question is not None  # noqa: S101  chosen by it
    preset = None if question.default is None else clean(question.default)
    options = dumps([clean(option) for option in question.options])
    return [finish.execution.id, finish.execution.attempt, clean(question.text), options, preset]


def _is_told(finish: Finish) -> bool:
    execution = finish.execution
    followed = execution.origin is not None or execution.callback_url is not None
    return followed or finish.settlement.to in (Status.FAILED, Status.NEEDS_HUMAN)


def _text(text: str | None) -> str | None:
    return None if text is None else clean(tail(text, EXCERPT))


_EVENT_OF = {
    Status.COMPLETED: EventType.COMPLETED,
    Status.FAILED: EventType.FAILED,
    Status.CANCELLED: EventType.CANCELLED,
    Status.NEEDS_HUMAN: EventType.ASKED,
    Status.QUEUED: EventType.RETRIED,
}


def _events(finish: Finish, lost: bool, now: int) -> Iterable[EventRow]:
    execution, outcome, to = finish.execution, finish.outcome, finish.settlement
    if lost:
        yield event(EventType.LOST, execution.id, execution.project_id, node=execution.node, why=outcome.detail)
    yield event(
        _EVENT_OF[to.to], execution.id, execution.project_id, attempt=execution.attempt, fence=execution.fence,
        **_facts(execution, outcome, to, now),
    )  # fmt: skip


def _facts(execution: Execution, outcome: Outcome, to: Settlement, now: int) -> dict[str, object]:
    facts: dict[str, object] = {"outcome": outcome.ending}
    if to.reason:
        facts["reason"] = short(to.reason)
    if failure := to.failure or outcome.failure:
        facts["failure_class"] = failure
    if to.to is Status.QUEUED:
        facts |= {"available_at": now if to.available_at is None else to.available_at, "counted": to.counted}
    if outcome.branch:
        facts["branch"] = outcome.branch
    if execution.reserved_for is not None:  # a person watches it
        facts["direct"] = True
    return facts
