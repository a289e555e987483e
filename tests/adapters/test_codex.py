"""What Codex prints, and what becomes of it; what it is given. Its own words are as 0.169 says them."""

from __future__ import annotations

import json
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pilot.backends.codex_cli import account, arguments, child_environment, find, message, mode, places, toml
from pilot.backends.codex_events import HELD_BACK, Record
from pilot.backends.codex_outcome import outcome, usage
from pilot.backends.reading import Piece
from pilot.config.executor import CodexSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome, Usage
from pilot.testing.fence import Fence

THREAD = "01a20ebf-8f1a-7ab3-b994-6d15adc42e9a"
NOW = datetime(2026, 11, 24, 18, 9, 30, tzinfo=UTC)


def line(type: str, **event: Any) -> bytes:
    return json.dumps({"type": type, **event}, ensure_ascii=False).encode()


def item(what: str, type: str, id: str = "item_1", **more: Any) -> bytes:
    return line(f"item.{what}", item={"id": id, "type": type, **more})


def said(pieces: list[Piece], kind: OutputKind) -> list[str]:
    return [data.decode() for of, data in pieces if of is kind]


def heard(*lines: bytes) -> tuple[Record, list[Piece]]:
    record = Record()
    return record, [piece for one in lines for piece in record.read(one)]


def failed(words: str, now: datetime = NOW) -> Outcome:
    """How a turn is judged that failed with these words."""
    record, _ = heard(line("error", message=words), line("turn.failed", error={"message": words}))
    return outcome(record, 1, "", now=now)


def complained(stderr: str, returncode: int | None = 1) -> Outcome:
    """How a run is judged that had no more to say than this."""
    record = Record()
    for one in stderr.splitlines():
        record.complain(one)
    return outcome(record, returncode, stderr, now=NOW)


def request(**more: Any) -> AgentRequest:
    given: dict[str, Any] = {
        "prompt": "do it", "workspace": "/workspace", "execution": 1, "attempt": 1, "project": "p", "task_id": "T-1",
        "environment": {"PATH": "/bin", "HOME": "/home/ann"}, "marker": "M=1",
    }  # fmt: skip
    return AgentRequest(**given | more)


def configured(argv: tuple[str, ...]) -> dict[str, Any]:
    """What a command line sets, read as the program does."""
    pairs = [argv[n + 1].split("=", 1) for n, word in enumerate(argv) if word == "-c"]
    return {name: tomllib.loads(f"value = {value}")["value"] for name, value in pairs}


# --- what it says ------------------------------------------------------------------------------------------------

COMMAND = {"command": "/bin/bash -lc 'echo hi; exit 3'", "aggregated_output": ""}
SUCCESS = (
    line("thread.started", thread_id=THREAD),
    item("completed", "error", "item_0", message="Model metadata for `m` not found. Defaulting to fallback metadata"),
    line("turn.started"),
    item("completed", "reasoning", text="Hm."),
    item("completed", "agent_message", "item_2", text="I look."),
    item("started", "command_execution", "item_3", **COMMAND, exit_code=None, status="in_progress"),
    item(
        "completed", "command_execution", "item_3", command="x", aggregated_output="hi\n", exit_code=3, status="failed"
    ),
    item("completed", "agent_message", "item_4", text="All done."),
    line("turn.completed", usage={"input_tokens": 200, "cached_input_tokens": 90, "output_tokens": 40}),
)


def test_a_success_gives_text_tools_results_and_every_raw_line() -> None:
    record, pieces = heard(*SUCCESS)

    assert outcome(record, 0, "", now=NOW) == Outcome(ending=Ending.DONE, text="All done.", session_id=THREAD)
    assert usage(record, Usage()) == Usage(200, 40)
    assert said(pieces, OutputKind.TEXT) == ["I look.\n", "All done.\n"]
    assert said(pieces, OutputKind.TOOL) == ["shell echo hi; exit 3\n"]
    assert said(pieces, OutputKind.RESULT) == ["hi\nexit code 3\n"]
    assert said(pieces, OutputKind.PILOT)[0].startswith("the agent warns: Model metadata")
    assert said(pieces, OutputKind.RAW) == [one.decode() + "\n" for one in SUCCESS]


