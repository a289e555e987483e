"""What pilot adds around an agent: clone, commit, gate `true` and branch, in a repository of 2,000 files."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure
from pilot.config.executor import ExecutorSettings
from pilot.config.schema import ProjectSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, Outcome, Usage
from pilot.runner.identity import repository_key
from pilot.runner.runner import AttemptRunner
from pilot.runner.workspace import Workspaces

FILES = 2000
RUNS = 7


@dataclass
class Phases:
    """A journal that only looks at the clock."""

    times: list[tuple[str, float]] = field(default_factory=list)

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        if facts.get("phase"):
            self.times.append((facts["phase"] or "", time.perf_counter()))

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        return


class Quick:
    """An agent that changes a file, and takes no time to do it."""

    name = "quick"

    def account(self) -> str:
        return ""

    def capabilities(self) -> Capabilities:
        return Capabilities()

    async def check(self) -> list[Check]:
        return []

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        (Path(request.workspace) / "page.html").write_text(f"<h1>{request.execution}</h1>\n")
        return Outcome(ending=Ending.DONE)


def make_repository(place: Path) -> Path:
    """2,000 files of 4 KiB in 100 directories, one commit, packed as a clone would be."""
    for n in range(FILES):
        path = place / f"d{n % 100}" / f"file{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"value_{n}_{i} = {i}\n" for i in range(200)))
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    for args in (("init", "-q", "-b", "main"), ("add", "-A"), (*identity, "commit", "-qm", "first"), ("gc", "-q")):
        subprocess.run(["git", "-C", str(place), *args], check=True)
    return place


def claimed(id: int) -> Execution:
    """An execution as a claim gives it."""
    fields: dict[str, Any] = dict.fromkeys(Execution.__dataclass_fields__)
    fields |= {"id": id, "project_id": 1, "project": "api", "task_id": f"GH-{id}", "title": "Add a page", "body": ""}
    fields |= {"status": Status.RUNNING, "fence": 1, "attempt": 1, "max_attempts": 3, "backend": "quick", "options": {}}
    return Execution(**fields)


async def _attempts(home: Path, workspace: str) -> list[Phases]:
    settings = {"name": "api", "path": home / "api", "workspace": workspace}
    project = ProjectSettings.model_validate({**settings, "gates": ({"name": "true", "run": "true"},)})
    found = []
    # As in life, no execution has the number of another: ext4 is slow where a tree of that name was just removed.
    first = int(time.time() * 10) % 10_000_000
    for n in range(RUNS):
        phases = Phases()
        runner = AttemptRunner(
            project=lambda _: project,
            backend=lambda _: Quick(),
            executor=lambda _: ExecutorSettings(),
            workspaces=Workspaces(home / "state"),
            journal=phases,
            state_dir=home / "state",
            store_id="bench",
        )
        outcome = await runner(claimed(first + n))
        if not outcome.delivered:
            raise SystemExit(f"the attempt failed: {outcome.detail} {outcome.excerpt}")
        phases.times.append(("end", time.perf_counter()))
        found.append(phases)
    return found


def _total(phases: Phases) -> float:
    return phases.times[-1][1] - phases.times[0][1]


def _spent(phases: Phases) -> str:
    steps = zip(phases.times, phases.times[1:], strict=False)
    return " ".join(f"{name} {1000 * (after - before):.0f}" for (name, before), (_, after) in steps)


def run() -> list[Figure]:
    """Median of some attempts, each in a new workspace, with the steps of the median one in ms."""
    with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder:
        home = Path(folder)
        make_repository(home / "api")
        figures = []
        for workspace, reach in (("clone", 1.0), ("worktree", 1.0)):
            found = sorted(asyncio.run(_attempts(home, workspace)), key=_total)
            median = found[len(found) // 2]
            figures.append(
                Figure(f"around an agent, 2,000 files, {workspace}", _total(median), "s", reach, note=_spent(median))
            )
        started = time.perf_counter()
        for _ in range(1000):
            repository_key(home / "api/d1")
        each = (time.perf_counter() - started) * 1000
        figures.append(Figure("which repository is this path", each, "µs", 100))
    return figures


def main() -> None:
    """By itself: `python -m benchmarks.overhead`."""
    os.environ.setdefault("LC_ALL", "C")
    for figure in run():
        print(f"{figure.name}: {figure.value:.3f} {figure.unit} (reach {figure.reach}) {figure.note}")
    print(f"median of {RUNS}; spread is what others do on this machine ({statistics.fmean(os.getloadavg()):.1f} load)")


if __name__ == "__main__":
    main()
