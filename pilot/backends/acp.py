"""Any agent that speaks the Agent Client Protocol over its standard input and output: one process, one prompt.

An agent asks before it does something, in its own way, and nobody is there to say yes. By default everything is
allowed, once each time it is asked: an agent is trusted with its workspace, as Claude Code is with
bypassPermissions; what keeps it in there is the sandbox. `executor.acp.permissions: refuse` allows nothing, and
what was asked for becomes a question to a person.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

from pilot.backends.acp_agents import account, child_environment, known, places
from pilot.backends.acp_events import Record
from pilot.backends.acp_outcome import Answer, End, brings_plugins, broken_off, finished, refused, ways_in
from pilot.backends.acp_session import choose_model, introduce, open_session, prompt
from pilot.backends.acp_talk import Talk
from pilot.backends.opencode_login import guarded
from pilot.backends.program import not_started
from pilot.backends.reading import Event, as_event, as_text
from pilot.config.executor import AcpSettings
from pilot.domain.agent import AgentRequest, Capabilities, Check, Emit, OutputKind
from pilot.domain.outcome import FailureClass, Outcome, Usage, failed
from pilot.domain.text import one_line
from pilot.runner.host import oom_kills
from pilot.runner.process import Process, running
from pilot.store import wall_clock

GRACE = 5.0
"""Seconds for each way of asking it to end: the end of its input, SIGINT, SIGTERM."""
AFTER_ANSWER = 10.0
"""Seconds to exit in after it has answered, its input being closed."""
CHECK_TIMEOUT = 20.0
LINE_LIMIT = 16 << 20
"""A message is a line; a change of a large file, or all that a tool has put out, is one message."""
REMEDY = "install it, or set executor.acp.argv"


class Acp:
    """Runs an agent over the Agent Client Protocol (the Backend port).

    `environ` is pilot's own environment: what an agent that is known needs to reach its model is handed on from it
    (`acp_agents`). `environment` is what agents get by setting; only `check` and `account` use it.
    """

    def __init__(
        self,
        settings: AcpSettings,
        *,
        environ: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        name: str = "acp",
    ) -> None:
        program, *arguments = settings.argv
        if "/" in program:
            # a relative path is the operator's, and never starts in a workspace that a ticket's author filled
            program = str(Path(program).expanduser().absolute())
        self._argv = (program, *arguments)
        self._refuse = settings.permissions == "refuse"
        self._agent = known(self._argv)
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
        """What the protocol has. Whether this agent has it is known when it runs: a session that it can't go on in
        is lost, a model that it can't choose is a failure with words; a cost is told by some only.
        """
        return Capabilities(resume=True, cost=self._agent.cost, questions=True, model=True)

    def account(self) -> str:
        """The keys that the agent takes, or the login that it finds."""
        return account(self._argv, self._agent, self._child(self._environment))

    async def execute(self, request: AgentRequest, emit: Emit) -> Outcome:
        """Run the agent in the request's workspace: one session, one prompt, until its process is gone."""
        if not request.prompt.strip():
            return failed(FailureClass.AGENT, "the prompt is empty")
        if request.sandbox is None and self._agent.plugins is not None:
            found = await asyncio.to_thread(self._agent.plugins, request.workspace)
            if found:
                return brings_plugins(found)
        child = self._child(request.environment)
        if self._agent.unpacks and request.scratch:
            child[self._agent.unpacks] = request.scratch
        record = Record(
            session=request.session_id,
            before=request.session_used,
            refuse=self._refuse,
            counts_last_call=self._agent.counts_last_call,
        )
        talk = Talk(record, emit, cancels=not self._agent.forgets_cancelled)
        heard: Outcome | Answer | None = None
        code: int | None = None
        before, begun = oom_kills(), False
        try:
            async with (
                self._guard(child),
                running(
                    self._argv,
                    cwd=request.workspace,
                    env=child,
                    marker=request.marker,
                    keep_stdin=True,
                    interrupt=talk.interrupt,
                    grace=GRACE,
                    line_limit=LINE_LIMIT,
                    sandbox=request.sandbox,
                    places=places(self._agent, self._argv, child),
                ) as process,
            ):
                begun = True
                talk.begin(process)
                heard = await self._heard(talk, request, child)
                code = await _exit(process, talk)
        except OSError as error:
            if begun:  # then it is the caller's own
                raise
            return not_started(self._argv[0], request.workspace, error, REMEDY)
        return self._judged(talk, heard, End(returncode=code, stderr=talk.complaint, oom=oom_kills() > before))

    async def _heard(self, talk: Talk, request: AgentRequest, child: Mapping[str, str]) -> Outcome | Answer | None:
        """The answer to the prompt; an outcome when it did not come to that; None when the agent's output ended."""
        try:
            offered = await introduce(talk, self._argv[0])
            if isinstance(offered, Outcome):
                return offered
            opened = await open_session(talk, offered, request, self._agent, child)
            if isinstance(opened, Outcome):
                return opened
            if request.session_id is None:
                await talk.named()
            unable = await choose_model(talk, opened, request.model)
            if unable is not None:
                return unable
            params = {"sessionId": talk.record.session, "prompt": prompt(request, self._agent)}
            answer = await talk.ask("session/prompt", params)
        except EOFError:
            await talk.show(talk.record.close())
            return None
        except asyncio.CancelledError:
            await talk.hang_up()
            raise
        await talk.show(talk.record.close() if answer.result is None else talk.record.finish(answer.result))
        return answer

    def _judged(self, talk: Talk, heard: Outcome | Answer | None, end: End) -> Outcome:
        match heard:
            case Outcome():
                return heard
            case Answer(result=None):
                return refused(talk.record, heard, end, now=wall_clock())
            case Answer(result=result) if result is not None:
                return finished(talk.record, result, end, self._agent)
        return broken_off(talk.record, end, during=talk.asked, stranger=talk.junk and not talk.spoke)

    def _guard(self, child: Mapping[str, str]) -> AbstractAsyncContextManager[None]:
        """What keeps its login from giving orders to the user's own next start of the program."""
        logins = places(self._agent, self._argv, child).logins
        return guarded(logins[0]) if self._agent.renewed is not None and logins else nullcontext()

    def _child(self, environment: Mapping[str, str]) -> dict[str, str]:
        return child_environment(self._agent, environment, self._environ)

    async def check(self) -> list[Check]:
        """For doctor: found, answers, and a key or a login in sight."""
        child = self._child(self._environment)
        path = shutil.which(self._argv[0], path=child.get("PATH"))
        if path is None:
            return [Check(self._name, False, f"{one_line(self._argv[0])} is not there, or not executable", REMEDY)]
        said: Event | Outcome | None = None
        talk = Talk(Record(), _Nowhere())
        argv = (path, *self._argv[1:])
        try:
            async with (
                asyncio.timeout(CHECK_TIMEOUT),
                running(argv, cwd="/", env=child, marker="doctor", keep_stdin=True, grace=0.5) as process,
            ):
                talk.begin(process)
                said = await introduce(talk, path, CHECK_TIMEOUT)
                await process.close_stdin()
                await talk.listen(1.0)
        except (TimeoutError, EOFError):
            pass
        except OSError as error:
            return [Check(self._name, False, f"{path} can't be run: {error.strerror or error}", REMEDY)]
        if said is None or isinstance(said, Outcome):
            why = said.detail if said else talk.complaint.strip() or "no answer"
            return [Check(self._name, False, f"{path} does not begin as an agent: {one_line(why)}", REMEDY)]
        info = as_event(said.get("agentInfo"))
        who = " ".join(as_text(info.get(key)) for key in ("name", "version")) if info else "an agent without a name"
        return [Check(self._name, True, one_line(f"{who} ({path})")), self._account(child, said)]

    def _account(self, child: Mapping[str, str], offered: Event) -> Check:
        name = f"{self._name} account"
        for key in self._agent.keys:
            if child.get(key):
                return Check(name, True, f"by {key}")
        for login in places(self._agent, self._argv, child).logins:
            if Path(login).is_file():
                return Check(name, True, f"logged in ({login})")
        ways = ways_in(offered) or "no way to log in"
        return Check(name, None, f"no key and no login seen; it offers: {ways}", "start the agent once and log in")


class _Nowhere:
    """An Emit for doctor: nobody wants to see it."""

    async def output(self, kind: OutputKind, data: bytes) -> None:
        """Nothing."""

    async def session(self, session_id: str) -> None:
        """Nothing."""

    def usage(self, usage: Usage) -> None:
        """Nothing."""


async def _exit(process: Process, talk: Talk) -> int | None:
    """Its exit status, its input being closed; None when it stays."""
    await process.close_stdin()
    try:
        await talk.listen(AFTER_ANSWER)
    except TimeoutError:
        return None
    return await process.wait()
