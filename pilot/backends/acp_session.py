"""The opening of a conversation over the Agent Client Protocol: who is there, which session, which model.

Each step gives what the agent said, or the outcome of a run that ends here.
"""

from __future__ import annotations

from collections.abc import Mapping

from pilot.backends.acp_agents import Known
from pilot.backends.acp_outcome import AUTH_REQUIRED, Answer, classify, session_lost, ways_in
from pilot.backends.acp_talk import Talk
from pilot.backends.reading import Event, as_event, as_list, as_text
from pilot.domain.agent import AgentRequest
from pilot.domain.outcome import FailureClass, Outcome, failed
from pilot.domain.text import for_terminal, one_line, tail

PROTOCOL = 1
INTRODUCTION_OF_PILOT: Mapping[str, object] = {
    "protocolVersion": PROTOCOL,
    "clientCapabilities": {"fs": {"readTextFile": False, "writeTextFile": False}, "terminal": False},
    "clientInfo": {"name": "pilot", "title": "pilot", "version": "1"},
}
INTRODUCTION = 60.0
"""Seconds to answer in at all; a Node program on a busy machine takes some."""
OPENING = 180.0
"""Seconds to open a session in; a long one is told from its beginning."""
QUIET = 0.3
"""Seconds without old news that are taken for their end: some agents tell them on after they have answered."""
QUIET_AT_MOST = 30.0
_SHOWN = 500


async def introduce(talk: Talk, program: str, seconds: float = INTRODUCTION) -> Event | Outcome:
    """What the agent is and can do. Raises `EOFError` when its output ends."""
    try:
        answer = await talk.ask("initialize", INTRODUCTION_OF_PILOT, seconds=seconds)
    except TimeoutError:
        why = f"{program} did not answer as an agent of the Agent Client Protocol within {seconds:g} s"
        stranger = talk.junk and not talk.spoke
        failure = FailureClass.INVALID_CONFIG if stranger else FailureClass.AGENT
        return failed(failure, f"{why}; see executor.acp.argv", excerpt=for_terminal(tail(talk.complaint)))
    if answer.result is None:
        return failed(classify(answer), f"{program} refused to begin: {one_line(answer.words, _SHOWN)}")
    version = answer.result.get("protocolVersion")
    if version != PROTOCOL:
        words = f"{program} speaks version {one_line(str(version), 20)} of the Agent Client Protocol, pilot {PROTOCOL}"
        return failed(FailureClass.INVALID_CONFIG, words)
    return answer.result


async def open_session(
    talk: Talk, offered: Event, request: AgentRequest, agent: Known, child: Mapping[str, str]
) -> Event | Outcome:
    """The session to work in: a new one, or the request's. Raises `EOFError`.

    An agent that wants a login gets one only by a way that asks nobody.
    """
    method, params = _opening(offered, request)
    if not method:
        return session_lost("this agent can't go on in a session")
    try:
        answer = await talk.ask(method, params, seconds=OPENING, replay=request.session_id is not None)
        if as_event(answer.error).get("code") == AUTH_REQUIRED and (way := _way_in(offered, agent, child)):
            entered = await talk.ask("authenticate", {"methodId": way}, seconds=OPENING)
            if entered.error is None:
                answer = await talk.ask(method, params, seconds=OPENING, replay=request.session_id is not None)
        if answer.result is not None and method == "session/load":
            await talk.quiet(QUIET, QUIET_AT_MOST)
    except TimeoutError:
        return failed(FailureClass.AGENT, f"the agent opened no session within {OPENING:g} s")
    if answer.result is None:
        return _not_opened(answer, offered, request)
    session = request.session_id or as_text(answer.result.get("sessionId"))
    if not session:
        return failed(FailureClass.AGENT, "the agent opened a session without a name")
    talk.record.session = session
    return answer.result


