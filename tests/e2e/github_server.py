"""The HTTP side of the fake GitHub: who asks, may they, is it as described, and does the answer arrive."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import jwt

from tests.e2e import github_graphql
from tests.e2e.github_contract import check_request, check_response
from tests.e2e.github_routes import ROUTES, Call, Reply, Say
from tests.e2e.github_state import Repo

if TYPE_CHECKING:
    from tests.e2e.github_fake import AppRegistration, GitHubFake


@dataclass(frozen=True)
class Recorded:
    """A request as it came, and how it was answered: 0 for a broken connection."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    login: str
    code: int
    at: float


@dataclass
class Loss:
    """Requests whose answers get lost."""

    method: str
    path: re.Pattern[str]
    after: bool
    code: int
    times: int


@dataclass(frozen=True)
class Sent:
    """A whole answer; `code` 0: the connection breaks."""

    code: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Server:
    """Listens on 127.0.0.1; the logs are at "localhost", which is another host to a client."""

    def __init__(self, fake: GitHubFake, prefix: str) -> None:
        self.fake = fake
        self.prefix = prefix
        self._under_way: list[str] = []
        self._http = _Http(("127.0.0.1", 0), self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Sent:
        """One request, from its bytes to the answer's."""
        self._under_way.append(target)
        self.fake.at_once = max(self.fake.at_once, len(self._under_way))
        try:
            return self._answered(method, target, headers, body)
        finally:
            self._under_way.remove(target)

    def _answered(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Sent:
        if target.startswith("/_logs/"):
            return self._log(target, headers)
        target = self._present(target.removeprefix(self.prefix))
        if target == "/api/graphql" and self.prefix == "/api/v3":
            target = "/graphql"
        if target != "/graphql" and (violation := self._violation(check_request, method, target, body)):
            return Sent(500, json.dumps({"message": violation}).encode())
        with self.fake.lock:
            call = Call(self.fake, method, urlsplit(target).path, dict(parse_qsl(urlsplit(target).query)))
            call.body = json.loads(body) if body else None
            reply = self._reply(call, headers)
            sent = self._sent(call, reply, target, headers)
            query, who = call.query, call.user.login if call.user else ""
            now = self.fake.clock()
            self.fake.requests.append(Recorded(method, call.path, query, call.body, who, sent.code, now))
        return sent

    def _reply(self, call: Call, headers: dict[str, str]) -> Reply:
        try:
            self._admit(call, headers.get("authorization", ""))
        except Say as refusal:
            return refusal.reply
        if self.fake.limited is not None:
            return Reply(*self.fake.limited())
        loss = next((loss for loss in self.fake.losses if _hits(loss, call)), None)
        if loss is not None:
            loss.times -= 1
            if not loss.after:
                return Reply(loss.code, {"message": "Server Error"})
        try:
            reply = self._routed(call)
        except Say as refusal:
            reply = refusal.reply
        return reply if loss is None else Reply(loss.code, {"message": "Server Error"})

    def _routed(self, call: Call) -> Reply:
        if call.path == "/graphql":
            return github_graphql.answer(call)
        for method, pattern, route in ROUTES:
            found = pattern.fullmatch(call.path)
            if method == call.method and found:
                parts = {name: unquote(text) for name, text in found.groupdict().items()}
                repo = parts.pop("repo", None)
                if repo is not None:
                    if moved := self.fake.moved.get(repo):
                        return self._elsewhere(call, moved, repo)
                    call.repo = self.fake.repos.get(repo)
                    if call.repo is None or not call.may("read"):
                        raise Say.not_found()
                return route(call, **parts)
        raise Say.not_found()

    def _elsewhere(self, call: Call, repo: Repo, old: str) -> Reply:
        rest = call.path.removeprefix(f"/repos/{old}") + (f"?{urlencode(call.query)}" if call.query else "")
        place = f"{self.fake.url}/repositories/{repo.id}{rest}"
        code = 301 if call.method == "GET" else 307
        said = {"message": "Moved Permanently", "url": place, "documentation_url": "https://docs.github.com"}
        return Reply(code, said, {"location": place})

    def _present(self, target: str) -> str:
        """The same by the repository's name, where its number was used."""
        found = re.match(r"/repositories/(\d+)", target)
        repos = self.fake.repos.values()
        repo = next((repo for repo in repos if found and repo.id == int(found[1])), None)
        return target if repo is None or found is None else f"/repos/{repo.full_name}{target[found.end() :]}"

    def _admit(self, call: Call, authorization: str) -> None:
        credential = authorization.partition(" ")[2]
        call.app = self._app(credential) if call.path.startswith("/app") else None
        call.user = None if call.app else self.fake.tokens.get(credential)
        if call.app is None and call.user is None:
            raise Say(401, "Bad credentials")
        call.installation = credential.startswith("ghs_")
        call.credential = credential

    def _app(self, credential: str) -> AppRegistration | None:
        for app in self.fake.apps.values():
            try:
                jwt.decode(credential, app.public_key, algorithms=["RS256"], issuer=str(app.id))
            except jwt.PyJWTError:
                continue
            return app
        return None

    def _sent(self, call: Call, reply: Reply, target: str, asked: dict[str, str]) -> Sent:
        if reply.code == 0:
            return Sent(0)
        body = b"" if reply.data is None else json.dumps(reply.data).encode()
        headers = {"x-ratelimit-resource": "core", **reply.headers}
        code = reply.code
        if call.method == "GET" and code == 200:
            tag = hashlib.sha256(call.credential.encode() + body + reply.headers.get("link", "").encode()).hexdigest()
            headers["etag"] = f'W/"{tag}"'
            if asked.get("if-none-match") == headers["etag"]:
                code, body = 304, b""
        self._count(call, code, headers)
        if target == "/graphql":
            return Sent(code, body, headers)
        violation = self._violation(check_response, call.method, target, code, body)
        return Sent(500, json.dumps({"message": violation}).encode()) if violation else Sent(code, body, headers)

    def _count(self, call: Call, code: int, headers: dict[str, str]) -> None:
        if call.user is None:
            return
        used = self.fake.used.get(call.user.login, 0) + (code != 304)
        self.fake.used[call.user.login] = used
        now = self.fake.clock()
        rate = {"limit": self.fake.limit, "remaining": max(self.fake.limit - used, 0), "reset": int(now) + 3600}
        for name, value in rate.items():
            headers.setdefault(f"x-ratelimit-{name}", str(value))

    def _violation(self, check: Any, *what: Any) -> str:
        try:
            check(*what)
        except AssertionError as error:
            self.fake.violations.append(str(error))
            return str(error)
        return ""

    def _log(self, target: str, headers: dict[str, str]) -> Sent:
        """Another company's server: it must not be shown a credential."""
        if "authorization" in headers or headers.get("host", "").startswith("127."):
            self.fake.violations.append(f"{target}: asked at {headers.get('host')}, with {sorted(headers)}")
        number = int(urlsplit(target).path.rpartition("/")[2])
        for repo in self.fake.repos.values():
            if number in repo.logs and target.endswith("?sig=secret"):
                return Sent(200, repo.logs[number], {"content-type": "text/plain"})
        return Sent(404)


def _hits(loss: Loss, call: Call) -> bool:
    return loss.times > 0 and loss.method == call.method and loss.path.search(call.path) is not None


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], server: Server) -> None:
        super().__init__(address, _Handler)
        self.server = server

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is fine; anything else is a mistake of the fake's."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.server.fake.violations.append(f"the fake failed: {error!r}")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its headers
    server: _Http

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def date_time_string(self, timestamp: float | None = None) -> str:
        """By the fake's clock."""
        return super().date_time_string(self.server.server.fake.clock() if timestamp is None else timestamp)

    def handle_one_request(self) -> None:
        """The base class looks for a method of the verb's name; here all verbs go one way."""
        self.raw_requestline = self.rfile.readline(65_537)
        if not self.raw_requestline:
            self.close_connection = True
        elif self.parse_request():
            self._answer()

    def _answer(self) -> None:
        git = self.server.server.fake.git_host
        if git is not None and git.takes(self.path):
            git.answer(self)
            return
        length = int(self.headers.get("content-length", "0"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        sent = self.server.server.answer(self.command, self.path, headers, self.rfile.read(length))
        if sent.code == 0:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        self.send_response(sent.code)
        for name, value in {"content-type": "application/json; charset=utf-8", **sent.headers}.items():
            self.send_header(name, value)
        if sent.code not in (204, 304):
            self.send_header("content-length", str(len(sent.body)))
        self.end_headers()
        self.wfile.write(sent.body)
