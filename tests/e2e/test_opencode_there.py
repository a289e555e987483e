"""The opencode backend on a server that is there already: what runs come to, and that the server is left alone.

One real server for all of these; each run has a workspace of its own.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from pilot.backends.opencode import OpenCode
from pilot.clients.opencode import Client, Rejected
from pilot.config.executor import OpenCodeSettings
from pilot.domain.agent import AgentRequest, OutputKind
from pilot.domain.outcome import Ending, FailureClass, Outcome
from pilot.testing import Seen
from tests.e2e.model_server import ModelServer, Request, Turn, status, text, tool
from tests.e2e.opencode import MODEL, Server, bash, configured, opencode_environment, write

ASKS = {
    "permission": {
        "bash": {"*": "allow", "git push*": "ask"}, "question": "allow", "external_directory": "deny",
    }
}  # fmt: skip


class Model(ModelServer):
    """A model that can be told more."""

    def __init__(self) -> None:
        super().__init__({"scripts": []})

    def add(self, when: str, turns: Sequence[Turn]) -> None:
        self._scripts.insert(0, {"when": when, "turns": turns})


class Place:
    """The server, its model, and a workspace."""

    def __init__(self, server: Server, model: Model, folder: Path) -> None:
        self.server = server
        self.model = model
        self.workspace = folder
        folder.mkdir(exist_ok=True)
        self.seen = Seen()
        self.task = f"task {uuid.uuid4().hex}"

    def backend(self, url: str | None = None, **environ: str) -> OpenCode:
        settings = OpenCodeSettings(model=MODEL, server_url=url or self.server.url, command="/nowhere/opencode")
        return OpenCode(settings, environ={"OPENCODE_SERVER_PASSWORD": self.server.password, **environ})

    def request(self, prompt: str = "Do it.", **more: Any) -> AgentRequest:
        given: dict[str, Any] = {
            "prompt": f"{prompt} ({self.task})", "workspace": str(self.workspace), "execution": 1, "attempt": 1,
            "project": "p", "task_id": "T-1", "environment": {}, "marker": "test/there",
        }  # fmt: skip
        return AgentRequest(**given | more)

    def told(self, *turns: Turn, task: str = "") -> None:
        """What the model says to this task."""
        self.model.add(task or self.task, turns)

    async def run(self, *turns: Turn, url: str | None = None, **more: Any) -> Outcome:
        if turns:
            self.told(*turns)
        return await self.backend(url).execute(self.request(**more), self.seen)

    def said(self, kind: OutputKind) -> str:
        return self.seen.of(kind).decode()

    async def until(self, kind: OutputKind, words: str) -> None:
        end = time.monotonic() + 40
        while words not in self.said(kind):
            assert time.monotonic() < end, self.seen.all.decode()[-3000:]
            await asyncio.sleep(0.02)

    def asked(self) -> list[Request]:
        """What the model was asked in this task."""
        return [request for request in self.model.agent_requests if self.task in request.said]

    async def busy(self) -> dict[str, Any]:
        async with Client(self.server.url, password=self.server.password) as client:
            found: dict[str, Any] = await client.status(str(self.workspace))
            return found


variants = pytest.mark.variants


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Model]]:
    folder = tmp_path_factory.mktemp("there")
    with Model() as model:
        environment = opencode_environment(folder / "home", model.url, OPENCODE_ENABLE_QUESTION_TOOL="1")
        configured(folder / "home", model.url, **ASKS)
        with Server(folder / "server", environment, "their secret") as server:
            yield server, model


@pytest.fixture
def place(shared: tuple[Server, Model], tmp_path: Path) -> Iterator[Place]:
    server, model = shared
    yield from _left_alone(Place(server, model, tmp_path / "workspace"))


@pytest.fixture
def same_place(shared: tuple[Server, Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One workspace for all that ask for this: the program takes a second or two to get to know one."""
    yield from _left_alone(Place(*shared, tmp_path_factory.getbasetemp() / "same-workspace"))


def _left_alone(place: Place) -> Iterator[Place]:
    yield place
    assert place.server.alive, "it is somebody else's"
    assert asyncio.run(place.busy()) == {}


async def test_it_is_used_and_left_alone(place: Place) -> None:
    end = await place.run({"text": "I write it.", **write("a.txt")}, text("All done."))

    assert end.ending is Ending.DONE, end
    assert (place.workspace / "a.txt").read_text() == "hi"
    assert (end.text, [end.session_id], end.model) == ("All done.", place.seen.sessions, MODEL)
    assert (end.usage.input_tokens, end.usage.output_tokens) == (200, 40)
    assert end.usage.cost_usd
    checks = await place.backend().check()
    assert [check.ok for check in checks] == [False, True, None], checks
    assert "1.18" in checks[1].detail


