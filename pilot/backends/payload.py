"""What pilot does itself, without an agent: a plan's commands, patches and tests.

Everything here runs as an agent would: in the workspace, in the sandbox, with the agents' environment. An
exit code decides. No failure here parks the backend: what one task's command lacks is no other task's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind
from pilot.domain.errors import UsageError
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage, failed
from pilot.domain.payload import Payload, Work, allowed
from pilot.domain.pointer import MACHINE
from pilot.domain.task import Kind
from pilot.domain.text import one_line
from pilot.runner.confined import check_sha1, open_confined, read_confined
from pilot.runner.host import oom_kills
from pilot.runner.shell import Ran, run_program

_INTERPRETERS = {
    ".py": ("python3",),
    ".sh": ("/bin/sh",),
    ".bash": ("bash",),
    ".js": ("node",),
    ".mjs": ("node",),
    ".rb": ("ruby",),
    ".pl": ("perl",),
}
"""What runs a test that is not executable, by the end of its name; a `#!` line goes before it."""
_BY_KIND: Mapping[str, FailureClass] = {Kind.TEST: FailureClass.TEST, Kind.BUILD: FailureClass.BUILD}
_APPLY = ("git", "apply", "--whitespace=nowarn", "--verbose")
_NO_REPOSITORY = {
    "GIT_DIR": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
    "LC_ALL": "C",
}
"""With these `git apply` is a patch program: no configuration, filter or hook of anybody's counts."""


