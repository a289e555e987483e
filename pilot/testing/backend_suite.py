"""What every backend promises, whatever agent it drives: the conformance suite of the `Backend` port.

A backend's test file has a class of this kind and says how its agent talks:

    class TestMine(BackendSuite):
        def backend(self, program: Path) -> Backend:
            return Mine(command=str(program))

        def says(self, text: bytes) -> bytes: ...

`program` is an executable that plays the agent: it follows a script of steps, in any protocol that can be
written down as bytes on standard output.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.agent import AgentRequest, Backend, Capabilities, OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.runner.proctree import MARKER, is_alive, marker_of, start_ticks
from pilot.testing.memory import Peak

MB = 1 << 20

PLAYER = """#!{python} -ISu
import base64, json, os, signal, subprocess, sys, threading, time
# a process that ignores what can be ignored, in a session of its own
HIDDEN = '''
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
with open(sys.argv[1] + '.part', 'w') as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + '.part', sys.argv[1])
while True: time.sleep(60)
'''
def put(fd, data):
    while data: data = data[os.write(fd, data):]
for step, value in json.loads({script!r}):
    if step == 'out': put(1, base64.b64decode(value))
    elif step == 'err': put(2, base64.b64decode(value))
    elif step == 'fill':
        block = b'x' * (1 << 20)
        for _ in range(value): put(1, block)
    elif step == 'flood':
        while True: put(1, base64.b64decode(value))
    elif step == 'wait': time.sleep(value)
    elif step == 'until':
        while not os.path.exists(value): time.sleep(0.005)
    elif step == 'obey':
        threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    elif step in ('read', 'line'):
        data = sys.stdin.buffer.read() if step == 'read' else sys.stdin.buffer.readline()
        with open(value, 'wb') as file: file.write(data)
    elif step == 'copy':
        with open(sys.argv[-1], 'rb') as source, open(value, 'wb') as file: file.write(source.read())
    elif step == 'arguments':
        with open(value, 'w') as file: json.dump(sys.argv[1:], file)
    elif step == 'state':
        with open(value, 'w') as file: json.dump([os.getcwd(), dict(os.environ)], file)
    elif step == 'hide':
        subprocess.Popen([sys.executable, '-ISc', HIDDEN, value], start_new_session=True)
        while not os.path.exists(value): time.sleep(0.005)
    elif step == 'child': subprocess.run(['sleep', '600'])
    elif step == 'kill': os.kill(os.getpid(), value)
    elif step == 'exit': sys.exit(value)
"""


class Script:
    """What the agent does, step by step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Any]] = []

    def _add(self, step: str, value: Any = None) -> Script:
        self.steps.append((step, value))
        return self

    def out(self, data: bytes) -> Script:
        """These bytes on standard output."""
        return self._add("out", base64.b64encode(data).decode())

    def err(self, data: bytes) -> Script:
        """These bytes on standard error."""
        return self._add("err", base64.b64encode(data).decode())

    def fill(self, megabytes: int) -> Script:
        """So many MB of output without a newline."""
        return self._add("fill", megabytes)

    def flood(self, data: bytes) -> Script:
        """The same bytes for ever."""
        return self._add("flood", base64.b64encode(data).decode())

    def wait(self, seconds: float = 600) -> Script:
        """Silence."""
        return self._add("wait", seconds)

    def until(self, file: Path) -> Script:
        """Silence, until the file is there."""
        return self._add("until", str(file))

    def read(self, into: Path, *, line: bool = False) -> Script:
        """Read standard input, to its end or only a line, into a file."""
        return self._add("line" if line else "read", str(into))

    def copy(self, into: Path) -> Script:
        """Copy the file that the last argument names."""
        return self._add("copy", str(into))

    def arguments(self, into: Path) -> Script:
        """Write down the arguments, as JSON."""
        return self._add("arguments", str(into))

    def state(self, into: Path) -> Script:
        """Write down the working directory and the environment, as JSON."""
        return self._add("state", str(into))

    def hide(self, pid: Path) -> Script:
        """Start a process that leaves the group, ignores SIGTERM and never ends; its pid in a file."""
        return self._add("hide", str(pid))

    def child(self) -> Script:
        """Wait for a child that sleeps."""
        return self._add("child")

    def kill(self, number: int) -> Script:
        """Die by this signal."""
        return self._add("kill", number)

    def exit(self, code: int) -> Script:
        """The end, with this exit code."""
        return self._add("exit", code)

    def program(self, folder: Path) -> Path:
        """The script as an executable file."""
        path = folder / f"agent-{len(list(folder.iterdir()))}"
        path.write_text(PLAYER.format(python=sys.executable, script=json.dumps(self.steps)))
        path.chmod(0o755)
        return path


