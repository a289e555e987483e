"""The server's JSON documents as values of the domain, and back: the one place that knows both.

What is new in a document is let pass; what is missing means that the server is another version's, and is said.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from pilot.domain.agent import OutputKind
from pilot.domain.errors import PilotError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Outcome, Usage
from pilot.domain.ports import Document
from pilot.domain.work import Artifact, Beaten, Claim, Made, Next, Progress, Settled

T = TypeVar("T")
_PLAIN: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "priority", "lane", "attempt", "failures", "max_attempts", "fence"), (int,)),
    **dict.fromkeys(("task_id", "title", "project", "project_path", "source", "kind", "backend"), (str,)),
    **dict.fromkeys(("delivery", "checks"), (str,)),
    **dict.fromkeys(
        ("reason", "outcome", "failure_class", "error", "model", "session_id", "branch"), (str, type(None))
    ),
    **dict.fromkeys(("base_sha", "head_sha", "workspace", "pr_url", "node", "plan", "callback_url"), (str, type(None))),
    "parent": (int, type(None)),
}
SAID = ("phase", "session_id", "model", "workspace", "branch", "base_sha", "head_sha", "sandbox")
"""The facts of a run under way that the server takes."""


def field_of(document: Any, name: str, *types: type) -> Any:
    """A field that has to be there, of one of these types. Raises `PilotError` in words."""
    if not isinstance(document, Mapping) or name not in document:
        raise PilotError(f"the server's answer has no {name!r}: it may be another version's than this pilot")
    value = document[name]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise PilotError(
            f"the server's answer has a {name!r} that is no {types[0].__name__}: it may be another version's"
        )
    return value


def items_of(document: Any, name: str, make: Callable[[Any], T]) -> list[T]:
    """A list of them that has to be there."""
    return [make(item) for item in field_of(document, name, list)]


def milliseconds(text: str) -> int:
    """An RFC 3339 time as UTC ms."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise PilotError(f"the server's answer has a time that is none: {text[:40]!r}") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def rfc3339(at: int) -> str:
    """UTC ms as an RFC 3339 time."""
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _when(document: Any, name: str) -> int | None:
    text = field_of(document, name, str, type(None))
    return None if text is None else milliseconds(text)


def _status(document: Any) -> Status:
    word = field_of(document, "status", str)
    if word not in list(Status):
        raise PilotError(f"the server knows a status {word[:40]!r} that this pilot does not: take the same version")
    return Status(word)


def execution_of(document: Any) -> Execution:
    """An execution document as the value; `project_id` is the server's own affair, and 0."""
    plain = {name: field_of(document, name, *types) for name, types in _PLAIN.items()}
    usage = field_of(document, "usage", dict)
    options = document.get("options")
    return Execution(
        **plain,
        project_id=0,
        status=_status(document),
        labels=tuple(map(str, field_of(document, "labels", list))),
        body=str(document.get("body") or ""),
        options=options if isinstance(options, Mapping) else {"route": document.get("route")},
        feedback=document.get("feedback"),
        lease_until=_when(document, "lease_until") if document.get("lease_until") is not None else None,
        fallback=tuple(document.get("fallback") or ()),
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
        cost_usd=usage.get("cost_usd"),
        payload=document.get("payload"),
        artifacts=document.get("artifacts"),
        available_at=_when(document, "available_at") or 0,
        created_at=_when(document, "created_at") or 0,
        started_at=_when(document, "started_at"),
        finished_at=_when(document, "finished_at"),
        deps_left=0,
        slot=None,
        cancel_requested=False,
        reserved_for=None,
        losses=0,
        streak=0,
        mark=None,
        idempotency_key=None,
        input_hash=None,
    )


def claim_of(document: Any) -> Claim:
    """What a worker was given."""
    execution = execution_of(document)
    until = milliseconds(field_of(document, "lease_until", str))
    after = frozenset(document.get("after") or ())
    made = tuple(_made(one, after) for one in document.get("made") or ())
    return Claim(execution=execution, fence=execution.fence, lease_until=until, made=made)


def claim_document(claim: Claim, document: Document) -> Document:
    """What a worker was given, as the server shows it; `document` is the execution's."""
    execution = claim.execution
    return document | {
        "body": execution.body,
        "options": dict(execution.options),
        "feedback": execution.feedback,
        "lease_until": rfc3339(claim.lease_until),
        "made": [
            {
                "id": one.id,
                "task_id": one.task_id,
                "branch": one.branch,
                "head_sha": one.head_sha,
                "artifacts": [dict(artifact) for artifact in one.artifacts],
            }
            for one in claim.made
        ],
    }


