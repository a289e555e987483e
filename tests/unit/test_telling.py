"""Words about executions: every state and end has its own, and no text from outside makes lines of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pilot.domain import telling
from pilot.domain.delivery import Asked, Pull, PullState, Report
from pilot.domain.execution import Status
from tests.unit.rows import execution

NOW = 1_800_000_000_000


def report(status: Status, pull: Pull | None = None, summary: str = "", **columns: Any) -> Report:
    row = execution(id=12, project="api", task_id="GH-46", title="Fix it", source="github", status=status, **columns)
    return Report(execution=row, origin=None, event=1, type="", pull=pull, summary=summary)


def a_pull(state: PullState, **more: Any) -> Pull:
    return Pull(
        id=1, project_id=1, execution=12, task_id="GH-46", branch="pilot/GH-46", repo="acme/api", base="main",
        draft=True, number=7, url="https://github.com/acme/api/pull/7", head_sha="a", pushed_sha=None, state=state,
        checks=more.get("checks", "none"), red=more.get("red", ()), repairs=0, seen={}, error=more.get("error"),
        created_at=NOW, opened_at=None, ended_at=None,
    )  # fmt: skip


@pytest.mark.parametrize("status", list(Status), ids=str)
def test_every_state_has_a_headline_that_names_it(status: Status) -> None:
    text = telling.standing(report(status), NOW)

    assert text.splitlines()[0].endswith(" 12 · api · GH-46 · Fix it")
    assert telling.named(text) == 12
    assert len(text.splitlines()) >= 2


@pytest.mark.parametrize(
    ("pull", "words"),
    [
        (a_pull(PullState.OWED), "its pull request is being opened"),
        (a_pull(PullState.OPEN), "pull request: https://github.com/acme/api/pull/7"),
        (a_pull(PullState.OPEN, checks="failed", red=("lint", "test")), "/pull/7 (checks failed: lint, test)"),
        (a_pull(PullState.MERGED), "pull request merged: https"),
        (a_pull(PullState.CLOSED), "pull request closed: https"),
        (a_pull(PullState.FAILED, error="no branch"), "no pull request could be opened: no branch"),
    ],
    ids=["owed", "open", "red", "merged", "closed", "failed"],
)
def test_a_pull_request_is_told(pull: Pull, words: str) -> None:
    assert words in telling.standing(report(Status.COMPLETED, pull, outcome="done"), NOW)


def test_cost_is_what_is_known() -> None:
    known = report(Status.COMPLETED, started_at=NOW - 125_000, finished_at=NOW, cost_usd=0.5)
    assert "after 2 min" in telling.standing(known, NOW)
    assert "$0.50" in telling.standing(known, NOW)
    unknown = report(Status.FAILED, started_at=NOW, finished_at=NOW, cost_usd=None, reason="agent: no")
    assert "cost unknown" in telling.standing(unknown, NOW)
    assert telling.standing(unknown, NOW).endswith("/retry 12 runs it anew.")
    assert telling.standing(unknown, NOW, chat=False).endswith("pilot retry 12 runs it anew.")


def test_text_from_outside_makes_no_lines_and_hides_nothing() -> None:
    evil = "a\n✅ 13 · api · GH-1\x1b[2J\u202e\x00"
    told = report(Status.QUEUED)
    told = replace(told, execution=replace(told.execution, title=evil, task_id=evil, project=evil))
    text = telling.standing(told, NOW, waits=evil)

    assert len(text.splitlines()) == 2
    assert not set("\x1b\u202e\x00") & set(text)
    assert telling.named(text) == 12


def test_a_question_says_how_to_answer_and_an_answer_by_whom() -> None:
    asked = Asked(id=3, text="x" * 9000, options=("red", "a\nb"), default="red", asked_at=NOW)
    text = telling.question(report(Status.NEEDS_HUMAN).execution, asked)
    assert len(text) < 3500
    assert "1. red\n2. a b\nIt suggests: red\nReply to this message, or /answer 12 TEXT" in text
    answered = replace(asked, answer="red\nor so", answered_by="Ann", answered_at=NOW)
    assert telling.settled(report(Status.QUEUED).execution, answered).endswith("Answered by Ann: red or so")
    dropped = replace(asked, answered_by="cancelled", answered_at=NOW)
    assert telling.who_settled(dropped) == "Nobody has to answer this any more."


@pytest.mark.parametrize(
    ("data", "read"),
    [("a:1:2:3", (1, 2, 3)), ("a:1:2", None), ("c:1:2:3", None), ("a:1:2:\u0661", None), ("a:1:2:" + "9" * 20, None)],
    ids=["good", "short", "other", "digits", "large"],
)
def test_tokens_of_answers(data: str, read: tuple[int, int, int] | None) -> None:
    assert telling.read_answer_token(data) == read
    largest = (1 << 53) - 1
    assert len(telling.answer_token(largest, largest, 99)) <= 64


@pytest.mark.parametrize(
    ("ms", "words"),
    [(-5, "0 s"), (59_999, "59 s"), (60_000, "1 min"), (3_599_999, "59 min"), (7_500_000, "2 h 05 min")],
    ids=["past", "seconds", "minute", "minutes", "hours"],
)
def test_durations(ms: int, words: str) -> None:
    assert telling.lasting(ms) == words
