"""What a worker elsewhere has made, as a file that others can have: its branch is on its own machine only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import structlog

from pilot.config.schema import ProjectSettings
from pilot.domain.errors import WorkspaceError
from pilot.domain.execution import Execution
from pilot.domain.outcome import Outcome
from pilot.domain.text import slug
from pilot.domain.work import Artifact
from pilot.runner.git import Git
from pilot.runner.source import open_source

log = structlog.get_logger()
UPLOAD = 900 << 10
"""Bytes of a diff in a request, at most; the server takes 1 MiB with all that comes with it."""


async def diff_of(
    git: Git, own: ProjectSettings, state_dir: Path, execution: Execution, outcome: Outcome
) -> Sequence[Artifact]:
    """`TASK.diff` from base to head, as `git apply` takes it; nothing when there is none or it is too large."""
    base, head = outcome.base_sha, outcome.head_sha
    if base is None or head is None or base == head:
        return ()
    try:
        source = open_source(git, own, state_dir)
        done = await source.git.run(
            "diff-tree", "-p", "--binary", "--full-index", "--no-ext-diff", "--no-textconv", base, head, "--"
        )
    except (WorkspaceError, OSError) as error:
        log.warning("diff.failed", execution=execution.id, error=str(error))
        return ()
    if not done.out or _size(done.out) > UPLOAD:
        log.info("diff.left_here", execution=execution.id, bytes=len(done.out))
        return ()
    return (Artifact(f"{slug(execution.task_id, 80)}.diff", done.out),)


def _size(data: bytes) -> int:
    """Bytes that it takes in a request, at most."""
    if len(data) > UPLOAD:
        return len(data)
    return max(len(json.dumps(data.decode(errors="replace"))), len(data) * 4 // 3)
