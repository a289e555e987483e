"""Claude Code, by its headless mode: `claude -p` with JSON lines in and out.

The prompt and the interrupt both go through standard input, so nothing of a task is seen in a process list, and a
cancel is the CLI's own. Measured with 2.1: an interrupt is obeyed at any time, before the first event too; the CLI
ends its tools, which run in sessions of their own where no signal to its group comes, writes the conversation down,
and exits.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pilot.backends.claude_cli import INTERRUPT, KEYS, account, arguments, bypasses, child_environment, message, places
from pilot.backends.claude_events import Record
from pilot.backends.claude_outcome import outcome, session_in_use, session_lost
from pilot.backends.program import not_started, version
from pilot.backends.reading import is_uuid
from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind
from pilot.domain.outcome import FailureClass, Outcome, failed
from pilot.domain.text import one_line
from pilot.runner.host import oom_kills
from pilot.runner.process import Process, running

GRACE = 5.0
"""Seconds for each way of asking it to end: the interrupt, SIGINT, SIGTERM."""
AFTER_RESULT = 10.0
"""Seconds to exit in after the result: the CLI itself ends background commands 5 s after it."""
CHECK_TIMEOUT = 5.0
REMEDY = "install it (npm install -g @anthropic-ai/claude-code) or set executor.claude-code.command"
LINE_LIMIT = 16 << 20
"""Lines of several MB occur: a tool's answer, or the result with the last message in it."""
STDERR_TAIL = 8 << 10


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


class ClaudeCode:
    """Runs `claude` (the Backend port).

    `environ` is pilot's own environment: what reaches the model is handed on from it (`claude_cli.ACCOUNT`,
    `CLOUDS`), so that an operator need not name a key in `executor.environment`. `environment` is what agents
    get by that setting; only `check` uses it, a run has its own. `root`: whether pilot runs as root.
    """

    def __init__(
        self,
        settings: ClaudeCodeSettings,
        *,
        environ: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        name: str = "claude-code",
        root: bool | None = None,
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
        self._root = os.geteuid() == 0 if root is None else root

    @property
    def name(self) -> str:
        """As routes and `--backend` call it."""
        return self._name

    def capabilities(self) -> Capabilities:
        """All there is; a cost is the CLI's own reckoning."""
        return Capabilities(resume=True, cost=True, questions=True, model=True, cancel=True)

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Run the CLI in the request's workspace until it has exited.

        A new session's id is chosen here and emitted before the process starts. A session to go on in that the
        CLI does not have gives a failure with `session_lost`: it belongs to one workspace path and one home, so
        the caller decides what a new one is told. A new session whose id is taken was begun by an earlier start
        of the same attempt, and is gone on with.
        """
        if not request.prompt.strip():
            return failed(FailureClass.AGENT, "the prompt is empty")
        resume = request.session_id is not None
        session = request.session_id or request.new_session_id or str(uuid.uuid4())
        if not is_uuid(session):
            # the CLI would look for a session of that *title*
            return session_lost(f"{one_line(session)} is no session of Claude Code")
        if not resume:
            await emit.session(session)
        run = await self._run(request, emit, session, resume=resume)
        if not resume and session_in_use(run.record, run.complaint):
            run = await self._run(request, emit, session, resume=True)
        if run.not_started is not None:
            return not_started(self._settings.command, request.workspace, run.not_started, REMEDY)
        return outcome(run.record, run.returncode, run.complaint, oom=run.oom)

    async def _run(self, request: AgentRequest, emit: Emit, session: str, *, resume: bool) -> _Run:
        """Start the CLI once and read it to its end."""
        run = _Run()
        before, begun = oom_kills(), False
        child = child_environment(self._settings, request.environment, self._environ, root=self._root)
        try:
            async with running(
                arguments(self._settings, request, session, resume=resume),
                cwd=request.workspace,
                env=child,
                marker=request.marker,
                stdin=message(request.prompt),
                keep_stdin=True,
                interrupt=_interrupt,
                grace=GRACE,
                line_limit=LINE_LIMIT,
                sandbox=request.sandbox,
                places=places(child),
            ) as process:
                begun = True
                run.returncode = await self._follow(process, run, emit, session)
        except OSError as error:
            if begun:  # then it is the caller's own
                raise
            run.not_started = error
        run.oom = oom_kills() > before
        return run

    async def _follow(self, process: Process, run: _Run, emit: Emit, session: str) -> int | None:
        """Hand on what it says; its exit status, or None when it stays after its result."""
        loop = asyncio.get_running_loop()
        lines = process.lines()
        deadline: float | None = None
        try:
            while True:
                # the limit is on waiting for the CLI, never on the store that takes its output
                async with asyncio.timeout_at(deadline):
                    line = await anext(lines, None)
                if line is None:
                    break
                if line.stream == "stderr":
                    run.complain(line.data)
                    await emit.output(OutputKind.STDERR, line.data + b"\n")
                    continue
                for kind, data in run.record.read(line.data, cut=line.cut):
                    if kind is OutputKind.STDOUT:
                        run.complain(line.data)
                    await emit.output(kind, data)
                if run.record.session_id not in (None, session):
                    session = run.record.session_id
                    await emit.session(session)
                if not run.record.ended:
                    deadline = None
                elif deadline is None:
                    deadline = loop.time() + AFTER_RESULT
                    await process.close_stdin()
        except TimeoutError:
            return None
        return await process.wait()

    def account(self) -> str:
        """The key that the CLI takes, or the login that it finds."""
        child = child_environment(self._settings, self._environment, self._environ, root=self._root)
        return account(child)

    async def check(self) -> list[Check]:
        """For doctor: found, version, an account in sight, and what it means to run as root."""
        child = child_environment(self._settings, self._environment, self._environ, root=self._root)
        path = shutil.which(self._settings.command, path=child.get("PATH"))
        if path is None:
            remedy = "npm install -g @anthropic-ai/claude-code, or set executor.claude-code.command"
            return [Check(self._name, False, f"{self._settings.command} is not on PATH", remedy)]
        checks = [await version(self._name, path, child, CHECK_TIMEOUT), self._account(child)]
        if self._root and bypasses(self._settings):
            checks.append(
                Check(
                    f"{self._name} as root",
                    None,
                    "runs as root with all permissions; IS_SANDBOX=1 is set, or it would refuse",
                    "run pilot as another user, in a container, or set permission_mode: acceptEdits",
                )
            )
        return checks

    def _account(self, child: Mapping[str, str]) -> Check:
        name = f"{self._name} account"
        for key in KEYS:
            if child.get(key):
                return Check(name, True, f"by {key}")
        home = child.get("CLAUDE_CONFIG_DIR") or str(Path(child.get("HOME", "/")) / ".claude")
        if (Path(home) / ".credentials.json").is_file():
            return Check(name, True, f"logged in ({home})")
        return Check(name, None, "no key and no login seen", "run `claude` once and log in, or set ANTHROPIC_API_KEY")


async def _interrupt(process: Process) -> None:
    """Ask the CLI to end its tools, write its session down and exit; the signals come when this returns."""
    try:
        await process.write(INTERRUPT)
    except BrokenPipeError:  # its input was closed after the result
        return
    await process.close_stdin()
    await process.wait()
