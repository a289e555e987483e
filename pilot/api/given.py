"""What is answered, for the OpenAPI document.

The documents themselves are made in the store; a test holds both together. More fields may come: skip what you don't
know.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from pilot.api.asked import FailureWord

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"}, examples=["2026-01-31T12:00:00.000Z"])]
StatusWord = Literal["blocked", "queued", "running", "needs_human", "completed", "failed", "cancelled"]


class ProblemPart(BaseModel):
    """One thing that is wrong, and where."""

    where: str = Field(examples=["body.title"])
    what: str


class Problem(BaseModel):
    """An error (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["no execution 7"], description="What is wrong, and what to do.")
    errors: list[ProblemPart] | None = Field(None, description="Each thing that is wrong, where there are several.")


class UsageGiven(BaseModel):
    """What it has used up; null is unknown, and never 0."""

    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None


class ExecutionGiven(BaseModel):
    """The life of one task from queued to its end. Unknown is null."""

    id: int
    task_id: str
    title: str
    project: str
    project_path: str
    source: str
    kind: str
    labels: list[str]
    priority: int
    lane: int
    status: StatusWord
    reason: str | None
    outcome: str | None
    attempt: int
    failures: int
    max_attempts: int
    failure_class: FailureWord | None
    error: str | None
    backend: str
    model: str | None
    session_id: str | None
    branch: str | None
    base_sha: str | None
    head_sha: str | None
    workspace: str | None
    delivery: Literal["none", "branch", "pr_open", "merged", "closed"]
    pr_url: str | None
    checks: Literal["none", "pending", "passed", "failed"]
    usage: UsageGiven
    node: str | None
    fence: int
    after: list[int]
    plan: str | None
    payload: JsonValue
    artifacts: JsonValue = Field(description="`[{name, sha256, size}]`, or a pointer to another execution's.")
    callback_url: str | None
    parent: int | None
    available_at: Time
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    route: str | None = Field(description="Which rule chose the backend.")
    fallback: list[str]
    sandbox: str | None
    place: str | None


class MadeGiven(BaseModel):
    """What an execution that this one waited for has come to."""

    id: int
    task_id: str
    branch: str | None
    head_sha: str | None
    artifacts: list[JsonValue]


class ClaimGiven(ExecutionGiven):
    """What a worker holds until `lease_until`; its `fence` goes with all it says."""

    body: str
    options: dict[str, JsonValue]
    feedback: str | None = Field(description="What it is told when it goes on: an answer, or what failed.")
    lease_until: Time
    made: list[MadeGiven]


class ClaimsGiven(BaseModel):
    """None when nothing came in time."""

    executions: list[ClaimGiven]


class ExecutionsGiven(BaseModel):
    """A page."""

    executions: list[ExecutionGiven]
    next_cursor: str | None


class EnqueuedGiven(BaseModel):
    """What stands for the request; `duplicate`: it stood already."""

    id: int
    status: StatusWord
    duplicate: bool


class StandsGiven(BaseModel):
    """How it stands now; `running`: it is asked to end."""

    id: int
    status: StatusWord


class BeatenGiven(BaseModel):
    """The lease's new end. `cancel_requested`: stop, then release or fail."""

    lease_until: Time
    cancel_requested: bool


class SettledGiven(BaseModel):
    """The execution after a last word. `duplicate`: it had been said before. `next`: what was claimed besides."""

    execution: ExecutionGiven
    duplicate: bool
    next: list[ClaimGiven]


class WrittenGiven(BaseModel):
    """How many pieces."""

    written: int


class HoldGiven(BaseModel):
    """A reason why it does not run."""

    kind: str
    detail: str
    execution: int | None
    until: Time | None


class WhyGiven(BaseModel):
    """The answer to "why is it not running?"."""

    id: int
    status: StatusWord
    position: int | None
    holds: list[HoldGiven]
    next: str


class PieceGiven(BaseModel):
    """A piece of output; `text`, or `base64` where the bytes are no UTF-8."""

    attempt: int
    seq: int
    at: Time
    kind: str
    text: str | None = Field(None, json_schema_extra={"type": "string"})
    base64: str | None = None


class OutputGiven(BaseModel):
    """A page of output; ask again with `after=next_after`."""

    output: list[PieceGiven]
    next_after: str | None


class EventGiven(BaseModel):
    """A fact."""

    id: int
    at: Time
    type: str = Field(examples=["execution.completed"])
    execution: int | None
    project_id: int | None
    data: dict[str, JsonValue]


class EventsGiven(BaseModel):
    """A page of facts; ask again with `after=next_after`."""

    events: list[EventGiven]
    next_after: int | None


class ProjectGiven(BaseModel):
    """A project as it stands."""

    name: str
    path: str
    running: int
    max_running: int
    queued: int
    paused: bool


class ProjectsGiven(BaseModel):
    """All that the store knows."""

    projects: list[ProjectGiven]


class PausedGiven(BaseModel):
    """A pause; project null: of everything."""

    project: str | None
    owner: str
    reason: str


class ResumedGiven(BaseModel):
    """Whose pauses were lifted, and whose stand."""

    project: str | None
    lifted: list[str]
    still_paused_by: list[str]


class NodeGiven(BaseModel):
    """A process that claims."""

    id: str
    kind: str
    host: str
    place: str | None
    pid: int
    version: str
    state: str
    running: int
    max_running: int | None
    started_at: Time
    seen_at: Time


class NodesGiven(BaseModel):
    """All that are known."""

    nodes: list[NodeGiven]


class StepGiven(BaseModel):
    """A step, and the execution that stands for it."""

    id: str
    task_id: str
    execution: int
    status: StatusWord
    duplicate: bool


class PlanGiven(BaseModel):
    """What a plan has become, in its own order."""

    plan: str
    steps: list[StepGiven]


class CallGiven(BaseModel):
    """A call that was to change something."""

    id: int
    at: Time
    token: str
    actor: str
    peer: str
    method: str
    path: str
    status: int


class CallsGiven(BaseModel):
    """The newest first; ask again with `before=next_before`."""

    calls: list[CallGiven]
    next_before: int | None


class HealthGiven(BaseModel):
    """Whether it is well."""

    status: str
