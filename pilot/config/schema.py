"""What pilot.yaml can say. Attributes are named as the keys are, with `_` for `-`; durations are seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from pilot.config.conflicts import conflicts
from pilot.config.executor import (
    AcpSettings,
    ClaudeCodeSettings,
    CodexSettings,
    CommandSettings,
    EnvironmentSettings,
    ExecutorSettings,
    MatchSettings,
    OpenCodeSettings,
    ProfileSettings,
    RouteSettings,
    overlay,
)
from pilot.config.fields import (
    Count,
    Dollars,
    Duration,
    Handle,
    Place,
    Positive,
    Repository,
    Secret,
    Section,
    Text,
    Web,
    Word,
    named,
    placing,
)
from pilot.config.locate import store_problem, store_url
from pilot.config.retry import RetryRuleSettings, RetrySettings
from pilot.config.sources import (
    AllowSettings,
    FailingCiSettings,
    GithubAppSettings,
    GithubLabelSettings,
    GithubSettings,
    LinearAllowSettings,
    LinearSettings,
    NotifySettings,
    SourcesSettings,
    TelegramSettings,
    TodoScanSettings,
)
from pilot.domain.outcome import FailureClass
from pilot.domain.policy import RULES, Rule

__all__ = [
    "AcpSettings",
    "AllowSettings",
    "BudgetSettings",
    "CallbackSettings",
    "ClaudeCodeSettings",
    "CodexSettings",
    "CommandSettings",
    "DispatcherSettings",
    "EnvironmentSettings",
    "ExecutorSettings",
    "FailingCiSettings",
    "GateSettings",
    "GithubAppSettings",
    "GithubLabelSettings",
    "GithubSettings",
    "LinearAllowSettings",
    "LinearSettings",
    "MatchSettings",
    "NotifySettings",
    "OpenCodeSettings",
    "ProfileSettings",
    "ProjectLinearSettings",
    "ProjectSettings",
    "RetryRuleSettings",
    "RetrySettings",
    "RouteSettings",
    "ServerSettings",
    "Settings",
    "SourcesSettings",
    "TelegramSettings",
    "TodoScanSettings",
]

GitUrl = Annotated[
    str,
    named(
        r"(?:https?|ssh|git|file)://[^\s]+|(?:[\w.-]+@)?[A-Za-z0-9][\w.-]*:(?!:)[^\s]+|/[^\s]+",
        "a repository's address: git@host:owner/repo.git, https://…, ssh://… or an absolute path",
    ),
]


class CallbackSettings(Section):
    """HTTP callbacks of tasks that ask for one."""

    allow_hosts: tuple[Text, ...] = Field(("*",), strict=False)
    """Hosts that may be called; patterns with *."""
    allow_private: bool = False
    """Whether private and loopback addresses may be called."""
    secret: Secret | None = None
    """Key of the signature; null: one is made and kept in the state directory."""


class ServerSettings(Section):
    """HTTP API and dashboard of `pilot serve`."""

    host: Text = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 7337
    """Port to listen on; 0 takes a free one."""
    public_url: Web | None = None
    """Address under which people reach it, for links."""
    allowed_hosts: tuple[Text, ...] = Field((), strict=False)
    """More Host headers to answer to, besides loopback and public_url."""
    rate_limit: Positive = 1000
    """Requests per second that a token may make; for a moment twice as many."""
    callbacks: CallbackSettings = CallbackSettings()
    """HTTP callbacks of tasks that ask for one."""


class DispatcherSettings(Section):
    """Who runs when, on this node."""

    max_running: Positive = 4
    """Executions at the same time, over all projects."""
    lease: Duration = Field(60.0, ge=1)
    """How long a node that went silent keeps what it runs; renewed long before."""
    drain_timeout: Duration = 30.0
    """How long a shutdown waits for running work before it interrupts it."""
    poll_interval: Duration = Field(1.0, ge=0.01)
    """How often the queue is looked at when no signal comes."""


class ProjectLinearSettings(Section):
    """Which Linear issues are this project's."""

    team: Text
    """Team key, the ENG of ENG-12."""
    project: Text | None = None
    """Linear project; null: all of the team."""


class GateSettings(Section):
    """A check that pilot itself runs after the agent."""

    name: Text
    """Name, in logs and pull requests."""
    kind: Literal["lint", "test", "build"] = "test"
    """What sort of failure a red one is."""
    run: Text
    """Shell command; exit code 0 is green."""
    timeout: Duration = Field(1200.0, ge=0.1)
    """Longer is red."""
    required: bool = True
    """Whether a red one keeps the change from being published."""


