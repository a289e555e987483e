"""`make demo` keeps its word, and would say so if it did not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.e2e.daemon import until

DEMO = Path(__file__).parents[2] / "examples/demo/demo.py"


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run it as `make` does, without the developer's settings."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"]}
    return subprocess.run(
        [sys.executable, *argv], env=environment, capture_output=True, text=True, timeout=100, check=False
    )


def test_the_demo_shows_what_it_promises() -> None:
    done = run(str(DEMO))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    told = [" ".join(line.split()) for line in done.stdout.splitlines()]
    kill = next(n for n, line in enumerate(told) if "kill -9" in line)
    again = next(n for n, line in enumerate(told) if line.startswith("4. Started again"))
    for n, task in ((1, "shop-1"), (2, "blog-1")):
        assert f"{n} {task} completed 1 attempt branch pilot/{task}" in told[kill:again]
    for n, task in ((3, "shop-2"), (4, "blog-2")):
        assert f"{n} {task} running 1 attempt" in told[kill:again]
        assert f"{n} {task} completed 2 attempts branch pilot/{task}" in told[again:]
    assert max(map(len, done.stdout.splitlines())) <= 120
    assert "\033" not in done.stdout
    assert "Six tasks, each done exactly once and in order" in told[-1]


@pytest.fixture
def demo() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules["demo"]
    return module


def story(demo: ModuleType, home: Path) -> tuple[Any, Any]:
    """A run in which everything went well, without the run."""
    run = demo.Demo(home)
    run.make()
    at_end = []
    for n, (task_id, (project, page)) in enumerate(demo.TASKS.items(), 1):
        run.git(project, "checkout", "-q", "-b", f"pilot/{task_id}", "main")
        (home / project / f"{page}.html").write_text("x")
        run.git(project, "add", ".")
        run.git(project, "-c", "user.name=D", "-c", "user.email=d@localhost", "commit", "-q", "-m", page)
        run.git(project, "checkout", "-q", "main")
        attempt = 2 if task_id in ("shop-2", "blog-2") else 1
        row = {"id": n, "task_id": task_id, "project": project, "status": "completed", "failures": 0}
        at_end.append({**row, "attempt": attempt, "finished_at": f"2026-01-02T03:04:{n:02}Z"})
    at_kill = [{**row, "status": "running" if row["attempt"] == 2 else "completed"} for row in at_end]
    (run.notes / "diary").write_text("".join(f"start {task_id}\nend {task_id}\n" for task_id in demo.TASKS))
    return run, demo.Story(at_kill, at_end)


def _write(run: Any, line: str) -> None:
    with (run.notes / "diary").open("a") as diary:
        diary.write(line + "\n")


BREAKS: dict[str, Callable[[Any, Any], object]] = {
    "overlap shop-3": lambda run, _: _write(run, "overlap shop-3"),
    "not each task is there exactly once": lambda _, story: story.at_end.append(story.at_end[-1]),
    "nothing was running": lambda _, story: [row.update(status="completed") for row in story.at_kill],
    "shop-1 is failed": lambda _, story: story.at_end[0].update(status="failed"),
    "blog-2 is completed after 1 attempts": lambda _, story: story.at_end[3].update(attempt=1),
    "shop-2 is completed after 2 attempts, 1": lambda _, story: story.at_end[2].update(failures=1),
    "shop: not ended in order": lambda _, story: story.at_end[4].update(finished_at="2025"),
    "blog: not begun in order": lambda run, _: (run.notes / "diary").write_text("start blog-2\nstart blog-1\n"),
    "blog has the branches": lambda run, _: run.git("blog", "branch", "-D", "pilot/blog-1"),
    "pilot/shop-1 changes []": lambda run, _: run.git("shop", "branch", "-f", "pilot/shop-1", "main"),
    "the checkout shop was touched": lambda run, _: (run.home / "shop/new").touch(),
}


@pytest.mark.parametrize("words", BREAKS)
def test_a_broken_promise_is_named(demo: ModuleType, tmp_path: Path, words: str) -> None:
    run, told = story(demo, tmp_path)
    assert list(demo.judge(run, told)) == []
    BREAKS[words](run, told)
    assert any(words in line for line in demo.judge(run, told)), list(demo.judge(run, told))


def test_an_agent_that_is_not_alone_says_so(tmp_path: Path) -> None:
    argv = [sys.executable, str(DEMO.with_name("agent.py")), str(tmp_path), "{}", "shop", str(tmp_path)]
    diary = tmp_path / "diary"
    agents = []
    try:
        for task_id in ("shop-1", "shop-2"):
            line = [part.format(task_id) for part in argv]
            agents.append(subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
            until(lambda: diary.exists() and f"start {task_id}" in diary.read_text(), task_id)  # noqa: B023
        assert diary.read_text().splitlines() == ["start shop-1", "overlap shop-2", "start shop-2"]
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
