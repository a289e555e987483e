"""The machine as the kernel names it: which one, which boot of it, and what it killed for want of memory."""

from __future__ import annotations

import socket
import uuid
from pathlib import Path

from pilot.runner import proctree


def boot_id() -> str:
    """Names this boot of the machine; empty where the system has no such name."""
    return _first_line(proctree.PROC / "sys" / "kernel" / "random" / "boot_id")


def host_id() -> str:
    """Names the set of processes that this one can see: host name, machine, pid namespace.

    Nodes with the same id may judge and end each other's processes; a container is a host of its own.
    """
    machine = _first_line(Path("/etc/machine-id")) or f"{uuid.getnode():012x}"
    try:
        namespace = str((proctree.PROC / "self" / "ns" / "pid").stat().st_ino)
    except OSError:
        namespace = "0"
    return f"{socket.gethostname()}/{machine}/{namespace}"


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since boot; 0 where nobody counts."""
    try:
        counters = (proctree.PROC / "vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in counters if line.startswith("oom_kill ")), 0)


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
