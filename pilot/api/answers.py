"""Ready answers, and what the OpenAPI document says of a route's errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from pilot.api.problems import MEDIA_TYPE
from pilot.domain.errors import UsageError
from pilot.domain.text import one_line

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_ERRORS: Mapping[int, str] = {
    400: "The body ended early, or a header or the address is one that is never taken.",
    401: "There is no token, or none that counts.",
    403: "The token's scope, the Host or the Origin is not one that may do this.",
    404: "There is no such thing.",
    408: "The body did not arrive in time.",
    409: "The claim was ended by somebody else; nothing was written.",
    413: "The body is longer than 1 MiB.",
    415: "The body is not `application/json`.",
    422: "The request makes no sense as it stands; `detail` says why.",
    429: "Too many requests; try again after `Retry-After` seconds.",
    500: "A mistake of pilot's own; its log says which.",
    503: "Not now: try again after `Retry-After` seconds.",
}
_SCHEMA = {"$ref": "#/components/schemas/Problem"}


def json_answer(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document, encoded once; what it looks like is said by the route's model, and held to it by a test."""
    # A surrogate that came in some other way becomes `?`: no document is worth a broken answer.
    body = _encode(document).encode(errors="replace")
    return Response(body, status, headers, media_type="application/json")


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These errors besides those that any call may get, as FastAPI's `responses` has it."""
    always = (400, 401, 403, 429, 500, 503)
    return {status: _response(status) for status in sorted({*always, *statuses})}


def body_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """As `errors`, of a call that has a body."""
    return errors(408, 413, 415, 422, *statuses)


def _response(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {"description": _ERRORS[status], "content": {MEDIA_TYPE: {"schema": _SCHEMA}}}
    if status in (429, 503):
        found["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
    if status == 401:
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found


def described(status: int, words: str) -> dict[int | str, dict[str, Any]]:
    """What an answer means, in words."""
    return {status: {"description": words or HTTPStatus(status).phrase}}


def moment_of(text: str | None, what: str) -> int | None:
    """A time as UTC ms. Raises `UsageError`."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        ms = int(at.timestamp() * 1000) if at.tzinfo else -1
    except (ValueError, OverflowError):
        ms = -1
    if ms < 0:
        raise UsageError(f"{what}: {one_line(text, 40)!r} is no time such as 2026-12-31T18:00:00Z, from 1970 on")
    return ms
