"""Daemons that die by their own hand at a point one names: `kill -9` between any two steps of an attempt.

The product knows nothing of this: a process that has imported `pilot` forks for every daemon (which saves a second
each), and the child, before it becomes `pilot serve`, puts its traps into the seams between the parts:

    claim:before claim:after     around the commit that claims the task
    note:N                       after the Nth fact that the attempt writes down (its phases among them)
    git:N                        after the Nth git command of the attempt that changes something
    in-git:N                     while it runs: it is left behind, at work
    finish:before finish:after   around the commit that ends it

A daemon that has ended the task without coming by its point drains and ends with 0.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilot.domain.outcome import Usage
    from tests.e2e.daemon import Home


@dataclass
class Trap:
    """Ends this process at `point` of the attempt of `task`."""

    point: str
    task: str
    armed: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    in_commit: list[str] = field(default_factory=list)

    def pass_by(self, point: str, words: str) -> None:
        if point == self.point:
            os.write(2, f"crashed at {point}: {words}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    def count(self, kind: str, words: str) -> None:
        if self.armed:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.pass_by(f"{kind}:{self.counts[kind]}", words)

    def set_up(self) -> None:
        self._commits()
        self._notes()
        self._git()

    def _commits(self) -> None:
        from pilot.store import sqlite
        from pilot.store.claim import Claim
        from pilot.store.finish import FinishClaims

        trap, finish, commit = self, FinishClaims.__call__, sqlite._commit_group

        def claiming(claim: Any) -> Any:
            def one(self: Claim, requests: Any, now: int) -> Generator[Any, Any, Any]:
                answers = yield from claim(self, requests, now)
                if any(answer is not None and answer.task_id == trap.task for answer in answers):
                    trap.in_commit.append("claim")
                return answers

            return one

        def finishing(self: FinishClaims, finishes: Any, now: int) -> Generator[Any, Any, Any]:
            if any(each.execution.task_id == trap.task for each in finishes):
                trap.in_commit.append("finish")
            return (yield from finish(self, finishes, now))

        def committing(connection: Any, work: Any, known: int) -> Any:
            trap.in_commit.clear()
            done = commit(_Watched(connection, trap), work, known)  # type: ignore[arg-type]
            for kind in trap.in_commit:
                trap.pass_by(f"{kind}:after", "commit")
            trap.armed = trap.armed or "claim" in trap.in_commit
            if "finish" in trap.in_commit:
                os.kill(os.getpid(), signal.SIGTERM)
            return done

        Claim.take = claiming(Claim.take)  # type: ignore[method-assign]
        Claim.__call__ = claiming(Claim.__call__)  # type: ignore[method-assign]
        FinishClaims.__call__ = finishing  # type: ignore[method-assign]
        sqlite._commit_group = committing

    def _notes(self) -> None:
        from pilot.store.journal import SqlJournal

        trap, note = self, SqlJournal.note

        async def noting(self: SqlJournal, execution: Any, usage: Usage | None = None, /, **facts: str | None) -> None:
            await note(self, execution, usage, **facts)
            if execution.task_id == trap.task:
                trap.count("note", " ".join(f"{name}={value}" for name, value in facts.items() if value))

        SqlJournal.note = noting  # type: ignore[method-assign]

    def _git(self) -> None:
        from pilot.runner.git import Git

        trap, run = self, Git.run

        async def running(self: Git, *args: str, **options: Any) -> Any:
            if args[0] in _READS:
                return await run(self, *args, **options)
            words = " ".join(args)[:80]
            task = asyncio.ensure_future(run(self, *args, **options))
            if trap.point.startswith("in-git:"):
                while not _children() and not task.done():
                    await asyncio.sleep(0)
                trap.count("in-git", words)
            try:
                return await task
            finally:
                trap.count("git", words)

        Git.run = running  # type: ignore[method-assign]


_READS = frozenset({"diff-tree", "for-each-ref", "ls-files", "merge-base", "rev-parse", "write-tree", "symbolic-ref"})
"""Git commands after which the disk is as it was before them."""


def _children() -> str:
    """The processes that this one has started and not seen the end of."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text()


class _Watched:
    """A connection that tells before it commits."""

    def __init__(self, connection: Any, trap: Trap) -> None:
        self._connection = connection
        self._trap = trap

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *params: Any) -> Any:
        if sql == "COMMIT":
            for kind in self._trap.in_commit:
                self._trap.pass_by(f"{kind}:before", "commit")
        return self._connection.execute(sql, *params)


@dataclass(frozen=True)
class Crashing:
    """The parent of daemons that die. Made by `crashing`."""

    home: Home
    process: subprocess.Popen[bytes]

    def serve(self, point: str, task: str, seconds: float = 40.0) -> tuple[int, str]:
        """Run `pilot serve` until it has ended: its exit code, and where it died ("" when it did not)."""
        log = self.home.root / f"crashing-{point.replace(':', '-')}.log"
        request = {"point": point, "task": task, "log": str(log), "environ": self.home.environment}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        pid = int(self._line(seconds) or "0")
        answer = self._line(seconds)
        if answer is None:
            os.kill(pid, signal.SIGALRM)
            answer = self._line(seconds)
        code, text = int(answer or "-99"), log.read_text()
        told = f"{point} of {task}: {code}\n{text}"
        assert code in (0, -signal.SIGKILL), f"{told}\n{self.home.state_of_things()}"
        return code, text.rpartition("crashed at ")[2].strip() if code else ""

    def _line(self, seconds: float) -> str | None:
        """The parent's next line; None when none comes in time."""
        assert self.process.stdout is not None
        end, line = time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            line += os.read(self.process.stdout.fileno(), 1)
        return line.decode()


@contextmanager
def crashing(home: Home) -> Iterator[Crashing]:
    """A parent for daemons of this home that die where one wants."""
    argv = [sys.executable, "-m", "tests.e2e.crashing"]
    root = Path(__file__).parents[2]
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, cwd=root, env=home.environment, stdin=pipe, stdout=pipe, bufsize=0)
    try:
        yield Crashing(home, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()


def _parent(main: Callable[[Sequence[str]], int]) -> None:
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(main, request)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(main: Callable[[Sequence[str]], int], request: dict[str, Any]) -> None:
    code = 70
    try:
        os.setsid()
        handle = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, source in ((0, null), (1, handle), (2, handle)):
            os.dup2(source, number)
        os.environ.clear()
        os.environ.update(request["environ"])
        Trap(request["point"], request["task"]).set_up()
        code = main(["serve"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    # Everything that a daemon needs, so that the children have it.
    for module in ("pilot.api.server", "pilot.app", "pilot.store.sqlite", "pilot.cli.work"):
        importlib.import_module(module)
    _parent(importlib.import_module("pilot.cli.main").main)
