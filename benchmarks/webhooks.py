"""Webhooks to the real `pilot serve`: how many it acknowledges, and how soon one runs; what a poll costs."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import sqlite3
import statistics
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch
from urllib.parse import urlsplit

from benchmarks.daemon import cpu, make_projects, memory, serving
from benchmarks.figures import Figure
from tests.e2e import github_server
from tests.e2e.github_fake import GitHubFake

SECRET = "bench"
BURST, CONNECTIONS = 5000, 16
PACED, RATE = 10, 200
"""Seconds at a pace, and webhooks a second."""
ASKED = 4
"""Answers that a label's run waits for: the issue, who set the label, what they may do, and who edited its text."""


def payload(repo: str, n: int) -> bytes:
    """A label that asks for nothing, of the size that GitHub's are."""
    about = {"action": "labeled", "label": {"name": "docs"}, "issue": {"number": n, "body": "x" * 4000}}
    more = {"repository": {"full_name": repo, "id": 1}, "sender": {"login": "mona", "type": "User"}, "n": n}
    return json.dumps(about | more).encode()


def request(host: str, body: bytes) -> bytes:
    signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    head = (
        f"POST /webhooks/github HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"X-GitHub-Event: issues\r\nX-GitHub-Delivery: {uuid.uuid4()}\r\n"
        f"X-Hub-Signature-256: sha256={signature}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Sender:
    """Keep-alive connections to one server. `took`: seconds until each answer; `codes`: how many of each."""

    url: str
    took: list[float] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)

    async def send(self, requests: list[bytes], *, rate: float | None = None) -> float:
        """All of them, as quick as they are taken, or so many a second; the seconds it took."""
        waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
        began = time.perf_counter()
        lines = [asyncio.create_task(self._line(waiting)) for _ in range(CONNECTIONS)]
        for number, one in enumerate(requests):
            if rate is not None:
                await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            waiting.put_nowait(one)
        for _ in lines:
            waiting.put_nowait(None)
        await asyncio.gather(*lines)
        return time.perf_counter() - began

    async def _line(self, waiting: asyncio.Queue[bytes | None]) -> None:
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while (one := await waiting.get()) is not None:
            began = time.perf_counter()
            writer.write(one)
            head = await reader.readuntil(b"\r\n\r\n")
            code = int(head.split(b" ", 2)[1])
            length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line[:15] == b"content-length:")
            await reader.readexactly(length)
            self.took.append(time.perf_counter() - began)
            self.codes[code] = self.codes.get(code, 0) + 1
        writer.close()

    @property
    def p99(self) -> float:
        """Milliseconds."""
        return 1000 * sorted(self.took)[int(len(self.took) * 0.99)]


@contextmanager
def setting(count: int, poll: str, port: int) -> Iterator[tuple[Path, GitHubFake]]:
    """A configuration with so many projects that are repositories of a fake GitHub."""
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder, GitHubFake() as fake:
        config = make_projects(Path(folder), count, usable=True)
        settings = json.loads(config.read_text())
        for project in settings["projects"]:
            project["github"] = f"acme/{project['name']}"
            fake.repo(project["github"], mona="admin", robot="write")
        own = {"token": fake.token("robot"), "base_url": fake.url, "webhook_secret": SECRET, "poll_interval": poll}
        settings |= {"sources": {"github": own}, "server": {"port": port}}
        config.write_text(json.dumps(settings))
        yield config, fake


def acknowledged() -> list[Figure]:
    """A burst, as quick as they are taken; then at a pace."""
    port = 17337
    with setting(1, "1h", port) as (config, _), serving(config) as (daemon, _):
        url, host = f"http://127.0.0.1:{port}", f"127.0.0.1:{port}"
        burst = Sender(url)
        seconds = asyncio.run(burst.send([request(host, payload("acme/p0", n)) for n in range(BURST)]))
        pace = Sender(url)
        before = cpu(daemon.pid)
        more = [request(host, payload("acme/p0", n)) for n in range(BURST, BURST + PACED * RATE)]
        lasted = asyncio.run(pace.send(more, rate=RATE))
        share, size = 100 * (cpu(daemon.pid) - before) / lasted, memory(daemon.pid)
        with sqlite3.connect(config.parent / "state" / "pilot.db") as database:
            ((stored,),) = database.execute("SELECT count(*) FROM inbox").fetchall()
        database.close()
    if burst.codes | pace.codes != {202: pace.codes[202]} or stored != BURST + PACED * RATE:
        raise RuntimeError(f"not all were taken: {burst.codes} {pace.codes}, {stored} stored")
    note = f"{CONNECTIONS} connections, p99 {burst.p99:.0f} ms, none lost"
    return [
        Figure("signed webhooks acknowledged, each durable first", BURST / seconds, "/s", 200, more=True, note=note),
        Figure(f"p99 of {BURST:,} webhooks in a burst", burst.p99, "ms", 1000, note=f"in {seconds:.1f} s"),
        Figure(
            f"p99 at {RATE} webhooks/s for {PACED} s", pace.p99, "ms", 1000,
            note=f"{share:.0f} % of one core, {size:.0f} MB",
        ),
    ]  # fmt: skip


