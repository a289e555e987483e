"""Whether a workspace can go: only when all that is in it is somewhere else, too."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from pilot.runner.making import MODES
from pilot.runner.source import Source
from pilot.runner.space import Workspace


async def is_safe(ws: Workspace) -> bool:
    """Whether all that is in a workspace is somewhere else, too."""
    record = ws.record
    if any(entry.name.startswith("lost-") for entry in ws.home.iterdir()):
        return False
    if record.changed and record.preserved != record.head and record.wip is None:
        return False
    if ws.mode == "in_place":
        return record.former is None
    mode = MODES[ws.mode]
    if not mode.intact(ws):
        return not ws.path.exists()
    head, _ = await mode.head(ws)
    if record.kept != record.index:
        await ws.tree.stand_on(record.kept)
    everywhere, changes = await asyncio.gather(_has_all(ws.source, record.refs.values()), ws.tree.changes())
    return everywhere and head == record.head and not changes.any


async def _has_all(source: Source, commits: Collection[str]) -> bool:
    """Whether the project has all of these: what else an agent committed or stashed may be nowhere but here."""
    asked = "\n".join(sorted(commits)).encode()
    done = await source.git.run("cat-file", "--batch-check", stdin=asked)
    return "missing" not in done.text
