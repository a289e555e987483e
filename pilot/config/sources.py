"""Settings of the places that tasks come from and news go to. A source that is not set is off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pilot.config.fields import Duration, Secret, Section, Text, Web, Word, named

UserId = Annotated[int, Field(ge=-(2**53), le=2**53)]


class AllowSettings(Section):
    """Who may ask: either suffices."""

    permission: Literal["write", "maintain", "admin"] | None = "write"
    """Permission that lets anyone who has it ask; null: only `users`."""
    users: tuple[Text, ...] = Field((), strict=False)
    """Users who may ask whatever their permission is."""


class GithubSettings(Section):
    """GitHub issues and pull requests."""

    token: Secret
    """Token of the account that pilot acts as."""
    base_url: Web = "https://api.github.com"
    """API address; another one for GitHub Enterprise Server."""
    label: Text = "pilot"
    """The label that asks; the others are named after it, pilot:running and so on."""
    poll_interval: Duration = Field(30.0, ge=1)
    """How often issues, pull requests and checks are read."""
    webhook_secret: Secret | None = None
    """Secret of webhooks; null: they are not taken."""
    allow: AllowSettings = AllowSettings()
    """Who may ask."""


class LinearAllowSettings(Section):
    """Who may ask in Linear."""

    users: tuple[Text, ...] = Field((), strict=False)
    """Users who may ask, by e-mail or id; empty: any member of the organization."""


class LinearSettings(Section):
    """Linear issues and agent sessions."""

    api_key: Secret
    """API key of the account that pilot acts as."""
    base_url: Web = "https://api.linear.app/graphql"
    """API address."""
    webhook_secret: Secret | None = None
    """Secret of webhooks; null: they are not taken."""
    label: Text = "pilot"
    """The label that asks."""
    allow: LinearAllowSettings = LinearAllowSettings()
    """Who may ask."""


class TelegramSettings(Section):
    """A Telegram bot."""

    token: Secret
    """The bot's token."""
    base_url: Annotated[Web, named(r".*/bot", "an address that ends in /bot")] | None = None
    """API address, ending in /bot; null: Telegram's own."""
    allowed_users: tuple[UserId, ...] = Field((), strict=False)
    """Users, by numeric id, who may talk to it; empty: nobody."""


class TodoScanSettings(Section):
    """Marked comments in the projects' code."""

    marker: Text = "TODO(pilot)"
    """What marks a comment as a task."""
    every: Duration = Field(3600.0, ge=1)
    """How often the code is read."""


class FailingCiSettings(Section):
    """Red checks on branches that should be green."""

    branches: tuple[Word, ...] = Field(("main",), strict=False, min_length=1)
    """Branches that are watched."""
    every: Duration = Field(300.0, ge=1)
    """How often checks are read."""


class SourcesSettings(Section):
    """Where tasks come from, besides commands and API; what is not here is off."""

    github: GithubSettings | None = None
    """GitHub issues and pull requests."""
    linear: LinearSettings | None = None
    """Linear issues and agent sessions."""
    telegram: TelegramSettings | None = None
    """A Telegram bot."""
    todo_scan: TodoScanSettings | None = None
    """Marked comments in the projects' code."""
    failing_ci: FailingCiSettings | None = None
    """Red checks on branches that should be green."""


class NotifySettings(Section):
    """Who is told when something needs a person, has failed, or is parked."""

    telegram: tuple[UserId, ...] = Field((), strict=False)
    """Telegram chats, by numeric id; needs sources.telegram."""
    webhook: tuple[Web, ...] = Field((), strict=False)
    """Addresses that get a signed POST."""
