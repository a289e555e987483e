"""A Telegram of one's own on loopback: the few methods of the Bot API that pilot's bot uses, with their refusals.

Telegram publishes no description to check it against; python-telegram-bot, which reads every answer, is the check that
they are well formed. What it refuses, and in which words, is written by hand from the Bot API's documentation.
"""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import json
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

TOKEN = "123456789:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw"
ANN = {"id": 11, "is_bot": False, "first_name": "Ann"}
BOB = {"id": 12, "is_bot": False, "first_name": "Bob", "last_name": "B", "username": "bob"}
EVE = {"id": 99, "is_bot": False, "first_name": "Eve"}
BOT = {"id": 123456789, "is_bot": True, "first_name": "pilot", "username": "pilot_bot"}

KNOWN: Mapping[str, set[str]] = {
    "getMe": set(),
    "deleteWebhook": {"drop_pending_updates"},
    "setMyCommands": {"commands"},
    "getUpdates": {"offset", "limit", "timeout", "allowed_updates"},
    "sendMessage": {"chat_id", "text", "entities", "reply_markup", "reply_parameters", "link_preview_options"},
    "sendDocument": {
        "chat_id", "document", "caption", "reply_markup", "reply_parameters", "disable_content_type_detection",
    },
    "editMessageText": {"chat_id", "message_id", "text", "entities", "reply_markup", "link_preview_options"},
    "answerCallbackQuery": {"callback_query_id", "text"},
}  # fmt: skip

Json = dict[str, Any]


class Refusal(Exception):
    """An error of the Bot API."""

    def __init__(self, code: int, words: str, **parameters: Any) -> None:
        super().__init__(words)
        self.code = code
        self.parameters = parameters


@dataclass(slots=True)
class Call:
    """One request, and when (monotonic seconds)."""

    method: str
    parameters: Json
    at: float


@dataclass(slots=True)
class _Fault:
    method: str
    after: bool = True
    seconds: int | None = None
    body: bytes | None = None
    held: bool = False


@dataclass(slots=True)
class _State:
    chats: dict[int, Json] = field(default_factory=dict)
    messages: dict[tuple[int, int], Json] = field(default_factory=dict)
    files: dict[tuple[int, int], bytes] = field(default_factory=dict)
    updates: list[Json] = field(default_factory=list)
    brought: list[Json] = field(default_factory=list)
    past: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    held: int = 0
    holding: bool = False
    answered: dict[str, str] = field(default_factory=dict)
    faults: list[_Fault] = field(default_factory=list)
    commands: dict[str, str] = field(default_factory=dict)
    poller: int = 0
    webhook: bool = False


