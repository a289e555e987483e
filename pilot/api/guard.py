"""What stands before the API: whose page may ask, who calls, how much of it, and a row for every change asked for.

Nothing here is there for a browser of another site: no CORS header is ever sent.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from urllib.parse import parse_qsl, urlsplit

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pilot.api.limits import Bodies, Rates, Refused, neighbourhood, plain_address
from pilot.api.problems import problem, status_of
from pilot.domain import access
from pilot.domain.access import Audit, Call, Caller, Tokens
from pilot.domain.errors import PilotError
from pilot.domain.ports import Clock
from pilot.domain.text import one_line

log = structlog.get_logger()
GATHER = 0.02
"""Seconds in which the rows of calls are gathered into one write."""
FAILURES = 10.0
"""Failed authentications per second that a peer is answered with 401."""
_OPEN = ("/livez", "/readyz")
_HOOKS = "/webhooks/"
_DESCRIPTION = "/api/v1/openapi.json"
_READING = ("GET", "HEAD")
_HOST = re.compile(r"(\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9._-]{0,252}))(?::([0-9]{1,5}))?", re.ASCII)
_WATCHED = frozenset(
    (b"host", b"origin", b"sec-fetch-site", b"authorization", b"content-type", b"content-length", b"transfer-encoding")
)
_NEVER_TWICE = (b"host", b"authorization", b"content-length", b"origin")
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))
_LOOPBACK, _LOOPBACK_6 = ip_network("127.0.0.0/8"), ip_network("::1/128")
_REMEMBERED = 256  # Host headers that were looked at before
_UNIFORM = "this needs a token that counts, sent as `Authorization: Bearer …`"


class Hosts:
    """The names that this server goes by. A page that has its name point here (DNS rebinding) has none of them."""

    def __init__(self, names: Iterable[str], origins: Iterable[str] = ()) -> None:
        self._names = frozenset(name.lower().removesuffix(".") for name in names)
        self._origins = frozenset(origins)
        self._allowed: set[tuple[str, str]] = set()

    @classmethod
    def of(cls, bound: str, public_url: str | None, allowed: Iterable[str]) -> Hosts:
        """Loopback, the address it listens on, that of `server.public_url`, and `server.allowed_hosts`."""
        public = urlsplit(public_url or "")
        origin = f"{public.scheme}://{public.netloc}".lower()
        names = [*allowed, *([public.hostname] if public.hostname else []), *([bound] if _is_named(bound) else [])]
        return cls(("localhost", *names), [origin] if public.netloc else [])

    def allow(self, host: str, local: str) -> bool:
        """Whether a Host header means this server; `local` is the address at which the connection arrived."""
        if (host, local) in self._allowed:
            return True
        allowed = self._allow(host, local)
        if allowed and len(self._allowed) < _REMEMBERED:
            self._allowed.add((host, local))
        return allowed

    def _allow(self, host: str, local: str) -> bool:
        found = _HOST.fullmatch(host.lower())
        if found is None or int(found[2] or 0) > 65535:
            return False
        name = found[1].removesuffix(".").strip("[]")
        if name in self._names or host.lower() in self._names:
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        # An address in place of a name is nobody's to point elsewhere; but only one that is ours.
        return address == plain_address(local) or address in _LOOPBACK or address in _LOOPBACK_6

    def allow_origin(self, origin: str, host: str) -> bool:
        """Whether a page from there is this server's own."""
        origin = origin.lower()
        return origin in self._origins or origin in (f"http://{host.lower()}", f"https://{host.lower()}")


