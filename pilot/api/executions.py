"""`/api/v1/executions`: put tasks in, and look at them."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request, Response

from pilot.api import given
from pilot.api.answers import body_errors, described, errors, json_answer, moment_of
from pilot.api.asked import LAST, IdempotencyKey, NewExecution
from pilot.api.auth import allow_commands, needs
from pilot.api.given import StatusWord
from pilot.api.given_attempts import AttemptsGiven
from pilot.api.services import Services
from pilot.dispatch.intake import TICKETS, TaskRequest
from pilot.domain.access import Caller, Scope
from pilot.domain.errors import NotFound, UsageError
from pilot.domain.execution import Execution, Status
from pilot.domain.ports import Document
from pilot.domain.task import Kind
from pilot.store.documents import piece_document, rfc3339, why_document
from pilot.store.history import Asked, Attempt

_Reader = Annotated[Caller, needs(Scope.READ)]
_Id = Annotated[int, Path(ge=1, le=LAST, description="The execution's id.")]
_Text = Annotated[str | None, Query(max_length=1_000)]
_PLACE = r"^[0-9]{1,9}:[0-9]{1,15}$"
_PILOTS = re.compile(rf"(?:plan|ci|review|{'|'.join(TICKETS)}):[^:]*:")
"""How the keys of plans' steps, of repairs and of tickets begin."""