def test_every_kind_of_call_is_a_line_and_is_answered_once() -> None:
    change: dict[str, Any] = {"changes": [{"path": "/w/p.txt", "kind": "add"}, {"path": "/w/q", "kind": "delete"}]}
    call: dict[str, Any] = {"server": "docs", "tool": "look", "arguments": {"query": "x"}}
    _, pieces = heard(
        item("started", "file_change", **change, status="in_progress"),
        item("completed", "file_change", **change, status="completed"),
        item("started", "mcp_tool_call", "item_2", **call, status="in_progress"),
        item("completed", "mcp_tool_call", "item_2", **call, result={"content": [{"type": "text", "text": "found"}]}),
        item("completed", "mcp_tool_call", "item_3", **call, error={"message": "gone"}, status="failed"),
        item("completed", "web_search", "item_4", query="how"),
        item("started", "todo_list", "item_5", items=[]),
        item("started", "command_execution", "item_6", command="sleep 9"),
        line("turn.completed"),
    )
    assert said(pieces, OutputKind.TOOL) == [
        "file_change add /w/p.txt, delete /w/q\n", "docs.look x\n", "docs.look x\n", "web_search how\n",
        "shell sleep 9\n",
    ]  # fmt: skip
    assert said(pieces, OutputKind.RESULT) == [
        "completed\n", "found\n", "gone\n", "\n", "command_execution: not done at the end of the turn\n",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "command"),
    [
        ("/bin/bash -lc 'echo hi; ls'", "echo hi; ls"),
        ("/bin/zsh -c ls", "ls"),
        ('/bin/bash -lc "echo \'a\' \\"b\\" \\$HOME"', "echo 'a' \"b\" $HOME"),
        ("make test", "make test"),
    ],
)
def test_a_command_is_shown_without_the_shell_around_it(shown: str, command: str) -> None:
    _, pieces = heard(item("started", "command_execution", command=shown))
    assert said(pieces, OutputKind.TOOL) == [f"shell {command}".strip() + "\n"]


def test_words_of_trouble_are_no_sign_of_life_after_the_first() -> None:
    record = Record()
    trouble = [line("error", message=f"Reconnecting... {n}/5 (stream disconnected)") for n in (1, 2, 3)]
    first = record.read(trouble[0])
    assert said(first, OutputKind.PILOT) == [
        "the agent waits for its model: Reconnecting... 1/5 (stream disconnected)\n"
    ]
    assert record.read(trouble[1]) == record.read(trouble[2]) == []
    assert (record.retrying, record.waiting) == (True, False)

    after = record.read(item("completed", "agent_message", text="On again."))
    assert [data for kind, data in after if kind is OutputKind.RAW][:2] == [one + b"\n" for one in trouble[1:]]
    assert not record.retrying
    assert outcome(heard(*SUCCESS[:3], *trouble, *SUCCESS[3:])[0], 0, "", now=NOW).ending is Ending.DONE


def test_much_trouble_is_not_kept_for_ever() -> None:
    record = Record()
    pieces = [piece for _ in range(3 * HELD_BACK) for piece in record.read(line("error", message="Reconnecting..."))]
    assert len(said(pieces, OutputKind.RAW)) > 2 * HELD_BACK


@pytest.mark.parametrize(
    ("words", "waiting"),
    [
        ("Reconnecting... waiting for network (Connection failed: error sending request)", True),
        ("Reconnecting... 1/1 (exceeded retry limit, last status: 429 Too Many Requests)", True),
        (
            "Reconnecting... 1/1 (We\u2019re currently experiencing high demand, which may cause temporary errors.)",
            False,
        ),
        ("Reconnecting... 2/5 (unexpected status 404 Not Found: {}, url: ws://127.0.0.1:1/v1/responses)", False),
    ],
)
def test_what_it_may_wait_for_without_end_is_told_from_what_it_counts(words: str, waiting: bool) -> None:
    record, _ = heard(line("error", message=words))
    assert record.waiting is waiting
    record.read(line("turn.started"))
    assert not record.waiting


@pytest.mark.parametrize(
    "odd",
    [
        b"{}", b'{"type": 7}', b'{"type":"from_the_future","x":[1]}', b'{"type":"item.started"}',
        b'{"type":"item.completed","item":7}', b'{"type":"item.completed","item":{"type":"agent_message","text":7}}',
        b'{"type":"thread.started","thread_id":7}', b'{"type":"turn.completed","usage":7}',
        b'{"type":"turn.failed","error":7}', b'{"type":"error","message":7}',
        b'{"type":"item.completed","item":{"id":[],"type":"file_change","changes":[7],"error":7,"result":7}}',
    ],
)  # fmt: skip
def test_an_odd_event_is_kept_raw_and_breaks_nothing(odd: bytes) -> None:
    record, pieces = heard(odd)
    assert (OutputKind.RAW, odd + b"\n") in pieces
    assert record.thread is None
    assert outcome(record, 0, "", now=NOW).text == ""
    assert usage(record, Usage()) == Usage()


