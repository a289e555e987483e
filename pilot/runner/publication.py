"""Whether a finished change is to become a pull request, and which: as the task wishes, else as its project says."""

from __future__ import annotations

from pilot.config.schema import ProjectSettings
from pilot.domain.execution import Execution
from pilot.domain.outcome import Publication
from pilot.runner.branches import PREFIX


def publication_of(own: ProjectSettings, execution: Execution, started_at: str) -> Publication | None:
    """The pull request; None when there is to be none. `started_at`: the branch that the work started at.

    Only what is pilot's own branch is ever pushed, so a task that named another one gets no pull request.
    """
    options = execution.options
    if own.github is None or (options.get("publish") or own.publish) != "pull_request":
        return None
    named = options.get("branch")
    if named is not None and not str(named).startswith(PREFIX):
        return None
    base = str(options.get("base") or own.base or started_at)
    if base.startswith(PREFIX) or base == "HEAD":
        return None
    return Publication(repo=own.github, base=base, draft=own.draft)