class ExecutionRoutes:
    """What people and programs look at, and where they put tasks in."""

    def __init__(self, services: Services) -> None:
        self._own = services

    def add_to(self, app: FastAPI) -> None:
        """The routes. They answer by themselves; models are for the document alone."""
        at, tags = "/api/v1/executions", ["executions"]

        def get(path: str, endpoint: Any, model: Any, *more: int) -> None:
            responses = errors(422, *more)
            app.add_api_route(
                at + path, endpoint, methods=["GET"], response_model=model, responses=responses, tags=list(tags)
            )

        app.add_api_route(
            at,
            self.enqueue,
            methods=["POST"],
            tags=list(tags),
            status_code=201,
            response_model=given.EnqueuedGiven,
            responses=body_errors(404)
            | {
                200: {"model": given.EnqueuedGiven, "description": "It stood already; nothing is new."},
                201: {"headers": {"Location": {"schema": {"type": "string"}, "description": "The execution."}}},
            },
        )
        get("", self.page, given.ExecutionsGiven, 404)
        get("/{id}", self.show, given.ExecutionGiven, 404)
        get("/{id}/why", self.why, given.WhyGiven, 404)
        get("/{id}/attempts", self.attempts, AttemptsGiven, 404)
        get("/{id}/output", self.output, given.OutputGiven, 404)
        app.add_api_route(
            f"{at}/{{id}}/stream",
            self.stream,
            tags=list(tags),
            methods=["GET"],
            response_class=Response,
            responses=errors(404, 422)
            | described(204, "It has ended, and all of it was read.")
            | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        )

    async def enqueue(
        self,
        request: Request,
        body: NewExecution,
        caller: Annotated[Caller, needs(Scope.WORK)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Put a task into the queue; durable once this is answered.

        200 with `duplicate: true` when an open execution has its task_id, or any its key. Scope: work; admin for
        what runs a program (`@cmd:`, `#apply`, `#test`).
        """
        _check_key(idempotency_key, caller)
        task = TaskRequest(
            prompt=body.body if body.body.strip() else body.title,
            title=body.title,
            task_id=body.task_id,
            source=body.source,
            kind=Kind(body.kind),
            labels=tuple(body.labels),
            priority=body.priority,
            lane=body.lane,
            after=tuple(body.after),
            payload=body.payload,
            backend=body.backend,
            model=body.model,
            max_attempts=body.max_attempts,
            available_at=moment_of(body.available_at, "available_at"),
            idempotency_key=idempotency_key,
            callback_url=body.callback_url,
            dedupe=body.dedupe,
        )
        new = await self._own.door.submit(task, body.project, lambda: allow_commands(request, caller))
        return json_answer(
            {"id": new.id, "status": str(new.status), "duplicate": new.duplicate},
            200 if new.duplicate else 201,
            {"location": f"/api/v1/executions/{new.id}"},
        )

    async def page(
        self,
        _caller: _Reader,
        status: Annotated[list[StatusWord], Query(max_length=7)] = [],  # noqa: B006  FastAPI copies it
        project: _Text = None,
        source: _Text = None,
        task_id: _Text = None,
        all: Annotated[bool, Query(description="All that ended, too; not the last 20 alone.")] = False,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        cursor: Annotated[str | None, Query(max_length=200, description="The last page's `next_cursor`.")] = None,
    ) -> Response:
        """Open executions, the newest first, then those that ended last. Scope: read."""
        found, following = await self._own.history.executions(
            statuses=[Status(name) for name in status],
            project_id=None if project is None else (await self._project(project)),
            source=source,
            task_id=task_id,
            everything=all,
            limit=limit,
            cursor=cursor,
        )
        documents = await self._own.history.documents(found)
        return json_answer({"executions": documents, "next_cursor": following})

    async def _project(self, name: str) -> int:
        found = await self._own.history.find_project(name)
        if found is None:
            raise NotFound(f"there is no project {name[:80]!r}; GET /api/v1/projects lists them")
        return found.id

    async def show(self, _caller: _Reader, id: _Id) -> Response:
        """One execution. Scope: read."""
        return json_answer(await self._own.history.document(await self._known(id)))

    async def why(self, _caller: _Reader, id: _Id) -> Response:
        """Why it does not run, where it stands, and what happens next. Scope: read."""
        reasons = await self._own.history.why(id, self._own.clock())
        if reasons is None:
            raise NotFound(f"no execution {id}")
        return json_answer(why_document(reasons))

    async def attempts(self, _caller: _Reader, id: _Id) -> Response:
        """Its attempts, first to last, what it asked, and its task's text. Scope: read."""
        execution = await self._known(id)
        return json_answer(
            {
                "body": execution.body,
                "attempts": [attempt_document(attempt) for attempt in await self._own.history.attempts(id)],
                "questions": [question_document(asked) for asked in await self._own.history.questions(id)],
            }
        )

    async def output(
        self,
        _caller: _Reader,
        id: _Id,
        attempt: Annotated[int | None, Query(ge=1, le=1 << 31, description="Only this attempt's.")] = None,
        after: Annotated[
            str | None, Query(pattern=_PLACE, description="Only what stands behind this `next_after`.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 500,
    ) -> Response:
        """What its agents wrote, in order. Scope: read."""
        await self._known(id)
        place = (0, 0)
        if after is not None:
            number, _, seq = after.partition(":")
            place = (int(number), int(seq))
        pieces = await self._own.history.output(id, attempt=attempt, after=place, limit=limit)
        last = f"{pieces[-1].attempt}:{pieces[-1].seq}" if pieces else after
        return json_answer({"output": [piece_document(piece) for piece in pieces], "next_after": last})

    async def stream(
        self,
        request: Request,
        _caller: _Reader,
        id: _Id,
        last_event_id: Annotated[
            str | None, Header(alias="Last-Event-ID", description="Resume behind this one.")
        ] = None,
    ) -> Response:
        """Its events and its output, as they come (server-sent events), to its end. Scope: read.

        Messages without a name are events; `output` is a piece of output; `end` is the last one.
        """
        return await self._own.hub.execution_response(request, id)

    async def _known(self, id: int) -> Execution:
        execution = await self._own.history.execution(id)
        if execution is None:
            raise NotFound(f"no execution {id}")
        return execution


def _check_key(key: str | None, caller: Caller) -> None:
    """Raise `UsageError` for one with which a task would stand in the place of a plan's step or of a ticket."""
    if key is not None and _PILOTS.match(key) and not caller.may(Scope.ADMIN):
        raise UsageError(
            f"Idempotency-Key: keys that begin with {key.partition(':')[0]}: are pilot's own; take another"
        )


def attempt_document(attempt: Attempt) -> Document:
    """An attempt as JSON."""
    times = {"started_at": rfc3339(attempt.started_at), "finished_at": rfc3339(attempt.finished_at)}
    return asdict(attempt) | times


def question_document(asked: Asked) -> Document:
    """A question as JSON."""
    times = {"asked_at": rfc3339(asked.asked_at), "answered_at": rfc3339(asked.answered_at)}
    return asdict(asked) | times | {"options": list(asked.options)}
