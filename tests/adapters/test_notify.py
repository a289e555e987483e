"""Who is told what: questions, failures and parks, in Telegram and by signed POSTs; each once, and taken back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.execution import Execution, Status
from pilot.domain.outcome import FailureClass, Publication
from tests.adapters.hook_server import SECRET, HookServer
from tests.adapters.telegram_stage import ANN_ID, BOB_ID, Stage, stage, until
from tests.e2e.telegram_fake import ANN, BOB, TelegramFake, group
from tests.store.bed import asked, broken, done, limited, task

TEAM = -1001


@pytest.fixture
def fake() -> Iterator[TelegramFake]:
    with TelegramFake() as fake:
        for who in (ANN, BOB):
            fake.says(who, "/projects")
        yield fake


@pytest.fixture
def hook() -> Iterator[HookServer]:
    with HookServer() as hook:
        yield hook


@pytest.fixture
async def bot(fake: TelegramFake, hook: HookServer, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, fake, told=[BOB_ID], webhooks=[hook.url]) as here:
        here.start()
        await here.shown("api\nweb", chat=BOB_ID)
        yield here


async def begun(bot: Stage, task_id: str = "GH-46") -> Execution:
    """An execution of a ticket elsewhere that runs."""
    project = (await bot.store.history.projects())[0]
    await bot.store.queue.enqueue(task(project, task_id, title="Paint it", source="github"))
    return await bot.claim()


# Questions


async def test_a_question_is_told_everywhere_and_answered_from_anywhere(bot: Stage, hook: HookServer) -> None:
    execution = await begun(bot)
    await bot.store.queue.finish(asked(execution, "what colour? hunter2", options=("red", "hunter2 blue")))
    message = await bot.shown("❓ 1 · api · GH-46 · Paint it\nwhat colour? [redacted]", chat=BOB_ID)
    await until(lambda: hook.posts)
    (post,) = hook.posts
    assert post.signed_by(SECRET)
    assert post.headers["x-pilot-event"] == "execution.asked"
    assert post.headers["x-pilot-delivery"] == post.document["id"]
    document = post.document
    assert document["execution"]["id"] == 1
    assert document["execution"]["status"] == "needs_human"
    assert document["question"]["options"] == ["red", "[redacted] blue"]
    assert "what colour? [redacted]" in document["text"]
    assert "pilot answer 1 TEXT" in document["text"]
    assert b"hunter2" not in post.body

    assert (
        await bot.click(BOB, message, "[redacted] blue", chat=BOB_ID) == "1 goes on with your answer: [redacted] blue"
    )
    await bot.shown("Answered by Bob B (Telegram 12): [redacted] blue", chat=BOB_ID)
    assert not bot.buttons(message, chat=BOB_ID)
    assert (await bot.store.queue.get(1)).feedback == "hunter2 blue"
    await bot.settled()
    assert len(hook.posts) == 1


async def test_a_question_that_was_answered_elsewhere_is_taken_back(bot: Stage) -> None:
    execution = await begun(bot)
    await bot.store.queue.finish(asked(execution, "what colour?", options=("red",)))
    message = await bot.shown("what colour?\n", chat=BOB_ID)
    await bot.store.queue.answer(1, "green", "@octocat in GitHub")

    await bot.shown("Answered by @octocat in GitHub: green", chat=BOB_ID)
    assert not bot.buttons(message, chat=BOB_ID)


async def test_a_question_of_what_ended_is_taken_back(bot: Stage) -> None:
    execution = await begun(bot)
    await bot.store.queue.finish(asked(execution, "what colour?"))
    await bot.shown("what colour?\n", chat=BOB_ID)
    await bot.store.queue.cancel(1, "ann")

    await bot.shown("Nobody has to answer this any more.", chat=BOB_ID)


async def test_a_reply_to_what_was_told_is_an_answer(bot: Stage) -> None:
    execution = await begun(bot)
    await bot.store.queue.finish(asked(execution, "what colour?"))
    message = await bot.shown("what colour?\n", chat=BOB_ID)
    bot.fake.says(BOB, "green", reply_to=message)

    await bot.shown("1 goes on with your answer: green", chat=BOB_ID)
    assert (await bot.store.queue.get(1)).status is Status.QUEUED


async def test_questions_one_after_the_other_keep_their_own_messages(bot: Stage) -> None:
    execution = await begun(bot)
    await bot.store.queue.finish(asked(execution, "what colour?", options=("red",)))
    first = await bot.shown("what colour?\n", chat=BOB_ID)
    await bot.settled()
    await bot.store.queue.answer(1, "red", "cli")
    await bot.store.queue.finish(asked(await bot.claim(), "how dark?", options=("very",)))
    second = await bot.shown("how dark?\n", chat=BOB_ID)
    await bot.shown("Answered by cli: red", chat=BOB_ID)

    assert not bot.buttons(first, chat=BOB_ID)
    assert list(bot.buttons(second, chat=BOB_ID)) == ["very"]
    await bot.store.queue.cancel(1, "ann")
    await until(lambda: not bot.buttons(second, chat=BOB_ID))
    assert "Answered by cli: red" in bot.fake.text(BOB_ID, first)


async def test_who_asked_for_it_in_that_chat_is_told_once(fake: TelegramFake, tmp_path: Path) -> None:
    async with stage(tmp_path, fake, told=[BOB_ID, ANN_ID]) as bot:
        bot.start()
        fake.says(ANN, "/run api paint it")
        await bot.shown("queued")
        await bot.settled()
        await bot.store.queue.finish(asked(await bot.claim(), "what colour?"))
        await bot.shown("what colour?\n")
        await bot.shown("what colour?\n", chat=BOB_ID)
        await bot.settled()

        assert len([text for text in fake.texts(ANN_ID) if "what colour?\n" in text]) == 1


async def test_what_is_answered_before_it_could_be_told_is_not_told(fake: TelegramFake, tmp_path: Path) -> None:
    async with stage(tmp_path, fake, told=[BOB_ID]) as bot:
        bot.start(delivering=False)
        await bot.store.queue.finish(asked(await begun(bot), "what colour?"))
        await bot.store.queue.answer(1, "green", "cli")
        bot.start(reading=False)
        await bot.settled()

        assert not bot.shows("what colour?", chat=BOB_ID)


async def test_what_is_answered_while_it_is_being_told_is_taken_back(bot: Stage) -> None:
    bot.fake.hold_next("sendMessage")
    await bot.store.queue.finish(asked(await begun(bot), "what colour?", options=("red",)))
    await until(bot.fake.held)
    await bot.store.queue.answer(1, "green", "cli")

    async def noticed() -> bool:
        rows = await bot.store.database.read("SELECT count(*) FROM outbox WHERE kind = 'notify' AND delivered_at > 0")
        return bool(rows == [(2,)])

    await until(noticed)
    bot.fake.let_go()
    await bot.shown("Answered by cli: green", chat=BOB_ID)


async def test_groups_are_told_too(fake: TelegramFake, tmp_path: Path) -> None:
    fake.says(BOB, "hello", chat=group(TEAM))
    async with stage(tmp_path, fake, told=[TEAM], groups=[TEAM]) as bot:
        bot.start()
        await bot.store.queue.finish(asked(await begun(bot), "what colour?", options=("red",)))
        message = await bot.shown("what colour?\n", chat=TEAM)
        assert await bot.click(ANN, message, "red", chat=TEAM) == "1 goes on with your answer: red"


# Failures and parks


async def test_a_failure_is_told_with_what_to_do(bot: Stage, hook: HookServer) -> None:
    await bot.store.queue.finish(broken(await begun(bot)))
    message = await bot.shown("❌ 1 · api · GH-46 · Paint it\nfailed", chat=BOB_ID)
    await until(lambda: hook.posts)

    assert "agent: it broke" in bot.fake.text(BOB_ID, message)
    assert "/retry 1 runs it anew." in bot.fake.text(BOB_ID, message)
    assert "pilot retry 1 runs it anew." in hook.posts[0].document["text"]
    assert hook.posts[0].document["event"] == "execution.failed"
    await bot.settled()
    assert len(hook.posts) == 1


async def test_a_red_pull_request_that_is_repaired_no_more_is_told(bot: Stage, hook: HookServer) -> None:
    publication = Publication(repo="acme/api", base="main")
    await bot.store.queue.finish(done(await begun(bot), head_sha="a" * 40, publication=publication))
    pull = await bot.store.pulls.of(1)
    assert pull is not None
    await bot.store.pulls.opened(pull.id, number=7, url="https://x/7", head_sha="a" * 40)
    await bot.store.pulls.saw(pull.id, checks="failed", red=["ci"], stuck="2 of 2 repairs did not help")

    await bot.shown(
        "⚠️ 1 · api · GH-46 · Paint it\nit is red, and a person has to look: 2 of 2 repairs did not help\n"
        "pull request: https://x/7 (checks failed: ci)",
        chat=BOB_ID,
    )
    await until(lambda: hook.posts)
    assert hook.posts[0].document["event"] == "pull.repairs_used_up"


async def test_a_park_is_told_with_its_end(bot: Stage, hook: HookServer) -> None:
    until_ms = bot.store.database.clock() + 3_600_000
    await bot.store.queue.finish(limited(await begun(bot), until_ms))

    message = await bot.shown("⏸ agent is parked until 20", chat=BOB_ID)
    assert "come back later\nIt goes on by itself then." in bot.fake.text(BOB_ID, message)
    await until(lambda: hook.posts)
    document = hook.posts[0].document
    assert (document["event"], document["execution"]) == ("backend.parked", document["execution"])
    assert document["data"]["backend"] == "agent"


async def test_a_park_without_an_end_says_what_to_do(bot: Stage) -> None:
    await bot.store.queue.finish(limited(await begun(bot), None, failure=FailureClass.AUTH))

    message = await bot.shown("⏸ agent is parked until somebody mends it", chat=BOB_ID)
    assert bot.fake.text(BOB_ID, message).endswith("Then: pilot backend unpark agent")


async def test_nobody_is_told_when_nobody_wants_to_be(fake: TelegramFake, tmp_path: Path) -> None:
    async with stage(tmp_path, fake) as bot:
        bot.start()
        await bot.store.queue.finish(broken(await begun(bot)))
        await bot.settled()

        assert all("failed" not in text for text in [*fake.texts(ANN_ID), *fake.texts(BOB_ID)])


# Targets in trouble


async def test_a_target_that_is_down_holds_up_nobody_else(
    bot: Stage, hook: HookServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.dispatch.deliveries.FIRST", 60_000)
    hook.answers += [(503, {})]
    await bot.store.queue.finish(broken(await begun(bot)))
    await bot.shown("❌ 1", chat=BOB_ID)
    await bot.store.queue.finish(broken(await begun(bot, "GH-47")))
    await bot.shown("❌ 2", chat=BOB_ID)
    await until(lambda: hook.posts)

    async def put_off() -> bool:
        return any("503" in (error or "") for _, error in await bot.owed())

    await until(put_off)

    async def only_the_webhook() -> bool:
        owed = await bot.owed()
        return len(owed) == 2 and all(":webhook:" in key for key, _ in owed)

    await until(only_the_webhook)
    assert len(hook.posts) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_lost_answer_is_a_second_post_of_the_same_name(
    bot: Stage, hook: HookServer, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    monkeypatch.setattr("pilot.dispatch.deliveries.FIRST", 100)
    bot.fake.lose_next("sendMessage", after=after)
    hook.answers += [(502, {})]
    await bot.store.queue.finish(broken(await begun(bot)))
    await until(lambda: len(hook.posts) == 2)
    await bot.settled()

    assert len({post.headers["x-pilot-delivery"] for post in hook.posts}) == 1
    assert len({post.body for post in hook.posts}) == 1
    assert len([text for text in bot.fake.texts(BOB_ID) if "failed" in text]) == (2 if after else 1)


async def test_a_webhook_that_refuses_is_given_up_and_does_not_call_for_more(bot: Stage, hook: HookServer) -> None:
    hook.answers += [(404, {})]
    await bot.store.queue.finish(broken(await begun(bot)))
    await until(lambda: hook.posts)
    await bot.settled()

    (failure,) = await bot.store.history.events(types=["delivery.failed"])
    assert failure.data["kind"] == "tell"
    assert "127.0.0.1 answered 404" in failure.data["reason"]
    assert "hidden" not in failure.data["reason"]
    assert len(hook.posts) == 1
    rows = await bot.store.database.read("SELECT lane, key, payload, coalesce(error, '') FROM outbox")
    assert "hidden" not in str(rows)


async def test_retry_after_is_heeded(bot: Stage, hook: HookServer) -> None:
    hook.answers += [(429, {"Retry-After": "1000"})]
    await bot.store.queue.finish(broken(await begun(bot)))
    await until(lambda: hook.posts)

    async def put_off() -> bool:
        rows = await bot.store.database.read("SELECT available_at FROM outbox WHERE tries > 0 AND kind = 'tell'")
        now = bot.store.database.clock()
        return any(990_000 < at - now <= 1_000_000 for (at,) in rows)

    await until(put_off)


async def test_a_chat_that_blocked_the_bot_is_given_up(bot: Stage) -> None:
    bot.fake.block(BOB)
    await bot.store.queue.finish(broken(await begun(bot)))
    await bot.settled()

    (failure,) = await bot.store.history.events(types=["delivery.failed"])
    assert "blocked" in failure.data["reason"]


async def test_what_this_node_does_not_know_is_left_to_others_until_it_is_old(
    fake: TelegramFake, hook: HookServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage(tmp_path, fake, webhooks=[hook.url]) as bot:
        bot.start(reading=False)
        real = bot.store.outbox.add

        async def forget(effects: Any, *, of: Any) -> None:
            await real(effects, of=of)
            bot.notify.webhooks = {}  # as another node, which is configured otherwise

        monkeypatch.setattr(bot.store.outbox, "add", forget)
        await bot.store.queue.finish(broken(await begun(bot)))

        async def left() -> bool:
            return any("does not tell this target" in (error or "") for _, error in await bot.owed())

        await until(left)
        monkeypatch.setattr("pilot.publish.notify.OLD", -1)

        async def given_up() -> bool:
            return bool(await bot.store.history.events(types=["delivery.failed"]))

        await bot.store.database.write(_due_now, None)
        await until(given_up)
        assert hook.posts == []


def _due_now(items: Any) -> Any:
    from pilot.store.database import Statement

    yield Statement("UPDATE outbox SET available_at = 0")
    return [None] * len(items)
