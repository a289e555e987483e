"""What pilot adds to a run of each real agent CLI, against the same CLI started from a shell in a ready worktree.

Both write one file and say a word, against a scripted model on loopback, in turns. pilot's time is from the enqueue
to the end in its store: claim, clone, agent, commit, branch.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.figures import Figure
from pilot.app.context import Context, limits_of, open_context
from pilot.app.node import new_node
from pilot.config.load import load
from pilot.dispatch.dispatcher import Dispatcher
from pilot.dispatch.intake import TaskRequest
from pilot.domain.execution import Status
from pilot.domain.ports import NodeKind
from tests.e2e import acp, opencode
from tests.e2e.claude import claude_binary, claude_environment
from tests.e2e.codex import codex_binary, codex_environment, provider
from tests.e2e.opencode import opencode_binary
from tests.e2e.scripted_server import Turn, text, tool

RUNS = 6
PROMPT = "Write the page, then say that it is done."


@dataclass(frozen=True, slots=True)
class Cli:
    """One agent: the module of its model's server and what that says, its settings in pilot.yaml, its environment,
    and how a shell starts it, the prompt on stdin.
    """

    name: str
    server: str
    turns: Sequence[Turn]
    environment: Callable[[Path, str], Mapping[str, str]]
    executor: Callable[[Path, str], Mapping[str, Any]]
    shell: Callable[[Path, str], tuple[str, ...]]


def _claude() -> Cli:
    script = [tool("Write", file_path="${cwd}/page.html", content="<h1>hi</h1>\n"), text("Done.")]
    flags = ("-p", "--output-format", "stream-json", "--verbose", "--dangerously-skip-permissions")
    quiet = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "IS_SANDBOX": "1"}
    return Cli(
        "claude-code",
        "tests.e2e.model_server",
        script,
        lambda home, url: {**claude_environment(home, url), **quiet},
        lambda _home, _url: {"type": "claude-code", "claude-code": {"command": claude_binary()}},
        lambda _home, _url: (claude_binary(), *flags),
    )


def _codex() -> Cli:
    script = [tool("exec_command", cmd="echo '<h1>hi</h1>' > page.html", yield_time_ms=1000), text("Done.")]
    own = {"command": codex_binary(), "model": "scripted-model"}
    quiet = ("-c", "analytics.enabled=false", "-c", "features.plugins=false", "-c", "check_for_update_on_startup=false")
    flags = ("exec", "--json", "-s", "workspace-write", "-m", "scripted-model", *quiet)
    return Cli(
        "codex",
        "tests.e2e.responses_server",
        script,
        lambda home, _url: codex_environment(home),
        lambda _home, url: {"type": "codex", "codex": {**own, "extra_args": provider(url)}},
        lambda _home, url: (codex_binary(), *flags, *provider(url), "-"),
    )


def _opencode() -> Cli:
    script = [opencode.write("page.html", "<h1>hi</h1>\n"), text("Done.")]
    return Cli(
        "opencode",
        "tests.e2e.model_server",
        script,
        lambda home, url: {**opencode.opencode_environment(home, url), **opencode.QUIET},
        lambda _home, _url: {
            "type": "opencode",
            "opencode": {"command": opencode_binary(), "model": opencode.MODEL, "server_url": opencode.NOWHERE},
        },
        lambda _home, _url: (opencode_binary(), "run", "--format", "json", "-m", opencode.MODEL),
    )


def _gemini() -> Cli:
    script = [acp.GEMINI.write("page.html", "<h1>hi</h1>\n"), text("Done.")]
    flags = ("--yolo", "-o", "stream-json", "-m", acp.GEMINI_MODEL)
    trust = {"GEMINI_CLI_TRUST_WORKSPACE": "true"}
    return Cli(
        "gemini by acp",
        "tests.e2e.gemini_server",
        script,
        lambda home, url: {**acp.environment(acp.GEMINI, home, url), **trust},
        lambda _home, _url: {"type": "acp", "acp": {"argv": acp.GEMINI.argv()}},
        lambda _home, _url: (*acp.GEMINI.argv()[:2], *flags),
    )


def _git(*args: str, cwd: Path) -> None:
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    subprocess.run(["git", *identity, *args], cwd=cwd, check=True, capture_output=True)


def _repository(place: Path) -> Path:
    place.mkdir()
    (place / "README.md").write_text("# A page\n")
    _git("init", "-q", "-b", "main", cwd=place)
    _git("add", "-A", cwd=place)
    _git("commit", "-qm", "first", cwd=place)
    return place


def _by_shell(cli: Cli, home: Path, url: str, repository: Path, n: int) -> float:
    worktree = home / f"worktree{n}"
    _git("worktree", "add", "-q", "--detach", str(worktree), cwd=repository)
    started = time.perf_counter()
    subprocess.run(
        cli.shell(home, url), cwd=worktree, env=dict(cli.environment(home / "home", url)), input=PROMPT.encode(),
        check=True, capture_output=True,
    )  # fmt: skip
    took = time.perf_counter() - started
    if not (worktree / "page.html").is_file():
        raise SystemExit(f"{cli.name} from a shell did not write the page")
    return took


async def _by_pilot(context: Context, dispatcher: Dispatcher) -> float:
    row, own = await context.project("api")
    started = time.perf_counter()
    task = await context.intake().submit(TaskRequest(prompt=PROMPT, source="cli"), row, own)
    ended = await dispatcher.wait_for_execution(task.id)
    took = time.perf_counter() - started
    if ended.status is not Status.COMPLETED or ended.branch is None:
        raise SystemExit(f"{ended.backend}: {ended.status} {ended.outcome} {ended.error} {ended.reason}")
    return took


async def _measure(cli: Cli, home: Path, url: str, sandbox: str) -> tuple[float, float]:
    repository = _repository(home / "api")
    config = home / "pilot.yaml"
    variables = dict(cli.environment(home / "home", url))
    executor = {**cli.executor(home, url), "sandbox": sandbox, "environment": {"pass": [], "set": variables}}
    config.write_text(
        yaml.safe_dump(
            {
                "state_dir": str(home / "state"),
                "executor": executor,
                "projects": [{"name": "api", "path": str(repository), "publish": "branch"}],
            }
        )
    )
    shell, pilot = [], []
    async with open_context(load(config, variables)) as context:
        limits = replace(limits_of(context.settings), poll_interval=0.05)
        dispatcher = context.dispatcher(new_node(NodeKind.SERVE, 1), limits, context.stored.values())
        async with dispatcher:
            for n in range(RUNS):
                shell.append(await asyncio.to_thread(_by_shell, cli, home, url, repository, n))
                pilot.append(await _by_pilot(context, dispatcher))
    return statistics.median(shell[1:]), statistics.median(pilot[1:])


@contextmanager
def _model(cli: Cli) -> Iterator[str]:
    """Its model's URL: a process of its own, as it would be elsewhere."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as script:
        json.dump({"scripts": [{"turns": cli.turns}]}, script)
        script.flush()
        with subprocess.Popen(
            [sys.executable, "-m", cli.server, script.name], stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                assert server.stdout is not None
                yield server.stdout.readline().split()[-1]
            finally:
                server.terminate()


def run() -> list[Figure]:
    """Medians; the first run of each is left out: it fills the disk's cache."""
    figures = []
    for cli in (_claude(), _codex(), _opencode(), _gemini()):
        for sandbox in ("none", "bubblewrap"):
            with tempfile.TemporaryDirectory(prefix="pilot-bench-") as folder, _model(cli) as url:
                shell, pilot = asyncio.run(_measure(cli, Path(folder), url, sandbox))
            where = "" if sandbox == "none" else ", sandboxed"
            note = f"{shell:.2f} s from a shell, {pilot:.2f} s by pilot"
            figures.append(
                Figure(f"{cli.name}{where}: time by pilot / from a shell", pilot / shell, "x", 1.25, note=note)
            )
            figures.append(Figure(f"{cli.name}{where}: added by pilot", pilot - shell, "s", 0.7))
    return figures


if __name__ == "__main__":
    from benchmarks.figures import table

    print(table(run()))