class Guard:
    """An ASGI application around another. `rate`: requests per second and token.

    The row of a call that needs the scope `admin` is durable before it is answered. Of the others it is handed to
    the store within `GATHER` of the answer, and durable milliseconds later: who kills pilot in between may lose these
    rows, but neither the changes nor the events that tell of them. What is refused here has no row: nothing
    was tried.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Tokens,
        audit: Audit,
        hosts: Hosts,
        clock: Clock,
        rate: float = 1000,
        bodies: Bodies | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._audit = audit
        self._hosts = hosts
        self._clock = clock
        self._rates = Rates(rate)
        self._failures = Rates(FAILURES, FAILURES)
        self._bodies = bodies or Bodies()
        self._monotonic = monotonic
        self._owed: list[Call] = []
        self._writing: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        elif (path := scope["path"]) in _OPEN or path.startswith(_HOOKS):
            await self._app(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def settled(self) -> None:
        """Every row that was owed is written."""
        while self._writing is not None:
            await asyncio.wait({self._writing})

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = str((scope.get("client") or ("",))[0])
        try:
            headers = _headers(scope)
            self._check_page(scope, headers)
            if scope["path"] == _DESCRIPTION:
                await self._app(scope, receive, _with_headers(send))
                return
            caller = await self._caller(scope, headers, peer)
            if scope["method"] in _READING:
                body = None
            else:
                body = await self._body(headers, receive)
        except Refused as refusal:
            await self._refuse(scope, peer, refusal, receive, send)
            return
        except PilotError as error:
            log.warning("http.not_checked", path=_shown(scope), error=str(error))
            await problem(status_of(error), "who calls can't be checked now; try again")(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["caller"] = caller
        state["abort"] = _abort(send)
        if scope["method"] in _READING:
            await self._app(scope, receive, _with_headers(send))
            return
        try:
            await self._changing(scope, _replaying(body, receive), send, caller)
        finally:
            self._bodies.release(body or b"")

    def _check_page(self, scope: Scope, headers: dict[bytes, str]) -> None:
        host = headers.get(b"host", "")
        local = str((scope.get("server") or ("",))[0])
        if not self._hosts.allow(host, local):
            raise Refused(
                403, f"{one_line(host, 100)!r} is none of this server's names; server.allowed_hosts can add one"
            )
        origin = headers.get(b"origin")
        if origin is not None and not self._hosts.allow_origin(origin, host):
            raise Refused(403, "pages of other origins may not ask this server")
        site = headers.get(b"sec-fetch-site", "none").lower()
        if scope["method"] not in _READING and site not in ("same-origin", "none"):
            raise Refused(403, "pages of other sites may not ask this server to change anything")

    async def _caller(self, scope: Scope, headers: dict[bytes, str], peer: str) -> Caller:
        query: bytes = scope.get("query_string", b"")
        if b"token" in query.lower() and any(
            name.lower() in ("token", "access_token") for name, _ in parse_qsl(query.decode("latin-1"), True)
        ):
            raise Refused(400, "addresses end up in logs: send the token as `Authorization: Bearer …`, never in one")
        kind, _, token = headers.get(b"authorization", "").partition(" ")
        caller = await self._tokens.check(token.strip() if kind.lower() == "bearer" else "")
        now = self._monotonic()
        if caller is None:
            if not self._failures.take(neighbourhood(peer), now):
                raise Refused(429, "too many failed authentications from your address; wait a second")
            raise Refused(401, _UNIFORM)
        if not self._rates.take(caller.token, now):
            raise Refused(429, "too many requests with this token; server.rate_limit says how many are served")
        return Caller(caller.token, caller.name, caller.scopes, peer)

    async def _body(self, headers: dict[bytes, str], receive: Receive) -> bytes | None:
        length = headers.get(b"content-length", "")
        announced = int(length) if length.isdecimal() and len(length) < 19 else None
        if b"transfer-encoding" not in headers and not announced:
            return None
        if headers.get(b"content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "a body has to be JSON, sent as `Content-Type: application/json`")
        return await self._bodies.read(receive, announced)

    async def _refuse(self, scope: Scope, peer: str, refusal: Refused, receive: Receive, send: Send) -> None:
        if refusal.status != 429:
            log.warning("http.refused", path=_shown(scope), status=refusal.status, peer=peer, reason=refusal.words)
        headers = {"www-authenticate": 'Bearer realm="pilot"'} if refusal.status == 401 else {}
        await problem(refusal.status, refusal.words, headers=headers)(scope, receive, _with_headers(send))

    async def _changing(self, scope: Scope, receive: Receive, send: Send, caller: Caller) -> None:
        told = False

        async def watched(message: Message) -> None:
            nonlocal told
            if message["type"] == "http.response.start" and not told:
                told = True
                await self._tell(scope, caller, message["status"])
                _add_headers(message)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if not told:  # it ended without an answer
                await self._tell(scope, caller, 500)

    async def _tell(self, scope: Scope, caller: Caller, status: int) -> None:
        state = scope["state"]
        worker = state.get("worker")
        actor = f"{caller.name} ({worker})" if worker else caller.name
        call = Call(
            at=self._clock(), token=caller.token, actor=actor, peer=caller.peer, method=scope["method"],
            path=scope["path"], status=status,
        )  # fmt: skip
        self._owed.append(call)
        if state.get("needs") is access.Scope.ADMIN:
            calls, self._owed = self._owed, []  # all that were answered before, too: in their order
            await self._write(*calls)
        elif self._writing is None:
            self._writing = asyncio.create_task(self._write_owed())

    async def _write_owed(self) -> None:
        try:
            while self._owed:
                await asyncio.sleep(GATHER)
                calls, self._owed = self._owed, []
                if calls:
                    await self._write(*calls)
        finally:
            self._writing = None

    async def _write(self, *calls: Call) -> None:
        try:
            await self._audit.write(*calls)
        except PilotError as error:  # what was asked is done: to answer that it failed would be wrong
            for call in calls:
                log.error(
                    "audit.not_written", error=str(error), token=call.token, actor=call.actor, path=call.path,
                    status=call.status,
                )  # fmt: skip


def _headers(scope: Scope) -> dict[bytes, str]:
    found: dict[bytes, str] = {}
    for name, value in scope["headers"]:
        if name in _WATCHED:
            if name in found and name in _NEVER_TWICE:
                raise Refused(400, f"the header {name.decode('latin-1')} is there twice")
            found[name] = value.decode("latin-1")
    return found


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            _add_headers(message)
        await send(message)

    return sending


def _add_headers(message: Message) -> None:
    headers = list(message.get("headers", ()))
    there = {name for name, _ in headers}
    message["headers"] = headers + [header for header in _ALWAYS if header[0] not in there]


def _replaying(body: bytes | None, receive: Receive) -> Receive:
    """The body that was read already, then what the connection says."""
    if body is None:
        return receive
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _abort(send: Send) -> Callable[[], None]:
    """Ends the connection at once, whatever is still to be sent; nothing under a server that has no such thing."""
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    abort = getattr(transport, "abort", None)
    return abort if callable(abort) else lambda: None


def _shown(scope: Scope) -> str:
    return one_line(scope["path"], 200)


def _is_named(bound: str) -> bool:
    """Whether a listening address is one that a client would name, and not "all of them"."""
    try:
        return not ip_address(bound).is_unspecified
    except ValueError:
        return bool(bound)
