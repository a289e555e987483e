"""Webhooks over HTTP: verified, stored, acknowledged; whatever is sent, and however."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.client
import json
import socket
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from pilot.api import webhooks as api
from pilot.api.server import build, listen, server
from pilot.api.webhooks import Receiver, Webhooks
from pilot.clients.webhooks import LIMIT, GitHubWebhook, LinearWebhook
from pilot.domain.errors import Busy, NotFound
from pilot.store import Store, open_store, wall_clock
from tests.e2e.forge import SECRET, Forge, forge

OLD = "the one before"


def signed(body: bytes, secret: str = SECRET, **headers: str) -> dict[str, str]:
    signature = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": signature,
        **headers,
    }


def from_linear(body: bytes, secret: str = SECRET) -> dict[str, str]:
    return {
        "Content-Type": "application/json",
        "Linear-Event": "Issue",
        "Linear-Delivery": str(uuid.uuid4()),
        "Linear-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest(),
    }


def payload(n: int = 0, **more: Any) -> bytes:
    return json.dumps({"action": "labeled", "n": n, **more}).encode()


class Desk:
    """The server's end, in this process."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self.receivers: dict[str, Receiver] = {}
        self.nudged: list[str] = []

    async def post(
        self, body: bytes, headers: dict[str, str], path: str = "/webhooks/github", method: str = "POST"
    ) -> int:
        return (await self.answer(body, headers, path, method))[0]

    async def answer(
        self, body: bytes, headers: dict[str, str], path: str = "/webhooks/github", method: str = "POST"
    ) -> tuple[int, dict[str, Any], str]:
        def ask() -> tuple[int, dict[str, Any], str]:
            parts = urlsplit(self.url)
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
            try:
                connection.request(method, path, body, headers)
                response = connection.getresponse()
                return response.status, json.loads(response.read() or b"{}"), response.getheader("content-type", "")
            finally:
                connection.close()

        return await asyncio.to_thread(ask)

    async def stored(self) -> list[tuple[str, str, str, str]]:
        rows = await self.store.database.read("SELECT source, event, action, payload FROM inbox ORDER BY id")
        return [tuple(row) for row in rows]

    async def raw(self, *pieces: bytes, pause: float = 0.0) -> bytes:
        """Bytes as they are; what comes back until the server closes or says no more."""
        parts = urlsplit(self.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        try:
            for piece in pieces:
                writer.write(piece)
                with suppress(ConnectionError):
                    await writer.drain()
                await asyncio.sleep(pause)
            with suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(5):
                    return await reader.read(65536)
            return b""
        finally:
            writer.close()


@asynccontextmanager
async def serving(store: Store, **settings: Any) -> AsyncIterator[Desk]:
    with closing(listen("127.0.0.1", 0)) as sock:
        desk = Desk(store, f"http://127.0.0.1:{sock.getsockname()[1]}")
        desk.receivers |= {
            "github": Receiver(verify=GitHubWebhook([SECRET, OLD]).delivery),
            "linear": Receiver(verify=LinearWebhook([SECRET]).delivery),
        }
        webhooks = Webhooks(store.inbox, lambda: desk.receivers, desk.nudged.append, **settings)
        running = server(build(lambda: True, webhooks))
        task = asyncio.create_task(running.serve(sockets=[sock]))
        try:
            yield desk
        finally:
            running.should_exit = True
            await task


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with open_store(f"sqlite:///{tmp_path}/pilot.db") as store:
        yield store


@pytest.fixture
async def desk(store: Store) -> AsyncIterator[Desk]:
    async with serving(store) as desk:
        yield desk


async def test_a_webhook_is_stored_before_it_is_acknowledged(desk: Desk) -> None:
    body = payload(1, words="grüße 🎉 \\u0000")

    assert await desk.post(body, signed(body)) == 202
    assert await desk.stored() == [("github", "issues", "labeled", body.decode())]
    assert desk.nudged == ["github"]


async def test_the_same_one_again_is_seen_before(desk: Desk) -> None:
    body, other = payload(1), payload(2)
    headers = signed(body)

    assert await desk.post(body, headers) == 202
    assert await desk.post(body, headers) == 200
    # the id is not signed: neither a new id on an old body nor an old id on a new one is news
    assert await desk.post(body, signed(body)) == 200
    assert await desk.post(other, signed(other, **{"X-GitHub-Delivery": headers["X-GitHub-Delivery"]})) == 200
    assert len(await desk.stored()) == 1
    assert desk.nudged == ["github"]


async def test_two_at_once_of_the_same_are_one(desk: Desk) -> None:
    body = payload(1)
    headers = signed(body)

    answers = await asyncio.gather(*(desk.post(body, headers) for _ in range(8)))

    assert sorted(answers) == [200] * 7 + [202]
    assert len(await desk.stored()) == 1


async def test_both_secrets_are_good_while_one_is_changed(desk: Desk) -> None:
    one, two, three = payload(1), payload(2), payload(3)

    assert await desk.post(one, signed(one, SECRET)) == 202
    assert await desk.post(two, signed(two, OLD)) == 202
    assert await desk.post(three, signed(three, "another")) == 401


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (lambda body, headers: (body + b" ", headers), 401),
        (lambda body, headers: (body, headers | {"X-Hub-Signature-256": "sha256=" + "0" * 64}), 401),
        (lambda body, headers: (body, headers | {"X-Hub-Signature-256": "sha1=" + "0" * 40}), 401),
        (lambda body, headers: (body, {k: v for k, v in headers.items() if "Signature" not in k}), 400),
        (lambda body, headers: (body, {k: v for k, v in headers.items() if "Delivery" not in k}), 400),
        (lambda body, headers: (body, headers | {"X-GitHub-Event": "x; DROP TABLE"}), 400),
        (lambda body, headers: (body, headers | {"Content-Type": "application/x-www-form-urlencoded"}), 400),
        (lambda _body, _headers: (b"no json", signed(b"no json")), 400),
        (lambda _body, _headers: (b"[1]", signed(b"[1]")), 400),
        (lambda _body, _headers: (b"", signed(b"")), 400),
        (lambda _body, _headers: (b"[" * 100_000, signed(b"[" * 100_000)), 400),
    ],
    ids=["body", "signature", "sha1", "unsigned", "no id", "event", "form", "text", "list", "empty", "deep"],
)
async def test_what_is_not_genuine_is_refused(
    desk: Desk, change: Callable[[bytes, dict[str, str]], tuple[bytes, dict[str, str]]], status: int
) -> None:
    body = payload(1)

    answered, problem, content_type = await desk.answer(*change(body, signed(body)))

    assert answered == status
    assert (problem["status"], content_type) == (status, "application/problem+json")
    assert SECRET not in json.dumps(problem)
    assert await desk.stored() == []


