"""The git side of the fake GitHub: `git http-backend` itself behind Basic auth, on the same address as the API.

    with GitHubFake() as fake:
        host = GitHost(fake, tmp_path / "host")
        repo = fake.repo("acme/api", robot="write")
        host.take(repo, checkout)  # the repository's branches are those of a real one now

A token is good for what its account may do; without one a client is asked for it, as at GitHub. What was asked is kept
in `requests`, with what the client said who it is. Answers get lost on wish: `lose_next`.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tests.e2e.github_state import RANK, Repo

if TYPE_CHECKING:
    from tests.e2e.github_fake import GitHubFake

_PATH = re.compile(r"/(?P<repo>[\w.-]+/[\w.-]+)\.git(?P<rest>/.*)")
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_HTTP_EXPORT_ALL": "1",
}


@dataclass(frozen=True)
class Asked:
    """One request of git's. `who`: the account of its token, "" for none. `code`: as it was answered."""

    method: str
    path: str
    service: str
    authorization: str
    who: str
    code: int


class GitHost:
    """Bare repositories in a directory, served through the fake's own HTTP server."""

    def __init__(self, fake: GitHubFake, root: Path) -> None:
        self.fake = fake
        self.root = root
        self.requests: list[Asked] = []
        self.redirect = ""
        self._losses: list[tuple[str, bool, int]] = []
        fake.git_host = self

    def take(self, repo: Repo, checkout: Path) -> Path:
        """Have the fake's repository be a real one, with the branches of that checkout."""
        bare = self.root / f"{repo.full_name}.git"
        bare.parent.mkdir(parents=True, exist_ok=True)
        self.git("clone", "--quiet", "--bare", str(checkout), str(bare))
        self.git("-C", str(bare), "config", "http.receivepack", "true")
        repo.git = bare
        return bare

    @staticmethod
    def git(*args: str) -> str:
        """Git on this side of the wire."""
        done = subprocess.run(["git", *args], env=ENVIRONMENT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def lose_next(self, service: str, *, after: bool = True, code: int = 502) -> None:
        """The next POST to `git-receive-pack` or `git-upload-pack` is done (`after`) or not; code 0 breaks it off."""
        self._losses.append((service, after, code))

    def takes(self, path: str) -> bool:
        """Whether it is git that asks."""
        return _PATH.fullmatch(urlsplit(path).path) is not None

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """One request, from its body to the answer's."""
        body = _body(handler)
        code, headers, data = self._answered(handler, body)
        if code == 0:
            handler.close_connection = True
            handler.connection.close()
            return
        handler.send_response(code)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _answered(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        parts = urlsplit(handler.path)
        found = _PATH.fullmatch(parts.path)
        assert found is not None
        service = "git-receive-pack" if "git-receive-pack" in handler.path else "git-upload-pack"
        given = handler.headers.get("authorization", "")
        who = self._who(given)

        def said(
            code: int, headers: list[tuple[str, str]] | None = None, data: bytes = b""
        ) -> tuple[int, list[tuple[str, str]], bytes]:
            with self.fake.lock:
                self.requests.append(Asked(handler.command, parts.path, service, given, who or "", code))
            return code, headers or [], data

        if self.redirect:
            return said(302, [("location", self.redirect + handler.path)])
        repo = self.fake.repos.get(unquote(found["repo"]))
        role = "none" if repo is None or who is None else repo.roles.get(who, "none" if repo.private else "read")
        if who is None and (given or repo is None or repo.private or service == "git-receive-pack"):
            return said(401, [("www-authenticate", 'Basic realm="GitHub"')], b"Repository not found.")
        if repo is None or repo.git is None or (repo.private and role == "none"):
            return said(404, data=b"Repository not found.")
        if service == "git-receive-pack" and RANK.index(role) < RANK.index("write"):
            return said(403, data=f"Permission to {repo.full_name}.git denied to {who}.".encode())
        loss = next((loss for loss in self._losses if loss[0] == service and handler.command == "POST"), None)
        if loss is not None:
            self._losses.remove(loss)
            if not loss[1]:
                return said(loss[2])
        code, headers, data = self._served(
            handler, f"/{repo.git.relative_to(self.root)}{found['rest']}", parts.query, who, body
        )
        return said(code, headers, data) if loss is None else said(loss[2])

    def _who(self, given: str) -> str | None:
        scheme, _, text = given.partition(" ")
        if scheme.lower() != "basic":
            return None
        user = self.fake.tokens.get(base64.b64decode(text).decode().partition(":")[2])
        return None if user is None else user.login

    def _served(
        self, handler: BaseHTTPRequestHandler, path: str, query: str, who: str | None, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        env = ENVIRONMENT | {
            "GIT_PROJECT_ROOT": str(self.root),
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "REQUEST_METHOD": handler.command,
            "CONTENT_TYPE": handler.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_CONTENT_ENCODING": handler.headers.get("content-encoding", ""),
            "GIT_PROTOCOL": handler.headers.get("git-protocol", ""),
            "REMOTE_ADDR": "127.0.0.1",
        }
        if who is not None:
            env["REMOTE_USER"] = who
        done = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=False)
        head, _, data = done.stdout.partition(b"\r\n\r\n")
        headers = [
            (name, value.strip()) for name, _, value in (line.partition(":") for line in head.decode().splitlines())
        ]
        status = next((value for name, value in headers if name.lower() == "status"), "200")
        return int(status.split()[0]), [pair for pair in headers if pair[0].lower() != "status"], data


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("transfer-encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("content-length", "0")))
    parts = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)
