"""What the runner's tests stand on: real repositories, a journal that remembers, agents that are scripts."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import subprocess
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pilot.config.executor import ExecutorSettings
from pilot.config.schema import ProjectSettings
from pilot.domain.agent import AgentRequest, Backend, Capabilities, Check, Emit, OutputKind
from pilot.domain.errors import LeaseLost
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage, failed
from pilot.domain.redact import Redactor
from pilot.runner.git import Git
from pilot.runner.process import running
from pilot.runner.publication import publication_of
from pilot.runner.runner import AttemptRunner
from pilot.runner.workspace import Workspaces

STORE = os.environ.setdefault("STORE_OF_TESTS", secrets.token_hex(6))
"""Of this test process and its children: by it agents and git are found, and ended, on the whole machine."""
ENVIRON = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "SECRET": "not for agents"}
_USER = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"]


def git(where: Path, *args: str, check: bool = True) -> str:
    """Git as a person uses it, without this machine's configuration."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_OPTIONAL_LOCKS": "0",
    }
    done = subprocess.run(
        ["git", "-C", str(where), *_USER, *args], env=env, capture_output=True, check=False, stdin=subprocess.DEVNULL
    )
    if check and done.returncode:
        raise AssertionError(f"git {args}: {done.stderr.decode(errors='replace')}")
    return os.fsdecode(done.stdout).strip("\n")


