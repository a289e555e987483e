"""`/api/v1/work`: executions for workers elsewhere, fenced from the claim to the last word."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Coroutine, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Path, Request, Response

from pilot.api import given
from pilot.api.answers import body_errors, json_answer, moment_of
from pilot.api.asked import (
    LAST,
    ArtifactAsked,
    ClaimRequest,
    Completion,
    Failure,
    Heartbeat,
    NextAsked,
    OutputAsked,
    PieceAsked,
    Release,
)
from pilot.api.auth import needs
from pilot.api.claimants import Claimants
from pilot.api.outcomes import check_branch, completed, failed_with, usage_of
from pilot.api.services import Services
from pilot.domain.access import Caller, Scope
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, PilotError, UsageError
from pilot.domain.ports import Document
from pilot.domain.work import Artifact, Claim, Next, Progress, Settled, Wanted
from pilot.store.documents import execution_document, rfc3339

MAX_WAITING = 1_000
"""Claims that wait at a time, of everybody."""

_Caller = Annotated[Caller, needs(Scope.WORK)]
_Id = Annotated[int, Path(ge=1, le=LAST, description="The execution's id.")]


class WorkRoutes:
    """What workers call."""

    def __init__(self, services: Services) -> None:
        self._own = services
        self._claimants = Claimants()

    def add_to(self, app: FastAPI) -> None:
        """The routes. They answer by themselves; models are for the document alone."""

        def add(path: str, endpoint: Any, model: Any, *more: int) -> None:
            path = f"/api/v1/work{path}"
            app.add_api_route(
                path, endpoint, methods=["POST"], response_model=model, responses=body_errors(*more), tags=["work"]
            )

        add("/claim", self.claim, given.ClaimsGiven)
        add("/{id}/heartbeat", self.heartbeat, given.BeatenGiven, 404, 409)
        add("/{id}/complete", self.complete, given.SettledGiven, 404, 409)
        add("/{id}/fail", self.fail, given.SettledGiven, 404, 409)
        add("/{id}/release", self.release, given.SettledGiven, 404, 409)
        add("/{id}/output", self.write_output, given.WrittenGiven, 404, 409)

    async def claim(self, request: Request, body: ClaimRequest, caller: _Caller) -> Response:
        """Take executions: those that waited longest first, never beyond what their projects may run at once.

        With `wait_seconds` the answer comes as soon as there is one, or empty at the end of that time. Scope: work.
        """
        request.state.worker = body.worker
        if self._own.closing.is_set() or not self._own.ready():
            raise Busy("pilot is starting or going down, and gives no work; try again")
        wanted, lease = _wanted(body), round(body.lease_seconds * 1000)
        claiming = self._own.work.claim(body.worker, max=body.max, wanted=wanted, lease=lease, wait=body.wait_seconds)
        claims = await (self._patiently(request, body.worker, claiming) if body.wait_seconds else claiming)
        return json_answer({"executions": self._given(caller, claims)})

    def _given(self, caller: Caller, claims: Sequence[Claim]) -> list[Document]:
        for claim in claims:
            self._claimants.has(caller, claim.execution.id, claim.fence)
        return [claim_document(claim) for claim in claims]

    def _next(self, body: NextAsked | None) -> Next | None:
        """What to claim with a last word: that one counts also when nothing new is given."""
        if body is None or self._own.closing.is_set() or not self._own.ready():
            return None
        return Next(max=body.max, wanted=_wanted(body), lease=round(body.lease_seconds * 1000))

    def _settled(self, caller: Caller, settled: Settled) -> Response:
        document = execution_document(settled.execution, settled.after, settled.sandbox)
        claims = self._given(caller, settled.claims)
        return json_answer({"execution": document, "duplicate": settled.duplicate, "next": claims})

    async def _patiently(
        self, request: Request, worker: str, claiming: Coroutine[Any, Any, list[Claim]]
    ) -> list[Claim]:
        """The claims, or none once the caller hangs up or the server goes down: nobody is given what he can't get."""
        if self._own.waiting.count >= MAX_WAITING:
            claiming.close()
            raise Busy(f"{MAX_WAITING} claims wait already; try again, or without wait_seconds")
        self._own.waiting.count += 1
        claim = asyncio.create_task(claiming)
        gone = asyncio.create_task(_gone(request))
        ends = [gone, asyncio.create_task(self._own.closing.wait())]
        try:
            await asyncio.wait({claim, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if not claim.done():
                claim.cancel()
            await asyncio.wait({claim})
            found = [] if claim.cancelled() else claim.result()
            if found and gone.done():
                await self._give_back(worker, found)
            return found
        finally:
            self._own.waiting.count -= 1
            for task in (claim, *ends):
                task.cancel()

    async def _give_back(self, worker: str, claims: list[Claim]) -> None:
        for claim in claims:
            try:
                await self._own.work.release(claim.execution.id, worker, claim.fence, "its worker hung up")
            except PilotError:
                continue  # its lease ends soon

    async def heartbeat(self, request: Request, id: _Id, body: Heartbeat, caller: _Caller) -> Response:
        """Renew a lease, at half of it at the latest, and say how it goes. Scope: work."""
        request.state.worker = body.worker
        self._claimants.allow(caller, id, body.fence)
        said = {} if body.progress is None else body.progress.model_dump(exclude_none=True)
        check_branch(said.get("branch"))
        beaten = await self._own.work.heartbeat(
            id,
            body.worker,
            body.fence,
            lease=round(body.lease_seconds * 1000),
            progress=Progress(
                facts={name: self._own.redact(text) for name, text in said.items()},
                usage=None if body.usage is None else usage_of(body.usage),
            ),
        )
        self._claimants.renewed(caller, id, body.fence)
        return json_answer({"lease_until": rfc3339(beaten.lease_until), "cancel_requested": beaten.cancel_requested})

    async def complete(self, request: Request, id: _Id, body: Completion, caller: _Caller) -> Response:
        """The last word: it is done, changed nothing, or asks. Said again, it gets the same answer. Scope: work.

        A result is either one `.diff` or whole files, unless its payload says `#dual`. With `next` it claims, too.
        """
        request.state.worker = body.worker
        self._claimants.allow(caller, id, body.fence)
        outcome = completed(body, self._own.redact)
        artifacts = tuple(map(_artifact, body.artifacts))
        next = self._next(body.next)
        return self._settled(
            caller, await self._own.work.complete(id, body.worker, body.fence, outcome, artifacts, next=next)
        )

    async def fail(self, request: Request, id: _Id, body: Failure, caller: _Caller) -> Response:
        """The last word: it failed. What follows is admission's affair: another try, a person, the end. Scope: work."""
        request.state.worker = body.worker
        self._claimants.allow(caller, id, body.fence)
        retry_at = moment_of(body.retry_at, "retry_at")
        outcome = failed_with(body, retry_at, self._own.redact)
        next = self._next(body.next)
        return self._settled(caller, await self._own.work.fail(id, body.worker, body.fence, outcome, next=next))

    async def release(self, request: Request, id: _Id, body: Release, caller: _Caller) -> Response:
        """Give it back, uncounted; it is cancelled when somebody had asked for its end. Scope: work."""
        request.state.worker = body.worker
        self._claimants.allow(caller, id, body.fence)
        reason = self._own.redact(body.reason)
        return self._settled(caller, await self._own.work.release(id, body.worker, body.fence, reason))

    async def write_output(self, request: Request, id: _Id, body: OutputAsked, caller: _Caller) -> Response:
        """Append to what it wrote, in order. Scope: work."""
        request.state.worker = body.worker
        self._claimants.allow(caller, id, body.fence)
        pieces = [(OutputKind(piece.kind), self._own.redact_bytes(_bytes(piece))) for piece in body.pieces]
        await self._own.work.output(id, body.worker, body.fence, pieces)
        return json_answer({"written": len(pieces)})


def _wanted(body: ClaimRequest | NextAsked) -> Wanted:
    return Wanted(lanes=tuple(body.lanes), kinds=tuple(body.kinds), projects=tuple(body.projects))


def claim_document(claim: Claim) -> Document:
    """What a worker is given."""
    execution = claim.execution
    return execution_document(execution, [made.id for made in claim.made if made.direct]) | {
        "fence": claim.fence,
        "body": execution.body,
        "options": dict(execution.options),
        "feedback": execution.feedback,
        "lease_until": rfc3339(claim.lease_until),
        "made": [
            {
                "id": made.id,
                "task_id": made.task_id,
                "branch": made.branch,
                "head_sha": made.head_sha,
                "artifacts": [dict(artifact) for artifact in made.artifacts],
            }
            for made in claim.made
        ],
    }


def _artifact(asked: ArtifactAsked) -> Artifact:
    if asked.content is not None:
        return Artifact(asked.name, asked.content.encode())
    return Artifact(asked.name, _decoded(asked.content_base64 or "", "content_base64"))


def _bytes(piece: PieceAsked) -> bytes:
    return piece.text.encode() if piece.text is not None else _decoded(piece.base64 or "", "base64")


def _decoded(text: str, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UsageError(f"{what} is no base64") from None


async def _gone(request: Request) -> None:
    """Return when the caller hangs up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
