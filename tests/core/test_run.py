"""What becomes of an execution, by how its attempt ended; and that an end is written, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pilot.dispatch import run as run_module
from pilot.dispatch.dispatcher import Limits
from pilot.dispatch.run import Attempts, Run, Stop
from pilot.domain.budget import Budget
from pilot.domain.errors import Busy, LeaseLost, StoreError, UsageError, WorkspaceError
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, GateResult, Outcome, Question, Usage, failed
from pilot.domain.policy import RULES
from pilot.domain.ports import Finish, Runner
from pilot.domain.task import Project
from tests.core.stage import MINUTE, NOW, SECOND, Act, Stage, Stubborn, Through, in_turn, raises, returns, until

F = FailureClass
HOUR = 60 * MINUTE


class Bench:
    """One project, one claim after the other, each attempt carried out by hand."""

    def __init__(self, stage: Stage, project: Project) -> None:
        self.stage = stage
        self.project = project
        self.node = stage.node()
        self.queue: Any = stage.queue
        self.jitter = 0.0

    async def attempt(self, act: Runner, rules: Any = RULES) -> Execution:
        """Claim what is next, carry it out; the row afterwards."""
        execution = await self.stage.claimed(self.project, self.node)
        attempts = Attempts(self.queue, act, self.stage.clock, lambda: self.jitter, rules)
        assert await attempts.carry_out(execution, lambda: (None, ())) is None
        assert attempts.runs == {}
        return await self.stage.row(execution.id)

    async def again(self, act: Runner) -> Execution:
        """After the pause that the last attempt asked for."""
        self.stage.clock.advance(HOUR)
        await self.stage.queue.expire_parks()
        return await self.attempt(act)


@pytest.fixture
async def bench(stage: Stage) -> Bench:
    return Bench(stage, await stage.project("api"))


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome(ending=Ending.DONE, branch="pilot/T-1", delivered=True), Status.COMPLETED),
        (Outcome(ending=Ending.NO_CHANGE), Status.COMPLETED),
        (Outcome(ending=Ending.QUESTION, question=Question("Which?", ("a", "b"), "a")), Status.NEEDS_HUMAN),
        (Outcome(ending=Ending.CANCELLED, detail="by ann"), Status.CANCELLED),
        (Outcome(ending=Ending.INTERRUPTED), Status.QUEUED),
        (failed(F.NO_CHANGE, "nothing came"), Status.FAILED),
    ],
    ids=lambda value: str(value.ending) if isinstance(value, Outcome) else "",
)
async def test_every_ending_has_its_state(bench: Bench, outcome: Outcome, status: Status) -> None:
    await bench.stage.task(bench.project, "T-1")

    row = await bench.attempt(returns(outcome))

    assert (row.status, row.outcome) == (status, outcome.ending)
    assert row.failures == (outcome.ending is Ending.FAILED)
    assert row.delivery == ("branch" if outcome.delivered else "none")
    assert (row.finished_at is not None) is status.final
    if outcome.ending is Ending.QUESTION:
        assert row.reason == "Which?"
        asked = await bench.stage.store.database.read("SELECT text, options, preset FROM questions")
        assert asked == [("Which?", '["a","b"]', "a")]


# class: status, counted, pause (jitter 0), parked until (0: not parked, None: for a person), session kept
AFTER_ONE: dict[FailureClass, tuple[Status, int, int, int | None, bool]] = {
    F.LINT: (Status.QUEUED, 1, 0, 0, True),
    F.TEST: (Status.QUEUED, 1, 0, 0, True),
    F.BUILD: (Status.QUEUED, 1, 0, 0, True),
    F.CI: (Status.QUEUED, 1, 0, 0, True),
    F.AGENT: (Status.QUEUED, 1, 5 * SECOND, 0, False),
    F.NO_CHANGE: (Status.FAILED, 1, 0, 0, True),
    F.REFUSAL: (Status.NEEDS_HUMAN, 0, 0, 0, True),
    F.TIMEOUT: (Status.QUEUED, 1, 0, 0, True),
    F.STALL: (Status.QUEUED, 1, 0, 0, True),
    F.OOM: (Status.QUEUED, 1, 5 * SECOND, 0, False),
    F.RATE_LIMIT: (Status.QUEUED, 0, 0, NOW + 30 * SECOND, True),
    F.QUOTA: (Status.QUEUED, 0, 0, NOW + 150 * SECOND, True),
    F.AUTH: (Status.QUEUED, 0, 0, None, True),
    F.INVALID_CONFIG: (Status.QUEUED, 0, 0, None, True),
    F.NETWORK: (Status.QUEUED, 0, 5 * SECOND, 0, True),
    F.CONFLICT: (Status.NEEDS_HUMAN, 0, 0, 0, True),
    F.INFRA: (Status.QUEUED, 0, 5 * SECOND, 0, True),
    F.BUDGET: (Status.NEEDS_HUMAN, 0, 0, 0, True),
    F.CANCELLED: (Status.CANCELLED, 0, 0, 0, True),
    F.UNKNOWN: (Status.QUEUED, 1, 5 * SECOND, 0, False),
}


@pytest.mark.parametrize("failure", FailureClass)
async def test_every_failure_has_its_consequence(bench: Bench, failure: FailureClass) -> None:
    id = await bench.stage.task(bench.project, "T-1")
    status, counted, pause, parked, keeps = AFTER_ONE[failure]

    row = await bench.attempt(returns(failed(failure, "it broke", excerpt="the evidence", session_id="s-1")))

    assert (row.status, row.failures, row.streak, row.failure_class) == (status, counted, 1, failure)
    assert row.error == "it broke"
    assert row.reason == f"{failure}: it broke"
    assert (row.session_id == "s-1") is keeps
    assert await bench.stage.parks() == ({} if parked == 0 else {"claude": parked})
    if status is Status.QUEUED:
        assert row.available_at == NOW + pause
        assert row.feedback == ("the evidence" if parked == 0 else None)
        (requeued,) = [data for type, data in await bench.stage.events(id) if type == "execution.requeued"]
        assert (requeued["counted"], requeued["failure_class"]) == (bool(counted), failure)


def reds(failure: FailureClass = F.TEST) -> Callable[[str], Act]:
    """Failures of one class that differ from one another."""
    return lambda what: returns(failed(failure, f"{what} is red", excerpt=f"assert {what}"))


async def test_different_failures_end_with_the_last_attempt(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1", max_attempts=3)
    red = reds()

    rows = [await bench.attempt(red("a")), await bench.attempt(red("b")), await bench.attempt(red("c"))]

    assert [row.status for row in rows] == [Status.QUEUED, Status.QUEUED, Status.FAILED]
    assert [row.failures for row in rows] == [1, 2, 3]


async def test_the_same_failure_twice_is_for_a_person(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")

    first = await bench.attempt(returns(failed(F.TEST, "red after 12 s", excerpt="0x7f3a: test_a failed in 0.31s")))
    second = await bench.attempt(returns(failed(F.TEST, "red after 14 s", excerpt="0x7f99: test_a failed in 0.44s")))

    assert first.status is Status.QUEUED
    assert second.status is Status.NEEDS_HUMAN
    assert second.reason == "test: red after 14 s (the same failure twice in a row)"


async def test_what_does_not_count_leaves_the_budget_alone(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1", max_attempts=2)
    red = reds()
    await bench.attempt(red("a"))

    for outcome in [failed(F.RATE_LIMIT, "429"), failed(F.NETWORK, "reset"), failed(F.INFRA, "disk")] * 3:
        row = await bench.again(returns(outcome))
        assert (row.status, row.failures) == (Status.QUEUED, 1)
    row = await bench.again(returns(Outcome(ending=Ending.INTERRUPTED)))
    assert (row.status, row.failures) == (Status.QUEUED, 1)

    row = await bench.again(red("b"))
    assert (row.status, row.failures, row.attempt) == (Status.FAILED, 2, 12)


async def test_pauses_grow_and_are_stored(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")
    pauses = []
    for n in range(5):
        row = await bench.again(returns(failed(F.NETWORK, f"reset {n}")))
        pauses.append(row.available_at - bench.stage.clock.now)

    assert pauses == [5 * SECOND, 10 * SECOND, 20 * SECOND, 40 * SECOND, 80 * SECOND]
    assert (await bench.again(returns(failed(F.NETWORK, "reset")))).status is Status.NEEDS_HUMAN


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
async def test_jitter_stays_in_the_upper_half(bench: Bench, jitter: float) -> None:
    await bench.stage.task(bench.project, "T-1")
    bench.jitter = jitter

    row = await bench.attempt(returns(failed(F.NETWORK, "reset")))

    assert 5 * SECOND <= row.available_at - NOW < 10 * SECOND


async def test_a_limit_parks_its_backend_until_the_time_it_named(stage: Stage) -> None:
    api = await stage.project("api")
    limited = failed(F.RATE_LIMIT, "usage limit", retry_at=NOW + HOUR)
    stage.script.acts["limited"] = in_turn(returns(limited), returns(Outcome(ending=Ending.DONE)))
    ids = [await stage.task(api, ref) for ref in ("limited", "same-backend")]
    other = await stage.task(api, "other-backend", backend="opencode")

    async with stage.dispatcher(limits=Limits(poll_interval=0.05)):
        await stage.reach(Status.COMPLETED, other)
        assert await stage.parks() == {"claude": NOW + HOUR}
        stage.clock.advance(HOUR - 1)
        late = await stage.task(api, "late", backend="opencode")
        await stage.reach(Status.COMPLETED, late)
        assert stage.script.order == ["limited", "other-backend", "late"]
        stage.clock.advance(1)
        await stage.reach(Status.COMPLETED, *ids)

    assert stage.script.order == ["limited", "other-backend", "late", "limited", "same-backend"]
    assert (await stage.row(ids[0])).failures == 0


async def test_a_backend_that_was_parked_for_a_person_opens_by_hand(stage: Stage) -> None:
    api = await stage.project("api")
    stage.script.acts["T-1"] = in_turn(returns(failed(F.AUTH, "401")), returns(Outcome(ending=Ending.DONE)))
    id = await stage.task(api, "T-1")

    async with stage.dispatcher(limits=Limits(poll_interval=60.0)):
        await until(lambda: stage.script.spans and stage.script.spans[0].ended)
        await stage.reach(Status.QUEUED, id)
        stage.clock.advance(100 * HOUR)
        await stage.queue.unpark("claude", "ann")
        await stage.reach(Status.COMPLETED, id)


@pytest.mark.parametrize(
    ("error", "failure", "status"),
    [
        (ValueError("a bug"), F.UNKNOWN, Status.QUEUED),
        (WorkspaceError(F.CONFLICT, "the branch moved", "git says"), F.CONFLICT, Status.NEEDS_HUMAN),
        (WorkspaceError(F.NETWORK, "can't fetch"), F.NETWORK, Status.QUEUED),
        (OSError(28, "No space left on device"), F.INFRA, Status.QUEUED),
        (StoreError("can't write"), F.INFRA, Status.QUEUED),
        (Busy("locked"), F.INFRA, Status.QUEUED),
        (TimeoutError("slow"), F.INFRA, Status.QUEUED),
        (asyncio.CancelledError(), F.UNKNOWN, Status.QUEUED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
async def test_a_runner_that_breaks_is_a_failure(
    bench: Bench, error: BaseException, failure: FailureClass, status: Status
) -> None:
    await bench.stage.task(bench.project, "T-1")

    row = await bench.attempt(raises(error))

    assert (row.status, row.failure_class) == (status, failure)
    assert row.failures == RULES[failure].counts
    assert row.error


async def test_a_runner_that_breaks_before_it_awaits_is_a_failure(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")

    def broken(_: Execution) -> Any:
        raise KeyError("project 7")

    row = await bench.attempt(broken)

    assert (row.status, row.failure_class, row.error) == (Status.QUEUED, "unknown", "KeyError: 'project 7'")


async def test_a_lost_lease_writes_nothing(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")

    row = await bench.attempt(raises(LeaseLost("not yours")))

    assert (row.status, row.fence, row.outcome) == (Status.RUNNING, 1, None)


async def test_a_claim_that_is_given_back_before_it_began_leaves_the_day_its_money(bench: Bench) -> None:
    id = await bench.stage.task(bench.project, "T-1")
    await bench.stage.queue.start_node(bench.node, HOUR)
    await bench.stage.queue.serve(bench.node.id, [bench.project.id], {}, Budget(5.0, 5.0))
    execution = await bench.stage.claimed(bench.project, bench.node)
    attempts = Attempts(bench.queue, raises(AssertionError("begun")), bench.stage.clock, lambda: 0.0)

    await attempts.carry_out(execution, lambda: (None, ()), begin=False)

    assert (await bench.stage.row(id)).status is Status.QUEUED
    assert await bench.stage.store.database.read("SELECT spent, reserved FROM spending") == [(0, 0)]


async def test_a_late_result_is_refused_and_changes_nothing(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")
    late = await bench.stage.claimed(bench.project, bench.node)
    await bench.stage.queue.recover([bench.node.id], "its process is gone")
    now = await bench.stage.claimed(bench.project, bench.stage.node())

    attempts = Attempts(bench.queue, returns(Outcome(ending=Ending.DONE)), bench.stage.clock, lambda: 0.0)
    assert await attempts.carry_out(late, lambda: (MINUTE, ())) is None

    assert await bench.stage.row(late.id) == now
    assert now.fence > late.fence


class Sick(Through):
    """Refuses the first results with what it is given."""

    def __init__(self, stage: Stage, *errors: Exception, until: Callable[[Finish], bool] = lambda _: False) -> None:
        super().__init__(stage.queue)
        self.errors = list(errors)
        self.accepts = until

    async def finish(self, finish: Finish) -> Execution | None:
        if self.errors and not self.accepts(finish):
            self.calls["refused"] += 1
            raise self.errors.pop(0)
        return await super().finish(finish)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once, and are few."""
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda _: sleep(0))


