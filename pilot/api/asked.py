"""What may be asked over HTTP: bodies, each field with its bounds. What is not named here is refused."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from fastapi import Header
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

LARGE = 1 << 53
"""Numbers below it are the same in every language's JSON."""
LAST = (1 << 63) - 1
DEEPEST = 50

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="The same key is the same request, for ever: it gets what the first one got. Of a plan: its `key`.",
    ),
]


class Asked(BaseModel):
    """A body: strict types, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _plain(value: Any, depth: int = 0) -> Any:
    """A JSON value that every database and terminal can hold: not too deep, finite, of whole characters."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    if isinstance(value, str):
        _whole(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("NaN and Infinity are no JSON")
    elif isinstance(value, int) and not -LARGE < value < LARGE:
        raise ValueError("a whole number may have 53 bits; write it as a string")
    elif isinstance(value, list):
        for each in value:
            _plain(each, depth + 1)
    elif isinstance(value, dict):
        for key, each in value.items():
            _plain(key)
            _plain(each, depth + 1)
    return value


def _whole(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair is no character") from error


Anything = Annotated[JsonValue, AfterValidator(_plain)]
Line = Annotated[str, Field(max_length=1_000)]
Words = Annotated[str, Field(max_length=1 << 20)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Worker = Annotated[
    str, Field(min_length=1, max_length=80, description="The worker's name, the same in all it says of a claim.")
]
Id = Annotated[int, Field(ge=1, le=LAST)]
Fence = Annotated[int, Field(ge=0, le=LAST, description="As the claim gave it.")]
Lane = Annotated[int, Field(ge=0, lt=1 << 31)]
Moment = Annotated[
    str,
    Field(
        max_length=40,
        description="A time, RFC 3339.",
        json_schema_extra={"format": "date-time"},
        examples=["2026-12-31T18:00:00Z"],
    ),
]
Lease = Annotated[
    float, Field(ge=1, le=3600, description="Seconds until it is taken back unless a heartbeat renews it.")
]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}([0-9a-f]{24})?$", description="A commit's or tree's hash.")]
Tokens = Annotated[int, Field(ge=0, lt=LARGE)]
Dollars = Annotated[float, Field(ge=0, lt=1e9)]
FailureWord = Literal[
    "lint", "test", "build", "ci", "agent", "no_change", "refusal", "timeout", "stall", "oom", "rate_limit", "quota",
    "auth", "invalid_config", "network", "conflict", "infra", "budget", "cancelled", "unknown",
]  # fmt: skip
KindWord = Literal["build", "test", "deploy", "code", "content", "plan"]


class NewExecution(Asked):
    """A task for the queue."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"project": "api", "title": "Say hello in the README", "task_id": "DOC-7", "kind": "content"}]
        }
    )

    project: Name = Field(description="A project's name in the server's configuration.")
    title: Line = Field(min_length=1, description="What is to be done, in a line; or a pointer such as `@cmd:make`.")
    body: Words = Field("", description="What is to be done, at length, as markdown.")
    task_id: Name | None = Field(None, description="Its reference outside; one open execution per project has it.")
    kind: KindWord = "code"
    priority: Annotated[int, Field(ge=0, lt=1 << 31)] = Field(2, description="Lower goes first.")
    lane: Lane = Field(0, description="Worker speciality.")
    after: list[Id] = Field([], max_length=1_000, description="Executions that have to have completed before.")
    payload: Anything = Field(None, description="Any JSON value, kept; a pointer such as `@file:…` is what is done.")
    labels: list[Line] = Field([], max_length=100)
    callback_url: Annotated[str, Field(max_length=2_000)] | None = Field(None, description="Told when it has ended.")
    available_at: Moment | None = Field(None, description="Not before.")
    source: Literal["api", "cli"] = "api"
    backend: Name | None = Field(None, description="This agent or profile, whatever the routes say.")
    model: Name | None = None
    max_attempts: Annotated[int, Field(ge=1, le=1_000)] | None = None
    dedupe: Name | None = Field(None, description="Names what it makes; what is known under it is not made again.")


class NewPlan(Asked):
    """A plan, as `markdown` or as `steps`; all of it goes in, or nothing."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "project": "api",
                    "markdown": "# Plan: Release\n\n- [ ] id=notes lane=1 payload=@doc:LLM_TASK write the notes\n",
                }
            ]
        }
    )

    project: Name
    markdown: Words | None = Field(None, description="As in `docs/plans.md`.")
    slug: Name | None = Field(None, description="The plan's name, with `steps`.")
    title: Line | None = None
    policy: dict[Name, bool | Line] | None = None
    steps: list[dict[str, Anything]] | None = Field(
        None, max_length=10_000, description="Each `{id, lane, payload, dependsOn?, dedupe?, kind?, title?, done?}`."
    )
    key: Name | None = Field(None, description="Another run of the same plan has another key.")

    @model_validator(mode="after")
    def _one_of_both(self) -> NewPlan:
        if (self.markdown is None) == (self.steps is None):
            raise ValueError("give either markdown or steps")
        if self.markdown is not None and (self.slug, self.title, self.policy) != (None, None, None):
            raise ValueError("slug, title and policy stand in the markdown itself")
        return self


class Reason(Asked):
    """Why, for the record."""

    reason: Line = ""


class Nothing(Asked):
    """No fields."""