@pytest.mark.parametrize("junk", [b"", b"Killed", b"[1]", b"\xff\x00\x1b[2J", b"{" * 100_000, b"1" * 10_000])
def test_what_is_no_event_is_ordinary_output(junk: bytes) -> None:
    assert Record().read(junk) == [(OutputKind.STDOUT, junk + b"\n")]


def test_a_line_that_is_too_long_still_ends_its_call() -> None:
    record, _ = heard(item("started", "command_execution", command="cat big"))
    whole = {"id": "item_1", "type": "command_execution", "aggregated_output": "x" * 1000}
    cut = json.dumps({"type": "item.completed", "item": whole}, separators=(",", ":")).encode()[:300]
    assert said(record.read(cut, cut=True), OutputKind.RESULT) == ["(too long to be shown)\n"]
    assert record.read(b'{"type":"other' + b"x" * 300, cut=True)[0][0] is OutputKind.RAW


# --- what that means ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "failure"),
    [
        ("unexpected status 401 Unauthorized: bad key, url: http://127.0.0.1:1/v1/responses", FailureClass.AUTH),
        ("unexpected status 403 Forbidden: no, url: http://127.0.0.1:1/v1/responses", FailureClass.AUTH),
        ("Your access token could not be refreshed. Please log out and sign in again.", FailureClass.AUTH),
        ('{"error": {"type": "invalid_request_error", "message": "odd request"}}', FailureClass.AGENT),
        ("unexpected status 402 Payment Required: pay, url: http://127.0.0.1:1", FailureClass.QUOTA),
        ("The model `x` does not exist", FailureClass.INVALID_CONFIG),
        ("unexpected status 404 Not Found: no, url: http://127.0.0.1:1/v2/responses", FailureClass.INVALID_CONFIG),
        ("unexpected status 413 Payload Too Large: too large, url: http://127.0.0.1:1", FailureClass.AGENT),
        ("Codex ran out of room in the model's context window. Start a new thread or clear …", FailureClass.AGENT),
        ("exceeded retry limit, last status: 429 Too Many Requests", FailureClass.RATE_LIMIT),
        ("rate limit exceeded: Rate limit reached for x. Please try again in 11.054s.", FailureClass.RATE_LIMIT),
        ("Quota exceeded. Check your plan and billing details.", FailureClass.QUOTA),
        ("You\u2019ve hit your usage limit. Try again later.", FailureClass.QUOTA),
        ("You've hit your usage limit for codex_other. Switch to another model now.", FailureClass.QUOTA),
        ("Your workspace is out of credits. Add credits to continue.", FailureClass.QUOTA),
        ("To use Codex with your ChatGPT plan, upgrade to Plus: https://example.org", FailureClass.QUOTA),
        ("We\u2019re currently experiencing high demand, which may cause temporary errors.", FailureClass.NETWORK),
        ("unexpected status 502 Bad Gateway: bad gw, url: http://127.0.0.1:1", FailureClass.NETWORK),
        ("Selected model is at capacity. Please try a different model.", FailureClass.NETWORK),
        ("stream disconnected before completion: Transport error: network error: error decoding response body",
         FailureClass.NETWORK),
        ("stream disconnected before completion: error sending request", FailureClass.NETWORK),
        ("stream disconnected before completion: idle timeout waiting for SSE", FailureClass.NETWORK),
        ("Incomplete response returned, reason: max_output_tokens", FailureClass.AGENT),
        ("stream disconnected before completion: Incomplete response returned, reason: content_filter",
         FailureClass.REFUSAL),
        ("Invalid prompt: your prompt was flagged as potentially violating our usage policy.", FailureClass.REFUSAL),
        ("Missing environment variable: `AZURE_KEY`.", FailureClass.INVALID_CONFIG),
        ("something that no version has said yet", FailureClass.AGENT),
        ("", FailureClass.AGENT),
    ],
)  # fmt: skip
def test_every_sentence_has_its_class(words: str, failure: FailureClass) -> None:
    end = failed(words)
    assert (end.ending, end.failure) == (Ending.FAILED, failure)
    assert end.detail
    assert end.retry_at is None


