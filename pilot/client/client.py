"""`Client`: everything that `/api/v1` offers, typed; as a worker's queue it is the store's own port."""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from pilot.client import documents
from pilot.client.documents import field_of, items_of
from pilot.client.events import Followed
from pilot.client.wire import Wire
from pilot.domain.agent import OutputKind
from pilot.domain.errors import Busy, StoreError
from pilot.domain.execution import Enqueued, Execution, Status
from pilot.domain.outcome import Outcome
from pilot.domain.ports import Document
from pilot.domain.work import LEASE, Artifact, Beaten, Claim, Next, Progress, Settled, Wanted

API = "/api/v1"
_ANY = Wanted()
_NOTHING = Progress()


class Client:
    """Implements `work.WorkQueue` over HTTP, and what people and programs do besides. An async context manager.

    What may be repeated is sent again, a few times; after that `Busy`. Raises the same errors as the store does, and
    `UsageError` for a token that does not count or may not.
    """

    def __init__(self, url: str, token: str, *, jitter: Callable[[], float] = random.random) -> None:
        self._wire = Wire(url, token, jitter=jitter)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._wire.close()

    @property
    def place(self) -> str:
        """Whom it talks to, for people: host and port."""
        return self._wire.place

    # As a worker

    async def claim(
        self,
        worker: str,
        *,
        max: int = 1,
        wanted: Wanted = _ANY,
        lease: int = LEASE,
        wait: float = 0.0,
    ) -> list[Claim]:
        """See `WorkQueue.claim`. Never sent twice: a claim whose answer is lost comes back when its lease ends."""
        body = documents.next_document(Next(max=max, wanted=wanted, lease=lease))
        body |= {"worker": worker, "wait_seconds": wait}
        answer = await self._wire.call("POST", f"{API}/work/claim", body, again=False, wait=wait)
        return items_of(answer, "executions", documents.claim_of)

    async def heartbeat(
        self,
        id: int,
        worker: str,
        fence: int,
        *,
        lease: int = LEASE,
        progress: Progress = _NOTHING,
    ) -> Beaten:
        """See `WorkQueue.heartbeat`."""
        body = {"lease_seconds": lease / 1000} | documents.progress_document(progress)
        return documents.beaten_of(await self._say(id, worker, fence, "heartbeat", body))

    async def output(self, id: int, worker: str, fence: int, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        """See `WorkQueue.output`. Not sent again by itself: it would stand there twice."""
        if not pieces:
            return
        body = {"pieces": [documents.piece_document(piece) for piece in pieces]}
        await self._say(id, worker, fence, "output", body, again=False)

    async def complete(
        self,
        id: int,
        worker: str,
        fence: int,
        outcome: Outcome,
        artifacts: Sequence[Artifact] = (),
        *,
        next: Next | None = None,
    ) -> Settled:
        """See `WorkQueue.complete`."""
        return await self._end(id, worker, fence, "complete", documents.complete_document(outcome, artifacts), next)

    async def fail(self, id: int, worker: str, fence: int, outcome: Outcome, *, next: Next | None = None) -> Settled:
        """See `WorkQueue.fail`."""
        return await self._end(id, worker, fence, "fail", documents.fail_document(outcome), next)

    async def _end(
        self, id: int, worker: str, fence: int, verb: str, body: Mapping[str, Any], next: Next | None
    ) -> Settled:
        if next is not None:
            more = {**body, "next": documents.next_document(next)}
            # When its answer is lost the word is said again, and the claim is not: see `claim`.
            with contextlib.suppress(Busy, StoreError):
                return documents.settled_of(await self._say(id, worker, fence, verb, more, again=False))
        return documents.settled_of(await self._say(id, worker, fence, verb, body))

    async def release(self, id: int, worker: str, fence: int, reason: str = "") -> Settled:
        """See `WorkQueue.release`."""
        body = {"reason": reason} if reason else {}
        return documents.settled_of(await self._say(id, worker, fence, "release", body))

    async def _say(
        self, id: int, worker: str, fence: int, verb: str, body: Mapping[str, Any], *, again: bool = True
    ) -> Any:
        told = {"worker": worker, "fence": fence, **body}
        return await self._wire.call("POST", f"{API}/work/{id}/{verb}", told, again=again)

    # Tasks and plans

    async def enqueue(
        self,
        project: str,
        title: str,
        *,
        body: str | None = None,
        task_id: str | None = None,
        kind: str | None = None,
        priority: int | None = None,
        lane: int | None = None,
        after: Sequence[int] = (),
        payload: Any = None,
        labels: Sequence[str] = (),
        callback_url: str | None = None,
        available_at: int | None = None,
        source: str | None = None,
        backend: str | None = None,
        model: str | None = None,
        key: str | None = None,
    ) -> Enqueued:
        """Put a task in; `available_at` is UTC ms. `key`: the same one is the same request, for ever."""
        told = {
            "project": project,
            "title": title,
            "body": body,
            "task_id": task_id,
            "kind": kind,
            "priority": priority,
            "lane": lane,
            "after": list(after) or None,
            "payload": payload,
            "labels": list(labels) or None,
            "callback_url": callback_url,
            "source": source,
            "backend": backend,
            "model": model,
            "available_at": None if available_at is None else documents.rfc3339(available_at),
        }
        answer = await self._wire.call(
            "POST",
            f"{API}/executions",
            {name: value for name, value in told.items() if value is not None},
            again=True,
            headers={"Idempotency-Key": key or str(uuid.uuid4())},
        )
        return documents.enqueued_of(answer)

    async def submit(self, plan: Mapping[str, Any]) -> Document:
        """Put a plan in, as the document that `POST /plans` takes. All of it, or nothing; again changes nothing."""
        return dict(await self._wire.call("POST", f"{API}/plans", dict(plan), again=True))

    async def cancel(self, id: int, reason: str = "") -> Status:
        """End it, or ask its node to: `cancelled`, `running` (asked) or the final state it had."""
        body = {"reason": reason} if reason else {}
        answer = await self._wire.call("POST", f"{API}/executions/{id}/cancel", body, again=True)
        return Status(field_of(answer, "status", str))

    async def retry(self, id: int) -> Enqueued:
        """Run an ended execution's task anew."""
        return documents.enqueued_of(await self._wire.call("POST", f"{API}/executions/{id}/retry", {}, again=False))

    async def answer(self, id: int, text: str) -> None:
        """A person's words for an execution that needs a human."""
        await self._wire.call("POST", f"{API}/executions/{id}/answer", {"text": text}, again=False)

    async def pause(self, project: str | None, *, owner: str | None = None, reason: str = "") -> Document:
        """Start nothing new in a project; None: at all."""
        return await self._project(project, "pause", owner=owner, reason=reason or None)

    async def resume(self, project: str | None, *, owner: str | None = None, everybody: bool = False) -> Document:
        """Lift a pause: one's own, somebody's, or all."""
        return await self._project(project, "resume", owner=owner, everybody=everybody or None)

    async def _project(self, project: str | None, verb: str, **body: Any) -> Document:
        told = {name: value for name, value in body.items() if value is not None}
        where = "" if project is None else f"/projects/{quote(project, safe='')}"
        return dict(await self._wire.call("POST", f"{API}{where}/{verb}", told, again=True))

    # Reading

    async def document(self, id: int) -> Document:
        """The execution document."""
        return dict(await self._wire.call("GET", f"{API}/executions/{id}", again=True))

    async def get(self, id: int) -> Execution:
        """One execution."""
        return documents.execution_of(await self.document(id))

    async def list(
        self,
        *,
        status: Sequence[str] = (),
        project: str | None = None,
        source: str | None = None,
        task_id: str | None = None,
        everything: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
    ) -> Document:
        """A page: `{"executions": […], "next_cursor": …}`."""
        params = {
            "status": tuple(status),
            "project": project,
            "source": source,
            "task_id": task_id,
            "all": "true" if everything else None,
            "limit": limit,
            "cursor": cursor,
        }
        return await self._read("/executions", params)

    async def why(self, id: int) -> Document:
        """Why it is not running, and what happens next."""
        return await self._read(f"/executions/{id}/why")

    async def pieces(
        self, id: int, *, after: str | None = None, attempt: int | None = None, limit: int | None = None
    ) -> Document:
        """What its agents wrote, a page of it: `{"output": […], "next_after": …}`, which goes into `after`."""
        return await self._read(f"/executions/{id}/output", {"after": after, "attempt": attempt, "limit": limit})

    async def projects(self) -> Document:
        """All that the server knows."""
        return await self._read("/projects")

    async def stats(self) -> Document:
        """Counts, throughput, failures."""
        return await self._read("/stats")

    async def nodes(self) -> Document:
        """Who claims."""
        return await self._read("/nodes")

    async def status(self) -> Document:
        """All of `status --json`."""
        return await self._read("/status")

    async def attempts(self, id: int) -> Document:
        """Its attempts, and what was asked in them."""
        return await self._read(f"/executions/{id}/attempts")

    async def event_log(
        self,
        *,
        after: int | None = None,
        types: Sequence[str] = (),
        execution: int | None = None,
        limit: int | None = None,
    ) -> Document:
        """Events of before, a page of them: `{"events": […], "next_after": …}`."""
        params = {"after": after, "type": tuple(types), "execution": execution, "limit": limit}
        return await self._read("/event-log", params)

    async def artifact(self, sha256: str) -> bytes:
        """A file that came with a result."""
        content: bytes = await self._wire.call("GET", f"{API}/artifacts/{sha256}", again=True, raw=True)
        return content

    async def _read(self, path: str, params: Mapping[str, Any] | None = None) -> Document:
        return dict(await self._wire.call("GET", f"{API}{path}", again=True, params=params))

    # Following

    def events(
        self, *, after: int | None = None, types: Sequence[str] = (), execution: int | None = None
    ) -> AsyncIterator[Document]:
        """All that happens, from behind the event `after` (None: from now on), for ever; resumed by itself."""
        params = {"type": tuple(types), "execution": execution}
        return Followed(self._wire, f"{API}/events", params, None if after is None else str(after)).documents()

    def stream(self, id: int) -> AsyncIterator[tuple[str, Document]]:
        """One execution's events and output, each with its kind, until it ends; resumed by itself."""
        return Followed(self._wire, f"{API}/executions/{id}/stream", {}, None).pairs()

    async def settled(self, id: int) -> Execution:
        """The execution once it is final, or needs a human."""
        pause = 0.1
        while True:
            execution = await self.get(id)
            if execution.status.final or execution.status is Status.NEEDS_HUMAN:
                return execution
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 2.0)
