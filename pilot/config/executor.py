"""Settings of the agents: which there are, which does what, how long, and what they get to see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field

from pilot.config.fields import (
    Argument,
    Duration,
    Fixed,
    Free,
    Frozen,
    Handle,
    Positive,
    Regex,
    Secret,
    Section,
    Shared,
    Text,
    Variable,
    Web,
    Word,
    named,
)
from pilot.domain.routing import Route
from pilot.domain.task import Kind

BUILT_IN = ("claude-code", "opencode", "codex", "acp", "command", "external")
PLUGINS = "pilot.backends"
"""Entry-point group whose names are types, too."""

Model = TypeVar("Model", bound=BaseModel)


class ClaudeCodeSettings(Section):
    """Claude Code (`claude -p`)."""

    command: Word = "claude"
    """The program, by name or path."""
    model: Word | None = None
    """Model; null leaves it to the program."""
    permission_mode: Literal["acceptEdits", "auto", "bypassPermissions", "default", "dontAsk", "plan"] = (
        "bypassPermissions"
    )
    """What it may do unasked; anything but bypassPermissions can end in a question."""
    max_turns: Positive | None = None
    """Turns in one run; null: no limit."""
    extra_args: tuple[Argument, ...] = Field((), strict=False)
    """More arguments for the program."""


class OpenCodeSettings(Section):
    """OpenCode (`opencode serve`, over HTTP)."""

    model: Annotated[Word, named(r"[^/\s]+/\S+", "a model as provider/model")] | None = "anthropic/claude-sonnet-4-5"
    """Model as provider/model; null: the route or --model has to name one."""
    server_url: Web = "http://127.0.0.1:4096"
    """A server that is used when it answers; else pilot starts its own."""
    command: Word = "opencode"
    """The program, by name or path."""


class CodexSettings(Section):
    """Codex (`codex exec`)."""

    command: Word = "codex"
    """The program, by name or path."""
    model: Word | None = None
    """Model; null leaves it to the program."""
    sandbox: Literal["read-only", "workspace-write", "danger-full-access"] = "workspace-write"
    """The program's own sandbox."""
    extra_args: tuple[Argument, ...] = Field((), strict=False)
    """More arguments for the program."""


class AcpSettings(Section):
    """Any agent that speaks the Agent Client Protocol over stdio."""

    argv: tuple[Argument, ...] = Field(("gemini", "--acp"), strict=False)
    """Program and arguments."""
    permissions: Literal["allow", "refuse"] = "allow"
    """What it is told when it asks whether it may do something; refuse ends its run in a question."""


class CommandSettings(Section):
    """Any program: exit code 0 is success, its output the transcript."""

    argv: tuple[Argument, ...] = Field((), strict=False)
    """Program and arguments; {workspace} {project} {execution} {task_id} {model} {prompt_file} are put in."""
    prompt: Literal["stdin", "argument", "file"] = "stdin"
    """How it gets the prompt: on stdin, as last argument, or as {prompt_file}."""


