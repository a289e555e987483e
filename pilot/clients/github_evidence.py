"""Why checks are red: the ends of their logs, or what they reported."""

from __future__ import annotations

from collections.abc import Sequence

from pilot.clients.github_checks import CI, Check
from pilot.clients.github_errors import Forbidden, NotFound, Unavailable
from pilot.domain.red_checks import WITH_LOG, RedCheck, end_of_log


async def evidence(ci: CI, repo: str, checks: Sequence[Check], *, patient: bool) -> tuple[RedCheck, ...]:
    """What is to be had of the first few; a log that is gone or forbidden is said to be.

    `patient`: an outage raises `Unavailable`, so that one can come again; else it is said, too. Raises `RateLimited`.
    """
    return tuple([await _of(ci, repo, check, number < WITH_LOG, patient) for number, check in enumerate(checks)])


async def _of(ci: CI, repo: str, check: Check, wanted: bool, patient: bool) -> RedCheck:
    said, missing = check.text, ""
    if wanted and check.job is not None:
        try:
            said = end_of_log(await ci.log_end(repo, check.job)) or said
        except (NotFound, Forbidden, Unavailable) as error:
            if patient and isinstance(error, Unavailable):
                raise
            missing = str(error)
    return RedCheck(check.name, check.conclusion or "failure", check.url, said if wanted else "", missing)
