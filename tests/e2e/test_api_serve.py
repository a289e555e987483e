"""The API of a real `pilot serve`: a worker elsewhere outlives its server, and nobody waits when it goes down."""

from __future__ import annotations

import json
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.e2e.daemon import Daemon, Home, prompt


class Speaker:
    """Somebody with the operator's token."""

    def __init__(self, home: Home) -> None:
        self.file = home.state / "token"
        self.token = self.file.read_text().strip()
        self._home = home

    def __call__(self, daemon: Daemon, method: str, path: str, body: Any = None, code: int = 200) -> Any:
        answer = httpx2.request(
            method,
            f"{daemon.url}/api/v1{path}",
            json=body,
            headers={"authorization": f"Bearer {self.token}"},
            timeout=60,
            verify=False,
        )
        assert answer.status_code == code, f"{path}: {answer.status_code} {answer.text}\n{self._home.state_of_things()}"
        return answer.json()


def test_a_worker_elsewhere_outlives_its_server(home: Home) -> None:
    home.repo("far", executor={"type": "external"})
    home.repo("near")
    with home.serve() as daemon:
        ask = Speaker(home)
        assert stat.S_IMODE(ask.file.stat().st_mode) == 0o600
        assert ask.token not in daemon.log
        assert str(ask.file) in daemon.says(r"serve\.started.*")

        new = ask(daemon, "POST", "/executions", {"project": "far", "title": "Deploy", "task_id": "D-1"}, 201)
        near = {"project": "near", "title": "Do N-1", "body": prompt("N-1"), "task_id": "N-1"}
        local = ask(daemon, "POST", "/executions", near, 201)
        wait = {"worker": "w", "projects": ["far"], "wait_seconds": 30, "lease_seconds": 600}
        (claim,) = ask(daemon, "POST", "/work/claim", wait)["executions"]
        assert claim["id"] == new["id"]
        said = {"worker": "w", "fence": claim["fence"]}
        at = f"/work/{claim['id']}"
        ask(daemon, "POST", f"{at}/output", said | {"pieces": [{"text": "one\n"}]})
        home.reach("completed", local["id"])  # what comes in over HTTP wakes this node's own dispatcher
        daemon.kill9()

    with home.serve() as daemon:
        assert Speaker(home).token == ask.token
        assert ask(daemon, "POST", f"{at}/heartbeat", said | {"lease_seconds": 600})["cancel_requested"] is False
        refused = ask(daemon, "POST", f"{at}/complete", said | {"fence": claim["fence"] + 1}, 409)
        assert refused["status"] == 409
        ask(daemon, "POST", f"{at}/output", said | {"pieces": [{"text": "two\n"}]})
        done = ask(daemon, "POST", f"{at}/complete", said | {"summary": "Deployed."})
        assert (done["execution"]["status"], done["execution"]["attempt"]) == ("completed", 1)
        assert ask(daemon, "POST", f"{at}/complete", said | {"summary": "Deployed."})["duplicate"] is True
        pieces = ask(daemon, "GET", f"/executions/{claim['id']}/output")["output"]
        assert [piece["text"] for piece in pieces] == ["one\n", "two\n"]
        assert [node["id"] for node in ask(daemon, "GET", "/nodes")["nodes"] if node["kind"] == "worker"] == [
            "worker:w"
        ]
        done_at = f"/api/v1{at}/complete"
        home.until(
            lambda: done_at in [call["path"] for call in ask(daemon, "GET", "/audit")["calls"]],
            "its row is written some ms after the answer",
        )
    home.audit(completed=2)


def test_nobody_waits_when_it_goes_down(home: Home) -> None:
    home.repo("far", executor={"type": "external"})
    home.repo("near")
    with home.serve() as daemon:
        ask = Speaker(home)
        near = {"project": "near", "title": "Do N-1", "body": prompt("N-1", "wait go"), "task_id": "N-1"}
        ask(daemon, "POST", "/executions", near, 201)
        home.began("N-1")
        answers: dict[str, Any] = {}
        stream = _reading(daemon, ask.token, "/events", answers)
        poll = _beside(
            lambda: answers.update(poll=ask(daemon, "POST", "/work/claim", {"worker": "w", "wait_seconds": 60}))
        )
        home.until(lambda: "stream" in answers, "the stream has begun")
        home.until(lambda: home.rows("SELECT 1 FROM nodes WHERE id = 'worker:w'"), "the poll waits")
        begun = time.monotonic()
        daemon.term()
        daemon.says(r"serve\.draining")
        poll.join(20)
        assert answers["poll"] == {"executions": []}
        assert daemon.get("/readyz") == 503
        ask(daemon, "POST", "/work/claim", {"worker": "w"}, 503)
        later = ask(daemon, "POST", "/executions", {"project": "far", "title": "Later"}, 201)  # drains, and takes in
        assert stream.is_alive()
        home.go("go")
        assert daemon.wait() == 0
        stream.join(10)
        assert not stream.is_alive()
        assert time.monotonic() - begun < 30
    assert home.value(later["id"], "status") == "queued"
    assert "execution.completed" in answers["stream"]
    logs = Path(daemon._log).read_text()
    assert ask.token not in logs
    assert not re.search(r"Traceback|api\.broken", logs)


def test_a_reload_counts_for_what_comes_in(home: Home) -> None:
    home.repo("far", executor={"type": "external"})
    with home.serve() as daemon:
        ask = Speaker(home)
        ask(daemon, "POST", "/executions", {"project": "new", "title": "x"}, 404)
        home.repo("new", executor={"type": "external"})
        daemon.send(1)  # SIGHUP
        daemon.says(r"config\.reloaded")
        ask(daemon, "POST", "/executions", {"project": "new", "title": "x"}, 201)


def _beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _reading(daemon: Daemon, token: str, path: str, answers: dict[str, Any]) -> threading.Thread:
    """Read a stream to its end."""

    def read() -> None:
        headers = {"authorization": f"Bearer {token}"}
        with httpx2.stream("GET", f"{daemon.url}/api/v1{path}", headers=headers, timeout=60, verify=False) as answer:
            answers["stream"] = json.dumps(dict(answer.headers))
            for line in answer.iter_lines():
                answers["stream"] += line

    return _beside(read)