OUTCOMES: list[tuple[str, Turn, FailureClass, str]] = [
    ("bad key", status(401, "invalid x-api-key"), FailureClass.AUTH, "invalid x-api-key"),
    ("no credit", status(400, "Your credit balance is too low"), FailureClass.QUOTA, "credit balance"),
    ("no model", status(404, "model: nope"), FailureClass.INVALID_CONFIG, "model: nope"),
    ("too long", status(400, "prompt is too long: 300000 tokens > 200000 maximum"), FailureClass.AGENT, "too long"),
    ("refusal", {"refusal": True}, FailureClass.REFUSAL, "content filter"),
    ("down", status(500, "broken"), FailureClass.NETWORK, "broken"),
]
# what the program says of these is in adapters/test_opencode.py, word for word
MORE_OUTCOMES: list[tuple[str, Turn, FailureClass, str]] = [
    ("forbidden", status(403, "no access"), FailureClass.AUTH, "no access"),
    ("bad request", status(400, "unexpected field"), FailureClass.INVALID_CONFIG, "unexpected field"),
    ("bad picture", status(400, "messages.3: image too large"), FailureClass.AGENT, "image too large"),
    ("too much", status(413, "request too large"), FailureClass.AGENT, "too"),
    ("cut off", text("half", stop_reason="max_tokens"), FailureClass.AGENT, "cut off"),
    ("too fast", status(429, "rate limit reached"), FailureClass.RATE_LIMIT, "rate limit"),
    ("always cut", {"cut": "reset"}, FailureClass.NETWORK, "connect"),
]


@pytest.mark.parametrize(
    ("turn", "failure", "words"),
    [
        *(pytest.param(*case, id=name) for name, *case in OUTCOMES),
        *(pytest.param(*case, id=name, marks=variants) for name, *case in MORE_OUTCOMES),
    ],
)
async def test_what_goes_wrong_is_told_apart(same_place: Place, turn: Turn, failure: FailureClass, words: str) -> None:
    end = await same_place.run({**turn, "times": 99})

    assert (end.ending, end.failure) == (Ending.FAILED, failure), end
    assert words in end.detail
    assert [end.session_id] == same_place.seen.sessions
    assert end.retry_at is None


@pytest.mark.parametrize(
    ("message", "failure"),
    [("slow down", FailureClass.RATE_LIMIT), ("insufficient_quota: check your plan", FailureClass.QUOTA)],
)
async def test_a_far_reset_ends_the_run_at_once_and_says_when(
    same_place: Place, message: str, failure: FailureClass
) -> None:
    began = time.time()
    end = await same_place.run(status(429, message, headers={"retry-after": "3600"}, times=99))

    assert end.failure is failure, end
    assert end.retry_at is not None
    assert 3500 < end.retry_at / 1000 - began < 3700
    assert len(same_place.asked()) == 1
    assert message in same_place.said(OutputKind.PILOT)


_MORE_BREAKS = [pytest.param(turn, marks=variants) for turn in ({"cut": "reset"}, status(500))]


@pytest.mark.parametrize("turn", [{"cut": True}, {"sse_error": "overloaded_error"}, *_MORE_BREAKS])
async def test_what_breaks_once_is_mended(same_place: Place, turn: Turn) -> None:
    end = await same_place.run(turn, text("Whole."))
    assert (end.ending, end.text) == (Ending.DONE, "Whole."), end


@pytest.mark.parametrize("prompt", ["/compact", "!touch x\n@README.md é \ud800 \0 end", "--help"])
async def test_a_prompt_is_never_an_order_to_the_program(place: Place, prompt: str) -> None:
    (place.workspace / "README.md").write_text("hunter2-hunter2")
    end = await place.run(text("Done."), prompt=prompt)
    assert (end.ending, len(place.asked())) == (Ending.DONE, 1), end
    assert "hunter2" not in place.asked()[0].said
    assert not (place.workspace / "x").exists()


async def test_a_failed_command_and_an_unknown_tool_are_the_agent_s_affair(place: Place) -> None:
    end = await place.run(bash("echo no; exit 3"), tool("nope", x=1), text("So be it."))
    assert end.ending is Ending.DONE
    assert place.said(OutputKind.TOOL).count("\n") == 2
    assert place.said(OutputKind.RESULT).startswith("no\n")


async def test_a_tool_that_is_forbidden_is_told_to_the_agent(place: Place) -> None:
    end = await place.run(tool("write", filePath="/outside.txt", content="x"), text("I may not."))
    assert (end.ending, end.text) == (Ending.DONE, "I may not.")
    assert "prevents you" in place.said(OutputKind.RESULT)
    assert not Path("/outside.txt").exists()


