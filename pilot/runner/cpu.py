"""How much processor a run has used: a sign of life of an agent that says nothing."""

from __future__ import annotations

import os
from pathlib import Path

from pilot.runner.proctree import marker_of

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(marker: str) -> float:
    """Seconds used so far by the processes of this run and the children they have waited for; 0.0 without /proc."""
    used = 0
    try:
        names = os.listdir("/proc")  # noqa: PTH208  names are enough
    except OSError:
        return 0.0
    for name in names:
        if name.isdecimal() and (marker_of(int(name)) or "").startswith(marker):
            used += _ticks(name)
    return used / _TICKS


def _ticks(pid: str) -> int:
    try:
        stat = Path("/proc", pid, "stat").read_bytes()
    except OSError:
        return 0  # gone since
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5), counted behind the command's closing bracket.
    return sum(map(int, stat.rpartition(b")")[2].split()[11:15]))
