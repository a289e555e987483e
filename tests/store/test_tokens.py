"""Tokens and the audit log: hashed, revocable, cheap to look at, and nothing lost."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pilot.domain.access import Call, Caller, Scope, scopes_of
from pilot.domain.errors import NotFound, StoreError, UsageError
from pilot.domain.redact import Redactor
from pilot.store import open_store
from pilot.store.token_file import ensure_token, read_token
from tests.store.bed import MINUTE, SECOND, START, Bed, Clock
from tests.store.engines import Places


def id_of(token: str) -> str:
    return token.split("_")[1]


def call(at: int = START, path: str = "/api/v1/work/claim") -> Call:
    return Call(at=at, token="t", actor="w", peer="127.0.0.1", method="POST", path=path, status=200)


def reads_of(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that are read from now on."""
    found: list[str] = []
    read = bed.database.read

    async def counted(sql: str, params: object = None) -> object:
        found.append(sql)
        return await read(sql, params)  # type: ignore[arg-type]

    monkeypatch.setattr(bed.database, "read", counted)
    return found


NOTED = {
    "sqlite": ["CREATE TRIGGER used AFTER UPDATE ON tokens BEGIN INSERT INTO uses VALUES (NEW.last_used_at); END"],
    "postgres": [
        "CREATE FUNCTION used() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO uses VALUES (NEW.last_used_at); RETURN NEW; END'",
        "CREATE TRIGGER used AFTER UPDATE ON tokens FOR EACH ROW EXECUTE FUNCTION used()",
    ],
}
"""Writes down when a token's row is changed."""


