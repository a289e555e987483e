"""Which backend a task gets."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.domain.routing import Choice, Route, choose

TASK: dict[str, Any] = {
    "project": "api", "kind": "build", "labels": ("Docs", "urgent"), "title": "Review the docs", "source": "github",
}  # fmt: skip


def matches(route: Route, **changed: Any) -> bool:
    return route.matches(**{**TASK, **changed})


@pytest.mark.parametrize(
    "route",
    [
        Route(use="x"),
        Route(use="x", labels=("docs",)),
        Route(use="x", labels=("DOCS", "Urgent")),
        Route(use="x", kind="build"),
        Route(use="x", project="api"),
        Route(use="x", source="github"),
        Route(use="x", title="^review"),
        Route(use="x", title="docs$"),
        Route(use="x", title="the"),
        Route(use="x", labels=("docs",), kind="build", project="api", source="github", title="^Review"),
    ],
)
def test_a_rule_matches_when_all_that_it_says_is_so(route: Route) -> None:
    assert matches(route)


@pytest.mark.parametrize(
    "route",
    [
        Route(use="x", labels=("docs", "missing")),
        Route(use="x", labels=("doc",)),
        Route(use="x", kind="test"),
        Route(use="x", project="Api"),
        Route(use="x", source="linear"),
        Route(use="x", title="^docs"),
        Route(use="x", labels=("docs",), kind="build", project="web"),
    ],
)
def test_a_rule_does_not_match_when_one_thing_differs(route: Route) -> None:
    assert not matches(route)


def test_labels_are_compared_in_any_case_of_any_script() -> None:
    assert matches(Route(use="x", labels=("STRASSE",)), labels=("straße",))
    assert not matches(Route(use="x", labels=("docs",)), labels=())


def test_the_first_rule_that_matches_wins_and_else_the_default() -> None:
    routes = [
        Route(use="codex", labels=("missing",)),
        Route(use="opencode", model="openai/gpt-5", labels=("docs",)),
        Route(use="acp"),
    ]
    assert choose(routes, "claude-code", **TASK) == Choice("opencode", "openai/gpt-5", (), "route 2")
    assert choose(routes, "claude-code", **{**TASK, "labels": ()}) == Choice("acp", None, (), "route 3")
    assert choose(routes[:2], "claude-code", **{**TASK, "labels": ()}) == Choice(
        "claude-code", None, (), "executor.type"
    )
    assert choose([], "claude-code", ["codex"], **TASK) == Choice("claude-code", None, ("codex",), "executor.type")


labels = st.lists(st.text("abAB", max_size=2), max_size=4)


@given(labels, labels)
def test_all_labels_of_a_rule_are_needed(wanted: list[str], have: list[str]) -> None:
    route = Route(use="x", labels=tuple(wanted))
    assert matches(route, labels=have) is ({label.lower() for label in wanted} <= {label.lower() for label in have})
