"""Webhooks, held to what the vendors' own code says of the same bytes, and to payloads that GitHub really sent."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pilot.clients.webhooks import LIMIT, GitHubWebhook, LinearWebhook, Malformed, NotAccepted, TooLarge, Untrusted
from tests.e2e.github_fake import GitHubFake

HERE = Path(__file__).parent
EXAMPLES = HERE / "node_modules/@octokit/webhooks-examples/api.github.com/index.json"
SECRET = "It's a Secret to Everybody"


def vendors(questions: Sequence[Mapping[str, Any]]) -> list[Any]:
    asked = [{**each, "body": base64.b64encode(each["body"]).decode()} for each in questions]
    done = subprocess.run(
        ["node", HERE / "vendors.mjs"], input=json.dumps(asked), capture_output=True, text=True, timeout=100, check=True
    )
    answers: list[Any] = json.loads(done.stdout)
    return answers


def signature(body: bytes, secret: str = SECRET) -> str:
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def from_github(body: bytes, **more: str) -> dict[str, str]:
    return {
        "x-hub-signature-256": f"sha256={signature(body)}",
        "x-github-event": "issues",
        "x-github-delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        "content-type": "application/json",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }


def status(hook: GitHubWebhook | LinearWebhook, headers: Mapping[str, str], body: bytes) -> int:
    try:
        hook.delivery(headers, body)
    except NotAccepted as refusal:
        return refusal.status
    return 200


class TestGitHub:
    def test_the_example_of_githubs_documentation(self) -> None:
        headers = from_github(
            b"Hello, World!",
            x_hub_signature_256="sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
        )
        with pytest.raises(Malformed, match="no JSON"):  # so the signature is right
            GitHubWebhook([SECRET]).delivery(headers, b"Hello, World!")

    def test_every_recorded_payload_signed_by_the_vendors_own_code(self) -> None:
        recorded = [
            (each["name"], json.dumps(payload, ensure_ascii=False).encode())
            for each in json.loads(EXAMPLES.read_bytes())
            for payload in each["examples"]
        ]
        signed = vendors([{"ask": "github_sign", "secret": SECRET, "body": body} for _, body in recorded])
        hook = GitHubWebhook([SECRET])

        assert len(recorded) > 100
        for (name, body), sign in zip(recorded, signed, strict=True):
            delivery = hook.delivery(from_github(body, x_hub_signature_256=sign, x_github_event=name), body)
            assert (delivery.event, delivery.payload) == (name, json.loads(body))
            assert delivery.action == json.loads(body).get("action", "")
            assert delivery.digest == hashlib.sha256(body).hexdigest()

    def test_the_same_verdict_as_the_vendors_own_code(self) -> None:
        body = '{"zen": "Völlig. ✓ \\u0000"}'.encode()
        good = f"sha256={signature(body)}"
        tried = [
            good,
            good.upper(),
            good.removeprefix("sha256="),
            good.replace("sha256", "sha1"),
            good + " ",
            good[:-1],
            f"sha256={signature(body, 'other')}",
            f"sha256={signature(body + b' ')}",
            "sha256=",
            "é" * 71,
        ]
        verdicts = vendors([{"ask": "github", "secret": SECRET, "body": body, "signature": each} for each in tried])
        hook = GitHubWebhook([SECRET])

        ours = [status(hook, from_github(body, x_hub_signature_256=each), body) for each in tried]
        assert ours == [200 if verdict else 401 for verdict in verdicts]
        assert verdicts == [True] + [False] * 9

    def test_two_secrets_while_one_is_changed_for_the_other(self) -> None:
        body = b"{}"
        for secret in ("old", "new", "neither"):
            headers = from_github(body, x_hub_signature_256=f"sha256={signature(body, secret)}")
            assert status(GitHubWebhook(["old", "new"]), headers, body) == (401 if secret == "neither" else 200)

    @pytest.mark.parametrize(
        ("changes", "body", "code"),
        [
            ({"x_hub_signature_256": ""}, b"{}", 400),
            ({"x_github_delivery": ""}, b"{}", 400),
            ({"x_github_delivery": "a\nb"}, b"{}", 400),
            ({"x_github_event": "../issues"}, b"{}", 400),
            ({"content_type": "application/x-www-form-urlencoded"}, b"payload=%7B%7D", 400),
            ({}, b"[]", 400),
            ({}, b"null", 400),
            ({}, b"", 400),
            ({}, b'{"a": NaN}', 400),
            ({}, b"\xef\xbb\xbf{}", 400),
            ({}, b'{"a":' * 100_000, 400),
            ({}, b'{"a": ' + b"9" * 5000 + b"}", 400),
            ({}, b'{"a": "' + b"x" * LIMIT + b'"}', 413),
            ({"content_type": "application/json; charset=utf-8"}, b'{"action": 7}', 200),
        ],
        ids=str,
    )
    def test_what_is_no_webhook(self, changes: dict[str, str], body: bytes, code: int, request: Any) -> None:
        assert status(GitHubWebhook([SECRET]), from_github(body, **changes), body) == code

    @pytest.mark.parametrize("secrets", [[], [""], ["good", ""]])
    def test_no_secret_is_an_error_at_the_start(self, secrets: list[str]) -> None:
        for kind in (GitHubWebhook, LinearWebhook):
            with pytest.raises(ValueError, match="without a secret"):
                kind(secrets)


class TestLinear:
    def test_the_same_verdict_as_the_vendors_own_code(self) -> None:
        now = time.time_ns() // 1_000_000

        def sent(at: Any) -> bytes:
            return json.dumps({"type": "Issue", "action": "update", "webhookTimestamp": at}).encode()

        good = sent(now)
        everything: list[Any] = [str(now), None, True, [now], {}, 0, -now, now / 1000]
        tried: list[tuple[bytes, str | None]] = [
            (good, signature(good)),
            (good, signature(good).upper()),
            (good, f"sha256={signature(good)}"),
            (good, signature(good) + " x"),
            (good, signature(good, "other")),
            (good, signature(good)[:-1]),
            (good, None),
            (good, ""),
        ]
        for body in (
            *(sent(now + off) for off in (-70_000, -50_000, 50_000, 70_000, 0.5)),
            *(sent(at) for at in everything),
            b'{"type": "Issue"}',
            b'{"webhookTimestamp": 1e999}',
            b'{"webhookTimestamp": NaN}',
            f'{{"webhookTimestamp": 1, "webhookTimestamp": {now}}}'.encode(),
            f'{{"webhookTimestamp": {now}, "text": "\xff"}}'.encode("latin-1"),
            f'\ufeff{{"webhookTimestamp": {now}}}'.encode(),
            f'{{"webhookTimestamp": {now}}} trailing'.encode(),
            f"[{now}]".encode(),
            b"null",
            b"5",
            b"",
            f'{{"webhookTimestamp": {now}, "x": "'.encode() + b"x" * LIMIT + b'"}',
        ):
            tried.append((body, signature(body)))
        verdicts = vendors([{"ask": "linear", "secret": SECRET, "body": b, "signature": s} for b, s in tried])
        hook = LinearWebhook([SECRET])

        ours = [status(hook, {} if s is None else {"linear-signature": s}, body) for body, s in tried]

        # where the SDK answers 400 for all that is invalid, a wrong signature or time is a 401 here
        assert [400 if code == 401 else code for code in ours] == verdicts
        assert [code for code in verdicts if code == 200] == [200] * 6
        assert 413 in verdicts

    def test_what_is_known_of_a_delivery_is_what_was_signed(self) -> None:
        body = json.dumps({"type": "Issue", "action": "create", "webhookTimestamp": 1_000_000}).encode()
        hook = LinearWebhook(["old", SECRET], clock=lambda: 1_060_000)
        headers = {"linear-signature": signature(body), "linear-event": "Comment", "linear-timestamp": "1"}

        delivery = hook.delivery({**headers, "linear-delivery": "234d1a4e-b617-4388-90fe-adc3633d6b72"}, body)
        nameless = hook.delivery(headers, body)

        assert (delivery.event, delivery.action) == ("Issue", "create")
        assert delivery.id == "234d1a4e-b617-4388-90fe-adc3633d6b72"
        assert nameless.id == delivery.digest == hashlib.sha256(body).hexdigest()
        with pytest.raises(Untrusted, match="too long ago"):
            LinearWebhook([SECRET], clock=lambda: 1_060_001).delivery(headers, body)

    @pytest.mark.parametrize("sent", ["true", "null", '"1000000"', "[]", "1e999"])
    def test_a_time_that_is_none(self, sent: str) -> None:
        body = f'{{"webhookTimestamp": {sent}}}'.encode()
        with pytest.raises(Malformed, match="no number"):
            LinearWebhook([SECRET], clock=lambda: 1).delivery({"linear-signature": signature(body)}, body)

    def test_order(self) -> None:
        body = b"x" * (LIMIT + 1)
        with pytest.raises(Malformed, match="no signature"):
            LinearWebhook([SECRET]).delivery({}, body)
        with pytest.raises(TooLarge):
            LinearWebhook([SECRET]).delivery({"linear-signature": "wrong"}, body)


class Inbox:
    """Takes webhooks on loopback and verifies each."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, str]] = []
        self.bodies: list[tuple[bytes, str]] = []
        self.codes: Iterator[int] = itertools.repeat(202)
        hook, inbox = GitHubWebhook([SECRET]), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                delivery = hook.delivery(headers, body)
                inbox.events.append((delivery.event, delivery.action, delivery.id))
                inbox.bodies.append((body, headers["x-hub-signature-256"]))
                self.send_response(next(inbox.codes))
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/webhooks/github"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    yield inbox
    inbox.close()


