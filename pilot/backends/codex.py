"""Codex, by its non-interactive mode: `codex exec`, the prompt on standard input, JSON lines out.

Measured with 0.169. Its own sandbox lets commands write the workspace but for `.git`: pilot makes the commits itself.
SIGINT is obeyed at any time, in 40 ms: its commands are ended with it and the conversation can be gone on with. It
counts tokens over the whole life of a conversation, knows of no cost, and tells why it failed in words only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from pilot.backends import codex_login
from pilot.backends.codex_cli import (
    FULL_ACCESS,
    KEYS,
    account,
    arguments,
    child_environment,
    config_dir,
    find,
    message,
    mode,
    places,
)
from pilot.backends.codex_events import Record, no_helpers
from pilot.backends.codex_outcome import outcome, session_lost, usage
from pilot.backends.program import ask, not_started, version
from pilot.backends.reading import is_uuid
from pilot.config.executor import CodexSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage, failed
from pilot.domain.text import one_line
from pilot.runner.host import oom_kills
from pilot.runner.process import Process, running
from pilot.store import wall_clock

GRACE = 5.0
"""Seconds for each way of asking it to end: SIGINT, SIGTERM."""
AFTER_END = 10.0
"""Seconds to exit in after the end of its turn."""
HELD_UP = 120.0
"""Seconds for which it may wait for its model: it does so for ever when the network is away, or for the hours that
the model's server names, without a word. Longer, and pilot ends it and says why."""
CHECK_TIMEOUT = 5.0
LINE_LIMIT = 16 << 20
"""Lines of several MB occur: a command's output, or the last message."""
STDERR_TAIL = 8 << 10
REMEDY = "install it (npm install -g @openai/codex) or set executor.codex.command"


@dataclass(slots=True)
class _Run:
    record: Record = field(default_factory=Record)
    stderr: bytearray = field(default_factory=bytearray)
    returncode: int | None = None
    oom: bool = False
    not_started: OSError | None = None

    @property
    def complaint(self) -> str:
        return self.stderr.decode(errors="replace")

    def complain(self, data: bytes) -> None:
        self.stderr += data + b"\n"
        del self.stderr[:-STDERR_TAIL]