class Answer(Asked):
    """A person's words to an execution that asks."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"text": "Take the second one."}]})

    text: Annotated[str, Field(min_length=1, max_length=100_000)]


class Pause(Asked):
    """Whose pause, and why."""

    owner: Name | None = Field(None, description="In whose name; the token's, unless said.")
    reason: Line = ""


class Resume(Asked):
    """Whose pause is lifted."""

    owner: Name | None = Field(None, description="This owner's; the token's, unless said.")
    everybody: bool = Field(False, description="Whoever paused it.")


class ClaimRequest(Asked):
    """What a worker takes; an empty list means any."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"worker": "mac-mini", "lanes": [2], "max": 1, "wait_seconds": 30}]}
    )

    worker: Worker
    lanes: list[Lane] = Field([], max_length=1_000)
    kinds: list[KindWord] = Field([], max_length=6)
    projects: list[Name] = Field([], max_length=1_000, description="Names; one that is not known gives nothing.")
    max: Annotated[int, Field(ge=1, le=100)] = 1
    lease_seconds: Lease = 30.0
    wait_seconds: Annotated[float, Field(ge=0, le=60)] = Field(0.0, description="Wait so long for the first.")


class NextAsked(Asked):
    """What the worker takes next, in the same call: as in a claim that does not wait."""

    lanes: list[Lane] = Field([], max_length=1_000)
    kinds: list[KindWord] = Field([], max_length=6)
    projects: list[Name] = Field([], max_length=1_000)
    max: Annotated[int, Field(ge=1, le=100)] = 1
    lease_seconds: Lease = 30.0


class UsageAsked(Asked):
    """What the attempt has used up so far, in all; what is not known is left out."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    cost_usd: Dollars | None = None


class ProgressAsked(Asked):
    """Facts of a run under way."""

    phase: Line | None = None
    session_id: Line | None = None
    model: Line | None = None
    workspace: Annotated[str, Field(max_length=4_096)] | None = None
    branch: Annotated[str, Field(max_length=250)] | None = None
    base_sha: Commit | None = None
    head_sha: Commit | None = None
    sandbox: Line | None = None


class Claimed(Asked):
    """Whose claim it is."""

    worker: Worker
    fence: Fence


class Heartbeat(Claimed):
    """A sign of life."""

    lease_seconds: Lease = 30.0
    progress: ProgressAsked | None = None
    usage: UsageAsked | None = None


class PieceAsked(Asked):
    """A piece of output: `text`, or any bytes as `base64`."""

    kind: Literal["stdout", "stderr", "raw", "text", "tool", "result", "pilot"] = "stdout"
    text: Words | None = None
    base64: Words | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> PieceAsked:
        if (self.text is None) == (self.base64 is None):
            raise ValueError("a piece has either text or base64")
        return self


class OutputAsked(Claimed):
    """More of what it wrote."""

    pieces: list[PieceAsked] = Field(min_length=1, max_length=1_000)


class QuestionAsked(Asked):
    """What a person has to say."""

    text: Annotated[str, Field(min_length=1, max_length=100_000)]
    options: list[Line] = Field([], max_length=20)
    default: Line | None = None


class GateAsked(Asked):
    """A check that the worker ran; `duration` is ms."""

    name: Name
    kind: Name
    command: Annotated[str, Field(max_length=10_000)]
    required: bool = True
    exit_code: Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)] | None = None
    duration: Annotated[int, Field(ge=0, lt=LARGE)] = 0
    tree: Annotated[str, Field(max_length=64)] = ""
    timed_out: bool = False
    tail: Annotated[str, Field(max_length=100_000)] = ""


class ArtifactAsked(Asked):
    """A file that comes with the result: `content` as text, or `content_base64`."""

    name: Annotated[str, Field(min_length=1, max_length=500)]
    content: Words | None = None
    content_base64: Words | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> ArtifactAsked:
        if (self.content is None) == (self.content_base64 is None):
            raise ValueError("an artifact has either content or content_base64")
        return self


class Completion(Claimed):
    """It is done, changed nothing, or asks."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"worker": "mac-mini", "fence": 7, "summary": "Said hello in README.md"}]}
    )

    outcome: Literal["done", "no_change", "question"] = "done"
    summary: Words = ""
    session_id: Line | None = None
    model: Line | None = None
    branch: Annotated[str, Field(min_length=1, max_length=250)] | None = None
    base_sha: Commit | None = None
    head_sha: Commit | None = None
    tree: Commit | None = None
    gates: list[GateAsked] = Field([], max_length=100)
    usage: UsageAsked | None = None
    question: QuestionAsked | None = None
    artifacts: list[ArtifactAsked] = Field([], max_length=64)
    next: NextAsked | None = Field(None, description="Claim this besides, if the last word counts.")

    @model_validator(mode="after")
    def _asks(self) -> Completion:
        if (self.outcome == "question") != (self.question is not None):
            raise ValueError("an outcome that is a question has a question, and no other has one")
        return self


class Failure(Claimed):
    """It failed."""

    failure_class: FailureWord = "agent"
    detail: Annotated[str, Field(min_length=1, max_length=10_000)]
    excerpt: Annotated[str, Field(max_length=100_000)] = Field("", description="The evidence.")
    summary: Words = ""
    retry_at: Moment | None = Field(None, description="When a rate limit ends, where it said so.")
    usage: UsageAsked | None = None
    session_id: Line | None = None
    model: Line | None = None
    next: NextAsked | None = Field(None, description="Claim this besides, if the last word counts.")


class Release(Claimed):
    """It is given back, uncounted."""

    reason: Line = ""
