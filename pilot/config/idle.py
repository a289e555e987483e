"""What pilot.yaml says and nothing comes of: said aloud, never passed over in silence."""

from __future__ import annotations

from collections.abc import Iterator

from pilot.config.schema import Settings


def idle(settings: Settings) -> Iterator[str]:
    """One line each."""
    sources = settings.sources
    if sources.github is None:
        names = [p.name for p in settings.projects if p.github is not None and p.publish == "pull_request"]
        if names:
            yield f"no pull requests without sources.github: a finished change of {', '.join(names)} is a local branch"
    elif not any(project.github for project in settings.projects):
        yield "sources.github: no project says by `github: owner/repo` which issues are its own"
    if sources.linear is not None and not any(project.linear for project in settings.projects):
        yield "sources.linear: no project says by `linear: {team: KEY}` which issues are its own"
    if sources.todo_scan is not None and settings.projects and not any(p.path for p in settings.projects):
        yield "sources.todo_scan reads clones on this machine, and no project has a path"