def test_an_answer_of_the_api_is_told_by_its_message() -> None:
    assert failed('{"error": {"type": "invalid_request_error", "message": "odd request"}}').detail == "odd request"


@pytest.mark.parametrize(
    ("complaint", "returncode", "failure"),
    [
        ("error: unexpected argument '--nope' found\n\nUsage: codex exec\n", 2, FailureClass.INVALID_CONFIG),
        ("Error loading config.toml: unknown variant `nope`, expected one of\n", 1, FailureClass.INVALID_CONFIG),
        ("Error finding codex home: CODEX_HOME points to \"/x\", but that path does not exist\n", 1,
         FailureClass.INVALID_CONFIG),
        ("Error: Model provider `zzz` not found\n", 1, FailureClass.INVALID_CONFIG),
        ("Error: turn/start: turn/start failed: Input exceeds the maximum length of 1048576 characters.", 1,
         FailureClass.AGENT),
        ("thread 'main' panicked at core.rs:1:\nboom\n", 101, FailureClass.AGENT),
        ("", -11, FailureClass.AGENT),
        ("", 139, FailureClass.AGENT),
        ("", 0, FailureClass.AGENT),
        ("", None, FailureClass.AGENT),
    ],
)  # fmt: skip
def test_a_run_without_an_end_is_judged_by_what_it_complained_of(
    complaint: str, returncode: int | None, failure: FailureClass
) -> None:
    end = complained(complaint, returncode)
    assert (end.failure, end.session_lost) == (failure, False)
    assert end.detail


def test_a_session_that_is_gone_is_told_apart() -> None:
    words = f"Error: thread/resume: thread/resume failed: no rollout found for thread id {THREAD} (code -32600)\n"
    end = complained(words)
    assert (end.session_lost, end.session_id) == (True, None)


def test_success_needs_the_end_of_its_turn_and_a_good_exit() -> None:
    done, _ = heard(*SUCCESS)
    assert outcome(done, None, "", now=NOW).ending is Ending.DONE, "it stayed, and was ended by pilot"
    for code in (1, -9, 137):
        assert outcome(done, code, "", now=NOW).failure is FailureClass.AGENT
    half, _ = heard(*SUCCESS[:-1])
    assert outcome(half, 0, "", now=NOW).failure is FailureClass.AGENT
    again, _ = heard(*SUCCESS, line("turn.started"))
    assert outcome(again, 0, "", now=NOW).failure is FailureClass.AGENT


@pytest.mark.parametrize(
    ("done", "blames"),
    [
        ([], True),
        ([item("completed", "command_execution", command="x", exit_code=1, aggregated_output="bwrap: no")], True),
        ([item("completed", "command_execution", command="x", exit_code=0, aggregated_output="")], False),
        ([item("completed", "file_change", changes=[])], False),
    ],
    ids=["no command was told of", "all failed", "one went well", "a file was changed"],
)
def test_who_got_nothing_done_and_speaks_of_the_sandbox_blames_it(done: list[bytes], blames: bool) -> None:
    last = item("completed", "agent_message", "item_2", text="I could not run a command: bwrap fails.")
    record, _ = heard(*done, last)
    assert record.blames_sandbox is blames


def test_a_kill_for_want_of_memory_is_that_only_when_the_kernel_says_so() -> None:
    for code, oom, failure in (
        (-9, True, FailureClass.OOM),
        (137, True, FailureClass.OOM),
        (-9, False, FailureClass.AGENT),
    ):
        assert outcome(Record(), code, "", now=NOW, oom=oom).failure is failure


def test_what_it_was_refused_is_a_question_but_not_what_it_finds_another_way_for() -> None:
    def done(error: str) -> Outcome:
        record, _ = heard(*SUCCESS)
        record.complain(f"2026-11-24T18:12:49.394718Z ERROR codex_core::tools::router: error={error}")
        return outcome(record, 0, "", now=NOW, sandbox="read-only")

    for error in (
        "patch rejected: writing is blocked by read-only sandbox; rejected by user approval settings",
        "approval policy is Never; reject command — you cannot ask for escalated permissions if …",
    ):
        end = done(error)
        assert end.ending is Ending.QUESTION
        assert end.question is not None
        assert error in end.question.text
        assert "now read-only" in end.question.text
    rule = 'exec_command failed: Rejected("`rm -rf x` rejected: rm -f style commands are not permitted.")'
    for error in (rule, "unsupported call: update_plan"):
        assert done(error).ending is Ending.DONE


