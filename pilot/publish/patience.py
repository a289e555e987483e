"""How long something is tried that somebody outside may mend."""

from __future__ import annotations

from pilot.domain.delivery import Effect
from pilot.domain.outside import GiveUp, Later

PATIENCE = 24 * 60 * 60_000
"""ms for which what is turned down is tried: a person may mend a token, a repository, or a machine."""
TRIES = 12
"""And so often at least: nobody may have been here for that long."""


def put_off(effect: Effect, reason: str, now: int, at: int | None = None) -> Later | GiveUp:
    """What its handler raises: it is tried again (`at`, UTC ms; None: after a growing pause), but not for ever."""
    if now - effect.created_at > PATIENCE and effect.tries >= TRIES:
        return GiveUp(f"given up after a day: {reason}")
    return Later(reason, at)
