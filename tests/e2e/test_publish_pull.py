"""From a finished execution to its pull request, whatever gets lost on the way: real store, real git, real client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pilot.clients.github import GitHub
from pilot.clients.github_login import Token
from pilot.config.schema import ProjectSettings
from pilot.dispatch.deliveries import Deliveries, Owed
from pilot.domain.delivery import Effect, EffectKind, Pull, PullState
from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import Ending, GateResult, Outcome, Publication, Usage
from pilot.domain.policy import Settlement
from pilot.domain.ports import Finish
from pilot.domain.task import Project, Task
from pilot.publish.patience import TRIES
from pilot.publish.publisher import Publisher
from pilot.runner.git import Git
from pilot.store import Store, open_store
from tests.core.stage import MINUTE, Clock
from tests.core.worksite import ENVIRON, git, repository
from tests.e2e.git_host import GitHost
from tests.e2e.github_fake import GitHubFake
from tests.e2e.github_state import Item, Repo
from tests.store.bed import node

DAY = 24 * 60 * MINUTE


@dataclass
class World:
    """GitHub with its git, a project's repository, and a store that outlives its processes."""

    root: Path
    fake: GitHubFake
    host: GitHost
    repo: Repo
    checkout: Path
    token: str
    clock: Clock = field(default_factory=Clock)

    @property
    def own(self) -> ProjectSettings:
        return ProjectSettings.model_validate({"name": "api", "path": self.checkout, "github": "acme/api"})

    @property
    def pulls(self) -> list[Item]:
        return [item for item in self.repo.items.values() if item.pull]

    def work(self, branch: str, text: str, on: str) -> tuple[str, str]:
        """A commit on a branch: its hash and its tree."""
        before = git(self.checkout, "write-tree")
        (self.checkout / "new.py").write_text(text)
        git(self.checkout, "add", "new.py")
        tree = git(self.checkout, "write-tree")
        made = git(self.checkout, "commit-tree", "-p", on, "-m", "Fix it", tree)
        git(self.checkout, "read-tree", before)
        (self.checkout / "new.py").unlink()
        git(self.checkout, "update-ref", f"refs/heads/{branch}", made)
        return made, tree

    @asynccontextmanager
    async def process(self) -> AsyncIterator[Process]:
        """One pilot, from its start to its end; what it had in memory is gone then."""
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(f"sqlite:///{self.root}/pilot.db", clock=self.clock))
            github = await stack.enter_async_context(
                GitHub(Token(self.token), base_url=self.fake.url, spacing=0, waits=(), clock=self.clock)
            )
            number = len(list(self.root.glob("node-*")))
            (self.root / f"node-{number}").touch()
            await store.queue.start_node(node(f"n{number}"), DAY)
            (project,) = await store.queue.register([("host:/src/api/.git", "api", "/src/api", None)])
            yield Process(self, store, github, project, f"n{number}")


