"""Red branches as tasks: one for a red commit, one at a time, and one try per failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pilot.config.schema import FailingCiSettings
from pilot.domain.errors import NotFound
from pilot.domain.outside import SourcePaused
from pilot.sources.failing_ci import FailingCi
from tests.adapters.pull_rig import REPO, SECRET, Rig, rig
from tests.store.bed import MINUTE, SECOND, broken

LOG = (
    "2026-11-22T12:00:01.0000000Z " + "collecting " * 20 + "\n2026-11-22T12:00:02.0000000Z E  assert 1 == 2\n##[error]x"
)


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig(tmp_path) as made:
        yield made
        await made.bed.check()


def source(here: Rig, *branches: str) -> FailingCi:
    return FailingCi(here.desk(), here.github, FailingCiSettings(branches=branches or ("main",)))


async def poll(here: Rig, *, anew: FailingCi | None = None) -> None:
    """As the feed does it: under the duty."""
    here.clock.tick(5 * MINUTE)
    await here.store.duties.hold("source:failing_ci", here.node, MINUTE)
    await (anew or source(here)).poll()


def red(here: Rig, sha: str | None = None, name: str = "test", log: str = LOG) -> str:
    sha = sha or here.repo.branches["main"]
    job = next(here.fake.ids)
    here.repo.logs[job] = log.encode()
    here.fake.check_run(here.repo, sha, name, "failure", job=job)
    return sha


def green(here: Rig, sha: str | None = None, name: str = "test") -> None:
    here.fake.check_run(here.repo, sha or here.repo.branches["main"], name, "success")


async def fails(here: Rig) -> None:
    """Its agent gives up."""
    await here.store.queue.finish(broken(await here.bed.take(here.project)))


async def test_a_red_branch_is_a_task(here: Rig) -> None:
    sha = red(here, log=LOG.replace("assert 1", f"assert {SECRET}"))
    await poll(here)

    (task,) = await here.executions("CI-main")
    assert (task.source, task.status, task.title) == ("failing_ci", "queued", "CI is red on main: test")
    assert sha in task.body
    assert "E  assert [redacted] == 2" in task.body
    assert "2026-11-22T12" not in task.body
    origin = dict(task.origin or {})
    assert (origin["source"], origin["ref"], origin["sha"]) == ("failing_ci", f"{REPO}@main", sha)
    assert origin["url"].endswith("/acme/api/tree/main")
    assert task.options["base"] == "main"
    assert task.idempotency_key == f"failing_ci:{REPO}:main:{sha}"


async def test_a_green_one_is_none_and_costs_nothing(here: Rig) -> None:
    green(here)
    await poll(here)
    asked = len(here.fake.requests)
    for _ in range(3):
        await poll(here)

    assert await here.executions("CI-main") == []
    assert here.sent(asked) == []


async def test_red_costs_nothing_once_it_is_dealt_with(here: Rig) -> None:
    red(here)
    await poll(here)
    asked = len(here.fake.requests)
    await poll(here)

    assert here.sent(asked) == []


async def test_a_branch_without_ci(here: Rig) -> None:
    await poll(here)
    assert await here.executions("CI-main") == []


async def test_not_while_checks_are_under_way(here: Rig) -> None:
    red(here)
    here.fake.check_run(here.repo, here.repo.branches["main"], "slow")
    await poll(here)
    assert await here.executions("CI-main") == []

    green(here, name="slow")
    await poll(here)
    assert len(await here.executions("CI-main")) == 1


async def test_not_when_it_went_green_meanwhile(here: Rig) -> None:
    sha = here.repo.branches["main"]
    red(here)
    here.fake.check_run(here.repo, sha, "slow")
    await poll(here)
    green(here)
    green(here, name="slow")
    await poll(here)

    assert await here.executions("CI-main") == []


@pytest.mark.parametrize("conclusion", ["cancelled", "action_required", "skipped", "neutral"])
async def test_what_did_not_judge_the_code(here: Rig, conclusion: str) -> None:
    here.fake.check_run(here.repo, here.repo.branches["main"], "test", conclusion)
    await poll(here)
    assert await here.executions("CI-main") == []


async def test_once_per_commit(here: Rig) -> None:
    red(here)
    await poll(here)
    await fails(here)
    red(here)  # run again by hand
    red(here, name="lint", log="lint " * 50)
    for _ in range(3):
        await poll(here)
    await here.bed.sql("DELETE FROM duties")  # everything that was remembered
    await poll(here)

    assert len(await here.executions("CI-main")) == 1


async def test_one_open_at_a_time(here: Rig) -> None:
    red(here)
    await poll(here)
    red(here, here.fake.branch(here.repo, "main"), log="another " * 50)
    await poll(here)
    assert len(await here.executions("CI-main")) == 1

    await fails(here)
    await poll(here)
    assert len(await here.executions("CI-main")) == 2


async def test_not_while_what_mends_it_waits_to_be_merged(here: Rig) -> None:
    red(here)
    await poll(here)
    pull = await here.pushed(await here.finished("CI-main", sha="b" * 40))
    red(here, here.fake.branch(here.repo, "main"), log="another " * 50)
    await poll(here)
    assert len(await here.executions("CI-main")) == 1

    here.fake.close(here.repo, pull.number or 0)
    await here.watch().poll()
    await poll(here)
    assert len(await here.executions("CI-main")) == 2


async def test_the_same_failure_gets_one_try_until_it_was_green(here: Rig) -> None:
    red(here)
    await poll(here)
    await fails(here)
    red(here, here.fake.branch(here.repo, "main"), log=LOG.replace("12:00", "13:37"))
    for _ in range(2):
        await poll(here)

    assert len(await here.executions("CI-main")) == 1
    (event,) = await here.events("trigger.refused")
    assert (event.data["task_id"], event.data["source"]) == ("CI-main", "failing_ci")
    assert "did not mend it: test" in event.data["reason"]

    green(here, here.fake.branch(here.repo, "main"))
    await poll(here)
    red(here, here.fake.branch(here.repo, "main"))
    await poll(here)
    assert len(await here.executions("CI-main")) == 2


async def test_what_is_green_again_before_it_began_is_cancelled(here: Rig) -> None:
    red(here)
    await poll(here)
    green(here, here.fake.branch(here.repo, "main"))
    await poll(here)

    (task,) = await here.executions("CI-main")
    assert (task.status, task.reason) == ("cancelled", "main is green again")


async def test_what_runs_goes_on(here: Rig) -> None:
    red(here)
    await poll(here)
    await here.bed.take(here.project)
    green(here, here.fake.branch(here.repo, "main"))
    await poll(here)

    (task,) = await here.executions("CI-main")
    assert (task.status, task.cancel_requested) == ("running", False)


async def test_each_branch_for_itself(here: Rig) -> None:
    red(here)
    red(here, here.fake.branch(here.repo, "release/1.x"), log="another " * 50)
    await poll(here, anew=source(here, "main", "release/1.x", "gone"))

    assert len(await here.executions("CI-main")) == 1
    (task,) = await here.executions("CI-release-1-x")
    assert task.options["base"] == "release/1.x"
    rows = await here.bed.rows("SELECT name, status FROM sources")
    assert rows == [(f"failing_ci {REPO}@gone", "failing")]


async def test_a_crash_between_asking_and_remembering(here: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    red(here)

    async def killed(*_: Any, **__: Any) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(here.store.duties), "remember", killed)
        with pytest.raises(KeyboardInterrupt):
            await poll(here)
    await fails(here)
    await poll(here)

    assert len(await here.executions("CI-main")) == 1


@pytest.mark.parametrize("path", ["/branches/", "/check-runs", "/status", "/check-suites", "/logs"])
async def test_any_answer_may_be_lost(here: Rig, path: str) -> None:
    red(here)
    here.fake.lose_next("GET", path, times=2)
    with pytest.raises(SourcePaused):
        await poll(here)
    for _ in range(2):
        await poll(here)

    assert len(await here.executions("CI-main")) == 1


async def test_a_rate_limit_pauses(here: Rig) -> None:
    red(here)
    here.fake.slow_down(60)
    with pytest.raises(SourcePaused) as caught:
        await poll(here)
    assert caught.value.until == here.clock() + 60 * SECOND

    here.fake.recover()
    await poll(here)
    assert len(await here.executions("CI-main")) == 1


async def test_a_bad_token_needs_a_person(here: Rig) -> None:
    here.fake.tokens.clear()
    with pytest.raises(SourcePaused) as caught:
        await poll(here)
    assert caught.value.remedy


async def test_a_stranger_to_webhooks_and_reports(here: Rig) -> None:
    red(here)
    await poll(here)
    (task,) = await here.executions("CI-main")
    one = source(here)

    with pytest.raises(NotFound):
        one.verify({}, b"")
    report = await here.store.outbox.report(task.id)
    assert await one.acknowledge(report) is None
    assert await one.report(report) is None
    assert (one.name, one.every) == ("failing_ci", 300.0)
