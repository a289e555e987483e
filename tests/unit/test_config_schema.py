"""Settings as the rest of pilot uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from pilot.config.durations import LONGEST, format_duration, parse_duration
from pilot.config.fields import Fixed
from pilot.config.schema import (
    ClaudeCodeSettings,
    CommandSettings,
    DispatcherSettings,
    EnvironmentSettings,
    ExecutorSettings,
    MatchSettings,
    ProfileSettings,
    ProjectSettings,
    RetryRuleSettings,
    RetrySettings,
    RouteSettings,
    ServerSettings,
    Settings,
)
from pilot.domain.execution import Status
from pilot.domain.outcome import FailureClass
from pilot.domain.policy import RULES, Parking, Rule
from pilot.domain.routing import choose
from pilot.domain.task import Kind


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("10m", 600),
        ("1h", 3600),
        ("2h30m", 9000),
        ("1d", 86_400),
        ("1.5h", 5400),
        ("1m500ms", 60.5),
        ("0s", 0),
    ],
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "30", "s", "1 h", "1h 30m", "30m1h", "1hour", "-1s", "1e3s", "1,5h", "1h30", "٣s"]
)
def test_anything_else_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None


@given(st.integers(0, int(LONGEST) * 1000))
def test_a_duration_that_was_written_is_read_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, abs=1e-6)


def test_from_python_durations_are_seconds() -> None:
    assert DispatcherSettings(lease=2.5).lease == 2.5
    with pytest.raises(ValidationError):
        DispatcherSettings(lease=0.5)
    with pytest.raises(ValidationError):
        DispatcherSettings(lease=float("inf"))


def test_nothing_can_be_changed() -> None:
    settings = Settings(executor=ExecutorSettings(environment=EnvironmentSettings(set={"A": SecretStr("1")})))
    changed: Any = settings

    with pytest.raises(ValidationError, match="frozen"):
        changed.store = "x"
    with pytest.raises(ValidationError, match="frozen"):
        changed.executor.timeout = 1
    with pytest.raises(TypeError):
        changed.executor.environment.set["A"] = "2"
    with pytest.raises(AttributeError):
        changed.projects.append(1)
    assert len({settings, settings.model_copy()}) == 1


def test_one_default_serves_all() -> None:
    first, second = (ProjectSettings(name=name, path=Path("/x"), executor=ExecutorSettings()) for name in "ab")

    assert first.executor is not None
    assert second.executor is not None
    assert first.executor.claude_code is second.executor.claude_code
    assert first.executor.environment is second.executor.environment


def test_python_is_held_to_the_same_rules() -> None:
    project = ProjectSettings(name="a", path=Path("x"))

    assert project.path == Path.cwd() / "x"
    with pytest.raises(ValidationError, match=r"'a' is the name of projects\.0 already"):
        Settings(projects=(project, project))
    with pytest.raises(ValidationError, match="extra"):
        ServerSettings.model_validate({"prot": 1})
    with pytest.raises(ValidationError):
        ServerSettings.model_validate({"port": "1"})


def executor(**more: Any) -> ExecutorSettings:
    return ExecutorSettings.model_validate(more)


def test_a_project_replaces_only_the_keys_that_it_sets() -> None:
    settings = Settings(
        executor=executor(
            timeout=100,
            claude_code={"model": "opus", "max_turns": 5},
            environment={"pass": ["PATH"], "set": {"A": SecretStr("1"), "B": SecretStr("2")}},
            profiles={"fast": {"type": "codex"}, "slow": {"type": "codex", "timeout": 900}},
            routes=[{"use": "fast"}],
        ),
        projects=(
            ProjectSettings(
                name="own",
                path=Path("/own"),
                executor=executor(
                    type="opencode",
                    claude_code={"model": None},
                    environment={"set": {"B": SecretStr("3")}},
                    profiles={"slow": {"type": "claude-code"}},
                    routes=[],
                ),
            ),
            ProjectSettings(name="plain", path=Path("/plain")),
        ),
    )
    own, plain = (settings.executor_for(project) for project in settings.projects)

    assert plain == settings.executor
    assert (own.type, own.timeout, own.max_attempts) == ("opencode", 100, 3)
    assert own.claude_code == ClaudeCodeSettings(model=None, max_turns=5)
    assert own.environment.pass_ == ("PATH",)
    assert {name: value.get_secret_value() for name, value in own.environment.set.items()} == {"A": "1", "B": "3"}
    assert own.routes == ()
    assert own.profiles["fast"].type == "codex"
    assert own.profiles["slow"] == ProfileSettings(type="claude-code")
    assert settings.executor.claude_code.model == "opus"


def test_a_profile_lies_over_the_executor() -> None:
    base = executor(
        timeout=100,
        command={"argv": ["a"], "prompt": "file"},
        profiles={"reviewer": {"type": "command", "command": {"argv": ["b"]}, "stall_timeout": 5}},
    )

    reviewer = base.resolve("reviewer")

    assert (reviewer.type, reviewer.timeout, reviewer.stall_timeout) == ("command", 100, 5)
    assert reviewer.command == CommandSettings(argv=("b",), prompt="file")
    assert base.resolve("codex").type == "codex"
    assert base.resolve("codex").command == base.command


def test_routes_are_those_of_the_core() -> None:
    routes = executor(
        routes=[
            {"match": {"labels": ["docs"], "kind": "build", "title": "^review"}, "use": "opencode", "model": "m"},
            {"match": {"project": "api", "source": "github"}, "use": "codex"},
        ]
    ).domain_routes()

    def chosen(**task: Any) -> tuple[str, str | None]:
        facts: dict[str, Any] = {
            "project": "web",
            "kind": Kind.BUILD,
            "labels": ["Docs"],
            "title": "x",
            "source": "cli",
        }
        choice = choose(routes, "claude-code", **(facts | task))
        return choice.backend, choice.model

    assert chosen(title="Review it") == ("opencode", "m")
    assert chosen(title="Review it", kind="test") == ("claude-code", None)
    assert chosen(project="api", source="github") == ("codex", None)


def test_a_route_without_a_match_is_for_all() -> None:
    assert RouteSettings(use="codex").match == MatchSettings()


def test_agents_get_what_is_handed_on_and_set_and_nothing_else() -> None:
    environment = EnvironmentSettings(pass_=("PATH", "NOT_THERE"), set={"CI": SecretStr("1")})

    assert environment.variables({"PATH": "/bin", "TOKEN": "secret"}) == {"PATH": "/bin", "CI": "1"}
    assert "1" not in repr(environment)


def test_retry_changes_only_what_it_says() -> None:
    settings = Settings(
        retry=RetrySettings(
            network=RetryRuleSettings(max=None, backoff=600),
            no_change=RetryRuleSettings(max=2, counts=False, resume=True, max_backoff=1),
            unknown=RetryRuleSettings(last="needs_human", parks="for_a_person"),
        )
    )

    rules = settings.retry_rules()

    assert Settings().retry_rules() == RULES
    assert {name for name, rule in rules.items() if rule != RULES[name]} == {"network", "no_change", "unknown"}
    assert rules[FailureClass.NETWORK].cap is None
    assert rules[FailureClass.NETWORK].backoff == (600_000, 600_000)
    assert rules[FailureClass.NO_CHANGE] == Rule(counts=False, cap=2, backoff=(0, 1000), resume=True)
    assert rules[FailureClass.UNKNOWN].last is Status.NEEDS_HUMAN
    assert rules[FailureClass.UNKNOWN].parks is Parking.FOR_A_PERSON


def test_every_failure_class_but_those_that_no_retry_helps_can_be_set() -> None:
    assert set(RetrySettings.model_fields) == set(FailureClass) - {"cancelled", "budget"}


@pytest.mark.parametrize("rule", RULES.values())
def test_a_rule_can_be_said_in_settings(rule: Rule) -> None:
    if rule.last is not Status.CANCELLED:
        assert RetryRuleSettings.of(rule).over(Rule(counts=not rule.counts, cap=7)) == rule


def test_a_mapping_that_stays_as_it_is() -> None:
    source = {"a": 1}
    fixed = Fixed(source)
    source["a"] = 2

    assert fixed == {"a": 1}
    assert hash(fixed) == hash(Fixed({"a": 1}))
    assert repr(fixed) == "Fixed({'a': 1})"


def test_a_file_of_the_store_is_named_by_a_whole_path() -> None:
    assert Settings(state_dir=Path("/s")).store_url == "sqlite:////s/pilot.db"
    assert Settings(store="sqlite:///x y").store_url == f"sqlite:///{Path.cwd()}/x%20y"
    assert Settings(store="postgresql://u@h/d").store_url == "postgresql://u@h/d"
    assert "pa55" not in repr(Settings(store="postgresql://u:pa55@h/d"))