@dataclass
class Process:
    world: World
    store: Store
    github: GitHub
    project: Project
    node: str

    @property
    def publisher(self) -> Publisher:
        return Publisher(
            outbox=self.store.outbox,
            pulls=self.store.pulls,
            github=self.github,
            base_url=self.world.fake.url,
            own=lambda _: self.world.own,
            state_dir=self.world.root,
            redact=lambda text: text.replace("hunter2222", "[redacted]"),
            clock=self.world.clock,
            git=Git(environ=ENVIRON),
        )

    def deliveries(self, **more: Any) -> Deliveries:
        given: dict[str, Any] = {
            "handlers": {EffectKind.PUBLISH: self.publisher, EffectKind.REPORT: told},
            "projects": lambda: [self.project.id],
            "clock": self.world.clock,
            "poll": 0.05,
            "jitter": lambda: 0.0,
        }
        return Deliveries(self.store.outbox, self.node, **given | more)

    async def finished(self, text: str = "b = 2\n", *, on: str = "main", task_id: str = "GH-1", **more: Any) -> int:
        """An execution that has made a commit and is through its gate."""
        task = Task(
            project_id=self.project.id,
            task_id=task_id,
            title="Fix the crash",
            backend="claude-code",
            origin={"source": "github", "ref": "acme/api#1", "url": "", "actor": "mona", "at": 0},
        )
        new = await self.store.queue.enqueue(task)
        (execution,) = await self.store.queue.claim(self.node, lease=MINUTE, projects=[self.project.id])
        assert execution.id == new.id
        branch = f"pilot/{task_id}"
        head, tree = self.world.work(branch, text, on)
        given: dict[str, Any] = {
            "ending": Ending.DONE,
            "branch": branch,
            "base_sha": git(self.world.checkout, "rev-parse", "main"),
            "head_sha": head,
            "tree": tree,
            "delivered": True,
            "text": "I fixed it with hunter2222.",
            "usage": Usage(100, 10, 0.5),
            "gates": (GateResult("test", "test", "make test", True, 0, 1500, tree),),
            "publication": Publication(repo="acme/api", base="main"),
        }
        outcome = Outcome(**given | more)
        await self.store.queue.finish(
            Finish(execution=execution, outcome=outcome, settlement=Settlement(to=Status.COMPLETED))
        )
        return new.id

    async def deliver(self, id: int) -> Owed | None:
        return await self.deliveries().drain(id, 30)

    async def taken(self) -> Effect:
        """The publication that is owed, leased."""
        told_of = Deliveries(
            self.store.outbox, self.node, {EffectKind.REPORT: told}, lambda: [self.project.id], self.world.clock
        )
        while await told_of._start(max=8):
            await told_of._ended(5)
        (effect,) = await self.store.outbox.take(self.node, [EffectKind.PUBLISH], lease=MINUTE)
        return effect

    async def until_delivered(self, id: int) -> int:
        """Deliver, and let the pauses pass; how often it took."""
        for times in range(1, 8):
            if await self.deliver(id) is None:
                return times
            self.world.clock.advance(10 * MINUTE)
        raise AssertionError(await self.owed(id))

    async def owed(self, id: int) -> list[tuple[Any, ...]]:
        return await self.store.database.read(
            "SELECT kind, tries, error FROM outbox WHERE delivered_at IS NULL AND execution_id = :id", {"id": id}
        )

    async def row(self, id: int) -> Execution:
        return await self.store.queue.get(id)

    async def pull(self, id: int) -> Pull:
        found = await self.store.pulls.of(id)
        assert found is not None
        return found


async def told(_: Effect) -> None:
    """What goes to the ticket is others' business."""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    checkout = repository(tmp_path / "api")
    with GitHubFake() as fake:
        host = GitHost(fake, tmp_path / "host")
        repo = fake.repo("acme/api", private=True, mona="admin", robot="write")
        fake.issue(repo, "Crash")
        host.take(repo, checkout)
        yield World(tmp_path, fake, host, repo, checkout, fake.token("robot"))


async def test_a_finished_execution_becomes_one_pull_request(world: World) -> None:
    async with world.process() as pilot:
        id = await pilot.finished()
        assert await pilot.deliver(id) is None
        row, pull = await pilot.row(id), await pilot.pull(id)

    (item,) = world.pulls
    assert (item.title, item.base, item.head, item.draft, item.author.login) == (
        "Fix the crash", "main", "pilot/GH-1", True, "robot",
    )  # fmt: skip
    assert row.head_sha == world.repo.head("pilot/GH-1") == pull.head_sha == pull.pushed_sha
    assert (row.delivery, row.pr_url, pull.number, pull.state) == ("pr_open", pull.url, item.number, PullState.OPEN)
    assert "Closes #1\n" in item.body
    assert "1 file, +1 -0" in item.body
    assert "hunter2222" not in item.body
    tree = git(world.checkout, "rev-parse", f"{row.head_sha}^{{tree}}")
    assert f"on exactly this tree: `{tree}`" in item.body
    assert item.body.endswith(f"<!-- pilot:execution={id} -->")


LOSSES = [("git-receive-pack", ""), ("POST", r"/pulls$"), ("GET", r"/pulls(/\d+)?$"), ("GET", r"/user$")]


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize(("what", "path"), LOSSES, ids=["push", "create", "find", "me"])
@pytest.mark.parametrize("restart", [True, False], ids=["restarted", "going-on"])
async def test_whatever_answer_is_lost_there_is_one_pull_request(
    world: World, what: str, path: str, after: bool, restart: bool
) -> None:
    def lose() -> None:
        if what == "git-receive-pack":
            world.host.lose_next(what, after=after)
        else:
            world.fake.lose_next(what, path, after=after)

    async with world.process() as pilot:
        id = await pilot.finished()
        lose()
        left = await pilot.deliver(id)
        assert left is not None
        assert "502" in left.reason
        if not restart:
            world.clock.advance(10 * MINUTE)
            assert await pilot.deliver(id) is None
    world.clock.advance(10 * MINUTE)
    async with world.process() as pilot:
        assert await pilot.deliver(id) is None
        assert (await pilot.row(id)).delivery == "pr_open"
        assert (await pilot.pull(id)).state is PullState.OPEN
    assert len(world.pulls) == 1