class TelegramFake:
    """Runs in threads of its own until it is closed."""

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.calls: list[Call] = []
        self.mistakes: list[str] = []
        self._changed = threading.Condition()
        self._state = _State()
        self._numbers = itertools.count(1)
        self._closing = False
        self._http = _Server(("127.0.0.1", 0), _Handler, self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)

    @property
    def base_url(self) -> str:
        """As the bot is given it."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/bot"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        if error is None and self.mistakes:
            raise AssertionError(f"the bot asks for what there is not: {self.mistakes}")

    # What people do

    def says(self, user: Json, text: str, *, chat: Json | None = None, reply_to: int | None = None, **more: Any) -> int:
        """Somebody says something, in private or in a `group`; the message's id."""
        with self._changed:
            message = self._message(chat or private(user), user, text=text, **more)
            if reply_to is not None:
                message["reply_to_message"] = self._state.messages[message["chat"]["id"], reply_to]
            self._update("message", message)
            found: int = message["message_id"]
            return found

    def clicks(self, user: Json, chat: int, message: int, data: str) -> str:
        """Somebody clicks a button; the click's id."""
        with self._changed:
            id = f"q{next(self._numbers)}"
            below = self._state.messages[chat, message]
            self._update(
                "callback_query", {"id": id, "from": user, "message": below, "chat_instance": "1", "data": data}
            )
            self._state.answered[id] = "?"
            return id

    def update(self, kind: str, what: Json) -> None:
        """Any other update, brought even if nobody asks for its kind, as one from before they were asked for is."""
        with self._changed:
            self._update(kind, what)
            self._state.updates[-1]["stale"] = True

    def block(self, user: Json) -> None:
        """Somebody wants to hear nothing more from the bot."""
        self._state.chats[user["id"]]["blocked"] = True

    # What goes wrong

    def flood_next(self, method: str, seconds: int) -> None:
        """The next call of this method is told to wait."""
        self._state.faults.append(_Fault(method, seconds=seconds))

    def lose_next(self, method: str, *, after: bool) -> None:
        """The next call's answer is a 502, before or after it took effect."""
        self._state.faults.append(_Fault(method, after))

    def garble_next(self, method: str, body: bytes) -> None:
        """The next call is answered with this instead."""
        self._state.faults.append(_Fault(method, after=False, body=body))

    def hold_next(self, method: str) -> None:
        """The next call of this method takes effect, and is answered, when it is `let_go`; later ones go past it."""
        self._state.holding = True
        self._state.faults.append(_Fault(method, held=True))

    def held(self) -> int:
        """How many calls are held."""
        return self._state.held

    def let_go(self) -> None:
        """Go on with what is held."""
        with self._changed:
            self._state.holding = False
            self._changed.notify_all()

    def take_over(self) -> None:
        """Somebody else polls."""
        with self._changed:
            self._state.poller += 1
            self._changed.notify_all()

    def rewind(self) -> None:
        """Nothing was confirmed: all that was ever said comes again."""
        with self._changed:
            self._state.updates[:] = self._state.brought
            self._changed.notify_all()

    def set_webhook(self) -> None:
        """Somebody gave the bot a webhook: it can't be polled."""
        self._state.webhook = True

    # What there is

    def text(self, chat: int, message: int) -> str:
        """What a message says now."""
        found: str = self._state.messages[chat, message].get("text", "")
        return found

    def texts(self, chat: int) -> list[str]:
        """What the bot has said in a chat, as it stands there now."""
        with self._changed:
            mine = [each for (at, _), each in self._state.messages.items() if at == chat and each["from"] == BOT]
            return [str(each.get("text", each.get("caption", ""))) for each in mine]

    def messages(self) -> list[tuple[tuple[int, int], Json]]:
        """What the bot has said anywhere, by chat and id, oldest first."""
        with self._changed:
            return [(place, each) for place, each in self._state.messages.items() if each["from"] == BOT]

    def past(self, chat: int, message: int) -> list[str]:
        """All that a message was edited to, in order."""
        return self._state.past.get((chat, message), [])

    def message(self, chat: int, message: int) -> Json:
        """A whole message."""
        return self._state.messages[chat, message]

    def file(self, chat: int, message: int) -> bytes:
        """A file that was sent."""
        return self._state.files[chat, message]

    @property
    def commands(self) -> Mapping[str, str]:
        """What the bot offers, as people see it."""
        return self._state.commands

    def answered(self, click: str) -> str:
        """What a click was answered; "?": nothing yet."""
        return self._state.answered[click]

    def forget(self, click: str) -> None:
        """The click is too old to be answered."""
        del self._state.answered[click]

    def unconfirmed(self) -> int:
        """How many updates it would bring again."""
        return len(self._state.updates)

    def of(self, method: str) -> list[Call]:
        """The calls of a method."""
        return [call for call in self.calls if call.method == method]

    def wait_for(self, condition: Callable[[], object], timeout: float = 30) -> None:
        """Wait until it holds."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                raise AssertionError(f"nothing of the kind in {timeout} s: {self.calls[-5:]}")

    # What the bot asks

    def answer(self, token: str, method: str, parameters: Json, files: Mapping[str, tuple[str, bytes]]) -> bytes | None:
        """The body of an answer; None: it is lost. Raises `Refusal`."""
        with self._changed:
            if token != self.token:
                raise Refusal(401, "Unauthorized")
            known = next((name for name in KNOWN if name.lower() == method.lower()), None)
            if known is None:
                self.mistakes.append(method)
                raise Refusal(404, "Not Found")
            method = known
            self.mistakes += [f"{method}.{name}" for name in parameters.keys() - KNOWN[method]]
            self.calls.append(Call(method, parameters, time.monotonic()))
            self._changed.notify_all()
            fault = next((fault for fault in self._state.faults if fault.method == method), None)
            if fault is not None:
                self._state.faults.remove(fault)
                if fault.held:
                    self._state.held += 1
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: self._closing or not self._state.holding)
                    fault = None
            if fault is not None:
                if fault.seconds is not None:
                    words = f"Too Many Requests: retry after {fault.seconds}"
                    raise Refusal(429, words, retry_after=fault.seconds)
                if not fault.after:
                    return fault.body
            result = _METHODS[method](self, parameters, files)
            self._changed.notify_all()
            return None if fault is not None else json.dumps({"ok": True, "result": result}).encode()

    def get_me(self, _asked: Json, _files: Mapping[str, Any]) -> Json:
        return {**BOT, "can_join_groups": True, "can_read_all_group_messages": False, "supports_inline_queries": False}

    def delete_webhook(self, asked: Json, _files: Mapping[str, Any]) -> bool:
        self._state.webhook = False
        if asked.get("drop_pending_updates"):
            self._state.updates.clear()
        return True

    def set_my_commands(self, asked: Json, _files: Mapping[str, Any]) -> bool:
        commands = {each["command"]: each["description"] for each in asked["commands"]}
        for name, words in commands.items():
            if not re.fullmatch(r"[a-z0-9_]{1,32}", name) or not 1 <= len(words) <= 256:
                raise Refusal(400, "Bad Request: BOT_COMMAND_INVALID")
        self._state.commands = commands
        return True

    def get_updates(self, asked: Json, _files: Mapping[str, Any]) -> list[Json]:
        """A long poll; whoever polls later ends the one before."""
        state = self._state
        if state.webhook:
            raise Refusal(409, "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook")
        state.poller += 1
        me = state.poller
        self._changed.notify_all()
        offset = asked.get("offset") or 0
        state.updates[:] = [update for update in state.updates if update["update_id"] >= offset]
        kinds = asked.get("allowed_updates") or ()

        def wanted() -> list[Json]:
            return [update for update in state.updates if not kinds or update.keys() & {*kinds, "stale"}]

        self._changed.wait_for(
            lambda: wanted() or state.poller != me or self._closing, timeout=asked.get("timeout") or 0
        )
        if state.poller != me:
            words = "terminated by other getUpdates request; make sure that only one bot instance is running"
            raise Refusal(409, f"Conflict: {words}")
        brought = wanted()[: asked.get("limit") or 100]
        return [{key: value for key, value in update.items() if key != "stale"} for update in brought]

    def send_message(self, asked: Json, _files: Mapping[str, Any]) -> Json:
        text = self._text(asked.get("text", ""), 4096, "message is too long")
        more = {key: asked[key] for key in ("entities",) if key in asked}
        return self._sent(asked, text=text, **more)

    def send_document(self, asked: Json, files: Mapping[str, tuple[str, bytes]]) -> Json:
        name, content = files[asked["document"].removeprefix("attach://")]
        caption = asked.get("caption", "")
        if units(caption) > 1024:
            raise Refusal(400, "Bad Request: message caption is too long")
        document = {"file_id": "f", "file_unique_id": "f", "file_name": name, "file_size": len(content)}
        message = self._sent(asked, document=document, **({"caption": caption} if caption else {}))
        self._state.files[message["chat"]["id"], message["message_id"]] = content
        return message

    def edit_message_text(self, asked: Json, _files: Mapping[str, Any]) -> Json:
        message = self._state.messages.get((asked["chat_id"], asked["message_id"]))
        if message is None or message["from"] != BOT or "text" not in message:
            raise Refusal(400, "Bad Request: message to edit not found")
        text = self._text(asked["text"], 4096, "MESSAGE_TOO_LONG")
        markup = self._markup(asked)
        if (text, markup) == (message["text"], message.get("reply_markup")):
            words = "specified new message content and reply markup are exactly the same as a current content and reply"
            raise Refusal(400, f"Bad Request: message is not modified: {words} markup of the message")
        self._state.past.setdefault((asked["chat_id"], asked["message_id"]), []).append(text)
        message.pop("reply_markup", None)
        message.update(text=text, edit_date=int(time.time()), **({"reply_markup": markup} if markup else {}))
        return message

    def answer_callback_query(self, asked: Json, _files: Mapping[str, Any]) -> bool:
        id = asked["callback_query_id"]
        if id not in self._state.answered:
            words = "query is too old and response timeout expired or query ID is invalid"
            raise Refusal(400, f"Bad Request: {words}")
        self._state.answered[id] = asked.get("text", "")
        return True

    def _sent(self, asked: Json, **content: Any) -> Json:
        chat = self._state.chats.get(asked["chat_id"])
        if chat is None:
            raise Refusal(400, "Bad Request: chat not found")
        if chat.get("blocked"):
            raise Refusal(403, "Forbidden: bot was blocked by the user")
        markup = self._markup(asked)
        reply = (asked.get("reply_parameters") or {}).get("message_id", 0)
        before = self._state.messages.get((chat["id"], reply))
        return self._message(
            chat,
            BOT,
            **content,
            **({"reply_markup": markup} if markup else {}),
            **({"reply_to_message": before} if before else {}),
        )

    def _message(self, chat: Json, user: Json, **content: Any) -> Json:
        self._state.chats.setdefault(chat["id"], chat)
        message = {"message_id": next(self._numbers), "date": int(time.time()), "chat": chat, "from": user, **content}
        self._state.messages[chat["id"], message["message_id"]] = message
        return message

    def _update(self, kind: str, what: Json) -> None:
        update = {"update_id": 1000 + next(self._numbers), kind: what}
        self._state.updates.append(update)
        self._state.brought.append(update)
        self._changed.notify_all()

    def _markup(self, asked: Json) -> Json | None:
        markup: Json | None = asked.get("reply_markup")
        for button in itertools.chain.from_iterable((markup or {}).get("inline_keyboard", ())):
            if not 1 <= len(button["callback_data"].encode()) <= 64:
                raise Refusal(400, "Bad Request: BUTTON_DATA_INVALID")
        return markup

    def _text(self, text: str, limit: int, words: str) -> str:
        if not text.strip():
            raise Refusal(400, "Bad Request: message text is empty")
        if units(text) > limit:
            raise Refusal(400, f"Bad Request: {words}")
        return text


_METHODS: Mapping[str, Callable[[TelegramFake, Json, Mapping[str, tuple[str, bytes]]], Any]] = {
    "getMe": TelegramFake.get_me,
    "deleteWebhook": TelegramFake.delete_webhook,
    "setMyCommands": TelegramFake.set_my_commands,
    "getUpdates": TelegramFake.get_updates,
    "sendMessage": TelegramFake.send_message,
    "sendDocument": TelegramFake.send_document,
    "editMessageText": TelegramFake.edit_message_text,
    "answerCallbackQuery": TelegramFake.answer_callback_query,
}


def private(user: Json) -> Json:
    """Somebody's own chat with the bot."""
    return {"id": user["id"], "type": "private", "first_name": user["first_name"]}


