"""Tasks by Telegram: asked for, followed in one message, answered; over real sockets, the store and the outbox."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.agent import OutputKind
from pilot.domain.errors import StoreError
from pilot.domain.execution import Status
from pilot.domain.outcome import Usage
from pilot.domain.outside import SourcePaused
from tests.adapters.telegram_stage import ANN_ID, BOB_ID, Stage, stage, until
from tests.e2e.telegram_fake import ANN, BOB, EVE, TelegramFake, group
from tests.store.bed import asked, broken, done

TEAM = -1001


@pytest.fixture
def fake() -> Iterator[TelegramFake]:
    with TelegramFake() as fake:
        yield fake


@pytest.fixture
async def bot(fake: TelegramFake, tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path, fake) as here:
        here.start()
        yield here


@asynccontextmanager
async def asking(bot: Stage, *options: str, default: str | None = None) -> AsyncIterator[tuple[int, int]]:
    """An execution that was asked for by Ann and asks a question; its id and the question's message."""
    bot.fake.says(ANN, "/run api paint it")
    await bot.shown("queued")
    await bot.settled()
    execution = await bot.claim()
    await bot.store.queue.finish(asked(execution, "what colour?", options=options, default=default))
    yield execution.id, await bot.shown("what colour?\n")


# Asking


async def test_run_is_a_row_like_any_other_that_goes_before_the_queue(bot: Stage) -> None:
    said = bot.fake.says(ANN, "/run api Fix the login\nIt fails at night.")
    execution = await bot.the_one()

    assert (execution.project, execution.title, execution.source) == ("api", "Fix the login", "telegram")
    assert "It fails at night." in execution.body
    assert execution.priority == 0
    assert execution.origin is not None
    assert {name: execution.origin[name] for name in ("source", "url", "ref", "actor", "chat", "message", "user")} == {
        "source": "telegram", "url": "", "ref": "telegram:11", "actor": "Ann", "chat": 11, "message": said, "user": 11,
    }  # fmt: skip
    message = await bot.shown("Fix the login")
    assert bot.fake.message(ANN_ID, message)["reply_to_message"]["message_id"] == said


async def test_one_message_shows_all_of_a_run(bot: Stage) -> None:
    bot.fake.says(ANN, "/run API fix")
    message = await bot.shown("queued")
    execution = await bot.claim()
    await bot.shown("running")
    await bot.store.journal.note(execution, phase="agent")
    pieces = [(OutputKind.RAW, b'{"no": 1}\n'), (OutputKind.TEXT, b"I look.\nThe password is hunter2\n")]
    await bot.store.journal.write(execution, pieces)
    await bot.shown("> The password is [redacted]")
    assert bot.shows(": agent")
    await bot.store.queue.finish(done(execution, text="All is well.", usage=Usage(1000, 234, 0.421)))

    assert await bot.shown("completed") == message
    text = bot.fake.text(ANN_ID, message)
    assert text.startswith("✅ 1 · api · fix\ncompleted after ")
    assert "on branch pilot/" in text
    assert "$0.42 · 1,234 tokens" in text
    assert "All is well." in text
    assert not bot.buttons(message)
    assert len(bot.fake.messages()) == 1
    await bot.settled()


