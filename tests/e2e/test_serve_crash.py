"""`kill -9`, anywhere: nothing is lost, nothing is done twice, nobody is left in the repository."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from tests.e2e.crashing import Crashing, crashing
from tests.e2e.daemon import Home

# What a first attempt has to go through when its gate is red once: an attempt's whole way.
_GATE = {"name": "test", "kind": "test", "run": "test -f mended.txt"}
_ORDERS = ("write one.txt one", "do 2: write mended.txt yes", "do 3: write mended.txt yes")


@pytest.fixture
def crashes(home: Home) -> Iterator[Crashing]:
    with crashing(home) as parent:
        yield parent


def _walk(home: Home, crashes: Crashing, kind: str) -> list[str]:
    """Crash at every point of a kind, each time with a new task; where they all were.

    Every daemon takes back what the one before it left, and does it before its own.
    """
    places: list[str] = []
    while len(places) < 60:
        point = f"{kind}:{len(places) + 1}"
        task = f"{kind}-{len(places) + 1}"
        home.enqueue("web", *_ORDERS, task_id=task)
        _, place = crashes.serve(point, task)
        if not place:
            return places
        places.append(place)
    raise AssertionError(f"there is no end of {kind}: {places}")


def _each_ran_twice(home: Home, places: list[str]) -> None:
    """Every task was begun, killed, and finished; the last one was never killed."""
    attempts = [n for (n,) in home.rows("SELECT attempt FROM executions ORDER BY id")]
    assert attempts == [2] * len(places) + [1]
    assert home.rows("SELECT sum(failures), sum(streak) FROM executions") == [(0, 0)]
    home.audit(completed=len(places) + 1)


def test_a_crash_after_every_fact_that_an_attempt_notes(home: Home, crashes: Crashing) -> None:
    home.repo("web", setup=["echo ready > .ready"], gates=[_GATE])
    places = _walk(home, crashes, "note")
    told = " ".join(places)
    for phase in ("workspace", "setup", "agent", "commit", "preserve", "gates", "repair", "finish"):
        assert f"phase={phase}" in told, places
    _each_ran_twice(home, places)


_WALKS = [("clone", "in-git"), pytest.param("worktree", "git", marks=pytest.mark.variants), ("in_place", "git")]


@pytest.mark.parametrize(("workspace", "kind"), _WALKS)
def test_a_crash_at_every_git_command_that_changes_something(
    home: Home, crashes: Crashing, workspace: str, kind: str
) -> None:
    home.repo("web", workspace=workspace, gates=[_GATE])
    places = _walk(home, crashes, kind)
    assert len(places) > 8, places
    _each_ran_twice(home, places)


def test_a_crash_around_the_commits_that_claim_and_finish(home: Home, crashes: Crashing) -> None:
    home.repo("web", gates=[_GATE])
    points = ("claim:before", "claim:after", "finish:before", "finish:after")
    for point in points:
        home.enqueue("web", *_ORDERS, task_id=point.replace(":", "-"))
        code, place = crashes.serve(point, point.replace(":", "-"))
        assert place, (point, code)
    with home.serve():
        home.until(lambda: set(home.statuses().values()) == {"completed"}, "all completed")
    home.audit(completed=4)
    # Before a commit nothing has happened; after it, all has.
    assert home.rows("SELECT task_id, attempt, failures FROM executions ORDER BY id") == [
        ("claim-before", 1, 0),
        ("claim-after", 2, 0),
        ("finish-before", 2, 0),
        ("finish-after", 1, 0),
    ]


def test_kills_at_random_moments_with_six_tasks_in_two_repositories(home: Home) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    home.repo("api", gates=[_GATE])
    home.repo("web", workspace="worktree", gates=[_GATE])
    ids = [
        home.enqueue(project, *_ORDERS, "child", task_id=f"{project}-{n}")
        for n in (1, 2, 3)
        for project in ("api", "web")
    ]
    for kill in range(5):
        with home.serve() as daemon:
            # Something ends before each but the first: a task under which five nodes died is held for a person.
            _done(home, kill, seed)
            time.sleep(chance.random() * 0.4)  # a moment as good as any other: that is the point
            daemon.kill9()
    with home.serve():
        home.reach("completed", *ids, seconds=40)
    try:
        home.audit(completed=6)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    assert home.rows("SELECT sum(failures) FROM executions") == [(0,)]
    order = [row[0] for row in home.rows("SELECT id FROM executions WHERE project = 'api' ORDER BY finished_at, id")]
    assert order == sorted(order)


def _done(home: Home, kills: int, seed: int) -> None:
    ended = "SELECT 1 FROM executions WHERE status = 'completed'"
    home.until(lambda: home.diary("start") and len(home.rows(ended)) >= kills, f"{kills} ended (seed {seed})")


def test_orphans_are_ended_before_their_task_runs_again(home: Home) -> None:
    home.repo("web")
    id = home.enqueue("web", "stubborn", "child", "do 1: wait never", task_id="T-1")
    other = home.enqueue("web", task_id="T-2")
    with home.serve() as daemon:
        first = home.began("T-1")
        home.until(lambda: home.diary("beat"), "the child's life")
        child = home.diary("beat")[0].pid
        daemon.kill9()
    assert {first.pid, child} <= home.processes().keys()  # or there is nothing to see here
    with home.serve() as daemon:
        second = home.began("T-1", times=2)
        assert not {first.pid, child} & home.processes().keys()
        assert daemon.log.index("execution.lost") < daemon.log.index("attempt.started")
        home.reach("completed", id, other)
    beats = [line for line in home.diary("beat") if line.pid == child]
    assert beats[-1].at < second.at
    assert first.pid != second.pid
    assert home.rows("SELECT attempt, failures, losses FROM executions WHERE id = ?", id) == [(2, 0, 0)]
    assert home.rows("SELECT outcome FROM attempts WHERE execution_id = ? ORDER BY number", id) == [
        ("interrupted",),
        ("done",),
    ]
    home.audit(completed=2)
