"""The scripted model as a program of its own, as tests of a daemon use it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any


def ask(url: str, prompt: str, session: str) -> dict[str, Any]:
    body = {"model": "m", "tools": [{"name": "Bash"}], "messages": [{"role": "user", "content": prompt}]}
    request = urllib.request.Request(f"{url}/v1/messages", json.dumps(body).encode())
    request.add_header("x-claude-code-session-id", session)
    with urllib.request.urlopen(request, timeout=10) as answer:
        given: dict[str, Any] = json.load(answer)
    return given


def test_each_conversation_walks_through_the_script_of_its_prompt(tmp_path: Path) -> None:
    scripts = [{"when": "first", "turns": [{"text": "one"}, {"text": "two"}]}, {"turns": [{"text": "other"}]}]
    script, log = tmp_path / "script.json", tmp_path / "log.jsonl"
    script.write_text(json.dumps({"scripts": scripts}))
    argv = [sys.executable, "-m", "tests.e2e.model_server", str(script), "--log", str(log)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("listening on ").strip()
        try:
            said = [
                ask(url, prompt, session)["content"][0]["text"]
                for prompt, session in (("first", "a"), ("else", "b"), ("first", "a"), ("first", "a"), ("first", "c"))
            ]
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert said == ["one", "other", "two", "done", "one"]
    assert [json.loads(line)["session"] for line in log.read_text().splitlines()] == ["a", "b", "a", "a", "c"]
