"""This process as a node: what names it, on whose disk its work lies, and whether another one lives."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
from pathlib import Path

from pilot import __version__
from pilot.domain.errors import StoreError
from pilot.domain.ports import Node, NodeKind
from pilot.runner.host import boot_id, host_id
from pilot.runner.proctree import is_alive, is_there, start_ticks

PLACE = "place"
"""The file of a state directory that says which one it is, whatever the machine or container is called."""
_SHORT = 40
_PLACE = re.compile(r"[A-Za-z0-9._-]{1,80}")


def new_node(kind: NodeKind, max_running: int, place: str = "") -> Node:
    """This process, as the store will know it."""
    pid = os.getpid()
    return Node(
        id=f"{socket.gethostname()[:_SHORT]}-{pid}-{secrets.token_hex(3)}",
        kind=kind,
        host=host_id(),
        boot_id=boot_id(),
        pid=pid,
        start_ticks=start_ticks(pid) or 0,
        version=__version__,
        max_running=max_running,
        place=place,
    )


def alive(node: Node, *, local: bool) -> bool | None:
    """Whether the node's process lives; None when only its lease can tell.

    `local`: nobody on another machine can have the store open. A machine's name, id and first pid namespace may be
    another's, too: images are started twice. What no two machines share is the boot.
    """
    if node.host != host_id():
        return None
    boot = boot_id()
    if node.boot_id != boot or (not boot and not local):
        return False if local else None
    if is_alive(node.pid, node.start_ticks):
        return True
    # Another user's process is not shown everywhere (hidepid); that there is one is no secret.
    return None if start_ticks(node.pid) is None and is_there(node.pid) else False


def place_of(state_dir: Path) -> str:
    """Names this state directory, for ever: made at its first use. Raises `StoreError`."""
    path = state_dir / PLACE
    try:
        with contextlib.suppress(FileExistsError):
            _make(path)
        name = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"can't read or make {path}, which names this place: {error}") from error
    if not _PLACE.fullmatch(name):
        raise StoreError(f"{path} names no place; remove it, and it is made anew")
    return name


def _make(path: Path) -> None:
    """Whole, or not at all: several processes may be at it."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:_SHORT]
    part = path.with_name(f"{PLACE}.{secrets.token_hex(4)}")
    if path.exists():
        return
    handle = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{host}-{secrets.token_hex(3)}\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)  # never over one that is there
    finally:
        part.unlink()
