"""`pilot token`, and what `pilot db prune` does to the audit log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pilot.cli.main import main
from pilot.domain.access import Call, Scope
from pilot.store import Store, open_store, wall_clock

DAY = 86_400_000
Pilot = Callable[..., tuple[int, str, str]]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PILOT_HOME", str(tmp_path / "state"))
    on(tmp_path / "state", lambda store: store.tokens.list())
    return tmp_path / "state"


@pytest.fixture
def pilot(state: Path, capsys: pytest.CaptureFixture[str]) -> Pilot:
    def run(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        return (main(words), *capsys.readouterr())

    return run


def on(state: Path, work: Callable[[Store], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        async with open_store(f"sqlite:///{state}/pilot.db") as store:
            return await work(store)

    return asyncio.run(go())


def test_a_token_is_made_shown_once_listed_and_revoked(pilot: Pilot, state: Path) -> None:
    code, out, err = pilot("token", "create", "laptop")
    token = out.strip()
    caller = on(state, lambda store: store.tokens.check(token))
    assert (code, out.count("\n"), caller.scopes) == (0, 1, {Scope.READ, Scope.WORK})
    assert token not in err
    id = token.split("_")[1]

    _, out, err = pilot("token", "list", "--json")
    (shown,) = json.loads(out)["tokens"]
    assert (shown["id"], shown["name"], shown["scopes"], shown["state"]) == (id, "laptop", ["read", "work"], "active")
    assert shown["last_used_at"] is not None
    assert token.split("_", 2)[2] not in out + err + pilot("token", "list")[1]

    code, out, _ = pilot("token", "revoke", id)
    assert (code, out) == (0, f"{id} (laptop) counts no more\n")
    assert on(state, lambda store: store.tokens.check(token)) is None
    assert "revoked" in pilot("token", "list")[1]
    code, _, err = pilot("token", "revoke", "nobody")
    assert (code, "pilot token list" in err) == (4, True)


def test_scopes_and_an_end(pilot: Pilot) -> None:
    _, out, _ = pilot("token", "create", "ci", "--scope", "read", "--expires", "30d", "--json")
    made = json.loads(out)
    assert (made["scopes"], made["token"].split("_")[1]) == (["read"], made["id"])
    assert made["expires_at"] > made["created_at"]
    _, out, _ = pilot("token", "create", "boss", "--scope", "read", "--scope", "admin", "--json")
    assert json.loads(out)["scopes"] == ["read", "work", "admin"]


@pytest.mark.parametrize(
    "words",
    [("ci", "--scope", "root"), ("ci", "--expires", "soon"), ("ci", "--expires", "0"), ("two\nlines",), ("",), ()],
)
def test_a_bad_ask_is_one_error_and_makes_nothing(pilot: Pilot, state: Path, words: tuple[str, ...]) -> None:
    code, out, err = pilot("token", "create", *words)

    assert (code, out, err.startswith("error: ")) == (2, "", True)
    assert on(state, lambda store: store.tokens.list()) == []


def test_prune_removes_old_calls_too(pilot: Pilot, state: Path) -> None:
    async def calls(store: Store) -> None:
        for age in (200, 100, 1):
            at = wall_clock() - age * DAY
            await store.audit.write(Call(at=at, token="t", actor="a", peer="", method="POST", path="/", status=200))

    on(state, calls)
    assert json.loads(pilot("db", "prune", "--json")[1]) == {"removed": 0, "calls": 2}
    assert pilot("db", "prune", "--older-than", "12h")[1].endswith("removed 1 record of calls over HTTP\n")
    assert on(state, lambda store: store.audit.read()) == []
