"""The fences of what this machine has claimed by hand, so that nobody has to type them: a small file of one's own."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pilot.domain.errors import UsageError

MOST = 1000
"""Claims that are remembered; the oldest are forgotten."""


class Fences:
    """By place (a server, or the store here), worker and id. Raises `UsageError` when the file can't be written."""

    def __init__(self, state_dir: Path, place: str) -> None:
        self._path = state_dir / "claims.json"
        self._place = place

    def get(self, worker: str, id: int) -> int:
        """The fence of its last claim. Raises `UsageError` when none is known here."""
        found = self._read().get(self._key(worker, id))
        if not isinstance(found, int):
            raise UsageError(
                f"this machine does not know that {worker} has claimed {id}; give --fence, as the claim told it "
                "(and --worker, if it was claimed under another name)"
            )
        return found

    def put(self, worker: str, id: int, fence: int) -> None:
        """It was claimed. What it was stays known when it has ended: the same last word may be said again."""

        def newest(claims: dict[str, Any]) -> None:
            claims.pop(self._key(worker, id), None)
            claims[self._key(worker, id)] = fence

        self._change(newest)

    def _key(self, worker: str, id: int) -> str:
        return f"{self._place} {worker} {id}"

    def _read(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):  # none yet, or not ours: --fence says it then
            found = json.loads(self._path.read_text())
            return found if isinstance(found, dict) else {}
        return {}

    def _change(self, change: Callable[[dict[str, Any]], object]) -> None:
        """Two at once lose nothing of each other's, and a reader finds all of it or what was before."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._path.with_name(".claims.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                claims = self._read()
                change(claims)
                fresh = self._path.with_name(f".claims.{secrets.token_hex(8)}")
                with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                    json.dump(dict(list(claims.items())[-MOST:]), file)
                fresh.replace(self._path)
            finally:
                os.close(lock)
        except OSError as error:
            raise UsageError(f"{self._path}: {error.strerror}") from None