async def test_a_sub_agent_s_work_is_seen_and_counted(place: Place) -> None:
    child = f"look {uuid.uuid4().hex}"
    place.told(tool("bash", command="echo sub", description="d"), text("I have seen."), task=child)
    place.told(tool("task", description="look", prompt=child, subagent_type="general"), text("It has seen."))
    end = await place.run()

    assert (end.ending, end.text) == (Ending.DONE, "It has seen."), end
    assert (end.usage.input_tokens, end.usage.output_tokens) == (400, 80)
    assert place.said(OutputKind.TOOL).splitlines()[1] == "bash echo sub"
    again = await place.run(text("Again."), session_id=end.session_id)
    assert (again.usage.input_tokens, again.text) == (100, "done"), "what was before is not counted again"


async def test_what_must_be_asked_first_is_refused_and_asked_of_a_person(place: Place) -> None:
    end = await place.run(bash("git push origin main"), bash("git push origin main"), text("Pushed."))

    assert end.ending is Ending.QUESTION, end
    assert end.question is not None
    assert "git push origin main" in end.question.text
    assert place.said(OutputKind.RESULT)
    assert end.session_id == place.seen.sessions[0]


async def test_a_question_of_its_own_tool_is_asked_of_a_person_and_the_answer_goes_on(place: Place) -> None:
    options = [{"label": "blue", "description": "b"}, {"label": "red", "description": "r"}]
    asked = tool("question", questions=[{"question": "Which colour?", "header": "Colour", "options": options}])
    end = await place.run(asked, text("Blue it is."))

    assert end.ending is Ending.QUESTION, end
    assert end.question is not None
    assert (end.question.text, end.question.options) == ("Which colour?", ("blue", "red"))
    answered = await place.run(prompt="Blue.", session_id=end.session_id)
    assert (answered.ending, answered.text) == (Ending.DONE, "Blue it is.")


async def test_a_cancel_ends_the_tool_s_processes_and_the_session_goes_on(place: Place) -> None:
    # what has left the tool's session is the server's, and cannot be told from what else that runs
    place.told(bash("sleep 471 & (trap '' INT; sleep 472) & echo up > up; sleep 473"), text("On again."))
    task = asyncio.create_task(place.run())
    await place.until(OutputKind.TOOL, "sleep 471")
    async with asyncio.timeout(20):
        while not (place.workspace / "up").exists():
            await asyncio.sleep(0.01)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await place.busy() == {}
    assert running_in(place.workspace) == []
    end = await place.run(session_id=place.seen.sessions[0])
    assert (end.ending, end.text) == (Ending.DONE, "On again."), end


@pytest.mark.parametrize("wait", [0.0, 0.4, *(pytest.param(wait, marks=variants) for wait in (0.1, 1.2))])
async def test_a_cancel_at_any_time_is_obeyed_and_does_not_harm_the_directory(place: Place, wait: float) -> None:
    place.told({"silence": 20, "times": 9, "when": "First"}, text("Fine."))
    task = asyncio.create_task(place.run(prompt="First."))
    async with asyncio.timeout(40):
        while not place.seen.sessions:
            await asyncio.sleep(0.01)
    await asyncio.sleep(wait)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await place.busy() == {}
    place.told(text("Fine."), task=place.task)
    end = await place.run()
    assert (end.ending, end.text) == (Ending.DONE, "Fine."), end


