"""What a scripted agent does, as steps."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

PLAYER = Path(__file__).with_name("player.py").read_text()


class Script:
    """What the agent does, step by step."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, Any]] = []

    def _add(self, step: str, value: Any = None) -> Script:
        self.steps.append((step, value))
        return self

    def out(self, data: bytes) -> Script:
        """These bytes on standard output."""
        return self._add("out", base64.b64encode(data).decode())

    def err(self, data: bytes) -> Script:
        """These bytes on standard error."""
        return self._add("err", base64.b64encode(data).decode())

    def fill(self, megabytes: int) -> Script:
        """So many MB of output without a newline."""
        return self._add("fill", megabytes)

    def flood(self, data: bytes) -> Script:
        """The same bytes for ever."""
        return self._add("flood", base64.b64encode(data).decode())

    def wait(self, seconds: float = 600) -> Script:
        """Silence."""
        return self._add("wait", seconds)

    def until(self, file: Path) -> Script:
        """Silence, until the file is there."""
        return self._add("until", str(file))

    def read(self, into: Path, *, line: bool = False) -> Script:
        """Read standard input, to its end or only a line, into a file."""
        return self._add("line" if line else "read", str(into))

    def copy(self, into: Path) -> Script:
        """Copy the file that the last argument names."""
        return self._add("copy", str(into))

    def arguments(self, into: Path) -> Script:
        """Write down the arguments, as JSON."""
        return self._add("arguments", str(into))

    def state(self, into: Path) -> Script:
        """Write down the working directory and the environment, as JSON."""
        return self._add("state", str(into))

    def hide(self, pid: Path) -> Script:
        """Start a process that leaves the group, ignores SIGTERM and never ends; its pid in a file."""
        return self._add("hide", str(pid))

    def child(self) -> Script:
        """Wait for a child that sleeps."""
        return self._add("child")

    def kill(self, number: int) -> Script:
        """Die by this signal."""
        return self._add("kill", number)

    def exit(self, code: int) -> Script:
        """The end, with this exit code."""
        return self._add("exit", code)

    def program(self, folder: Path) -> Path:
        """The script as an executable file."""
        path = folder / f"agent-{len(list(folder.iterdir()))}"
        path.write_text(f"#!{sys.executable} -ISu\n{PLAYER}\nplay(json.loads({json.dumps(self.steps)!r}))\n")
        path.chmod(0o755)
        return path
