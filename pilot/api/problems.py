"""Everything that goes wrong, as RFC 9457 has it: one shape, and words that say what to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pilot.domain.errors import Busy, IllegalTransition, LeaseLost, NotFound, PilotError, StoreError, UsageError
from pilot.domain.plan import PlanError
from pilot.domain.text import clean, one_line

log = structlog.get_logger()
MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "1"
_MOST = 100  # problems of one document
_STATUSES: tuple[tuple[type[PilotError], int], ...] = (
    (NotFound, 404),
    (LeaseLost, 409),
    (IllegalTransition, 409),
    (UsageError, 422),
    (Busy, 503),
    (StoreError, 503),
)


class NotAllowed(PilotError):
    """The token is good, but not for this."""


def problem(
    status: int, detail: str, *, headers: Mapping[str, str] | None = None, errors: Sequence[tuple[str, str]] = ()
) -> Response:
    """One problem document. `errors`: where, and what is wrong there."""
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": clean(detail),
    }
    if errors:
        document["errors"] = [{"where": where, "what": clean(what)} for where, what in errors[:_MOST]]
    also = {"connection": "close"} if status in (408, 413) else {}  # the rest of the body is not wanted
    also |= {"retry-after": RETRY_AFTER} if status in (429, 503) else {}
    return JSONResponse(document, status, also | dict(headers or {}), media_type=MEDIA_TYPE)


def status_of(error: PilotError) -> int:
    """The HTTP status of one of pilot's own errors."""
    if isinstance(error, NotAllowed):
        return 403
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), 500)


def handle_problems(app: FastAPI, redact: Callable[[str], str] = str) -> None:
    """Let the application answer every error with a problem document; `redact` takes secrets out of its words."""

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101  as registered
        return problem(error.status_code, str(error.detail), headers=error.headers)

    async def invalid(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        found = [(_where(each["loc"]), one_line(str(each["msg"]), 300)) for each in error.errors()]
        return problem(422, "; ".join(f"{where}: {what}" for where, what in found[:5]), errors=found)

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, PilotError)  # noqa: S101
        status = status_of(error)
        if status >= 500:
            log.warning("api.failed", path=request.url.path, status=status, error=str(error))
        errors = []
        if isinstance(error, PlanError):
            errors = [(error.where(one) or "plan", redact(one.text)) for one in error.problems[:_MOST]]
        return problem(status, redact(str(error)), errors=errors)

    async def broken(request: Request, error: Exception) -> Response:
        log.error("api.broken", path=request.url.path, error=f"{type(error).__name__}: {error}")
        return problem(500, "pilot made a mistake; its log says which")

    app.add_exception_handler(HTTPException, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(PilotError, failed)
    app.add_exception_handler(Exception, broken)


def _where(place: Sequence[int | str]) -> str:
    """`body.steps.3.id`, whatever names somebody made up."""
    return one_line(".".join(map(str, place)), 200) or "body"
