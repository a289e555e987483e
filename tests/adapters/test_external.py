"""What goes to `external` is nobody's here."""

from __future__ import annotations

import pytest

from pilot.backends import build, known_backends
from pilot.config.executor import ExecutorSettings, ProfileSettings
from pilot.domain.agent import AgentRequest
from pilot.domain.outcome import Ending, FailureClass
from pilot.testing import Seen

SETTINGS = ExecutorSettings(profiles={"deploy": ProfileSettings(type="external")})


@pytest.mark.parametrize("name", ["external", "deploy"])
async def test_it_is_an_agent_that_runs_nothing(name: str) -> None:
    assert name in known_backends(SETTINGS)
    backend = build(name, SETTINGS, {})

    assert (backend.name, backend.account()) == (name, "")
    assert not backend.capabilities().runs
    (check,) = await backend.check()
    assert check.ok
    assert "a worker that claims over HTTP" in check.detail


async def test_if_it_is_asked_all_the_same_it_says_whose_task_it_is() -> None:
    request = AgentRequest(
        prompt="do it", workspace="/", execution=1, attempt=1, project="p", task_id="T", environment={}, marker="m"
    )
    outcome = await build("external", SETTINGS, {}).execute(request, Seen())

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.INVALID_CONFIG)
    assert "worker" in outcome.detail