def running() -> list[Figure]:
    """From the arrival of a label's webhook to the start of its run, by the store's own times."""
    port, count = 17338, 20
    with unchecked(), setting(count, "1h", port) as (config, fake), serving(config):
        fake.hooks.target(f"http://127.0.0.1:{port}/webhooks/github", SECRET)
        repos = [fake.repos[f"acme/p{n}"] for n in range(count)]
        file = config.parent / "state" / "pilot.db"
        time.sleep(2)  # the first poll
        for round in range(3):
            for number, repo in enumerate(repos):
                fake.issue(repo, "Do it", labels=["pilot"])
                _wait(file, "SELECT count(*) FROM executions WHERE finished_at IS NOT NULL", round * count + number + 1)
        waits = _ask(
            file,
            "SELECT e.started_at - i.received_at FROM executions e JOIN inbox i ON i.event = 'issues' "
            "AND i.action = 'labeled' AND i.received_at = (SELECT max(received_at) FROM inbox "
            "WHERE event = 'issues' AND action = 'labeled' AND received_at <= e.created_at) ORDER BY e.id",
        )
        answer = 1000 * statistics.median(_answers(fake, repos[0].full_name))
    took = [float(wait) for (wait,) in waits]
    note = f"{len(took)} labels; each takes {ASKED} answers of GitHub's, {answer:.1f} ms each here"
    return [Figure("label's webhook → running, idle, p50", statistics.median(took), "ms", 50, note=note)]


def _answers(fake: GitHubFake, repo: str) -> Iterator[float]:
    """Seconds that the fake takes for one."""
    parts = urlsplit(fake.url)
    token = next(token for token, user in fake.tokens.items() if user.login == "robot")
    for _ in range(30):
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        began = time.perf_counter()
        connection.request("GET", f"/repos/{repo}/issues/1", headers={"Authorization": f"token {token}"})
        connection.getresponse().read()
        yield time.perf_counter() - began
        connection.close()


def _ask(file: Path, sql: str) -> list[tuple[int, ...]]:
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30) as database:
        found: list[tuple[int, ...]] = database.execute(sql).fetchall()
    database.close()
    return found


@contextmanager
def unchecked() -> Iterator[None]:
    """The fake without its checks against GitHub's description, which take longer than GitHub's own answers would."""
    with patch.object(github_server, "check_request", _fine), patch.object(github_server, "check_response", _fine):
        yield


def _fine(*_: object) -> None:
    """Whatever it is."""


def _wait(file: Path, sql: str, wanted: int) -> None:
    end = time.perf_counter() + 30
    while _ask(file, sql)[0][0] < wanted:
        if time.perf_counter() > end:
            raise RuntimeError(f"{sql}: {_ask(file, sql)}, not {wanted}")
        time.sleep(0.01)


def polled() -> list[Figure]:
    """What polls of repositories without changes use up of GitHub's rate limit."""
    with setting(50, "2s", 17339) as (config, fake), serving(config):
        time.sleep(12)
        before, asked = fake.used.get("robot", 0), len(fake.requests)
        time.sleep(15)
        used, polls = fake.used.get("robot", 0) - before, (len(fake.requests) - asked) / 50
    note = f"{polls:.0f} requests for each"
    return [Figure("polls of 50 unchanged repositories: counted requests", used, "", 0, note=note)]


def run() -> list[Figure]:
    """All figures of this file."""
    return [*acknowledged(), *running(), *polled()]