@pytest.mark.usefixtures("impatient")
async def test_a_result_that_can_not_be_written_is_written_later(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")
    bench.queue = Sick(bench.stage, StoreError("full"), Busy("locked"), StoreError("full"))

    row = await bench.attempt(returns(Outcome(ending=Ending.DONE, head_sha="abc")))

    assert bench.queue.calls == {"refused": 3, "finish": 1}
    assert (row.status, row.head_sha) == (Status.COMPLETED, "abc")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "error", [UsageError("no database holds such a value"), TypeError("not JSON"), StoreError("refused")]
)
async def test_a_result_that_the_store_never_takes_does_not_keep_the_slot(bench: Bench, error: Exception) -> None:
    """Whatever is wrong with it, the execution goes on as a failure of the machine, not of the task."""
    await bench.stage.task(bench.project, "T-1")
    bench.queue = Sick(bench.stage, *[error] * 100, until=lambda finish: finish.outcome.failure is F.INFRA)

    row = await bench.attempt(returns(Outcome(ending=Ending.DONE, text="what it can't store")))

    assert bench.queue.calls["refused"] <= run_module.PATIENCE
    assert (row.status, row.failures, row.failure_class) == (Status.QUEUED, 0, "infra")
    assert row.error
    assert str(error) in row.error


