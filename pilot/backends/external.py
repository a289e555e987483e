"""Nobody here: what goes to it waits until a worker elsewhere claims it over HTTP."""

from __future__ import annotations

from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit
from pilot.domain.outcome import FailureClass, Outcome, failed


class External:
    """Stands for the workers of other machines, panes and scripts (the Backend port)."""

    def __init__(self, *, name: str = "external") -> None:
        self._name = name

    @property
    def name(self) -> str:
        """As routes and `--backend` call it."""
        return self._name

    def capabilities(self) -> Capabilities:
        """A worker knows its own agent, so a model may be asked for; nothing is run here."""
        return Capabilities(resume=True, cost=True, questions=True, model=True, sandbox=False, runs=False)

    def account(self) -> str:
        """Nobody's that could be told."""
        return ""

    async def check(self) -> list[Check]:
        """For doctor: what it is."""
        return [Check(self._name, True, "runs nothing here: its tasks wait for a worker that claims over HTTP")]

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Never asked: no claim of this machine takes such a task."""
        return failed(FailureClass.INVALID_CONFIG, f"{self._name} runs nothing here; a worker claims it over HTTP")