def _made(document: Any, after: Collection[int]) -> Made:
    id = field_of(document, "id", int)
    return Made(
        id=id,
        task_id=field_of(document, "task_id", str),
        branch=field_of(document, "branch", str, type(None)),
        head_sha=field_of(document, "head_sha", str, type(None)),
        artifacts=tuple(document.get("artifacts") or ()),
        direct=id in after,
    )


def beaten_of(document: Any) -> Beaten:
    """The answer to a heartbeat."""
    until = milliseconds(field_of(document, "lease_until", str))
    return Beaten(until, field_of(document, "cancel_requested", bool))


def settled_of(document: Any) -> Settled:
    """The answer to a worker's last word."""
    execution = execution_of(field_of(document, "execution", dict))
    claims = tuple(items_of(document, "next", claim_of)) if "next" in document else ()  # an older server gives none
    return Settled(execution, field_of(document, "duplicate", bool), claims=claims)


def next_document(next: Next) -> Document:
    """The fields of a claim that does not wait."""
    filters = {name: list(getattr(next.wanted, name)) for name in ("lanes", "kinds", "projects")}
    told: Document = {name: values for name, values in filters.items() if values}
    return told | {"max": next.max, "lease_seconds": next.lease / 1000}


def enqueued_of(document: Any) -> Enqueued:
    """The answer to an enqueue or a retry."""
    return Enqueued(field_of(document, "id", int), _status(document), field_of(document, "duplicate", bool))


def usage_document(usage: Usage) -> Document | None:
    """What is known of it; None: nothing."""
    told = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": usage.cost_usd,
    }
    return {name: value for name, value in told.items() if value is not None} or None


def progress_document(progress: Progress) -> Document:
    """The fields that it adds to a heartbeat."""
    facts = {name: text for name, text in progress.facts.items() if name in SAID}
    return _told(progress=facts or None, usage=None if progress.usage is None else usage_document(progress.usage))


def piece_document(piece: tuple[OutputKind, bytes]) -> Document:
    """A piece of output: as text, or base64 where the bytes are no UTF-8."""
    kind, data = piece
    try:
        return {"kind": str(kind), "text": data.decode()}
    except UnicodeDecodeError:
        return {"kind": str(kind), "base64": base64.b64encode(data).decode()}


def complete_document(outcome: Outcome, artifacts: Sequence[Artifact]) -> Document:
    """The fields that a result adds to the worker's name and its fence."""
    question = outcome.question
    asks = None if question is None else _told(text=question.text, default=question.default)
    if asks is not None and question is not None and question.options:
        asks["options"] = list(question.options)
    gates = [
        {
            "name": gate.name,
            "kind": gate.kind,
            "command": gate.command,
            "required": gate.required,
            "exit_code": gate.exit_code,
            "duration": gate.duration,
            "tree": gate.tree,
            "timed_out": gate.timed_out,
            "tail": gate.tail,
        }
        for gate in outcome.gates
    ]
    return {"outcome": str(outcome.ending)} | _told(
        summary=outcome.text or None,
        session_id=outcome.session_id,
        model=outcome.model,
        branch=outcome.branch,
        base_sha=outcome.base_sha,
        head_sha=outcome.head_sha,
        tree=outcome.tree,
        gates=gates or None,
        usage=usage_document(outcome.usage),
        question=asks,
        artifacts=[_artifact(artifact) for artifact in artifacts] or None,
    )


def fail_document(outcome: Outcome) -> Document:
    """The fields that a failure adds to the worker's name and its fence."""
    return {"failure_class": str(outcome.failure), "detail": outcome.detail} | _told(
        excerpt=outcome.excerpt or None,
        summary=outcome.text or None,
        retry_at=None if outcome.retry_at is None else rfc3339(outcome.retry_at),
        usage=usage_document(outcome.usage),
        session_id=outcome.session_id,
        model=outcome.model,
    )


def _artifact(artifact: Artifact) -> Document:
    try:
        return {"name": artifact.name, "content": artifact.content.decode()}
    except UnicodeDecodeError:
        return {"name": artifact.name, "content_base64": base64.b64encode(artifact.content).decode()}


def _told(**fields: Any) -> Document:
    """Only what there is."""
    return {name: value for name, value in fields.items() if value is not None}
