"""Where a worker elsewhere runs: its name on this machine taken once, and what a dead one of it left ended."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from pilot.domain.errors import Busy
from pilot.domain.text import slug
from pilot.runner.process import end_marked

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """One worker's place. `id` marks its agents' processes and its workspaces, as a store's id does elsewhere."""

    id: str
    folder: Path

    @property
    def _file(self) -> Path:
        return self.folder / f"{self.id}.lock"

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold it while this process lives. Raises `Busy` when another process has it."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = _locked(self._file)
        if lock is None:
            raise Busy("a worker of this name is at work for that server on this machine; name this one with --holder")
        try:
            yield
        finally:
            os.close(lock)

    async def began(self) -> None:
        """Before the first run: from now on there may be agents to end."""
        self._file.write_text("agents may be left\n")

    async def ended(self) -> None:
        """After the last: none is left."""
        self._file.write_text("")

    async def sweep(self) -> None:
        """End the agents that this one's predecessor left, which died without a word. The place has to be taken."""
        if self._file.read_text():
            await _end(self._file)

    async def sweep_others(self) -> None:
        """The same for all the others of this machine that are dead: they may stand in the repositories."""
        for file in sorted(self.folder.glob("*.lock")):
            if file == self._file or not file.stat().st_size or (lock := _locked(file)) is None:
                continue
            try:
                await _end(file)
                file.write_text("")
            finally:
                os.close(lock)


def place_of(state_dir: Path, server: str, holder: str) -> Place:
    """The place of a worker of this name, for that server."""
    digest = hashlib.sha256(f"{server}\0{holder}".encode(errors="replace")).hexdigest()[:12]
    return Place(f"worker-{slug(holder, 20)}-{digest}", state_dir / "workers")


async def _end(file: Path) -> None:
    pids = await end_marked(f"{file.stem}:")
    if pids:
        log.warning("worker.orphans_ended", worker=file.stem, processes=len(pids))


def _locked(file: Path) -> int | None:
    """The descriptor that holds it; None: somebody else does."""
    lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(lock)
        raise
    return lock
