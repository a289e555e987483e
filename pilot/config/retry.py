"""Settings of what follows from a failure: changes to the admission table in `pilot.domain.policy`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from pilot.config.fields import Count, Duration, Section
from pilot.domain.execution import Status
from pilot.domain.policy import Parking, Rule


class RetryRuleSettings(Section):
    """What follows from a failure, where it is not what pilot does anyway."""

    counts: bool | None = None
    """Whether it uses up one of max_attempts."""
    max: Count | None = None
    """How often in a row this failure alone may be tried again; null: no limit of its own."""
    backoff: Duration | None = None
    """First pause; it doubles each time."""
    max_backoff: Duration | None = None
    """Longest pause."""
    resume: bool | None = None
    """Whether the next attempt goes on in the agent's session."""
    last: Literal["failed", "needs_human"] | None = None
    """What the task is when nothing is left to try."""
    parks: Literal["never", "until_reset", "for_a_person"] | None = None
    """Whether the agent takes no more work from any task, and until when."""

    @classmethod
    def of(cls, rule: Rule) -> RetryRuleSettings:
        """The settings that say all of a rule."""
        first, longest = (ms / 1000 for ms in rule.backoff)
        return cls.model_validate(
            {
                "counts": rule.counts,
                "max": rule.cap,
                "backoff": first,
                "max_backoff": longest,
                "resume": rule.resume,
                "last": rule.last.value,
                "parks": rule.parks.value,
            }
        )

    def over(self, rule: Rule) -> Rule:
        """The rule with what is set here; only `max` can be set to null."""
        changes: dict[str, Any] = {}
        if self.counts is not None:
            changes["counts"] = self.counts
        if "max" in self.model_fields_set:
            changes["cap"] = self.max
        first, longest = rule.backoff
        if self.backoff is not None:
            first = round(self.backoff * 1000)
        if self.max_backoff is not None:
            longest = round(self.max_backoff * 1000)
        changes["backoff"] = (first, max(first, longest))
        if self.resume is not None:
            changes["resume"] = self.resume
        if self.last is not None:
            changes["last"] = Status(self.last)
        if self.parks is not None:
            changes["parks"] = Parking(self.parks)
        return replace(rule, **changes)


def _never_counts(value: bool) -> bool:
    if value:
        raise PydanticCustomError("counts", "a limit of the agent's provider never uses up attempts")
    return value


class LimitRuleSettings(RetryRuleSettings):
    """What follows from a limit of the agent's provider."""

    counts: Annotated[bool, AfterValidator(_never_counts)] | None = None
    """Always false."""


class RetrySettings(Section):
    """What follows from each class of failure, over what pilot does anyway. (Cancelled is never retried.)"""

    lint: RetryRuleSettings = RetryRuleSettings()
    """A red lint gate, not repaired in the session."""
    test: RetryRuleSettings = RetryRuleSettings()
    """A red test gate."""
    build: RetryRuleSettings = RetryRuleSettings()
    """A red build gate."""
    ci: RetryRuleSettings = RetryRuleSettings()
    """Red CI."""
    agent: RetryRuleSettings = RetryRuleSettings()
    """The agent gave up, crashed, or could not be started."""
    no_change: RetryRuleSettings = RetryRuleSettings()
    """A change was required and none came."""
    refusal: RetryRuleSettings = RetryRuleSettings()
    """The model refused."""
    timeout: RetryRuleSettings = RetryRuleSettings()
    """executor.timeout is over."""
    stall: RetryRuleSettings = RetryRuleSettings()
    """No sign of life for executor.stall_timeout."""
    oom: RetryRuleSettings = RetryRuleSettings()
    """Memory ran out."""
    rate_limit: LimitRuleSettings = LimitRuleSettings()
    """Too many requests."""
    quota: LimitRuleSettings = LimitRuleSettings()
    """The plan or the credit is used up."""
    auth: RetryRuleSettings = RetryRuleSettings()
    """Not logged in, or key refused."""
    invalid_config: RetryRuleSettings = RetryRuleSettings()
    """The agent does not take its settings."""
    network: RetryRuleSettings = RetryRuleSettings()
    """The agent's provider can't be reached."""
    conflict: RetryRuleSettings = RetryRuleSettings()
    """git: the branch or the tree is not as it was left."""
    infra: RetryRuleSettings = RetryRuleSettings()
    """The node, its disk, the database."""
    unknown: RetryRuleSettings = RetryRuleSettings()
    """Nothing that pilot knows."""
