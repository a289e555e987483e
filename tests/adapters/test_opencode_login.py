"""OpenCode's file of accounts, which its agents may write only for a token that is renewed."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pilot.backends import acp_agents, opencode_cli
from pilot.backends.opencode_login import guarded, is_renewed

KEY = {"anthropic": {"type": "api", "key": "k"}}
TOKEN = {"openai": {"type": "oauth", "access": "a", "refresh": "r", "expires": 1}}
ORDERS = {"http://127.0.0.1:9": {"type": "wellknown", "key": "PATH", "token": "/tmp"}}


def _file(home: Path, accounts: Any) -> Path:
    file = home / ".local/share/opencode/auth.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(accounts))
    return file


@pytest.mark.parametrize(
    ("accounts", "renewed"), [(KEY, False), (ORDERS, False), ({**KEY, **TOKEN}, True), ([], False)]
)
def test_it_is_shown_read_only_unless_a_token_in_it_is_renewed(tmp_path: Path, accounts: Any, renewed: bool) -> None:
    file = str(_file(tmp_path, accounts))
    child = {"HOME": str(tmp_path), "PATH": "/usr/bin"}
    argv = ("opencode", "acp")
    assert is_renewed(file) is renewed
    for places in (opencode_cli.places(child, "opencode"), acp_agents.places(acp_agents.known(argv), argv, child)):
        assert (file in places.logins, file in places.settings) == (renewed, not renewed)


@pytest.mark.parametrize(
    ("before", "written", "kept"),
    [
        (TOKEN, {"openai": {**TOKEN["openai"], "access": "new"}}, {"openai": {**TOKEN["openai"], "access": "new"}}),
        (TOKEN, {**TOKEN, **KEY}, {**TOKEN, **KEY}),
        (TOKEN, {**TOKEN, **ORDERS}, TOKEN),
        (TOKEN, {**TOKEN, "x": {"type": "another"}, "y": 1}, TOKEN),
        ({**TOKEN, **ORDERS}, {**TOKEN, **ORDERS}, {**TOKEN, **ORDERS}),
        ({**TOKEN, **ORDERS}, TOKEN, {**TOKEN, **ORDERS}),
        (TOKEN, [], TOKEN),
    ],
)
async def test_no_account_that_gives_orders_is_left_by_an_agent(
    tmp_path: Path, before: Any, written: Any, kept: Any
) -> None:
    file = _file(tmp_path, before)
    with suppress(KeyError):  # also when a run breaks off
        async with guarded(str(file)):
            file.write_text(json.dumps(written))
            raise KeyError
    assert json.loads(file.read_text()) == kept


async def test_a_login_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    async with guarded(str(tmp_path / "auth.json")):
        pass
    assert not (tmp_path / "auth.json").exists()
