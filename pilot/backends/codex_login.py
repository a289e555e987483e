"""The login of Codex and pilot's sandbox: it is renewed before a run, outside, and never inside.

The program replaces its login file when it renews it, and a file that is mounted can't be replaced: it would use up
the token that is good for one renewal, and lose the new one. Measured: it renews a token that has less than five
minutes left, at every start, also at one that asks no model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pilot.backends.codex_cli import KEYS, config_dir
from pilot.backends.program import ask
from pilot.domain.outcome import Ending, FailureClass, Outcome

LEFT = 300.0
"""Seconds that a token has left, at least, after a start."""
PATIENCE = 15.0
_RENEWAL = "CODEX_REFRESH_TOKEN_URL_OVERRIDE"
_NOWHERE = "http://127.0.0.1:1/renewed-outside-of-the-sandbox"


def has_login(child: Mapping[str, str]) -> bool:
    """Whether a run in this environment takes the login in its folder."""
    return not any(child.get(key) for key in KEYS[:2]) and (Path(config_dir(child)) / "auth.json").is_file()


async def renew(program: str, child: Mapping[str, str], marker: str) -> None:
    """Let it renew its login if that is due. What goes wrong shows in the run that follows."""
    with contextlib.suppress(OSError, TimeoutError):
        await ask([program, "features", "list"], child, PATIENCE, marker=marker)


def inside(child: Mapping[str, str]) -> dict[str, str]:
    """The environment in which it renews nothing."""
    return {**child, _RENEWAL: _NOWHERE}


def judged(end: Outcome, seconds: float) -> Outcome:
    """The outcome of a run of so many seconds, where it was told to renew its login and could not."""
    if end.ending is not Ending.FAILED or _NOWHERE not in end.excerpt:
        return end
    if seconds < LEFT:
        words = "the model's server does not take the login: run `codex login`"
        return replace(end, failure=FailureClass.AUTH, detail=words)
    return replace(end, failure=FailureClass.NETWORK, detail="the login ran out; the next run begins with a new one")
