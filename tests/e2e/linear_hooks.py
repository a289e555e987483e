"""The fake Linear's webhooks: the shapes of the SDK's types, signed as the SDK checks them, sent one after another."""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import queue
import threading
import time
import urllib.parse
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e.linear_schema import check_payload
from tests.e2e.linear_world import Row, World

_END = object()


@dataclass(slots=True)
class Delivery:
    """One webhook as it went out, and the HTTP status that it got (0: none)."""

    body: bytes
    headers: Mapping[str, str]
    status: int = 0

    @property
    def payload(self) -> Row:
        """What it says."""
        found: Row = json.loads(self.body)
        return found


class Hooks:
    """Makes and sends them. Without a URL they are only made; they wait in `deliveries` all the same."""

    def __init__(self, world: World, url: str | None = None, secret: str = "lin_wh_secret") -> None:
        self.url = url
        self.secret = secret
        self.webhook_id = str(uuid.uuid4())
        self.client_id = str(uuid.uuid4())
        self.deliveries: list[Delivery] = []
        self.mistakes: list[Exception] = []
        self._world = world
        self._queue: queue.Queue[Any] = queue.Queue()
        self._thread = threading.Thread(target=self._send_all, daemon=True)
        self._thread.start()
        world.changed = self._changed

    def close(self) -> None:
        """Send what waits, and stop."""
        self._queue.put(_END)
        self._thread.join()

    def settle(self) -> None:
        """Wait until everything is sent."""
        self._queue.join()

    def send(self, delivery: Delivery) -> None:
        """Send it (again): the same bytes under the same delivery id."""
        self._queue.put(delivery)

    def signed(self, payload: Mapping[str, Any], event: str) -> Delivery:
        """A delivery of this payload with a good signature."""
        body = json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode()
        signature = hmac.new(self.secret.encode(), body, hashlib.sha256).hexdigest()
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Linear-Delivery": str(uuid.uuid4()),
            "Linear-Event": event,
            "Linear-Signature": signature,
            "Linear-Timestamp": str(payload.get("webhookTimestamp")),
            "User-Agent": "Linear-Webhook",
        }
        return Delivery(body, headers)

    def _changed(self, kind: str, action: str, row: Row, before: Row, actor: Row | None) -> None:
        try:
            if kind == "AgentSession":
                payload, event = self._session_event(action, row, before.get("activity")), "AgentSessionEvent"
                check_payload(payload, "AgentSessionEventWebhookPayload")
            else:
                payload, event = self._entity(kind, action, row, before, actor), kind
                check_payload(payload, "EntityWebhookPayload")
                check_payload(payload["data"], f"{kind}WebhookPayload")
        except (ValueError, LookupError) as error:
            self.mistakes.append(error)
            return
        delivery = self.signed(payload, event)
        self.deliveries.append(delivery)
        self._queue.put(delivery)

    def _entity(self, kind: str, action: str, row: Row, before: Row, actor: Row | None) -> Row:
        data = _issue(row, self._world) if kind == "Issue" else _comment(row)
        payload = {
            **self._envelope(action, kind),
            "actor": None if actor is None else {**_user(actor), "type": "user"},
            "data": data,
            "url": row["url"],
        }
        if action == "update":
            payload["updatedFrom"] = {**_before(before), "updatedAt": row["createdAt"]}
        return payload

    def _session_event(self, action: str, session: Row, activity: Row | None) -> Row:
        payload = {
            **self._envelope(action, "AgentSessionEvent"),
            "agentSession": _session(session, self._world),
            "appUserId": session["appUser"]["id"],
            "oauthClientId": self.client_id,
        }
        if activity is None:
            payload["promptContext"] = f"<issue identifier={session['issue']['identifier']!r}/>"
            payload["guidance"] = []
        else:
            payload["agentActivity"] = {
                "id": activity["id"],
                "agentSessionId": session["id"],
                "content": activity["content"],
                "signal": activity["signal"],
                "user": _user(activity["user"]),
                "userId": activity["user"]["id"],
                "createdAt": activity["createdAt"],
                "updatedAt": activity["updatedAt"],
            }
        return payload

    def _envelope(self, action: str, kind: str) -> Row:
        return {
            "action": action,
            "type": kind,
            "createdAt": self._world.now(),
            "organizationId": self._world.organization["id"],
            "webhookId": self.webhook_id,
            "webhookTimestamp": time.time_ns() // 1_000_000,
        }

    def _send_all(self) -> None:
        while (delivery := self._queue.get()) is not _END:
            try:
                if self.url is not None:
                    delivery.status = _post(self.url, delivery)
            finally:
                self._queue.task_done()
        self._queue.task_done()


def _post(url: str, delivery: Delivery) -> int:
    target = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=5)
    try:
        connection.request("POST", target.path, delivery.body, dict(delivery.headers))
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def _user(user: Row) -> Row:
    return {key: user[key] for key in ("id", "name", "email", "url")}


def _team(team: Row) -> Row:
    return {key: team[key] for key in ("id", "key", "name")}


def _child(issue: Row) -> Row:
    team = issue["team"]
    return {
        **{key: issue[key] for key in ("id", "identifier", "title", "url")},
        "team": _team(team),
        "teamId": team["id"],
    }


def _issue(issue: Row, _world: World) -> Row:
    creator, delegate = issue["creator"], issue["delegate"]
    return {
        **_child(issue),
        "createdAt": issue["createdAt"],
        "updatedAt": issue["updatedAt"],
        "number": issue["number"],
        "description": issue["description"],
        "labels": [{key: label[key] for key in ("id", "name", "color")} for label in issue["labels"]],
        "labelIds": [label["id"] for label in issue["labels"]],
        "state": {key: issue["state"][key] for key in ("id", "name", "type", "color")},
        "stateId": issue["state"]["id"],
        "creator": creator and _user(creator),
        "creatorId": creator and creator["id"],
        "delegate": delegate and _user(delegate),
        "delegateId": delegate and delegate["id"],
        "previousIdentifiers": issue["previousIdentifiers"],
        "trashed": issue["trashed"],
        "priority": 0,
        "priorityLabel": "No priority",
        "prioritySortOrder": 0.0,
        "reactionData": {},
        "releases": [],
        "sortOrder": 0.0,
        "subscriberIds": [],
    }


def _comment(comment: Row) -> Row:
    user = comment["user"]
    return {
        **{key: comment[key] for key in ("id", "body", "createdAt", "updatedAt", "editedAt", "parentId")},
        "issue": _child(comment["issue"]),
        "issueId": comment["issue"]["id"],
        "user": user and _user(user),
        "userId": user and user["id"],
        "reactionData": {},
    }


def _session(session: Row, _world: World) -> Row:
    creator, issue = session["creator"], session["issue"]
    return {
        **{key: session[key] for key in ("id", "status", "createdAt", "updatedAt")},
        "appUserId": session["appUser"]["id"],
        "organizationId": _world.organization["id"],
        "creator": creator and _user(creator),
        "creatorId": creator and creator["id"],
        "issue": {**_child(issue), "description": issue["description"]},
        "issueId": issue["id"],
        "type": "commentThread",
        "url": f"{issue['url']}#agent-session-{session['id'][:8]}",
    }


def _before(before: Row) -> Row:
    """What `updatedFrom` says: ids for what are objects now."""
    told: Row = {}
    for key, value in before.items():
        if key == "labels":
            told["labelIds"] = [label["id"] for label in value]
        elif key in ("state", "delegate"):
            told[f"{key}Id"] = value and value["id"]
        else:
            told[key] = value
    return told
