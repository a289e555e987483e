"""Values as the JSON documents that `--json` and the API show."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from pilot.domain.events import Event
from pilot.domain.execution import Execution
from pilot.domain.ports import Document, Why

if TYPE_CHECKING:
    from pilot.store.history import Piece

_PLAIN_BEFORE_USAGE = (
    *("id", "task_id", "title", "project", "project_path", "source", "kind", "labels", "priority", "lane"),
    *("status", "reason", "outcome", "attempt", "failures", "max_attempts", "failure_class", "error"),
    *("backend", "model", "session_id", "branch", "base_sha", "head_sha", "workspace", "delivery"),
    *("pr_url", "checks"),
)
_LAST_TIME = 253_402_300_799_999  # the end of the year 9999, where datetime ends


def rfc3339(at: int | None) -> str | None:
    """UTC milliseconds as `2026-01-31T12:00:00.000Z`; None stays None."""
    if at is None:
        return None
    at = min(max(at, 0), _LAST_TIME)
    return f"{_second(at // 1000)}.{at % 1000:03d}Z"


@lru_cache(1024)  # a busy server writes the same ones over and over
def _second(at: int) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%S}"


def moment(at: int) -> str:
    """UTC milliseconds for a sentence: `2026-01-31 12:00:00 UTC`."""
    return f"{datetime.fromtimestamp(min(max(at, 0), _LAST_TIME) // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def execution_document(execution: Execution, after: Iterable[int] = (), sandbox: str | None = None) -> Document:
    """The execution document; `after` are the ids it depends on, `sandbox` is what its last attempt ran in."""
    document: Document = {name: getattr(execution, name) for name in _PLAIN_BEFORE_USAGE}
    document |= {
        "status": str(execution.status),
        "labels": list(execution.labels),
        "usage": {
            "input_tokens": execution.input_tokens,
            "output_tokens": execution.output_tokens,
            "cost_usd": execution.cost_usd,
        },
        "node": execution.node,
        "fence": execution.fence,
        "after": list(after),
        "plan": execution.plan,
        "payload": execution.payload,
        "artifacts": execution.artifacts,
        "callback_url": execution.callback_url,
        "parent": execution.parent,
        "available_at": rfc3339(execution.available_at),
        "created_at": rfc3339(execution.created_at),
        "started_at": rfc3339(execution.started_at),
        "finished_at": rfc3339(execution.finished_at),
        "route": execution.options.get("route"),
        "fallback": list(execution.fallback),
        "sandbox": sandbox,
        "place": execution.place,
    }
    return document


def why_document(why: Why) -> Document:
    """The answer to "why is it not running?" as JSON."""
    return {
        "id": why.id,
        "status": str(why.status),
        "position": why.position,
        "holds": [
            {"kind": h.kind, "detail": h.detail, "execution": h.execution, "until": rfc3339(h.until)} for h in why.holds
        ],
        "next": why.next,
    }


def event_document(event: Event) -> Document:
    """An event as JSON."""
    return {
        "id": event.id,
        "at": rfc3339(event.at),
        "type": event.type,
        "execution": event.execution_id,
        "project_id": event.project_id,
        "data": dict(event.data),
    }


def piece_document(piece: Piece) -> Document:
    """A piece of output as JSON: `text`, or `base64` where the bytes are no UTF-8."""
    document: Document = {
        "attempt": piece.attempt,
        "seq": piece.seq,
        "at": rfc3339(piece.at),
        "kind": piece.kind,
    }
    try:
        document["text"] = piece.data.decode()
    except UnicodeDecodeError:
        document["base64"] = base64.b64encode(piece.data).decode()
    return document
