"""`/api/v1/plans`: a plan in, whole or not at all."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Request, Response

from pilot.api import given
from pilot.api.answers import body_errors, json_answer
from pilot.api.asked import IdempotencyKey, NewPlan
from pilot.api.auth import allow_commands, needs
from pilot.api.services import Services
from pilot.domain.access import Caller, Scope
from pilot.domain.errors import UsageError
from pilot.domain.plan import Plan, parse_json, parse_markdown


class PlanRoutes:
    """Where plans go in."""

    def __init__(self, services: Services) -> None:
        self._own = services

    def add_to(self, app: FastAPI) -> None:
        """The route. It answers by itself; models are for the document alone."""
        app.add_api_route(
            "/api/v1/plans",
            self.submit,
            methods=["POST"],
            tags=["plans"],
            status_code=201,
            response_model=given.PlanGiven,
            responses=body_errors(404)
            | {200: {"model": given.PlanGiven, "description": "It had been submitted; nothing is new."}},
        )

    async def submit(
        self,
        request: Request,
        body: NewPlan,
        caller: Annotated[Caller, needs(Scope.WORK)],
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Check a plan, and put all its steps into the queue; twice is once. Scope: work; admin for what runs programs.

        Everything that is wrong with it is said at once, each with its line, and then nothing was put in.
        """
        if None not in (body.key, idempotency_key) and body.key != idempotency_key:
            raise UsageError("key and Idempotency-Key are two different ones; give one of them")
        plan = _plan(body)
        key = body.key or idempotency_key
        answers = await self._own.door.submit_plan(plan, body.project, key, lambda: allow_commands(request, caller))
        steps = [
            {
                "id": step.id,
                "task_id": plan.task_id(step),
                "execution": new.id,
                "status": str(new.status),
                "duplicate": new.duplicate,
            }
            for step, new in zip(plan.steps, answers, strict=True)
        ]
        status = 200 if all(new.duplicate for new in answers) else 201
        return json_answer({"plan": plan.slug, "steps": steps}, status)


def _plan(body: NewPlan) -> Plan:
    if body.markdown is not None:
        return parse_markdown(body.markdown)
    document = {"slug": body.slug, "title": body.title, "policy": body.policy, "steps": body.steps}
    return parse_json({name: value for name, value in document.items() if value is not None})