class Seen:
    """An Emit that keeps everything, or (`keep` False) counts it only."""

    def __init__(self, *, keep: bool = True) -> None:
        self.pieces: list[tuple[OutputKind, bytes]] = []
        self.sessions: list[str] = []
        self.used: list[Usage] = []
        self.size = 0
        self._keep = keep
        self._news = asyncio.Event()

    async def output(self, kind: OutputKind, data: bytes) -> None:
        assert data
        self.size += len(data)
        if self._keep:
            self.pieces.append((kind, data))
        self._news.set()

    async def session(self, session_id: str) -> None:
        self.sessions.append(session_id)

    def usage(self, usage: Usage) -> None:
        self.used.append(usage)

    @property
    def all(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    def of(self, kind: OutputKind) -> bytes:
        return b"".join(data for one, data in self.pieces if one is kind)

    async def until(self, size: int, seconds: float = 30) -> None:
        """Wait until so many bytes came."""
        async with asyncio.timeout(seconds):
            while self.size < size:
                self._news.clear()
                await self._news.wait()


class Lost(Seen):
    """The Emit of a claim that somebody else has ended."""

    async def output(self, kind: OutputKind, data: bytes) -> None:
        raise LeaseLost("this claim was ended by someone else")


class Stage:
    """A workspace, a request, a script that is played: what tests of one backend's own need, too."""

    def backend(self, program: Path) -> Backend:
        """Your backend, set up to start this program as its agent."""
        raise NotImplementedError

    @pytest.fixture(autouse=True)
    def stage(self, tmp_path: Path) -> Iterator[None]:
        self.folder = tmp_path
        self.workspace = tmp_path / "workspace"
        self.scratch = tmp_path / "scratch"
        for folder in (self.workspace, self.scratch, tmp_path / "home"):
            folder.mkdir()
        self.marker = f"suite-{os.getpid()}-{tmp_path.name}"
        yield
        assert self.left() == []
        assert list(self.scratch.iterdir()) == []

    def left(self, more: str = "") -> list[int]:
        """Living processes of this test's runs, by their marker."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if (marker_of(pid) or "").startswith(self.marker + more)]

    def request(self, **more: Any) -> AgentRequest:
        given: dict[str, Any] = {
            "prompt": "do it",
            "workspace": str(self.workspace),
            "execution": 7,
            "attempt": 1,
            "project": "api",
            "task_id": "GH-46",
            "environment": {"PATH": os.environ["PATH"], "HOME": str(self.folder / "home"), "GIVEN": "yes"},
            "marker": self.marker,
            "new_session_id": "11111111-2222-4333-8444-555555555555",
            "scratch": str(self.scratch),
        }
        return AgentRequest(**given | more)

    async def run(self, script: Script, seen: Seen | None = None, **more: Any) -> Outcome:
        backend = self.backend(script.program(self.folder))
        return await backend.execute(self.request(**more), Seen() if seen is None else seen)


class BackendSuite(Stage):
    """Subclass it as `Test…`; override what is different in your agent."""

    failures: frozenset[FailureClass] = frozenset({FailureClass.AGENT})
    """Classes that an agent which exits with 3 and a word on standard error may be given."""

    one_line = False
    """Whether your agent is given its prompt as a line, and is asked to stop by the end of standard input."""

    def says(self, text: bytes) -> bytes:
        """What your agent puts out when it says this."""
        return text + b"\n"

    def ends(self, text: bytes) -> bytes:
        """What your agent puts out at the end of a good run, this being its last words."""
        return text + b"\n" if text else b""

    def prompt_in(self, received: bytes) -> str:
        """The prompt in what your agent was given on standard input."""
        return received.decode()

    def obedient(self, script: Script) -> Script:
        """The script of an agent that stops when it is asked to, in the way of this kind of agent."""
        if self.one_line:
            script.steps.insert(0, ("obey", None))
        return script

    def hidden(self) -> tuple[int, int]:
        """The process that the script hid, and its start."""
        pid = int((self.folder / "hidden").read_text())
        return pid, start_ticks(pid) or 0

    async def cancelled(self, script: Script, after: int, seen: Seen, *, hidden: bool = False) -> None:
        """Run it, cancel it once so many bytes were seen, and expect the end of everything in good time."""
        task = asyncio.create_task(self.run(self.obedient(script), seen, marker=f"{self.marker}-cancelled"))
        await seen.until(after)
        one = None
        if hidden:
            async with asyncio.timeout(30):
                while not (self.folder / "hidden").exists():
                    await asyncio.sleep(0.01)
            one = self.hidden()
            assert is_alive(*one)
        async with asyncio.timeout(30):
            while not self.left("-cancelled"):
                await asyncio.sleep(0.01)
        started = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert self.left("-cancelled") == []
        assert one is None or not is_alive(*one)
        assert time.monotonic() - started < 15

    # -- outcomes ---------------------------------------------------------------------------------------------

    async def test_a_good_run_is_done_with_its_last_words(self) -> None:
        seen = Seen()
        script = Script().out(self.says(b"I look.")).wait(0.05).out(self.ends(b"All done."))
        outcome = await self.run(script, seen)

        assert (outcome.ending, outcome.failure, outcome.detail) == (Ending.DONE, None, "")
        assert "All done." in outcome.text
        assert b"I look." in seen.all

    async def test_a_run_without_a_word_is_no_error(self) -> None:
        outcome = await self.run(Script().out(self.ends(b"")))

        assert outcome.ending is Ending.DONE
        assert outcome.text.strip() == ""

    async def test_a_failure_has_a_class_a_reason_and_evidence(self) -> None:
        seen = Seen()
        outcome = await self.run(Script().out(self.says(b"I try.")).err(b"boom: no disk\n").exit(3), seen)

        assert outcome.ending is Ending.FAILED
        assert outcome.failure in self.failures
        assert outcome.detail.strip()
        assert "boom: no disk" in outcome.excerpt
        assert b"I try." in seen.all

    async def test_an_agent_that_dies_without_a_word_is_a_failure_with_a_reason(self) -> None:
        outcome = await self.run(Script().kill(11))

        assert outcome.ending is Ending.FAILED
        assert outcome.failure in self.failures
        assert outcome.detail.strip()

    async def test_an_agent_that_is_killed_is_a_failure_with_a_reason(self) -> None:
        outcome = await self.run(Script().out(self.says(b"I try.")).kill(9))

        assert outcome.ending is Ending.FAILED
        assert outcome.failure in self.failures | {FailureClass.OOM}
        assert outcome.detail.strip()

    @pytest.mark.parametrize("how", ["missing", "not executable"])
    async def test_an_agent_that_is_not_there_is_a_matter_of_configuration(self, how: str) -> None:
        program = Script().program(self.folder)
        program.unlink() if how == "missing" else program.chmod(0o644)
        outcome = await self.backend(program).execute(self.request(), Seen())

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.INVALID_CONFIG)
        assert program.name in outcome.detail

    async def test_a_workspace_that_is_gone_is_not_the_configurations_fault(self) -> None:
        outcome = await self.run(Script(), workspace=str(self.folder / "gone"))

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.INFRA)
        assert "gone" in outcome.detail

    async def test_an_empty_prompt_is_refused_before_anything_starts(self) -> None:
        started = self.folder / "started"
        outcome = await self.run(Script().state(started), prompt=" \n")

        assert outcome.ending is Ending.FAILED
        assert not started.exists()

    # -- cancellation -----------------------------------------------------------------------------------------

    async def test_cancelled_in_silence_before_any_output(self) -> None:
        await self.cancelled(Script().hide(self.folder / "hidden").wait(), 0, Seen(), hidden=True)

    async def test_cancelled_in_the_middle_of_output(self) -> None:
        script = Script().hide(self.folder / "hidden").flood(self.says(b"again"))
        await self.cancelled(script, 100_000, Seen(keep=False), hidden=True)

    async def test_cancelled_in_silence_while_a_child_sleeps(self) -> None:
        script = Script().hide(self.folder / "hidden").out(self.says(b"I call a tool.")).child()
        await self.cancelled(script, 1, Seen(), hidden=True)

    async def test_cancelled_while_the_one_who_takes_the_output_is_stuck(self) -> None:
        class Stuck(Seen):
            async def output(self, kind: OutputKind, data: bytes) -> None:
                await super().output(kind, data)
                await asyncio.Event().wait()

        await self.cancelled(Script().flood(self.says(b"again")), 1, Stuck(keep=False))

    async def test_one_that_is_cancelled_does_not_disturb_another(self) -> None:
        go = self.folder / "go"
        other = asyncio.create_task(self.run(Script().until(go).out(self.ends(b"Done."))))
        await self.cancelled(Script().out(self.says(b"I wait.")).wait(), 1, Seen())
        go.touch()
        assert (await other).ending is Ending.DONE

    async def test_a_lost_lease_ends_the_agent_and_is_raised(self) -> None:
        script = Script().hide(self.folder / "hidden").out(self.says(b"word")).wait()
        with pytest.raises(LeaseLost):
            await self.run(self.obedient(script), Lost())
        assert self.left() == []

    # -- processes --------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("code", [0, 3])
    async def test_nothing_is_left_of_a_run_that_ended_by_itself(self, code: int) -> None:
        script = Script().hide(self.folder / "hidden").out(self.ends(b"Done.")).exit(code)
        outcome = await self.run(script)

        assert outcome.ending is (Ending.DONE if code == 0 else Ending.FAILED)
        assert not is_alive(*self.hidden())
        assert self.left() == []

    # -- output -----------------------------------------------------------------------------------------------

    async def test_a_line_of_100_mb_costs_no_memory(self) -> None:
        seen = Seen(keep=False)
        script = Script().out(self.says(b"first")).fill(100).out(b"\n").out(self.ends(b"last"))
        with Peak() as peak:
            outcome = await self.run(script, seen)

        assert outcome.ending in (Ending.DONE, Ending.FAILED)
        assert peak.rise < 80

    async def test_output_that_nobody_takes_waits_outside(self) -> None:
        class Slow(Seen):
            async def output(self, kind: OutputKind, data: bytes) -> None:
                await super().output(kind, data)
                await asyncio.sleep(0.005)

        with Peak() as peak:
            await self.cancelled(Script().flood(self.says(b"x" * 1000) * 1000), 200_000, Slow(keep=False))
        assert peak.rise < 80

    @pytest.mark.parametrize(
        "junk",
        [b"\xff\xfe\x80", b"a\x00b", b"\x1b]52;c;aGk=\x07\x1b[2J", b"\xed\xa0\x80", b'{"type":', b"null", b"[1]"],
    )
    async def test_bytes_that_are_no_text_pass_as_they_are(self, junk: bytes) -> None:
        seen = Seen()
        script = Script().out(b"<" + junk + b">\n").err(b"<" + junk + b">\n").out(self.ends(b"Done."))
        outcome = await self.run(script, seen)

        assert outcome.ending is Ending.DONE
        assert b"<" + junk + b">" in seen.all
        for text in (outcome.text, outcome.detail, outcome.excerpt):
            assert "\0" not in text
            text.encode()

    # -- what goes in -----------------------------------------------------------------------------------------

    async def test_a_prompt_of_1_mb_arrives_whole(self) -> None:
        prompt = "Überprüfe \u2028 this.\r\n" + "".join(f"line {n} 'quoted' \"$HOME\" {{x}}\n" for n in range(40_000))
        assert len(prompt) > MB
        received = self.folder / "received"
        outcome = await self.run(Script().read(received, line=self.one_line).out(self.ends(b"Done.")), prompt=prompt)

        assert outcome.ending is Ending.DONE
        assert self.prompt_in(received.read_bytes()) == prompt

    async def test_it_runs_in_the_workspace_and_sees_only_what_it_was_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PILOT_CANARY", "the daemon's own")
        state = self.folder / "state"
        await self.run(Script().state(state).out(self.ends(b"Done.")))

        place, environment = json.loads(state.read_text())
        assert place == str(self.workspace)
        assert environment["GIVEN"] == "yes"
        assert environment["HOME"] == str(self.folder / "home")
        assert environment[MARKER].startswith(self.marker)
        assert not self.strange(environment)

    def strange(self, environment: Mapping[str, str]) -> set[str]:
        """Variables of the agent that nobody gave it."""
        mine = {"PATH", "HOME", "GIVEN", MARKER, "LC_CTYPE"}  # Python sets the last one itself
        return {name for name in environment if name not in mine}

    # -- without running --------------------------------------------------------------------------------------

    async def test_it_says_who_it_is_and_what_it_can(self) -> None:
        backend = self.backend(Script().program(self.folder))

        assert backend.name
        assert isinstance(backend.capabilities(), Capabilities)
        assert backend.capabilities().cancel

    async def test_doctor_is_told_whether_it_is_there(self) -> None:
        program = Script().out(b"1.0.0\n").program(self.folder)
        backend = self.backend(program)
        there = await backend.check()
        program.unlink()
        gone = await backend.check()

        assert there[0].ok
        assert gone[0].ok is False
        assert all(check.name for check in there + gone)
        assert gone[0].remedy
