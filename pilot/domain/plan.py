"""Plans: markdown or JSON, checked whole, as steps that wait for each other. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pilot.domain.errors import UsageError
from pilot.domain.payload import Payload


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a plan; `line` counts from 1 (JSON: the step's number), 0: of the whole."""

    line: int
    text: str


class PlanError(UsageError):
    """A plan can't be used; carries all problems, in the order of their lines."""

    def __init__(self, name: str, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(f"{name}:{p.line}: {p.text}" if p.line else f"{name}: {p.text}" for p in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node. `deps` are ids of other steps. `done`: it is ticked off; nobody does it.

    `kind` and `title`: where they are said; `line` as in `Problem`.
    """

    id: str
    lane: int
    payload: Payload
    deps: tuple[str, ...] = ()
    dedupe: str | None = None
    kind: str | None = None
    title: str | None = None
    done: bool = False
    line: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A checked plan: ids are unique, every dependency is there, and there is no cycle. `steps` as written."""

    slug: str
    title: str
    steps: tuple[Step, ...]
    policy: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """What it says, in 16 hex digits: spaces, prose and the order of keys don't count."""
        raise NotImplementedError

    def task_id(self, step: Step) -> str:
        """The step's task id: `{slug}::{id}`."""
        return f"{self.slug}::{step.id}"


def parse_markdown(text: str, name: str = "plan") -> Plan:
    """Read and check. Raises `PlanError` with everything that is wrong."""
    raise NotImplementedError


def parse_json(document: Any, name: str = "plan") -> Plan:
    """Read and check `{"slug", "title"?, "policy"?, "steps": [{"id", "lane", "payload", "dependsOn"?, …}]}`."""
    raise NotImplementedError


def in_order(plan: Plan) -> list[Step]:
    """Its steps, each behind what it waits for; otherwise as written."""
    raise NotImplementedError
