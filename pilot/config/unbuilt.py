"""What pilot.yaml may say and this version does not do yet: said aloud, never passed over in silence.

Each line goes when what it names is built.
"""

from __future__ import annotations

from collections.abc import Iterator

from pilot.config.schema import Settings


def refused(settings: Settings) -> Iterator[str]:
    """What somebody relies on: running without it would break their trust, so nothing runs."""
    for project in settings.projects:
        if project.next_after != "finish":
            yield f"projects.{project.name}.next_after: {project.next_after} is not built into this version"
        if project.max_open_prs is not None:
            yield f"projects.{project.name}.max_open_prs is not built into this version"


def ignored(settings: Settings) -> Iterator[str]:
    """What has no effect so far."""
    for name in ("github", "linear", "telegram", "todo_scan", "failing_ci"):
        if getattr(settings.sources, name) is not None:
            yield f"sources.{name} has no effect in this version: tasks come from the command line"
    if settings.notify.model_fields_set:
        yield "notify has no effect in this version"
    names = [p.name for p in settings.projects if p.github is not None and p.publish == "pull_request"]
    if names:
        yield f"no pull requests in this version: the finished change of {', '.join(names)} is a local branch"
