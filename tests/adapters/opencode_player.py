"""Plays a scripted agent behind a server that answers as OpenCode's does. Not imported: see `program`.

What the script puts out line by line as `{"oc": …}` becomes events and messages; all else is the server's own output.
"""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pilot.testing.player import play  # left out in the program: there it stands above

SESSION = "ses_0123456789abcdefghijklmnop"


class State:
    """What the server knows."""

    lost = False
    aborted = False
    deaf = False
    slow = False
    prompts = 0
    serving = False
    busy = False
    session = SESSION
    steps: list[Any] = []  # noqa: RUF012  one program, one script
    messages: list[dict[str, Any]] = []  # noqa: RUF012
    listeners: list[queue.Queue[tuple[bytes, threading.Event]]] = []  # noqa: RUF012
    number = 0


def put(fd: int, data: bytes) -> None:
    """In place of the player's: words of the agent become events."""
    if fd == 1 and data.startswith(b'{"oc"'):
        for line in data.splitlines():
            act(json.loads(line))
        return
    while data:
        data = data[os.write(fd, data) :]


def publish(type: str, **properties: Any) -> None:
    """Tell it to every listener; returns when they have it, so that a slow one holds the agent up."""
    event = {"id": "evt_1", "type": type, "properties": {"sessionID": State.session, **properties}}
    data = f"data: {json.dumps(event)}\n\n".encode()
    written = [threading.Event() for _ in State.listeners]
    for listener, done in zip(State.listeners, written, strict=True):
        listener.put((data, done))
    for done in written:
        done.wait()


def part(**more: Any) -> None:
    """A new part of the answer, or a new state of the last one."""
    answer = State.messages[-1]
    one = {"messageID": answer["info"]["id"], "sessionID": State.session, **more}
    answer["parts"] = [old for old in answer["parts"] if old["id"] != one["id"]] + [one]
    publish("message.part.updated", part=one, time=1)


def act(order: dict[str, Any]) -> None:
    """One thing that the agent does."""
    if State.aborted:
        time.sleep(600)
    kind, text = order["oc"], order.get("text", "")
    if kind in ("text", "end") and text:
        State.number += 1
        part(id=f"prt_{State.number}", type="text", text=text, time={"start": 1, "end": 2})
    if kind == "call":
        State.number += 1
        state = {"status": "running", "input": {"command": text}}
        part(id=f"prt_{State.number}", type="tool", tool="bash", callID=f"call_{State.number}", state=state)
    if kind == "answer":
        state = {"status": "completed", "input": {}, "output": text}
        part(id=f"prt_{State.number}", type="tool", tool="bash", callID=f"call_{State.number}", state=state)
    if kind == "idle":
        rest()
    if kind == "error":
        publish("session.error", error={"name": "UnknownError", "data": {"message": text}})
    if kind == "forget":
        State.messages.clear()
        rest()
    if kind == "end":
        info = State.messages[-1]["info"]
        info |= {"finish": "stop", "time": {"created": 1, "completed": 2}, **order.get("info", {})}
        publish("message.updated", info=info)
        rest()


def rest() -> None:
    State.busy = False
    publish("session.status", status={"type": "idle"})
    publish("session.idle")


def work(body: dict[str, Any]) -> None:
    """Play the script as the answer to a prompt."""
    prompt = "".join(one["text"] for one in body["parts"])
    sys.stdin = io.TextIOWrapper(io.BytesIO(prompt.encode()))
    sys.argv.append(State.session)
    publish("session.status", status={"type": "busy"})
    publish("message.updated", info=State.messages[-1]["info"])
    try:
        play(State.steps)
    except SystemExit as end:
        os._exit(end.code if isinstance(end.code, int) else 1)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or a body waits 40 ms for the acknowledgement of its headers

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def answer(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if not self.allowed():
            self.answer(None, 401)
        elif path == "/event":
            self.events()
        elif path == "/global/health":
            self.answer({"healthy": True, "version": "1.0.0"})
        elif path == "/config/providers":
            self.answer({"providers": [{"id": "some", "models": {"model": {}}}]})
        elif path == "/session/status":
            self.answer({State.session: {"type": "busy"}} if State.busy else {})
        elif path.endswith("/message"):
            self.answer(State.messages)
        elif path.endswith(("/children", "/permission", "/question")):
            self.answer([])
        elif State.lost:
            self.answer({"name": "NotFoundError", "data": {"message": "Session not found"}}, 404)
        else:
            self.answer({"id": path.rpartition("/")[2], "directory": os.getcwd()})  # noqa: PTH109

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", "0"))) or b"{}")
        if not self.allowed():
            self.answer(None, 401)
        elif self.path.endswith("/prompt_async"):
            State.prompts += 1
            if any(one["info"]["id"] == body["messageID"] for one in State.messages):
                self.answer(True)
                return
            State.session, State.busy = self.path.split("/")[2], True
            info = {"role": "assistant", "sessionID": State.session, "time": {"created": 1}}
            State.messages += [
                {"info": {"id": body["messageID"], "role": "user"}, "parts": body["parts"]},
                {"info": {"id": "msg_answer", "providerID": "some", "modelID": "model", **info}, "parts": []},
            ]
            threading.Thread(target=work, args=(body,), daemon=True).start()
            if State.slow:
                time.sleep(0.3)
            if State.deaf:
                self.close_connection = True  # the answer is lost on the way
                return
            self.send_response(204)
            self.end_headers()
        elif self.path.endswith("/abort"):
            State.busy, State.aborted = False, True
            self.answer(True)
        elif self.path.partition("?")[0] == "/session":
            self.answer({"id": SESSION, "directory": os.getcwd()})  # noqa: PTH109
        else:
            self.answer(True)

    def allowed(self) -> bool:
        word = f"{os.environ['OPENCODE_SERVER_USERNAME']}:{os.environ['OPENCODE_SERVER_PASSWORD']}"
        return self.headers.get("authorization") == f"Basic {base64.b64encode(word.encode()).decode()}"

    def events(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        mine: queue.Queue[tuple[bytes, threading.Event]] = queue.Queue(1)
        State.listeners.append(mine)
        data, done = b'data: {"type":"server.connected","properties":{}}\n\n', threading.Event()
        try:
            while True:
                self.wfile.write(data)
                self.wfile.flush()
                done.set()
                data, done = mine.get()
        except OSError:
            State.listeners.remove(mine)
            done.set()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who goes away, goes."""


def main(steps: list[Any]) -> None:
    """`serve` as OpenCode does; anything else plays the script as a plain program."""
    if "serve" not in sys.argv:
        play(steps)
        return
    State.steps = steps
    said = b"".join(base64.b64decode(value) for step, value in steps if step == "out")
    State.lost, State.deaf, State.slow = (f'"{word}"'.encode() in said for word in ("lost", "deaf", "slow"))
    server = Server(("127.0.0.1", int(sys.argv[-1])), Handler)
    os.write(1, f"opencode server listening on http://127.0.0.1:{sys.argv[-1]}\n".encode())
    server.serve_forever(0.05)
