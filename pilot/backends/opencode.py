"""OpenCode, by its HTTP server: one that answers where `server_url` says is used, else one is started for the attempt.

A server that is there already is left alone: it has its user's environment and settings, runs outside of any sandbox
and goes on. One of pilot's own is this attempt's: its workspace, environment, marker and sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path

from pilot.backends.opencode_cli import (
    PASSWORD,
    USERNAME,
    Model,
    account,
    child_environment,
    chosen,
    keys_in,
    login,
    plugins_in,
)
from pilot.backends.opencode_outcome import server_gone
from pilot.backends.opencode_server import InTheWay, Own
from pilot.backends.opencode_session import Ended
from pilot.backends.opencode_turn import STOP, Turn
from pilot.backends.program import not_started, version
from pilot.clients.opencode import Client, NotThisApi, OpenCodeError, Rejected, Unauthorized, Unreachable
from pilot.config.executor import OpenCodeSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit
from pilot.domain.outcome import Ending, FailureClass, Outcome, Question, failed
from pilot.domain.text import one_line
from pilot.runner.ending import Patience
from pilot.runner.host import oom_kills

PROBE = 3.0
"""Seconds for a server at `server_url` to say who it is."""
STARTS = (0.0, 0.3, 1.0, 3.0)
"""Seconds before each start of a server of its own, while another is in its way."""
CHECK_TIMEOUT = 10.0
REMEDY = "install it (npm install -g opencode-ai) or set executor.opencode.command"


class OpenCode:
    """Runs turns on an OpenCode server (the Backend port).

    `environ` is pilot's own environment: the password of a server that is there, and what reaches the model, are
    taken from it. `environment` is what agents get by setting; only `check` and `account` use it, a run has its own.
    """

    def __init__(
        self,
        settings: OpenCodeSettings,
        *,
        environ: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        name: str = "opencode",
    ) -> None:
        if "/" in settings.command:
            # a relative path is the operator's, and never starts in a workspace that a ticket's author filled
            absolute = str(Path(settings.command).expanduser().absolute())
            settings = settings.model_copy(update={"command": absolute})
        self._settings = settings
        self._environ = environ
        if environment is None:
            environment = {key: environ[key] for key in ("PATH", "HOME", "LANG") if key in environ}
        self._environment = environment
        self._name = name

    @property
    def name(self) -> str:
        """As routes and `--backend` call it."""
        return self._name

    def capabilities(self) -> Capabilities:
        """All there is; a cost is the program's own reckoning."""
        return Capabilities(resume=True, cost=True, questions=True, model=True)

    def account(self) -> str:
        """The key of the model's provider, or the login; of the server at `server_url`, if there is one."""
        model = chosen(self._settings.model)
        return account(self._child(model), model, self._settings.server_url)

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Have the prompt worked on in the request's workspace.

        A session's id is emitted as soon as the server has made it. A session to go on in that is not there, or
        belongs to another directory, gives a failure with `session_lost`, before the model is asked.
        """
        if not request.prompt.strip():
            return failed(FailureClass.AGENT, "the prompt is empty")
        if not await asyncio.to_thread(Path(request.workspace).is_dir):
            return failed(FailureClass.INFRA, f"the workspace {request.workspace} is not there")
        said = request.model or self._settings.model
        model = chosen(said)
        if model is None:
            why = f"the model {one_line(said)} has no provider" if said else "no model is said"
            remedy = "OpenCode would choose one itself, anywhere; say executor.opencode.model: provider/model"
            return failed(FailureClass.INVALID_CONFIG, f"{why}: {remedy}")
        if request.sandbox is None:
            async with self._client() as client:
                try:
                    await client.version(PROBE)
                except Unreachable:
                    pass
                except OpenCodeError as error:
                    return _not_begun(error)
                else:
                    return await self._there(client, request, emit, model)
        return await self._own(request, emit, model)

    async def _there(self, client: Client, request: AgentRequest, emit: Emit, model: Model) -> Outcome:
        """On the server that was there."""
        turn = Turn(client, request, emit, model)
        try:
            return await turn.run()
        except OpenCodeError as error:
            return _not_begun(error)
        finally:
            # a run goes on without us: it is ended before anybody is told that it is
            patience = Patience()
            await patience.courtesy(_stop, turn, 2 * STOP)
            patience.settle()

    async def _own(self, request: AgentRequest, emit: Emit, model: Model) -> Outcome:
        """On a server that is started for this."""
        if request.sandbox is None and (found := await asyncio.to_thread(plugins_in, request.workspace)):
            return _brings_plugins(found)
        outcome = failed(FailureClass.INFRA, "the agent's server was not started")
        for pause in STARTS:
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  so that they don't meet again
            try:
                own = Own(self._settings.command, request, self._environ, model)
            except ValueError as error:
                return failed(FailureClass.INVALID_CONFIG, f"OPENCODE_CONFIG_CONTENT can't be used: {error}")
            try:
                return await self._on(own, request, emit, model)
            except InTheWay as error:
                outcome = error.outcome
        return outcome

    async def _on(self, own: Own, request: AgentRequest, emit: Emit, model: Model) -> Outcome:
        """The run. Raises `InTheWay`."""
        before, begun = oom_kills(), False
        async with own.client() as client:
            turn = Turn(client, request, emit, model, oom=lambda: oom_kills() > before)
            try:
                async with own.running(client, turn) as process:
                    begun = True
                    await own.listening(turn)
                    try:
                        return await turn.run()
                    except OpenCodeError as error:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(1):
                                code = await process.wait()
                            return server_gone(None, code, turn.complaint, oom=oom_kills() > before)
                        return _not_begun(error)
            except InTheWay:
                raise
            except Ended as end:
                return end.outcome
            except OSError as error:
                if begun:  # then it is the caller's own
                    raise
                return not_started(self._settings.command, request.workspace, error, REMEDY)

    def _client(self) -> Client:
        username = self._environ.get(USERNAME) or "opencode"
        return Client(self._settings.server_url, username=username, password=self._environ.get(PASSWORD) or None)

    def _child(self, model: Model | None) -> dict[str, str]:
        return child_environment(self._environment, self._environ, model)

    # -- for doctor ---------------------------------------------------------------------------------------------

    async def check(self) -> list[Check]:
        """For doctor: found, version, a server that is there already, and an account with the model's provider."""
        model = chosen(self._settings.model)
        child = self._child(model)
        path = await asyncio.to_thread(shutil.which, self._settings.command, path=child.get("PATH"))
        if path is None:
            checks = [Check(self._name, False, f"{self._settings.command} is not on PATH", REMEDY)]
        else:
            checks = [await version(self._name, path, child, CHECK_TIMEOUT)]
        return [*checks, await self._server(), await asyncio.to_thread(self._account, child, model)]

    async def _server(self) -> Check:
        name, url = f"{self._name} server", one_line(self._settings.server_url)
        async with self._client() as client:
            try:
                found = one_line(await client.version(PROBE))
            except Unreachable:
                return Check(name, True, f"none at {url}: each attempt gets its own")
            except OpenCodeError as error:
                outcome = _not_begun(error)
                return Check(name, False, outcome.detail, "stop it, or set executor.opencode.server_url")
        return Check(
            name, True, f"OpenCode {found} at {url} is used without a sandbox; in one, each attempt gets its own"
        )

    def _account(self, child: Mapping[str, str], model: Model | None) -> Check:
        name = f"{self._name} account"
        if model is None:
            return Check(name, False, "no model is said", "set executor.opencode.model: provider/model")
        if keys := keys_in(child, model):
            return Check(name, True, f"by {keys[0]}")
        if model.provider in _logins(login(child)):
            return Check(name, True, f"logged in with {one_line(model.provider)} ({login(child)})")
        detail = f"no key of {one_line(model.provider)} and no login seen; OpenCode's own settings may have one"
        return Check(name, None, detail, "run `opencode auth login`, or set the provider's key")


