"""The real daemon and a bot: asked for by phone, followed there, through kills and rivals."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.adapters.hook_server import HookServer
from tests.e2e.daemon import Home
from tests.e2e.telegram_fake import ANN, BOB, TOKEN, TelegramFake

ANN_ID, BOB_ID = 11, 12


@pytest.fixture
def fake() -> Iterator[TelegramFake]:
    with TelegramFake() as fake:
        yield fake


@pytest.fixture
def phone(home: Home, fake: TelegramFake) -> Home:
    """A home with a project and a bot. Leases are short, so that a death is noticed soon."""
    home.repo("web")
    telegram = {"token": TOKEN, "base_url": fake.base_url, "allowed_users": [ANN_ID, BOB_ID]}
    home.configure(sources={"telegram": telegram}, dispatcher={"lease": "4s", "drain_timeout": "10s"})
    return home


def shown(home: Home, fake: TelegramFake, words: str, chat: int = ANN_ID) -> int:
    """Wait until a message says this (a regular expression); its id."""

    def found() -> list[int]:
        return [id for (at, id), each in fake.messages() if at == chat and re.search(words, str(each.get("text", "")))]

    home.until(found, f"{words!r} in {fake.texts(chat)}")
    return found()[0]


def source(home: Home) -> dict[str, Any]:
    """What `status --json` says of the bot."""
    sources = home.pilot("status", "--json").json["sources"]
    return next((each for each in sources if each["name"] == "telegram"), {})


def test_a_run_from_the_phone_to_its_end(phone: Home, fake: TelegramFake) -> None:
    fake.lose_next("getMe", after=False)  # Telegram is down when it starts: that holds up nobody
    first = phone.enqueue("web", task_id="T-1")
    with phone.serve() as daemon:
        phone.reach("completed", first)
        fake.says(ANN, "/run web Do it.\ndo: say I look around\ndo: wait go")
        message = shown(phone, fake, "running.*\n> I look around")
        assert {"run", "status", "help"} <= fake.commands.keys()
        fake.says(BOB, "/run web Then that.")
        shown(phone, fake, r"queued: 2 \(do-it-.*runs in web", BOB_ID)
        phone.go("go")
        assert shown(phone, fake, "completed after") == message
        shown(phone, fake, "completed after", BOB_ID)
        assert "on branch pilot/do-it-" in fake.text(ANN_ID, message)
        assert source(phone)["status"] == "ok"
        daemon.term()
        assert daemon.wait() == 0
    assert len(fake.messages()) == 2
    assert TOKEN not in daemon.log
    phone.audit(completed=3)


def test_a_killed_daemon_goes_on_where_it_was(phone: Home, fake: TelegramFake) -> None:
    with phone.serve() as daemon:
        fake.says(ANN, "/run web Do it.\ndo: wait go")
        message = shown(phone, fake, "running")
        fake.says(BOB, "And that, please.")
        choice = shown(phone, fake, "Run this in web", BOB_ID)
        phone.until(lambda: not fake.unconfirmed(), "read to the end")
        daemon.kill9()
    fake.says(ANN, "/run web Meanwhile.")
    with phone.serve():
        shown(phone, fake, "queued: .*runs in web")
        phone.until(lambda: "attempt 2" in fake.text(ANN_ID, message), "the second attempt")
        phone.go("go")
        phone.until(lambda: "completed after" in fake.text(ANN_ID, message), "the end")
        markup = fake.message(BOB_ID, choice)["reply_markup"]["inline_keyboard"]
        fake.clicks(BOB, BOB_ID, choice, markup[0][0]["callback_data"])
        shown(phone, fake, "And that, please.*\ncompleted after", BOB_ID)
        shown(phone, fake, "Meanwhile.*\ncompleted after")
    phone.audit(completed=3)


def test_a_message_that_was_stored_before_the_kill_is_one_run(phone: Home, fake: TelegramFake) -> None:
    """Killed between the insert and the next poll: Telegram brings it again."""
    with phone.serve() as daemon:
        fake.says(ANN, "/run web Do it.")
        phone.until(lambda: phone.rows("SELECT 1 FROM executions"), "a row")
        daemon.kill9()
    fake.rewind()
    with phone.serve():
        shown(phone, fake, "completed after")
        phone.until(lambda: not fake.unconfirmed(), "read to the end")
    phone.audit(completed=1)


def test_a_question_by_phone_and_by_webhook_is_answered_from_the_phone(phone: Home, fake: TelegramFake) -> None:
    fence = "do 1: say ```pilot-question\ndo 1: say "
    question = '{"question": "What colour?", "options": ["red", "blue"]}'
    with HookServer() as hook:
        phone.configure(notify={"telegram": [BOB_ID], "webhook": [hook.url]})
        fake.says(BOB, "hello")
        with phone.serve():
            fake.says(ANN, f"/run web Paint it.\n{fence}{question}\ndo 1: say ```")
            asked = shown(phone, fake, "What colour.\n")
            theirs = shown(phone, fake, "What colour.\n", BOB_ID)
            phone.until(lambda: hook.posts, "a post")
            fake.says(BOB, "blue", reply_to=theirs)
            phone.until(lambda: "Answered by Bob B (Telegram 12): blue" in fake.text(ANN_ID, asked), "taken back")
            phone.until(lambda: "Answered by Bob B (Telegram 12): blue" in fake.text(BOB_ID, theirs), "taken back")
            shown(phone, fake, "completed after")
        assert hook.posts[0].document["event"] == "execution.asked"
        secret = (phone.state / "callbacks.secret").read_text().strip()
        assert hook.posts[0].signed_by(secret)
        assert len(hook.posts) == 1
    phone.audit(completed=1)


def test_of_two_daemons_one_reads_and_the_other_takes_over(phone: Home, fake: TelegramFake) -> None:
    with phone.serve() as one, phone.serve() as other:
        fake.says(ANN, "/projects")
        shown(phone, fake, "^web")
        (reader,) = phone.until(lambda: phone.rows("SELECT node FROM duties WHERE name LIKE 'telegram:%'"), "a reader")
        daemon = one if f"-{one.pid}-" in reader[0] else other
        seen = "SELECT 1 FROM duties WHERE name LIKE 'telegram:%' AND state LIKE '%\"11.%'"
        phone.until(lambda: phone.rows(seen), "that it was dealt with")
        daemon.kill9()
        fake.says(BOB, "/run web Do it.")
        shown(phone, fake, "completed after", BOB_ID)
    assert len([text for text in fake.texts(ANN_ID) if text.startswith("web")]) == 1
    phone.audit(completed=1)


def test_a_rival_reader_is_told_of_and_survived(phone: Home, fake: TelegramFake) -> None:
    with phone.serve() as daemon:
        phone.until(lambda: fake.of("getUpdates"), "a poll")
        fake.take_over()
        phone.until(lambda: source(phone).get("status") == "failing", "failing")
        found = source(phone)
        assert "another process reads this bot's messages" in found["reason"]
        assert "stop the other one" in found["reason"]
        fake.says(ANN, "/run web Do it.")
        shown(phone, fake, "completed after")
        phone.until(lambda: source(phone)["status"] == "ok", "ok again")
        assert "Traceback" not in daemon.log
    phone.audit(completed=1)
