"""An agent's program, before and beside its runs: whether it is there, what it says, why it did not start."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.domain.agent import Check
from pilot.domain.outcome import FailureClass, Outcome, failed
from pilot.domain.text import one_line
from pilot.runner.process import running


async def ask(
    argv: Sequence[str], env: Mapping[str, str], timeout: float, *, marker: str = "doctor"
) -> tuple[int, str]:
    """Run it in `/` without input: its exit status, and the first line that it prints, else says to stderr.

    Raises `TimeoutError` after `timeout` seconds, it being ended, and OSError when it can't be started.
    """
    said: dict[str, str] = {}
    async with (
        asyncio.timeout(timeout),
        running(argv, cwd="/", env=env, marker=marker, grace=0.2) as process,
    ):
        async for line in process.lines():
            if text := one_line(line.data.decode(errors="replace")):
                said.setdefault(line.stream, text)
        return await process.wait(), said.get("stdout", said.get("stderr", ""))


async def version(name: str, path: str, env: Mapping[str, str], timeout: float) -> Check:
    """For doctor: what it says to `--version`."""
    try:
        code, said = await ask([path, "--version"], env, timeout)
    except TimeoutError:
        return Check(name, False, f"{path} --version gave no answer in {timeout:.0f} s")
    except OSError as error:
        return Check(name, False, f"{path} can't be run: {error.strerror or error}")
    return Check(name, code == 0, f"{said or 'no version'} ({path})")


def not_started(command: str, workspace: str, error: OSError, remedy: str) -> Outcome:
    """It could not be started at all. `remedy`: what a person can do when it is not there."""
    why = f"{command} can't be started: {error.strerror or error}"
    if not Path(workspace).is_dir():
        return failed(FailureClass.INFRA, f"the workspace {workspace} is not there", excerpt=why)
    if error.errno in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.EPERM, errno.ENOTDIR):
        # the same for every task until a person installs it or names it rightly
        return failed(FailureClass.INVALID_CONFIG, f"{why}; {remedy}", excerpt=why)
    return failed(FailureClass.INFRA, why, excerpt=why)
