"""A sandbox that keeps nobody in: it writes down what was to be started in it, and marks it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pilot.domain.agent import Places

FENCED = "SUITE_FENCED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One program that was started in there."""

    argv: Sequence[str]
    cwd: str
    env: Mapping[str, str]
    places: Places


@dataclass(slots=True)
class Fence:
    """The Sandbox port. `broken`: what making it raises."""

    broken: OSError | None = None
    starts: list[Start] = field(default_factory=list)

    @property
    def name(self) -> str:
        return "fence"

    def command(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], places: Places) -> list[str]:
        if self.broken is not None:
            raise self.broken
        self.starts.append(Start(argv=list(argv), cwd=cwd, env=dict(env), places=places))
        return ["/usr/bin/env", f"{FENCED}=yes", *argv]

    def close(self) -> None:
        """Nothing to give back."""
