"""Any program as an agent: exit code 0 is success, its output the transcript."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from pilot.config.executor import CommandSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind, Places
from pilot.domain.errors import ConfigError
from pilot.domain.outcome import Ending, FailureClass, Outcome, failed
from pilot.domain.text import clean, for_terminal, one_line, tail
from pilot.runner.host import oom_kills
from pilot.runner.process import Process, Stream, running

TEXT = 64 << 10
"""Bytes of the end of the transcript that are its text."""
GATHER = 0.02
"""Seconds in which lines are gathered into one piece: a programme that prints a lot prints many short ones."""

_KINDS: Mapping[Stream, OutputKind] = {"stdout": OutputKind.STDOUT, "stderr": OutputKind.STDERR}
_PLACE = re.compile(r"\{(workspace|project|execution|task_id|model|prompt_file)\}")
_NOT_RUNNABLE = {126: "is not executable", 127: "was not found"}


class Command:
    """Runs one program per task, in the workspace (the Backend port). `environment`: what agents get, for `check`."""

    def __init__(
        self, settings: CommandSettings, *, name: str = "command", environment: Mapping[str, str] | None = None
    ) -> None:
        if not settings.argv:
            raise ConfigError([f"agent {name} is of type command and has no argv: say executor.command.argv"])
        places = {place for item in settings.argv for place in _PLACE.findall(item)}
        if settings.prompt == "file" and "prompt_file" not in places:
            raise ConfigError([f"agent {name} gets its prompt as a file, and its argv has no {{prompt_file}}"])
        program = settings.argv[0]
        if "/" in program and not _PLACE.search(program):
            # a relative path is the operator's, and never starts in a workspace that a ticket's author filled
            program = str(Path(program).expanduser().absolute())
        self._argv = (program, *settings.argv[1:])
        self._prompt = settings.prompt
        self._places = places
        self._name = name
        self._environment = os.environ if environment is None else environment

    @property
    def name(self) -> str:
        """As routes and `--backend` call it."""
        return self._name

    def capabilities(self) -> Capabilities:
        """What any program can do; a model can be chosen when there is a place for it."""
        return Capabilities(questions=True, model="model" in self._places)

    def account(self) -> str:
        """Nobody's that could be told."""
        return ""

    async def check(self) -> list[Check]:
        """For doctor: whether the program is there."""
        program = self._argv[0]
        if _PLACE.search(program):
            return [Check(self._name, None, f"{program} is another program for every task, so it was not looked for")]
        path = shutil.which(program, path=self._environment.get("PATH"))
        if path is None:
            remedy = "install it, or set executor.command.argv (agents find programs by executor.environment's PATH)"
            return [Check(self._name, False, f"{program} is not there, or not executable", remedy)]
        return [Check(self._name, True, path)]

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Run it until it exits. Output is emitted as it comes, bytes as they are, in pieces of any size."""
        if problem := self._problem(request):
            return failed(FailureClass.AGENT, problem)
        prompt = clean(_whole(request))
        file: Path | None = None
        try:
            if "prompt_file" in self._places:
                file = await asyncio.to_thread(_written, prompt, request.scratch)
            return await self._run(request, emit, self._arguments(request, prompt, file), prompt)
        except _NotStarted as error:
            return self._not_started(request, error.reason)
        finally:
            if file is not None:
                with contextlib.suppress(OSError):  # it's the agent's to do with as it likes
                    file.unlink(missing_ok=True)

    async def _run(self, request: AgentRequest, emit: Emit, argv: Sequence[str], prompt: str) -> Outcome:
        before = oom_kills()
        ends: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        stdin = prompt.encode() if self._prompt == "stdin" else None
        async with _started(argv, request, stdin, self._own_places()) as process:
            async for stream, data in process.chunks(gather=GATHER):
                ends[stream] += data[-TEXT:]
                del ends[stream][:-TEXT]
                await emit.output(_KINDS[stream], data)
            code = await process.wait()
        said, complaint = (_text(ends[stream]) for stream in ("stdout", "stderr"))
        text = said if said.strip() else complaint
        if code == 0:
            return Outcome(ending=Ending.DONE, text=text, model=request.model)
        excerpt = for_terminal(tail(complaint if complaint.strip() else said)).strip()
        return self._failure(code, text, excerpt, oom=oom_kills() > before)

    def _problem(self, request: AgentRequest) -> str:
        """Why it can't do this one task, in words; "" when it can."""
        if not request.prompt.strip():
            return "the prompt is empty"
        if request.session_id is not None:
            return f"{self._name} has no sessions, so it can't go on in one"
        if request.model and "model" not in self._places:
            return f"{self._name} can't be given the model {one_line(request.model)}: its argv has no {{model}}"
        for place, value in (("task_id", request.task_id), ("model", request.model or "")):
            # what a task's author chose must not be an option; the program itself decides what `--x={task_id}` means
            if value.startswith("-") and any(item.startswith(f"{{{place}}}") for item in self._argv):
                return f"{self._name} would take the {place} {one_line(value)} for an option"
        return ""

    def _arguments(self, request: AgentRequest, prompt: str, file: Path | None) -> list[str]:
        values = {
            "workspace": request.workspace,
            "project": request.project,
            "execution": str(request.execution),
            "task_id": request.task_id,
            "model": request.model or "",
            "prompt_file": str(file),
        }
        argv = [_PLACE.sub(lambda place: clean(values[place[1]]), item) for item in self._argv]
        if self._prompt == "argument":
            # an issue that begins with a dash must not be an option
            argv.append(f" {prompt}" if prompt.startswith("-") else prompt)
        return argv

    def _own_places(self) -> Places:
        """Scripts that stand in the configured argv, as an interpreter's argument; never what a task put there."""
        words = (word for word in self._argv[1:] if word.startswith("/") and not _PLACE.search(word))
        return Places(programs=tuple(word for word in words if Path(word).is_file()))

    def _not_started(self, request: AgentRequest, error: OSError) -> Outcome:
        program = self._argv[0]
        why = f"{program} can't be started: {error.strerror or error}"
        if not Path(request.workspace).is_dir():
            return failed(FailureClass.INFRA, f"the workspace {request.workspace} is not there", excerpt=why)
        if error.errno == errno.E2BIG:
            size = len(request.prompt.encode(errors="replace"))
            detail = f"{why}; the prompt has {size} bytes: with executor.command.prompt: stdin (or file) it may"
            return failed(FailureClass.AGENT, detail, excerpt=why)
        if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.EPERM, errno.ENOTDIR):
            # the same for every task until a person installs it or names it rightly
            return failed(FailureClass.INVALID_CONFIG, f"{why}; install it or set executor.command.argv", excerpt=why)
        return failed(FailureClass.INFRA, why, excerpt=why)

    def _failure(self, code: int, text: str, excerpt: str, *, oom: bool) -> Outcome:
        program = Path(self._argv[0]).name
        last = one_line(excerpt.rpartition("\n")[2])
        if code in _NOT_RUNNABLE:
            failure = FailureClass.INVALID_CONFIG
            detail = f"{program} exited with {code}: a program that it runs {_NOT_RUNNABLE[code]}"
        elif code == -signal.SIGKILL or (code == 128 + signal.SIGKILL and oom):
            # pilot's own kills end in a cancellation, never here
            failure, detail = FailureClass.OOM, f"{program} was killed by SIGKILL, not by pilot: out of memory?"
        elif code < 0:
            failure, detail = FailureClass.AGENT, f"{program} was ended by {_signal_name(-code)}, not by pilot"
        else:
            failure, detail = FailureClass.AGENT, f"{program} exited with {code}"
        return failed(failure, f"{detail}: {last}" if last else detail, excerpt=excerpt, text=text)