def test_the_fake_github_tells_of_every_change_as_github_does(inbox: Inbox) -> None:
    with GitHubFake() as fake:  # leaving it fails for a payload that GitHub's description does not have
        fake.hooks.target(inbox.url, SECRET)
        repo = fake.repo("acme/api", mona="admin")
        number = fake.issue(repo, "Crash", "It fails ✓", labels=["pilot"])
        fake.edit(repo, number, title="Crash!", body="It fails.")
        comment = fake.comment(repo, number, "/pilot retry")
        fake.edit_comment(repo, comment, "/pilot cancel")
        fake.unlabel(repo, number, "pilot")
        sha = fake.branch(repo, "b")
        pull = fake.pull(repo, "b", "Fix", f"Fixes #{number}", draft=True)
        fake.label(repo, pull, "pilot")
        fake.unlabel(repo, pull, "pilot")
        fake.edit(repo, pull, body=f"Resolves acme/api#{number}")
        fake.check_run(repo, sha, "test", "failure", job=7)
        fake.review(repo, pull, "CHANGES_REQUESTED", "No.")
        fake.close(repo, pull)
        fake.reopen(repo, pull)
        fake.merge(repo, pull)
        fake.reopen(repo, number)
        fake.hooks.settle()

        assert [f"{event} {action}" for event, action, _ in inbox.events] == [
            "issues opened",
            "issues labeled",
            "issues edited",
            "issue_comment created",
            "issue_comment edited",
            "issues unlabeled",
            "pull_request opened",
            "pull_request labeled",
            "pull_request unlabeled",
            "pull_request edited",
            "check_run completed",
            "pull_request_review submitted",
            "pull_request closed",
            "pull_request reopened",
            "pull_request closed",
            "issues closed",
            "issues reopened",
        ]
        assert all(vendors([{"ask": "github", "secret": SECRET, "body": b, "signature": s} for b, s in inbox.bodies]))

        fake.hooks.again(fake.hooks.deliveries[0])
        fake.hooks.settle()
        assert inbox.events[-1] == inbox.events[0]  # a redelivery has the same id
        assert {delivery.status for delivery in fake.hooks.deliveries} == {202}