@pytest.mark.parametrize("point", ["pushed", "opened", "delivered"])
async def test_a_process_that_dies_before_it_could_write_what_it_did(world: World, point: str) -> None:
    """What is written to the store last is what a killed process leaves out."""

    class Killed(BaseException):
        pass

    class Until:
        def __init__(self, real: Any) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            async def dies(*_args: Any, **_more: Any) -> Any:
                raise Killed

            return dies if name == point else getattr(self._real, name)

    async with world.process() as pilot:
        id = await pilot.finished()
        effect = await pilot.taken()
        publisher = pilot.publisher
        object.__setattr__(publisher, "pulls", Until(pilot.store.pulls))
        if point == "delivered":
            await publisher(effect)
        else:
            with pytest.raises(Killed):
                await publisher(effect)
    world.clock.advance(2 * MINUTE)
    async with world.process() as pilot:
        assert await pilot.deliver(id) is None
        pull = await pilot.pull(id)
        assert (pull.state, pull.pushed_sha) == (PullState.OPEN, pull.head_sha)
        events = await pilot.store.database.read("SELECT type FROM events WHERE type = 'pull.opened'")
        assert len(events) == 1
    assert len(world.pulls) == 1
    assert sum(asked.method == "POST" and "receive" in asked.service for asked in world.host.requests) == 1


async def test_several_nodes_at_once_open_one(world: World) -> None:
    async with world.process() as one, world.process() as two, world.process() as three:
        ids = [await one.finished(f"b = {n}\n", task_id=f"GH-{n}") for n in range(4)]
        loops = [each.deliveries() for each in (one, two, three)]
        tasks = [asyncio.create_task(loop.run()) for loop in loops]
        for id in ids:
            async with asyncio.timeout(20):
                while any(kind == "publish" for kind, _, _ in await one.owed(id)):
                    world.clock.advance(1000)
                    await asyncio.sleep(0.05)
        for loop in loops:
            loop.stop()
        await asyncio.gather(*tasks)
    assert sorted(item.head for item in world.pulls) == [f"pilot/GH-{n}" for n in range(4)]


async def test_two_that_believe_they_have_the_same_effect_open_one(world: World) -> None:
    async with world.process() as one, world.process() as two:
        id = await one.finished()
        effect = await one.taken()

        results = await asyncio.gather(one.publisher(effect), two.publisher(effect), return_exceptions=True)

        assert len(world.pulls) == 1, results
        world.clock.advance(2 * MINUTE)
        await two.until_delivered(id)
    assert len(world.pulls) == 1


async def test_later_work_of_the_task_goes_into_the_same_pull_request(world: World) -> None:
    async with world.process() as pilot:
        first = await pilot.finished()
        await pilot.until_delivered(first)
        head = (await pilot.row(first)).head_sha
        assert head is not None
        world.fake.edit(world.repo, 2, body=f"Please read me.\n\n{world.pulls[0].body}", title="Better title")

        second = await pilot.finished("b = 3\n", on=head)
        await pilot.until_delivered(second)

        (item,) = world.pulls
        row = await pilot.row(second)
        assert world.repo.head("pilot/GH-1") == row.head_sha
        assert row.pr_url == (await pilot.row(first)).pr_url
        assert item.title == "Better title", "what a person wrote stays"
        assert item.body.startswith("Please read me.\n\n<!-- pilot:begin -->")
        assert item.body.count("pilot:execution=") == 1
        assert item.body.endswith(f"<!-- pilot:execution={second} -->")


async def test_an_older_effect_publishes_nothing_once_there_is_later_work(world: World) -> None:
    async with world.process() as pilot:
        first = await pilot.finished()
        head = (await pilot.row(first)).head_sha
        assert head is not None
        effect = await pilot.taken()
        second = await pilot.finished("b = 3\n", on=head)

        assert await pilot.publisher(effect) == {"nothing": f"execution {second} has gone on from there"}

        assert world.repo.head("pilot/GH-1") is None
        assert not world.pulls


