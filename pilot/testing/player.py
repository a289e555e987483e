"""Plays a scripted agent. Not imported: its text becomes the program (`Script.program`), so it stands alone."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

HIDDEN = """
import os, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
with open(sys.argv[1] + ".part", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".part", sys.argv[1])
while True:
    time.sleep(60)
"""
"""A process that ignores what can be ignored, in a session of its own."""


def put(fd: int, data: bytes) -> None:
    """All of it, however little a pipe takes at once."""
    while data:
        data = data[os.write(fd, data) :]


def until(file: str) -> None:
    """Wait for the file."""
    while not Path(file).exists():
        time.sleep(0.005)


def obey() -> None:
    """Exit at the end of standard input."""
    sys.stdin.buffer.read()
    os._exit(0)


def say(step: str, value: Any) -> bool:
    """The steps that put something out."""
    match step:
        case "out":
            put(1, base64.b64decode(value))
        case "err":
            put(2, base64.b64decode(value))
        case "fill":
            for _ in range(value):
                put(1, b"x" * (1 << 20))
        case "flood":
            while True:
                put(1, base64.b64decode(value))
        case _:
            return False
    return True


def tell(step: str, value: Any) -> bool:
    """The steps that write down what the agent was given, into the file `value`."""
    match step:
        case "read":
            Path(value).write_bytes(sys.stdin.buffer.read())
        case "line":
            Path(value).write_bytes(sys.stdin.buffer.readline())
        case "copy":
            Path(value).write_bytes(Path(sys.argv[-1]).read_bytes())
        case "arguments":
            Path(value).write_text(json.dumps(sys.argv[1:]))
        case "state":
            Path(value).write_text(json.dumps([os.getcwd(), dict(os.environ)]))  # noqa: PTH109  as it was started
        case _:
            return False
    return True


def play(steps: list[tuple[str, Any]]) -> None:
    """One step after the other."""
    for step, value in steps:
        if say(step, value) or tell(step, value):
            continue
        match step:
            case "wait":
                time.sleep(value)
            case "until":
                until(value)
            case "obey":
                threading.Thread(target=obey, daemon=True).start()
            case "hide":
                subprocess.Popen([sys.executable, "-ISc", HIDDEN, value], start_new_session=True)
                until(value)
            case "child":
                subprocess.run(["sleep", "600"], check=False)
            case "kill":
                os.kill(os.getpid(), value)
            case "exit":
                sys.exit(value)
            case _:
                sys.exit(f"no such step: {step}")