class TestTokens:
    async def test_a_token_says_who_may_do_what(self, store: Bed) -> None:
        tokens = store.store.tokens
        token = await tokens.create("ci", [Scope.WORK], "me", START + MINUTE)

        assert await tokens.check(token) == Caller(id_of(token), "ci", frozenset({Scope.READ, Scope.WORK}))
        (known,) = await tokens.list()
        assert (known.name, known.created_at, known.created_by, known.expires_at) == ("ci", START, "me", START + MINUTE)
        assert known.last_used_at == START
        assert scopes_of([Scope.ADMIN]) == frozenset(Scope)
        assert scopes_of([]) == frozenset()

    async def test_only_a_hash_is_kept(self, store: Bed, tmp_path: Path) -> None:
        token = await store.store.tokens.create("ci", [Scope.ADMIN], "me")
        secret = token.split("_", 2)[2]

        assert len(token) == len("pilot_") + 16 + 1 + 43
        assert secret not in str(await store.rows("SELECT * FROM tokens"))
        for file in tmp_path.glob("pilot.db*"):
            if file.is_file():
                assert secret.encode() not in file.read_bytes()
        assert Redactor()(f"it said {token}!") == "it said [redacted]!"

    @pytest.mark.parametrize("change", ["revoked", "expired", "gone"])
    async def test_what_counts_no_more(self, store: Bed, change: str) -> None:
        tokens = store.store.tokens
        token = await tokens.create("ci", [Scope.READ], "me", START + MINUTE)
        assert await tokens.check(token)
        assert await tokens.valid(id_of(token))

        if change == "revoked":
            await tokens.revoke(id_of(token), "boss")
        elif change == "expired":
            store.clock.tick(MINUTE)
        else:
            await store.sql("DELETE FROM tokens")
            store.clock.tick(SECOND)
        assert await tokens.check(token) is None
        assert not await tokens.valid(id_of(token))

    @pytest.mark.parametrize(
        "wrong", ["", "pilot_", "x" * 100_000, "pilot_{id}_{other}", "pilot_{id}_", "{token} ", "\u017f"]
    )
    async def test_nothing_else_counts(self, store: Bed, wrong: str) -> None:
        token = await store.store.tokens.create("ci", [Scope.READ], "me")
        other = await store.store.tokens.create("ci", [Scope.READ], "me")
        words = {"id": id_of(token), "other": other.split("_", 2)[2], "token": token}

        assert await store.store.tokens.check(wrong.format(**words)) is None

    async def test_a_revocation_is_final_and_on_record(self, store: Bed) -> None:
        tokens = store.store.tokens
        token = await tokens.create("ci", [Scope.READ], "me")

        first = await tokens.revoke(id_of(token), "boss")
        store.clock.tick(MINUTE)
        again = await tokens.revoke(id_of(token), "other")

        assert first.revoked_at == again.revoked_at == START
        (row,) = await store.store.audit.read()
        assert (row.actor, row.token, row.method) == ("boss", id_of(token), "REVOKE")
        with pytest.raises(NotFound, match="pilot token list"):
            await tokens.revoke("nobody", "boss")

    async def test_bad_asks_make_nothing(self, store: Bed) -> None:
        tokens = store.store.tokens
        for name in ("", "  ", "two\nlines", "x" * 101, "\x1b[31mred"):
            with pytest.raises(UsageError, match="name"):
                await tokens.create(name, [Scope.READ], "me")
        with pytest.raises(UsageError, match="scope"):
            await tokens.create("ci", [], "me")
        for at in (START, 0, 1 << 60):
            with pytest.raises(UsageError, match="future"):
                await tokens.create("ci", [Scope.READ], "me", at)
        assert await tokens.list() == []

    async def test_a_check_costs_a_read_a_second_at_most(self, store: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = store.store.tokens
        token = await tokens.create("ci", [Scope.READ], "me")
        reads = reads_of(store, monkeypatch)

        assert all(await asyncio.gather(*(tokens.check(token) for _ in range(50))))
        for _ in range(200):
            await tokens.check("pilot_unknown")
            await tokens.check(token)
        assert len(reads) == 1
        store.clock.tick(SECOND)
        assert all(await asyncio.gather(*(tokens.check(token) for _ in range(50))))
        assert len(reads) == 2
        store.clock.tick(-1000 * MINUTE)  # a clock set back must not make it last for ever
        await tokens.check(token)
        assert len(reads) == 3

    async def test_another_process_revokes_and_creates(self, store: Bed, other: Bed) -> None:
        token = await store.store.tokens.create("ci", [Scope.READ], "me")
        assert await store.store.tokens.check(token)

        await other.store.tokens.revoke(id_of(token), "boss")
        new = await other.store.tokens.create("new", [Scope.READ], "boss")
        store.clock.tick(SECOND)
        assert await store.store.tokens.check(token) is None
        assert await store.store.tokens.check(new)

    async def test_a_revocation_during_a_read_is_not_lost(self, store: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens = store.store.tokens
        token = await tokens.create("ci", [Scope.READ], "me")
        read, has_read, go_on = store.database.read, asyncio.Event(), asyncio.Event()

        async def slow(sql: str, params: object = None) -> object:
            rows = await read(sql, params)  # type: ignore[arg-type]
            has_read.set()
            await go_on.wait()
            return rows

        monkeypatch.setattr(store.database, "read", slow)
        checking = asyncio.create_task(tokens.check(token))
        await has_read.wait()
        await tokens.revoke(id_of(token), "boss")
        go_on.set()
        await checking
        assert await tokens.check(token) is None

    async def test_its_use_is_noted_once_a_minute(self, store: Bed, engine: str) -> None:
        tokens = store.store.tokens
        token = await tokens.create("ci", [Scope.READ], "me")
        await store.sql("CREATE TABLE uses (at BIGINT)")
        for statement in NOTED[engine]:
            await store.sql(statement)

        for _ in range(3):
            await asyncio.gather(*(tokens.check(token) for _ in range(5)))
            store.clock.tick(25 * SECOND)
        assert await store.rows("SELECT at FROM uses") == [(START,)]
        await tokens.check(token)
        assert await store.rows("SELECT at FROM uses") == [(START,), (START + 75 * SECOND,)]
        await store.sql("DROP TABLE uses")  # also: who can't write the note lets in all the same
        store.clock.tick(2 * MINUTE)
        assert await tokens.check(token)

    async def test_who_can_not_read_lets_nobody_in(self, store: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
        token = await store.store.tokens.create("ci", [Scope.READ], "me")

        async def broken(sql: str, params: object = None) -> object:
            raise StoreError("the disk is gone")

        monkeypatch.setattr(store.database, "read", broken)
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.store.tokens.check(token)
        monkeypatch.undo()
        assert await store.store.tokens.check(token)


class TestAudit:
    async def test_the_newest_first_and_page_by_page(self, store: Bed) -> None:
        audit = store.store.audit
        await asyncio.gather(*(audit.write(call(path=f"/{n}")) for n in range(25)))

        first = await audit.read(limit=10)
        rest = await audit.read(before=first[-1].id, limit=100)
        assert [each.path for each in (*first, *rest)] == [f"/{n}" for n in range(24, -1, -1)]
        assert first[0] == replace(call(path="/24"), id=25)

    async def test_what_nobody_can_store_is_cleaned_and_cut(self, store: Bed) -> None:
        await store.store.audit.write(call(path="/\ud800\x00\x1b[31m" + "x" * 10_000))
        (row,) = await store.store.audit.read()
        assert len(row.path) == 500
        assert "\x00" not in row.path

    async def test_old_ones_are_removed_and_no_others(self, store: Bed) -> None:
        audit = store.store.audit
        await asyncio.gather(*(audit.write(call(START + n)) for n in range(100)))
        assert await audit.prune(START + 90) == 90
        assert await audit.prune(START + 90) == 0
        assert [each.at for each in await audit.read()] == [START + n for n in range(99, 89, -1)]

    async def test_old_ones_and_pages_are_found_by_an_index(self, tmp_path: Path) -> None:
        async with open_store(f"sqlite:///{tmp_path}/pilot.db", clock=Clock()):
            pass
        with closing(sqlite3.connect(tmp_path / "pilot.db")) as connection:
            plan = connection.execute("EXPLAIN QUERY PLAN SELECT id FROM audit WHERE at < 5 LIMIT 9").fetchall()
            pages = connection.execute(
                "EXPLAIN QUERY PLAN SELECT * FROM audit WHERE id < 5 ORDER BY id DESC"
            ).fetchall()
        assert "audit_at (at<?)" in plan[0][3]
        assert "INTEGER PRIMARY KEY (rowid<?)" in pages[0][3]


# A start of serve, as far as its token goes.
START_OF_SERVE = """
import asyncio, sys
from pathlib import Path
from pilot.store import open_store
from pilot.store.token_file import ensure_token, read_token

async def main():
    async with open_store(sys.argv[2]) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        await ensure_token(Path(sys.argv[1]), store.tokens)
        assert await store.tokens.check(read_token(Path(sys.argv[1])))

asyncio.run(main())
"""


class TestFile:
    async def test_made_once_and_for_its_owner_alone(self, store: Bed, tmp_path: Path) -> None:
        home = tmp_path / "new/home"
        with pytest.raises(NotFound, match="pilot serve"):
            read_token(home)
        path, *_ = await asyncio.gather(*(ensure_token(home, store.store.tokens) for _ in range(3)))
        token = read_token(home)

        assert path == home / "token"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        caller = await store.store.tokens.check(token)
        assert caller is not None
        assert caller.may(Scope.ADMIN)
        await asyncio.gather(*(ensure_token(home, store.store.tokens) for _ in range(3)))
        assert read_token(home) == token
        assert len(await store.store.tokens.list()) == 1
        assert [each.name for each in home.iterdir() if each.name.startswith(".")] == []

    async def test_replaced_when_it_counts_no_more(self, store: Bed, places: Places, tmp_path: Path) -> None:
        home, tokens = tmp_path / "home", store.store.tokens
        await ensure_token(home, tokens)
        seen = [read_token(home)]

        await tokens.revoke(id_of(seen[0]), "me")
        await ensure_token(home, tokens)
        seen.append(read_token(home))
        with places() as url:
            async with open_store(url, clock=Clock()) as another:
                await ensure_token(home, another.tokens)
                seen.append(read_token(home))
                assert await another.tokens.check(seen[2])
        (home / "token").write_text("")
        await ensure_token(home, tokens)
        seen.append(read_token(home))
        (home / "token").write_text(await tokens.create("reader", [Scope.READ], "me"))
        await ensure_token(home, tokens)
        seen.append(read_token(home))
        assert len(set(seen)) == 5

    async def test_a_file_that_others_could_read_or_made_is_refused(self, store: Bed, tmp_path: Path) -> None:
        home = tmp_path / "home"
        path = await ensure_token(home, store.store.tokens)
        kept = path.read_bytes()

        async def refused(words: str) -> None:
            with pytest.raises(UsageError, match=words):
                read_token(home)
            with pytest.raises(UsageError, match=words):
                await ensure_token(home, store.store.tokens)

        for mode in (0o640, 0o604, 0o666):
            path.chmod(mode)
            await refused("others can read")
        assert path.read_bytes() == kept
        path.unlink()
        (home / "real").write_bytes(kept)
        path.symlink_to(home / "real")
        await refused("not a link")
        path.unlink()
        os.mkfifo(path, 0o600)
        await refused("no file")
        path.unlink()
        path.mkdir()
        await refused("no file")
        assert len(await store.store.tokens.list()) == 1

    async def test_a_folder_that_can_not_be_written_is_said(self, store: Bed, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StoreError, match="can't write"):
            await ensure_token(tmp_path / "file/home", store.store.tokens)
        assert await store.store.tokens.list() == []

    async def test_processes_that_start_at_once_agree(self, store: Bed, url: str, tmp_path: Path) -> None:
        argv = [sys.executable, "-c", START_OF_SERVE, str(tmp_path), url]
        started = [
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        errors = [await asyncio.to_thread(process.communicate, "\n", 60) for process in started]

        assert [process.returncode for process in started] == [0] * 2, errors
        assert len(await store.store.tokens.list()) == 1
