"""Any program as an agent, by real small ones."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from pilot.backends import build, known_backends
from pilot.backends.command import TEXT, Command
from pilot.config.executor import BUILT_IN, CommandSettings, ExecutorSettings, ProfileSettings
from pilot.domain.agent import AgentRequest, Backend, OutputKind, Places
from pilot.domain.errors import ConfigError
from pilot.domain.outcome import Ending, FailureClass
from pilot.testing import BackendSuite, Script, Seen, Stage
from pilot.testing.fence import Fence


def command(*argv: str, **more: Any) -> Command:
    return Command(CommandSettings(argv=argv, **more))


class TestCommand(BackendSuite):
    def backend(self, program: Path) -> Backend:
        return command(str(program))

    # -- the exit code is the judge ---------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("code", "failure", "words"),
        [
            (1, FailureClass.AGENT, "exited with 1: no luck"),
            (126, FailureClass.INVALID_CONFIG, "exited with 126: a program that it runs is not executable"),
            (127, FailureClass.INVALID_CONFIG, "exited with 127: a program that it runs was not found"),
            (137, FailureClass.AGENT, "exited with 137"),  # nobody ran out of memory meanwhile
        ],
    )
    async def test_an_exit_code_has_its_class(self, code: int, failure: FailureClass, words: str) -> None:
        outcome = await self.run(Script().out(b"so far\n").err(b"at first\n\x1b[31mno luck\n").exit(code))

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, failure)
        assert words in outcome.detail
        assert outcome.excerpt == "at first\nno luck"
        assert outcome.text == "so far\n"

    @pytest.mark.parametrize(
        ("number", "failure", "words"),
        [(9, FailureClass.OOM, "killed by SIGKILL, not by pilot"), (15, FailureClass.AGENT, "SIGTERM, not by pilot")],
    )
    async def test_a_signal_that_is_not_ours_has_its_class(
        self, number: int, failure: FailureClass, words: str
    ) -> None:
        outcome = await self.run(Script().kill(number))

        assert (outcome.failure, words in outcome.detail) == (failure, True)

    async def test_without_a_word_on_stderr_the_end_of_the_output_is_the_evidence(self) -> None:
        outcome = await self.run(Script().out(b"x" * 100_000 + b"\nthe reason\n").exit(1))

        assert outcome.excerpt.endswith("the reason")
        assert len(outcome.excerpt) < 5000

    # -- the output is the transcript -------------------------------------------------------------------------

    async def test_the_transcript_is_whole_and_its_end_is_the_text(self) -> None:
        seen = Seen()
        lines = b"".join(b"line %d\n" % n for n in range(50_000))
        outcome = await self.run(Script().err(b"warning\n").out(lines), seen)

        assert seen.of(OutputKind.STDOUT) == lines
        assert seen.of(OutputKind.STDERR) == b"warning\n"
        assert outcome.text == lines[-TEXT:].decode()
        assert len(seen.pieces) < 100

    async def test_lines_that_come_one_by_one_are_handed_on_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("pilot.backends.command.GATHER", 2.0)
        script, seen = Script(), Seen()
        for _ in range(50):
            script.out(b"line\n").wait(0.001)
        await self.run(script, seen)

        assert seen.pieces == [(OutputKind.STDOUT, b"line\n" * 50)]

    async def test_an_agent_that_speaks_on_stderr_only_is_heard(self) -> None:
        assert (await self.run(Script().err(b"done\n"))).text == "done\n"

    async def test_output_comes_while_it_runs(self) -> None:
        seen = Seen()
        task = asyncio.create_task(self.run(Script().out(b"begun\n").wait(), seen))
        await seen.until(6)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    # -- what it can't do -------------------------------------------------------------------------------------

    async def test_what_it_can_not_do_is_said_before_anything_starts(self) -> None:
        started = self.folder / "started"
        resumed = await self.run(Script().state(started), session_id="s")
        chosen = await self.run(Script().state(started), model="opus")

        assert "no sessions" in resumed.detail
        assert "model opus" in chosen.detail
        assert not started.exists()

    async def test_what_a_task_is_called_is_no_option(self) -> None:
        started = self.folder / "started"
        program = str(Script().state(started).program(self.folder))

        for argv, more in (((program, "{task_id}"), {"task_id": "--rm"}), ((program, "{model}"), {"model": "-m"})):
            outcome = await command(*argv).execute(self.request(**more), Seen())
            assert (outcome.failure, "for an option" in outcome.detail) == (FailureClass.AGENT, True)
        assert not started.exists()
        outcome = await command(program, "--task={task_id}").execute(self.request(task_id="--rm"), Seen())
        assert outcome.ending is Ending.DONE

    # -- what goes in -----------------------------------------------------------------------------------------

    async def test_placeholders_are_filled_in_once_and_never_read_by_a_shell(self) -> None:
        into = self.folder / "arguments"
        program = str(Script().arguments(into).program(self.folder))
        argv = [program, "{task_id}", "--at={workspace}:{project}", "{execution}{model}", '{"a": {b}}', "{model}"]
        backend = command(*argv)
        evil = "$(touch x); `id` {model} {workspace} --flag"
        request = self.request(task_id=evil, model="m/1", project="a b")

        assert (await backend.execute(request, Seen())).ending is Ending.DONE
        at = f"--at={self.workspace}:a b"
        assert json.loads(into.read_text()) == [evil, at, "7m/1", '{"a": {b}}', "m/1"]
        assert backend.capabilities().model
        assert list(self.workspace.iterdir()) == []

    async def test_without_a_model_its_place_is_empty(self) -> None:
        into = self.folder / "arguments"
        backend = command(str(Script().arguments(into).program(self.folder)), "--model={model}")
        await backend.execute(self.request(), Seen())
        assert json.loads(into.read_text()) == ["--model="]

    async def test_nul_from_outside_does_not_keep_it_from_starting(self) -> None:
        into = self.folder / "arguments"
        backend = command(str(Script().arguments(into).program(self.folder)), "{task_id}")
        outcome = await backend.execute(self.request(task_id="a\0b", prompt="\ud800"), Seen())
        assert outcome.ending is Ending.DONE
        assert json.loads(into.read_text()) == ["a\ufffdb"]

    async def test_the_repositorys_instructions_come_before_the_prompt(self) -> None:
        received = self.folder / "received"
        await self.run(Script().read(received), prompt="fix it", instructions="Use tabs.\n")
        assert received.read_text() == "What this repository tells agents:\n\nUse tabs.\n\n---\n\nfix it"

    async def test_a_relative_program_is_the_operators_not_the_workspaces(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = Script().out(b"the operator's\n").program(self.folder)
        (self.workspace / program.name).write_text("#!/bin/sh\necho 'the attacker'\"'s\"\n")
        (self.workspace / program.name).chmod(0o755)
        monkeypatch.chdir(self.folder)
        outcome = await command(f"./{program.name}").execute(self.request(), Seen())
        assert outcome.text == "the operator's\n"

    # -- doctor -----------------------------------------------------------------------------------------------

    async def test_doctor_looks_where_agents_will(self) -> None:
        program = Script().program(self.folder)
        settings = CommandSettings(argv=(program.name,))
        (there,) = await Command(settings, environment={"PATH": str(self.folder)}).check()
        (gone,) = await Command(settings, environment={"PATH": "/usr/bin"}).check()
        (unknown,) = await command("{workspace}/agent").check()
        assert (there.ok, there.detail) == (True, str(program))
        assert gone.ok is False
        assert unknown.ok is None


class TestCommandByFile(Stage):
    def backend(self, program: Path) -> Backend:
        return command(str(program), "{prompt_file}", prompt="file")

    async def test_a_prompt_of_1_mb_arrives_whole(self) -> None:
        prompt = "Überprüfe \u2028 this.\r\n" + "x" * (1 << 20)
        received = self.folder / "received"
        outcome = await self.run(Script().copy(received), prompt=prompt)

        assert outcome.ending is Ending.DONE
        assert received.read_bytes() == prompt.encode()

    async def test_the_file_is_this_users_alone_and_goes_with_the_run(self) -> None:
        for scratch in (str(self.scratch), ""):
            code = "import os, sys; s = os.stat(sys.argv[1]); print(oct(s.st_mode), sys.argv[1], flush=True)"
            backend = command(sys.executable, "-c", code, "{prompt_file}", prompt="file")
            mode, place = (await backend.execute(self.request(scratch=scratch), Seen())).text.split()
            assert mode == "0o100600"
            assert not Path(place).exists()
            assert Path(place).parent == self.scratch or not scratch

    async def test_an_agent_that_makes_away_with_the_file_is_no_error(self) -> None:
        backend = command("sh", "-c", 'rm "$1" && mkdir "$1"', "sh", "{prompt_file}", prompt="file")
        assert (await backend.execute(self.request(), Seen())).ending is Ending.DONE
        (made,) = self.scratch.iterdir()
        made.rmdir()

    async def test_a_disk_that_does_not_take_the_prompt_is_not_the_agents_fault(self) -> None:
        outcome = await self.run(Script(), scratch=str(self.folder / "gone"))
        assert outcome.failure is FailureClass.INFRA
        assert "prompt can't be written" in outcome.detail


class TestCommandByArgument(Stage):
    def backend(self, program: Path) -> Backend:
        return command(str(program), prompt="argument")

    async def test_a_prompt_that_no_argument_can_hold_is_said_in_words(self) -> None:
        outcome = await self.run(Script(), prompt="x" * (1 << 20))

        assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.AGENT)
        assert "prompt: stdin" in outcome.detail
        assert "1048576 bytes" in outcome.detail

    @pytest.mark.parametrize(("prompt", "argument"), [("a\nb $HOME", "a\nb $HOME"), ("--yolo", " --yolo")])
    async def test_the_prompt_is_the_last_argument_and_never_an_option(self, prompt: str, argument: str) -> None:
        into = self.folder / "arguments"
        await self.run(Script().arguments(into), prompt=prompt)
        assert json.loads(into.read_text()) == [argument]


# --- by name ---------------------------------------------------------------------------------------------------


def executor(**more: Any) -> ExecutorSettings:
    return ExecutorSettings(command=CommandSettings(argv=("agent",)), **more)


def test_a_backend_is_built_by_type_or_profile() -> None:
    profile = ProfileSettings(type="command", command=CommandSettings(argv=("reviewer", "{model}")))
    settings = executor(profiles={"reviewer": profile})

    assert {"claude-code", "command", "reviewer"} <= set(known_backends(settings))
    assert build("claude-code", settings).name == "claude-code"
    by_type, by_profile = build("command", settings), build("reviewer", settings)
    assert (by_type.name, by_type.capabilities().model) == ("command", False)
    assert (by_profile.name, by_profile.capabilities().model) == ("reviewer", True)


async def test_doctor_uses_the_environment_that_agents_get(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\n")
    agent.chmod(0o755)
    (check,) = await build("command", executor(), {"PATH": str(tmp_path)}).check()
    assert (check.ok, check.detail) == (True, str(agent))


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_type_is_built_and_by_a_profile_of_any_name(name: str) -> None:
    settings = executor(profiles={"mine": ProfileSettings(type=name)})

    for use in (name, "mine"):
        assert use in known_backends(settings)
        assert build(use, settings, {}).name == use


def test_what_can_not_be_built_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'claude-code'\?"):
        build("claude-cod", executor())


def test_a_command_that_can_not_work_is_a_configuration_error() -> None:
    assert "command" not in known_backends(ExecutorSettings())
    with pytest.raises(ConfigError, match="no argv"):
        build("command", ExecutorSettings())
    with pytest.raises(ConfigError, match="prompt_file"):
        command("agent", prompt="file")


async def test_a_sandbox_shows_the_configured_script_and_no_file_that_a_task_names(tmp_path: Path) -> None:
    script, secret = tmp_path / "agent.sh", tmp_path / "id_rsa"
    script.write_text("exit 0")
    secret.write_text("key")

    sandbox = Fence()
    backend = Command(CommandSettings(argv=("/bin/sh", str(script), "{task_id}"), prompt="argument"))
    request = AgentRequest(
        prompt=str(secret), workspace=str(tmp_path), execution=1, attempt=1, project="api", task_id=str(secret),
        environment={"PATH": os.environ["PATH"]}, marker=f"places-{os.getpid()}", sandbox=sandbox,
    )  # fmt: skip
    outcome = await backend.execute(request, Seen())

    assert outcome.ending is Ending.DONE
    assert [start.places for start in sandbox.starts] == [Places(programs=(str(script),))]
