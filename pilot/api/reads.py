"""What there is: projects, nodes, figures, events, artifacts, and who did what."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header, Path, Query, Request, Response
from pydantic import JsonValue

from pilot.api import given
from pilot.api.answers import errors, json_answer
from pilot.api.asked import LAST
from pilot.api.auth import needs
from pilot.api.services import Services
from pilot.domain.access import Caller, Scope
from pilot.domain.errors import NotFound
from pilot.domain.events import EventType
from pilot.domain.task import Project
from pilot.store.documents import event_document, rfc3339

_Reader = Annotated[Caller, needs(Scope.READ)]
_Types = Annotated[list[EventType], Query(max_length=50, description="Only these; may be repeated.")]
_OfExecution = Annotated[int | None, Query(ge=1, le=LAST, description="Only this execution's.")]
_Behind = Annotated[int | None, Query(ge=0, le=LAST, description="Only those behind this event's id.")]


class ReadRoutes:
    """What needs the scope read, and the audit."""

    def __init__(self, services: Services) -> None:
        self._own = services

    def add_to(self, app: FastAPI) -> None:
        """The routes. They answer by themselves; models are for the document alone."""

        def get(path: str, endpoint: Any, model: Any, tag: str, *more: int) -> None:
            app.add_api_route(
                f"/api/v1{path}", endpoint, methods=["GET"], response_model=model, responses=errors(*more), tags=[tag]
            )

        get("/projects", self.projects, given.ProjectsGiven, "projects")
        get("/nodes", self.nodes, given.NodesGiven, "state")
        get("/stats", self.stats, dict[str, JsonValue], "state")
        get("/status", self.status, dict[str, JsonValue], "state")
        get("/event-log", self.event_log, given.EventsGiven, "state", 422)
        get("/audit", self.audit, given.CallsGiven, "state", 422)
        app.add_api_route(
            "/api/v1/events",
            self.events,
            methods=["GET"],
            response_class=Response,
            tags=["state"],
            responses=errors(404, 422) | {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
        )
        app.add_api_route(
            "/api/v1/artifacts/{sha256}",
            self.artifact,
            methods=["GET"],
            response_class=Response,
            tags=["work"],
            responses=errors(404, 422)
            | {200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}},
        )

    async def projects(self, _caller: _Reader) -> Response:
        """Every project that the store knows, and how it stands. Scope: read."""
        return json_answer({"projects": await self._own.history.project_rows()})

    async def nodes(self, _caller: _Reader) -> Response:
        """Every process that claims. Scope: read."""
        return json_answer({"nodes": await self._own.history.nodes(self._own.clock())})

    async def status(self, _caller: _Reader) -> Response:
        """All that `pilot status --json` says. Scope: read."""
        return json_answer(await self._own.history.status(self._own.clock()))

    async def stats(self, _caller: _Reader) -> Response:
        """Counts, the oldest wait, throughput, and what failed of late. Scope: read."""
        return json_answer(await self._own.stats())

    async def event_log(
        self,
        _caller: _Reader,
        after: _Behind = None,
        type: _Types = [],  # noqa: B006  FastAPI copies it
        execution: _OfExecution = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> Response:
        """Facts in order: those behind `after`, or without it the last ones. Scope: read."""
        found = await self._own.history.events(
            after=after, types=[str(each) for each in type], execution=execution, limit=limit
        )
        return json_answer(
            {"events": [event_document(event) for event in found], "next_after": found[-1].id if found else after}
        )

    async def events(
        self,
        request: Request,
        _caller: _Reader,
        after: _Behind = None,
        type: _Types = [],  # noqa: B006  FastAPI copies it
        execution: _OfExecution = None,
        project: Annotated[str | None, Query(max_length=200, description="Only this project's.")] = None,
        last_event_id: Annotated[
            str | None, Header(alias="Last-Event-ID", description="Resume behind this one.")
        ] = None,
    ) -> Response:
        """All facts as they happen (server-sent events), from now on or from behind one. Scope: read."""
        found = None if project is None else await self._project(project)
        return await self._own.hub.events_response(
            request, types=[str(each) for each in type], execution=execution, project=found, after=after
        )

    async def _project(self, name: str) -> Project:
        found = await self._own.history.find_project(name)
        if found is None:
            raise NotFound(f"there is no project {name[:80]!r}; GET /api/v1/projects lists them")
        return found

    async def artifact(
        self,
        _caller: _Reader,
        sha256: Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="As `artifacts` of an execution has it.")],
    ) -> Response:
        """A file that came with a result. Scope: read."""
        content = await self._own.artifact(sha256)
        headers = {"content-disposition": f'attachment; filename="{sha256}"', "x-content-type-options": "nosniff"}
        return Response(content, media_type="application/octet-stream", headers=headers)

    async def audit(
        self,
        _caller: Annotated[Caller, needs(Scope.ADMIN)],
        before: Annotated[int | None, Query(ge=1, le=LAST, description="Only those before this one.")] = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    ) -> Response:
        """Every call that was to change something, the newest first. Scope: admin."""
        calls = await self._own.audit.read(before=before, limit=limit)
        documents = [
            {
                "id": call.id,
                "at": rfc3339(call.at),
                "token": call.token,
                "actor": call.actor,
                "peer": call.peer,
                "method": call.method,
                "path": call.path,
                "status": call.status,
            }
            for call in calls
        ]
        return json_answer({"calls": documents, "next_before": calls[-1].id if len(calls) == limit else None})