async def _stop(turn: Turn) -> None:
    await turn.stop()


def _logins(file: str) -> set[str]:
    try:
        found = json.loads(Path(file).read_text())
    except (OSError, ValueError):
        return set()
    return set(found) if isinstance(found, dict) else set()


def _not_begun(error: OpenCodeError) -> Outcome:
    """The server refused, or could not do, what comes before a prompt."""
    match error:
        case Unauthorized():
            remedy = f"set {PASSWORD} (and {USERNAME}) in pilot's environment as that server has them"
            return failed(FailureClass.AUTH, f"{error}: {remedy}")
        case NotThisApi():
            what = f"OpenCode {one_line(error.version)} at its address" if error.version else "what answers there"
            remedy = "set executor.opencode.server_url to a server of OpenCode 1.x, or to an address with none"
            return failed(FailureClass.INVALID_CONFIG, f"{one_line(str(error))} ({what} can't be used); {remedy}")
        case Rejected() if error.status < 500:
            return failed(FailureClass.INVALID_CONFIG, f"OpenCode refused the run: {one_line(str(error))}")
        case Rejected():
            return failed(FailureClass.INFRA, f"OpenCode could not begin: {one_line(str(error))}")
        case _:
            return failed(FailureClass.NETWORK, f"the agent's server does not answer: {one_line(str(error))}")


def _brings_plugins(found: list[str]) -> Outcome:
    """Code of the repository that would run unasked, with the account's key."""
    some = one_line(", ".join(found), 300)
    text = (
        f"This repository brings plugins for OpenCode: {some}\n"
        "OpenCode runs them as soon as it works there, told not to or not. Have agents run in a sandbox "
        "(executor.sandbox), take the plugins away, or give this task to another agent."
    )
    return Outcome(ending=Ending.QUESTION, question=Question(text), detail=f"plugins: {some}")
