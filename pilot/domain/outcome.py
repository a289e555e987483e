"""How an attempt ended, as a value: matched in one place, never guessed from a row."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FailureClass(StrEnum):
    """Why an attempt failed; `policy.RULES` says what follows from each."""

    LINT = "lint"
    TEST = "test"
    BUILD = "build"
    CI = "ci"
    AGENT = "agent"  #: gave up, crashed, or its programme could not be started
    NO_CHANGE = "no_change"  #: a change was required and none came
    REFUSAL = "refusal"
    TIMEOUT = "timeout"
    STALL = "stall"
    OOM = "oom"
    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    AUTH = "auth"
    INVALID_CONFIG = "invalid_config"
    NETWORK = "network"
    CONFLICT = "conflict"  #: git: the branch or the tree is not as it was left
    INFRA = "infra"  #: node, disk, database
    BUDGET = "budget"  #: it would cost more than it may
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class Ending(StrEnum):
    """What an attempt ended with; stored as `outcome`."""

    DONE = "done"  #: there is a change, and every required gate is green
    NO_CHANGE = "no_change"  #: the agent found nothing to change
    FAILED = "failed"
    QUESTION = "question"  #: a person has to answer or decide
    CANCELLED = "cancelled"  #: somebody asked for the end
    INTERRUPTED = "interrupted"  #: shutdown; goes on later, costs nothing


@dataclass(frozen=True, slots=True)
class Usage:
    """What an attempt used up. None is unknown, and unknown is never 0."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None

    def plus(self, other: Usage) -> Usage:
        """The sum; one unknown makes a sum unknown, except that nothing plus x is x."""
        if self == Usage():
            return other
        if other == Usage():
            return self

        def add(a: float | None, b: float | None) -> float | None:
            return None if a is None or b is None else a + b

        tokens_in = add(self.input_tokens, other.input_tokens)
        tokens_out = add(self.output_tokens, other.output_tokens)
        return Usage(
            None if tokens_in is None else int(tokens_in),
            None if tokens_out is None else int(tokens_out),
            add(self.cost_usd, other.cost_usd),
        )


@dataclass(frozen=True, slots=True)
class Question:
    """What the agent, or pilot on its behalf, asks a person."""

    text: str
    options: tuple[str, ...] = ()
    default: str | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """One check that pilot itself ran. `duration` is ms; `tree` is the hash of the tree it judged."""

    name: str
    kind: str
    command: str
    required: bool
    exit_code: int | None
    duration: int
    tree: str
    timed_out: bool = False
    tail: str = ""

    @property
    def passed(self) -> bool:
        """Exit code 0 in time."""
        return self.exit_code == 0 and not self.timed_out


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A pull request that a finished change is to become. `repo` is owner/name, `base` the branch to merge into."""

    repo: str
    base: str
    draft: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of an agent's run, or of a whole attempt.

    A failure always has a class and a non-empty `detail`; `excerpt` is the evidence it was judged by.
    `retry_at` is the reset time (UTC ms) that a rate limit named. `text` is the agent's last message.
    `session_lost`: the session to go on in does not exist; nothing was done, start anew with the whole prompt.
    `publication`: the pull request that its branch is to become, owed from the moment it is stored.
    `unspent`: no model can have worked for it, so it has used up nothing; only with an empty `usage`.
    """

    ending: Ending
    failure: FailureClass | None = None
    detail: str = ""
    excerpt: str = ""
    text: str = ""
    session_id: str | None = None
    session_lost: bool = False
    model: str | None = None
    usage: Usage = Usage()
    unspent: bool = False
    question: Question | None = None
    retry_at: int | None = None
    branch: str | None = None
    base_sha: str | None = None
    head_sha: str | None = None
    tree: str | None = None
    delivered: bool = False
    publication: Publication | None = None
    gates: tuple[GateResult, ...] = ()

    def __post_init__(self) -> None:
        if self.ending is Ending.FAILED and (self.failure is None or not self.detail):
            raise ValueError("a failed outcome needs a class and a detail")
        if self.ending is Ending.QUESTION and self.question is None:
            raise ValueError("an outcome that asks needs its question")


def failed(failure: FailureClass, detail: str, **more: object) -> Outcome:
    """A failed outcome in one line."""
    return Outcome(ending=Ending.FAILED, failure=failure, detail=detail, **more)  # type: ignore[arg-type]
