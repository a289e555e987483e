"""Webhooks as GitHub sends them: signed over the raw bytes, one after the other, never sent again by themselves."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import queue
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.github_contract import check_event, complete_event


@dataclass
class Delivery:
    """One webhook, and what was answered: 0 for nothing."""

    event: str
    body: bytes
    guid: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: int | None = None


def headers(delivery: Delivery, secret: str) -> dict[str, str]:
    """What GitHub sends with a body."""
    signature = hmac.new(secret.encode(), delivery.body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/0000000",
        "X-GitHub-Event": delivery.event,
        "X-GitHub-Delivery": delivery.guid,
        "X-GitHub-Hook-ID": "1",
        "X-Hub-Signature-256": f"sha256={signature}",
    }


class Hooks:
    """Sends from a thread of its own. `violations`: payloads that GitHub would not send."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.violations: list[str] = []
        self._target: tuple[str, str] | None = None
        self._queue: queue.Queue[Delivery | None] = queue.Queue()
        self._thread: threading.Thread | None = None

    def target(self, url: str, secret: str) -> None:
        """From now on every change is sent there."""
        self._target = (url, secret)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def keep(self) -> None:
        """From now on every change is kept in `deliveries`, and sent by whoever likes."""
        self._target = ("", "")

    @property
    def wanted(self) -> bool:
        return self._target is not None

    def send(self, event: str, payload: Mapping[str, Any]) -> None:
        """Put one in line."""
        name = "-".join([event, *([payload["action"]] if "action" in payload else [])]).replace("_", "-")
        body = json.dumps(complete_event(name, payload), ensure_ascii=False).encode()
        try:
            check_event(name, body)
        except AssertionError as error:
            self.violations.append(str(error))
        self.again(Delivery(event, body))

    def again(self, delivery: Delivery) -> None:
        """Put a delivery in line, the same one once more for a redelivery."""
        self.deliveries.append(delivery)
        self._queue.put(delivery)

    def settle(self) -> None:
        """Wait until all are sent."""
        self._queue.join()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (delivery := self._queue.get()) is not None:
            assert self._target is not None
            delivery.status = _posted(*self._target, delivery)
            self._queue.task_done()


def _posted(url: str, secret: str, delivery: Delivery) -> int:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)
    try:
        connection.request("POST", parts.path or "/", delivery.body, headers(delivery, secret))
        return connection.getresponse().status
    except OSError:
        return 0
    finally:
        connection.close()
