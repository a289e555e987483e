"""What the tests' own PostgreSQL promises: it keeps what it was given, and is never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.postgres import Cluster, name_of, shared

HOLDER = """
import sys, time; from pathlib import Path; from tests.postgres import shared
held = shared(Path(sys.argv[1])); print(held.folder, flush=True); time.sleep(60)
"""


def gone(path: Path) -> bool:
    deadline = time.monotonic() + 20
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not path.exists()


def test_a_server_outlives_a_worker_that_was_killed_and_ends_with_the_last(tmp_path: Path) -> None:
    with subprocess.Popen((sys.executable, "-c", HOLDER, str(tmp_path)), stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        folder = Path(first.stdout.readline().strip())
        second = shared(tmp_path)
        first.kill()
    assert second.folder == folder

    assert second.admin("SELECT 1") == [(1,)]
    pid = second.pid
    second.leave()

    assert gone(folder)
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
def test_a_server_that_starts_again_has_what_was_committed(how: signal.Signals) -> None:
    with Cluster.make(tcp=True) as server:
        url = server.create(schema=False)
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS n")
        server.restart(how)
        with psycopg.connect(server.url(name_of(url), port=server.port)) as connection:
            assert connection.execute("SELECT n FROM t").fetchall() == [(1,)]


def test_a_store_is_as_new_whatever_a_test_did_to_the_one_before(postgres: Cluster) -> None:
    ids = set()
    for change in ("", "CREATE TABLE more (n int)", "DROP TRIGGER {trigger} ON events", ""):
        with postgres.database() as url, psycopg.connect(url, autocommit=True) as connection:
            found = connection.execute("SELECT id FROM store").fetchall()
            ids |= {id for (id,) in found}
            assert len(found) == 1
            assert connection.execute("SELECT count(*) FROM pauses").fetchone() == (0,)
            assert connection.execute("SELECT to_regclass('more')").fetchone() == (None,)
            trigger = connection.execute(
                "SELECT tgname FROM pg_trigger WHERE tgrelid = 'events'::regclass AND NOT tgisinternal"
            ).fetchone()
            assert trigger is not None
            connection.execute("INSERT INTO pauses (project_id, owner, reason, since) VALUES (0, 'me', '', 0)")
            if change:
                connection.execute(change.format(trigger=trigger[0]).encode())
    assert len(ids) == 4  # agents' processes are found by it
