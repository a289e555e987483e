"""The operator's own token: made at the first start of `pilot serve`, kept in the state directory for the CLI."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import structlog

from pilot.domain.access import Scope, Tokens
from pilot.domain.errors import NotFound, StoreError, UsageError

log = structlog.get_logger()
NAME = "token"
_LONGEST = 1024


async def ensure_token(state_dir: Path, tokens: Tokens) -> Path:
    """The file with an admin token that counts; a new one when there is none, or the store does not know it any more.

    Processes that start at once agree on one. Raises `UsageError` for a file that others could read, `StoreError`
    when it can't be written.
    """
    lock = await asyncio.to_thread(_lock, state_dir)
    try:
        try:
            token = read_token(state_dir)
        except NotFound:
            token = ""
        caller = await tokens.check(token) if token else None
        if caller is None or not caller.may(Scope.ADMIN):
            made = await tokens.create("operator", [Scope.ADMIN], "pilot serve")
            await asyncio.to_thread(_write, state_dir, made)
            log.info("token.made", file=str(state_dir / NAME), replaced=bool(token))
    finally:
        os.close(lock)
    return state_dir / NAME


def read_token(state_dir: Path) -> str:
    """The token in the state directory. Raises `NotFound`, and `UsageError` for a file that others could read."""
    path = state_dir / NAME
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"no token at {path}; `pilot serve` makes one when it starts") from None
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}. It has to be a file of your own, not a link") from None
    try:
        _check(path, os.fstat(file))
        words = os.read(file, _LONGEST).decode("ascii", "replace").split()
    finally:
        os.close(file)
    if len(words) != 1:
        raise NotFound(f"no token in {path}; remove the file, and `pilot serve` makes a new one when it starts")
    return words[0]


def _check(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(f"{path} is no file; move it away, and `pilot serve` makes one when it starts")
    if found.st_uid != os.geteuid():
        raise UsageError(f"{path} belongs to somebody else; move it away, and `pilot serve` makes a new one")
    if found.st_mode & 0o077:
        raise UsageError(
            f"others can read {path} (mode {stat.S_IMODE(found.st_mode):04o}), so that the token in it may be known "
            "to them: remove the file, and `pilot serve` makes a new token; revoke the old one with "
            "`pilot token list` and `pilot token revoke ID`"
        )


def _lock(state_dir: Path) -> int:
    with _in_words(state_dir):
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(state_dir / f"{NAME}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _write(state_dir: Path, token: str) -> None:
    """Whole or not at all, and nobody else's at any moment."""
    new = state_dir / f".{NAME}.{secrets.token_hex(8)}"
    with _in_words(state_dir / NAME):
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(f"{token}\n".encode())
                stream.flush()
                os.fsync(file)
            new.replace(state_dir / NAME)
        except BaseException:
            with contextlib.suppress(OSError):
                new.unlink()
            raise


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"can't write {path}: {error.strerror}") from error
