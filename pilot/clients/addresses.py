"""Which addresses a stranger's URL may lead to: it is resolved once, checked, and connected to as it was checked.

Nothing of this machine's own network is reached by an address that came with a task: no loopback, no private range,
no metadata service, however it is spelled (`127.1`, `0x7f.1`, `[::ffff:10.0.0.1]`, a name that resolves to it), and
also not when the name's second answer differs from its first, since there is no second question.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, IPv6Address

import httpx2

from pilot.domain.callback import is_allowed

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host, the best first. Raises `OSError`."""
_SCHEMES = {"http": 80, "https": 443}
_DENIED = tuple(
    ipaddress.ip_network(each)
    for each in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this machine
        "10.0.0.0/8",
        "100.64.0.0/10",  # behind a carrier's NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local, and the metadata services of clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "::/96",  # unspecified, loopback, IPv4-compatible
        "::ffff:0:0:0/96",  # IPv4-translated
        "64:ff9b:1::/48",  # NAT64 of a local network: nobody else knows what is behind it
        "100::/64",  # discard-only
        "100:0:0:1::/64",
        "2001::/23",  # protocol assignments, Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
        "5f00::/16",  # segment routing
        "fc00::/7",  # unique local
        "fe80::/10",  # link-local
        "fec0::/10",  # site-local
        "ff00::/8",  # multicast
    )
)
"""`is_global` alone lies about several of these, and differently in each release of Python."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")


class ForbiddenAddress(Exception):
    """Such an address is not called. Its words name the host, and nothing else of the URL."""


def may_be_called(address: str) -> bool:
    """Whether it lies outside: an IPv4 address within an IPv6 one counts as itself."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            return False  # an interface of this machine
        inner = _inner(found)
        if inner is not None:
            return may_be_called(str(inner))
    if any(found in network for network in _DENIED if network.version == found.version):
        return False
    return found.is_global and not (found.is_multicast or found.is_reserved)


def _inner(address: IPv6Address) -> IPv4Address | None:
    """The IPv4 address that packets to this one end up at."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.sixtofour if address in _SIX_TO_FOUR else None


_asking = ThreadPoolExecutor(8, thread_name_prefix="resolve")
"""Threads of its own: a stranger's name server that never answers holds each for a minute, whoever waits for it."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """As the system does."""
    loop = asyncio.get_running_loop()
    answers = await loop.run_in_executor(_asking, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends to hosts that `allow_hosts` (patterns with *) names, at addresses outside; else `ForbiddenAddress`.

    `private`: also at this network's own. Each request has a connection of its own: one that was made for another
    name of the same address has shown that name's certificate.
    """

    def __init__(
        self,
        *,
        allow_hosts: Sequence[str] = ("*",),
        private: bool = False,
        resolver: Resolver = resolve,
        verify: ssl.SSLContext | bool = True,
    ) -> None:
        self._hosts = tuple(allow_hosts)
        self._private = private
        self._resolver = resolver
        self._http = httpx2.AsyncHTTPTransport(verify=verify, limits=httpx2.Limits(max_keepalive_connections=0))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send it to the first of the checked addresses that takes a connection."""
        host = request.url.raw_host.decode("ascii").strip("[]")
        addresses = await self._checked(request.url, host)
        extensions = dict(request.extensions)
        if not _is_address(host):
            extensions["sni_hostname"] = host.rstrip(".")  # and the certificate is checked against it
        failure: httpx2.TransportError | None = None
        for address in addresses:
            sent = httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,  # with the Host of the name
                stream=request.stream,
                extensions=extensions,
            )
            try:
                return await self._http.handle_async_request(sent)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error  # nothing was sent
        raise failure or httpx2.ConnectError(f"{host} has no address")

    async def aclose(self) -> None:
        """Let go of the connections."""
        await self._http.aclose()

    async def _checked(self, url: httpx2.URL, host: str) -> Sequence[str]:
        """Its addresses, all of which may be called."""
        if url.scheme not in _SCHEMES:
            raise ForbiddenAddress(f"only http and https addresses are called, and this one is {url.scheme or 'none'}")
        if not host:
            raise ForbiddenAddress("an address without a host can't be called")
        if not any(is_allowed(name, self._hosts) for name in {host, url.host}):  # as it is sent, and as it is written
            raise ForbiddenAddress(f"{host} is none of server.callbacks.allow_hosts")
        addresses = await self._resolver(host, url.port or _SCHEMES[url.scheme])
        inside = [each for each in addresses if not may_be_called(each)]
        if inside and not self._private:
            raise ForbiddenAddress(
                f"{host} is an address of a private network or of this machine; "
                "server.callbacks.allow_private lets such be called"
            )
        return addresses


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
