"""Signed POSTs over real sockets: what is sent, and what every answer means."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pilot.clients.hooks import HookError, Hooks, Rejected, Unavailable, address_name, kept_secret, place
from tests.adapters.hook_server import SECRET, HookServer

NOW = 1_800_000_000_000


@pytest.fixture
def server() -> Iterator[HookServer]:
    with HookServer() as server:
        yield server


@pytest.fixture
async def hooks() -> AsyncIterator[Hooks]:
    async with Hooks(SECRET, clock=lambda: NOW) as hooks:
        yield hooks


async def test_a_post_is_signed_named_and_json(server: HookServer, hooks: Hooks) -> None:
    await hooks.post(server.url, "execution.failed", "notify:7:webhook:ab", {"text": "ä \ud800 \x00 \U0001f600"})

    (post,) = server.posts
    assert post.path == "/news?key=hidden"
    assert post.headers["content-type"] == "application/json"
    assert post.headers["x-pilot-event"] == "execution.failed"
    assert post.headers["x-pilot-delivery"] == "notify:7:webhook:ab"
    assert post.signed_by(SECRET)
    assert not post.signed_by("another")
    assert post.document == {"text": "ä \ufffd \\u0000 \U0001f600".replace("\\u0000", "\x00")}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 422])
async def test_a_refusal_is_final(server: HookServer, hooks: Hooks, status: int) -> None:
    server.answers.append((status, {}))

    with pytest.raises(Rejected, match=str(status)):
        await hooks.post(server.url, "e", "d", {})


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
async def test_trouble_passes(server: HookServer, hooks: Hooks, status: int) -> None:
    server.answers.append((status, {}))

    with pytest.raises(Unavailable, match=str(status)) as caught:
        await hooks.post(server.url, "e", "d", {})
    assert caught.value.until is None


@pytest.mark.parametrize(
    ("wait", "until"),
    [
        ("120", NOW + 120_000),
        ("999999", NOW + 3_600_000),
        ("Fri, 15 Jan 2027 08:10:00 GMT", NOW + 600_000),
        ("Fri, 15 Jan 1999 08:10:00 GMT", NOW),
        ("soon", None),
        ("-5", None),
        ("\u0661", None),
    ],
    ids=["seconds", "too-long", "date", "past", "words", "negative", "digits"],
)
async def test_retry_after_is_heeded(server: HookServer, hooks: Hooks, wait: str, until: int | None) -> None:
    if not wait.isascii():
        wait = wait.encode().decode("latin-1")
    server.answers.append((503, {"Retry-After": wait}))

    with pytest.raises(Unavailable) as caught:
        await hooks.post(server.url, "e", "d", {})
    assert caught.value.until == until


async def test_redirects_are_not_followed(server: HookServer, hooks: Hooks) -> None:
    with HookServer() as other:
        server.answers.append((307, {"Location": other.url}))
        with pytest.raises(Rejected, match="redirects"):
            await hooks.post(server.url, "e", "d", {})
        assert other.posts == []


async def test_silence_ends_in_time_and_nobody_at_home_is_said(server: HookServer) -> None:
    server.silence = 30
    async with Hooks(SECRET, timeout=0.3) as hooks:
        with pytest.raises(Unavailable, match="no answer in 0"):
            await hooks.post(server.url, "e", "d", {})
        with pytest.raises(Unavailable, match="can't be reached") as caught:
            await hooks.post("http://127.0.0.1:9/news?key=hidden", "e", "d", {})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://[::1", "nonsense", "ftp://x/y", "http://\ud800/"], ids=["v6", "no", "ftp", "x"]
)
async def test_what_is_no_address_is_an_error_like_others(hooks: Hooks, url: str) -> None:
    with pytest.raises(HookError):
        await hooks.post(url, "e", "d", {})


def test_names_of_addresses_give_nothing_away() -> None:
    url = "https://ann:pw@hooks.example/T0/secret"

    assert address_name(url) == address_name(url) != address_name(url + "x")
    assert place(url) == "hooks.example"
    assert place("http://[::1") == "the address"


def test_a_secret_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(kept_secret(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(found)) == 1
    assert len(found[0]) > 30
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert kept_secret(tmp_path) == found[0]


def test_a_secret_that_is_a_link_or_empty_is_refused(tmp_path: Path) -> None:
    secret = kept_secret(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text("\n")
    with pytest.raises(OSError, match="empty"):
        kept_secret(tmp_path)
    path.unlink()
    (tmp_path / "other").write_text(secret)
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=os.strerror(40)):
        kept_secret(tmp_path)