class ProjectSettings(Section):
    """A repository, and how its tasks are done. Has a path or a url."""

    name: Handle
    """Handle, the same on every node."""
    path: Place | None = None
    """A clone on this machine."""
    url: GitUrl | None = None
    """Or an address, cloned on first use."""
    base: Word | None = None
    """Branch to start from and to merge into; null: the repository's default branch."""
    github: Repository | None = None
    """owner/repo, where issues come from and pull requests go."""
    linear: ProjectLinearSettings | None = None
    """Which Linear issues are this project's."""
    workspace: Literal["clone", "worktree", "in_place"] = "clone"
    """Where agents work: a clone of their own, a git worktree, or the checkout itself."""
    setup: tuple[Text, ...] = Field((), strict=False)
    """Shell commands, run once in a new workspace."""
    max_running: Positive = 1
    """Executions of this project at the same time."""
    gates: tuple[GateSettings, ...] = Field((), strict=False)
    """Checks that pilot runs after the agent."""
    allow_commands: tuple[Text, ...] = Field((), strict=False)
    """What @cmd: may run, as patterns of the whole command; empty: nothing."""
    gate_repairs: Count = 2
    """Times the agent gets a red gate back in the same session."""
    publish: Literal["none", "branch", "pull_request"] = "pull_request"
    """What becomes of a finished change; without `github`, pull_request is a branch."""
    draft: bool = True
    """Whether pull requests start as drafts."""
    ci_repairs: Count = 2
    """Executions on the same branch and session after red CI, per pull request."""
    review_repairs: Count = 0
    """Executions on the same branch and session after a review that asks for changes, per pull request."""
    keep_workspace: Literal["never", "on_failure", "always"] = "on_failure"
    """When a workspace stays after the end; unmerged work always does."""
    next_after: Literal["finish", "pr_open", "checks_passed", "merged"] = "finish"
    """When the project's next task may start."""
    max_open_prs: Positive | None = None
    """The next task waits while so many of pilot's pull requests are open; null: no limit."""
    executor: ExecutorSettings | None = None
    """What differs from the global executor: ask `Settings.executor_for`, for only the keys set here count."""


class BudgetSettings(Section):
    """Spending limits in USD; null: none."""

    per_execution_usd: Dollars | None = None
    """Limit of one execution."""
    per_day_usd: Dollars | None = None
    """Limit of a day, in UTC, over all projects."""


def _read_store(value: str, info: ValidationInfo) -> str:
    if what := store_problem(value):
        raise PydanticCustomError("store", "{what}", {"what": what})
    return value if value == "sqlite" else store_url(value, Path(), placing(info))


class Settings(Section):
    """Settings of pilot."""

    state_dir: Place = Field(Path("~/.pilot"), validate_default=True)
    """Database, workspaces, tokens; unset: $PILOT_HOME, else ~/.pilot."""
    store: Annotated[str, AfterValidator(_read_store)] = Field("sqlite", repr=False)
    """sqlite (in state_dir), sqlite:////path/pilot.db, or postgresql://user@host/db."""
    server: ServerSettings = ServerSettings()
    """HTTP API and dashboard."""
    dispatcher: DispatcherSettings = DispatcherSettings()
    """Who runs when."""
    executor: ExecutorSettings = ExecutorSettings()
    """Which agent does a task, and how it is run."""
    projects: tuple[ProjectSettings, ...] = Field((), strict=False)
    """Repositories."""
    sources: SourcesSettings = SourcesSettings()
    """Where tasks come from."""
    budget: BudgetSettings = BudgetSettings()
    """Spending limits."""
    retry: RetrySettings = RetrySettings()
    """What follows from each class of failure."""
    notify: NotifySettings = NotifySettings()
    """Who is told what needs a person."""

    @model_validator(mode="after")
    def _coherent(self) -> Settings:
        found = conflicts(self)
        if found:
            lines = [
                InitErrorDetails(type=PydanticCustomError("conflict", "{what}", {"what": what}), loc=where, input=None)
                for where, what in found
            ]
            raise ValidationError.from_exception_data("Settings", lines)
        return self

    @property
    def store_url(self) -> str:
        """The store's URL, whole; may hold a password."""
        return store_url(self.store, self.state_dir, Path)

    def executor_for(self, project: ProjectSettings) -> ExecutorSettings:
        """The executor with the project's own keys over it; lists are replaced whole, mappings by key."""
        return self.executor if project.executor is None else overlay(self.executor, project.executor)

    def retry_rules(self) -> Mapping[FailureClass, Rule]:
        """The whole admission table, with what is set under `retry`."""
        rules = dict(RULES)
        for name in self.retry.model_fields_set:
            failure = FailureClass(name)
            rules[failure] = getattr(self.retry, name).over(rules[failure])
        return rules
