"""Where a callback may lead: what is checked is what is connected to, over real sockets."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.clients import addresses
from pilot.clients.addresses import CheckedTransport, may_be_called
from pilot.clients.hooks import Forbidden, Hooks, Unreachable
from tests.adapters.authority import contexts
from tests.adapters.hook_server import SECRET, HookServer

INSIDE = (
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.254", "127.0.0.1", "127.255.255.254",
    "169.254.169.254", "172.16.0.1", "172.31.255.254", "192.0.0.1", "192.0.0.9", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.19.255.254", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::7f00:1", "::ffff:127.0.0.1",
    "::ffff:10.1.2.3", "::ffff:169.254.169.254", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:10::1",
    "2001:db8::1", "2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254",
    "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
)  # fmt: skip
OUTSIDE = (
    "1.1.1.1", "8.8.8.8", "93.184.216.34", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1",
    "223.255.255.254", "2606:4700:4700::1111", "2a00:1450:4001:800::200e", "::ffff:8.8.8.8", "64:ff9b::808:808",
    "2002:808:808::1",
)  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_what_lies_inside_is_not_called(address: str) -> None:
    assert not may_be_called(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_what_lies_outside_is(address: str) -> None:
    assert may_be_called(address)


@given(st.ip_addresses(v=4))
def test_an_address_within_another_counts_as_itself(inner: ipaddress.IPv4Address) -> None:
    plain = may_be_called(str(inner))
    number = int(inner)

    assert may_be_called(str(ipaddress.IPv6Address((0xFFFF << 32) | number))) is plain
    assert may_be_called(str(ipaddress.IPv6Address((0x64FF9B << 96) | number))) is plain
    assert may_be_called(str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1))) is plain
    if plain:
        assert inner.is_global


def test_what_is_no_address_is_not_called() -> None:
    assert not any(may_be_called(text) for text in ("", "localhost", "1.2.3", "::g", "1.2.3.4/8", "\u0661.1.1.1"))


# Over sockets


@pytest.fixture
def server() -> Iterator[HookServer]:
    with HookServer() as server:
        yield server


class Names:
    """A name server of its own: answers in turn, the last one for ever."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(each) for name, each in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        known = self.answers.get(host)
        if known is None:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return known.pop(0) if len(known) > 1 else known[0]


@pytest.fixture
def loopback_is_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 127.0.0.1, where the test's servers are, were somewhere in the world; 127.0.0.2 is not."""
    real: Callable[[str], bool] = addresses.may_be_called
    monkeypatch.setattr(addresses, "may_be_called", lambda address: address == "127.0.0.1" or real(address))


@asynccontextmanager
async def caller(**given: object) -> AsyncIterator[Hooks]:
    async with Hooks(SECRET, timeout=5, transport=CheckedTransport(**given)) as hooks:  # type: ignore[arg-type]
        yield hooks


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0", "localhost", "LOCALHOST",
     "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::1]", "[::]", "ann@127.0.0.1", "example.com@127.1"],
)  # fmt: skip
async def test_no_spelling_of_this_machine_is_called(server: HookServer, host: str) -> None:
    async with caller() as hooks:
        with pytest.raises(Forbidden, match="allow_private") as caught:
            await hooks.post(f"http://{host}:{server.port}/?key=hidden", "e", "d", {})
    assert server.posts == []
    assert "hidden" not in str(caught.value)


async def test_one_address_inside_is_enough(server: HookServer, loopback_is_outside: None) -> None:
    names = Names(two_example=[["127.0.0.1", "10.0.0.1"]])
    async with caller(resolver=names) as hooks:
        with pytest.raises(Forbidden, match=r"two\.example is an address of a private network"):
            await hooks.post(f"http://two.example:{server.port}/", "e", "d", {})
    assert server.posts == []


async def test_a_name_is_asked_for_once_and_called_at_that_answer(
    server: HookServer, loopback_is_outside: None
) -> None:
    names = Names(hooks_example=[["127.0.0.1"], ["127.0.0.2"]])
    with HookServer("127.0.0.2") as inside:
        async with caller(resolver=names) as hooks:
            await hooks.post(f"http://hooks.example:{server.port}/a?b=c", "e", "d", {"x": 1})
            assert names.asked == ["hooks.example"]
            with pytest.raises(Forbidden):  # the second answer leads inside
                await hooks.post(f"http://hooks.example:{inside.port}/", "e", "d", {})
        assert inside.posts == []
    (post,) = server.posts
    assert post.path == "/a?b=c"
    assert post.headers["host"] == f"hooks.example:{server.port}"
    assert post.document == {"x": 1}