class Codex:
    """Runs `codex exec` (the Backend port).

    `environ` is pilot's own environment: what reaches the model is handed on from it (`codex_cli.ACCOUNT`).
    `environment` is what agents get by setting; only `check` and `account` use it, a run has its own. In a
    sandbox of pilot's it makes none of its own.
    """

    def __init__(
        self,
        settings: CodexSettings,
        *,
        environ: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        name: str = "codex",
    ) -> None:
        if "/" in settings.command:
            # a relative path is the operator's, and never starts in a workspace that a ticket's author filled
            absolute = str(Path(settings.command).expanduser().absolute())
            settings = settings.model_copy(update={"command": absolute})
        self._settings = settings
        self._environ = environ
        if environment is None:
            environment = {key: environ[key] for key in ("PATH", "HOME", "LANG") if key in environ}
        self._environment = environment
        self._name = name

    @property
    def name(self) -> str:
        """As routes and `--backend` call it."""
        return self._name

    def capabilities(self) -> Capabilities:
        """All but a cost. Read-only is kept by its own sandbox alone, which can't be made inside of another."""
        return Capabilities(resume=True, questions=True, model=True, sandbox=self._settings.sandbox != "read-only")

    def account(self) -> str:
        """The key that it takes, or the login that it finds."""
        return account(child_environment(self._environment, self._environ))

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Run it in the request's workspace until it has exited.

        Its id of a new session is emitted as soon as it says it. A session to go on in that it does not have gives
        a failure with `session_lost`, before the model is asked.
        """
        if (refusal := self._refusal(request)) is not None:
            return refusal
        child = child_environment(request.environment, self._environ)
        found = await asyncio.to_thread(find, self._settings.command, child.get("PATH"))
        program = found or self._settings.command
        if request.sandbox is None or not await asyncio.to_thread(codex_login.has_login, child):
            return await self._attempt(request, emit, program, child)
        await codex_login.renew(program, child, request.marker)
        begun = asyncio.get_running_loop().time()
        end = await self._attempt(request, emit, program, codex_login.inside(child))
        return codex_login.judged(end, asyncio.get_running_loop().time() - begun)

    def _refusal(self, request: AgentRequest) -> Outcome | None:
        """Why nothing is started for this request."""
        if not request.prompt.strip():
            return failed(FailureClass.AGENT, "the prompt is empty")
        if request.sandbox is not None and not self.capabilities().sandbox:
            words = f"{self._name} can't keep to read-only in pilot's sandbox"
            remedy = "set executor.codex.sandbox: workspace-write, or executor.sandbox: none"
            return failed(FailureClass.INVALID_CONFIG, f"{words}: {remedy}")
        if request.session_id is not None and not is_uuid(request.session_id):
            # it would begin a new one without a word
            return session_lost(f"{one_line(request.session_id)} is no session of Codex")
        return None

    async def _attempt(self, request: AgentRequest, emit: Emit, program: str, child: Mapping[str, str]) -> Outcome:
        run = await self._run(request, emit, program, child)
        if run.not_started is not None:
            return not_started(self._settings.command, request.workspace, run.not_started, REMEDY)
        end = self._judged(run, request, child)
        if end.ending is Ending.DONE and run.record.blames_sandbox and mode(self._settings, request) != FULL_ACCESS:
            # where its sandbox can't be made every command fails, no event tells of it, and the run succeeds
            works = await self._own_sandbox(program, child)
            if not works.ok:
                why = f"{works.detail}; {works.remedy}"
                return replace(end, ending=Ending.FAILED, failure=FailureClass.INVALID_CONFIG, detail=why)
        return end

    async def _run(self, request: AgentRequest, emit: Emit, program: str, child: Mapping[str, str]) -> _Run:
        """Start it once and read it to its end."""
        run = _Run()
        before, begun = oom_kills(), False
        try:
            async with running(
                arguments(self._settings, request, program),
                cwd=request.workspace,
                env=child,
                marker=request.marker,
                stdin=message(request),
                grace=GRACE,
                line_limit=LINE_LIMIT,
                sandbox=request.sandbox,
                places=places(child, program),
            ) as process:
                begun = True
                run.returncode = await self._follow(process, run, request, emit)
        except OSError as error:
            if begun:  # then it is the caller's own
                raise
            run.not_started = error
        run.oom = oom_kills() > before
        return run

    async def _follow(self, process: Process, run: _Run, request: AgentRequest, emit: Emit) -> int | None:
        """Hand on what it says; its exit status, or None when there is nothing more to be had from it."""
        loop, record = asyncio.get_running_loop(), run.record
        lines = process.lines()
        patience: float | None = None
        deadline: float | None = None
        while True:
            try:
                # the limit is on waiting for the program, never on the store that takes its output
                async with asyncio.timeout_at(deadline):
                    line = await anext(lines, None)
            except TimeoutError:
                return None
            if line is None:
                return await process.wait()
            if line.stream == "stderr":
                run.complain(line.data)
                record.complain(line.data.decode(errors="replace"))
                await emit.output(OutputKind.STDERR, line.data + b"\n")
            else:
                await self._hear(run, line.data, request, emit, cut=line.cut)
            if self._is_in_vain(record, request):
                return None
            wanted = AFTER_END if record.end else HELD_UP if record.waiting else None
            if wanted != patience:
                patience = wanted
                deadline = None if wanted is None else loop.time() + wanted

    async def _hear(self, run: _Run, line: bytes, request: AgentRequest, emit: Emit, *, cut: bool) -> None:
        record = run.record
        thread, end = record.thread, record.end
        for kind, data in record.read(line, cut=cut):
            if kind is OutputKind.STDOUT:
                run.complain(line)
            await emit.output(kind, data)
        if record.thread is not None and record.thread != thread and not self._is_in_vain(record, request):
            await emit.session(record.thread)
        if record.end is not None and end is None and (used := self._used(record, request)) != Usage():
            emit.usage(used)

    def _is_in_vain(self, record: Record, request: AgentRequest) -> bool:
        """It began another session than it was to go on in, or can't run a command: it must not go on."""
        return (request.session_id is not None and record.thread not in (None, request.session_id)) or bool(
            record.no_helpers and mode(self._settings, request) != FULL_ACCESS
        )

    def _used(self, record: Record, request: AgentRequest) -> Usage:
        return usage(record, request.session_used if request.session_id is not None else Usage())

    def _judged(self, run: _Run, request: AgentRequest, child: Mapping[str, str]) -> Outcome:
        record = run.record
        if request.session_id is not None and record.thread not in (None, request.session_id):
            return session_lost(f"it began {record.thread} instead of {request.session_id}")
        if self._is_in_vain(record, request):
            remedy = "set CODEX_HOME (or HOME) to a folder elsewhere that is there, or TMPDIR"
            detail = f"it can't run commands in its sandbox: {record.no_helpers}; {remedy}"
            return failed(FailureClass.INVALID_CONFIG, detail, excerpt=run.complaint)
        end = outcome(
            record,
            run.returncode,
            run.complaint,
            now=datetime.fromtimestamp(wall_clock() / 1000, _zone(child)),
            sandbox=mode(self._settings, request),
            oom=run.oom,
        )
        return replace(end, usage=self._used(record, request), model=request.model or self._settings.model)

    async def check(self) -> list[Check]:
        """For doctor: found, version, an account in sight, and whether its own sandbox works here."""
        child = child_environment(self._environment, self._environ)
        path = await asyncio.to_thread(find, self._settings.command, child.get("PATH"))
        if path is None:
            return [Check(self._name, False, f"{self._settings.command} is not on PATH", REMEDY)]
        checks = [await version(self._name, path, child, CHECK_TIMEOUT), self._account(child)]
        if self._settings.sandbox != FULL_ACCESS and checks[0].ok:
            checks.append(await self._own_sandbox(path, child))
        return checks

    def _account(self, child: Mapping[str, str]) -> Check:
        name, home = f"{self._name} account", config_dir(child)
        for key in KEYS[:2]:
            if child.get(key):
                return Check(name, True, f"by {key}")
        if (Path(home) / "auth.json").is_file():
            return Check(name, True, f"logged in ({home})")
        if child.get(KEYS[2]) or (Path(home) / "config.toml").is_file():
            return Check(name, None, f"no login seen; a provider of your own in {home}/config.toml may need none")
        return Check(name, None, "no key and no login seen", "run `codex login`, or set CODEX_API_KEY")

    async def _own_sandbox(self, path: str, child: Mapping[str, str]) -> Check:
        name, kind = f"{self._name} sandbox", self._settings.sandbox
        try:
            code, said = await ask(
                [path, "sandbox", "-c", f'sandbox_mode="{kind}"', "--", "true"], child, CHECK_TIMEOUT
            )
        except TimeoutError:
            code, said = 1, f"no answer in {CHECK_TIMEOUT:.0f} s"
        except OSError as error:
            code, said = 1, f"can't be run: {error.strerror or error}"
        if code == 0 and not no_helpers(said):
            return Check(name, True, f"{kind} works")
        remedy = "let agents run in pilot's sandbox (executor.sandbox), or set executor.codex.sandbox"
        return Check(
            name, None, f"{kind}, used without pilot's, does not work here: {said or f'exit status {code}'}", remedy
        )


def _zone(child: Mapping[str, str]) -> ZoneInfo | None:
    """The zone that the program tells times in; None: this machine's."""
    try:
        return ZoneInfo(child["TZ"])
    except (KeyError, ValueError, OSError):  # not set, or written in a way that only the C library reads
        return None