async def test_a_question_is_answered_and_the_session_goes_on(stage: Stage) -> None:
    api = await stage.project("api")
    asks = Outcome(ending=Ending.QUESTION, question=Question("Which port?"), session_id="s-1", branch="pilot/T-1")
    stage.script.acts["T-1"] = in_turn(returns(asks), returns(Outcome(ending=Ending.DONE)))
    id, behind = await stage.task(api, "T-1"), await stage.task(api, "behind")

    async with stage.dispatcher():
        await stage.reach(Status.NEEDS_HUMAN, id)
        await stage.reach(Status.COMPLETED, behind)  # the slot is free meanwhile
        await stage.queue.answer(id, "7337", by="ann")
        with pytest.raises(UsageError):
            await stage.queue.answer(id, "8080", by="bob")
        await stage.reach(Status.COMPLETED, id)

    again = stage.script.spans[-1].execution
    assert (again.feedback, again.session_id, again.branch, again.failures) == ("7337", "s-1", "pilot/T-1", 0)
    answers = await stage.store.database.read("SELECT answer, answered_by FROM questions")
    assert answers == [("7337", "ann")]


async def test_the_next_attempt_is_told_why_the_last_one_failed(stage: Stage) -> None:
    api = await stage.project("api")
    red = failed(F.TEST, "test is red", excerpt="E   assert 1 == 2", session_id="s-1")
    stage.script.acts["T-1"] = in_turn(returns(red), returns(Outcome(ending=Ending.DONE)))

    async with stage.dispatcher():
        (row,) = await stage.reach(Status.COMPLETED, await stage.task(api, "T-1"))

    again = stage.script.spans[-1].execution
    assert (again.attempt, again.feedback, again.session_id) == (2, "E   assert 1 == 2", "s-1")
    assert (row.error, row.failure_class, row.failures) == (None, None, 1)


