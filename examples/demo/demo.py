"""The main job in under a minute: a daemon, two repositories, six tasks, and a kill -9 in the middle.

Everything happens in a temporary directory; the agent is `agent.py` beside this file. Exit code 1 if a promise breaks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AGENT = Path(__file__).with_name("agent.py")
PILOT = Path(sys.executable).with_name("pilot")
PAGES = ("home", "about", "contact")
PROJECTS = ("shop", "blog")
TASKS = {f"{project}-{n}": (project, page) for n, page in enumerate(PAGES, 1) for project in PROJECTS}
PATIENCE = 60.0

Execution = dict[str, Any]


class Demo:
    """One run of the demo in a directory of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.notes = home / "notes"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PILOT_CONFIG": str(home / "pilot.yaml"),
        }

    def make(self) -> None:
        """Two repositories and a configuration."""
        self.notes.mkdir()
        author = ("-c", "user.name=Demo", "-c", "user.email=demo@localhost")
        for name in PROJECTS:
            (self.home / name).mkdir()
            (self.home / name / "README.md").write_text(f"# {name}\n")
            self.git(name, "init", "-q", "-b", "main")
            self.git(name, "add", ".")
            self.git(name, *author, "commit", "-q", "-m", "Begin")
        gate = {"name": "readme", "kind": "test", "run": "test -s README.md"}
        argv = [sys.executable, str(AGENT), "{workspace}", "{task_id}", "{project}", str(self.notes)]
        settings = {
            "state_dir": str(self.home / "state"),
            "server": {"port": 0},
            "executor": {
                "type": "command",
                "command": {"argv": argv},
                "sandbox_paths": {"write": [str(self.notes)]},  # the diary is nothing that an agent usually sees
            },
            "projects": [{"name": name, "path": str(self.home / name), "gates": [gate]} for name in PROJECTS],
        }
        (self.home / "pilot.yaml").write_text(json.dumps(settings, indent=2))  # JSON is YAML

    def pilot(self, *args: str) -> Any:
        """What a pilot command answers, as JSON."""
        argv = [str(PILOT), *args, "--json"]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"pilot {' '.join(args)}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def git(self, repository: str, *args: str) -> str:
        argv = ["git", "-C", str(self.home / repository), *args]
        done = subprocess.run(argv, env=self.environment, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def serve(self) -> subprocess.Popen[bytes]:
        """The daemon; its log goes to a file."""
        with (self.home / "serve.log").open("ab") as log:
            return subprocess.Popen([str(PILOT), "serve"], env=self.environment, stdout=log, stderr=log)

    def executions(self) -> list[Execution]:
        """All there are, in the order in which they were asked for."""
        found: list[Execution] = self.pilot("list", "--all")["executions"]
        return sorted(found, key=lambda execution: int(execution["id"]))

    def diary(self) -> list[str]:
        """What the agents wrote down."""
        path = self.notes / "diary"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, condition: Callable[[], bool], daemon: subprocess.Popen[bytes], every: float) -> None:
        """Wait for it."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > deadline or daemon.poll() is not None:
                sys.exit(f"the demo got stuck; the daemon's log:\n{(self.home / 'serve.log').read_text()}")
            time.sleep(every)


@dataclass(frozen=True)
class Story:
    """What the demo has to show for it: the executions at the time of the kill, and at the end."""

    at_kill: list[Execution]
    at_end: list[Execution]

    @property
    def interrupted(self) -> list[str]:
        return [execution["task_id"] for execution in self.at_kill if execution["status"] == "running"]


def tell(demo: Demo) -> Story:
    """Run it, and say what happens."""
    say("1. Two repositories, a daemon, and an agent that needs no key")
    print(f"   $ pilot serve          # in {demo.home}")
    daemon = demo.serve()
    try:
        say("2. Six tasks, three for each repository")
        for task_id, (project, page) in TASKS.items():
            words = f"Please add the page {page}"
            new = demo.pilot("enqueue", words, "--project", project, "--task-id", task_id)
            print(f'   $ pilot enqueue "{words}" --project {project} --task-id {task_id}    → {new["id"]}')
        last = list(TASKS)[-1]
        again = demo.pilot("enqueue", "Once more", "--project", TASKS[last][0], "--task-id", last)
        print(f"   {last} once more is the same execution: {again['id']}, duplicate: {again['duplicate']}")
        (demo.notes / "go").touch()

        demo.until(lambda: {"start shop-2", "start blog-2"} <= set(demo.diary()), daemon, 0.02)
        daemon.kill()
        daemon.wait()
        say(f"3. kill -9 {daemon.pid}: the daemon is dead in the middle of its work")
        at_kill = demo.executions()
        show(at_kill)

        say("4. Started again: what was left behind is ended, and done anew; then the rest, in order")
        daemon = demo.serve()
        demo.until(lambda: all(e["status"] == "completed" for e in demo.executions()), daemon, 0.2)
        at_end = demo.executions()
        show(at_end)
    finally:
        daemon.terminate()
        daemon.wait(30)
    say("5. The branches in the repositories, each with its commit; nobody's checkout was touched")
    for project in PROJECTS:
        for line in demo.git(project, "branch", "--list", "--format=%(refname:short)|%(subject)").splitlines():
            branch, _, subject = line.partition("|")
            print(f"   {project:5} {branch:14} {subject}")
    return Story(at_kill, at_end)


def say(words: str) -> None:
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(f"\n\033[1m{words}\033[0m" if bold else f"\n{words}", flush=True)


def show(executions: list[Execution]) -> None:
    """One line for each."""
    for e in executions:
        attempts = f"{e['attempt']} attempt{'s' if e['attempt'] != 1 else ' '}" if e["attempt"] else ""
        branch = f"branch {e['branch']}" if e["status"] == "completed" else ""
        print(f"   {e['id']}  {e['task_id']:7} {e['status']:10} {attempts:11} {branch}".rstrip())


def judge(demo: Demo, story: Story) -> Iterator[str]:
    """Whatever was promised and did not hold, in words."""
    if [e["task_id"] for e in story.at_end] != list(TASKS):
        yield "not each task is there exactly once"
    if not story.interrupted:
        yield "nothing was running when the daemon was killed"
    for e in story.at_end:
        expected = 2 if e["task_id"] in story.interrupted else 1
        if (e["status"], e["attempt"], e["failures"]) != ("completed", expected, 0):
            yield f"{e['task_id']} is {e['status']} after {e['attempt']} attempts, {e['failures']} of them failed"
    yield from (line for line in demo.diary() if line.startswith("overlap"))
    for project in PROJECTS:
        own = [task_id for task_id in TASKS if TASKS[task_id][0] == project]
        starts = dict.fromkeys(line.removeprefix("start ") for line in demo.diary() if line.startswith("start "))
        if [task_id for task_id in starts if task_id in own] != own:
            yield f"{project}: not begun in order"
        ends = sorted((e["finished_at"], e["task_id"]) for e in story.at_end if e["project"] == project)
        if [task_id for _, task_id in ends] != own:
            yield f"{project}: not ended in order"
        yield from delivered(demo, project, own)


def delivered(demo: Demo, project: str, tasks: list[str]) -> Iterator[str]:
    """What is wrong with a repository."""
    branches = demo.git(project, "branch", "--list", "pilot/*", "--format=%(refname:short)").split()
    if sorted(branches) != [f"pilot/{task_id}" for task_id in tasks]:
        yield f"{project} has the branches {branches}"
        return
    for task_id, branch in zip(tasks, sorted(branches), strict=True):
        changed = demo.git(project, "diff", "--name-only", "main", branch).split()
        if changed != [f"{TASKS[task_id][1]}.html"]:
            yield f"{branch} changes {changed}"
    if demo.git(project, "status", "--porcelain") or demo.git(project, "symbolic-ref", "--short", "HEAD") != "main":
        yield f"the checkout {project} was touched"


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pilot-demo-") as folder:
        demo = Demo(Path(folder))
        demo.make()
        broken = list(judge(demo, tell(demo)))
    if broken:
        sys.exit("\nA promise did not hold:\n   " + "\n   ".join(broken))
    took = time.monotonic() - started
    say(f"Six tasks, each done exactly once and in order, never two at a time in one repository, in {took:.0f} s.")


if __name__ == "__main__":
    main()