async def test_the_next_address_is_tried_when_one_takes_nobody(server: HookServer) -> None:
    names = Names(hooks_example=[["127.0.0.9", "127.0.0.1"]])
    async with caller(resolver=names, private=True) as hooks:
        await hooks.post(f"http://hooks.example:{server.port}/", "e", "d", {})
    assert len(server.posts) == 1


async def test_private_addresses_are_called_where_that_is_allowed(server: HookServer) -> None:
    async with caller(private=True) as hooks:
        await hooks.post(server.url, "e", "d", {})
        with HookServer("::1") as six:
            await hooks.post(f"http://[::1]:{six.port}/", "e", "d", {})
            assert six.posts[0].headers["host"] == f"[::1]:{six.port}"
    assert server.posts[0].headers["host"] == f"127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("host", "allow", "called"),
    [
        ("hooks.example", ["hooks.example"], True),
        ("HOOKS.Example.", ["hooks.example"], True),
        ("hooks.example", ["*.example"], True),
        ("a.b.example", ["*.example"], True),
        ("example", ["*.example"], False),
        ("hooks.example.evil.test", ["hooks.example", "*.example"], False),
        ("evil-hooks.example", ["hooks.example"], False),
        ("hooksXexample", ["hooks.example"], False),
        ("hooks.example", [], False),
        ("b\u00fccher.example", ["b\u00fccher.example"], True),
        ("b\u00fccher.example", ["xn--bcher-kva.example"], True),
    ],
)
async def test_hosts_are_called_that_a_pattern_names(
    server: HookServer, host: str, allow: list[str], called: bool
) -> None:
    async def anywhere(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with caller(allow_hosts=allow, private=True, resolver=anywhere) as hooks:
        url = f"http://{host}:{server.port}/"
        if called:
            await hooks.post(url, "e", "d", {})
        else:
            with pytest.raises(Forbidden, match="allow_hosts"):
                await hooks.post(url, "e", "d", {})
    assert len(server.posts) == int(called)


@pytest.mark.parametrize("url", ["ftp://x/y", "file:///etc/passwd", "gopher://127.0.0.1:70/x", "nonsense", "http:///x"])
async def test_only_http_is_spoken(url: str) -> None:
    async with caller(private=True) as hooks:
        with pytest.raises(Forbidden):
            await hooks.post(url, "e", "d", {})


async def test_a_name_that_is_nobodys_may_be_somebodys_later() -> None:
    async with caller(resolver=Names()) as hooks:
        with pytest.raises(Unreachable):
            await hooks.post("http://nobody.example/", "e", "d", {})


async def test_names_that_nobody_answers_for_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def silent(*_: object, **__: object) -> list[object]:
        answer.wait(60)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    asked = [asyncio.create_task(addresses.resolve(f"n{n}.example", 443)) for n in range(40)]
    try:
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "done") == "done"
    finally:
        answer.set()
        await asyncio.gather(*asked)


async def test_no_proxy_of_the_environment_is_asked(server: HookServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with HookServer() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with caller(private=True, resolver=Names(hooks_example=[["127.0.0.1"]])) as hooks:
            await hooks.post(f"http://hooks.example:{server.port}/", "e", "d", {})
        assert proxy.posts == []
    assert len(server.posts) == 1


async def test_the_certificate_is_that_of_the_name(tmp_path: Path) -> None:
    tls, trusting = contexts(tmp_path, "hooks.example", "127.0.0.1")
    names = Names(hooks_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    with HookServer(tls=tls) as server:
        async with caller(private=True, resolver=names, verify=trusting) as hooks:
            await hooks.post(f"https://hooks.example:{server.port}/x", "e", "d", {})
            with pytest.raises(Unreachable):  # another name of that address has shown no certificate
                await hooks.post(f"https://other.example:{server.port}/", "e", "d", {})
            names.answers["127.0.0.1"] = [["127.0.0.1"]]
            await hooks.post(f"https://127.0.0.1:{server.port}/", "e", "d", {})
        async with caller(private=True, resolver=names) as hooks:
            with pytest.raises(Unreachable):  # an authority that nobody else trusts
                await hooks.post(f"https://hooks.example:{server.port}/", "e", "d", {})
    assert [post.headers["host"].split(":")[0] for post in server.posts] == ["hooks.example", "127.0.0.1"]
