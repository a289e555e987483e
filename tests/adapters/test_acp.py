"""What agents say over the Agent Client Protocol, and what it means: pure, by lines as real agents sent them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from acp.schema import (
    CancelNotification,
    InitializeRequest,
    LoadSessionRequest,
    NewSessionRequest,
    PromptRequest,
    RequestPermissionResponse,
    ResumeSessionRequest,
)

from pilot.backends import acp_session
from pilot.backends.acp_agents import CODEX, GEMINI, GOOSE, NOTHING, OPENCODE, account, child_environment, known, places
from pilot.backends.acp_events import KEPT, Record
from pilot.backends.acp_outcome import Answer, End, broken_off, classify, finished, refused
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Usage

OK = End(returncode=0, stderr="")
UNUSED = {"inputTokens": 0, "outputTokens": 0}
NOW = 1_800_000_000_000


def told(record: Record, kind: str, session: str = "s", **update: Any) -> list[tuple[OutputKind, str]]:
    """What is shown of an update, but for its raw line."""
    message = {
        "method": "session/update",
        "params": {"sessionId": session, "update": {"sessionUpdate": kind, **update}},
    }
    pieces = list(record.read(message, json.dumps(message).encode()))
    assert pieces[0][0] is OutputKind.RAW
    return [(kind, data.decode()) for kind, data in pieces[1:]]


def says(record: Record, words: str, **more: Any) -> list[tuple[OutputKind, str]]:
    return told(record, "agent_message_chunk", content={"type": "text", "text": words}, **more)


def shown(pieces: Any) -> list[tuple[OutputKind, str]]:
    return [(kind, data.decode()) for kind, data in pieces]


# -- what is shown -------------------------------------------------------------------------------------------------


def test_chunks_are_one_message_until_something_else_comes() -> None:
    record = Record(session="s")
    assert says(record, "I lo") == []
    assert says(record, "ok.\nAnd") == [(OutputKind.TEXT, "I look.\n")]
    begun = told(record, "tool_call", toolCallId="1", title="read", status="in_progress", rawInput={"filePath": "/a"})
    assert begun == [(OutputKind.TEXT, "And\n"), (OutputKind.TOOL, "read /a\n")]
    assert record.text == "I look.\nAnd"
    assert not record.spoke
    says(record, "Done.")
    assert shown(record.close()) == [(OutputKind.TEXT, "Done.\n"), (OutputKind.RESULT, "no answer\n")]
    assert record.text == "Done."


def test_a_message_that_has_a_name_goes_on_after_a_thought() -> None:
    record = Record(session="s")
    says(record, "Which col", messageId="m1")
    told(record, "agent_thought_chunk", content={"type": "text", "text": "hm"})
    says(record, "our?", messageId="m1")
    assert record.text == "Which colour?"
    says(record, "Blue.", messageId="m2")
    assert record.text == "Blue."


def test_what_was_said_before_is_no_last_word() -> None:
    """Gemini CLI tells the old conversation on after it has answered that the session is open."""
    record = Record(session="s")
    says(record, "old question")
    told(record, "user_message_chunk", content={"type": "text", "text": "Go on."})
    assert (record.text, record.spoke) == ("", False)


def test_a_subagents_words_are_not_the_agents() -> None:
    record = Record(session="s")
    says(record, "Mine.")
    assert says(record, "Theirs.", session="child") == []
    assert record.text == "Mine."
    assert told(record, "tool_call", session="child", toolCallId="1", title="ls", status="in_progress")


def test_an_endless_message_keeps_its_end() -> None:
    record = Record(session="s")
    for number in range(40):
        says(record, f"{number:02d}" + "x" * 60_000)
    assert len(record.text) == KEPT
    assert "39" in record.text
    assert "01" not in record.text


def test_a_call_whose_arguments_are_still_to_come_begins_when_they_are_there() -> None:
    record = Record(session="s")
    assert told(record, "tool_call", toolCallId="1", title="write", status="pending", rawInput={}) == []
    update: dict[str, Any] = {"toolCallId": "1", "title": "write", "rawInput": {"filePath": "/w/a.txt"}}
    assert told(record, "tool_call_update", status="in_progress", **update) == [(OutputKind.TOOL, "write /w/a.txt\n")]
    assert told(record, "tool_call_update", status="in_progress", **update) == []
    answer = [{"type": "content", "content": {"type": "text", "text": "Wrote it."}}]
    assert told(record, "tool_call_update", status="completed", content=answer, **update) == [
        (OutputKind.RESULT, "Wrote it.\n")
    ]
    assert told(record, "tool_call_update", status="completed", content=answer, **update) == []


@pytest.mark.parametrize(
    ("update", "words"),
    [
        ({"content": [{"type": "diff", "path": "/w/a", "oldText": "", "newText": "x"}]}, "/w/a: changed\n"),
        ({"content": [{"type": "content", "content": {"type": "image"}}]}, "[image]\n"),
        ({"rawOutput": {"output": "out"}}, "out\n"),
        ({"rawOutput": {"error": "no"}}, '{"error": "no"}\n'),
        ({}, "\n"),
    ],
)
def test_what_a_tool_gave_back(update: dict[str, Any], words: str) -> None:
    record = Record(session="s")
    whole = told(record, "tool_call", toolCallId="1", title="it", status="failed", **update)
    assert whole == [(OutputKind.TOOL, "it\n"), (OutputKind.RESULT, words)]


def test_what_a_tool_puts_out_again_and_again_is_not_kept_again_and_again() -> None:
    record = Record(session="s")
    told(record, "tool_call", toolCallId="1", title="make", status="in_progress")
    said = [{"type": "content", "content": {"type": "text", "text": "x" * 100_000}}]
    update = {"sessionUpdate": "tool_call_update", "toolCallId": "1", "status": "in_progress", "content": said}
    message = {"method": "session/update", "params": {"sessionId": "s", "update": update}}
    ((kind, data),) = record.read(message, json.dumps(message).encode())
    assert kind is OutputKind.RAW
    assert len(data) < 1000


@pytest.mark.parametrize(
    "update",
    [
        {"sessionUpdate": ["x"]},
        {"sessionUpdate": "tool_call", "toolCallId": [1], "title": {}, "status": "in_progress", "rawInput": 7},
        {"sessionUpdate": "tool_call_update", "toolCallId": None, "status": ["completed"], "content": "x"},
        {"sessionUpdate": "tool_call", "status": "completed", "content": [None, 1], "locations": [3]},
        {"sessionUpdate": "usage_update", "cost": {"amount": "much"}},
        {"sessionUpdate": "usage_update", "cost": [1]},
        {"sessionUpdate": "agent_message_chunk", "content": "words", "messageId": 4},
        {"sessionUpdate": "something_new", "x": 1},
        [],
        None,
    ],
)
def test_what_is_not_as_it_should_be_breaks_nothing(update: Any) -> None:
    record = Record(session="s")
    message = {"method": "session/update", "params": {"sessionId": "s", "update": update}}
    list(record.read(message, b"line"))
    list(record.finish({"usage": [], "_meta": {"quota": 3}}))
    assert record.usage == Usage()


def test_a_message_in_many_small_pieces_costs_no_more_than_in_one() -> None:
    record = Record(session="s")
    update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": "A word or two."}}
    message = {"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "s", "update": update}}

    def seconds(times: int) -> float:
        started = time.process_time()
        for _ in range(times):
            for _ in record.read(message, b"x"):
                pass
        return time.process_time() - started

    few = seconds(5_000)
    assert seconds(50_000) < 10 * few * 5


# -- permission ----------------------------------------------------------------------------------------------------

OPTIONS = [
    {"optionId": "always", "kind": "allow_always", "name": "Always"},
    {"optionId": "once", "kind": "allow_once", "name": "Once"},
    {"optionId": "no", "kind": "reject_once", "name": "No"},
]


@pytest.mark.parametrize(
    ("options", "refuse", "chosen", "denied"),
    [
        (OPTIONS, False, "once", []),
        (OPTIONS[:1], False, "always", []),
        (OPTIONS, True, "no", ["rm -rf x"]),
        (OPTIONS[:1], True, None, ["rm -rf x"]),
        (OPTIONS[2:], False, "no", ["rm -rf x"]),
        ([], False, None, ["rm -rf x"]),
        ([{"kind": "allow_once"}, "x"], False, None, ["rm -rf x"]),
    ],
)
def test_once_is_allowed_and_nothing_else_but_by_setting(
    options: list[Any], refuse: bool, chosen: str | None, denied: list[str]
) -> None:
    record = Record(session="s", refuse=refuse)
    call = {"toolCallId": "1", "title": "rm -rf x", "kind": "execute", "status": "pending"}
    pieces, option = record.asked({"sessionId": "s", "toolCall": call, "options": options})
    assert (option, record.denied) == (chosen, denied)
    assert [kind for kind, _ in pieces] == [OutputKind.TOOL, *([OutputKind.RESULT] if denied else [])]
    outcome = {"outcome": "cancelled"} if option is None else {"outcome": "selected", "optionId": option}
    RequestPermissionResponse.model_validate({"outcome": outcome})


def test_what_was_not_allowed_is_a_question_however_the_turn_ended() -> None:
    record = Record(session="s", refuse=True)
    record.asked({"toolCall": {"toolCallId": "1", "title": "push"}, "options": OPTIONS})
    for stop in ("end_turn", "cancelled"):
        end = finished(record, {"stopReason": stop}, OK, NOTHING)
        assert end.ending is Ending.QUESTION
        assert end.question is not None
        assert "push" in end.question.text
    assert refused(record, Answer(error={"code": 500}), OK, now=NOW).ending is Ending.QUESTION


# -- usage ---------------------------------------------------------------------------------------------------------


def spent(record: Record, *amounts: float) -> float | None:
    for amount in amounts:
        told(record, "usage_update", used=1, size=2, cost={"amount": amount, "currency": "USD"})
    return record.usage.cost_usd


def test_a_cost_that_counts_the_whole_session_is_counted_once() -> None:
    assert spent(Record(before=Usage(1, 1, 0.5)), 0.7, 0.9) == pytest.approx(0.4)
    assert spent(Record(before=Usage(1, 1, 0.5)), 0.1, 0.9) == pytest.approx(0.9), "it counts anew"
    assert spent(Record(), 0.1, 0.2) == pytest.approx(0.2)
    assert spent(Record(), 0) is None, "a price that is not known"
    assert spent(Record(before=Usage(1, 1, 0.5)), 0.5) is None
    euros = Record()
    told(euros, "usage_update", cost={"amount": 3, "currency": "EUR"})
    assert euros.usage == Usage()


def test_tokens_of_the_last_call_are_not_the_runs() -> None:
    usage = {"usage": {"inputTokens": 100, "outputTokens": 20, "cachedReadTokens": 5, "cachedWriteTokens": 1}}
    for calls, counted in ((0, Usage(106, 20)), (1, Usage())):
        last = Record(session="s", counts_last_call=True)
        for number in range(calls):
            told(last, "tool_call", toolCallId=str(number), title="x", status="completed")
        list(last.finish(usage))
        assert last.usage == counted
    whole = Record(session="s")
    told(whole, "tool_call", toolCallId="1", title="x", status="completed")
    list(whole.finish(usage))
    assert whole.usage == Usage(106, 20)


def test_gemini_counts_by_model() -> None:
    count = {"input_tokens": 200, "output_tokens": 40}
    quota = {"token_count": count, "model_usage": [{"model": "gemini-2.5-flash", "token_count": count}]}
    record = Record()
    list(record.finish({"stopReason": "end_turn", "_meta": {"quota": quota}}))
    assert (record.usage, record.model) == (Usage(200, 40), "gemini-2.5-flash")


# -- outcomes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said", "agent", "end", "failure"),
    [
        ({"stopReason": "end_turn"}, "Done.", NOTHING, OK, None),
        ({"stopReason": "end_turn"}, "Done.", NOTHING, End(returncode=None, stderr=""), None),
        ({"stopReason": "end_turn"}, "", NOTHING, OK, None),
        ({"stopReason": "end_turn"}, "", GEMINI, OK, FailureClass.AGENT),
        (
            {"stopReason": "end_turn", "usage": {"inputTokens": 0, "outputTokens": 0}},
            "",
            OPENCODE,
            OK,
            FailureClass.AGENT,
        ),
        ({"stopReason": "end_turn"}, "Done.", NOTHING, End(returncode=3, stderr="boom"), FailureClass.AGENT),
        ({"stopReason": "max_tokens"}, "Do", NOTHING, OK, FailureClass.AGENT),
        ({"stopReason": "max_turn_requests"}, "Do", NOTHING, OK, FailureClass.AGENT),
        ({"stopReason": "refusal"}, "No.", NOTHING, OK, FailureClass.REFUSAL),
        ({"stopReason": "cancelled"}, "Do", NOTHING, OK, FailureClass.AGENT),
        ({"stopReason": "something_new"}, "Do", NOTHING, OK, FailureClass.AGENT),
        ({}, "Do", NOTHING, OK, FailureClass.AGENT),
    ],
)
def test_how_a_turn_ended(answer: Any, said: str, agent: Any, end: End, failure: FailureClass | None) -> None:
    record = Record(session="s")
    says(record, said)
    list(record.finish(answer))
    judged = finished(record, answer, end, agent)
    assert judged.failure is failure
    assert judged.ending is (Ending.DONE if failure is None else Ending.FAILED)
    assert (judged.text, judged.session_id) == (said, "s")


CUT = '{"error":{"code":401,"message":"API key not valid","status":"UNAUTHENTICATED"}}'
ERRORS = [
    # OpenCode 1.18
    ({"code": -32603, "message": "Internal error: invalid x-api-key", "data": {"errorName": "APIError"}}, "auth"),
    ({"code": -32603, "message": "Internal error: model: m1", "data": {"errorName": "APIError"}}, "invalid_config"),
    ({"code": -32603, "message": "Internal error: no", "data": {"errorName": "ProviderAuthError"}}, "auth"),
    ({"code": -32603, "message": "Internal error: boom", "data": {"errorName": "APIError"}}, "network"),
    ({"code": -32603, "message": "Internal error: Connection reset by server", "data": {}}, "network"),
    ({"code": -32603, "message": "x", "data": {"errorName": "ContextOverflowError"}}, "agent"),
    ({"code": -32603, "message": "Internal error: scripted", "data": {"statusCode": 429}}, "rate_limit"),
    ({"code": -32602, "message": "Invalid params: model not found: fake/nope"}, "invalid_config"),
    # Gemini CLI 0.61
    ({"code": 401, "message": CUT}, "auth"),
    ({"code": 400, "message": "API key not valid. Please pass a valid API key."}, "auth"),
    ({"code": 403, "message": "no"}, "auth"),
    ({"code": 500, "message": "models/x is not found"}, "invalid_config"),
    ({"code": 429, "message": "Resource exhausted\nSuggested retry after 3600s."}, "rate_limit"),
    ({"code": 429, "message": "You have exhausted your daily quota on this model."}, "quota"),
    ({"code": 429, "message": "Rate limit exceeded. Try again later."}, "rate_limit"),
    ({"code": 500, "message": "terminated"}, "network"),
    ({"code": 503, "message": "busy"}, "network"),
    ({"code": -32000, "message": "Gemini API key is missing or not configured."}, "auth"),
    # others
    ({"code": -32603, "message": "Internal error", "data": {"details": "connect ECONNREFUSED 127.0.0.1:9"}}, "network"),
    ({"code": -32603, "message": "Internal error", "data": "prompt is too long: 300000 tokens"}, "agent"),
    ({"code": 402, "message": "pay"}, "quota"),
    ({"code": -32603, "message": "Internal error"}, "agent"),
    ({"code": [], "message": 5, "data": {"statusCode": True}}, "agent"),
    ({}, "agent"),
]


@pytest.mark.parametrize(("error", "failure"), ERRORS, ids=lambda value: str(value)[:60])
def test_why_a_turn_failed(error: Any, failure: str) -> None:
    answer = Answer(error=error)
    assert classify(answer) == failure
    judged = refused(Record(session="s"), answer, OK, now=NOW)
    assert judged.ending is Ending.FAILED
    assert judged.detail
    assert judged.excerpt


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Resource exhausted\nSuggested retry after 3600s.", 3600),
        ("Rate limit: try again in 5 minutes", 300),
        ("quota exceeded, resets in 1.5 hours", 5400),
        ("rate limit", None),
    ],
)
def test_until_when_a_limit_lasts(words: str, seconds: float | None) -> None:
    judged = refused(Record(), Answer(error={"code": 429, "message": words}), OK, now=NOW)
    assert judged.retry_at == (None if seconds is None else NOW + seconds * 1000)


@pytest.mark.parametrize(
    ("end", "stranger", "failure"),
    [
        (End(returncode=1, stderr="boom"), False, "agent"),
        (End(returncode=0, stderr=""), False, "agent"),
        (End(returncode=0, stderr="Welcome!"), True, "invalid_config"),
        (End(returncode=-9, stderr=""), False, "agent"),
        (End(returncode=137, stderr="", oom=True), False, "oom"),
        (End(returncode=1, stderr="Unknown argument: acp"), False, "invalid_config"),
        (End(returncode=1, stderr="Error: getaddrinfo ENOTFOUND api.example"), False, "network"),
        (End(returncode=41, stderr="Please set an Auth method: not logged in"), False, "auth"),
        (End(returncode=None, stderr=""), False, "agent"),
    ],
)
def test_a_program_that_ends_in_the_middle(end: End, stranger: bool, failure: str) -> None:
    judged = broken_off(Record(), end, during="session/prompt", stranger=stranger)
    assert judged.failure == failure
    assert judged.detail


# -- what goes in --------------------------------------------------------------------------------------------------


def request(**more: Any) -> AgentRequest:
    given: dict[str, Any] = {
        "prompt": "Do it.", "workspace": "/w", "execution": 1, "attempt": 1, "project": "p", "task_id": "T",
        "environment": {}, "marker": "m",
    }  # fmt: skip
    return AgentRequest(**given | more)


def test_what_is_asked_is_what_the_protocols_own_schema_knows() -> None:
    offered: dict[str, Any] = {"agentCapabilities": {"loadSession": True}}
    method, params = acp_session._opening(offered, request())
    assert method == "session/new"
    NewSessionRequest.model_validate(params)
    method, params = acp_session._opening(offered, request(session_id="s"))
    assert method == "session/load"
    LoadSessionRequest.model_validate(params)
    offered["agentCapabilities"]["sessionCapabilities"] = {"resume": {}}
    method, params = acp_session._opening(offered, request(session_id="s"))
    assert method == "session/resume"
    ResumeSessionRequest.model_validate(params)
    assert acp_session._opening({}, request(session_id="s"))[0] == ""
    InitializeRequest.model_validate(acp_session.INTRODUCTION_OF_PILOT)
    CancelNotification.model_validate({"sessionId": "s"})
    PromptRequest.model_validate({"sessionId": "s", "prompt": acp_session.prompt(request(), NOTHING)})


def test_instructions_are_told_once_and_to_those_who_do_not_read_them() -> None:
    told_to = {
        name: [block["text"] for block in acp_session.prompt(request(instructions="Speak Latin.", **more), agent)]
        for name, agent, more in (
            ("new", GEMINI, {}),
            ("old", GEMINI, {"session_id": "s"}),
            ("reader", CODEX, {}),
        )
    }
    assert "Speak Latin." in told_to["new"][0]
    assert told_to["new"][1] == "Do it."
    assert told_to["old"] == told_to["reader"] == ["Do it."]


@pytest.mark.parametrize("words", ["/init", " /help", "$ rm", "\n/x"])
def test_a_task_is_no_command_of_the_agents(words: str) -> None:
    (block,) = acp_session.prompt(request(prompt=words), NOTHING)
    assert block["text"].strip()[0] not in "/$"
    assert block["text"].endswith(words)


@pytest.mark.parametrize(
    ("argv", "agent"),
    [
        (["gemini", "--acp"], GEMINI),
        (["/usr/bin/node", "/opt/lib/@google/gemini-cli/bundle/gemini.js", "--acp"], GEMINI),
        (["npx", "-y", "@google/gemini-cli@0.61.0", "--acp"], GEMINI),
        (["/opt/opencode/bin/opencode", "acp"], OPENCODE),
        (["npx", "@zed-industries/codex-acp"], CODEX),
        (["goose", "acp"], GOOSE),
        (["my-agent"], NOTHING),
    ],
)
def test_who_is_known(argv: list[str], agent: Any) -> None:
    assert known(argv) is agent


def test_what_an_agent_gets_of_pilots_own_environment() -> None:
    environ = {"GEMINI_API_KEY": "g", "ANTHROPIC_API_KEY": "a", "DEPLOY_TOKEN": "d", "HTTPS_PROXY": "p"}
    assert child_environment(GEMINI, {"A": "1"}, environ) == {
        "A": "1", "GEMINI_API_KEY": "g", "HTTPS_PROXY": "p", "GEMINI_CLI_NO_RELAUNCH": "1",
    }  # fmt: skip
    assert child_environment(NOTHING, {"A": "1"}, environ) == {"A": "1", "HTTPS_PROXY": "p"}
    given = {"GEMINI_API_KEY": "mine", "GEMINI_CLI_NO_RELAUNCH": ""}
    assert child_environment(GEMINI, given, environ) == {**given, "HTTPS_PROXY": "p"}
    hostile = {"OPENCODE_DISABLE_PROJECT_CONFIG": "0"}
    assert child_environment(OPENCODE, hostile, {})["OPENCODE_DISABLE_PROJECT_CONFIG"] == "1"


def test_what_an_agent_has_on_the_machine() -> None:
    child = {"HOME": "/home/ann", "XDG_DATA_HOME": "/data", "OPENCODE_CONFIG": "/etc/oc.json"}
    found = places(OPENCODE, ["/opt/opencode"], child)
    assert found.state[:2] == ("/data/opencode", "/home/ann/.local/state/opencode")
    assert "/data/opencode/auth.json" in found.settings
    assert "/home/ann/.config/opencode/opencode.json" in found.settings
    assert found.settings[-1] == "/etc/oc.json"
    assert places(GEMINI, ["node", "/x/gemini.js", "--acp"], child).programs == ("/x/gemini.js",)
    assert places(CODEX, ["codex-acp"], {"CODEX_HOME": "/c"}).state == ("/c",)
    assert places(GEMINI, ["gemini"], {}).state == ()
    assert places(NOTHING, ["x"], child).state == ()


def test_whose_allowance_it_is() -> None:
    def of(argv: list[str], **child: str) -> str:
        return account(argv, known(argv), child)

    assert of(["gemini"], GEMINI_API_KEY="a") != of(["gemini"], GEMINI_API_KEY="b")
    assert of(["gemini"], GEMINI_API_KEY="a", HOME="/1") == of(["gemini"], GEMINI_API_KEY="a", HOME="/2")
    assert of(["gemini"], HOME="/1") != of(["gemini"], HOME="/2")
    assert of(["gemini"], HOME="/1") != of(["goose"], HOME="/1")


def test_nothing_of_the_library_is_imported_for_a_list(repository_root: Path) -> None:
    import subprocess
    import sys

    code = "import sys; import pilot.backends.acp; print([m for m in ('acp', 'httpx2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=repository_root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
