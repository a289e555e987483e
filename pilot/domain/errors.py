"""Every error that pilot raises on purpose.

PilotError                    exit code 1
├── UsageError                2   the request makes no sense as it stands
│   └── ConfigError           2   pilot.yaml; carries all problems at once
├── NotFound                  4   no such execution, project, plan
├── Busy                      75  try again later: the slot is taken, the store is locked
├── StoreError                1   the database can't be used
│   └── StoreRefused          2   it is another program's, newer than this pilot, or damaged: never touched
│       └── Outdated          2   a newer pilot has brought it to its schema while this one was up
├── IllegalTransition         1   an edge that the state table does not have
├── LeaseLost                 1   this claim was ended by someone else; nothing was written
└── WorkspaceError            1   git or the disk kept an attempt from starting or ending; carries a failure class

Messages are sentences for people: what is wrong, where, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilot.domain.outcome import FailureClass


class PilotError(Exception):
    """Anything pilot reports in one line instead of a traceback."""

    exit_code = 1


class UsageError(PilotError):
    """The request makes no sense as it stands."""

    exit_code = 2


class ConfigError(UsageError):
    """pilot.yaml can't be used. `problems` holds one line each: file:line:column, key, what, remedy."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class NotFound(PilotError):
    """What was named does not exist."""

    exit_code = 4


class Busy(PilotError):
    """Not now; the same request may succeed later."""

    exit_code = 75


class StoreError(PilotError):
    """The database could not do what was asked; nothing of it was written."""


class StoreRefused(StoreError):
    """The file or schema is not one that this version may touch."""

    exit_code = 2


class Outdated(StoreRefused):
    """A newer pilot has taken the store over; this process writes nothing more."""

    def __init__(self, store: object, schema: int, known: int) -> None:
        super().__init__(
            f"{store} has schema {schema} now: a newer pilot has taken it over. This one knows up to {known}, and "
            "writes nothing more; start the newer pilot in its stead"
        )


class IllegalTransition(PilotError):
    """The state table has no such edge."""


class LeaseLost(PilotError):
    """The claim (id, fence) is no longer the running one; nothing was written."""


class WorkspaceError(PilotError):
    """An attempt could not get, read or deliver its workspace."""

    def __init__(self, failure: FailureClass, message: str, excerpt: str = "") -> None:
        super().__init__(message)
        self.failure = failure
        self.excerpt = excerpt
