"""Settings of the places that tasks come from and news go to. A source that is not set is off."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from pilot.config.fields import Duration, Place, Rotating, Secret, Section, Text, Web, Word, named

UserId = Annotated[int, Field(ge=-(2**53), le=2**53)]
AppId = Annotated[
    Text,
    BeforeValidator(lambda value: str(value) if type(value) is int else value),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
]


class AllowSettings(Section):
    """Who may ask: either suffices."""

    permission: Literal["write", "maintain", "admin"] | None = "write"
    """Permission that lets anyone who has it ask; null: only `users`."""
    users: tuple[Text, ...] = Field((), strict=False)
    """Users who may ask whatever their permission is."""


class GithubAppSettings(Section):
    """A GitHub App that pilot acts as. Has a private_key or a private_key_file."""

    id: AppId
    """Its id, or its client id."""
    private_key: Secret | None = None
    """Its private key, in PEM."""
    private_key_file: Place | None = None
    """Or the file that has it."""
    installation: Annotated[int, Field(ge=1, le=2**53)]
    """Id of the installation that it acts in."""


class GithubLabelSettings(Section):
    """Labels that show how an issue's task stands; null: named after the one that asks."""

    running: Text | None = None
    """Accepted, until its end; null: pilot:running, by `label`."""
    done: Text | None = None
    """Done; null: pilot:done, by `label`."""
    failed: Text | None = None
    """Failed or cancelled; null: pilot:failed, by `label`."""
    needs_human: Text | None = None
    """Waits for a person; null: pilot:needs-human, by `label`."""


class GithubSettings(Section):
    """GitHub issues and pull requests. Has a token or an app."""

    token: Secret | None = None
    """Token of the account that pilot acts as."""
    app: GithubAppSettings | None = None
    """Or the GitHub App that it acts as."""
    base_url: Web = "https://api.github.com"
    """API address; another one for GitHub Enterprise Server."""
    label: Text = "pilot"
    """The label that asks."""
    labels: GithubLabelSettings = GithubLabelSettings()
    """Labels that show how it stands; null: named after the one that asks."""
    poll_interval: Duration = Field(30.0, ge=1)
    """How often issues, pull requests and checks are read."""
    webhook_secret: Rotating = None
    """Secret of webhooks, or a list of the new one and the old; null: they are not taken."""
    allow: AllowSettings = AllowSettings()
    """Who may ask."""

    def shown(self) -> GithubLabelSettings:
        """The labels by which an issue shows how it stands, each with its name."""
        own = self.labels
        return GithubLabelSettings(
            running=own.running or f"{self.label}:running",
            done=own.done or f"{self.label}:done",
            failed=own.failed or f"{self.label}:failed",
            needs_human=own.needs_human or f"{self.label}:needs-human",
        )


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
    webhook_secret: Rotating = None
    """Secret of webhooks, or a list of the new one and the old; null: they are not taken."""
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
    allowed_users: tuple[UserId, ...] = Field(strict=False, min_length=1)
    """Users, by numeric id, who may talk to it."""


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
