"""What an agent writes into folders that set-up made: git does not know those, so it is not delivered, and said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pilot.domain.text import one_line
from pilot.runner.space import Workspace

_FILE = "set-up-folders"
_LOOKED_AT = 50_000
"""Files below them; a folder of dependencies has about as many. Beyond it nothing is looked for, nor said."""


def remember(ws: Workspace, made: Sequence[str]) -> None:
    """Set-up made these paths (folders end with a slash). The file's own time is the mark."""
    folders = [path for path in made if path.endswith("/")]
    (ws.home / _FILE).write_bytes(b"\0".join(map(os.fsencode, folders)))


def notes(ws: Workspace) -> list[str]:
    """One line on the files there that are newer than set-up, if there are any."""
    try:
        folders = os.fsdecode((ws.home / _FILE).read_bytes()).split("\0")
        mark = (ws.home / _FILE).stat().st_mtime_ns
    except OSError:
        return []  # set-up made nothing
    newer: list[Path] = []
    left = _LOOKED_AT
    for folder in filter(None, folders):
        for place, _, names in os.walk(ws.path / folder):
            left -= len(names)
            newer += [path for path in (Path(place) / name for name in names) if _changed(path) > mark]
            if left < 0:
                return []
    if not newer:
        return []
    some = ", ".join(one_line(str(path.relative_to(ws.path)), 80) for path in sorted(newer)[:3])
    return [f"{len(newer)} files in folders that set-up made are new or changed, and no part of the change: {some}"]


def _changed(path: Path) -> int:
    try:
        return path.lstat().st_ctime_ns
    except OSError:
        return 0
