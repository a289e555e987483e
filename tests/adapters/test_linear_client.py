"""The Linear client over a real socket, against a fake that checks every request with Linear's own schema."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import threading
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pilot.clients.linear import (
    Client,
    LinearError,
    NotFound,
    RateLimited,
    Refused,
    Unauthorized,
    Unavailable,
)
from pilot.clients.linear_types import (
    Action,
    Activity,
    Elicitation,
    Failure,
    Kind,
    Named,
    Response,
    Thought,
    instant,
)
from tests.e2e.linear_fake import APP, PERSONAL, LinearFake
from tests.e2e.linear_schema import SDK, check_payload

NOW = 1_700_000_000_000


@pytest.fixture
def fake() -> Iterator[LinearFake]:
    with LinearFake() as fake:
        yield fake


@pytest.fixture
async def client(fake: LinearFake) -> AsyncIterator[Client]:
    async with Client(PERSONAL, url=fake.url, clock=lambda: NOW) as client:
        yield client


@pytest.fixture
async def app(fake: LinearFake) -> AsyncIterator[Client]:
    async with Client(APP, url=fake.url, clock=lambda: NOW) as client:
        yield client


async def test_who_the_key_belongs_to(fake: LinearFake, client: Client, app: Client) -> None:
    ann, pilot = await client.viewer(), await app.viewer()

    assert (ann.actor.name, ann.actor.email, ann.actor.kind) == ("Ann", "ann@acme.test", Kind.USER)
    assert (pilot.actor.name, pilot.actor.kind) == ("pilot", Kind.APP)
    assert {ann.organization, pilot.organization} == {fake.world.organization["id"]}


@pytest.mark.parametrize(
    ("key", "bearer"), [("lin_api_bob", None), ("lin_oauth_x", None), ("0a1b", None), ("k", False)]
)
async def test_a_key_goes_out_as_its_kind_wants(fake: LinearFake, key: str, bearer: bool | None) -> None:
    sent = key if key in ("lin_api_bob", "k") else f"Bearer {key}"
    fake.keys = {sent: fake.world.ann}

    async with Client(key, url=fake.url, bearer=bearer) as client:
        assert (await client.viewer()).actor.name == "Ann"


async def test_an_issue_with_everything_about_it(fake: LinearFake, client: Client) -> None:
    world = fake.world
    issue = world.issue("Fix the login", "It **fails**.")
    fake.label(issue, "pilot")
    fake.says(issue, "since Monday")
    reply = world.comment(issue, "mine, too", None, externalUser={"id": "x1", "name": "Eve"}, parentId="p")
    reply["editedAt"] = reply["createdAt"]
    world.comment(issue, "synced", world.ann, botActor={"id": None, "name": None, "type": "github"})

    found = await client.issue("ENG-1")

    assert found == await client.issue(issue["id"])
    assert (found.identifier, found.title, found.description) == ("ENG-1", "Fix the login", "It **fails**.")
    assert (found.labels[0].name, found.team.key, found.state.name) == ("pilot", "ENG", "Todo")
    assert found.creator is not None
    assert (found.creator.email, found.delegate, found.project) == ("ann@acme.test", None, None)
    assert found.created_at == instant(issue["createdAt"]) < found.updated_at
    assert found.comments is not None
    assert [comment.body for comment in found.comments] == ["since Monday", "mine, too", "synced"]
    assert [comment.author and comment.author.kind for comment in found.comments] == [
        Kind.USER,
        Kind.EXTERNAL,
        Kind.BOT,
    ]
    assert [comment.edited_at is None for comment in found.comments] == [True, False, True]
    assert found.comments[1].parent == "p"


async def test_an_issue_without_words_or_creator(fake: LinearFake, client: Client) -> None:
    fake.world.issue("Bare", None)["creator"] = None

    found = await client.issue("ENG-1")

    assert (found.description, found.creator, found.comments) == ("", None, ())


async def test_comments_are_read_to_the_last_page(fake: LinearFake, client: Client) -> None:
    issue = fake.world.issue("Chatty")
    for number in range(120):
        fake.says(issue, str(number))

    found = await client.issue("ENG-1")

    assert [comment.body for comment in found.comments or ()] == [str(number) for number in range(120)]


async def test_a_list_without_an_end_is_an_error_and_not_a_part(fake: LinearFake, client: Client) -> None:
    issue = fake.world.issue("Endless")
    for number in range(1001):
        fake.says(issue, str(number))

    with pytest.raises(Refused, match="more than 1000"):
        await client.issue("ENG-1")


async def test_the_sweep_finds_what_has_the_label_and_changed_since(fake: LinearFake, client: Client) -> None:
    old, new, bare = (fake.world.issue(title) for title in ("old", "new", "bare"))
    fake.label(old, "pilot")
    since = instant(old["updatedAt"]) + 1
    fake.label(new, "Pilot")
    fake.label(bare, "docs")

    assert [issue.identifier for issue in await client.labelled_issues("pilot", since)] == ["ENG-2"]
    both = await client.labelled_issues("PILOT", since - 1)
    assert {issue.identifier for issue in both} == {"ENG-1", "ENG-2"}
    assert both[0].comments is None


async def test_the_sweep_reads_every_page(fake: LinearFake, client: Client) -> None:
    for number in range(130):
        fake.label(fake.world.issue(str(number)), "pilot")

    assert len({issue.id for issue in await client.labelled_issues("pilot", 0)}) == 130


async def test_who_added_a_label_last(fake: LinearFake, client: Client) -> None:
    issue, bob = fake.world.issue("Fix"), fake.world.person("Bob", "bob@acme.test")
    assert await client.labelled("ENG-1", "pilot") is None
    fake.label(issue, "pilot")
    fake.unlabel(issue, "pilot")
    first = await client.labelled("ENG-1", "pilot")
    fake.label(issue, "pilot", bob)
    fake.label(issue, "docs")

    last = await client.labelled("ENG-1", "Pilot")

    assert first is not None
    assert last is not None
    assert (first.actor and first.actor.name, last.actor and last.actor.name) == ("Ann", "Bob")
    assert first.id != last.id
    assert first.at < last.at


async def test_a_label_is_the_teams_own_before_the_organizations(fake: LinearFake, client: Client) -> None:
    world = fake.world
    shared, other = world.label("pilot"), world.label("pilot", team={"id": "elsewhere"})
    assert await client.label("Pilot", world.team["id"]) == Named(shared["id"], "pilot")
    own = world.label("pilot", team=world.team)
    assert await client.label("pilot", world.team["id"]) == Named(own["id"], "pilot")
    assert await client.label("nothing", world.team["id"]) is None
    assert await client.label("pilot", "elsewhere") == Named(other["id"], "pilot")


async def test_the_first_started_state_is_the_lowest(fake: LinearFake, client: Client) -> None:
    state = await client.started_state(fake.world.team["id"])
    assert state is not None
    assert (state.name, state.type) == ("In Progress", "started")
    for name in ("In Progress", "In Review"):
        del fake.world.states[name]
    assert await client.started_state(fake.world.team["id"]) is None


async def test_an_update_changes_what_it_names_and_nothing_else(fake: LinearFake, client: Client) -> None:
    world = fake.world
    issue = world.issue("Fix")
    for name in ("docs", "pilot"):
        fake.label(issue, name)
    running = world.label("pilot:running")

    await client.update_issue(
        "ENG-1",
        state=world.states["In Progress"]["id"],
        delegate=world.app["id"],
        add_labels=[running["id"]],
        remove_labels=[world.label("pilot")["id"]],
    )

    assert [label["name"] for label in issue["labels"]] == ["docs", "pilot:running"]
    assert (issue["state"]["name"], issue["delegate"]["name"], issue["title"]) == ("In Progress", "pilot", "Fix")
    await client.update_issue("ENG-1", remove_labels=[world.label("pilot")["id"]])
    assert len(issue["labels"]) == 2


LOSSES = [(after, how) for after in (True, False) for how in ("502", "cut", "garbage")]


@pytest.mark.parametrize("words", [("conflict on insert", "Taken."), ("Duplicate", "id is not unique")])
@pytest.mark.parametrize(("after", "how"), LOSSES)
async def test_a_comment_whose_answer_was_lost_is_one_comment(
    fake: LinearFake, client: Client, after: bool, how: str, words: tuple[str, str]
) -> None:
    fake.world.conflict = words
    issue, id = fake.world.issue("Fix"), uuid.uuid4()
    fake.lose_next("commentCreate", after=after, how=how)

    with pytest.raises(Unavailable):
        await client.comment(id, "ENG-1", "done")
    for _ in range(2):
        await client.comment(id, issue["id"], "done")

    assert fake.comments(issue) == ["done"]


@pytest.mark.parametrize(("after", "how"), LOSSES)
async def test_an_activity_whose_answer_was_lost_is_one_activity(
    fake: LinearFake, app: Client, after: bool, how: str
) -> None:
    session, id = fake.delegate(fake.world.issue("Fix")), uuid.uuid4()
    fake.lose_next("agentActivityCreate", after=after, how=how)

    with pytest.raises(Unavailable):
        await app.act(id, session["id"], Thought("queued"))
    await app.act(id, session["id"], Thought("queued"))

    assert [activity["content"]["body"] for activity in session["activities"]] == ["queued"]


async def test_a_refusal_for_another_reason_stays_one(fake: LinearFake, client: Client) -> None:
    fake.world.issue("Fix")

    with pytest.raises(Refused, match="should not be empty"):
        await client.comment(uuid.uuid4(), "ENG-1", " ")
    with pytest.raises(Refused, match="version 4"):
        await client.comment(uuid.uuid1(), "ENG-1", "words")
    with pytest.raises(NotFound, match="Issue"):
        await client.comment(uuid.uuid4(), "ENG-99", "words")


async def test_a_comment_is_written_anew_and_answered(fake: LinearFake, client: Client) -> None:
    issue, id = fake.world.issue("Fix"), uuid.uuid4()
    await client.comment(id, "ENG-1", "running")
    await client.comment(uuid.uuid4(), "ENG-1", "a reply", parent=str(id))

    for _ in range(2):
        await client.edit_comment(id, "done \ud800\x00")

    assert fake.comments(issue) == ["done \ufffd\ufffd", "a reply"]
    other = fake.says(issue, "hers", fake.world.person("Bob", "bob@acme.test"))
    with pytest.raises(Refused):
        await client.edit_comment(other["id"], "mine now")


ACTIVITIES: list[tuple[Activity, str]] = [
    (Thought("I look"), "active"),
    (Action("Ran", "make test", "ok"), "active"),
    (Action("Reading", "a.py"), "active"),
    (Elicitation("Which?"), "awaitingInput"),
    (Elicitation("Which?", ("a", "b")), "awaitingInput"),
    (Response("Done."), "complete"),
    (Failure("No."), "error"),
]


@pytest.mark.parametrize(("activity", "status"), ACTIVITIES, ids=lambda value: str(value)[:20])
async def test_a_session_follows_its_activities(fake: LinearFake, app: Client, activity: Activity, status: str) -> None:
    issue = fake.world.issue("Fix")
    session = fake.delegate(issue)
    assert (await app.session(session["id"])).status == "pending"

    await app.act(uuid.uuid4(), session["id"], activity)

    found = await app.session(session["id"])
    assert (found.status, found.issue, found.creator and found.creator.name) == (status, issue["id"], "Ann")
    if isinstance(activity, Elicitation) and activity.options:
        (told,) = session["activities"]
        assert told["signal"] == "select"
        assert [option["value"] for option in told["signalMetadata"]["options"]] == ["a", "b"]


async def test_what_is_ephemeral_goes_with_the_next(fake: LinearFake, app: Client) -> None:
    session = fake.delegate(fake.world.issue("Fix"))
    await app.act(uuid.uuid4(), session["id"], Thought("step 1"), ephemeral=True)
    await app.act(uuid.uuid4(), session["id"], Response("done"))

    assert [activity["content"]["body"] for activity in session["activities"]] == ["done"]
    with pytest.raises(Refused):
        await app.act(uuid.uuid4(), session["id"], Response("again"), ephemeral=True)


async def test_a_session_links_to_pages(fake: LinearFake, app: Client, client: Client) -> None:
    session = fake.delegate(fake.world.issue("Fix"))
    await app.link_session(session["id"], [("pilot", "https://pilot.test/1"), ("PR", "https://git.test/2")])

    assert [link["label"] for link in session["links"]] == ["pilot", "PR"]
    with pytest.raises(Refused):
        await client.link_session(session["id"], [])


async def test_a_sweep_finds_sessions_and_what_was_written_into_them(
    fake: LinearFake, app: Client, client: Client
) -> None:
    bob = fake.world.person("Bob", "bob@acme.test")
    issue = fake.world.issue("Fix")
    old, new = fake.delegate(issue), fake.delegate(issue, bob)
    robot = fake.world.session(issue, None)
    since = instant(old["updatedAt"]) + 1
    fake.prompt(new, "and the docs", bob)
    await app.act(uuid.uuid4(), new["id"], Thought("fine"))
    fake.prompt(new, "halt", stop=True)

    found = {session.id: session for session in await client.sessions(since)}

    assert found.keys() == {new["id"], robot["id"]}
    assert (found[new["id"]].app, found[new["id"]].issue) == (fake.world.app["id"], issue["id"])
    assert found[robot["id"]].creator is None
    prompts = await app.prompts(new["id"])
    assert [(prompt.body, prompt.author.name, prompt.stop) for prompt in prompts] == [
        ("and the docs", "Bob", False),
        ("halt", "Ann", True),
    ]
    assert await app.prompts(old["id"]) == []


async def test_a_sweep_does_not_read_all_that_ever_was(fake: LinearFake, client: Client) -> None:
    issue = fake.world.issue("Fix")
    sessions = [fake.world.session(issue, None) for _ in range(400)]
    since = instant(sessions[-3]["updatedAt"])

    assert len(await client.sessions(since)) == 3
    assert len(fake.calls) == 2
    assert len(await client.sessions(0)) == 400
    fake.world.latest_first = False
    assert len(await client.sessions(since)) == 3


@pytest.mark.parametrize("key", ["", "lin_api_x\n", "lin api", "lin_api_\u00e9"])
def test_what_can_be_no_key_is_said_so_at_once_and_not_shown(key: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        Client(key)

    assert not key or key not in "".join(traceback.format_exception(caught.value))


Asked = Callable[[Client], Awaitable[object]]
EVERY_CALL: list[Asked] = [
    lambda client: client.viewer(),
    lambda client: client.issue("ENG-1"),
    lambda client: client.labelled_issues("pilot", 0),
    lambda client: client.labelled("ENG-1", "pilot"),
    lambda client: client.label("pilot", "team"),
    lambda client: client.started_state("ENG"),
    lambda client: client.update_issue("ENG-1", state="s"),
    lambda client: client.comment(uuid.uuid4(), "ENG-1", "words"),
    lambda client: client.edit_comment("c", "words"),
    lambda client: client.session("s"),
    lambda client: client.prompts("s"),
    lambda client: client.sessions(0),
    lambda client: client.act(uuid.uuid4(), "s", Thought("t")),
    lambda client: client.link_session("s", []),
]


@pytest.mark.parametrize("call", EVERY_CALL)
async def test_a_bad_key_is_said_so_and_not_shown(fake: LinearFake, call: Asked) -> None:
    async with Client("lin_api_stolen", url=fake.url) as client:
        with pytest.raises(Unauthorized, match="check the API key") as caught:
            await call(client)

    assert "stolen" not in repr(caught.value)


@pytest.mark.parametrize("call", EVERY_CALL)
async def test_over_the_limit_every_call_says_so(fake: LinearFake, client: Client, call: Asked) -> None:
    fake.limit()
    with pytest.raises(RateLimited):
        await call(client)

    assert len(fake.calls) == 1


@pytest.mark.parametrize(
    ("until", "retry_after", "expected"),
    [
        (NOW + 1_800_000, None, NOW + 1_800_000),
        ((NOW + 1_800_000) // 1000, None, NOW + 1_800_000),
        (NOW + 1_800_000, 5, NOW + 5_000),
        (None, None, NOW + 60_000),
        (NOW - 1, None, NOW + 60_000),
    ],
)
async def test_the_limit_says_until_when(
    fake: LinearFake, client: Client, until: int | None, retry_after: int | None, expected: int
) -> None:
    fake.limit(until=until, retry_after=retry_after)
    with pytest.raises(RateLimited) as caught:
        await client.viewer()
    assert caught.value.until == expected

    fake.unlimit()
    assert (await client.viewer()).actor.name == "Ann"


@pytest.mark.parametrize("call", [EVERY_CALL[1], EVERY_CALL[3], *EVERY_CALL[5:11], *EVERY_CALL[12:]])
async def test_what_is_not_there_is_not_found(client: Client, call: Asked, fake: LinearFake) -> None:
    if call is EVERY_CALL[5]:
        fake.world.team["key"] = "OPS"
    with pytest.raises(NotFound, match="Could not find"):
        await call(client)


class _Says(BaseHTTPRequestHandler):
    status = 200
    body = b""
    headers_too: tuple[tuple[str, str], ...] = ()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(self.status)
        for name, value in self.headers_too:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def saying() -> Iterator[Callable[..., str]]:
    """A server that says one thing to whatever it is asked."""
    servers: list[tuple[HTTPServer, threading.Thread]] = []

    def start(status: int, body: bytes, *headers: tuple[str, str]) -> str:
        handler = type("Says", (_Says,), {"status": status, "body": body, "headers_too": headers})
        server = HTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}/graphql"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


FORBIDDEN = b'{"errors": [{"message": "no", "extensions": {"type": "forbidden"}}], "data": null}'
LOCKED = b'{"errors": [{"message": "busy", "extensions": {"type": "lock timeout"}}]}'
PARTLY = b'{"errors": [{"message": "x"}], "data": {"viewer": {"id": "1"}}}'


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b"", Unavailable),
        (200, b"[]", Unavailable),
        (200, b"{}", Unavailable),
        (200, b'{"data": {}}', Unavailable),
        (200, b'{"data": {"viewer": null}}', Unavailable),
        (200, b'{"data": {"viewer": {"id": 1}}}', Unavailable),
        (200, b"\xff\xfe{", Unavailable),
        (200, b"[" * 200_000, Unavailable),
        (301, b"", Unavailable),
        (404, b"<html>", Unavailable),
        (500, b"<html>", Unavailable),
        (503, LOCKED, Unavailable),
        (200, LOCKED, Unavailable),
        (400, b'{"errors": "x"}', Unavailable),
        (400, b'{"errors": [1]}', Refused),
        (200, FORBIDDEN, Refused),
        (403, FORBIDDEN, Refused),
        (200, PARTLY, Refused),
        (401, b"", Unauthorized),
        (429, b"slow down", RateLimited),
    ],
)
async def test_whatever_is_answered_is_one_of_a_few_errors(
    saying: Callable[..., str], status: int, body: bytes, expected: type[LinearError]
) -> None:
    url = saying(status, body, ("Location", "/elsewhere"))
    async with Client(PERSONAL, url=url) as client:
        with pytest.raises(LinearError) as caught:
            await client.viewer()

    assert type(caught.value) is expected
    assert PERSONAL not in str(caught.value)
    assert len(str(caught.value)) < 700


async def test_the_key_does_not_go_where_a_redirect_points(saying: Callable[..., str], fake: LinearFake) -> None:
    url = saying(307, b"", ("Location", fake.url))
    async with Client(PERSONAL, url=url) as client:
        with pytest.raises(Unavailable):
            await client.viewer()

    assert fake.calls == []


async def test_nobody_there_is_unavailable() -> None:
    async with Client(PERSONAL, url="http://127.0.0.1:9/graphql") as client:
        with pytest.raises(Unavailable, match="no answer"):
            await client.viewer()


async def test_a_write_that_is_not_done_is_refused(saying: Callable[..., str]) -> None:
    url = saying(200, b'{"data": {"issueUpdate": {"success": false}}}')
    async with Client(PERSONAL, url=url) as client:
        with pytest.raises(Refused, match="issueUpdate"):
            await client.update_issue("ENG-1", state="x")


def test_the_fake_refuses_what_linear_does_not_know() -> None:
    with pytest.raises(AssertionError, match="the fake is wrong"), LinearFake() as fake:  # noqa: PT012  # it ends there
        status, said, _ = _answer(fake, "query { viewer { id, nickname } }")
        assert status == 400
        assert "nickname" in said["errors"][0]["message"]
        status, said, _ = _answer(fake, "query Q($id: String!) { issue(id: $id) { id } }", id=7)
        assert status == 500
        assert len(fake.mistakes) == 2


def _answer(fake: LinearFake, query: str, **variables: object) -> tuple[int, dict[str, list[dict[str, str]]], object]:
    answer = fake.answer(PERSONAL, json.dumps({"query": query, "variables": variables}).encode())
    assert isinstance(answer, tuple)
    return answer


CHECK = """
import { createHmac } from 'node:crypto';
import { LinearWebhookClient } from '%s';
const [secret, body, signature] = process.argv.slice(1).map((text) => Buffer.from(text, 'base64').toString());
const client = new LinearWebhookClient(secret);
console.log(JSON.stringify(client.parseData(Buffer.from(body), signature)));
"""


def test_webhooks_of_the_fake_are_good_to_the_sdk() -> None:
    with LinearFake() as fake:
        issue = fake.world.issue("Fix", "umläut")
        fake.label(issue, "pilot")
        fake.says(issue, "words")
        session = fake.delegate(issue)
        fake.prompt(session, "stop it", stop=True)
        fake.hooks.settle()
        kinds = [(each.payload["type"], each.payload["action"]) for each in fake.hooks.deliveries]
        assert kinds == [
            ("Issue", "create"),
            ("Issue", "update"),
            ("Comment", "create"),
            ("Issue", "update"),
            ("AgentSessionEvent", "created"),
            ("AgentSessionEvent", "prompted"),
        ]
        labelled, prompted = fake.hooks.deliveries[1], fake.hooks.deliveries[-1]
        assert labelled.payload["updatedFrom"]["labelIds"] == []
        assert labelled.payload["data"]["labelIds"] == [fake.world.label("pilot")["id"]]
        assert prompted.payload["agentActivity"]["signal"] == "stop"
        script = CHECK % (SDK / "dist" / "webhooks" / "index.mjs").as_uri()
        for delivery in (labelled, prompted):
            texts = (fake.hooks.secret, delivery.body.decode(), delivery.headers["Linear-Signature"])
            arguments = [base64.b64encode(text.encode()).decode() for text in texts]
            done = subprocess.run(
                ["node", "--input-type=module", "-e", script, *arguments], capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, done.stderr
            assert delivery.payload["webhookId"] in done.stdout


def test_a_payload_of_another_shape_is_noticed() -> None:
    with LinearFake() as fake:
        fake.delegate(fake.world.issue("Fix"))
        payload = fake.hooks.deliveries[-1].payload
    check_payload(payload, "AgentSessionEventWebhookPayload")
    for wrong in (
        {**payload, "agentSession": {**payload["agentSession"], "state": "active"}},
        {key: value for key, value in payload.items() if key != "webhookTimestamp"},
        {**payload, "webhookTimestamp": "now"},
    ):
        with pytest.raises(ValueError):
            check_payload(wrong, "AgentSessionEventWebhookPayload")


async def test_webhooks_are_sent_in_order(saying: Callable[..., str]) -> None:
    with LinearFake(saying(202, b"")) as fake:
        fake.label(fake.world.issue("Fix"), "pilot")
        fake.hooks.send(fake.hooks.deliveries[0])
        await asyncio.to_thread(fake.hooks.settle)

        assert [delivery.status for delivery in fake.hooks.deliveries] == [202, 202]
