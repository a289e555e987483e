"""What is logged has no secret in it, whoever logs it, and looks the same."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

TOKEN = "ghp_" + "a1B2" * 9
OWN = "own-secret-0123456789"
SCRIPT = f"""
import logging, structlog
from pilot.domain.redact import Redactor
from pilot.telemetry.logs import configure, redact_by
early = structlog.get_logger("early")
configure(json=JSON)
configure(json=JSON)
early.info("begun", value="{TOKEN}")
redact_by(lambda: Redactor(["{OWN}"]))
log = structlog.get_logger()
early.info("again", deep={{"a": ["{OWN}", b"{OWN}", 3]}}, number=3, none=None)
log.bind(own="{OWN}").warning("a.fact", error=ValueError("{OWN}"))
try:
    raise RuntimeError("{TOKEN} and {OWN}")
except RuntimeError:
    log.exception("it.broke")
    logging.getLogger("some.package").exception("library: %s", "{OWN}")
logging.getLogger("httpx").info("HTTP Request: POST https://api.telegram.org/bot123:{OWN}/getMe")
logging.getLogger("quiet").info("not shown")
logging.getLogger("telegram.ext").warning("bot123456:abcdefghijklmnop failed")
logging.getLogger("broken").warning("%d", "{OWN}")
"""


def logged(as_json: bool) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("JSON", str(as_json))], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr


def test_no_secret_is_logged() -> None:
    for said in (logged(False), logged(True)):
        assert TOKEN not in said
        assert OWN not in said
        assert "abcdefghijklmnop" not in said
        assert said.count("[redacted]") >= 8
        assert "HTTP Request" not in said
        assert "not shown" not in said
        assert "RuntimeError" in said


def test_libraries_log_lines_like_any_other() -> None:
    events = [json.loads(line) for line in logged(True).splitlines()]

    assert [event["event"] for event in events] == [
        "begun", "again", "a.fact", "it.broke", "library.said", "library.said", "library.said",
    ]  # fmt: skip
    assert events[4]["logger"] == "some.package"
    assert events[1]["deep"] == {"a": ["[redacted]", "b'[redacted]'", 3]}
    assert events[1]["number"] == 3


def test_nothing_in_a_value_moves_the_terminal() -> None:
    hostile = "a\x1b]0;title\x07\x1b[2J\u202eb"
    script = f"""
import logging, structlog
from pilot.telemetry.logs import configure
configure()
log = structlog.get_logger()
log.warning("a.fact", actor={hostile!r}, deep=[{hostile!r}])
logging.getLogger("some.package").warning({hostile!r})
try:
    raise RuntimeError({hostile!r})
except RuntimeError:
    log.exception("it.broke")
"""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    done = subprocess.run([sys.executable, "-c", script], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    said = os.read(ours, 1 << 16).decode()
    os.close(ours)

    assert done.returncode == 0
    assert "\x1b[1ma.fact" in said
    assert "RuntimeError: a" in said
    assert not [part for part in ("\x1b]", "\x07", "\x1b[2J", "\u202e") if part in said]
