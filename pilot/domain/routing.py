"""Which backend does a task: the first rule that matches, else the default."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One rule. Every field that is set has to match; `labels` means all of them, case-insensitively."""

    use: str
    model: str | None = None
    fallback: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    kind: str | None = None
    project: str | None = None
    source: str | None = None
    title: str | None = None

    def matches(self, *, project: str, kind: str, labels: Sequence[str], title: str, source: str) -> bool:
        """Whether this rule is for such a task. `title` is a regular expression, searched, any case."""
        have = {label.casefold() for label in labels}
        return (
            all(label.casefold() in have for label in self.labels)
            and self.kind in (None, kind)
            and self.project in (None, project)
            and self.source in (None, source)
            and (self.title is None or re.search(self.title, title, re.IGNORECASE) is not None)
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """Who does a task, with which model, and who instead while that one takes no work; `rule` says why, for people."""

    backend: str
    model: str | None
    fallback: tuple[str, ...]
    rule: str


def choose(
    routes: Sequence[Route],
    default: str,
    fallback: Sequence[str] = (),
    *,
    project: str,
    kind: str,
    labels: Sequence[str],
    title: str,
    source: str,
) -> Choice:
    """The backend (or profile) name and the model that a task gets."""
    for number, route in enumerate(routes, 1):
        if route.matches(project=project, kind=kind, labels=labels, title=title, source=source):
            return Choice(route.use, route.model, route.fallback, f"route {number}")
    return Choice(default, None, tuple(fallback), "executor.type")
