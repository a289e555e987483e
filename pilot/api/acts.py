"""What people do to executions and projects: cancel, retry, answer, pause, resume."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Path, Response

from pilot.api import given
from pilot.api.answers import body_errors, json_answer
from pilot.api.asked import LAST, Answer, Nothing, Pause, Reason, Resume
from pilot.api.auth import needs
from pilot.api.services import Services
from pilot.domain.access import Caller, Scope
from pilot.domain.errors import NotFound, UsageError
from pilot.domain.task import Project

_Caller = Annotated[Caller, needs(Scope.ADMIN)]
_Id = Annotated[int, Path(ge=1, le=LAST, description="The execution's id.")]
_Name = Annotated[str, Path(min_length=1, max_length=200, description="The project's name.")]


class ActRoutes:
    """What needs the scope admin."""

    def __init__(self, services: Services) -> None:
        self._own = services

    def add_to(self, app: FastAPI) -> None:
        """The routes. They answer by themselves; models are for the document alone."""

        def add(path: str, endpoint: Any, model: Any, *more: int, tag: str = "executions", **also: Any) -> None:
            responses = body_errors(*more) | also.pop("responses", {})
            app.add_api_route(
                f"/api/v1{path}",
                endpoint,
                methods=["POST"],
                response_model=model,
                responses=responses,
                tags=[tag],
                **also,
            )

        new = {200: {"model": given.EnqueuedGiven, "description": "One that is open stands for it already."}}
        add("/executions/{id}/cancel", self.cancel, given.StandsGiven, 404)
        add("/executions/{id}/retry", self.retry, given.EnqueuedGiven, 404, status_code=201, responses=new)
        add("/executions/{id}/answer", self.answer, given.StandsGiven, 404)
        add("/projects/{name}/pause", self.pause, given.PausedGiven, 404, tag="projects")
        add("/projects/{name}/resume", self.resume, given.ResumedGiven, 404, tag="projects")
        add("/pause", self.pause_all, given.PausedGiven, tag="projects")
        add("/resume", self.resume_all, given.ResumedGiven, tag="projects")

    async def cancel(self, id: _Id, caller: _Caller, body: Reason | None = None) -> Response:
        """End it; who runs it is asked to, and ends the agent with all its processes. Scope: admin.

        One that has ended keeps its state, and the answer says which.
        """
        status = await self._own.queue.cancel(id, caller.name, body.reason if body else "")
        return json_answer({"id": id, "status": str(status)})

    async def retry(self, id: _Id, _caller: _Caller, body: Nothing | None = None) -> Response:
        """Run an ended execution's task anew, and what was cancelled with it where it is a plan's. Scope: admin."""
        new = await self._own.queue.retry(id)
        return json_answer(
            {"id": new.id, "status": str(new.status), "duplicate": new.duplicate},
            200 if new.duplicate else 201,
            {"location": f"/api/v1/executions/{new.id}"},
        )

    async def answer(self, id: _Id, caller: _Caller, body: Answer) -> Response:
        """Answer an execution that needs a human; the first answer counts. Scope: admin."""
        await self._own.queue.answer(id, body.text, caller.name)
        return json_answer({"id": id, "status": "queued"})

    async def pause(self, name: _Name, caller: _Caller, body: Pause | None = None) -> Response:
        """Start nothing new in a project; what runs goes on. Scope: admin."""
        return await self._pause(await self._project(name), caller, body or Pause())

    async def pause_all(self, caller: _Caller, body: Pause | None = None) -> Response:
        """Start nothing new at all. Scope: admin."""
        return await self._pause(None, caller, body or Pause())

    async def _pause(self, project: Project | None, caller: Caller, body: Pause) -> Response:
        owner = body.owner or caller.name
        await self._own.queue.pause(project.id if project else 0, owner, body.reason)
        return json_answer({"project": project.name if project else None, "owner": owner, "reason": body.reason})

    async def resume(self, name: _Name, caller: _Caller, body: Resume | None = None) -> Response:
        """Lift a project's pause. Scope: admin."""
        return await self._resume(await self._project(name), caller, body or Resume())

    async def resume_all(self, caller: _Caller, body: Resume | None = None) -> Response:
        """Lift the pause of everything. Scope: admin."""
        return await self._resume(None, caller, body or Resume())

    async def _resume(self, project: Project | None, caller: Caller, body: Resume) -> Response:
        owner = None if body.everybody else body.owner or caller.name
        id = project.id if project else 0
        lifted = await self._own.queue.resume(id, owner)
        left = await self._own.history.paused_by(id)
        if not lifted and left:
            raise UsageError(f"it is paused by {', '.join(left)}, not by {owner}; say `owner`, or `everybody`")
        return json_answer({"project": project.name if project else None, "lifted": lifted, "still_paused_by": left})

    async def _project(self, name: str) -> Project:
        found = await self._own.history.find_project(name)
        if found is None:
            raise NotFound(f"there is no project {name[:80]!r}; GET /api/v1/projects lists them")
        return found