async def test_who_waits_is_told_for_whom(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api first")
    first = await bot.claim()
    bot.fake.says(BOB, "/run api second")

    message = await bot.shown("queued: 1 (first-", chat=BOB_ID)
    assert "runs in api" in bot.fake.text(BOB_ID, message)
    await bot.store.queue.finish(broken(first))
    await bot.shown("failed")
    assert bot.shows("/retry 1")
    await bot.claim()
    await bot.shown("running", chat=BOB_ID)


async def test_the_same_message_read_twice_is_one_run(bot: Stage, tmp_path: Path) -> None:
    """The first reader is killed after it has stored the task and before Telegram knows that it was read."""
    bot.fake.says(ANN, "/run api once")
    await bot.shown("once")
    await bot.settled()
    await bot.stop(cleanly=False)
    bot.fake.rewind()
    async with stage(tmp_path, bot.fake, name="n9") as again:
        await again.store.database.write(_forget, None)
        again.start()
        bot.fake.says(ANN, "/projects")
        await again.shown("api · 1 queued")
        await again.settled()

        assert len(await again.executions()) == 1
        assert len([text for text in bot.fake.texts(ANN_ID) if "once" in text]) == 1


def _forget(items: Any) -> Any:
    from pilot.store.database import Statement

    yield Statement("UPDATE duties SET state = '{}', node = NULL, until = 0", {})
    return [None] * len(items)


async def test_replies_are_not_given_twice_when_a_message_is_read_again(bot: Stage, tmp_path: Path) -> None:
    bot.fake.says(ANN, "/projects")
    await bot.shown("api\nweb")
    await until(lambda: not bot.fake.unconfirmed(), "read to the end")
    await bot.stop(cleanly=False)
    bot.fake.rewind()
    async with stage(tmp_path, bot.fake, name="n9") as again:
        again.start()
        bot.fake.says(ANN, "/help")
        await again.shown("/run PROJECT TEXT")

    assert len(bot.fake.messages()) == 2


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("/run", "write /run PROJECT TEXT; projects: api, web"),
        ("/run api", "write /run PROJECT TEXT; projects: api, web"),
        ("/run nix do it", "there is no project 'nix'; there are: api, web"),
        ("/fly", "I don't know /fly; /help says what there is"),
        ("/why", "write /why ID; the ID is the number of an execution"),
        ("/why 4711", "there is no execution 4711; /status and /queue show what there is"),
        ("/logs x", "write /logs ID; the ID is the number of an execution"),
        ("/cancel 4711", "no execution 4711"),
        ("/cancel 99999999999999999999", "write /cancel ID; the ID is the number of an execution"),
        ("/answer 1", "write /answer ID TEXT"),
        ("/retry 4711", "no execution 4711"),
        ("/pause nix", "there is no project 'nix'; there are: api, web"),
        ("/queue", "Nothing waits."),
        ("/status", "Nothing is open."),
        ("/projects", "api\nweb"),
    ],
    ids=lambda value: value.partition(" ")[0].strip("/") if value.startswith("/") else "",
)
async def test_every_mistake_gets_one_clear_line(bot: Stage, words: str, answer: str) -> None:
    bot.fake.says(ANN, words)

    await until(lambda: bot.fake.texts(ANN_ID), "an answer")
    assert bot.fake.texts(ANN_ID) == [answer]
    assert await bot.executions() == []


async def test_commands_are_offered_and_explained(bot: Stage) -> None:
    bot.fake.says(ANN, "/start")
    await bot.shown("/run PROJECT TEXT: do it now")

    names = {"run", "status", "queue", "why", "logs", "cancel", "answer", "pause", "resume", "projects", "help"}
    assert names <= bot.fake.commands.keys()