async def test_an_open_pull_request_of_somebody_elses_is_adopted_and_keeps_its_words(world: World) -> None:
    async with world.process() as pilot:
        id = await pilot.finished()
        effect = await pilot.taken()
        world.fake.lose_next("POST", r"/pulls$", after=False)
        with pytest.raises(Exception, match="502"):
            await pilot.publisher(effect)
        words = "My words <!-- pilot:begin -->also mine<!-- pilot:execution=1 -->"
        number = world.fake.pull(world.repo, "pilot/GH-1", "Mine", words)
        world.clock.advance(2 * MINUTE)

        await pilot.until_delivered(id)

        assert (await pilot.pull(id)).number == number
    (item,) = world.pulls
    assert (item.title, item.body) == ("Mine", words)


@pytest.mark.parametrize("end", ["merged", "closed"])
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_a_pull_request_that_has_ended_meanwhile_is_not_opened_again(world: World, end: str, known: bool) -> None:
    """Also when pilot had died before it could write down that there is one."""
    async with world.process() as pilot:
        id = await pilot.finished()
        effect = await pilot.taken()
        await pilot.publisher(effect)
        if not known:
            await sql(pilot, "UPDATE pulls SET state = 'owed', number = NULL, url = NULL, opened_at = NULL")
        (item,) = world.pulls
        if end == "merged":
            world.fake.merge(world.repo, item.number)
        else:
            world.fake.close(world.repo, item.number)
        world.host.git("-C", str(world.repo.git), "update-ref", "-d", "refs/heads/pilot/GH-1")
        world.clock.advance(2 * MINUTE)

        await pilot.until_delivered(id)

        pull = await pilot.pull(id)
        assert (pull.state, pull.number) == (end, item.number)
        assert (await pilot.row(id)).delivery == end
    assert len(world.pulls) == 1
    assert world.repo.head("pilot/GH-1") is None, "no branch came back to life"


@pytest.mark.parametrize("end", ["merged", "closed"])
async def test_one_that_ended_before_later_work_came_to_it_is_not_said_to_hold_it(world: World, end: str) -> None:
    """A person was quicker than the push: the work gets a pull request of its own."""
    async with world.process() as pilot:
        first = await pilot.finished()
        await pilot.until_delivered(first)
        old = (await pilot.row(first)).head_sha
        assert old is not None
        second = await pilot.finished("b = 7\n", on=old)
        (item,) = world.pulls
        if end == "merged":
            world.fake.merge(world.repo, item.number)
        else:
            world.fake.close(world.repo, item.number)

        await pilot.until_delivered(second)

        assert ((await pilot.row(first)).delivery, (await pilot.row(second)).delivery) == (end, "pr_open")
        assert (await pilot.pull(second)).number == world.pulls[1].number
    assert [item.open for item in world.pulls] == [False, True]


async def sql(pilot: Process, text: str) -> None:
    from pilot.store.database import Statement

    def operation(items: Any) -> Any:
        yield Statement(text, {})
        return [None] * len(items)

    await pilot.store.database.write(operation, None)


async def test_a_new_run_after_a_closed_pull_request_opens_a_new_one(world: World) -> None:
    async with world.process() as pilot:
        first = await pilot.finished()
        await pilot.until_delivered(first)
        old = (await pilot.row(first)).head_sha
        assert old is not None
        pull = await pilot.pull(first)
        world.fake.close(world.repo, world.pulls[0].number)
        await pilot.store.pulls.saw(pull.id, state=PullState.CLOSED)
        git(world.checkout, "update-ref", f"refs/pilot/old/{old}", old)  # as the runner keeps it

        second = await pilot.finished("b = 7\n")
        await pilot.until_delivered(second)

        assert (await pilot.pull(second)).state is PullState.OPEN
    assert [item.open for item in world.pulls] == [False, True]


async def test_a_strangers_commits_end_it_in_words_and_nothing_is_lost(world: World) -> None:
    async with world.process() as pilot:
        world.work("pilot/GH-1", "theirs = 1\n", "main")
        git(world.checkout, "push", "--quiet", str(world.repo.git), "pilot/GH-1")
        theirs = world.repo.head("pilot/GH-1")
        id = await pilot.finished()
        assert await pilot.deliver(id) is None

        pull = await pilot.pull(id)
        assert pull.state is PullState.FAILED
        assert "commits that pilot did not make" in (pull.error or "")
        failures = await pilot.store.database.read("SELECT data FROM events WHERE type = 'delivery.failed'")
        assert len(failures) == 1
        assert (await pilot.row(id)).status is Status.COMPLETED
    assert world.repo.head("pilot/GH-1") == theirs