class EnvironmentSettings(Section):
    """What agents find in their environment: this, and nothing else."""

    pass_: tuple[Variable, ...] = Field(("PATH", "HOME", "LANG"), alias="pass", strict=False)
    """Variables handed on from pilot's own environment, where set."""
    set: Annotated[Mapping[Variable, Secret], Frozen] = Fixed()
    """Variables with values of their own, `{NAME: "value"}`."""

    def variables(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment of an agent of a pilot that has `environ`; values in clear."""
        handed_on = {name: environ[name] for name in self.pass_ if name in environ}
        return handed_on | {name: secret.get_secret_value() for name, secret in self.set.items()}


class SandboxSettings(Section):
    """What a sandbox shows besides the workspace, the system's programs and what the agent itself needs."""

    read: tuple[Shared, ...] = Field((), strict=False)
    """Files and folders that may be read, such as a toolchain in a home directory."""
    write: tuple[Shared, ...] = Field((), strict=False)
    """Files and folders that may be written, too."""


class MatchSettings(Section):
    """What a task has to be; all of what is set here, and an empty match is for every task."""

    labels: tuple[Text, ...] = Field((), strict=False)
    """Labels it must have, all of them, in any case."""
    kind: Annotated[Kind, Field(strict=False)] | None = None
    """Kind of work."""
    project: Text | None = None
    """Project, by name."""
    source: Text | None = None
    """Where it comes from: github, linear, telegram, cli, api, plan, todo_scan, failing_ci."""
    title: Regex | None = None
    """Regular expression, searched in the title, in any case."""


class RouteSettings(Section):
    """Who does the tasks that match."""

    match: MatchSettings = MatchSettings()
    """Which tasks; without it, all."""
    use: Word
    """A type, a profile, or a plug-in's name."""
    model: Word | None = None
    """Model for them, over the agent's own setting."""
    fallback: tuple[Word, ...] = Field((), strict=False)
    """Who does them, in this order, while the one before takes no work (rate limit, quota, login)."""


class _Agent(Section):
    """What an executor and its named variants have in common."""

    type: Word = "claude-code"
    """claude-code, opencode, codex, acp, command, external (left to remote workers), a profile, or a plug-in."""
    timeout: Duration = Field(3600.0, ge=1)
    """A whole attempt, at most."""
    stall_timeout: Duration = Field(600.0, ge=1)
    """No sign of life for so long ends an attempt."""
    max_attempts: Positive = 3
    """Attempts that may fail before the task has."""
    claude_code: ClaudeCodeSettings = Field(ClaudeCodeSettings(), alias="claude-code")
    """Of type claude-code."""
    opencode: OpenCodeSettings = OpenCodeSettings()
    """Of type opencode."""
    codex: CodexSettings = CodexSettings()
    """Of type codex."""
    acp: AcpSettings = AcpSettings()
    """Of type acp."""
    command: CommandSettings = CommandSettings()
    """Of type command."""
    settings: Free = Field(Fixed(), repr=False)
    """Of a plug-in's type: what that plug-in wants to be told."""
    environment: EnvironmentSettings = EnvironmentSettings()
    """What agents find in their environment."""
    sandbox: Literal["auto", "bubblewrap", "none"] = "auto"
    """auto takes what the machine has; doctor and show say which."""
    sandbox_paths: SandboxSettings = SandboxSettings()
    """What more a sandbox shows."""


class ProfileSettings(_Agent):
    """A named variant: what it sets stands over the executor's own."""

    type: Word
    """Its type, or a plug-in's name; not another profile."""


class ExecutorSettings(_Agent):
    """Which agent does a task, and how it is run."""

    profiles: Annotated[Mapping[Handle, ProfileSettings], Frozen] = Fixed()
    """Named variants, which routes, projects and --backend may use."""
    routes: tuple[RouteSettings, ...] = Field((), strict=False)
    """Who does what: the first that matches; else `type`."""
    fallback: tuple[Word, ...] = Field((), strict=False)
    """Who does what no route matches, in this order, while `type` takes no work."""

    def domain_routes(self) -> tuple[Route, ...]:
        """The routes as the core has them."""
        return tuple(
            Route(
                use=route.use,
                model=route.model,
                fallback=route.fallback,
                labels=route.match.labels,
                kind=route.match.kind,
                project=route.match.project,
                source=route.match.source,
                title=route.match.title,
            )
            for route in self.routes
        )

    def resolve(self, use: str) -> ExecutorSettings:
        """The settings for a type or profile: what the profile sets put over these, and `type` its type."""
        profile = self.profiles.get(use)
        return self.model_copy(update={"type": use}) if profile is None else overlay(self, profile)


def overlay(base: Model, over: BaseModel) -> Model:
    """`base` with the keys that `over` sets, and only those; lists are replaced whole, mappings by key."""
    changes: dict[str, object] = {}
    for name in over.model_fields_set:
        old, new = getattr(base, name), getattr(over, name)
        if isinstance(new, BaseModel) and isinstance(old, BaseModel):
            new = overlay(old, new)
        elif isinstance(new, Mapping) and isinstance(old, Mapping):
            new = Fixed({**old, **new})
        changes[name] = new
    return base.model_copy(update=changes)