class PayloadBackend:
    """Does commands, patches and tests (the Backend port)."""

    @property
    def name(self) -> str:
        """As rows have it."""
        return MACHINE

    def capabilities(self) -> Capabilities:
        """No model, no session: a program, that can be ended."""
        return Capabilities()

    def account(self) -> str:
        """Nobody's allowance is used up."""
        return ""

    async def check(self) -> list[Check]:
        """For doctor: nothing is needed but what the commands need."""
        return [Check(MACHINE, True, "runs commands, patches and tests of plans by itself")]

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Do it to its end: DONE, NO_CHANGE for a patch that was there already, or FAILED."""
        payload = request.payload
        try:
            match payload:
                case Payload(work=Work.COMMAND):
                    return await _Run(request, emit, payload).command()
                case Payload(work=Work.APPLY):
                    return await _Run(request, emit, payload).apply()
                case Payload(work=Work.TEST):
                    return await _Run(request, emit, payload).test()
        except UsageError as error:
            return failed(FailureClass.CONFLICT, str(error))
        except OSError as error:
            return _not_started(request, error)
        return failed(FailureClass.REFUSAL, "there is nothing here for pilot to do without an agent")


class _Run:
    def __init__(self, request: AgentRequest, emit: Emit, payload: Payload) -> None:
        self.request, self.emit, self.payload = request, emit, payload
        self.top = Path(request.workspace)

    async def command(self) -> Outcome:
        """The argv as it stands, if the project allows it still."""
        argv, patterns = self.payload.argv, self.request.allow_commands
        if not argv or not allowed(argv, patterns):
            shown = one_line(shlex.join(argv), 200)
            words = f"the project's allow_commands have no pattern for `{shown}`; with one, answer to go on"
            return failed(FailureClass.REFUSAL, words)
        program = PurePosixPath(argv[0])
        if len(program.parts) > 1 and not program.is_absolute():
            # One that a link leads out of the workspace is somebody else's program under an allowed name.
            os.close(await asyncio.to_thread(open_confined, self.top, argv[0]))
        return await self._judged(argv, _BY_KIND.get(self.request.kind, FailureClass.AGENT))

    async def test(self) -> Outcome:
        """A file of the repository: itself if it is executable, else by its `#!` line, else by its name."""
        data = await asyncio.to_thread(self._content)
        path = self.payload.path or ""
        place = self.top / path
        begin = data[:2]
        if os.access(place, os.X_OK) and begin in (b"#!", b"\x7fE"):
            argv: tuple[str, ...] = (str(place),)
        elif begin == b"#!":
            line = data[2:].split(b"\n", 1)[0].decode(errors="replace").strip()
            program, _, option = line.partition(" ")
            argv = (program, *([option.strip()] if option.strip() else []), str(place))
        elif (by_name := _INTERPRETERS.get(place.suffix)) is not None:
            argv = (*by_name, str(place))
        elif os.access(place, os.X_OK):
            argv = ("/bin/sh", str(place))  # as a shell takes it
        else:
            words = "make it executable, give it a #! line, or a name that ends in " + ", ".join(_INTERPRETERS)
            raise UsageError(f"nobody says how {one_line(path, 200)!r} is run as a test; {words}")
        return await self._judged(argv, FailureClass.TEST)

    async def apply(self) -> Outcome:
        """The whole patch or nothing of it, exactly where it says."""
        patch = await asyncio.to_thread(self._content)
        shown = one_line(self.payload.path or "", 200)
        ran = await self._run((*_APPLY, "-"), patch, _NO_REPOSITORY)
        if ran.exit_code == 0:
            return Outcome(ending=Ending.DONE, text=ran.tail, unspent=True)
        if ran.timed_out:
            return self._timed_out()
        self.emit = _Silence()
        back = await self._run((*_APPLY, "--check", "--reverse", "-"), patch, _NO_REPOSITORY)
        if back.exit_code == 0:
            return Outcome(ending=Ending.NO_CHANGE, text=f"{shown} is applied already", unspent=True)
        why = next((line for line in ran.tail.splitlines() if line.startswith(("error:", "fatal:"))), ran.tail)
        return failed(FailureClass.CONFLICT, f"{shown} does not apply: {one_line(why, 300)}", excerpt=ran.tail)

    def _content(self) -> bytes:
        """The file, which has to be what the payload says it is."""
        path, wanted = self.payload.path or "", self.payload.sha1
        data = read_confined(self.top, path)
        check_sha1(path, data, wanted)
        return data

    async def _judged(self, argv: Sequence[str], failure: FailureClass) -> Outcome:
        before = oom_kills()
        ran = await self._run(argv)
        if ran.timed_out:
            return self._timed_out(ran.tail)
        code, program = ran.exit_code or 0, one_line(PurePosixPath(argv[0]).name, 80)
        if code == 0:
            return Outcome(ending=Ending.DONE, text=ran.tail, unspent=True)
        if code == -signal.SIGKILL or (code == 128 + signal.SIGKILL and oom_kills() > before):
            # pilot's own kills end in a cancellation, never here
            words = f"{program} was killed by SIGKILL, not by pilot: out of memory?"
            return failed(FailureClass.OOM, words, excerpt=ran.tail, text=ran.tail)
        how = f"was ended by {_signal(-code)}, not by pilot" if code < 0 else f"exited with {code}"
        return failed(failure, f"{program} {how}", excerpt=ran.tail, text=ran.tail)

    async def _run(self, argv: Sequence[str], stdin: bytes | None = None, env: Mapping[str, str] = {}) -> Ran:
        request = self.request
        if stdin is None:
            await self._say(f"runs {one_line(shlex.join(argv), 500)}")
        return await run_program(
            argv,
            cwd=self.top,
            env=_absolute({**request.environment, **env}),
            marker=request.marker,
            timeout=request.timeout,
            emit=self.emit,
            sandbox=request.sandbox,
            stdin=stdin,
        )

    def _timed_out(self, tail: str = "") -> Outcome:
        return failed(FailureClass.TIMEOUT, f"not done within {self.request.timeout:g} s", excerpt=tail)

    async def _say(self, words: str) -> None:
        await self.emit.output(OutputKind.PILOT, words.encode(errors="replace") + b"\n")


class _Silence:
    """Takes what nobody wants to read (`Emit`)."""

    async def output(self, kind: OutputKind, data: bytes) -> None:
        """Nothing."""

    async def session(self, session_id: str) -> None:
        """Nothing."""

    def usage(self, usage: Usage) -> None:
        """Nothing."""


def _absolute(env: dict[str, str]) -> dict[str, str]:
    """Without the relative folders of PATH: those would be the workspace's own."""
    folders = [folder for folder in env.get("PATH", os.defpath).split(os.pathsep) if Path(folder).is_absolute()]
    return {**env, "PATH": os.pathsep.join(folders)}


def _not_started(request: AgentRequest, error: OSError) -> Outcome:
    """A class that parks nobody: for a person, who installs it or changes the plan."""
    if not Path(request.workspace).is_dir():
        return failed(FailureClass.INFRA, f"the workspace {request.workspace} is not there")
    program = one_line(str(error.filename or "the program"), 200)
    why = error.strerror or str(error)
    if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.EPERM, errno.ENOTDIR):
        words = "install it where executor.environment's PATH finds it, and answer to go on"
        return failed(FailureClass.CONFLICT, f"{program} can't be started: {why}; {words}")
    if error.errno == errno.E2BIG:
        return failed(FailureClass.CONFLICT, f"{program} can't be started: {why}")
    return failed(FailureClass.INFRA, f"{program} can't be started: {why}")


def _signal(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
