"""What Claude Code prints, and what becomes of it: recorded transcripts, and lines that no one promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilot.backends.claude_cli import arguments, child_environment, message
from pilot.backends.claude_events import Record
from pilot.backends.claude_outcome import outcome, session_in_use
from pilot.backends.reading import Piece
from pilot.config.executor import ClaudeCodeSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage

TRANSCRIPTS = Path(__file__).parent / "transcripts/claude"
SESSION = "11111111-2222-4333-8444-555555555555"


def replay(name: str) -> tuple[Record, list[Piece], Outcome]:
    """A recorded run, judged."""
    lines = (TRANSCRIPTS / f"{name}.jsonl").read_bytes().splitlines()
    end = json.loads(lines[-1])
    record = Record()
    pieces = [piece for line in lines[:-1] for piece in record.read(line)]
    return record, pieces, outcome(record, end["exit"], end["stderr"])


def said(pieces: list[Piece], kind: OutputKind) -> list[str]:
    return [data.decode() for of, data in pieces if of is kind]


def judged(result: dict[str, Any], returncode: int | None = 0, *before: dict[str, Any]) -> Outcome:
    record = Record()
    for event in (*before, {"type": "result", **result}):
        record.read(json.dumps(event).encode())
    return outcome(record, returncode, "")


GOOD: dict[str, Any] = {"subtype": "success", "is_error": False, "num_turns": 1, "result": "done"}


def request(**more: Any) -> AgentRequest:
    given: dict[str, Any] = {
        "prompt": "do it", "workspace": "/workspace", "execution": 1, "attempt": 1, "project": "p", "task_id": "T-1",
        "environment": {}, "marker": "M=1",
    }  # fmt: skip
    return AgentRequest(**given | more)


# --- recorded runs ---------------------------------------------------------------------------------------------


def test_a_success_gives_text_tools_results_and_every_raw_line() -> None:
    _, pieces, end = replay("success")

    assert end == Outcome(
        ending=Ending.DONE,
        text="All done.",
        session_id=SESSION,
        model="claude-opus-4-8[1m]",
        usage=Usage(200, 40, 0.002),
    )
    assert said(pieces, OutputKind.TEXT) == ["I write it.\n", "All done.\n"]
    assert said(pieces, OutputKind.TOOL) == ["Write /workspace/a.txt\n"]
    assert said(pieces, OutputKind.RESULT)[0].startswith("File created successfully at: /workspace/a.txt")
    raw = (TRANSCRIPTS / "success.jsonl").read_text().splitlines(keepends=True)[:-1]
    assert said(pieces, OutputKind.RAW) == raw


def test_a_turn_begun_by_a_background_task_is_part_of_the_run() -> None:
    lines = (TRANSCRIPTS / "background.jsonl").read_bytes().splitlines()[:-1]
    record = Record()
    ended = []
    for line in lines:
        record.read(line)
        ended.append(record.ended)

    over_then_begun_again = [*[False] * 5, True, True, True, False, False, True]
    assert ended == over_then_begun_again
    end = outcome(record, 0, "")
    assert (end.ending, end.text) == (Ending.DONE, "It has ended.")
    assert end.usage == Usage(300, 60, 0.003)  # of both turns, though the last result's own usage is one turn's


def test_a_subagent_in_the_background_keeps_the_run_from_being_over() -> None:
    lines = (TRANSCRIPTS / "subagent.jsonl").read_bytes().splitlines()[:-1]
    kinds = [json.loads(line)["type"] for line in lines]
    results = [line for line in lines if json.loads(line)["type"] == "result"]
    record = Record()
    record.read(lines[0])
    record.read(lines[2])  # it has started
    record.read(results[0])  # with an input that is kept open, the CLI gives its result now
    assert not record.ended
    for line in lines[3 : kinds.index("result")]:
        record.read(line)
        assert not record.ended
    record.read(results[1])
    assert record.ended
    assert outcome(record, 0, "").text == "It has seen."


def test_a_denied_tool_is_a_question_although_the_cli_succeeds() -> None:
    _, _, end = replay("denied")

    assert end.ending is Ending.QUESTION
    assert end.question is not None
    assert "Write /workspace/a.txt" in end.question.text
    assert "permission_mode, now default" in end.question.text
    assert (end.session_id, end.text) == (SESSION, "I could not.")


@pytest.mark.parametrize(
    ("name", "failure", "words"),
    [
        ("unauthorized", FailureClass.AUTH, "Invalid API key"),
        ("forbidden", FailureClass.AUTH, "403 no access"),
        ("not-logged-in", FailureClass.AUTH, "Not logged in"),
        ("bad-request", FailureClass.UNKNOWN, "something about the request"),
        ("too-long", FailureClass.AGENT, "Prompt is too long"),
        ("too-large", FailureClass.AGENT, "Request too large"),
        ("credit", FailureClass.QUOTA, "Credit balance is too low"),
        ("no-model", FailureClass.INVALID_CONFIG, "claude-x"),
        ("rate-limit", FailureClass.RATE_LIMIT, "slow down"),
        ("too-fast", FailureClass.RATE_LIMIT, "not your usage limit"),
        ("allowance", FailureClass.QUOTA, "five_hour"),
        ("server-error", FailureClass.NETWORK, "500"),
        ("overloaded", FailureClass.NETWORK, "529"),
        ("unreachable", FailureClass.NETWORK, "ConnectionRefused"),
        ("refusal", FailureClass.REFUSAL, "the model refuses this request"),
        ("max-turns", FailureClass.AGENT, "Reached maximum number of turns (1)"),
        ("max-budget", FailureClass.BUDGET, "Reached maximum budget"),
        ("max-tokens", FailureClass.AGENT, "output token maximum"),
        ("no-session", FailureClass.AGENT, "session was not found"),
        ("bad-option", FailureClass.INVALID_CONFIG, "unknown option '--nope'"),
        ("root", FailureClass.INVALID_CONFIG, "cannot be used with root"),
    ],
)
def test_every_failure_has_its_class_and_its_evidence(name: str, failure: FailureClass, words: str) -> None:
    _, _, end = replay(name)

    assert (end.ending, end.failure) == (Ending.FAILED, failure)
    assert words in end.detail
    assert "\n" not in end.detail
    assert end.session_lost == (name == "no-session")
    assert end.excerpt or end.session_lost


def test_a_used_up_allowance_says_when_it_is_back() -> None:
    assert replay("allowance")[2].retry_at == 1_893_456_000_000
    assert replay("rate-limit")[2].retry_at is None


def test_what_a_failed_run_has_cost_is_known() -> None:
    assert replay("max-turns")[2].usage == Usage(100, 20, 0.001)
    assert replay("bad-option")[2].usage == Usage()


def test_retries_inside_the_cli_are_told_as_they_happen() -> None:
    _, pieces, _ = replay("server-error")

    assert said(pieces, OutputKind.PILOT) == [
        f"the model's API failed, the agent tries again: 500 server_error, attempt {n} of 2\n" for n in (1, 2)
    ]


# --- success needs all its signs ---------------------------------------------------------------------------------


def test_success_needs_every_sign() -> None:
    assert judged(GOOD).ending is Ending.DONE
    for lie in ({"is_error": True}, {"subtype": "error_during_execution"}, {"num_turns": 0}):
        assert judged(GOOD | lie).failure is FailureClass.AGENT, lie
    for missing in ("is_error", "subtype", "num_turns"):
        assert judged({k: v for k, v in GOOD.items() if k != missing}).ending is Ending.FAILED, missing
    assert judged(GOOD, 1).failure is FailureClass.AGENT
    assert judged(GOOD, -9).failure is FailureClass.AGENT


def test_an_agent_that_stays_after_its_result_has_succeeded() -> None:
    assert judged(GOOD, None).ending is Ending.DONE
    assert judged(GOOD | {"is_error": True}, None).ending is Ending.FAILED


def test_no_result_is_a_failure_whatever_the_exit_status() -> None:
    for code, words in (
        (0, "exited with 0"), (1, "exited with 1"), (None, "did not exit"), (-9, "SIGKILL"), (143, "SIGTERM"),
    ):  # fmt: skip
        end = outcome(Record(), code, "")
        assert end.failure is FailureClass.AGENT
        assert words in end.detail
    assert outcome(Record(), -9, "", oom=True).failure is FailureClass.OOM
    assert outcome(Record(), 137, "", oom=True).failure is FailureClass.OOM
    assert outcome(Record(), 143, "", oom=True).failure is FailureClass.AGENT


def test_denied_tools_of_a_failed_run_are_no_question() -> None:
    denials = [{"tool_name": "Bash", "tool_input": {"command": "rm -rf /"}}]
    assert judged(GOOD | {"permission_denials": denials}).ending is Ending.QUESTION
    assert judged(GOOD | {"permission_denials": denials, "is_error": True}).ending is Ending.FAILED


@pytest.mark.parametrize(
    ("error", "status", "words", "failure"),
    [
        ("oauth_org_not_allowed", None, "", FailureClass.AUTH),
        ("overloaded", None, "", FailureClass.NETWORK),
        ("invalid_request", 400, "thinking is not supported by this model", FailureClass.INVALID_CONFIG),
        ("invalid_request", 400, "messages.3: tool_use ids without tool_result", FailureClass.AGENT),
        ("invalid_request", 401, "the organization is disabled", FailureClass.AUTH),
        ("something_new", 503, "", FailureClass.NETWORK),
        ("something_new", 402, "", FailureClass.QUOTA),
        (None, None, "API Error: Request timed out", FailureClass.NETWORK),
        (None, None, "You've hit your weekly limit", FailureClass.QUOTA),
        (None, None, "Please run /login", FailureClass.AUTH),
        (None, None, "whatever else", FailureClass.AGENT),
        ("unknown", None, "whatever else", FailureClass.UNKNOWN),
    ],
)
def test_structured_signs_go_before_words(
    error: str | None, status: int | None, words: str, failure: FailureClass
) -> None:
    before: dict[str, Any] = {"type": "assistant", "message": {"content": []}, "error": error}
    end = judged(GOOD | {"is_error": True, "api_error_status": status, "result": words}, 1, before)

    assert end.failure is failure
    assert end.detail


def test_what_the_cli_says_of_a_limit_is_no_answer_of_the_model() -> None:
    words = {"content": [{"type": "text", "text": "You've hit your session limit"}]}
    event = {"type": "assistant", "message": words, "error": "rate_limit"}

    pieces = Record().read(json.dumps(event).encode())

    assert said(pieces, OutputKind.TEXT) == []
    assert said(pieces, OutputKind.STDERR) == ["You've hit your session limit\n"]


def test_an_error_of_an_earlier_turn_is_forgotten() -> None:
    failed_turn = {"type": "assistant", "message": {"content": []}, "error": "rate_limit"}
    begun_again = {"type": "system", "subtype": "init", "session_id": SESSION}
    end = judged(GOOD | {"is_error": True, "result": "x"}, 1, failed_turn, begun_again)
    assert end.failure is FailureClass.AGENT


# --- lines that no one promised ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b'{"type": 7}', b'{"type": "from_the_future", "x": [1]}', b'{"type":"assistant"}',
        b'{"type":"assistant","message":{"content":"text"}}', b'{"type":"assistant","message":{"content":[7,{}]}}',
        b'{"type":"user","message":{"content":"text"}}', b'{"type":"rate_limit_event","rate_limit_info":7}',
        b'{"type":"system","subtype":"init","session_id":7}', b'{"type":"system","subtype":"api_retry"}',
    ],
)  # fmt: skip
def test_an_unknown_or_odd_event_is_kept_raw_and_changes_nothing(line: bytes) -> None:
    record = Record()
    assert (OutputKind.RAW, line + b"\n") in record.read(line)
    assert record.session_id is None
    assert outcome(record, 0, "").failure is FailureClass.AGENT


@pytest.mark.parametrize(
    "line", [b"", b"Killed", b"[1]", b"\xff\x00\x1b[2J", b"{" * 100_000, b"[" * 100_000, b"1" * 10_000]
)
def test_what_is_no_event_is_ordinary_output(line: bytes) -> None:
    assert Record().read(line) == [(OutputKind.STDOUT, line + b"\n")]


@pytest.mark.parametrize(
    "result",
    [
        {"usage": 7, "modelUsage": [], "total_cost_usd": "free"},
        {"usage": {"input_tokens": "many", "output_tokens": None}, "total_cost_usd": float("nan")},
        {"modelUsage": {"m": 7}, "total_cost_usd": True},
        # neither is a float, nor a number that a store's column holds
        {"modelUsage": {"m": {"inputTokens": 10**400, "outputTokens": 2**63}}, "total_cost_usd": 1e300},
        {"modelUsage": {"m": {"inputTokens": -1}}, "permission_denials": 7, "errors": 7, "result": 7},
    ],
)
def test_odd_figures_are_unknown_not_zero(result: dict[str, Any]) -> None:
    assert judged(GOOD | result).usage == Usage()


def test_a_result_too_long_for_a_line_still_tells_success() -> None:
    whole = json.dumps({"type": "result", **GOOD, "result": "x" * 10_000}, separators=(",", ":")).encode()
    for wrong in (False, True):
        record = Record(text="the last words")
        line = whole.replace(b'"is_error":false', b'"is_error":true') if wrong else whole
        record.read(line[:500], cut=True)
        end = outcome(record, 0, "")
        assert end.ending is (Ending.FAILED if wrong else Ending.DONE)
        assert (end.text, end.usage) == ("the last words", Usage())


def test_a_cut_line_of_another_sort_is_only_kept() -> None:
    record = Record()
    line = b'{"type":"user","message":{"content":[{"type":"result","subtype":"success","is_error":false,"num_turns":3'
    assert record.read(line, cut=True) == [(OutputKind.RAW, line + b"\n")]
    assert record.result is None


def test_a_tool_answer_is_shown_by_its_end() -> None:
    content = [{"type": "text", "text": "x" * 5000 + "\nthe reason"}, {"type": "image", "source": {}}]
    block = {"type": "tool_result", "content": content}
    pieces = Record().read(json.dumps({"type": "user", "message": {"content": [block]}}).encode())
    shown = said(pieces, OutputKind.RESULT)[0]
    assert shown.endswith("the reason\n[image]\n")
    assert len(shown) < 2100


def test_a_tool_call_is_one_line_without_terminal_escapes() -> None:
    block = {"type": "tool_use", "name": "Bash", "input": {"command": "echo \x1b[2J a\nb\n" + "c" * 500}}
    pieces = Record().read(json.dumps({"type": "assistant", "message": {"content": [block]}}).encode())
    shown = said(pieces, OutputKind.TOOL)[0]
    assert shown.startswith("Bash echo a b c")
    assert "\x1b" not in shown
    assert len(shown) <= 201


def test_the_words_of_a_subagent_are_not_the_last_words() -> None:
    record = Record(text="mine")
    event = {"type": "assistant", "parent_tool_use_id": "t1", "message": {"content": [{"type": "text", "text": "its"}]}}
    assert (OutputKind.TEXT, b"its\n") in record.read(json.dumps(event).encode())
    assert record.text == "mine"


def test_only_a_taken_id_is_a_session_in_use() -> None:
    complaint = f"Error: Session ID {SESSION} is already in use.\n"
    assert session_in_use(Record(), complaint)
    assert not session_in_use(Record(), "the port is already in use")
    assert not session_in_use(Record(result=GOOD), complaint)


# --- what it is given ------------------------------------------------------------------------------------------


def test_the_prompt_is_in_no_argument_and_no_command() -> None:
    settings = ClaudeCodeSettings(model="sonnet", max_turns=7, extra_args=("--effort", "high"))
    argv = arguments(settings, request(prompt="SECRET", instructions="- be kind"), SESSION, resume=False)

    assert not any("SECRET" in argument for argument in argv)
    assert argv[-2:] == ("--effort", "high")
    assert {"--model=sonnet", "--append-system-prompt=- be kind", "--strict-mcp-config"} <= set(argv)
    assert json.loads(message("/compact it"))["message"]["content"] == " /compact it"
    assert message("two\nlines \ud800").count(b"\n") == 1


def test_the_request_chooses_the_model_and_the_session() -> None:
    settings = ClaudeCodeSettings(model="sonnet")
    argv = arguments(settings, request(model="--opus"), SESSION, resume=True)
    assert "--model=--opus" in argv
    assert argv[argv.index("--resume") + 1] == SESSION
    assert "--session-id" not in argv


def test_long_instructions_fit_into_one_argument() -> None:
    argv = arguments(ClaudeCodeSettings(), request(instructions="é\0" * 200_000), SESSION, resume=False)
    longest = max(len(argument.encode()) for argument in argv)
    assert 90_000 < longest < 128 << 10
    assert not any("\0" in argument for argument in argv)


def test_the_account_is_handed_on_and_nothing_else() -> None:
    environ = {
        "ANTHROPIC_API_KEY": "key", "CLAUDE_CONFIG_DIR": "/c", "GITHUB_TOKEN": "no", "CLAUDECODE": "1",
        "CLAUDE_CODE_SIMPLE": "1", "AWS_SECRET_ACCESS_KEY": "no", "HOME": "/no",
    }  # fmt: skip
    given = child_environment(ClaudeCodeSettings(), {"PATH": "/bin", "M": "1"}, environ, root=False)

    assert given == {
        "PATH": "/bin", "M": "1", "ANTHROPIC_API_KEY": "key", "CLAUDE_CONFIG_DIR": "/c",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1", "CLAUDE_CODE_MAX_RETRIES": "2",
        "CLAUDE_CODE_DISABLE_AUTO_MEMORY": "1", "CLAUDE_CODE_DISABLE_CRON": "1", "CLAUDE_CODE_DISABLE_ATTACHMENTS": "1",
    }  # fmt: skip
    cloud = child_environment(ClaudeCodeSettings(), {}, environ | {"CLAUDE_CODE_USE_BEDROCK": "1"}, root=False)
    assert cloud["AWS_SECRET_ACCESS_KEY"] == "no"


def test_the_operator_has_the_last_word_but_not_on_attachments() -> None:
    own = {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_MAX_RETRIES": "0", "CLAUDE_CODE_DISABLE_ATTACHMENTS": ""}
    given = child_environment(ClaudeCodeSettings(), own, {"ANTHROPIC_API_KEY": "key"}, root=False)
    assert given["ANTHROPIC_API_KEY"] == ""
    assert given["CLAUDE_CODE_MAX_RETRIES"] == "0"
    assert given["CLAUDE_CODE_DISABLE_ATTACHMENTS"] == "1"


def test_a_sandbox_is_claimed_only_by_a_root_that_bypasses() -> None:
    for mode, args, root, claimed in (
        ("bypassPermissions", (), True, True),
        ("bypassPermissions", (), False, False),
        ("acceptEdits", (), True, False),
        ("default", ("--dangerously-skip-permissions",), True, True),
    ):
        settings = ClaudeCodeSettings.model_validate({"permission_mode": mode, "extra_args": list(args)})
        assert ("IS_SANDBOX" in child_environment(settings, {}, {}, root=root)) is claimed
