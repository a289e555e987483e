"""The Telegram bot: the real python-telegram-bot over real sockets, against a fake Bot API."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from pilot.clients.telegram import (
    Bot,
    BotError,
    Button,
    RateLimited,
    Refused,
    Taken,
    Unauthorized,
    Unavailable,
)
from pilot.clients.telegram_inbox import Click, Event, Inbox, Message, Stranger
from pilot.clients.telegram_text import Command, as_command, cut, redacted, units
from tests.e2e.telegram_fake import ANN, BOB, BOT, EVE, TOKEN, TelegramFake, group, private

ANN_ID, BOB_ID = 11, 12
YES_NO = ((Button("Yes", "y:1"), Button("No", "n:1")),)


@pytest.fixture
def fake() -> Iterator[TelegramFake]:
    with TelegramFake() as fake:
        yield fake


@pytest.fixture
async def bot(fake: TelegramFake) -> AsyncIterator[Bot]:
    fake.says(ANN, "hello")
    async with Bot(TOKEN, base_url=fake.base_url, every=0.2) as bot:
        yield bot


class Heard:
    """Keeps events, and waits for them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Condition()

    async def __call__(self, event: Event) -> None:
        async with self._more:
            self.events.append(event)
            self._more.notify_all()

    async def until(self, number: int) -> list[Event]:
        async with asyncio.timeout(30), self._more:
            await self._more.wait_for(lambda: len(self.events) >= number)
        return self.events

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Message)]


@asynccontextmanager
async def listening(
    bot: Bot, handle: Callable[[Event], Any], users: tuple[int, ...] = (ANN_ID, BOB_ID), **more: Any
) -> AsyncIterator[Inbox]:
    inbox = Inbox(bot, users, poll=2, **more)
    task = asyncio.create_task(inbox.run(handle))
    try:
        yield inbox
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


# Out


async def test_words_go_out_as_they_are(fake: TelegramFake, bot: Bot) -> None:
    text = "*bold* _it_ <b>x</b> [a](b) \U0001f600 \ud800\x00"
    id = await bot.send(ANN_ID, text)

    assert bot.username == "pilot_bot"
    assert fake.text(ANN_ID, id) == "*bold* _it_ <b>x</b> [a](b) \U0001f600 \ufffd\ufffd"
    assert fake.of("sendMessage")[0].parameters["link_preview_options"] == {"is_disabled": True}


async def test_fixed_width_buttons_and_replies(fake: TelegramFake, bot: Bot) -> None:
    asked = fake.says(ANN, "/status")
    id = await bot.send(ANN_ID, "\U0001f600x", buttons=YES_NO, reply_to=asked, fixed=True)

    message = fake.message(ANN_ID, id)
    assert message["entities"] == [{"type": "pre", "offset": 0, "length": 3}]
    assert [button["callback_data"] for button in message["reply_markup"]["inline_keyboard"][0]] == ["y:1", "n:1"]
    assert message["reply_to_message"]["message_id"] == asked
    assert fake.texts(ANN_ID) == ["\U0001f600x"]


async def test_what_just_fits_is_a_message_and_what_does_not_is_a_file(fake: TelegramFake, bot: Bot) -> None:
    fits, too_long = "\U0001f600" * 2048, "\U0001f600" * 2048 + "x"

    assert fake.text(ANN_ID, await bot.send(ANN_ID, fits)) == fits
    id = await bot.send(ANN_ID, too_long, buttons=YES_NO, file_name="log.txt")

    message = fake.message(ANN_ID, id)
    assert fake.file(ANN_ID, id).decode() == too_long
    assert message["document"]["file_name"] == "log.txt"
    assert message["caption"] == "\U0001f600" * 511 + "…"
    assert message["reply_markup"]["inline_keyboard"]


async def test_a_file_of_any_bytes(fake: TelegramFake, bot: Bot) -> None:
    content = bytes(range(256)) + b"\r\n--x\r\n"
    id = await bot.send_file(ANN_ID, "a.bin", content, "all bytes")

    assert fake.file(ANN_ID, id) == content
    assert fake.texts(ANN_ID) == ["all bytes"]