def group(id: int, title: str = "Team") -> Json:
    """A group."""
    return {"id": id, "type": "supergroup", "title": title}


def units(text: str) -> int:
    """Its length as Telegram counts."""
    return len(text.encode("utf-16-le")) // 2


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], fake: TelegramFake) -> None:
        super().__init__(address, handler)
        self.fake = fake

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # who asked may have gone
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its headers
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        _, token, method = self.path.split("/")
        try:
            parameters, files = self._asked(body)
            answer = self.server.fake.answer(token.removeprefix("bot"), method, parameters, files)
        except Refusal as refusal:
            said = {"ok": False, "error_code": refusal.code, "description": str(refusal)}
            if refusal.parameters:
                said["parameters"] = refusal.parameters
            self._send(refusal.code, json.dumps(said).encode())
        else:
            if answer is None:
                self._send(502, b"<html>Bad gateway</html>", "text/html")
            else:
                self._send(200, answer)

    def _asked(self, body: bytes) -> tuple[Json, dict[str, tuple[str, bytes]]]:
        kind = self.headers["content-type"] or ""
        if not kind.startswith("multipart/"):
            plain = urllib.parse.parse_qs(body.decode(), keep_blank_values=True)
            return {name: _value(name, values[0]) for name, values in plain.items()}, {}
        parser = email.parser.BytesParser(policy=email.policy.HTTP)
        parts = parser.parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
        parameters: Json = {}
        files: dict[str, tuple[str, bytes]] = {}
        for part in parts.iter_parts():
            name = str(part.get_param("name", header="content-disposition"))
            content = part.get_payload(decode=True)
            assert isinstance(content, bytes)
            file_name = part.get_filename()
            if file_name is None:
                parameters[name] = _value(name, content.decode())
            else:
                files[name] = (file_name, content)
                parameters.setdefault(name, f"attach://{name}")
        return parameters, files

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _value(name: str, text: str) -> Any:
    """Everything but words is JSON."""
    return text if name in ("text", "caption", "callback_query_id", "document") else json.loads(text)