async def test_a_rule_can_be_overridden(bench: Bench) -> None:
    await bench.stage.task(bench.project, "T-1")
    rules = {**RULES, F.TEST: replace(RULES[F.TEST], counts=False, backoff=(MINUTE, MINUTE))}
    row = await bench.attempt(reds()("a"), rules)

    assert (row.failures, row.available_at) == (0, NOW + 30 * SECOND)


async def test_a_direct_run_gives_its_answer_after_its_attempts(bench: Bench) -> None:
    mine = bench.node.id
    await bench.stage.task(bench.project, "one", reserved_for=mine, max_attempts=1)
    assert (await bench.attempt(returns(failed(F.NETWORK, "reset")))).status is Status.FAILED

    await bench.stage.task(bench.project, "two", reserved_for=mine, max_attempts=2)
    assert (await bench.attempt(reds()("a"))).status is Status.QUEUED
    assert (await bench.attempt(reds()("b"))).status is Status.FAILED


async def test_what_an_attempt_learnt_is_stored_with_it(bench: Bench) -> None:
    id = await bench.stage.task(bench.project, "T-1")
    gate = GateResult("test", "test", "make test", True, 1, 1200, "t" * 40, tail="E assert")
    red = failed(
        F.TEST, "test is red", excerpt="E assert", text="I tried", usage=Usage(100, 20, 0.25), gates=(gate,),
        model="opus", branch="pilot/T-1", base_sha="b" * 40, head_sha="h" * 40, delivered=True,
    )  # fmt: skip
    await bench.attempt(returns(red))
    row = await bench.attempt(returns(Outcome(ending=Ending.DONE, usage=Usage(input_tokens=50))))

    assert (row.input_tokens, row.output_tokens, row.cost_usd) == (150, 20, 0.25)
    assert (row.model, row.branch, row.head_sha, row.delivery) == ("opus", "pilot/T-1", "h" * 40, "branch")
    first, second = await bench.stage.store.history.attempts(id)
    assert (first.outcome, first.failure_class) == ("failed", "test")
    assert second.outcome == "done"


