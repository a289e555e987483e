"""Two real daemons on one PostgreSQL: one is killed, and the server under both is restarted hard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.e2e.daemon import Home
from tests.postgres import Cluster


class OnPostgres(Home):
    """A pilot whose store is a PostgreSQL's."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.settings["store"] = url

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.settings["store"], autocommit=True) as connection:
            return connection.execute(sql.replace("?", "%s").encode(), values).fetchall()


@pytest.fixture
def server() -> Iterator[Cluster]:
    with Cluster.make() as made:
        yield made


@pytest.fixture
def home(server: Cluster, tmp_path: Path) -> Iterator[OnPostgres]:
    home = OnPostgres(tmp_path / "pilot", server.create())
    try:
        yield home
    finally:
        home.clear_away()


def test_a_killed_daemon_and_a_killed_server_lose_nothing(home: OnPostgres, server: Cluster) -> None:
    for name in ("api", "web"):
        home.repo(name)
    home.configure(dispatcher={"lease": "10s", "max_running": 1})
    doomed = home.enqueue("web", "do 1: child", "do 1: wait never", task_id="T-1")
    with home.serve() as one:
        home.began("T-1")
        with home.serve() as other:
            steady = home.enqueue("api", "wait go", task_id="T-2")
            agent = home.began("T-2")
            one.kill9()
            killed = time.monotonic_ns()
            server.restart()
            queued = home.enqueue("api", task_id="T-3")
            with home.serve() as third:  # the other one has its hands full
                second = home.began("T-1", times=2)
                home.reach("completed", doomed)
                assert second.at - killed < 12e9
                home.go("go")
                home.reach("completed", steady, queued)
                assert agent.pid == home.began("T-2").pid, "its agent went on all the time"
                assert home.value(steady, "attempt") == 1
                third.term()
                other.term()
                assert [third.wait(), other.wait()] == [0, 0]
    assert home.rows("SELECT attempt, failures FROM executions WHERE id = ?", doomed) == [(2, 0)]
    home.audit(completed=3)