@pytest.mark.parametrize("data", ["", "x" * 65, "\u00e9" * 33])
def test_a_button_says_64_bytes_at_most(data: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 bytes"):
        Button("go", data)
    assert Button("go", "\u00e9" * 32).data


async def test_a_message_waits_when_it_is_told_to(fake: TelegramFake, bot: Bot) -> None:
    fake.flood_next("sendMessage", 1)

    await bot.send(ANN_ID, "later")

    first, second = fake.of("sendMessage")
    assert second.at - first.at >= 0.9
    assert fake.texts(ANN_ID) == ["later"]


async def test_it_does_not_wait_for_hours(fake: TelegramFake, bot: Bot) -> None:
    fake.flood_next("sendMessage", 7200)
    before = time.time() * 1000

    with pytest.raises(RateLimited) as caught:
        await bot.send(ANN_ID, "never")

    assert 7_100_000 < caught.value.until - before < 7_300_000


async def test_a_message_whose_answer_was_lost_is_not_sent_again_behind_anybodys_back(
    fake: TelegramFake, bot: Bot
) -> None:
    fake.lose_next("sendMessage", after=True)

    with pytest.raises(Unavailable):
        await bot.send(ANN_ID, "once")

    assert fake.texts(ANN_ID) == ["once"]


async def test_refusals_say_why(fake: TelegramFake, bot: Bot) -> None:
    with pytest.raises(Refused, match="Chat not found"):
        await bot.send(4711, "hello?")
    with pytest.raises(Refused, match="ext is empty"):
        await bot.send(ANN_ID, " ")
    fake.block(ANN)
    with pytest.raises(Refused, match="blocked by the user"):
        await bot.send(ANN_ID, "hello?")


# Edits


async def test_edits_are_slow_and_only_the_last_counts(fake: TelegramFake, bot: Bot) -> None:
    id = await bot.send(ANN_ID, "0 %", buttons=YES_NO)
    asked = [bot.edit(ANN_ID, id, f"{number} %") for number in range(1, 50)]
    await asyncio.wait_for(asyncio.gather(*asked), 30)
    assert fake.text(ANN_ID, id) == "49 %"
    await asyncio.wait_for(bot.edit(ANN_ID, id, "100 %"), 30)

    edits = fake.of("editMessageText")
    assert [edit.parameters["text"] for edit in edits] == ["49 %", "100 %"]
    assert edits[1].at - edits[0].at >= 0.19
    assert "reply_markup" not in fake.message(ANN_ID, id)


async def test_messages_of_a_chat_take_turns_and_chats_do_not_wait_for_each_other(fake: TelegramFake, bot: Bot) -> None:
    fake.says(BOB, "hi")
    first, second = [await bot.send(ANN_ID, name) for name in "ab"]
    other = await bot.send(BOB_ID, "c")
    for _ in range(3):
        bot.edit(ANN_ID, first, "a!")
        bot.edit(ANN_ID, second, "b!")
    elsewhere = bot.edit(BOB_ID, other, "c!")
    await asyncio.wait_for(elsewhere, 30)
    await asyncio.wait_for(bot.edit(ANN_ID, second, "b!"), 30)

    edits = [edit for edit in fake.of("editMessageText") if edit.parameters["chat_id"] == ANN_ID]
    assert [edit.parameters["message_id"] for edit in edits] == [first, second]
    assert edits[1].at - edits[0].at >= 0.19
    assert fake.texts(BOB_ID) == ["c!"]


async def test_an_edit_waits_when_it_is_told_to_and_then_says_the_latest(fake: TelegramFake, bot: Bot) -> None:
    id = await bot.send(ANN_ID, "0 %")
    fake.flood_next("editMessageText", 1)
    early = bot.edit(ANN_ID, id, "1 %")
    await until(lambda: fake.of("editMessageText"))
    late = bot.edit(ANN_ID, id, "2 %")
    await asyncio.wait_for(asyncio.gather(early, late), 30)

    first, *rest = fake.of("editMessageText")
    assert [edit.parameters["text"] for edit in rest] == ["2 %"]
    assert rest[0].at - first.at >= 0.9


async def test_an_edit_that_changes_nothing_is_fine(fake: TelegramFake, bot: Bot) -> None:
    id = await bot.send(ANN_ID, "same")

    await asyncio.wait_for(bot.edit(ANN_ID, id, "same"), 30)

    assert fake.text(ANN_ID, id) == "same"


@pytest.mark.parametrize("after", [True, False])
async def test_an_edit_whose_answer_was_lost_is_made_again(fake: TelegramFake, bot: Bot, after: bool) -> None:
    id = await bot.send(ANN_ID, "0 %")
    fake.lose_next("editMessageText", after=after)

    await asyncio.wait_for(bot.edit(ANN_ID, id, "1 %"), 30)

    assert fake.text(ANN_ID, id) == "1 %"
    assert len(fake.of("editMessageText")) == 2


async def test_an_edit_that_is_refused_is_over_and_the_next_is_made(fake: TelegramFake, bot: Bot) -> None:
    id = await bot.send(ANN_ID, "0 %")
    with pytest.raises(Refused, match="not found"):
        await asyncio.wait_for(bot.edit(ANN_ID, 4711, "?"), 30)

    await asyncio.wait_for(bot.edit(ANN_ID, id, "x" * 5000), 30)

    assert fake.text(ANN_ID, id) == "x" * 4095 + "…"


async def test_the_last_edits_are_made_before_the_bot_is_closed(fake: TelegramFake) -> None:
    fake.says(ANN, "hello")
    async with Bot(TOKEN, base_url=fake.base_url, every=60) as bot:
        ids = [await bot.send(ANN_ID, name) for name in "abc"]
        await bot.edit(ANN_ID, ids[0], "first")
        asked = [bot.edit(ANN_ID, id, "done") for id in ids]

    assert fake.texts(ANN_ID) == ["done", "done", "done"]
    assert all(future.done() for future in asked)


async def test_a_closing_bot_does_not_wait_for_telegram(fake: TelegramFake) -> None:
    fake.says(ANN, "hello")
    async with asyncio.timeout(30):
        async with Bot(TOKEN, base_url=fake.base_url) as bot:
            id = await bot.send(ANN_ID, "a")
            for _ in range(2):
                fake.flood_next("editMessageText", 3600)
            asked = bot.edit(ANN_ID, id, "b")
            await until(lambda: fake.of("editMessageText"))

    with pytest.raises((RateLimited, asyncio.CancelledError)):
        await asked


async def test_a_bot_that_could_not_be_opened_may_be_opened_later_and_again(fake: TelegramFake) -> None:
    fake.says(ANN, "hello")
    fake.lose_next("getMe", after=False)
    bot = Bot(TOKEN, base_url=fake.base_url)
    assert bot.id == 123456789
    with pytest.raises(RuntimeError, match="not open"):
        bot.edit(ANN_ID, 1, "x")
    with pytest.raises(Unavailable):
        await bot.open()
    await asyncio.gather(bot.open(), bot.open())
    assert len(fake.of("getMe")) == 2
    assert bot.username == "pilot_bot"
    await bot.close()
    await bot.close()
    await bot.open()
    await bot.send(ANN_ID, "back")
    await bot.close()

    assert fake.texts(ANN_ID) == ["back"]


async def test_commands_are_offered(fake: TelegramFake, bot: Bot) -> None:
    await bot.offer([("run", "PROJECT TEXT: do it now"), ("help", "this list")])

    assert fake.commands == {"run": "PROJECT TEXT: do it now", "help": "this list"}


# In


async def test_a_reply_tells_what_the_bot_had_said_and_nobody_elses_words(fake: TelegramFake, bot: Bot) -> None:
    heard = Heard()
    question = await bot.send(ANN_ID, "Which?")
    fake.says(ANN, "this", reply_to=question)
    theirs = fake.says(ANN, "Which?")
    fake.says(ANN, "mine", reply_to=theirs)
    async with listening(bot, heard):
        events = await heard.until(4)

    quoted = {event.text: event.quoted for event in events if isinstance(event, Message)}
    assert quoted == {"hello": "", "this": "Which?", "Which?": "", "mine": ""}


async def test_who_is_heard_can_change(fake: TelegramFake, bot: Bot) -> None:
    heard = Heard()
    async with listening(bot, heard, users=(ANN_ID,)) as inbox:
        await heard.until(1)
        inbox.admit([BOB_ID], [])
        fake.says(ANN, "me?")
        fake.says(BOB, "and me?")
        await heard.until(3)
    assert heard.texts == ["hello", "and me?"]


async def test_what_known_people_say_and_click(fake: TelegramFake, bot: Bot) -> None:
    heard = Heard()
    async with listening(bot, heard) as inbox:
        question = await bot.send(ANN_ID, "Which?", buttons=YES_NO)
        answer = fake.says(ANN, "the second", reply_to=question)
        click = fake.clicks(BOB, ANN_ID, question, "y:1")
        fake.says(BOB, "", caption="a picture")
        events = await heard.until(4)

        messages = {event.id: event for event in events if isinstance(event, Message)}
        said = messages[answer]
        assert (said.chat, said.user, said.name, said.text) == (ANN_ID, ANN_ID, "Ann", "the second")
        assert (said.private, said.reply_to) == (True, question)
        assert abs(said.at - time.time() * 1000) < 60_000
        assert sorted(heard.texts) == ["a picture", "hello", "the second"]
        (clicked,) = (event for event in events if isinstance(event, Click))
        assert clicked == Click(id=click, chat=ANN_ID, user=BOB_ID, name="Bob B", message=question, data="y:1")
        await bot.acknowledge(click, "Noted.")
        assert fake.answered(click) == "Noted."
        assert inbox.last_poll is not None
        assert inbox.trouble == ""


async def test_a_click_that_is_too_old_is_let_go(fake: TelegramFake, bot: Bot) -> None:
    click = fake.clicks(ANN, ANN_ID, 1, "y:1")
    fake.forget(click)

    await bot.acknowledge(click)


async def test_strangers_are_named_and_not_heard(fake: TelegramFake, bot: Bot) -> None:
    fake.says(EVE, "/run rm -rf")
    question = await bot.send(ANN_ID, "Which?", buttons=YES_NO)
    fake.clicks(EVE, ANN_ID, question, "y:1")
    here, there = group(-100), group(-200)
    fake.says(ANN, "not here", chat=there)
    fake.says(ANN, "here", chat=here)
    fake.says({**ANN, "is_bot": True}, "a bot", chat=here)
    fake.says({**EVE, "username": "ann"}, "I am Ann", chat=here)
    fake.says({"id": 1087968824, "is_bot": True, "first_name": "Group"}, "admin", chat=here, sender_chat=here)
    heard = Heard()
    async with listening(bot, heard, chats=(-100,)):
        events = await heard.until(8)

    assert sorted(heard.texts) == ["hello", "here"]
    strangers = [event for event in events if isinstance(event, Stranger)]
    assert sorted((each.user, each.chat, each.what) for each in strangers) == sorted(
        [
            (99, 99, "message"),
            (99, ANN_ID, "click"),
            (ANN_ID, -200, "message"),
            (ANN_ID, -100, "message"),
            (99, -100, "message"),
            (1087968824, -100, "message"),
        ]
    )
    assert not any(isinstance(event, Click) for event in events)


async def test_edits_channels_and_other_updates_are_nothing(fake: TelegramFake, bot: Bot) -> None:
    message = {"message_id": 7, "date": 1, "chat": private(ANN), "from": ANN, "text": "/run edited"}
    fake.update("edited_message", message)
    channel = {"id": -300, "type": "channel", "title": "News"}
    fake.update("channel_post", {"message_id": 8, "date": 1, "chat": channel, "text": "/run news"})
    fake.update("inline_query", {"id": "i", "from": ANN, "query": "/run", "offset": ""})
    fake.update("callback_query", {"id": "q", "from": ANN, "chat_instance": "1", "data": "y", "inline_message_id": "x"})
    fake.says(ANN, "", new_chat_title="x")
    fake.says(ANN, "last")
    heard = Heard()
    async with listening(bot, heard):
        await heard.until(2)

    assert heard.texts == ["hello", "last"]
    assert len(heard.events) == 2


def test_a_bot_that_listens_to_nobody_is_refused(fake: TelegramFake) -> None:
    with pytest.raises(ValueError, match="nobody"):
        Inbox(Bot(TOKEN, base_url=fake.base_url), ())


async def test_a_chat_is_in_order_others_beside_it_and_clicks_at_once(fake: TelegramFake, bot: Bot) -> None:
    for text in ("slow", "after"):
        fake.says(ANN, text)
    fake.says(BOB, "beside")
    question = await bot.send(ANN_ID, "Cancel?", buttons=YES_NO)
    fake.clicks(ANN, ANN_ID, question, "y:1")
    go, heard = asyncio.Event(), Heard()

    async def handle(event: Event) -> None:
        if isinstance(event, Message) and event.text == "slow":
            await go.wait()
        await heard(event)

    async with listening(bot, handle):
        events = list(await heard.until(3))
        assert any(isinstance(event, Click) for event in events)
        assert sorted(heard.texts) == ["beside", "hello"]
        go.set()
        await heard.until(5)

    assert [text for text in heard.texts if text != "beside"] == ["hello", "slow", "after"]


async def test_what_was_not_handled_comes_again(fake: TelegramFake, bot: Bot) -> None:
    fake.says(ANN, "precious")
    stuck = asyncio.Event()

    async def handle(event: Event) -> None:
        stuck.set()
        await asyncio.Event().wait()

    async with listening(bot, handle):
        await asyncio.wait_for(stuck.wait(), 30)
    assert fake.unconfirmed() == 2

    heard = Heard()
    async with listening(bot, heard):
        await heard.until(2)
        await until(lambda: not fake.unconfirmed())
    assert heard.texts == ["hello", "precious"]


async def test_what_a_handler_raises_ends_the_reading_and_loses_nothing(fake: TelegramFake, bot: Bot) -> None:
    async def handle(event: Event) -> None:
        raise LookupError("no disk")

    async with asyncio.timeout(30):
        with pytest.raises(LookupError, match="no disk"):
            await Inbox(bot, [ANN_ID], poll=2).run(handle)

    assert fake.unconfirmed() == 1


async def test_slow_handling_does_not_keep_clicks_out(
    fake: TelegramFake, bot: Bot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilot.clients.telegram_inbox.HANDLING", 0.2)
    heard, go = Heard(), asyncio.Event()

    async def handle(event: Event) -> None:
        if isinstance(event, Message):
            await go.wait()
        await heard(event)

    async with listening(bot, handle):
        await until(lambda: not fake.unconfirmed())
        question = await bot.send(ANN_ID, "Cancel?", buttons=YES_NO)
        fake.clicks(ANN, ANN_ID, question, "y:1")
        (event,) = await heard.until(1)
        assert isinstance(event, Click)
        go.set()
        await heard.until(2)


async def test_a_second_reader_ends_the_first(fake: TelegramFake, bot: Bot) -> None:
    first = asyncio.create_task(Inbox(bot, [ANN_ID], poll=30).run(Heard()))
    await until(lambda: len(fake.of("getUpdates")) >= 2)
    heard = Heard()
    async with Bot(TOKEN, base_url=fake.base_url) as other, listening(other, heard):
        with pytest.raises(Taken, match="one reader"):
            await asyncio.wait_for(first, 30)
        fake.says(ANN, "to the second")
        await heard.until(1)

    assert heard.texts == ["to the second"]


async def test_a_webhook_from_before_is_no_obstacle(fake: TelegramFake, bot: Bot) -> None:
    fake.set_webhook()
    heard = Heard()
    async with listening(bot, heard):
        await heard.until(1)


async def test_an_outage_is_waited_out_and_shown(fake: TelegramFake, bot: Bot, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        fake.lose_next("getUpdates", after=False)
    fake.flood_next("getUpdates", 1)
    troubles: set[str] = set()
    heard = Heard()
    async with listening(bot, heard) as inbox:
        async with asyncio.timeout(30):
            while not heard.events:
                troubles.add(inbox.trouble)
                await asyncio.sleep(0.01)
        assert inbox.trouble == ""

    assert any("no answer" in trouble for trouble in troubles)
    assert any("left alone for 1 s" in trouble for trouble in troubles)


async def test_an_update_that_nobody_can_read_is_passed_over(fake: TelegramFake, bot: Bot) -> None:
    fake.update("message", {"message_id": 9, "chat": private(ANN), "from": ANN, "text": "dateless"})
    fake.says(ANN, "next")
    heard = Heard()
    logging.disable(logging.CRITICAL)  # the library says its own word to it
    try:
        async with listening(bot, heard):
            await heard.until(2)
    finally:
        logging.disable(logging.NOTSET)

    assert heard.texts == ["hello", "next"]


async def test_stopping_ends_a_poll_at_once(fake: TelegramFake, bot: Bot) -> None:
    task = asyncio.create_task(Inbox(bot, [ANN_ID], poll=60).run(Heard()))
    await until(lambda: len(fake.of("getUpdates")) >= 2)
    before = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert time.monotonic() - before < 20


# The token


async def test_a_bad_token_is_said_so_and_not_shown(fake: TelegramFake) -> None:
    wrong = "987654321:" + "x" * 35
    with pytest.raises(Unauthorized, match="BotFather") as caught:
        async with Bot(wrong, base_url=fake.base_url):
            pass

    shown = "".join(traceback.format_exception(caught.value))
    assert "BotFather" in shown
    assert wrong not in shown


@pytest.mark.parametrize("token", ["", f"{TOKEN}\n", f" {TOKEN}", f"bot{TOKEN}", "1:a/../2:b", "1\u0661:abc"])
def test_what_can_be_no_token_is_said_so_at_once_and_not_shown(token: str) -> None:
    with pytest.raises(Unauthorized) as caught:
        Bot(token)

    assert not token or token not in "".join(traceback.format_exception(caught.value))


async def test_a_token_that_ends_while_listening(fake: TelegramFake, bot: Bot) -> None:
    fake.token = "another"

    with pytest.raises(Unauthorized):
        await asyncio.wait_for(Inbox(bot, [ANN_ID], poll=2).run(Heard()), 30)


async def test_no_log_and_no_error_shows_the_token(fake: TelegramFake, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    fake.says(ANN, "hello")
    errors: list[str] = []
    heard = Heard()
    async with Bot(TOKEN, base_url=fake.base_url) as bot:
        async with listening(bot, heard):
            await heard.until(1)
        for method in ("sendMessage", "sendDocument"):
            fake.lose_next(method, after=False)
        for call in (bot.send(ANN_ID, "x"), bot.send(4711, "x"), bot.send(ANN_ID, "x" * 5000)):
            with pytest.raises(BotError) as caught:
                await call
            errors.append(str(caught.value))
    with pytest.raises(Unavailable) as gone:
        async with Bot(TOKEN, base_url="http://127.0.0.1:9/bot"):
            pass

    assert len(errors) == 3
    assert TOKEN not in caplog.text
    assert TOKEN not in "".join([*errors, str(gone.value)])


@pytest.mark.parametrize("body", [b"[]", b"<html>", b'{"ok": true, "result": {"id": 1}}', b'{"ok": true}', b"null"])
async def test_whatever_answers_instead_of_telegram_is_unavailable(fake: TelegramFake, body: bytes) -> None:
    fake.garble_next("getMe", body)

    with pytest.raises(Unavailable):
        async with Bot(TOKEN, base_url=fake.base_url):
            pass


def test_the_library_is_imported_when_a_bot_is_made(repository_root: Path) -> None:
    script = "import sys, pilot.clients.telegram, pilot.clients.telegram_inbox; print('telegram' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository_root, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "False"


# Text


def test_text_is_measured_and_cut_as_telegram_does() -> None:
    smile = "\U0001f600"
    assert units(f"a{smile}") == 3
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert cut(smile * 3, 4) == smile + "…"
    assert cut(smile * 3, 5) == smile * 2 + "…"
    assert units(cut(smile * 5000)) <= 4096


def test_tokens_are_redacted() -> None:
    assert redacted(f"POST https://x/bot{TOKEN}/getMe") == "POST https://x/bot[redacted]/getMe"
    assert redacted(f"`{TOKEN}` was rejected") == "`[redacted]` was rejected"
    assert redacted("at 12:30:45 all was well") == "at 12:30:45 all was well"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/status", Command("status", "")),
        ("/Run api  fix\nthe login ", Command("run", "api  fix\nthe login")),
        ("/run@Pilot_Bot api x", Command("run", "api x")),
        ("/run@other_bot api x", None),
        ("run api x", None),
        ("/", None),
        ("/run-away", None),
        ("", None),
    ],
)
def test_commands(text: str, command: Command | None) -> None:
    assert as_command(text, str(BOT["username"])) == command