@pytest.mark.parametrize(
    ("words", "now", "at"),
    [
        ("8:09 PM", NOW, datetime(2026, 11, 24, 20, 10, tzinfo=UTC)),
        ("6:09 PM", NOW, datetime(2026, 11, 24, 18, 10, tzinfo=UTC)),
        ("12:30 AM", NOW.replace(hour=0, minute=10), datetime(2026, 11, 24, 0, 31, tzinfo=UTC)),
        ("12:05 PM", NOW.replace(hour=11), datetime(2026, 11, 24, 12, 6, tzinfo=UTC)),
        ("12:01 AM", NOW.replace(hour=23, minute=59), datetime(2026, 11, 25, 0, 2, tzinfo=UTC)),
        ("Nov 27th, 2026 6:09 PM", NOW, datetime(2026, 11, 27, 18, 10, tzinfo=UTC)),
        ("Jan 3rd, 2027 6:18 AM", NOW, datetime(2027, 1, 3, 6, 19, tzinfo=UTC)),
        ("Feb 29th, 2028 6:18 AM", NOW.replace(month=1, day=31), datetime(2028, 2, 29, 6, 19, tzinfo=UTC)),
        ("Jul 1st, 2027 9:00 AM", NOW.astimezone(ZoneInfo("Europe/Berlin")), datetime(2027, 7, 1, 7, 1, tzinfo=UTC)),
        ("Feb 30th, 2027 6:18 AM", NOW, None),
        ("Foo 3rd, 2027 6:18 AM", NOW, None),
        ("99:99 PM", NOW, None),
    ],
)
def test_a_used_up_allowance_says_in_local_time_when_it_is_back(words: str, now: datetime, at: datetime | None) -> None:
    end = failed(f"You\u2019ve hit your usage limit. Visit https://example.org or try again at {words}.", now)
    assert end.failure is FailureClass.QUOTA
    assert end.retry_at == (None if at is None else at.timestamp() * 1000)


def test_a_run_counts_only_its_own_of_a_whole_session() -> None:
    record, _ = heard(*SUCCESS)
    assert usage(record, Usage(150, 30, 1.0)) == Usage(50, 10)
    assert usage(record, Usage(None, 30)) == Usage(200, 10)
    assert usage(record, Usage(500, 30)) == Usage(0, 10)
    for odd in ({"input_tokens": "many"}, {"input_tokens": True, "output_tokens": -1}, {"output_tokens": float("nan")}):
        assert usage(heard(line("turn.completed", usage=odd))[0], Usage()) == Usage()


# --- what it is given --------------------------------------------------------------------------------------------


def test_nothing_of_a_task_is_an_argument() -> None:
    settings = CodexSettings(model="m", extra_args=("-c", 'model_provider="mine"'))
    argv = arguments(settings, request(prompt="SECRET", instructions="- be kind"), "/bin/codex")
    assert not any("SECRET" in argument or "kind" in argument for argument in argv)
    assert (argv[:3], argv[-3:]) == (("/bin/codex", "exec", "--json"), ("-c", 'model_provider="mine"', "-"))
    assert configured(argv)["model"] == "m"
    assert message(request(instructions="- be kind")).endswith(b"- be kind\n\n---\n\ndo it")
    assert message(request(instructions="- be kind", session_id=THREAD)) == b"do it"
    assert message(request(prompt="a \ud800 b\0")) == "a \ufffd b\ufffd".encode()


def test_a_session_that_is_gone_on_with_is_told_everything_again() -> None:
    settings = CodexSettings()
    new = arguments(settings, request(), "codex")
    old = arguments(settings, request(session_id=THREAD, model='--x"\n\x7f'), "codex")
    assert old[-3:] == ("resume", THREAD, "-")
    assert configured(old) == {**configured(new), "model": '--x"\n\x7f'}
    assert configured(new)["sandbox_mode"] == "workspace-write"