async def test_what_there_is_to_read(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api first")
    first = await bot.claim()
    bot.fake.says(ANN, "/run api second")
    await until(lambda: bot.shows("second"))
    bot.fake.says(BOB, "/status")
    await bot.shown("1 running, 1 queued\n▶️ 1 · api · first", chat=BOB_ID)
    bot.fake.says(BOB, "/queue")
    await bot.shown("🕓 2 · api · second", chat=BOB_ID)
    bot.fake.says(BOB, "/why 2")
    await bot.shown("place 1 in its project's queue\n- 1 (first-", chat=BOB_ID)
    bot.fake.says(BOB, "/logs 2")
    await bot.shown("2 has not begun; /why 2", chat=BOB_ID)
    bot.fake.says(BOB, "/logs 1")
    await bot.shown("Its agent has written nothing yet.", chat=BOB_ID)
    await bot.store.journal.write(first, [(OutputKind.TEXT, b"I am on it: hunter2")])
    bot.fake.says(BOB, "/logs 1")
    await bot.shown("I am on it: [redacted]", chat=BOB_ID)


async def test_a_long_log_is_a_file_with_its_end_below(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api long")
    execution = await bot.claim()
    for part in range(8):
        pieces = [(OutputKind.STDOUT, f"line {part}.{n} hunter2\n".encode()) for n in range(200)]
        await bot.store.journal.write(execution, pieces)
    bot.fake.says(BOB, "/logs 1")

    await until(lambda: bot.fake.texts(BOB_ID))
    ((place, message),) = [(at, each) for at, each in bot.fake.messages() if at[0] == BOB_ID]
    content = bot.fake.file(*place).decode()
    assert content.startswith("line 0.0 [redacted]\n")
    assert content.endswith("line 7.199 [redacted]")
    assert message["document"]["file_name"] == "pilot-1.log"
    assert message["caption"].endswith("line 7.199 [redacted]")


async def test_cancel_by_command_and_by_two_clicks(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api first")
    bot.fake.says(ANN, "/run api second")
    message = await bot.shown("second")
    assert await bot.click(BOB, message, "Cancel") == "Once more within 10 seconds, and 2 is ended."
    assert await bot.click(ANN, message, "Cancel") == "Once more within 10 seconds, and 2 is ended."
    assert await bot.click(BOB, message, "Cancel") == "2 is cancelled"
    await bot.shown("cancelled: cancelled by Bob B (Telegram 12)")
    await bot.claim()
    bot.fake.says(ANN, "/cancel 1")
    await bot.shown("1 is asked to end")

    await bot.shown("is being cancelled")


async def test_pauses_are_somebodys(bot: Stage) -> None:
    api = (await bot.store.history.projects())[0]
    bot.fake.says(ANN, "/pause api")
    await bot.shown("api is paused; /resume api lifts it")
    bot.fake.says({**ANN, "first_name": "Annabel"}, "/pause api")
    await until(lambda: len(bot.fake.texts(ANN_ID)) == 2)
    bot.fake.says(BOB, "/resume api")
    await bot.shown("api stays paused by Ann (Telegram 11), Annabel (Telegram 11); /resume api everybody", chat=BOB_ID)
    bot.fake.says(ANN, "/resume api")
    await bot.shown("api is no longer paused")
    assert await bot.store.history.paused_by(api.id) == []
    await bot.store.queue.pause(0, "cli", "")
    bot.fake.says(ANN, "/resume")
    await bot.shown("everything stays paused by cli; /resume everybody lifts that, too")
    bot.fake.says(ANN, "/resume everybody")
    await bot.shown("everything is no longer paused")


async def test_retry_is_followed_in_a_message_of_its_own(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api fix")
    await bot.store.queue.finish(broken(await bot.claim()))
    await bot.shown("failed")
    bot.fake.says(ANN, "/retry 1")
    await bot.shown("2 runs the task of 1 anew")
    await bot.shown("2 · api · fix\nqueued")


# Plain words


async def test_plain_words_need_a_project_and_a_yes(bot: Stage) -> None:
    said = bot.fake.says(ANN, "Fix the login\nAt night.")
    message = await bot.shown("In which project?")
    assert list(bot.buttons(message)) == ["api", "web", "Nowhere"]
    await bot.click(ANN, message, "web")
    await bot.shown("Run this in web?\n\nFix the login\nAt night.")
    await until(lambda: "Run it" in bot.buttons(message))
    assert await bot.executions() == []
    await bot.click(ANN, message, "Run it")

    execution = await bot.the_one()
    assert (execution.project, execution.title) == ("web", "Fix the login")
    assert execution.origin is not None
    assert execution.origin["message"] == said
    await bot.shown("web: it is number 1")
    assert not bot.buttons(message)


async def test_one_project_is_not_asked_for(fake: TelegramFake, tmp_path: Path) -> None:
    async with stage(tmp_path, fake, projects=["api"]) as bot:
        bot.start()
        fake.says(ANN, "Fix the login")
        message = await bot.shown("Run this in api?")
        await bot.click(ANN, message, "No")
        await bot.shown("Nothing was started.")
        assert await bot.executions() == []


async def test_only_who_asked_can_say_yes_and_only_once(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api x", chat=group(TEAM))  # not one of its groups: nothing
    bot.fake.says(ANN, "Fix it")
    message = await bot.shown("In which project?")
    web = bot.buttons(message)["web"]
    assert await bot.click(BOB, message, "web") == "only Ann can say that"
    await bot.click(ANN, message, "web")
    await until(lambda: "Run it" in bot.buttons(message))
    yes = bot.buttons(message)["Run it"]
    clicks = [bot.fake.clicks(ANN, ANN_ID, message, yes) for _ in range(3)]
    await until(lambda: all(bot.fake.answered(click) != "?" for click in clicks))
    await bot.the_one()
    late = bot.fake.clicks(ANN, ANN_ID, message, web)
    await until(lambda: bot.fake.answered(late).startswith("that is over"))
    await bot.settled()
    assert len(await bot.executions()) == 1


async def test_what_waits_for_a_yes_outlives_a_kill(bot: Stage, tmp_path: Path) -> None:
    bot.fake.says(ANN, "Fix it")
    message = await bot.shown("In which project?")
    await until(lambda: not bot.fake.unconfirmed())
    await bot.stop(cleanly=False)
    async with stage(tmp_path, bot.fake, name="n9") as again:
        again.start()
        await again.click(ANN, message, "api")
        await until(lambda: "Run it" in again.buttons(message))
        await again.click(ANN, message, "Run it")
        assert (await again.the_one()).title == "Fix it"


async def test_a_yes_that_comes_too_late_starts_nothing(bot: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilot.sources.telegram_memory.LIFETIME", -120_000)
    bot.fake.says(ANN, "Fix it")
    message = await bot.shown("In which project?")

    assert (await bot.click(ANN, message, "Nowhere")).startswith("that is over")
    await bot.shown("That is over.")
    assert not bot.buttons(message)


@pytest.mark.parametrize(
    "data", ["a:1:2:0", "a:1:2", "c:99", "c:x", "y:1", "zzz", "n:\u0661", "p:1:99999999999999999999"]
)
async def test_a_button_that_nobody_made_does_nothing(bot: Stage, data: str) -> None:
    bot.fake.says(ANN, "/projects")
    message = await bot.shown("api\nweb")
    click = bot.fake.clicks(ANN, ANN_ID, message, data)
    await until(lambda: bot.fake.answered(click) != "?")
    assert bot.fake.answered(click)
    assert await bot.executions() == []


# Questions


async def test_a_question_is_a_message_with_buttons(bot: Stage) -> None:
    async with asking(bot, "red", "blue", default="red") as (id, message):
        text = bot.fake.text(ANN_ID, message)
        assert text.startswith("❓ 1 · api · paint it\nwhat colour?")
        assert "1. red\n2. blue\nIt suggests: red\nReply to this message, or /answer 1 TEXT" in text
        assert await bot.click(BOB, message, "blue") == "1 goes on with your answer: blue"

        await bot.shown("Answered by Bob B (Telegram 12): blue")
        assert not bot.buttons(message)
        execution = await bot.store.queue.get(id)
        assert (execution.status, execution.feedback) == (Status.QUEUED, "blue")
        await bot.settled()
        assert len(bot.fake.messages()) == 2


async def test_the_first_answer_counts_wherever_it_comes_from(bot: Stage) -> None:
    async with asking(bot, "red", "blue") as (id, message):
        token = bot.buttons(message)["red"]
        await bot.store.queue.answer(id, "green", "@octocat in GitHub")
        click = bot.fake.clicks(ANN, ANN_ID, message, token)
        await until(lambda: bot.fake.answered(click) != "?")
        words = "that question is not open any more. Answered by @octocat in GitHub: green"
        assert bot.fake.answered(click) == words
        bot.fake.says(BOB, f"/answer {id} red")
        await bot.shown(words, chat=BOB_ID)
        bot.fake.says(ANN, "red", reply_to=message)
        await until(lambda: bot.fake.texts(ANN_ID)[-1] == words)
        await bot.shown("Answered by @octocat in GitHub: green")
        assert (await bot.store.queue.get(id)).feedback == "green"


async def test_a_reply_is_an_answer(bot: Stage) -> None:
    async with asking(bot) as (id, message):
        bot.fake.says(ANN, "rather green\nand dark", reply_to=message)
        await bot.shown("1 goes on with your answer: rather green and dark")
        assert (await bot.store.queue.get(id)).feedback == "rather green\nand dark"


async def test_a_reply_to_a_question_of_which_nothing_was_kept_is_an_answer(bot: Stage) -> None:
    """Its sending was answered by a 502 after it took effect, and it was sent again."""
    bot.fake.says(ANN, "/run api paint it")
    await bot.shown("queued")
    execution = await bot.claim()
    bot.fake.lose_next("sendMessage", after=True)
    await bot.store.queue.finish(asked(execution, "what colour?"))
    message = await bot.shown("what colour?\n")
    bot.fake.says(ANN, "green", reply_to=message)
    await bot.shown("1 goes on with your answer: green")


async def test_a_reply_to_the_runs_own_message_is_an_answer_too(bot: Stage) -> None:
    async with asking(bot) as (id, _):
        message = await bot.shown("waits for an answer")
        bot.fake.says(ANN, "green", reply_to=message)
        await bot.shown("1 goes on with your answer: green")
        assert (await bot.store.queue.get(id)).feedback == "green"


async def test_an_answer_to_an_older_question_is_none_to_the_next(bot: Stage) -> None:
    async with asking(bot, "red", "blue") as (id, message):
        token = bot.buttons(message)["blue"]
        await bot.click(ANN, message, "red")
        await bot.store.queue.finish(asked(await bot.claim(), "and how dark?", options=("very",)))
        second = await bot.shown("and how dark?\n")
        click = bot.fake.clicks(BOB, ANN_ID, message, token)
        await until(lambda: bot.fake.answered(click) != "?")
        assert bot.fake.answered(click).startswith("that question is not open any more. Answered by Ann")
        bot.fake.says(BOB, "blue", reply_to=None)
        bot.fake.says(ANN, "blue", reply_to=message)
        await until(lambda: "not open any more" in bot.fake.texts(ANN_ID)[-1])
        assert (await bot.store.queue.get(id)).status is Status.NEEDS_HUMAN
        await bot.click(ANN, second, "very")
        assert (await bot.store.queue.get(id)).feedback == "very"


async def test_a_question_of_what_is_cancelled_is_taken_back(bot: Stage) -> None:
    async with asking(bot, "red") as (_, message):
        bot.fake.says(ANN, "/cancel 1")
        await bot.shown("Nobody has to answer this any more.")
        assert not bot.buttons(message)


async def test_an_answer_that_was_read_twice_is_no_mistake(bot: Stage, tmp_path: Path) -> None:
    async with asking(bot) as (id, message):
        bot.fake.says(ANN, "green", reply_to=message)
        await bot.shown("goes on with your answer")
        await bot.stop(cleanly=False)
        bot.fake.rewind()
        async with stage(tmp_path, bot.fake, name="n9") as again:
            await again.store.database.write(_forget, None)
            again.start()
            await until(lambda: len([t for t in bot.fake.texts(ANN_ID) if "goes on with your" in t]) == 2)
            assert not again.shows("not open any more")
            assert (await again.store.queue.get(id)).status is Status.QUEUED


# Who


async def test_strangers_are_refused_once_a_day_and_learn_their_id(bot: Stage) -> None:
    for _ in range(3):
        bot.fake.says(EVE, "/run api mine bitcoins")
    await bot.shown("I don't know you. Your id is 99", chat=99)
    bot.fake.says(ANN, "/projects")
    await bot.shown("api\nweb")
    events = await bot.store.history.events(types=["trigger.refused"])
    assert [(each.data["source"], each.data["actor"]) for each in events] == [("telegram", "Eve (Telegram 99)")]
    assert "sources.telegram.allowed_users" in events[0].data["reason"]
    assert await bot.executions() == []
    assert len(bot.fake.messages()) == 2


async def test_groups_are_heard_where_they_are_named_and_only_their_known_people(
    fake: TelegramFake, tmp_path: Path
) -> None:
    async with stage(tmp_path, fake, groups=[TEAM]) as bot:
        bot.start()
        fake.says(EVE, "/run api bad", chat=group(TEAM))
        fake.says(ANN, "/run api other", chat=group(-1002))
        fake.says(ANN, "just talking", chat=group(TEAM))
        fake.says(ANN, "/run@another_bot api x", chat=group(TEAM))
        fake.says(ANN, "@pilot_bot: fix it", chat=group(TEAM))
        message = await bot.shown("In which project?", chat=TEAM)
        fake.says(BOB, "/run@pilot_bot api good", chat=group(TEAM))
        execution = await bot.the_one()
        assert execution.title == "good"
        assert execution.origin is not None
        assert execution.origin["url"].startswith("https://t.me/c/1/") or execution.origin["url"] == ""
        await bot.shown("good", chat=TEAM)
        assert await bot.click(BOB, message, "api", chat=TEAM) == "only Ann can say that"
        assert len([text for text in fake.texts(TEAM) if "In which project?" in text]) == 1
        refused = await bot.store.history.events(types=["trigger.refused"])
        assert sorted(each.data["actor"] for each in refused) == [
            "Ann (Telegram 11) in chat -1002", "Eve (Telegram 99) in chat -1001",
        ]  # fmt: skip


# What goes wrong


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("method", ["sendMessage", "editMessageText"])
async def test_a_lost_answer_costs_nothing_but_perhaps_a_second_message(
    bot: Stage, method: str, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.dispatch.deliveries.FIRST", 100)
    monkeypatch.setattr("pilot.dispatch.deliveries.LONGEST", 100)
    bot.fake.says(ANN, "/projects")
    await bot.shown("api\nweb")
    if method == "sendMessage":
        bot.fake.lose_next(method, after=after)
    bot.fake.says(ANN, "/run api fix")
    await bot.shown("queued")
    if method == "editMessageText":
        bot.fake.lose_next(method, after=after)
    await bot.store.queue.finish(done(await bot.claim()))
    await bot.shown("completed")
    await bot.settled()

    mine = [text for text in bot.fake.texts(ANN_ID) if "fix" in text]
    assert len(mine) == (2 if after and method == "sendMessage" else 1)
    assert len([text for text in mine if "completed" in text]) == 1
    assert len(await bot.executions()) == 1


async def test_a_chat_that_blocked_the_bot_is_given_up_with_words(bot: Stage) -> None:
    bot.fake.says(ANN, "/run api fix")
    await bot.shown("fix")
    bot.fake.block(ANN)
    await bot.store.queue.finish(asked(await bot.claim(), "what?"))
    await bot.settled()
    failed = await bot.store.history.events(types=["delivery.failed"])
    assert "blocked" in failed[-1].data["reason"]


async def test_a_store_that_can_t_just_now_loses_no_message(bot: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    real = type(bot.store.queue).enqueue
    times = []

    async def broken_once(self: Any, task: Any) -> Any:
        times.append(1)
        if len(times) == 1:
            raise StoreError("disk full")
        return await real(self, task)

    monkeypatch.setattr(type(bot.store.queue), "enqueue", broken_once)
    bot.fake.says(ANN, "/run api fix")
    await until(lambda: bot.tasks[1].done())
    with pytest.raises(StoreError):
        bot.tasks[1].result()
    bot.start(delivering=False)  # as the feed does
    assert (await bot.the_one()).title == "fix"


async def test_a_bug_does_not_come_again_for_ever(bot: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def bug(*_: Any) -> Any:
        raise KeyError("hunter2")

    monkeypatch.setattr(type(bot.store.history), "status", bug)
    bot.fake.says(ANN, "/status")
    await bot.shown("That did not work, for a reason that only the log of pilot knows.")
    bot.fake.says(ANN, "/queue")
    await bot.shown("Nothing waits.")


async def test_another_reader_is_said_so(bot: Stage, fake: TelegramFake) -> None:
    await until(lambda: fake.of("getUpdates"))
    fake.take_over()
    await until(lambda: bot.tasks[1].done())
    with pytest.raises(SourcePaused, match="another process reads") as caught:
        bot.tasks[1].result()
    assert "stop the other one" in caught.value.remedy


async def test_a_bad_token_is_said_so(bot: Stage, fake: TelegramFake) -> None:
    fake.token = "1:other"
    fake.says(ANN, "x")
    await until(lambda: bot.tasks[1].done())
    with pytest.raises(SourcePaused) as caught:
        bot.tasks[1].result()
    assert "sources.telegram.token" in caught.value.remedy


async def test_reading_well_is_said_so(bot: Stage) -> None:
    async def well() -> bool:
        rows = await bot.store.database.read("SELECT status, last_poll FROM sources WHERE name = 'telegram'")
        return [status for status, polled in rows if polled] == ["ok"]

    bot.fake.says(ANN, "/projects")
    await until(well, "health ok")


# Several nodes


async def test_one_of_two_nodes_reads_and_the_other_takes_over(fake: TelegramFake, tmp_path: Path) -> None:
    async with (
        stage(tmp_path, fake, name="n1", lease=3.0) as first,
        stage(tmp_path, fake, name="n2", lease=3.0) as other,
    ):
        first.start()
        fake.says(ANN, "/run api one")
        await first.shown("one")
        other.start()
        await asyncio.sleep(1.2)  # for the other to ask for the duty; it must not get it
        assert not other.tasks[1].done()
        assert not first.tasks[1].done()
        await _kill(first)
        fake.says(ANN, "/run api two")
        await until(lambda: other.shows("two"))
        fake.says(BOB, "/projects")
        await other.shown("api · 2 queued", chat=BOB_ID)
        assert len(await other.executions()) == 2


async def test_a_node_that_lost_the_bot_to_another_reads_no_more(fake: TelegramFake, tmp_path: Path) -> None:
    """It was asleep for longer than its lease, and another has taken over."""
    async with stage(tmp_path, fake, lease=0.6) as bot:
        bot.start()
        await until(lambda: fake.of("getUpdates"))
        await bot.store.database.write(_give_away, "another")
        await asyncio.sleep(2)  # it asks for its lease each 0.2 s
        before = len(fake.of("getUpdates"))
        fake.says(ANN, "/projects")
        await asyncio.sleep(0.5)  # for it to read that, which it must not
        assert len(fake.of("getUpdates")) == before
        assert not fake.texts(ANN_ID)
        await bot.store.database.write(_give_away, None)
        await bot.shown("api\nweb")


def _give_away(items: Any) -> Any:
    from pilot.store.database import Statement

    for node in items:
        yield Statement("UPDATE duties SET node = :node, until = :until", {"node": node, "until": 1 << 52})
    return [None] * len(items)


async def _kill(here: Stage) -> None:
    """End a node so that it can say nothing more: the duty stays its own until the lease ends."""

    async def silent(name: str, node: str) -> None:
        pass

    here.store.duties.release = silent  # type: ignore[method-assign]
    await here.stop(cleanly=False)


async def test_an_older_state_does_not_stay_over_a_newer_one(fake: TelegramFake, tmp_path: Path) -> None:
    """The reader's edit of a run is on its way while another node tells its end; then it arrives."""
    async with stage(tmp_path, fake, name="n1") as reader, stage(tmp_path, fake, name="n2") as teller:
        reader.start(delivering=False)
        teller.start(reading=False)
        fake.says(ANN, "/run api fix")
        message = await teller.shown("queued")
        execution = await reader.claim()
        await reader.shown("running")
        await teller.settled()
        fake.hold_next("editMessageText")
        await reader.store.journal.note(execution, phase="late")
        await until(fake.held, "a held edit")
        await teller.store.queue.finish(done(execution))
        await until(lambda: "completed" in fake.text(ANN_ID, message), "the end")
        seen = len(fake.past(ANN_ID, message))
        fake.let_go()  # that of the phase, or one that came just before it
        await until(lambda: any("running" in text for text in fake.past(ANN_ID, message)[seen:]), "the late edit")
        await until(lambda: "completed" in fake.text(ANN_ID, message), "the end again")
