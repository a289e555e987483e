"""A pilot of its own for each test: home, state, repositories, the real commands and the real daemon.

    home.repo("web", {"index.html": "<h1>Hello</h1>"}, gates=[…])    # a real repository, and a project in pilot.yaml
    with home.serve() as daemon:
        id = home.enqueue("web", "do: wait go", task_id="T-1")
        home.began("T-1"); daemon.kill9()

Everything here blocks and is deadline-bound; whoever waits in vain is shown the rows, the diary and the logs.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import yaml

from pilot.config.load import load
from pilot.dispatch.intake import TaskRequest
from tests.e2e.forking import Forked, like_others

PILOT = (sys.executable, "-c", "import sys; from pilot.cli.main import main; sys.exit(main())")
SCRIPTED = Path(__file__).parent / "agents" / "scripted.py"
PATIENCE = 60.0
"""Seconds until something that never came true fails its test; generous, for a loaded machine."""
_AUTHOR = {"NAME": "Ann", "EMAIL": "ann@example.org", "DATE": "2026-01-02T03:04:05Z"}


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE, shown: Callable[[], str] = str) -> Any:
    """The condition's first true value; fails with `what` and whatever `shown` has to tell.

    What is dear to ask (a walk through a home, every process) is asked less often, and so is what takes long to come
    true: the processors are there for what is waited for.
    """
    begun = time.monotonic()
    while True:
        asked = time.monotonic()
        if value := condition():
            return value
        now = time.monotonic()
        if now > begun + seconds:
            raise AssertionError(f"never came true in {seconds:g} s: {what}\n{shown()}")
        time.sleep(min(max(0.01, 4 * (now - asked), (now - begun) / 25), 0.25))


def prompt(task_id: str, *orders: str) -> str:
    """A task for the scripted agent: see agents/scripted.py for its orders."""
    return "\n".join([f"Do {task_id}.", *(order if order.startswith("do ") else f"do: {order}" for order in orders)])


@dataclass(frozen=True, slots=True)
class Result:
    """What a command came to. `raw` is stdout as bytes."""

    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Line(NamedTuple):
    """One line of the agents' diary; `at` is the machine's monotonic clock in ns."""

    what: str
    task_id: str
    pid: int
    rest: str
    at: int


def _started(home: Home, argv: Sequence[str], cwd: Path, out: int, log: int) -> subprocess.Popen[bytes] | Forked:
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123
        if home.forks(argv):
            return Forked(argv[len(PILOT) :], str(cwd), home.environment, nothing.fileno(), out, log)
        return subprocess.Popen(argv, cwd=cwd, env=home.environment, stdin=nothing, stdout=out, stderr=log)


class Command:
    """A `pilot` that runs beside the test. Its stderr is `log`, its stdout `out`."""

    def __init__(self, home: Home, argv: Sequence[str], cwd: Path) -> None:
        self._home = home
        number = len(home.commands)
        self._out, self._log = (home.root / f"command-{number}.{name}" for name in ("out", "log"))
        with self._out.open("wb") as out, self._log.open("wb") as log:
            self._popen = _started(home, argv, cwd, out.fileno(), log.fileno())
        home.commands.append(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, -N when signal N ended it."""
        return self._popen.poll()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def out(self) -> str:
        return self._out.read_text(errors="replace")

    def send(self, number: int) -> None:
        self._popen.send_signal(number)

    def term(self) -> None:
        self.send(signal.SIGTERM)

    def kill9(self) -> None:
        """End it as a power cut would, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        self._home.until(lambda: self.code is not None, f"the end of process {self.pid}", seconds)
        return self._popen.wait()

    def says(self, words: str, seconds: float = PATIENCE) -> str:
        """Wait until its log has these words (a regular expression); the match."""
        found = self._home.until(lambda: re.search(words, self.log), f"{words!r} in the log of {self.pid}", seconds)
        return str(found[0])


class Daemon(Command):
    """A `pilot serve`."""

    url = ""

    def ready(self) -> Daemon:
        """Wait for its start line; fails at once when it ends instead."""
        self._home.until(lambda: "serve.started" in self.log or self.code is not None, "serve.started")
        found = re.search(r"event='serve.started'.* url='([^']+)'", self.log)
        assert found, f"serve ended with {self.code}:\n{self.log}"
        self.url = found[1]
        return self

    def get(self, path: str) -> int:
        """The status of a GET; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def rss(self) -> int:
        """Memory it holds, in bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _marker(pid: int) -> str:
    """The run that a living process belongs to; a zombie's environment is empty."""
    entries = _proc(pid, "environ").split("\0")
    return next((entry.removeprefix("PILOT_RUN=") for entry in entries if entry.startswith("PILOT_RUN=")), "")


