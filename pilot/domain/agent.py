"""What pilot and a coding agent owe each other: the `Backend` port, and all that goes through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from pilot.domain.outcome import Outcome, Usage
from pilot.domain.payload import Payload


class OutputKind(StrEnum):
    """What a piece of an agent's output is."""

    STDOUT = "stdout"  #: a command's own words, as they came
    STDERR = "stderr"
    RAW = "raw"  #: a protocol line, as it came; shown by `logs --raw` only
    TEXT = "text"  #: what the model says, and nobody else: it has answered
    TOOL = "tool"  #: a tool it calls, in one line
    RESULT = "result"  #: what the tool gave back
    PILOT = "pilot"  #: pilot's own notes: phases, gates, cuts


class Emit(Protocol):
    """Where a backend and the runner put what happens, as it happens. Raises `LeaseLost`."""

    async def output(self, kind: OutputKind, data: bytes) -> None:
        """Take a piece in order; returns late when the store is behind (back-pressure)."""
        ...

    async def session(self, session_id: str) -> None:
        """The agent's session; stored before this returns."""
        ...

    def usage(self, usage: Usage) -> None:
        """What this run has used up so far, as far as it is known: replaces what was said before.

        It counts when the run comes to no outcome, and the runner ends one that goes past its budget by it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """What an agent's program has of its own on the machine; a sandbox gives it these and no other. Absolute paths.

    `state`: folders of its sessions and caches; in a sandbox they are the project's own, kept from run to run.
    `logins`: files that are the user's, written back (a token is renewed). `settings`: files and folders that
    steer it; the user's own, read only, and what is not there can't be made. `programs`: files and folders that
    it runs or reads besides its own program; read only. `fresh`: files that steer it and that it has to write: the
    user's are not shown, and what an earlier run left there is taken away before each.
    """

    state: tuple[str, ...] = ()
    logins: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


class Sandbox(Protocol):
    """What keeps one attempt's processes to their workspace. Made by the runner, for the attempt's workspace."""

    @property
    def name(self) -> str:
        """As `show` and doctor call it."""
        ...

    def command(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], places: Places) -> list[str]:
        """What to start instead of `argv`, with the same environment. Raises OSError as starting it would.

        Blocking, some milliseconds. The program's end by signal N is seen as exit code 128 + N.
        """
        ...

    def close(self) -> None:
        """The attempt is over, and nothing runs in it. More than once is no error."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRequest:
    """One run of an agent. `workspace` is absolute; times are seconds.

    `session_id` set: go on in that session. Else `new_session_id` (a UUID) may be used for the new one.
    `session_used` is what was booked for `session_id` before, for agents that count a session's whole life.
    `environment` is the whole environment, marker included. `sandbox`: start every process in it.
    `instructions` is the repository's own text for agents (AGENTS.md, CLAUDE.md), for backends that don't read it
    by themselves.
    """

    prompt: str
    workspace: str
    execution: int
    attempt: int
    project: str
    task_id: str
    environment: Mapping[str, str]
    marker: str
    model: str | None = None
    session_id: str | None = None
    new_session_id: str = ""
    instructions: str = ""
    timeout: float = 3600.0
    scratch: str = ""
    """A directory outside the workspace for prompt files; removed with the attempt. A sandbox shows it."""
    session_used: Usage = field(default_factory=Usage)
    sandbox: Sandbox | None = None
    budget_usd: float | None = None
    """What this run may cost at most, for agents that keep to a limit themselves; the runner watches, too."""
    kind: str = "code"
    payload: Payload | None = None
    """What is to be done without an agent; the prompt says nothing, then."""
    allow_commands: tuple[str, ...] = ()
    """The project's, as they are now."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; asking for more is an error at start.

    `sandbox`: it runs in pilot's sandbox. `runs`: it runs here at all; else it is left to remote workers.
    """

    resume: bool = False
    cost: bool = False
    questions: bool = False
    model: bool = False
    cancel: bool = True
    sandbox: bool = True
    runs: bool = True


@dataclass(frozen=True, slots=True)
class Check:
    """One line of `pilot doctor`: ok None means a warning."""

    name: str
    ok: bool | None
    detail: str
    remedy: str = ""


class Backend(Protocol):
    """A coding agent. One conformance suite for all."""

    @property
    def name(self) -> str:
        """As routes and `--backend` call it."""
        ...

    def capabilities(self) -> Capabilities:
        """What it can do, without starting it."""
        ...

    def account(self) -> str:
        """Whose allowance it uses up, as a short fingerprint, never a secret; "" when that can't be told.

        Backends with the same name and account are parked together.
        """
        ...

    async def check(self) -> list[Check]:
        """For doctor: found, version, logged in. Never raises, never sends a prompt."""
        ...

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Run the agent to its end: DONE (with or without a change), FAILED or QUESTION.

        Every tool call is emitted as TOOL when it begins and as RESULT when it is over, whatever came of it.

        Cancelling the task ends the agent and all its descendants before CancelledError leaves. Never raises for
        what the agent does; no process of the run is left when it returns, however it returns.
        """
        ...
