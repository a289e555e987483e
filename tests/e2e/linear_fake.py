"""A Linear of one's own on loopback: stateful, strict, and able to go wrong.

Every query and its variables are checked against Linear's own schema (linear_schema.py), and so are the answers: a
mistake of the fake is an HTTP 500 and stands in `mistakes`, which must be empty at its end. What it does (who may,
conflicts, limits) is written by hand from Linear's documentation; its error for an id that is taken is not documented,
so `world.conflict` can be set to any words.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from graphql import FieldNode, GraphQLError, OperationDefinitionNode, execute_sync, parse, validate

from tests.e2e.linear_hooks import Hooks
from tests.e2e.linear_schema import schema
from tests.e2e.linear_world import Api, Row, World

PERSONAL = "lin_api_ann"
APP = "lin_oauth_pilot"


@dataclass(slots=True)
class _Loss:
    name: str
    after: bool
    how: str


@dataclass(slots=True)
class Call:
    """One request: the field of Query or Mutation that it is about, its variables, and the HTTP status it got."""

    name: str
    variables: Row
    status: int = 0


@dataclass(slots=True)
class _Faults:
    losses: list[_Loss] = field(default_factory=list)
    each: dict[str, _Loss] = field(default_factory=dict)
    met: set[str] = field(default_factory=set)
    limit: Row | None = None


class LinearFake:
    """Runs in threads of its own until it is closed. `world` is what there is; change it to make things happen."""

    def __init__(self, webhook_url: str | None = None, webhook_secret: str = "lin_wh_secret") -> None:
        self.world = World()
        self.hooks = Hooks(self.world, webhook_url, webhook_secret)
        self.keys = {PERSONAL: self.world.ann, f"Bearer {APP}": self.world.app}
        self.calls: list[Call] = []
        self.mistakes: list[Exception] = []
        self.lock = threading.RLock()
        self._faults = _Faults()
        self._http = _Server(("127.0.0.1", 0), _Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/graphql"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self.hooks.close()
        wrong = self.mistakes + self.hooks.mistakes
        if error is None and wrong:
            raise AssertionError("the fake is wrong") from wrong[0]

    def lose_next(self, name: str, *, after: bool, how: str = "502") -> None:
        """Lose the next call of this field, before or after it took effect. `how`: 502, cut, garbage."""
        self._faults.losses.append(_Loss(name, after, how))

    def lose_each(self, *names: str, after: bool, how: str = "502") -> None:
        """Lose every different call of these fields once, as `lose_next` does."""
        self._faults.each = {name: _Loss(name, after, how) for name in names}

    def lost(self) -> int:
        """How many different calls `lose_each` has lost."""
        return len(self._faults.met)

    def limit(self, *, until: int | None = None, retry_after: int | None = None) -> None:
        """From now on every call is over the limit, which says that it ends at `until` (UTC ms), or nothing."""
        headers = {"x-ratelimit-requests-limit": "5000", "x-ratelimit-requests-remaining": "0"}
        if until is not None:
            headers["x-ratelimit-requests-reset"] = str(until)
        if retry_after is not None:
            headers["retry-after"] = str(retry_after)
        self._faults.limit = headers

    def unlimit(self) -> None:
        """It answers again."""
        self._faults.limit = None

    def label(self, issue: Row, name: str, actor: Row | None = None) -> None:
        """Somebody adds a label."""
        with self.lock:
            label = self.world.label(name)
            self.world.update(issue, actor or self.world.ann, labels=[*issue["labels"], label])

    def unlabel(self, issue: Row, name: str, actor: Row | None = None) -> None:
        """Somebody takes a label away."""
        with self.lock:
            labels = [label for label in issue["labels"] if label["name"] != name]
            self.world.update(issue, actor or self.world.ann, labels=labels)

    def edit(self, issue: Row, actor: Row | None = None, **changes: Any) -> None:
        """Somebody edits an issue: title, description."""
        with self.lock:
            self.world.update(issue, actor or self.world.ann, **changes)

    def says(self, issue: Row, body: str, user: Row | None = None) -> Row:
        """Somebody comments."""
        with self.lock:
            return self.world.comment(issue, body, user or self.world.ann)

    def delegate(self, issue: Row, creator: Row | None = None) -> Row:
        """Somebody gives the issue to the app: a session begins."""
        with self.lock:
            self.world.update(issue, creator or self.world.ann, delegate=self.world.app)
            return self.world.session(issue, creator or self.world.ann)

    def prompt(self, session: Row, body: str, user: Row | None = None, *, stop: bool = False) -> Row:
        """Somebody writes into a session, or stops it."""
        with self.lock:
            content = {"type": "prompt", "body": body}
            return self.world.activity(session, content, user or self.world.ann, signal="stop" if stop else None)

    def comments(self, issue: Row) -> list[str]:
        """What is written below an issue, oldest first."""
        with self.lock:
            return [comment["body"] for comment in self.world.of("Comment") if comment["issue"] is issue]

    def wait_for_call(self, name: str, times: int = 1, timeout: float = 30) -> None:
        """Wait until a field was asked for so often."""
        deadline = time.monotonic() + timeout
        while sum(call.name == name for call in self.calls) < times:
            if time.monotonic() > deadline:
                raise AssertionError(f"{name} was not called {times} times: {[call.name for call in self.calls]}")
            time.sleep(0.01)

    def answer(self, key: str, body: bytes) -> tuple[int, Row, dict[str, str]] | _Loss:
        """What a POST gets: status, JSON, headers; or that its answer is lost."""
        with self.lock:
            if self._faults.limit is not None:
                self.calls.append(Call("", {}, 400))
                return 400, _error("Rate limit exceeded", "ratelimited", "RATELIMITED"), self._faults.limit
            me = self.keys.get(key)
            if me is None:
                self.calls.append(Call("", {}, 401))
                words = "Authentication required, not authenticated"
                return 401, _error(words, "authentication error", "AUTHENTICATION_ERROR"), {}
            return self._answered(me, json.loads(body))

    def _answered(self, me: Row, asked: Row) -> tuple[int, Row, dict[str, str]] | _Loss:
        try:
            document = parse(asked["query"])
            for problem in validate(schema(), document):
                raise problem
        except GraphQLError as error:
            self.mistakes.append(error)
            return 400, _error(error.message, "graphql error", "GRAPHQL_VALIDATION_FAILED"), {}
        (operation,) = (part for part in document.definitions if isinstance(part, OperationDefinitionNode))
        (root,) = (part for part in operation.selection_set.selections if isinstance(part, FieldNode))
        call = Call(root.name.value, asked.get("variables") or {})
        self.calls.append(call)
        loss = self._loss(call)
        if loss is not None and not loss.after:
            return loss
        done = execute_sync(schema(), document, Api(self.world, me).root(), variable_values=call.variables)
        call.status, said = self._checked(done.formatted)
        if loss is not None:
            return loss
        return call.status, said, {}

    def _loss(self, call: Call) -> _Loss | None:
        loss = next((loss for loss in self._faults.losses if loss.name == call.name), None)
        if loss is not None:
            self._faults.losses.remove(loss)
            return loss
        what = f"{call.name} {json.dumps(call.variables, sort_keys=True)}"
        if call.name not in self._faults.each or what in self._faults.met:
            return None
        self._faults.met.add(what)
        return self._faults.each[call.name]

    def _checked(self, said: Any) -> tuple[int, Row]:
        """Linear's own errors are answers; any other is a mistake, the client's (variables) or the fake's."""
        for error in said.get("errors", ()):
            if not error.get("extensions"):
                self.mistakes.append(AssertionError(error["message"]))
                return 500, _error(error["message"], "internal error", "INTERNAL_SERVER_ERROR")
        return 200, dict(said)


def _error(message: str, kind: str, code: str) -> Row:
    return {"errors": [{"message": message, "extensions": {"type": kind, "code": code, "userError": True}}]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], fake: LinearFake) -> None:
        super().__init__(address, handler)
        self.fake = fake

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # who asked may have gone
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its headers
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path != "/graphql" or self.headers["content-type"] != "application/json":
            self._send(404, b"Not found", {"Content-Type": "text/plain"})
            return
        answer = self.server.fake.answer(self.headers["authorization"] or "", body)
        if isinstance(answer, tuple):
            status, said, headers = answer
            self._send(status, json.dumps(said).encode(), {"Content-Type": "application/json", **headers})
        elif answer.how == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif answer.how == "garbage":
            self._send(200, b"<html>signed in elsewhere</html>", {"Content-Type": "text/html"})
        else:
            self._send(502, b"<html>Bad gateway</html>", {"Content-Type": "text/html"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
