"""An agent for pilot, as a package of its own: the entry point `lines` of the group `pilot.backends` is `backend`.

It drives any program that takes a prompt on standard input and prints what it does, one JSON object per line:

    {"session": ID}   its conversation, which `--resume ID` goes on with
    {"say": TEXT}   {"call": TEXT}   {"answer": TEXT}   what it says, a tool that it calls, what the tool gave back
    {"used": {"in": TOKENS, "out": TOKENS, "usd": COST}}   what it has used up so far
    {"done": TEXT}   its last words; without them it has failed, whatever its exit code
    {"error": KIND, "text": TEXT, "until": UTC ms}   why it fails: login, limit, session, or anything else
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pilot.config.executor import ExecutorSettings
from pilot.domain.agent import AgentRequest, Backend, Capabilities, Check, Emit, OutputKind, Places
from pilot.domain.errors import ConfigError
from pilot.domain.outcome import Ending, FailureClass, Outcome, failed
from pilot.domain.text import fingerprint, tail
from pilot.runner.process import running
from pilot_lines.reading import Record

KEY = "LINES_API_KEY"
FAILURES = {"login": FailureClass.AUTH, "limit": FailureClass.RATE_LIMIT}
LINE_LIMIT = 4 << 20
"""Bytes of a line that are kept; what is longer is cut and can't be read."""


class LinesSettings(BaseModel):
    """What stands under `executor.settings` (or a profile's) in pilot.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str = "lines-agent"
    """The program, by name or path."""


def backend(name: str, settings: ExecutorSettings) -> Backend:
    """What the entry point is called for: once for each name under which pilot.yaml uses this type."""
    try:
        own = LinesSettings.model_validate(dict(settings.settings))
    except ValidationError as error:
        wrong = [f"settings.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError(wrong) from error
    return Lines(name, own.command, environment=settings.environment.variables(os.environ))


class Lines:
    """The Backend port, whose promises stand in pilot/domain/agent.py."""

    def __init__(self, name: str, command: str, *, environment: dict[str, str]) -> None:
        self._name = name
        # a relative path is the operator's, and never starts in a workspace that a ticket's author filled
        self._command = str(Path(command).expanduser().absolute()) if "/" in command else command
        self._environment = environment

    @property
    def name(self) -> str:
        return self._name

    def capabilities(self) -> Capabilities:
        return Capabilities(resume=True, cost=True)

    def account(self) -> str:
        return fingerprint({KEY: self._environment[KEY]}) if self._environment.get(KEY) else ""

    async def check(self) -> list[Check]:
        path = shutil.which(self._command, path=self._environment.get("PATH"))
        if path is None:
            remedy = "install it, or set executor.settings.command"
            return [Check(self._name, False, f"{self._command} is not there, or not executable", remedy)]
        remedy = f"set it under executor.environment.set: {{{KEY}: ...}}"
        return [
            Check(self._name, True, path),
            Check(f"{self._name} key", True if self.account() else None, f"{KEY} in the agent's environment", remedy),
        ]

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        if not request.prompt.strip():
            return failed(FailureClass.AGENT, "the prompt is empty")
        argv = [self._command, *(["--resume", request.session_id] if request.session_id else [])]
        record, code = Record(), None
        try:
            async with running(
                argv,
                cwd=request.workspace,
                env=request.environment,
                marker=request.marker,
                stdin=request.prompt.encode(errors="replace"),
                line_limit=LINE_LIMIT,
                sandbox=request.sandbox,
                places=self._places(request),
            ) as process:
                async for line in process.lines():
                    if line.stream == "stderr":
                        record.complain(line.data)
                        await emit.output(OutputKind.STDERR, line.data + b"\n")
                        continue
                    await emit.output(OutputKind.RAW, line.data + b"\n")
                    event = record.read(line.data)
                    if "session" in event and record.session_id:
                        await emit.session(record.session_id)
                    if "used" in event:
                        emit.usage(record.usage)
                    for kind, data in record.pieces(event):
                        await emit.output(kind, data)
                code = await process.wait()
        except OSError as error:
            return self._not_started(request, error)
        return self._outcome(record, code)

    def _places(self, request: AgentRequest) -> Places:
        home = request.environment.get("HOME", "/")
        return Places(state=(f"{home}/.lines",), settings=(f"{home}/.lines/settings.json",))

    def _not_started(self, request: AgentRequest, error: OSError) -> Outcome:
        why = f"{self._command} can't be started: {error.strerror or error}"
        if not Path(request.workspace).is_dir():
            return failed(FailureClass.INFRA, f"{why}; the workspace {request.workspace} is not there")
        return failed(FailureClass.INVALID_CONFIG, why)

    def _outcome(self, record: Record, code: int) -> Outcome:
        if record.done and code == 0:
            return Outcome(ending=Ending.DONE, text=record.text, session_id=record.session_id, usage=record.usage)
        return failed(
            FAILURES.get(record.error, FailureClass.AGENT),
            record.reason or f"{Path(self._command).name} exited with {code}, and not with its last words",
            excerpt=tail(record.complaint),
            text=record.text,
            session_id=record.session_id,
            session_lost=record.error == "session",
            retry_at=record.until,
            usage=record.usage,
        )
