"""`POST /webhooks/…`: a vendor's webhook is verified and stored, then acknowledged; what it means is found out later.

No bearer token and no Host check here: the signature over the raw body is what counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from pilot.api.problems import problem
from pilot.clients.webhooks import LIMIT, Delivery, NotAccepted
from pilot.domain.errors import NotFound, PilotError
from pilot.domain.outside import Inbox

log = structlog.get_logger()
PATIENCE = 10.0
"""Seconds that a body may take to arrive; the vendors themselves wait no longer for the answer."""
AT_ONCE = 64 << 20
"""Bytes of bodies that are held at a time, of everybody: who sends one is known only when all of it is here."""
LISTENED = 32 << 20
"""Bytes after which a body is not listened to any more; GitHub's have 25 MiB at most."""

Verify = Callable[[Mapping[str, str], bytes], Delivery]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """What takes one vendor's webhooks.

    `verify` raises `NotAccepted`, or `NotFound` when there is no secret. `wants`: whether anything could follow from
    this one; the others are acknowledged and forgotten.
    """

    verify: Verify
    wants: Callable[[Delivery], bool] = lambda _delivery: True


@dataclass(slots=True)
class Webhooks:
    """The routes. `receivers` is asked each time, so that a reload counts at once; `nudge` is told the name of the
    source that has got something.
    """

    inbox: Inbox
    receivers: Callable[[], Mapping[str, Receiver]]
    nudge: Callable[[str], None]
    patience: float = PATIENCE
    _held: int = field(default=0)

    def endpoint(self, source: str) -> Callable[[Request], Awaitable[Response]]:
        """The route of one source, configured or not."""

        async def receive(request: Request) -> Response:
            receiver = self.receivers().get(source)
            if receiver is None:
                return problem(404, f"no webhooks of {source} are taken here")
            body = bytearray()
            try:
                async with asyncio.timeout(self.patience):
                    if (refusal := await self._read(request, body)) is not None:
                        return refusal
                return await self._take(source, receiver, request, bytes(body))
            except TimeoutError:
                return problem(408, f"the body did not arrive within {self.patience:g} s")
            except ClientDisconnect:
                return problem(400, "the body ended early")
            finally:
                self._held -= len(body)

        return receive

    async def _read(self, request: Request, body: bytearray) -> Response | None:
        """Fill `body`, never beyond the limit, whatever its announced length.

        What is too long is read on for a while and thrown away: who is cut off while sending may never see why.
        """
        too_large = problem(413, f"the body is longer than {LIMIT >> 20} MiB")
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced[:20]) > LISTENED:
            return too_large
        came = 0
        async for chunk in request.stream():
            came += len(chunk)
            if came > LISTENED:
                return too_large
            if came > LIMIT:
                continue
            if self._held + len(chunk) > AT_ONCE:
                return problem(503, "too much arrives at once; send it again")
            self._held += len(chunk)
            body += chunk
        return too_large if came > LIMIT else None

    async def _take(self, source: str, receiver: Receiver, request: Request, body: bytes) -> Response:
        try:
            delivery = receiver.verify(dict(request.headers), body)
        except NotAccepted as error:
            log.warning("webhook.refused", source=source, status=error.status, reason=str(error))
            return problem(error.status, str(error))
        except NotFound as error:
            return problem(404, str(error))
        if not receiver.wants(delivery):
            return JSONResponse({"status": "ignored"})
        try:
            new = await self.inbox.store(
                source, delivery.id, delivery.digest, delivery.event, delivery.action, body.decode(errors="replace")
            )
        except PilotError as error:
            log.error("webhook.not_stored", source=source, error=str(error))
            return problem(503, "it could not be stored; send it again")
        if not new:
            return JSONResponse({"status": "seen before"})
        self.nudge(source)
        return JSONResponse({"status": "accepted"}, 202)
