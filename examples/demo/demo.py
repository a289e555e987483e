"""The main job in under a minute: a daemon, two repositories, six tasks, and a kill -9 in the middle.

Everything happens in a temporary directory; the agent is `agent.py` beside this file. Exit code 1 if a promise breaks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PILOT = Path(sys.executable).with_name("pilot")
PAGES = ["home", "about", "contact"]
PROJECTS = ["shop", "blog"]


class Demo:
    """One run of the demo in its own directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.diary = home / "diary.txt"
        self.config = home / "pilot.yaml"
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"}

    def pilot(self, *args: str) -> Any:
        """A pilot command's JSON."""
        done = subprocess.run(
            [str(PILOT), "--config", str(self.config), *args, "--json"],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        if done.returncode not in (0, 1, 3):
            sys.exit(f"pilot {' '.join(args)}: {done.stderr or done.stdout}")
        return json.loads(done.stdout)

    def git(self, repository: str, *args: str) -> str:
        done = subprocess.run(["git", "-C", str(self.home / repository), *args], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def make(self) -> None:
        """Two repositories and a configuration."""
        for name in PROJECTS:
            (self.home / name).mkdir()
            self.git(name, "init", "-q", "-b", "main")
            (self.home / name / "README.md").write_text(f"# {name}\n")
            self.git(name, "add", ".")
            self.git(name, "-c", "user.name=demo", "-c", "user.email=demo@localhost", "commit", "-qm", "Begin")
        projects = [
            {
                "name": name,
                "path": str(self.home / name),
                "base": "main",
                "gates": [{"name": "readme", "kind": "test", "run": "test -s README.md", "timeout": "10s"}],
            }
            for name in PROJECTS
        ]
        agent = [sys.executable, str(HERE / "agent.py"), "{workspace}", "{task_id}", str(self.diary)]
        settings = {
            "state_dir": str(self.home / "state"),
            "server": {"port": 0},
            "executor": {"type": "command", "command": {"argv": agent}},
            "projects": projects,
        }
        self.config.write_text(json.dumps(settings, indent=2))  # JSON is YAML

    def serve(self) -> subprocess.Popen[bytes]:
        """The daemon; its log goes to a file."""
        with (self.home / "serve.log").open("ab") as log:
            return subprocess.Popen(
                [str(PILOT), "--config", str(self.config), "serve"], env=self.environment, stderr=log, stdout=log
            )

    def executions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.pilot("list", "--all")["executions"]
        return sorted(found, key=lambda e: int(e["id"]))

    def until(self, done: Any, seconds: float, daemon: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
        """Poll until `done(executions)`."""
        deadline = time.monotonic() + seconds
        while True:
            executions = self.executions()
            if done(executions):
                return executions
            if time.monotonic() > deadline or daemon.poll() is not None:
                sys.exit(f"the demo got stuck; see the daemon's log:\n{(self.home / 'serve.log').read_text()}")
            time.sleep(0.1)


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def show(executions: list[dict[str, Any]]) -> None:
    for e in executions:
        branch = e["branch"] if e["status"] == "completed" else ""
        print(f"  {e['id']:>2}  {e['project']:<5} {e['task_id']:<8} {e['status']:<10} attempts {e['attempt']}  {branch or ''}")


def overlaps(diary: str) -> list[str]:
    """Two agents at work in one repository at the same time, by the agents' own diary."""
    found, working = [], dict[str, str]()
    for line in diary.splitlines():
        what, task, *_ = line.split()
        project = task.split("-")[0]
        if what == "start" and working.get(project) not in (None, task):
            found.append(f"{task} began while {working[project]} was at work")
        working.pop(project, None) if what == "end" else working.update({project: task})
    return found


def judge(demo: Demo, executions: list[dict[str, Any]]) -> list[str]:
    """What was promised and did not hold."""
    broken = overlaps(demo.diary.read_text())
    for project in PROJECTS:
        own = [e for e in executions if e["project"] == project]
        if [e["task_id"] for e in own] != [f"{project}-{n}" for n in range(1, 4)]:
            broken.append(f"{project}: not each task exactly once")
        if sorted(own, key=lambda e: str(e["finished_at"])) != own:
            broken.append(f"{project}: not in order")
        branches = demo.git(project, "branch", "--list", "pilot/*", "--format=%(refname:short)").split()
        if sorted(branches) != sorted(f"pilot/{e['task_id']}" for e in own):
            broken.append(f"{project}: branches {branches}")
    return broken + [f"execution {e['id']} is {e['status']}" for e in executions if e["status"] != "completed"]


def main() -> None:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="pilot-demo-") as folder:
        demo = Demo(Path(folder))
        demo.make()
        say("1. A daemon, two repositories (shop, blog), an agent that needs no key")
        daemon = demo.serve()
        try:
            say("2. Six tasks, three for each repository")
            for n, page in enumerate(PAGES, 1):
                for project in PROJECTS:
                    demo.pilot("enqueue", f"Please add the page {page}", "-p", project, "--task-id", f"{project}-{n}")
            again = demo.pilot("enqueue", "Please add the page home", "-p", "shop", "--task-id", "shop-3")
            print(f"  asked for shop-3 once more: it is execution {again['id']} already, duplicate: {again['duplicate']}")
            show(
                demo.until(
                    lambda es: sum(e["status"] == "completed" for e in es) >= 2
                    and sum(e["status"] == "running" for e in es) == 2,
                    30,
                    daemon,
                )
            )
            say("3. kill -9, in the middle of the work")
            os.kill(daemon.pid, signal.SIGKILL)
            daemon.wait()
            show(demo.executions())
            say("4. Started again: what was running goes first, then the rest, in order")
            daemon = demo.serve()
            executions = demo.until(lambda es: all(e["status"] == "completed" for e in es), 40, daemon)
            show(executions)
        finally:
            if daemon.poll() is None:
                daemon.terminate()
                daemon.wait(20)
        say("5. The branches, each with its commit")
        for project in PROJECTS:
            for line in demo.git(project, "log", "--branches=pilot/*", "--no-walk", "--format=  %h %<(14)%D %s").splitlines():
                print(f"  {project}: {line.strip()}")
        broken = judge(demo, executions)
    if broken:
        sys.exit("\nA promise did not hold:\n  " + "\n  ".join(broken))
    say(
        f"Six tasks done exactly once, in order, never two at a time in one repository; {time.monotonic() - started:.0f} s."
    )


if __name__ == "__main__":
    main()
