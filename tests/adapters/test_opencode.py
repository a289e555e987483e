"""What OpenCode is given, what it says, and what that means; and answers of servers that are something else."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pilot.backends.opencode import OpenCode
from pilot.backends.opencode_cli import (
    Model,
    child_environment,
    chosen,
    configuration,
    is_session,
    message_id,
    places,
    plugins_in,
)
from pilot.backends.opencode_events import RAW_LIMIT, Record, Retry
from pilot.backends.opencode_outcome import held_up, outcome, server_gone
from pilot.clients.opencode import Client, NotThisApi, Unauthorized, Unreachable
from pilot.config.executor import OpenCodeSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.testing import Seen
from pilot.testing.fence import Fence

NOW = 1_800_000_000_000
SES, OURS = "ses_1", "msg_ours"

# -- what it says ------------------------------------------------------------------------------------------------


def event(type: str, session: str = SES, **properties: Any) -> str:
    full = {"id": "e", "type": type, "properties": {"sessionID": session, **properties}}
    return json.dumps(full, ensure_ascii=False, separators=(",", ":"))


def info(id: str = "msg_a", session: str = SES, **more: Any) -> dict[str, Any]:
    return {"id": id, "sessionID": session, "role": "assistant", "time": {"created": 1}, **more}


def said(text: str, id: str = "prt_1", message: str = "msg_a", session: str = SES, **more: Any) -> dict[str, Any]:
    return {"id": id, "messageID": message, "sessionID": session, "type": "text", "text": text, **more}


def call(status: str, message: str = "msg_a", session: str = SES, **state: Any) -> dict[str, Any]:
    full = {**state, "status": status, "input": {"command": "make"}}
    return {
        "type": "tool", "tool": "bash", "callID": "call_1", "state": full, "id": "prt_t", "messageID": message,
        "sessionID": session,
    }  # fmt: skip


def told(record: Record, *events: str) -> list[tuple[OutputKind, str]]:
    """What is shown of these events, but for raw lines."""
    pieces = [piece for number, one in enumerate(events) for piece in record.read(one, float(number))]
    return [(kind, data.decode()) for kind, data in pieces if kind is not OutputKind.RAW]


def record() -> Record:
    return Record(SES, OURS, frozenset({"msg_old"}))


def full(*messages: Mapping[str, Any]) -> Record:
    """A record after all was read again: our message, then these of the assistant."""
    one = record()
    mine = {"info": {"id": OURS, "role": "user", "sessionID": SES}, "parts": [said("do it", message=OURS)]}
    one.reread(SES, [mine, *({"info": message, "parts": message.get("parts", [])} for message in messages)])
    return one


def test_words_and_tools_are_shown_once_whoever_tells_of_them() -> None:
    one = record()
    shown = told(
        one,
        event("message.updated", info={"id": OURS, "role": "user", "sessionID": SES}),
        event("message.part.updated", part=said("do it", "prt_0", OURS)),
        event("message.updated", info=info()),
        event("message.part.updated", part=said("half")),
        event("message.part.updated", part=said("whole \u2028 word", time={"start": 1, "end": 2})),
        event("message.part.updated", part=said("whole \u2028 word", time={"start": 1, "end": 2})),
        event("message.part.updated", part=call("pending")),
        event("message.part.updated", part=call("running")),
        event("message.part.updated", part=call("running", metadata={"output": "1"})),
        event("message.part.updated", part=call("completed", output="12")),
    )
    assert shown == [
        (OutputKind.TEXT, "whole \u2028 word\n"), (OutputKind.TOOL, "bash make\n"), (OutputKind.RESULT, "12\n"),
    ]  # fmt: skip
    again = {"info": info(time={"completed": 2}), "parts": [said("whole \u2028 word"), call("completed", output="12")]}
    assert one.reread(SES, [{"info": {"id": OURS, "role": "user"}, "parts": []}, again]) == []
    assert one.close() == []


def test_what_was_missed_is_shown_when_it_is_read_again() -> None:
    one = record()
    messages = [
        {"info": info("msg_old"), "parts": [said("long ago", message="msg_old")]},
        {"info": {"id": OURS, "role": "user"}, "parts": [said("do it", message=OURS)]},
        {"info": info(time={"completed": 2}), "parts": [said("word"), call("error", error="no")]},
    ]
    shown = [(kind, data.decode()) for kind, data in one.reread(SES, messages)]
    assert shown == [(OutputKind.TEXT, "word\n"), (OutputKind.TOOL, "bash make\n"), (OutputKind.RESULT, "no\n")]


@pytest.mark.parametrize("metadata", [{}, {"metadata": {"output": "so far"}}])
def test_a_tool_has_its_beginning_though_output_is_there_at_once(metadata: dict[str, Any]) -> None:
    one = record()
    shown = told(
        one,
        event("message.updated", info=info()),
        event("message.part.updated", part=call("running", **metadata)),
    )
    assert shown == [(OutputKind.TOOL, "bash make\n")]
    assert [kind for kind, _ in one.close()] == [OutputKind.RESULT], "every call has its end"


def test_output_that_is_told_again_and_again_is_a_sign_of_life_now_and_then() -> None:
    one = record()
    told(one, event("message.updated", info=info()), event("message.part.updated", part=call("running")))
    big = event("message.part.updated", part=call("running", metadata={"output": "x" * 500_000}))
    delta = event("message.part.delta", messageID="msg_a", partID="prt_1", field="text", delta="word")
    pieces = [piece for at in range(100, 130) for data in (big, delta) for piece in one.read(data, float(at))]
    assert {kind for kind, _ in pieces} == {OutputKind.RAW}
    assert 4 <= len(pieces) <= 7
    assert max(len(data) for _, data in pieces) < 1000
    odd = event("message.part.updated", part=call("completed", output='"status":"running"'))
    assert [kind for kind, _ in one.read(odd, 200.0)] == [OutputKind.RAW, OutputKind.RESULT]


def test_what_is_not_of_this_turn_is_not_shown() -> None:
    one = record()
    foreign = [
        event("message.updated", "ses_other", info=info(session="ses_other")),
        event("message.part.updated", "ses_other", part=said("secret", session="ses_other", time={"end": 2})),
        event("message.part.updated", part=said("long ago", message="msg_old", time={"end": 2})),
        event("session.error", "ses_other", error={"name": "APIError"}),
        event("session.idle", "ses_other"),
        json.dumps({"type": "server.heartbeat", "properties": {}}),
        json.dumps({"type": "catalog.updated"}),
    ]
    assert told(one, *foreign) == []
    assert (one.error, one.idle, one.last) == (None, False, None)


def test_sub_agents_are_seen_and_counted_and_not_its_last_words() -> None:
    one = record()
    tokens = {"input": 10, "output": 2, "reasoning": 1, "cache": {"read": 30, "write": 5}}
    shown = told(
        one,
        event("session.created", "ses_2", info={"id": "ses_2", "parentID": SES}),
        event("message.updated", info=info(tokens=tokens, cost=0.5)),
        event("message.updated", info=info("msg_old", tokens=tokens, cost=99)),
        event("message.updated", "ses_2", info=info("msg_b", "ses_2", tokens=tokens, cost=0.25)),
        event("message.part.updated", part=said("mine", time={"end": 2})),
        event("message.part.updated", "ses_2", part=said("theirs", "prt_2", "msg_b", "ses_2", time={"end": 2})),
    )
    assert [text for _, text in shown] == ["mine\n", "theirs\n"]
    assert one.text == "mine"
    assert one.usage == Usage(90, 6, 0.75)
    assert record().usage == Usage(), "unknown is not nothing"


@pytest.mark.parametrize("junk", ["", "null", "[1]", '{"type":', "\x00\ud800", "[" * 100_000, "x" * 200_000])
def test_junk_is_shown_and_changes_nothing(junk: str) -> None:
    one = record()
    pieces = one.read(junk, 0.0)
    assert {kind for kind, _ in pieces} == {OutputKind.STDOUT}
    assert max(len(data) for _, data in pieces) <= RAW_LIMIT + 1
    odds: tuple[Any, ...] = (7, [], None, "x", {"info": 3}, {"part": []}, {"status": 1}, {"error": "x"})
    for odd in odds:
        for type in ("message.updated", "message.part.updated", "session.status", "session.error", "permission.asked"):
            one.read(json.dumps({"type": type, "properties": odd}), 0.0)
            more = odd if isinstance(odd, dict) else {"info": odd, "part": odd, "status": odd, "patterns": odd}
            one.read(event(type, **more), 0.0)
        one.reread(SES, odd)
    assert outcome(one).ending in (Ending.FAILED, Ending.QUESTION)


# -- what that means ---------------------------------------------------------------------------------------------


def api(status: int | None, message: str = "scripted", retryable: bool = False, **more: Any) -> dict[str, Any]:
    return {"name": "APIError", "data": {"message": message, "statusCode": status, "isRetryable": retryable, **more}}


def named(name: str, message: str = "scripted") -> dict[str, Any]:
    return {"name": name, "data": {"message": message}}


ERRORS = [
    (api(401), FailureClass.AUTH),
    (api(403), FailureClass.AUTH),
    (api(402), FailureClass.QUOTA),
    (api(404, "model: nope"), FailureClass.INVALID_CONFIG),
    (api(400), FailureClass.INVALID_CONFIG),
    (api(422, "tools.3: bad"), FailureClass.INVALID_CONFIG),
    (api(400, "messages.4: tool_use without tool_result"), FailureClass.AGENT),
    (api(400, "Your credit balance is too low"), FailureClass.QUOTA),
    (api(413, "request too large"), FailureClass.AGENT),
    (api(429, "rate limit", True), FailureClass.RATE_LIMIT),
    (api(429, "too many", True, responseBody='{"error":{"code":"insufficient_quota"}}'), FailureClass.QUOTA),
    (api(500, "broken", True), FailureClass.NETWORK),
    (api(529, "overloaded", True), FailureClass.NETWORK),
    (api(None, "Cannot connect to API", True), FailureClass.NETWORK),
    (named("ProviderAuthError"), FailureClass.AUTH),
    (named("MessageAbortedError"), FailureClass.AGENT),
    (named("ContextOverflowError"), FailureClass.AGENT),
    (named("MessageOutputLengthError"), FailureClass.AGENT),
    (named("StructuredOutputError"), FailureClass.AGENT),
    (named("ContentFilterError"), FailureClass.REFUSAL),
    (named("UnknownError", "The operation timed out."), FailureClass.NETWORK),
    (named("UnknownError", "Model not found: a/b.\n    at x.js:1"), FailureClass.INVALID_CONFIG),
    (named("UnknownError", "who knows"), FailureClass.UNKNOWN),
    ({"name": "Odd"}, FailureClass.UNKNOWN),
    ({}, FailureClass.AGENT),
]


@pytest.mark.parametrize(("error", "failure"), ERRORS, ids=lambda value: str(value)[:60])
def test_an_error_has_its_class_stored_with_the_message_or_only_told(
    error: dict[str, Any], failure: FailureClass
) -> None:
    stored = outcome(full(info(error=error, time={"completed": 2})))
    only_told = record()
    only_told.read(event("session.error", error=error), 0.0)
    for end in (stored, outcome(only_told)):
        assert (end.ending, end.failure, end.session_id) == (Ending.FAILED, failure, SES)
        assert end.detail
        assert "x.js" not in end.detail


def test_secrets_in_an_answer_stay_there() -> None:
    error = api(401, "no", responseBody="sk-secret", responseHeaders={"set-cookie": "sk-secret"})
    assert "sk-secret" not in repr(outcome(full(info(error=error))))


@pytest.mark.parametrize(
    ("finish", "ending", "failure"),
    [
        ("stop", Ending.DONE, None),
        ("tool-calls", Ending.QUESTION, None),
        ("length", Ending.FAILED, FailureClass.AGENT),
        ("content-filter", Ending.FAILED, FailureClass.REFUSAL),
        ("unknown", Ending.FAILED, FailureClass.AGENT),
        (None, Ending.FAILED, FailureClass.AGENT),
    ],
)
def test_the_last_message_says_how_it_ended(finish: str | None, ending: Ending, failure: FailureClass | None) -> None:
    last = info("msg_z", finish=finish, providerID="a", modelID="b/c", parts=[said("Bye.", message="msg_z")])
    end = outcome(full(info("msg_b", finish="tool-calls"), {**last, "parentID": "msg_of_a_compaction"}))
    assert (end.ending, end.failure, end.text, end.model) == (ending, failure, "Bye.", "a/b/c")


def test_an_error_that_was_got_over_is_none() -> None:
    one = full(info("msg_b", error=named("ContextOverflowError")), info("msg_c", finish="stop"))
    one.read(event("session.error", error=named("ContextOverflowError")), 0.0)
    assert outcome(one).ending is Ending.DONE


@pytest.mark.parametrize(
    ("retry", "failure", "until"),
    [
        (Retry(1, "slow down", NOW + 2_000), None, None),
        (Retry(2, "slow down", NOW + 29_000), None, None),
        (Retry(1, "who knows", NOW + 3_600_000), FailureClass.RATE_LIMIT, NOW + 3_600_000),
        (Retry(1, "insufficient_quota", NOW + 3_600_000), FailureClass.QUOTA, NOW + 3_600_000),
        (Retry(3, "Rate limit reached", NOW + 9_000), FailureClass.RATE_LIMIT, None),
        (Retry(3, "broken", NOW + 9_000), FailureClass.NETWORK, None),
        (Retry(9, "", 0), FailureClass.NETWORK, None),
    ],
)
def test_a_pause_is_waited_for_or_left_to_admission(
    retry: Retry, failure: FailureClass | None, until: int | None
) -> None:
    one = record()
    status = {"type": "retry", "attempt": retry.attempt, "message": retry.message, "next": retry.next}
    pieces = one.read(event("session.status", status=status), 0.0)
    end = held_up(one, NOW)

    assert pieces[-1][0] is OutputKind.PILOT
    assert (end and end.failure, end and end.retry_at) == (failure, until)
    one.read(event("session.status", status={"type": "busy"}), 0.0)
    assert held_up(one, NOW) is None


def test_a_conversation_that_stays_too_long_is_given_up() -> None:
    one = record()
    summary = info("msg_s", summary=True, tokens={"output": 5})
    for _ in range(2):
        one.read(event("session.error", error=named("ContextOverflowError", "too long")), 0.0)
        one.read(event("message.updated", info=summary), 0.0)
        assert held_up(one, NOW) is None
    one.read(event("session.error", error=named("ContextOverflowError", "too long")), 0.0)
    end = held_up(one, NOW)
    assert end is not None
    assert (end.failure, "too long" in end.detail) == (FailureClass.AGENT, True)
    one.read(event("message.updated", info=info("msg_x", tokens={"output": 5})), 0.0)
    assert held_up(one, NOW) is None, "it went on"


@pytest.mark.parametrize("code", [-9, 137])
def test_a_server_that_dies_is_no_fault_of_the_agent(code: int) -> None:
    assert "SIGKILL" in (end := server_gone(record(), code, "boom", oom=False)).detail
    assert (end.failure, end.session_id) == (FailureClass.INFRA, SES)
    assert server_gone(record(), code, "boom", oom=True).failure is FailureClass.OOM
    assert server_gone(None, 1, "Configuration is invalid at x", oom=False).failure is FailureClass.INVALID_CONFIG


# -- what it is given --------------------------------------------------------------------------------------------


def test_a_model_is_said_in_full_and_split_at_its_first_slash() -> None:
    assert chosen("openrouter/qwen/qwen3") == Model("openrouter", "qwen/qwen3")
    assert [chosen(odd) for odd in (None, "", "sonnet", "a/", "/b")] == [None] * 5


def test_its_settings_stand_over_the_operator_s_and_leave_the_rest() -> None:
    theirs = {"share": "auto", "permission": {"bash": "ask", "question": "allow"}, "provider": {"x": {"npm": "y"}}}
    made = json.loads(configuration(Model("x", "y/z"), json.dumps(theirs)))
    assert made["permission"] == {
        "bash": "ask", "question": "deny", "external_directory": "deny", "doom_loop": "deny",
    }  # fmt: skip
    assert (made["share"], made["model"], made["small_model"]) == ("disabled", "x/y/z", "x/y/z")
    assert (made["enabled_providers"], made["provider"]) == (["x"], theirs["provider"])
    for bad in ("{", "[]", "7"):
        with pytest.raises(ValueError):
            configuration(Model("x", "y"), bad)


def test_only_the_model_s_own_key_is_handed_on() -> None:
    environ = {name: name for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GITHUB_TOKEN", "HTTPS_PROXY", "X")}
    child = child_environment({"PATH": "p", "OPENCODE_DISABLE_PROJECT_CONFIG": ""}, environ, Model("openai", "x"))
    assert {name for name in environ if name in child} == {"OPENAI_API_KEY", "HTTPS_PROXY"}
    assert child["OPENCODE_DISABLE_PROJECT_CONFIG"] == "1"


def test_its_places_follow_the_user_s_folders() -> None:
    plain = places({"HOME": "/home/u", "PATH": "/nowhere"}, "opencode")
    assert "/home/u/.local/share/opencode/auth.json" in plain.settings
    assert plain.fresh == ("/home/u/.cache/opencode/models.json",)
    assert "/home/u/.config/opencode/plugin" in plain.settings
    moved = places({"HOME": "/home/u", "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "rel"}, "opencode")
    assert "/d/opencode/auth.json" in moved.settings
    assert "/home/u/.config/opencode/opencode.json" in moved.settings


def test_ids_of_ours_sort_as_the_program_s_do() -> None:
    ids = [message_id(NOW + n, 7 * n) for n in range(3)]
    assert ids == sorted(ids)
    assert all(len(id) == len("msg_20ebe977c001MeulnoypylXUIX") for id in ids)
    assert message_id(1795543701372, 0)[:16] == f"msg_{(1795543701372 * 4096 + 1) % 2**48:012x}"
    assert is_session("ses_df14168d5ffeba3R0gm1C9q1RS")
    assert not any(map(is_session, ("", "ses_", "ses_../x", "ses_a/b", "msg_a", "ses_a\n", "ses_" + "a" * 99)))


def test_plugins_that_would_run_are_found(tmp_path: Path) -> None:
    assert plugins_in(str(tmp_path)) == []
    (tmp_path / ".opencode/command").mkdir(parents=True)
    (tmp_path / ".opencode/opencode.json").write_text('{"plugin": ["a-package"], "instructions": ["./x.md"]}')
    assert plugins_in(str(tmp_path)) == [], "a package is somebody else's"
    for named in ('"plugins": ["a",\n {"package": "../x.ts"}]', '"plugin": [["file:///x.ts", {"a": []}],] // so', "'"):
        (tmp_path / ".opencode/opencode.json").write_text(f'{{"x": "//", /* "plugin" */ {named}}}')
        assert plugins_in(str(tmp_path)) == [".opencode/opencode.json"]
    (tmp_path / ".opencode/plugins").mkdir()
    (tmp_path / ".opencode/plugins/y.js").write_text("")
    assert plugins_in(str(tmp_path)) == [".opencode/opencode.json", ".opencode/plugins/y.js"]


# -- servers that are something else -----------------------------------------------------------------------------

Answers = dict[str, tuple[int, str, bytes]]
PAGE = (200, "text/html", b"<html>")


class Other:
    """A server that gives these answers, and its web page for everything else."""

    def __init__(self, answers: Answers) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                code, kind, body = answers.get(self.path.partition("?")[0], PAGE)
                self.send_response(code)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Quiet."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()


@pytest.fixture
def other() -> Iterator[Any]:
    made: list[Other] = []

    def make(answers: Answers) -> Other:
        made.append(Other(answers))
        return made[-1]

    yield make
    for one in made:
        one.http.shutdown()
        one.http.server_close()
        one.thread.join()


def as_json(value: object, code: int = 200) -> tuple[int, str, bytes]:
    return code, "application/json", json.dumps(value).encode()


STRANGERS: list[tuple[Answers, str]] = [
    ({}, "does not answer as OpenCode 1.x"),
    ({"/api/info": as_json({"version": "2.0.3"})}, "OpenCode 2.0.3"),
    ({"/global/health": as_json({"healthy": True, "version": "2.1.0"})}, "OpenCode 2.1.0"),
    ({"/global/health": as_json(["x"])}, "does not answer"),
    ({"/global/health": as_json({"error": "x"}, 500)}, "does not answer"),
    ({"/global/health": (200, "application/json", b"{")}, "does not answer"),
]


async def run(url: str, workspace: Path, **more: Any) -> Outcome:
    settings = OpenCodeSettings(server_url=url, model="some/model", command="/nowhere/opencode")
    request = AgentRequest(
        prompt="do it", workspace=str(workspace), execution=1, attempt=1, project="p", task_id="T-1", environment={},
        marker="test/other", **more,
    )  # fmt: skip
    return await OpenCode(settings, environ={}).execute(request, Seen())


@pytest.mark.parametrize(("answers", "words"), STRANGERS)
async def test_what_is_no_opencode_1_is_refused_with_words(
    other: Any, tmp_path: Path, answers: Answers, words: str
) -> None:
    server = other(answers)
    end = await run(server.url, tmp_path)
    assert (end.failure, words in end.detail) == (FailureClass.INVALID_CONFIG, True), end
    assert "server_url" in end.detail


async def test_a_password_that_is_wanted_is_a_matter_of_the_account(other: Any, tmp_path: Path) -> None:
    server = other({"/global/health": (401, "text/plain", b"")})
    end = await run(server.url, tmp_path)
    assert (end.failure, "OPENCODE_SERVER_PASSWORD" in end.detail) == (FailureClass.AUTH, True), end


async def test_a_server_that_is_there_is_not_asked_for_a_run_in_a_sandbox(other: Any, tmp_path: Path) -> None:
    server = other({"/global/health": as_json({"healthy": True, "version": "1.18.33"})})
    end = await run(server.url, tmp_path, sandbox=Fence())
    assert server.asked == []
    assert end.failure is FailureClass.INVALID_CONFIG, "there is no such program"


async def test_a_page_is_never_an_answer(other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = other({"/session/ses_1": as_json({"id": "ses_1"}), "/session/status": (401, "text/plain", b"")})
    async with Client(server.url) as client:
        assert await client.session("ses_1") == {"id": "ses_1"}
        with pytest.raises(NotThisApi):
            await client.messages("ses_1")
        with pytest.raises(Unauthorized):
            await client.status("/x")
        with pytest.raises(NotThisApi):
            async with client.events("/x") as events:
                _ = [one async for one in events]
    async with Client("http://127.0.0.1:9") as client:
        with pytest.raises(Unreachable):
            await client.version()
    async with Client("no url at all") as client:
        with pytest.raises(Unreachable):
            await client.version()


async def test_events_come_whole_whatever_is_in_them(other: Any) -> None:
    words = "a\u2028b\u0085c\x0cd é"
    stream = f"event: message\ndata: {json.dumps({'type': 'x', 'words': words}, ensure_ascii=False)}\n\n"
    server = other({"/event": (200, "text/event-stream", stream.encode() * 3)})
    async with Client(server.url) as client, client.events("/über/folder") as events:
        heard = [json.loads(one)["words"] async for one in events]
    assert heard == [words] * 3
    assert server.asked == ["/event?directory=%2F%C3%BCber%2Ffolder"]