async def choose_model(talk: Talk, opened: Event, model: str | None) -> Outcome | None:
    """Have the session use this model (None: whichever it uses); an outcome when it can't. Raises `EOFError`."""
    option = _model_option(opened)
    models = as_event(opened.get("models"))
    talk.record.model = model or as_text(option.get("currentValue")) or as_text(models.get("currentModelId")) or None
    if model is None:
        return None
    session = {"sessionId": talk.record.session}
    try:
        if option:
            params = {**session, "configId": option.get("id"), "value": model}
            answer = await talk.ask("session/set_config_option", params, seconds=OPENING)
        elif models:
            answer = await talk.ask("session/set_model", {**session, "modelId": model}, seconds=OPENING)
        else:
            words = "this agent can't be told a model: name it in executor.acp.argv, or take it out of the route"
            return failed(FailureClass.INVALID_CONFIG, words)
    except TimeoutError:
        return failed(FailureClass.AGENT, f"the agent took no model within {OPENING:g} s")
    if answer.error is None:
        return None
    there = ", ".join(_models(option, models)[:12]) or "none that it names"
    words = f"the agent has no model {one_line(model, 80)}: {one_line(answer.words, _SHOWN)} (there are {there})"
    return failed(FailureClass.INVALID_CONFIG, words)


def prompt(request: AgentRequest, agent: Known) -> list[dict[str, str]]:
    """The prompt's blocks: the repository's instructions for agents, if this one does not read them, and the task."""
    words = request.prompt
    if words.lstrip()[:1] in ("/", "$"):
        words = f"The task:\n{words}"  # else a first line that looks like one would be a command of the agent's
    blocks = [{"type": "text", "text": words}]
    if request.instructions and request.session_id is None and not agent.reads_instructions:
        told = f"What this repository says to agents that work on it:\n\n{request.instructions}\n\n"
        blocks.insert(0, {"type": "text", "text": told})
    return blocks


def _opening(offered: Event, request: AgentRequest) -> tuple[str, dict[str, object]]:
    """Method and parameters; no method when a session can't be gone on with."""
    params: dict[str, object] = {"cwd": request.workspace, "mcpServers": []}
    if request.session_id is None:
        return "session/new", params
    params["sessionId"] = request.session_id
    can = as_event(offered.get("agentCapabilities"))
    if isinstance(as_event(can.get("sessionCapabilities")).get("resume"), dict):
        return "session/resume", params  # the same without the whole conversation's being told again
    return ("session/load" if can.get("loadSession") is True else ""), params


def _way_in(offered: Event, agent: Known, child: Mapping[str, str]) -> str | None:
    for method in map(as_event, as_list(offered.get("authMethods"))):
        name = as_text(method.get("id"))
        wanted = [as_text(as_event(var).get("name")) for var in as_list(method.get("vars"))]
        if method.get("type") == "env_var" and wanted and all(child.get(variable) for variable in wanted):
            return name
        if child.get(agent.methods.get(name, "")):
            return name
    return None


def _not_opened(answer: Answer, offered: Event, request: AgentRequest) -> Outcome:
    failure, words = classify(answer), one_line(answer.words, _SHOWN)
    if failure is FailureClass.AUTH:
        ways = ways_in(offered) or "nothing"
        return failed(failure, f"the agent wants a login: {words} (it offers: {ways}); start it once and log in")
    if request.session_id is not None:
        return session_lost(words)
    return failed(failure, f"the agent opened no session: {words}")


def _model_option(opened: Event) -> Event:
    options = [as_event(option) for option in as_list(opened.get("configOptions"))]
    return next((o for o in options if "model" in (o.get("category"), o.get("id")) and o.get("type") == "select"), {})


def _models(option: Event, models: Event) -> list[str]:
    found = [as_text(as_event(model).get("modelId")) for model in as_list(models.get("availableModels"))]
    for choice in map(as_event, as_list(option.get("options"))):
        found += [as_text(as_event(inner).get("value")) for inner in as_list(choice.get("options")) or [choice]]
    return [one_line(name, 60) for name in found if name]
