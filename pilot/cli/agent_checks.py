"""What `pilot doctor` says of the agents: each that a task may come to, its account, and what keeps it in."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pilot.domain.agent import Check
from pilot.domain.errors import PilotError
from pilot.domain.text import one_line

if TYPE_CHECKING:
    from pilot.config.executor import ExecutorSettings
    from pilot.config.schema import Settings


async def agents(settings: Settings, environ: Mapping[str, str]) -> list[Check]:
    """What can't be had, which plug-ins there are, and what every agent says of itself."""
    from pilot.app.agents import problems
    from pilot.backends.plugins import checks as plugins
    from pilot.config.uses import used_agents

    remedy = "mend that, or name another agent there"
    checks = [Check("agents", False, problem, remedy) for problem in problems(settings, environ)]
    checks += plugins()
    for found in await asyncio.gather(*(_agent(name, own, environ) for name, own in used_agents(settings))):
        checks += found
    return checks


async def _agent(name: str, executor: ExecutorSettings, environ: Mapping[str, str]) -> list[Check]:
    from pilot.backends import build

    try:
        backend = build(name, executor, environ)
        first, *rest = await backend.check() or [Check(name, None, "says nothing of itself")]
        if first.ok is not False and (account := backend.account()):
            first = replace(first, detail=f"{first.detail}, account {one_line(account, 40)}")
    except PilotError:
        return []  # one of the problems
    except Exception as error:  # noqa: BLE001  the border to a plug-in
        return [Check(name, False, f"can't be checked: {one_line(f'{type(error).__name__}: {error}', 300)}")]
    return [first, *rest]


def sandboxes(settings: Settings, environ: Mapping[str, str]) -> list[Check]:
    """One for each way in which agents are to be kept in."""
    from pilot.config.uses import used_agents
    from pilot.runner.sandbox_machine import check, probe

    machine = probe(environ)
    agents = [executor.resolve(name) for name, executor in used_agents(settings)]
    checks = [check(one, machine) for one in dict.fromkeys(agent.sandbox for agent in agents)]
    shown = dict.fromkeys(
        path for agent in agents if agent.sandbox != "none"
        for path in (*agent.sandbox_paths.read, *agent.sandbox_paths.write)
    )  # fmt: skip
    remedy = "correct executor.sandbox_paths, or make it"
    return [
        *checks,
        *(Check("sandbox_paths", None, f"{p} is not there", remedy) for p in shown if not Path(p).exists()),
    ]
