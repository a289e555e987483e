"""What a failed call to GitHub means for who made it: a rest, a later try, or nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pilot.clients.github_errors import Conflict, Forbidden, GitHubError, RateLimited, Refused, Unauthorized
from pilot.domain.outside import GiveUp, Later, SourcePaused

LOGIN = "give sources.github a login that is good"


def paused(error: GitHubError) -> SourcePaused:
    """The source can't go on now."""
    if isinstance(error, RateLimited):
        return SourcePaused(str(error), error.until)
    if isinstance(error, Unauthorized):
        return SourcePaused(str(error), remedy=LOGIN)
    if isinstance(error, Forbidden):
        return SourcePaused(str(error), remedy="give its login the right to do this")
    return SourcePaused(str(error))


@contextmanager
def reading() -> Iterator[None]:
    """Around acting on a webhook. What is not there, or not for us, raises as it is."""
    try:
        yield
    except (RateLimited, Unauthorized) as error:
        raise paused(error) from error
    except Refused:
        raise
    except GitHubError as error:
        raise Later(str(error)) from error


@contextmanager
def writing() -> Iterator[None]:
    """Around a report: everything that may be done again later is."""
    try:
        yield
    except RateLimited as error:
        raise Later(str(error), error.until) from error
    except (Unauthorized, Conflict) as error:  # somebody will renew the token; what is owed stays owed
        raise Later(str(error)) from error
    except Refused as error:
        raise GiveUp(str(error)) from error
    except GitHubError as error:
        raise Later(str(error)) from error
