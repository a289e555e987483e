"""How much one may ask at a time: requests per second, and a body's size and patience."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.types import Receive

BODY = 1 << 20
"""Bytes of a body, at most."""
LISTENED = 16 << 20
"""Bytes after which a body that is too long is not listened to any more; who is cut off may never see why."""
AT_ONCE = 64 << 20
"""Bytes of bodies that are held at a time, of everybody."""
PATIENCE = 10.0
"""Seconds that a body may take to arrive."""
_REMEMBERED = 4096  # keys of a bucket each


class Refused(Exception):
    """The request is answered with this status and these words, before anything was tried."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status
        self.words = words


class Rates:
    """A bucket per key: `rate` per second, and `burst` (twice as many) at once. Forgets who came longest ago."""

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._burst = rate * 2 if burst is None else burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> bool:
        """Whether one more may come; `now` in seconds, of a clock that never goes back."""
        left, at = self._buckets.pop(key, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        granted = left >= 1
        self._buckets[key] = (left - 1 if granted else left, now)
        if len(self._buckets) > _REMEMBERED:
            self._buckets.popitem(last=False)
        return granted


class Bodies:
    """Reads bodies whole, within their limits; `held` bytes are in hand."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self.held = 0

    async def read(self, receive: Receive, announced: int | None) -> bytes:
        """A whole body; give it back by `release`. Raises `Refused`."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._patience):
                await self._read(receive, announced or 0, body)
        except TimeoutError:
            self.held -= len(body)
            raise Refused(408, f"the body did not arrive within {self._patience:g} s") from None
        except BaseException:
            self.held -= len(body)
            raise
        return bytes(body)

    def release(self, body: bytes) -> None:
        """It is not needed any more."""
        self.held -= len(body)

    async def _read(self, receive: Receive, announced: int, body: bytearray) -> None:
        too_large = Refused(413, f"the body is longer than {BODY >> 20} MiB")
        if announced > LISTENED:
            raise too_large
        came, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                raise Refused(400, "the body ended early")
            chunk: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            came += len(chunk)
            if came > LISTENED:
                raise too_large
            if came > BODY:
                continue
            if self.held + len(chunk) > AT_ONCE:
                raise Refused(503, "too much arrives at once; send it again")
            self.held += len(chunk)
            body += chunk
        if came > BODY:
            raise too_large


def plain_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, of IPv4 also where a socket for both kinds shows it as IPv6; None for what is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def neighbourhood(peer: str) -> str:
    """What is counted as one peer: an address, of IPv6 the network of 64 bits that one machine may have whole."""
    address = plain_address(peer)
    return str(int(address) >> 64) if isinstance(address, IPv6Address) else peer
