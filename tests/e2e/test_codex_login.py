"""The login of a person's subscription, in pilot's sandbox: with the real Codex CLI and a scripted token server."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.codex import conversing, provider
from tests.e2e.daemon import Home
from tests.e2e.responses_server import Turn, shell, status, text

CLAIMS = {"chatgpt_account_id": "acc", "chatgpt_plan_type": "plus", "chatgpt_user_id": "u"}


def token(name: str, left: float) -> str:
    """A token with so many seconds left."""
    claims = {"exp": int(time.time() + left), "email": "a@b", "name": name, "https://api.openai.com/auth": CLAIMS}
    parts = [json.dumps(part).encode() for part in ({"alg": "none"}, claims)] + [b"signed"]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


class Tokens(ThreadingHTTPServer):
    """Gives a new login for an old one, and keeps who asked with what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/oauth/token"


class Answer(BaseHTTPRequestHandler):
    server: Tokens

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(asked["refresh_token"])
        new = {"id_token": token("new", 3600), "access_token": token("new", 3600), "refresh_token": "second"}
        body = json.dumps(new).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def tokens() -> Iterator[Tokens]:
    with Tokens() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def logged_in(home: Home, tokens: Tokens, turns: list[Turn], *, left: float) -> tuple[Any, Path]:
    """The model, and the file of a login that has so many seconds left."""
    home.repo("web")
    model = conversing(home, {"T-1": turns}, within="bubblewrap")
    login = home.root / "home/.codex/auth.json"
    login.parent.mkdir()
    old = {
        "id_token": token("old", left), "access_token": token("old", left), "refresh_token": "first",
        "account_id": "acc",
    }  # fmt: skip
    login.write_text(json.dumps({"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": old,
                                 "last_refresh": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}))  # fmt: skip
    del home.environment["CODEX_API_KEY"]
    executor = home.settings["executor"]
    executor["codex"]["extra_args"] = provider(model.url, login=True)
    executor["environment"]["set"] = {"CODEX_REFRESH_TOKEN_URL_OVERRIDE": tokens.url}
    home.configure()
    return model, login


def test_a_login_that_runs_out_is_renewed_before_the_run_and_kept(home: Home, tokens: Tokens) -> None:
    model, login = logged_in(home, tokens, [shell("echo hi > a.txt"), text("Done.")], left=-60)
    with model:
        end = home.pilot("run", "Work.", "-p", "web", "--task-id", "T-1", "--json").json

        assert end["outcome"] == "done", end
        assert tokens.asked == ["first"]
        kept = json.loads(login.read_text())["tokens"]
        assert kept["refresh_token"] == "second"
        assert model.agent_requests[0].headers["authorization"] == f"Bearer {kept['access_token']}"
        assert "/ps/mcp" not in home.pilot("logs", end["id"], "--raw").out, "the account's connected apps"


def test_a_login_that_is_not_taken_is_said_and_nothing_of_it_is_used_up(home: Home, tokens: Tokens) -> None:
    model, login = logged_in(home, tokens, [status(401, "revoked", times=99)], left=86400)
    with model:
        end = home.pilot("run", "Work.", "-p", "web", "--task-id", "T-1", "--json", code=1).json

        assert (end["failure_class"], "codex login" in end["error"]) == ("auth", True), end
        assert tokens.asked == []
        assert json.loads(login.read_text())["tokens"]["refresh_token"] == "first"
