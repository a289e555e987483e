"""Pointer payloads: `@cmd:make test`, `@file:specs/a.diff#apply`, `@doc:LLM_TASK …`. Pure: nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Work(StrEnum):
    """What has to be done for a payload, and so by whom."""

    COMMAND = "command"  #: a program; its exit code decides
    APPLY = "apply"  #: `git apply` of a patch of the repository
    TEST = "test"  #: a program of the repository, as a test
    PROMPT = "prompt"  #: an agent
    NOTHING = "nothing"  #: a note: completed at once

    @property
    def by_machine(self) -> bool:
        """Whether pilot itself does it, without an agent."""
        return self in (Work.COMMAND, Work.APPLY, Work.TEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One pointer. `text` is all of it, as it was written.

    `argv`: of a command. `path`: of a file, relative to the repository, not looked at yet. `words`: of a prompt that
    stands in the payload itself. `sha1`: what the file's content has to have, in hex; also its dedupe key. `dual`: its
    result may be a diff and whole files.
    """

    text: str
    work: Work
    argv: tuple[str, ...] = ()
    path: str | None = None
    words: str = ""
    sha1: str | None = None
    dual: bool = False

    @property
    def dedupe(self) -> str | None:
        """What names its result, unless the step says so itself."""
        return None if self.sha1 is None else f"sha1:{self.sha1}"


def is_pointer(value: Any) -> bool:
    """Whether a task's payload is one of these, and not something that its source wants kept."""
    raise NotImplementedError


def parse_payload(text: str) -> Payload:
    """Read one. Raises `UsageError` in words, with the remedy."""
    raise NotImplementedError


def allowed(argv: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Whether the whole argv matches one of a project's `allow_commands`, word by word."""
    raise NotImplementedError