async def test_linears_window_of_time(desk: Desk) -> None:
    for offset, status in ((0, 202), (-59_000, 202), (-61_500, 401), (61_500, 401)):
        body = payload(offset, type="Issue", webhookTimestamp=wall_clock() + offset)
        assert await desk.post(body, from_linear(body), "/webhooks/linear") == status


async def test_without_a_secret_there_is_no_such_page(desk: Desk) -> None:
    body = payload(1)

    def unset(_headers: object, _body: bytes) -> Any:
        raise NotFound("sources.github.webhook_secret is not set")

    desk.receivers["github"] = Receiver(verify=unset)
    assert await desk.post(body, signed(body)) == 404
    del desk.receivers["github"]
    assert await desk.post(body, signed(body)) == 404
    assert await desk.post(body, signed(body), "/webhooks/gitlab") == 404
    assert await desk.stored() == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
async def test_only_posts_are_taken(desk: Desk, method: str) -> None:
    status, problem, content_type = await desk.answer(b"", {}, method=method)

    assert (status, problem["status"], content_type) == (405, 405, "application/problem+json")


async def test_what_nothing_can_follow_from_is_acknowledged_and_forgotten(desk: Desk) -> None:
    desk.receivers["github"] = Receiver(
        verify=GitHubWebhook([SECRET]).delivery, wants=lambda delivery: delivery.event != "ping"
    )
    body = payload(1)

    assert await desk.post(body, signed(body, **{"X-GitHub-Event": "ping"})) == 200
    assert await desk.stored() == []
    assert await desk.post(body, signed(body)) == 202


async def test_five_mebibytes_and_not_one_byte_more(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "AT_ONCE", LIMIT + 1000)  # what is beyond the limit is not held
    room = LIMIT - len(payload(1, fill=""))
    for fill, status in ((room, 202), (room + 1, 413), (LIMIT * 5, 413)):
        body = payload(1, fill="x" * fill)
        assert await desk.post(body, signed(body)) == status
    assert len(await desk.stored()) == 1


