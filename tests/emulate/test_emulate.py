"""The GitHub source against a GitHub that somebody else wrote (npm `emulate`), with its really signed webhooks.

It is looser than GitHub, so nothing is learnt from it; it shows that our own fake is no wish. It has no ETags, no
limits, no list of a repository's comments, and no GraphQL: who edited a text is asked there, and answered here.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from pilot.clients.github import GitHub
from pilot.clients.github_edits import Edit
from pilot.clients.github_login import Token
from pilot.clients.webhooks import Delivery, NotAccepted
from pilot.config.schema import GithubSettings, ProjectSettings
from pilot.domain.delivery import Arrival, Report
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, Outcome
from pilot.domain.policy import Settlement
from pilot.domain.ports import Finish
from pilot.domain.task import Project
from pilot.sources.github import GitHubSource
from pilot.store import Store, open_store, wall_clock
from tests.adapters.desks import desk, executions, served
from tests.adapters.github_stage import HOUR, SECRET, node
from tests.ports import free_port

MODULES = Path(__file__).parent / "node_modules"
SEED = {
    "tokens": {"tok_robot": {"login": "robot", "scopes": ["repo"]}, "tok_mona": {"login": "mona", "scopes": ["repo"]}},
    "github": {
        "users": [{"login": login, "name": login, "email": f"{login}@example.org"} for login in ("robot", "mona")],
        "repos": [{"owner": "mona", "name": "api", "auto_init": True}],
    },
}


def program() -> list[str]:
    """emulate, under the Node that comes with it."""
    found = sorted(MODULES.glob("node-linux-*/bin/node"))
    if not found:
        raise FileNotFoundError("no emulate here: run `npm ci --prefix tests/emulate` (`make test` does)")
    return [str(found[0]), str(MODULES / "emulate" / "dist" / "index.js")]


@dataclass
class Emulated:
    """A running one. `url` names it by the host that it names itself by."""

    port: int
    deliveries: queue.Queue[tuple[dict[str, str], bytes]] = field(default_factory=queue.Queue)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def call(self, method: str, path: str, body: Any = None, who: str = "mona") -> Any:
        """What somebody does in their browser."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=20)
        try:
            sent = {"Authorization": f"Bearer tok_{who}", "Content-Type": "application/json"}
            connection.request(method, path, None if body is None else json.dumps(body), sent)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status < 400, (method, path, answer.status, text[:300])
            return json.loads(text) if text else None
        finally:
            connection.close()

    def ask(self, title: str, text: str) -> int:
        """An issue, and then the label."""
        number = int(self.call("POST", "/repos/mona/api/issues", {"title": title, "body": text})["number"])
        self.call("POST", f"/repos/mona/api/issues/{number}/labels", {"labels": ["pilot"]})
        return number

    def labels(self, number: int) -> list[str]:
        """What the issue wears."""
        return sorted(label["name"] for label in self.call("GET", f"/repos/mona/api/issues/{number}")["labels"])

    def comments(self, number: int) -> list[str]:
        """What stands there."""
        return [each["body"] for each in self.call("GET", f"/repos/mona/api/issues/{number}/comments")]


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    """One for all tests; each has an issue of its own."""
    place = tmp_path_factory.mktemp("emulate")
    (place / "seed.yaml").write_text(json.dumps(SEED))
    port = free_port()
    command = [*program(), "start", "--service", "github", "--port", str(port), "--seed", str(place / "seed.yaml")]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=place, start_new_session=True)
    made = Emulated(port)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                made.call("GET", "/user")
                break
            except OSError:
                assert process.poll() is None, (place / "log").read_text()
                assert time.monotonic() < deadline, "emulate does not answer"
                time.sleep(0.1)
        made.call("PUT", "/repos/mona/api/collaborators/robot", {"permission": "push"})
        with _hooked(made):
            yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _hooked(made: Emulated) -> Iterator[None]:
    """Its webhooks arrive in `deliveries`."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.deliveries.put(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(202)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        place = f"http://127.0.0.1:{server.server_address[1]}/"
        config = {"url": place, "content_type": "json", "secret": SECRET}
        made.call("POST", "/repos/mona/api/hooks", {"config": config, "events": ["issues", "issue_comment"]})
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Here:
    """The source, over a store of its own."""

    store: Store
    project: Project
    source: GitHubSource

    async def run(self) -> Execution:
        (row,) = await executions(self.store)
        return await self.store.queue.get(row["id"])

    async def report(self, **sent: Any) -> Any:
        run = await self.run()
        return await self.source.report(Report(execution=run, origin=run.origin, event=1, type="x", sent=sent))


@pytest.fixture
async def here(emulated: Emulated, tmp_path: Path) -> AsyncIterator[Here]:
    own = GithubSettings(token=SecretStr("tok_robot"), base_url=emulated.url, webhook_secret=(SecretStr(SECRET),))
    async with (
        open_store(f"sqlite:///{tmp_path}/pilot.db") as store,
        GitHub(Token("tok_robot"), base_url=emulated.url, spacing=0) as github,
    ):

        async def nobody(repo: str, number: int) -> tuple[Edit, ...]:
            return ()

        github.news.rewritten = nobody  # type: ignore[method-assign]
        projects = await served(store, ProjectSettings(name="api", path=tmp_path, github="mona/api"))
        await store.queue.start_node(node("n1"), HOUR)
        yield Here(store, projects[0][0], GitHubSource(desk(store, projects), github, own))
    for number in _open(emulated):
        emulated.call("PATCH", f"/repos/mona/api/issues/{number}", {"state": "closed"})


def _open(emulated: Emulated) -> list[int]:
    return [each["number"] for each in emulated.call("GET", "/repos/mona/api/issues?state=open")]


async def test_a_label_becomes_one_run_and_the_issue_shows_it_once(emulated: Emulated, here: Here) -> None:
    number = emulated.ask("Fix the login", "It fails.")
    await here.source.poll()
    await here.source.poll()

    run = await here.run()
    assert (run.task_id, run.title, run.body) == (f"GH-{number}", "Fix the login", "It fails.")
    sent = await here.report()
    assert emulated.labels(number) == ["pilot:running"]

    (execution,) = await here.store.queue.claim("n1", projects=(here.project.id,), lease=HOUR)
    settled = Settlement(to=Status.COMPLETED)
    outcome = Outcome(ending=Ending.DONE, branch="pilot/x")
    await here.store.queue.finish(Finish(execution=execution, outcome=outcome, settlement=settled))
    await here.report(report=sent)
    await here.report()  # as after a crash: what was sent is not known

    (comment,) = emulated.comments(number)
    assert comment.startswith(f"<!-- pilot:execution={run.id} -->\n\n**Done.**")
    assert emulated.labels(number) == ["pilot:done"]


async def test_its_signed_webhooks_and_a_poll_are_one_run(emulated: Emulated, here: Here) -> None:
    emulated.deliveries.queue.clear()
    number = emulated.ask("Fix the login", "It fails.")
    verified = [delivery async for delivery in _arriving(emulated, here, "labeled")]
    await here.source.poll()

    assert {(each.event, each.action) for each in verified} >= {("issues", "labeled")}
    assert (await here.run()).task_id == f"GH-{number}"


async def test_a_command_in_a_comment_is_heard(emulated: Emulated, here: Here) -> None:
    number = emulated.ask("Fix the login", "It fails.")
    await here.source.poll()
    emulated.deliveries.queue.clear()
    while True:
        made = emulated.call("POST", f"/repos/mona/api/issues/{number}/comments", {"body": "/pilot cancel"})
        assert [each.event async for each in _arriving(emulated, here, "created")][-1] == "issue_comment"
        if made["created_at"] == made["updated_at"]:  # else it looks edited: emulate asks its clock twice
            break

    run = await here.run()
    assert (run.status, run.reason) == (Status.CANCELLED, "cancelled by mona on GitHub")


async def _arriving(emulated: Emulated, here: Here, last: str) -> AsyncIterator[Delivery]:
    """Each is verified and acted upon; a forged copy of it is not taken."""
    while True:
        sent, body = await asyncio.to_thread(emulated.deliveries.get, True, 20)
        with pytest.raises(NotAccepted):
            here.source.verify(sent, body + b" ")
        verified = here.source.verify(sent, body)
        facts: dict[str, Any] = {"event": verified.event, "action": verified.action, "payload": verified.payload}
        await here.source.handle(Arrival(id=1, source="github", received_at=wall_clock(), tries=0, **facts))
        yield verified
        if verified.action == last:
            return
