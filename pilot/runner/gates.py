"""The checks that pilot itself runs after the agent, on exactly the tree that will be delivered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pilot.config.schema import GateSettings
from pilot.domain.agent import Emit, OutputKind, Sandbox
from pilot.domain.outcome import FailureClass, GateResult, Outcome, failed
from pilot.domain.text import one_line
from pilot.runner.shell import TAIL, Ran, run_shell

Restore = Callable[[], Awaitable[Sequence[str]]]
"""Puts the work tree back to the commit that is judged; the paths that were different."""

_CLASSES = {kind: FailureClass(kind) for kind in ("lint", "test", "build", "ci")}
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Gates:
    """A project's gates, in one workspace. The commands are the operator's; the environment is the agent's."""

    settings: Sequence[GateSettings]
    workspace: Path
    environment: Mapping[str, str]
    marker: str
    restore: Restore
    sandbox: Sandbox | None = None

    async def run(self, tree: str, emit: Emit) -> tuple[GateResult, ...]:
        """Run all of them in order, on the tree with that hash; a red one does not keep the next from running.

        What a gate changes is put back before the next, so that what was judged is what is delivered.
        """
        return tuple([await self._one(gate, tree, emit) for gate in self.settings])

    async def _one(self, gate: GateSettings, tree: str, emit: Emit) -> GateResult:
        await _say(emit, f"gate {gate.name}: {one_line(gate.run, 500)}")
        try:
            ran = await run_shell(
                gate.run,
                cwd=self.workspace,
                env=self.environment,
                marker=self.marker,
                timeout=gate.timeout,
                emit=emit,
                sandbox=self.sandbox,
            )
        except OSError as error:
            ran = Ran(None, False, 0, f"could not be started: {error}")
        changed = await self.restore()
        result = GateResult(
            name=gate.name,
            kind=gate.kind,
            command=gate.run,
            required=gate.required,
            exit_code=ran.exit_code,
            duration=ran.duration,
            tree=tree,
            timed_out=ran.timed_out,
            tail=ran.tail,
        )
        await _say(emit, f"gate {gate.name}: {verdict(result)} after {ran.duration / 1000:.1f} s")
        if changed:
            words = f"pilot: the gate changed files that are not its own, they were restored: {_some(changed)}"
            await _say(emit, words)
            result = replace(result, tail=f"{ran.tail[: TAIL - len(words) - 1]}\n{words}".lstrip("\n"))
        return result


def verdict(result: GateResult) -> str:
    """How it ended, in a word or two."""
    if result.passed:
        return "green"
    if result.timed_out:
        return "red (timed out)"
    return "red (could not run)" if result.exit_code is None else f"red (exit code {result.exit_code})"


def judge(results: Sequence[GateResult]) -> Outcome | None:
    """The failure that the first red required gate is; None when nothing stands in the way."""
    if all(result.passed or not result.required for result in results):
        return None
    red = first_red(results)
    failure = _CLASSES.get(red.kind, FailureClass.TEST)
    return failed(failure, f"gate {red.name} is {verdict(red)}", excerpt=red.tail)


def first_red(results: Sequence[GateResult]) -> GateResult:
    """The first required gate that is red; there has to be one."""
    return next(result for result in results if result.required and not result.passed)


async def _say(emit: Emit, words: str) -> None:
    await emit.output(OutputKind.PILOT, words.encode(errors="replace") + b"\n")


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(one_line(path, 80) for path in paths[:_SHOWN])
    return shown if len(paths) <= _SHOWN else f"{shown} and {len(paths) - _SHOWN} more"