async def test_a_body_without_a_length_is_cut_off_at_the_limit(desk: Desk) -> None:
    chunk = b"%x\r\n%s\r\n" % (1 << 18, b"x" * (1 << 18))
    head = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"

    answer = await desk.raw(head, *[chunk] * 40, b"0\r\n\r\n")  # 10 MiB
    assert answer.startswith(b"HTTP/1.1 413")

    with suppress(ConnectionError):
        await desk.raw(head, *[chunk] * 4 * 40)  # 40 MiB, without an end: nobody listens to it
    assert await desk.stored() == []
    assert await desk.post(payload(1), signed(payload(1))) == 202


async def test_an_announced_length_is_enough_to_refuse(desk: Desk) -> None:
    head = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n"

    assert (await desk.raw(head)).startswith(b"HTTP/1.1 413")


async def test_who_is_too_slow_is_left(store: Store) -> None:
    head = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    async with serving(store, patience=0.2) as desk:
        assert (await desk.raw(head)).startswith(b"HTTP/1.1 408")
        assert await desk.post(payload(1), signed(payload(1))) == 202


async def test_many_slow_ones_hold_so_many_bytes_and_no_more(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "AT_ONCE", 300_000)
    head = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 200001\r\n\r\n" + b"x" * 200_000
    async with serving(store, patience=1.0) as desk:
        answers = await asyncio.gather(*(desk.raw(head) for _ in range(3)))
        assert sorted(answer.split()[1] for answer in answers) == [b"408", b"503", b"503"]
        assert await desk.post(payload(1), signed(payload(1))) == 202, "the bytes are given back"


async def test_a_sender_that_goes_away_leaves_nothing(desk: Desk) -> None:
    head = b"POST /webhooks/github HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    parts = urlsplit(desk.url)
    for _ in range(5):
        with socket.create_connection((parts.hostname, parts.port)) as sock:
            sock.sendall(head)
    body = payload(1)
    assert await desk.post(body, signed(body)) == 202
    assert len(await desk.stored()) == 1


async def test_a_store_that_cannot_take_it_does_not_acknowledge_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(*_: object) -> bool:
        raise Busy("the database is locked")

    body = payload(1)
    with monkeypatch.context() as patch:
        patch.setattr(type(desk.store.inbox), "store", busy)
        assert await desk.post(body, signed(body)) == 503
    assert await desk.post(body, signed(body)) == 202


async def test_any_host_header_will_do(desk: Desk) -> None:
    body = payload(1)
    assert await desk.post(body, signed(body, Host="pilot.example.org")) == 202


# With the real daemon


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Forge]:
    with forge(tmp_path) as made:
        yield made


def test_a_label_runs_at_once_and_its_redelivery_does_nothing(github: Forge) -> None:
    github.sources["github"]["poll_interval"] = "1h"  # so that it is the webhook that does it
    github.home.configure(sources=github.sources)
    with github.serve() as daemon:
        number = github.ask("Fix the login", "wait go")
        github.home.began("GH-1")
        github.fake.hooks.settle()
        sent = github.fake.hooks.deliveries
        assert {delivery.status for delivery in sent} <= {200, 202}
        for delivery in list(sent):
            github.fake.hooks.again(delivery)
        github.fake.hooks.settle()
        assert {delivery.status for delivery in sent[-len(sent) // 2 :]} == {200}
        github.home.go("go")
        github.reach(status="completed")
        assert github.home.statuses() == {f"GH-{number}": "completed"}
        daemon.term()
        assert daemon.wait() == 0


def test_what_was_acknowledged_survives_the_end_of_everything(github: Forge) -> None:
    github.sources["github"]["poll_interval"] = "1h"
    github.home.configure(sources=github.sources)
    github.fake.hooks.keep()
    with github.serve(webhooks=False) as daemon:
        github.home.until(lambda: any("/issues" in r.path for r in github.fake.requests), "the first poll")
        time.sleep(0.3)
        github.ask("Fix the login")
        github.fake.lose_next("GET", r"/issues/1", after=False, times=20)  # it can't be dealt with yet
        (delivery,) = [d for d in github.fake.hooks.deliveries if b'"labeled"' in d.body]
        parts = urlsplit(daemon.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
        connection.request("POST", "/webhooks/github", delivery.body, signed(delivery.body))
        assert connection.getresponse().status == 202
        connection.close()
        daemon.kill9()
    github.fake.losses.clear()
    with sqlite3.connect(github.home.state / "pilot.db") as database:
        database.execute("UPDATE inbox SET available_at = 0")  # whatever pause it was given
    database.close()
    with github.serve():
        github.reach(status="completed")
