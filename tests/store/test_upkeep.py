"""Looking after a store: findings are found, backups are whole."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from pilot.domain.delivery import PullState
from pilot.domain.errors import StoreError, StoreRefused, UsageError
from pilot.domain.outcome import Publication
from pilot.domain.work import Artifact
from pilot.store import open_store
from pilot.store.upkeep import AUDITS, backup, check, quick_check
from tests.store.bed import Bed, Clock, asked, broken, done


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store in which every state occurs."""

    async def fill() -> None:
        async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=(clock := Clock())) as store:
            bed = Bed(store, clock)
            await bed.node()
            api, web = await bed.project("api"), await bed.project("web")
            await bed.run(web, str(await bed.put(web)) and "n1")
            await bed.put(web)
            await store.queue.finish(broken(await bed.take(web)))
            await bed.put(web)
            await store.queue.finish(asked(await bed.take(web)))
            await bed.put(api)
            running = await bed.take(api)
            await bed.put(api, after=(running.id,))
            await bed.put(api)
            tickets = await bed.project("tickets")
            for _ in range(2):
                await bed.put(tickets, origin={"source": "github"})
                publication = Publication(repo="acme/api", base="main")
                await store.queue.finish(done(await bed.take(tickets), publication=publication, head_sha="a" * 40))
            made = await bed.project("made")
            await bed.put(made, dedupe="k")
            finish = done(await bed.take(made))
            await store.queue.finish(replace(finish, artifacts=(Artifact("a", b"a"),)))
            await bed.put(made, dedupe="k")
            await store.pulls.opened(1, number=7, url="u", head_sha="a" * 40)
            await store.pulls.saw(1, state=PullState.MERGED)

    asyncio.run(fill())
    return tmp_path / "pilot.db"


def broken_by(file: Path, *statements: str) -> list[str]:
    """The promises that a change by hand breaks; the schema's own checks are off, as a damaged file has none."""
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, statement
    connection.close()
    return sorted({finding.check for finding in check(file)})


def test_a_sound_store_has_no_findings(file: Path) -> None:
    assert check(file) == []


RUNNING = "UPDATE executions SET status = 'running', node = 'n1', lease_until = 1, due = 0"


@pytest.mark.parametrize(
    ("promise", "statements"),
    [
        (
            "one running per slot",
            [
                "DROP INDEX executions_slot",
                f"{RUNNING}, slot = 0 WHERE id = (SELECT max(id) FROM executions WHERE status = 'queued')",
            ],
        ),
        ("projects count what they run", ["UPDATE projects SET running = 5 WHERE name = 'web'"]),
        (
            "one open execution per task",
            ["DROP INDEX executions_open_task", "UPDATE executions SET task_id = 'x' WHERE project = 'api'"],
        ),
        ("fences rise", ["UPDATE projects SET fence = 0 WHERE name = 'api'"]),
        (
            "blocked executions count what they wait for",
            ["UPDATE executions SET deps_left = 2 WHERE status = 'blocked'"],
        ),
        (
            "nothing waits for what has failed",
            ["UPDATE dependencies SET depends_on = (SELECT id FROM executions WHERE status = 'failed')"],
        ),
        ("running executions have an owner", ["UPDATE executions SET node = NULL WHERE status = 'running'"]),
        (
            "running executions have an open attempt",
            ["UPDATE attempts SET finished_at = 1 WHERE finished_at IS NULL"],
        ),
        ("attempts end with their claim", ["UPDATE attempts SET finished_at = NULL"]),
        ("held executions say why", ["UPDATE executions SET reason = '' WHERE status = 'needs_human'"]),
        (
            "questions belong to held executions",
            ["UPDATE questions SET execution_id = (SELECT id FROM executions WHERE status = 'failed')"],
        ),
        ("only queued executions can be claimed", ["UPDATE executions SET due = 1 WHERE status = 'failed'"]),
        (
            "a park's probe tries that park",
            [
                "INSERT INTO parks SELECT 'other', '', 'quota', '', 0, 0, 0, 1, NULL, id, fence FROM executions "
                "WHERE status = 'running'"
            ],
        ),
        ("money that is set aside is booked", ["UPDATE attempts SET reserved = 5 WHERE finished_at IS NULL"]),
        (
            "money that was spent is booked",
            ["UPDATE attempts SET reserved = 5, cost_usd = 0.5 WHERE finished_at IS NOT NULL"],
        ),
        (
            "ended executions have an end",
            ["UPDATE executions SET finished_at = NULL WHERE status = 'failed'"],
        ),
        (
            "one live pull request per branch",
            ["DROP INDEX pulls_live", "UPDATE pulls SET state = 'open', ended_at = NULL, branch = 'b'"],
        ),
        ("owed pull requests are to be published", ["DELETE FROM outbox WHERE kind = 'publish'"]),
        (
            "ended pull requests are seen on their executions",
            ["UPDATE executions SET delivery = 'pr_open' WHERE delivery = 'merged'"],
        ),
        ("what happens to a ticket is owed to it", ["DELETE FROM outbox WHERE kind = 'report'"]),
        (
            "what nobody has to do waits for nobody",
            ["UPDATE executions SET dedupe = 'k', project_id = 4 WHERE status = 'queued'"],
        ),
        (
            "what nobody has to do waits for nobody",
            ["UPDATE executions SET instant = 1 WHERE status = 'queued'"],
        ),
        ("results were made", ["UPDATE results SET key = 'other'"]),
        ("artifacts are there", ["UPDATE artifacts SET content = ''"]),
        ("artifacts are there", ["DELETE FROM artifact_uses"]),
        ("artifacts belong to somebody", ["DELETE FROM artifact_uses"]),
        ("keys", ["UPDATE attempts SET execution_id = 77 WHERE execution_id = 1"]),
    ],
)
def test_each_broken_promise_is_found(file: Path, promise: str, statements: list[str]) -> None:
    assert promise in broken_by(file, *statements)