def repository(place: Path, files: dict[str, str] | None = None, branch: str = "main") -> Path:
    """A repository with one commit."""
    place.mkdir(parents=True)
    git(place, "init", "--quiet", "--initial-branch", branch)
    git(place, "config", "user.name", "Ann")
    git(place, "config", "user.email", "ann@example.org")
    for name, text in (files or {"README": "hello\n", "src/a.py": "a = 1\n", ".gitignore": "*.log\nbuild/\n"}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    git(place, "add", "-A")
    git(place, "commit", "--quiet", "-m", "first")
    return place


def files_of(where: Path, commit: str) -> dict[str, str]:
    """Names and contents of a commit's files."""
    names = [name for name in git(where, "ls-tree", "-r", "-z", "--name-only", commit).split("\0") if name]
    return {name: git(where, "show", f"{commit}:{name}") for name in names}


def looks(checkout: Path) -> Any:
    """All that must not change in a checkout: files with their times, index, HEAD, branches but pilot's."""
    found = []
    for folder, _, names in os.walk(checkout):
        if "/.git/" in folder + "/" and not folder.endswith("/.git"):
            continue
        for name in sorted(names):
            if name in ("packed-refs",):
                continue
            path = Path(folder) / name
            seen = path.lstat()
            found.append((str(path), seen.st_mtime_ns, seen.st_size, seen.st_ino))
    heads = git(
        checkout, "for-each-ref", "--format=%(refname) %(objectname)", "refs/heads", "refs/tags", "refs/remotes"
    )
    return (
        sorted(found),
        [line for line in heads.splitlines() if "/pilot/" not in line],
        git(checkout, "status", "--porcelain"),
    )


def execution(id: int = 7, task_id: str = "GH-46", **more: Any) -> Execution:
    """A claimed execution."""
    fields: dict[str, Any] = dict.fromkeys(Execution.__dataclass_fields__)
    fields |= {
        "id": id, "project_id": 1, "project": "api", "project_path": "", "task_id": task_id, "title": "Add the page",
        "body": "Please add it.", "source": "api", "kind": "code", "labels": (), "priority": 2, "lane": 0,
        "status": Status.RUNNING, "available_at": 0, "deps_left": 0, "fence": 1, "cancel_requested": False,
        "attempt": 1, "failures": 0, "losses": 0, "streak": 0, "max_attempts": 3, "backend": "fake",
        "delivery": "none", "checks": "none", "options": {}, "created_at": 0,
    } | more  # fmt: skip
    return Execution(**fields)


@dataclass
class Notebook:
    """A journal in memory."""

    facts: dict[str, str | None] = field(default_factory=dict)
    phases: list[str] = field(default_factory=list)
    pieces: list[tuple[OutputKind, bytes]] = field(default_factory=list)
    used: Usage = field(default_factory=Usage)
    lost: bool = False
    on_phase: Callable[[str], None] = lambda _: None

    async def note(self, execution: Execution, usage: Usage | None = None, /, **facts: str | None) -> None:
        if self.lost:
            raise LeaseLost("lost")
        if phase := facts.pop("phase", None):
            self.phases.append(phase)
            self.on_phase(phase)
        self.facts |= facts
        self.used = usage or self.used

    async def write(self, execution: Execution, pieces: Sequence[tuple[OutputKind, bytes]]) -> None:
        if self.lost:
            raise LeaseLost("lost")
        self.pieces += pieces

    def text(self, *kinds: OutputKind) -> str:
        return b"".join(data for kind, data in self.pieces if not kinds or kind in kinds).decode(errors="replace")


@dataclass
class Scripted:
    """A backend whose agent is a shell script, one for each run; the last one stays. Sees its prompt in $1."""

    scripts: list[str]
    resume: bool = True
    requests: list[AgentRequest] = field(default_factory=list)
    name: str = "fake"

    def account(self) -> str:
        return ""

    def capabilities(self) -> Capabilities:
        return Capabilities(resume=self.resume, questions=True)

    async def check(self) -> list[Check]:
        return []

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        self.requests.append(request)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        await emit.session(request.session_id or request.new_session_id)
        prompt = Path(request.scratch) / "prompt"
        prompt.write_text(request.prompt)
        said = b""
        async with running(
            ("/bin/sh", "-c", script, "agent", str(prompt)),
            cwd=request.workspace,
            env=request.environment,
            marker=request.marker,
            grace=1.0,
        ) as process:
            async for line in process.lines():
                said += line.data + b"\n"
                await emit.output(
                    OutputKind.STDOUT if line.stream == "stdout" else OutputKind.STDERR, line.data + b"\n"
                )
            code = await process.wait()
        if code:
            return failed(FailureClass(said.decode().split()[-1] if code == 3 else "agent"), f"exit code {code}")
        return Outcome(ending=Ending.DONE, text=said.decode(errors="replace"))


@dataclass
class Site:
    """One project, its runner, and the hands to try them."""

    root: Path
    project: ProjectSettings
    notebook: Notebook
    backend: Backend | None = None
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    secrets: tuple[str, ...] = ()
    live: set[str] = field(default_factory=set)
    """Branches with an open pull request."""
    github: bool = False

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def repo(self) -> Path:
        assert self.project.path is not None
        return Path(self.project.path)

    @property
    def workspaces(self) -> Workspaces:
        return Workspaces(self.state, git=Git(environ=ENVIRON), store_id=STORE)

    def set(self, **changes: Any) -> None:
        self.project = ProjectSettings.model_validate(self.project.model_dump(exclude_unset=True) | changes)

    def runner(self) -> AttemptRunner:
        def backend(_: Execution) -> Backend:
            assert self.backend is not None
            return self.backend

        async def live(_: int) -> Collection[str]:
            return self.live

        return AttemptRunner(
            project=lambda _: self.project,
            backend=backend,
            executor=lambda _: self.executor,
            workspaces=self.workspaces,
            journal=self.notebook,
            state_dir=self.state,
            store_id=STORE,
            environ=ENVIRON,
            redact=lambda: Redactor(self.secrets),
            publish=lambda e, base: publication_of(self.project, e, base) if self.github else None,
            live=live,
        )

    async def run(self, *scripts: str, execution: Execution, resume: bool = True) -> Outcome:
        self.backend = Scripted(list(scripts), resume=resume)
        return await self.runner()(execution)

    def runner_of(self, *scripts: str) -> AttemptRunner:
        self.backend = Scripted(list(scripts))
        return self.runner()

    @property
    def requests(self) -> list[AgentRequest]:
        assert isinstance(self.backend, Scripted)
        return self.backend.requests


def site(root: Path, **settings: Any) -> Site:
    """A project `api` with a repository of three files."""
    path = settings.pop("path", None) or repository(root / "api")
    where = {} if "url" in settings else {"path": path}
    project = ProjectSettings.model_validate({"name": "api", **where, **settings})
    return Site(root, project, Notebook())


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Wait for the condition, ten seconds at most."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 10
    while not condition():
        if loop.time() > end:
            raise AssertionError(f"never came true: {what}")
        await asyncio.sleep(0.01)


def again(before: Execution, notebook: Notebook, **more: Any) -> Execution:
    """The execution as it is claimed the next time, with what the journal holds."""
    of_the_attempt = {"sandbox", "answered"}
    facts = {name: value for name, value in notebook.facts.items() if value is not None and name not in of_the_attempt}
    return replace(before, attempt=before.attempt + 1, fence=before.fence + 1, **(facts | more))


def quoted(path: Path) -> str:
    """A path in a script."""
    return shlex.quote(str(path))


def shell(where: Path, script: str) -> str:
    """What an agent does in a directory."""
    done = subprocess.run(
        ["/bin/sh", "-ec", script], cwd=where, capture_output=True, text=True, check=False, env=ENVIRON | {"HOME": "/"}
    )
    if done.returncode:
        raise AssertionError(f"{script}: {done.stderr}")
    return done.stdout