async def test_a_directory_is_set_up_before_anything_can_be_aborted_in_it_and_mended_when_it_is_broken(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    kept = Client._call

    async def call(self: Client, method: str, path: str, **more: Any) -> Any:
        calls.append(path.rpartition("/")[2])
        if calls.count("providers") < 3 and path == "/config/providers":
            raise Rejected("All fibers interrupted without error", 503)
        return await kept(self, method, path, **more)

    monkeypatch.setattr(Client, "_call", call)
    end = await place.run(text("Fine."))

    assert (end.ending, end.text) == (Ending.DONE, "Fine."), end
    assert calls[:7] == ["health", "providers", "dispose", "providers", "dispose", "providers", "session"]
    assert calls.index("prompt_async") == 7


async def test_a_run_that_nobody_has_ended_is_ended_before_its_session_goes_on(place: Place) -> None:
    place.told({"silence": 30, "when": "First"}, text("Second."))
    async with Client(place.server.url, password=place.server.password) as client:
        session = (await client.create(str(place.workspace), "T-1"))["id"]
        body = {"model": {"providerID": "anthropic", "modelID": "claude-sonnet-4-5"},
                "parts": [{"type": "text", "text": f"First. ({place.task})"}]}  # fmt: skip
        await client.prompt(session, body)
        async with asyncio.timeout(40):
            while not place.asked():
                await asyncio.sleep(0.02)

    end = await place.run(session_id=session)

    assert (end.ending, end.text) == (Ending.DONE, "Second."), end


async def test_a_session_of_another_directory_or_none_is_lost(place: Place, tmp_path: Path) -> None:
    async with Client(place.server.url, password=place.server.password) as client:
        other = (await client.create(str(tmp_path), "T-1"))["id"]
    for session in (other, "ses_nonexistent", "../../global/dispose", "", "a b"):
        end = await place.run(session_id=session)
        assert (end.failure, end.session_lost, end.session_id) == (FailureClass.AGENT, True, None), (session, end)
    assert place.asked() == []


async def test_another_password_is_a_matter_of_its_account(place: Place) -> None:
    end = await place.backend(OPENCODE_SERVER_PASSWORD="wrong").execute(place.request(), place.seen)
    assert end.failure is FailureClass.AUTH
    assert "OPENCODE_SERVER_PASSWORD" in end.detail
    checks = await place.backend(OPENCODE_SERVER_PASSWORD="wrong").check()
    assert checks[1].ok is False


async def test_what_happened_while_the_stream_of_events_was_broken_is_read_up(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.backends.opencode_turn.LOOK", 1000.0)
    async with Relay(place.server.url) as relay:
        place.told(bash("echo one; sleep 1"), bash("echo two; sleep 1; echo three"), text("Whole."))
        task = asyncio.create_task(place.run(url=relay.url))
        await place.until(OutputKind.TOOL, "echo one")
        relay.pause()
        async with asyncio.timeout(40):
            while await place.busy():
                await asyncio.sleep(0.05)
        assert not task.done()
        relay.go.set()
        async with asyncio.timeout(40):
            end = await task

    assert (end.ending, end.text) == (Ending.DONE, "Whole."), end
    assert place.said(OutputKind.TOOL).count("\n") == 2
    assert place.said(OutputKind.RESULT) == "one\n\ntwo\nthree\n\n"
    assert (end.usage.input_tokens, end.usage.output_tokens) == (300, 60)


async def test_a_server_that_goes_away_is_the_network_s_fault(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.backends.opencode_turn.LOST", 2.0)
    async with Relay(place.server.url) as relay:
        place.told({"silence": 30})
        task = asyncio.create_task(place.run(url=relay.url))
        async with asyncio.timeout(40):
            while not place.asked():
                await asyncio.sleep(0.02)
        relay.close()
        end = await task

    assert end.failure is FailureClass.NETWORK, end
    assert [end.session_id] == place.seen.sessions
    async with Client(place.server.url, password=place.server.password) as client:
        await client.abort(place.seen.sessions[0])  # nobody could: it was out of reach
        async with asyncio.timeout(20):
            while await place.busy():
                await asyncio.sleep(0.05)


async def test_its_calls_and_events_are_what_the_program_documents(place: Place) -> None:
    async with Client(place.server.url, password=place.server.password) as client:
        document = json.dumps(await client._call("GET", "/doc"))
    paths = (
        "/global/health", "/global/dispose", "/instance/dispose", "/config/providers", "/event", "/session",
        "/session/status", "/session/{sessionID}", "/session/{sessionID}/children", "/session/{sessionID}/message",
        "/session/{sessionID}/prompt_async", "/session/{sessionID}/abort", "/permission", "/question",
        "/permission/{requestID}/reply", "/question/{requestID}/reject",
    )  # fmt: skip
    names = (
        "server.connected", "session.created", "session.status", "session.idle", "session.error", "message.updated",
        "message.part.updated", "message.part.delta", "permission.asked", "question.asked", "messageID", "modelID",
        "providerID", "parts", "system", "reject", "retry", "attempt", "next", "parentID", "ContextOverflowError",
        "ProviderAuthError", "MessageAbortedError", "ContentFilterError", "APIError", "statusCode", "isRetryable",
    )  # fmt: skip
    assert [path for path in paths if f'"{path}": {{' not in document] == []
    assert [name for name in names if f'"{name}"' not in document] == []


def running_in(folder: Path) -> list[str]:
    """Processes whose working directory is this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == folder:
                found.append((path / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


class Relay:
    """Stands before a server, and breaks connections when told to."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._pipes: set[asyncio.StreamWriter] = set()
        self.go = asyncio.Event()
        self.go.set()

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.close()
        self.cut()

    def pause(self) -> None:
        """Break every connection; new ones come to nothing until `go`."""
        self.go.clear()
        self.cut()

    def cut(self) -> None:
        for writer in self._pipes:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.go.wait()
        back, forth = await asyncio.open_connection("127.0.0.1", self._port)
        self._pipes |= {writer, forth}
        await asyncio.gather(self._pump(reader, forth), self._pump(back, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()