async def test_the_next_one_of_the_project_comes_with_the_result(bench: Bench) -> None:
    ids = [await bench.stage.task(bench.project, f"T-{n}") for n in range(2)]
    execution = await bench.stage.claimed(bench.project, bench.node)
    attempts = Attempts(bench.queue, returns(Outcome(ending=Ending.DONE)), bench.stage.clock, lambda: 0.0)

    following = await attempts.carry_out(execution, lambda: (MINUTE, ()))

    assert following is not None
    assert (following.id, following.status, following.node) == (ids[1], Status.RUNNING, bench.node.id)
    assert following.lease_until == NOW + MINUTE


@pytest.mark.parametrize(
    ("first", "then", "stays"),
    [
        (Stop.CANCEL, Stop.SHUTDOWN, Stop.CANCEL),
        (Stop.SHUTDOWN, Stop.CANCEL, Stop.SHUTDOWN),
        (Stop.CANCEL, Stop.LOST, Stop.LOST),
        (Stop.LOST, Stop.CANCEL, Stop.LOST),
    ],
)
async def test_a_lost_lease_outweighs_every_other_reason(stage: Stage, first: Stop, then: Stop, stays: Stop) -> None:
    await stage.task(api := await stage.project("api"), "T-1")
    execution = await stage.claimed(api, stage.node())
    work = Stubborn(ignores=1)
    run = Run(execution, asyncio.create_task(work(execution)))
    await work.begun.wait()

    run.stop(first)
    await until(lambda: work.cancels == 1)
    run.stop(then)
    with pytest.raises(asyncio.CancelledError):
        await run.task

    assert (run.stopped, work.cancels) == (stays, 2)