class Home:
    """One user's pilot under `root`. `settings` is pilot.yaml as a tree; `environment` what commands see.

    `fresh`: each command is an interpreter of its own, as in life; otherwise a fork of one that has imported pilot.
    """

    fresh = False

    def __init__(self, root: Path, **environment: str) -> None:
        self.root = root
        self.state = root / "state"
        self.control = root / "control"
        self.file = root / "pilot.yaml"
        for directory in (root / "home", self.control):
            directory.mkdir(parents=True)
        self.environment = {
            "PATH": os.environ["PATH"], "HOME": str(root / "home"), "LANG": "C.UTF-8", "TERM": "dumb",
            "PILOT_CONFIG": str(self.file), "PYTHONPATH": os.pathsep.join(sys.path), **environment,
        }  # fmt: skip
        python = [sys.executable, "-I", "-S", "-B"]
        self.settings: dict[str, Any] = {
            "state_dir": str(self.state),
            "server": {"port": 0},
            "dispatcher": {"max_running": 4, "drain_timeout": "10s"},
            "executor": {
                "type": "command",
                "sandbox": "none",  # in one, the scripted agents would not know their own pids
                "sandbox_paths": {"write": [str(self.control)]},
                "command": {"argv": [*python, str(SCRIPTED), "{workspace}", "{task_id}", "{project}",
                                     str(self.control)]},
            },
            "projects": [],
        }  # fmt: skip
        self.commands: list[Command] = []
        self.repositories: dict[str, Path] = {}
        self.untouched: dict[str, object] = {}

    # What there is

    def repo(self, name: str, files: Mapping[str, str] | None = None, *, project: bool = True, **settings: Any) -> Path:
        """A real repository with one commit on main; `settings` are its project's. The audit watches the checkout."""
        path = self.root / "repos" / name
        for file, text in (files or {"README.md": f"# {name}\n"}).items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_text(text)
        self.git(path, "init", "-q", "-b", "main")
        self.git(path, "add", "-A")
        self.git(path, "commit", "-q", "-m", "Begin")
        if project:
            self.settings["projects"].append({"name": name, "path": str(path), **settings})
            self.configure()
        self.repositories[name] = path
        self.untouched[name] = self.checkout(path)
        return path

    def checkout(self, path: Path) -> object:
        """All of a checkout that is its user's: what a run may not change."""
        git = path / ".git"
        return (
            self.git(path, "status", "--porcelain=v1", "--branch", "--untracked-files=all"),
            self.git(path, "rev-parse", "HEAD", "main"),
            (git / "HEAD").read_bytes(), (git / "config").read_bytes(),
            sorted(entry.name for entry in (git / "hooks").iterdir()),
            [(str(file), file.read_bytes()) for file in sorted(path.rglob("*"))
             if ".git" not in file.relative_to(path).parts and file.is_file()],
        )  # fmt: skip

    def configure(self, **sections: Any) -> None:
        """Write pilot.yaml, with these sections put into it."""
        self.settings.update(sections)
        self.file.write_text(yaml.safe_dump(self.settings, allow_unicode=True, sort_keys=False))

    def scripted_too(self) -> None:
        """Besides the agent that tasks get by default, let `enqueue(…, backend="scripted")` have the scripted one."""
        executor = self.settings["executor"]
        profile = {"type": "command", "command": executor["command"]}
        self.configure(executor={**executor, "profiles": {**executor.get("profiles", {}), "scripted": profile}})

    def git(self, cwd: Path, *args: str) -> str:
        """What git says; fails the test when it fails."""
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.root / "home")}
        environment |= {f"GIT_{who}_{what}": _AUTHOR[what] for who in ("AUTHOR", "COMMITTER") for what in _AUTHOR}
        done = subprocess.run(["git", *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"git {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    # Commands

    def forks(self, argv: Sequence[str]) -> bool:
        """Whether such a start may be a fork."""
        return not self.fresh and tuple(argv[: len(PILOT)]) == PILOT and like_others(self.environment)

    def pilot(
        self, *args: object, cwd: Path | None = None, input: bytes = b"", code: int | None = 0, seconds: float = 60
    ) -> Result:
        """Run a command to its end. `code`: the exit code it must have (None: any)."""
        argv = [*PILOT, *map(str, args)]
        result = self._ended(argv, cwd or self.root, input, seconds)
        said = f"pilot {' '.join(argv[3:])}: {result.code}\n{result.raw!r}\n{result.err}"
        assert code is None or result.code == code, f"{said}\n{self.state_of_things()}"
        assert "Traceback" not in result.err, said
        return result

    def _ended(self, argv: Sequence[str], cwd: Path, input: bytes, seconds: float) -> Result:
        if not self.forks(argv):
            done = subprocess.run(
                argv, cwd=cwd, env=self.environment, input=input, capture_output=True, timeout=seconds, check=False
            )
            return Result(done.returncode, done.stdout, done.stderr.decode(errors="replace"))
        with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
            given.write(input)
            given.seek(0)
            files = (file.fileno() for file in (given, out, err))
            process = Forked(argv[len(PILOT) :], str(cwd), self.environment, *files)
            try:
                code = process.wait(seconds)
            finally:
                process.kill()
                process.wait()
            out.seek(0)
            err.seek(0)
            return Result(code, out.read(), err.read().decode(errors="replace"))

    def start(self, *args: object, cwd: Path | None = None) -> Command:
        """Run a command beside the test."""
        return Command(self, [*PILOT, *map(str, args)], cwd or self.root)

    @contextmanager
    def serve(self, *args: object, argv: Sequence[str] = PILOT, ready: bool = True) -> Iterator[Daemon]:
        """A running daemon; killed at the end if it is still there."""
        daemon = Daemon(self, [*argv, "serve", *map(str, args)], self.root)
        try:
            yield daemon.ready() if ready else daemon
        finally:
            daemon.kill9()

    def enqueue(self, project: str, *orders: str, task_id: str, **wishes: Any) -> int:
        """A task for the scripted agent, put in as `pilot enqueue` does it, without the start of a process."""
        from pilot.app.context import enqueue

        request = TaskRequest(prompt=prompt(task_id, *orders), task_id=task_id, source="cli", **wishes)
        return asyncio.run(enqueue(load(self.file, self.environment), request, project)).id

    # What happens

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database, as any program may."""
        path = self.state / "pilot.db"
        if not path.exists():
            return []
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10) as connection:
            found = connection.execute(sql, values).fetchall()
        connection.close()
        return found

    def value(self, id: int, column: str) -> Any:
        """One column of an execution."""
        return self.rows(f"SELECT {column} FROM executions WHERE id = ?", id)[0][0]

    def statuses(self) -> dict[str, str]:
        """Status by task id; the last execution of each."""
        return dict(self.rows("SELECT task_id, status FROM executions ORDER BY id"))

    def reach(self, status: str, *ids: int, seconds: float = PATIENCE) -> None:
        """Wait until all of these executions have the status."""
        marks = ", ".join("?" * len(ids))
        asked = f"SELECT count(*) FROM executions WHERE status = ? AND id IN ({marks})"
        self.until(lambda: self.rows(asked, status, *ids) == [(len(ids),)], f"{status}: {ids}", seconds)

    def diary(self, *what: str) -> list[Line]:
        """What the agents wrote down, in order; only lines that begin so, if words are given."""
        path = self.control / "diary"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        found = [Line(words[0], words[1], int(words[2]), " ".join(words[3:-1]), int(words[-1])) for words in lines]
        return [line for line in found if not what or line.what in what]

    def began(self, task_id: str, times: int = 1) -> Line:
        """Wait until the task's agent has begun so often; its last start."""

        def starts() -> list[Line]:
            return [line for line in self.diary("start") if line.task_id == task_id]

        self.until(lambda: len(starts()) >= times, f"start {times} of the agent of {task_id}")
        return starts()[-1]

    def go(self, *signs: str) -> None:
        """Let the agents go on that wait for these signs."""
        for sign in signs:
            (self.control / sign).touch()

    def until(self, condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
        """See `until`; a failure shows all there is to know."""
        return until(condition, what, seconds, self.state_of_things)

    def processes(self) -> dict[int, str]:
        """Every living process that carries a run's marker of this store: command line by pid."""
        store = f"{(self.rows('SELECT id FROM store') or [('-',)])[0][0]}:"
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        marked = {pid: marker for pid in pids if (marker := _marker(pid)).startswith(store)}
        return {pid: f"{marker} {_proc(pid, 'cmdline').replace(chr(0), ' ')}" for pid, marker in marked.items()}

    def found(self, name: str) -> list[Path]:
        """Every file of this name below the home; other programs may be moving folders meanwhile."""
        return [Path(folder, name) for folder, _, files in os.walk(self.root) if name in files]

    def audit(self, **counts: int) -> None:
        """Fail unless every promise was kept, and so many executions have each status (`completed=3`)."""
        from tests.e2e.proof import broken_promises

        found = broken_promises(self, counts)
        assert not found, "\n".join(found) + f"\n{self.state_of_things()}"

    def state_of_things(self) -> str:
        """Rows, diary and logs, for whoever has to find out."""
        with suppress(sqlite3.Error):
            rows = self.rows("SELECT id, task_id, status, attempt, failures, fence, reason, error FROM executions")
            phases = self.rows("SELECT execution_id, number, phase, outcome, detail FROM attempts")
            beats = {"beat"}
            diary = [line for line in self.diary() if line.what not in beats][-30:]
            logs = [f"--- {command.pid}, code {command.code}\n{command.log[-6000:]}" for command in self.commands[-4:]]
            return "\n".join([*map(str, rows), *map(str, phases), *map(str, diary), *logs])
        return "the database can't be read"

    def clear_away(self) -> None:
        """End what a failed test left: its commands and their agents, by pid."""
        for command in self.commands:
            command.kill9()
        with suppress(sqlite3.Error):
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