def _whole(request: AgentRequest) -> str:
    """The prompt, after what the repository tells agents: nobody knows whether this one reads that by itself."""
    if not request.instructions.strip():
        return request.prompt
    return f"What this repository tells agents:\n\n{request.instructions.strip()}\n\n---\n\n{request.prompt}"


def _written(prompt: str, folder: str) -> Path:
    """A new file that only this user can read. Raises `_NotStarted`."""
    try:
        handle, name = tempfile.mkstemp(prefix="prompt-", suffix=".md", dir=folder or None)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(prompt)
    except OSError as error:
        raise _NotStarted(OSError(errno.EIO, f"its prompt can't be written: {error}")) from error
    return Path(name)


@asynccontextmanager
async def _started(
    argv: Sequence[str], request: AgentRequest, stdin: bytes | None, places: Places
) -> AsyncIterator[Process]:
    """The running program; a start that failed is told apart from what goes wrong later."""
    begun = False
    try:
        async with running(
            argv,
            cwd=request.workspace,
            env=request.environment,
            marker=request.marker,
            stdin=stdin,
            sandbox=request.sandbox,
            places=places,
        ) as process:
            begun = True
            yield process
    except OSError as error:
        if begun:
            raise
        raise _NotStarted(error) from error


class _NotStarted(Exception):
    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _text(end: bytes | bytearray) -> str:
    return clean(end.decode(errors="replace"))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
