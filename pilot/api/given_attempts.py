"""What is answered of an execution's attempts, for the OpenAPI document; see `given`."""

from __future__ import annotations

from pydantic import BaseModel, JsonValue

from pilot.api.given import Time


class AttemptGiven(BaseModel):
    """The nth time that an execution was claimed."""

    number: int
    fence: int
    node: str
    phase: str | None
    backend: str
    model: str | None
    session_id: str | None
    started_at: Time
    finished_at: Time | None
    outcome: str | None
    failure_class: str | None
    detail: str | None
    excerpt: str | None
    summary: str | None
    gates: list[JsonValue]
    tree: str | None
    head_sha: str | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    account: str
    sandbox: str | None


class QuestionGiven(BaseModel):
    """What it asked, and what was answered; open while `answered_at` is null."""

    id: int
    execution_id: int
    attempt: int
    text: str
    options: list[str]
    preset: str | None
    asked_at: Time
    answer: str | None
    answered_by: str | None
    answered_at: Time | None


class AttemptsGiven(BaseModel):
    """All attempts, first to last, the questions, and the task's text."""

    body: str
    attempts: list[AttemptGiven]
    questions: list[QuestionGiven]