def test_a_repository_is_not_trusted_whatever_its_path_is_called(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" = [path] é'
    folder.mkdir()
    (link := tmp_path / "link").symlink_to(folder)
    said = configured(arguments(CodexSettings(), request(workspace=str(link)), "codex"))
    assert said["projects"] == {str(path): {"trust_level": "untrusted"} for path in (link, folder)}


def test_in_pilot_s_sandbox_it_makes_none_of_its_own() -> None:
    for kind, sandbox, expected in (
        ("workspace-write", None, "workspace-write"),
        ("workspace-write", Fence(), "danger-full-access"),
        ("read-only", None, "read-only"),
    ):
        settings = CodexSettings.model_validate({"sandbox": kind})
        assert mode(settings, request(sandbox=sandbox)) == expected
        assert configured(arguments(settings, request(sandbox=sandbox), "codex"))["sandbox_mode"] == expected


def test_its_key_is_handed_on_to_it_and_kept_from_its_commands() -> None:
    environ = {
        "CODEX_API_KEY": "key", "CODEX_HOME": "/c", "CODEX_THREAD_ID": "other", "GITHUB_TOKEN": "no", "HOME": "/no",
        "TZ": "Europe/Berlin",
    }  # fmt: skip
    own = {"PATH": "/bin", "HOME": "/home/ann"}
    assert child_environment(own, environ) == {
        "CODEX_API_KEY": "key", "CODEX_HOME": "/c", "TZ": "Europe/Berlin", **own,
    }  # fmt: skip
    assert child_environment({"CODEX_API_KEY": ""}, environ)["CODEX_API_KEY"] == ""
    exclude = "shell_environment_policy.exclude"
    assert "CODEX_API_KEY" in configured(arguments(CodexSettings(), request(), "codex"))[exclude]
    given = request(environment={**own, "CODEX_API_KEY": "for the commands, too"})
    assert (
        "CODEX_API_KEY"
        not in configured(arguments(CodexSettings(), given, "codex"))["shell_environment_policy.exclude"]
    )


def test_an_account_is_a_key_or_a_folder() -> None:
    accounts = [account({"HOME": home, **key}) for home in ("/a", "/b") for key in ({}, {"CODEX_API_KEY": "k"})]
    assert accounts[1] == accounts[3]
    assert len(set(accounts)) == 3


def test_its_places_are_those_of_its_own_folder(tmp_path: Path) -> None:
    packed = tmp_path / "vendor/bin/codex"
    packed.parent.mkdir(parents=True)
    packed.write_text("")
    (tmp_path / "vendor/codex-package.json").write_text("{}")
    had = places({"HOME": "/home/ann/", "SSL_CERT_FILE": "/etc/own.pem"}, str(packed))
    assert (had.state, had.programs) == (("/home/ann/.codex",), (str(tmp_path / "vendor"),))
    assert "/home/ann/.codex/auth.json" in had.logins
    assert {"/home/ann/.codex/config.toml", "/home/ann/.codex/hooks.json", "/etc/own.pem"} <= set(had.settings)
    assert set(had.fresh) == {"/home/ann/.codex/environments.toml", "/home/ann/.codex/models_cache.json"}
    assert places({"CODEX_HOME": "/c", "CODEX_SQLITE_HOME": "/d"}, "codex").state == ("/c", "/d")


@pytest.mark.parametrize("layout", ["hoisted", "nested", "within", "none"])
def test_the_program_behind_the_npm_script_is_found(tmp_path: Path, layout: str) -> None:
    script = tmp_path / "lib/node_modules/@openai/codex/bin/codex.js"
    package = {
        "hoisted": tmp_path / "lib/node_modules/@openai/codex-linux-x64",
        "nested": tmp_path / "lib/node_modules/@openai/codex/node_modules/@openai/codex-linux-x64",
        "within": tmp_path / "lib/node_modules/@openai/codex",
        "none": tmp_path / "elsewhere",
    }[layout]
    native = package / "vendor/x86_64-unknown-linux-musl/bin/codex"
    for file in (script, native):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
        file.chmod(0o755)
    (link := tmp_path / "bin/codex").parent.mkdir()
    link.symlink_to(script)
    assert find("codex", str(link.parent)) == str(link if layout == "none" else native)
    assert find("no-such-codex", str(link.parent)) is None


def test_toml_is_read_back_as_it_was() -> None:
    value = {"a b": [True, 1, 'x"\\\n\x7f\x00é'], "c": {}}
    read = tomllib.loads(f"value = {toml(value)}")["value"]
    assert read == {"a b": [True, 1, 'x"\\\n\x7f\ufffdé'], "c": {}}
    with pytest.raises(TypeError):
        toml(timedelta())
