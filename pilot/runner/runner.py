"""One attempt, from claimed to its outcome: workspace, set-up, prompt, agent, commit, preserve, gates, repairs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pilot.config.executor import ExecutorSettings
from pilot.config.fields import SECRET_NAME
from pilot.config.schema import ProjectSettings
from pilot.domain.agent import Backend
from pilot.domain.errors import Busy, ConfigError, LeaseLost, StoreError, UsageError, WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, FailureClass, Outcome, Publication, Usage, failed
from pilot.domain.pointer import pointer
from pilot.domain.policy import mark_of
from pilot.domain.ports import Journal
from pilot.domain.redact import Redactor
from pilot.domain.work import Made
from pilot.runner.attempt import Attempt, Confine, Publish
from pilot.runner.gates import first_red
from pilot.runner.record import Recorder
from pilot.runner.talk import Talk
from pilot.runner.workspace import Workspace, Workspaces

AlreadyMade = Callable[[Execution], Awaitable[Sequence[Made]]]
"""What the steps that an execution waited for have come to."""


async def _nothing_booked(_session: str) -> Usage:
    return Usage()


def _nowhere(_execution: Execution, _executor: ExecutorSettings, _ws: Workspace) -> None:
    return None


def _stays_here(_execution: Execution, _base: str) -> Publication | None:
    return None


async def _nothing_made(_execution: Execution) -> Sequence[Made]:
    return ()


async def _no_pulls(_project: int) -> Collection[str]:
    return ()


class AttemptRunner:
    """Implements `ports.Runner`. Settings are looked up for each execution, so that a reload counts at once.

    `booked`: what was booked for a session, in all. `budget`: dollars that the execution's attempt may cost.
    `confine`: its sandbox. `redact`: asked once per attempt for what takes secrets out. `publish`: the pull request
    that a change is to become. `live`: the branches of a project (id) that have an open one. `made`: what the steps
    of a plan that it waited for have come to.

    What is raised: `CancelledError`, the work kept; `LeaseLost` and other errors of the store. All else is an
    outcome.
    """

    def __init__(
        self,
        *,
        project: Callable[[Execution], ProjectSettings],
        backend: Callable[[Execution], Backend],
        executor: Callable[[Execution], ExecutorSettings],
        workspaces: Workspaces,
        journal: Journal,
        state_dir: Path,
        store_id: str,
        environ: Mapping[str, str] | None = None,
        booked: Callable[[str], Awaitable[Usage]] = _nothing_booked,
        confine: Confine = _nowhere,
        budget: Callable[[Execution], float | None] = lambda _execution: None,
        redact: Callable[[], Redactor] = Redactor,
        publish: Publish = _stays_here,
        live: Callable[[int], Awaitable[Collection[str]]] = _no_pulls,
        made: AlreadyMade = _nothing_made,
    ) -> None:
        self._project = project
        self._backend = backend
        self._executor = executor
        self._workspaces = replace(workspaces, state_dir=state_dir, store_id=store_id)
        self._journal = journal
        self._store_id = store_id
        self._environ = os.environ if environ is None else environ
        self._booked = booked
        self._confine = confine
        self._budget = budget
        self._redact = redact
        self._publish = publish
        self._live = live
        self._made = made

    async def __call__(self, execution: Execution) -> Outcome:
        """See `ports.Runner`."""
        try:
            project = self._project(execution)
        except LookupError:
            words = f"{execution.project} is no project of this pilot's configuration now"
            return failed(FailureClass.CONFLICT, words, unspent=True)
        try:
            payload = pointer(execution.payload)
        except UsageError as error:  # accepted by another version; what it means is for a person to say
            return failed(FailureClass.CONFLICT, f"its payload can't be read: {error}", unspent=True)
        try:
            backend = self._backend(execution)
            executor = self._executor(execution).resolve(execution.backend)
        except Exception as error:  # noqa: BLE001  the border to plug-ins and to settings that have changed
            words = f"backend {execution.backend} can't be used: {error}"
            return failed(FailureClass.INVALID_CONFIG, self._redact()(words), unspent=True)
        redact = self._redact().plus(self._handed_on(executor))
        async with Recorder(self._journal, execution, redact=redact) as recorder:
            attempt = self._attempt(execution, project, executor, backend, recorder, redact)
            attempt.talk.payload = payload
            attempt.made = await self._made(execution) if execution.plan is not None else ()
            attempt.live = await self._live(execution.project_id)
            try:
                return await self._carried_out(attempt)
            except asyncio.CancelledError:
                await attempt.rescue()
                raise
            finally:
                attempt.leave()

    async def release_workspace(self, execution: Execution, *, keep: bool) -> bool:
        """Give up an execution's workspace; whether it is gone. One with work that is nowhere else stays.

        May be asked any number of times. Raises `WorkspaceError`: class `infra` while a run is at work in it, class
        `conflict` when its project is not served here.
        """
        try:
            project = self._project(execution)
        except LookupError as error:
            words = f"{execution.project} is no project of this pilot's configuration now"
            raise WorkspaceError(FailureClass.CONFLICT, words) from error
        ws = await self._workspaces.find(project, execution)
        if ws is None:
            return await self._workspaces.sweep(project, execution)
        try:
            return await self._workspaces.release(ws, keep=keep)
        finally:
            ws.close()

    async def _carried_out(self, attempt: Attempt) -> Outcome:
        """The steps, and what became of them as a value."""
        try:
            await attempt.open()
            outcome = attempt.ended(await self._judged(attempt, await attempt.work()))
            await attempt.step("finish")
            await self._released(attempt, outcome)
        except (LeaseLost, StoreError, Busy):
            raise
        except ConfigError as error:  # what is asked of this machine, such as a sandbox, is not to be had
            await attempt.give_back()
            failure = FailureClass.CONFLICT if attempt.talk.by_machine else FailureClass.INVALID_CONFIG
            return attempt.ended(failed(failure, "; ".join(error.problems)))
        except WorkspaceError as error:
            await attempt.give_back()
            # These two park the backend, for every project: what is wrong with one repository is that one's affair.
            blameless = error.failure in (FailureClass.AUTH, FailureClass.INVALID_CONFIG)
            failure = FailureClass.CONFLICT if blameless else error.failure
            return attempt.ended(failed(failure, str(error), excerpt=error.excerpt))
        except OSError as error:
            await attempt.rescue()
            return attempt.ended(failed(FailureClass.INFRA, f"{type(error).__name__}: {error}"))
        except Exception as error:  # noqa: BLE001  a bug of ours must neither lose the work nor end the worker
            await attempt.rescue()
            return attempt.ended(failed(FailureClass.UNKNOWN, f"{type(error).__name__}: {error}"))
        return outcome

    async def _judged(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """The work is preserved first, then judged; a red gate goes back to the agent as long as that may help."""
        repairs = 0 if attempt.talk.by_machine else attempt.project.gate_repairs
        red: Outcome | None = None
        while True:
            if attempt.goes_on(outcome):
                await attempt.keep()
                return outcome
            before = attempt.snapshot
            snapshot = await attempt.commit()
            await attempt.preserve(snapshot)
            if outcome.ending is Ending.FAILED:
                return outcome
            if not attempt.adds(snapshot):
                return replace(outcome, ending=Ending.NO_CHANGE, delivered=attempt.brings_together)
            if red is not None and before is not None and before.tree == snapshot.tree:
                return red  # the repair repaired nothing
            last, red = red, await attempt.check(snapshot)
            if red is None:
                question = await attempt.doubt(snapshot, outcome.text)
                if question is not None:
                    return replace(outcome, ending=Ending.QUESTION, question=question)
                return replace(outcome, ending=Ending.DONE, delivered=True)
            red = replace(red, text=outcome.text)
            if repairs == 0 or attempt.time_is_up or (last is not None and mark_of(last) == mark_of(red)):
                return red
            repairs -= 1
            outcome = await attempt.repair(first_red(attempt.gates))

    async def _released(self, attempt: Attempt, outcome: Outcome) -> None:
        """What becomes of the workspace, as the project's `keep_workspace` says; whoever goes on needs it.

        That may be a repair: a change that becomes a pull request keeps its workspace until that has ended.
        """
        policy = attempt.project.keep_workspace
        keep = (
            policy == "always"
            or attempt.goes_on(outcome)
            or attempt.goes_on_later
            or outcome.publication is not None
            or (policy == "on_failure" and outcome.ending is Ending.FAILED)
        )
        await attempt.release(keep=keep)

    def _handed_on(self, executor: ExecutorSettings) -> list[str]:
        """The secrets of pilot's own environment that agents are given: one that they print is not kept."""
        given = executor.environment.variables(self._environ)
        return [value for name, value in given.items() if SECRET_NAME.search(name)]

    def _attempt(
        self,
        execution: Execution,
        project: ProjectSettings,
        executor: ExecutorSettings,
        backend: Backend,
        recorder: Recorder,
        redact: Redactor,
    ) -> Attempt:
        wanted = execution.options.get("timeout")
        seconds = executor.timeout if wanted is None else wanted / 1000
        talk = Talk(
            execution=execution,
            executor=executor,
            backend=backend,
            recorder=recorder,
            environment=executor.environment.variables(self._environ),
            marker=f"{self._store_id}:{execution.id}:{execution.fence}",
            allowed=seconds,
            deadline=asyncio.get_running_loop().time() + seconds,
            booked=self._booked,
            budget=self._budget(execution),
            allow_commands=project.allow_commands,
        )
        return Attempt(
            execution=execution,
            project=project,
            workspaces=self._workspaces,
            journal=self._journal,
            recorder=recorder,
            talk=talk,
            confine=self._confine,
            redact=redact,
            publish=self._publish,
        )
