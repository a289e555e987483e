"""After red CI the real Claude Code goes on in its own conversation, where it had the files before."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pilot.backends.claude_code import ClaudeCode
from pilot.config.executor import ClaudeCodeSettings, ExecutorSettings
from pilot.domain.outcome import Ending
from tests.core.test_publication import github
from tests.core.test_repairs import repair
from tests.core.worksite import execution, files_of
from tests.e2e.claude import claude_binary, claude_environment
from tests.e2e.conversing import bash, heard, write
from tests.e2e.model_server import ModelServer, text


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "lost"])
async def test_a_repair_goes_on_in_the_conversation(tmp_path: Path, lost: bool) -> None:
    mends = [bash("cat page && echo two >> page"), text("Repaired.")]
    goes_on = [write("page", "one"), text("The page is there."), *mends]
    scripts = [{"when": "earlier work on this task", "turns": mends}, {"when": "GH-46", "turns": goes_on}]
    with ModelServer({"scripts": scripts}) as model:
        environment = claude_environment(tmp_path / "home", model.url)
        s = github(tmp_path)
        s.executor = ExecutorSettings.model_validate({"environment": {"set": {"HOME": environment["HOME"]}}})
        s.backend = ClaudeCode(ClaudeCodeSettings(command=claude_binary()), environ=environment)
        parent = execution()
        first = await s.runner()(parent)
        assert first.ending is Ending.DONE, first
        assert first.publication is not None

        s.live = {"pilot/GH-46"}
        if lost:  # then Claude Code can't find the conversation either, which it keeps by folder
            shutil.rmtree(s.state / "workspaces")
            shutil.rmtree(tmp_path / "home/.claude/projects")
        child = repair(
            replace(parent, session_id=first.session_id, workspace=s.notebook.facts["workspace"]),
            feedback="The check `build` failed on GitHub:\nboom in page",
        )
        second = await s.runner()(child)

        assert second.ending is Ending.DONE, second
        assert files_of(s.repo, "pilot/GH-46")["page"].replace("\n", "") == "onetwo"
        assert (second.session_id == first.session_id) is not lost
        told = heard(model.agent_requests[2])
        assert "boom in page" in told
        assert "Please add it." in told
        assert ("The page is there." in told) is not lost