async def test_nothing_to_merge_is_said(world: World) -> None:
    async with world.process() as pilot:
        id = await pilot.finished()
        (row, bare) = await pilot.row(id), str(world.repo.git)
        git(world.checkout, "push", "--quiet", bare, f"{row.head_sha}:refs/heads/main")
        assert await pilot.deliver(id) is None
        assert "the base branch has all of this work" in ((await pilot.pull(id)).error or "")
    assert not world.pulls


async def test_a_base_that_is_not_there_is_said(world: World) -> None:
    async with world.process() as pilot:
        id = await pilot.finished(publication=Publication(repo="acme/api", base="trunk"))
        assert await pilot.deliver(id) is None
        assert re.search("base", (await pilot.pull(id)).error or "")


async def test_a_renamed_repository_is_found_under_its_new_name(world: World) -> None:
    async with world.process() as pilot:
        first = await pilot.finished()
        await pilot.until_delivered(first)
        world.fake.rename(world.repo, "service")
        head = (await pilot.row(first)).head_sha
        assert head is not None

        second = await pilot.finished("b = 3\n", on=head)
        other = await pilot.finished("c = 3\n", task_id="GH-2")
        assert await pilot.deliver(second) is None
        assert await pilot.deliver(other) is None

        assert world.repo.head("pilot/GH-1") == (await pilot.row(second)).head_sha
    assert [item.head for item in world.pulls] == ["pilot/GH-1", "pilot/GH-2"]


async def test_a_repository_without_drafts_gets_an_ordinary_one(world: World) -> None:
    world.repo.drafts = False
    async with world.process() as pilot:
        id = await pilot.finished()
        await pilot.until_delivered(id)
    assert [item.draft for item in world.pulls] == [False]


@pytest.mark.parametrize("what", ["token", "role", "repository"])
async def test_what_a_person_can_mend_is_waited_for_and_goes_on_by_itself(world: World, what: str) -> None:
    async with world.process() as pilot:
        id = await pilot.finished()
        if what == "token":
            world.fake.revoke(world.token)
        elif what == "role":
            world.repo.roles["robot"] = "read"
        else:
            del world.fake.repos["acme/api"]
        for _ in range(3):
            left = await pilot.deliver(id)
            assert left is not None
            assert world.token not in left.reason
            world.clock.advance(10 * MINUTE)
        assert (await pilot.pull(id)).state is PullState.OWED
        parks = await pilot.store.database.read("SELECT * FROM parks")
        assert not parks, "what is wrong with a repository is no agent's fault"

        world.fake.tokens[world.token] = world.fake.user("robot")
        world.repo.roles["robot"] = "write"
        world.fake.repos["acme/api"] = world.repo
        await pilot.until_delivered(id)
    assert len(world.pulls) == 1


async def test_a_day_is_long_enough(world: World) -> None:
    world.fake.revoke(world.token)
    async with world.process() as pilot:
        id = await pilot.finished()
        assert await pilot.deliver(id) is not None
        world.clock.advance(DAY + MINUTE)
        for _ in range(TRIES - 1):  # a day in which nobody was there is no trial
            assert await pilot.deliver(id) is not None
            world.clock.advance(6 * MINUTE)
        assert await pilot.deliver(id) is None
        pull = await pilot.pull(id)
        assert pull.state is PullState.FAILED
        assert (pull.error or "").startswith("given up after a day: ")


async def test_a_rate_limit_is_waited_out_as_long_as_it_takes(world: World) -> None:
    async with world.process() as pilot:
        id = await pilot.finished()
        world.fake.use_up(1800)
        left = await pilot.deliver(id)
        assert left is not None
        assert "rate limit" in left.reason
        ((at,),) = await pilot.store.database.read(
            "SELECT available_at FROM outbox WHERE delivered_at IS NULL AND kind = 'publish'"
        )
        assert at > world.clock.now + 20 * MINUTE
        world.fake.recover()
        world.clock.now = at
        assert await pilot.deliver(id) is None


async def test_the_token_is_in_no_file(world: World) -> None:
    async with world.process() as pilot:
        id = await pilot.finished()
        world.host.lose_next("git-receive-pack")
        world.fake.lose_next("POST", r"/pulls$")
        await pilot.until_delivered(id)
        world.fake.revoke(world.token)
        other = await pilot.finished("c = 1\n", task_id="GH-2")
        await pilot.deliver(other)
    for path in world.root.rglob("*"):
        if path.is_file():
            assert world.token.encode() not in path.read_bytes(), path