def test_every_audit_has_its_planted_bug() -> None:
    (mark,) = (m for m in test_each_broken_promise_is_found.pytestmark if m.name == "parametrize")  # type: ignore[attr-defined]
    assert {promise for promise, _ in mark.args[1]} == {*AUDITS, "keys"}


def test_a_damaged_page_is_found(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'executions_task'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    connection.close()
    with file.open("r+b") as raw:
        raw.seek((page - 1) * size)
        raw.write(b"\xff" * size)

    try:
        found = [finding.check for finding in check(file)]
    except StoreRefused:
        return  # too damaged to look into, which is said too
    assert "file" in found


def test_a_backup_is_whole_private_and_in_the_same_mode(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy.db"

    size = backup(file, target)

    assert size == target.stat().st_size > 0
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert check(target) == []
    assert quick_check(target)[1:] == ("wal", [])
    assert not target.with_name("copy.db-wal").exists()

    async def count() -> int:
        async with open_store(f"sqlite:///{target}", create=False) as store:
            return len((await store.history.executions(everything=True))[0])

    assert asyncio.run(count()) == 10


def test_a_backup_is_taken_while_somebody_writes(file: Path, tmp_path: Path) -> None:
    writer = sqlite3.connect(file, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE executions SET title = 'half done'")

    backup(file, tmp_path / "copy.db")

    writer.execute("ROLLBACK")
    writer.close()
    copy = sqlite3.connect(tmp_path / "copy.db")
    assert copy.execute("SELECT count(*) FROM executions WHERE title = 'half done'").fetchone() == (0,)
    copy.close()


def test_a_backup_never_overwrites(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")

    with pytest.raises(UsageError, match="is there already"):
        backup(file, target)
    with pytest.raises(UsageError, match="can't make"):
        backup(file, tmp_path / "nowhere" / "copy.db")

    assert target.read_text() == "mine"


def test_a_backup_of_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no database at"):
        backup(tmp_path / "pilot.db", tmp_path / "copy.db")

    assert list(tmp_path.iterdir()) == []


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "pilot.db")
    other.execute("CREATE TABLE theirs (x)")
    other.close()

    with pytest.raises(StoreRefused, match="another program"):
        check(tmp_path / "pilot.db")
