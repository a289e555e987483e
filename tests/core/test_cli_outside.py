"""What the commands say of requests that were refused, of sources, and of what is owed to the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pilot.domain.delivery import Refusal
from tests.core.test_cli import EVIL, Pilot, on, pilot, stage, state
from tests.store.bed import Bed

__all__ = ["pilot", "stage", "state"]


def refuse(state: Path, task_id: str, actor: str = "eve", reason: str = "may only read acme/api") -> None:
    async def work(bed: Bed) -> None:
        api = await bed.project("api")
        url = "https://github.com/acme/api/issues/46"
        given = Refusal(
            key=f"k:{task_id}:{actor}",
            source="github",
            project_id=api.id,
            task_id=task_id,
            actor=actor,
            reason=reason,
            url=url,
        )
        assert await bed.store.refusals.refuse(given)

    on(state, work)


def test_why_takes_a_tasks_name(pilot: Pilot, stage: Path) -> None:
    assert pilot("why", "GH-2").out == pilot("why", "2").out
    assert pilot("why", "GH-2", "--json").json["id"] == 2


def test_why_says_who_was_refused_and_for_what_reason(pilot: Pilot, state: Path) -> None:
    refuse(state, "GH-46")
    refuse(state, "GH-46", "mallory", EVIL)
    result = pilot("why", "GH-46")

    assert result.code == 0
    assert "was asked for, and refused" in result.out
    assert "github, eve at " in result.out
    assert "may only read acme/api (https://github.com/acme/api/issues/46)" in result.out
    assert "\x1b" not in result.out
    document = pilot("why", "GH-46", "--json").json
    assert (document["id"], document["status"], [hold["kind"] for hold in document["holds"]]) == (
        None, None, ["refused", "refused"],
    )  # fmt: skip


def test_why_says_of_an_execution_what_was_refused_since(pilot: Pilot, stage: Path) -> None:
    refuse(stage, "GH-2")

    assert "refused since then: github, eve" in pilot("why", "GH-2").out
    assert pilot("why", "2", "--json").json["refused"][0]["kind"] == "refused"


@pytest.mark.parametrize("id", ["GH-99", "x", "99", "0", str(2**70), "1\x1b[31m", "-1", ""])
def test_of_what_nobody_asked_for_there_is_no_why(pilot: Pilot, stage: Path, id: str) -> None:
    result = pilot("why", "--", id)

    assert result.code == 4
    assert "no execution" in result.err
    assert "\x1b" not in result.err + result.out


def test_refusals_are_events_that_can_be_read(pilot: Pilot, stage: Path) -> None:
    refuse(stage, "GH-46", reason=EVIL)
    page = pilot("events", "--type", "trigger.refused").lines
    document = pilot("events", "--type", "trigger.refused", "--json").json

    assert len(page) == 1
    assert "\tGH-46\tgithub: eve: " in page[0]
    assert page[0].endswith("(https://github.com/acme/api/issues/46)")
    assert "\x1b" not in page[0]
    assert document["events"][0]["data"]["actor"] == "eve"


def test_status_says_how_sources_do(pilot: Pilot, state: Path) -> None:
    async def work(bed: Bed) -> None:
        health = bed.store.health
        await health.saw("github", "ok")
        await health.saw("linear", "paused", reason="too much was asked", until=1_900_000_000_000)
        await health.saw("telegram", "failing", reason="bad token; put a good one in \x1b[2J")
        await bed.store.inbox.store("github", "1", "1", "issues", "labeled", "{}")

    on(state, work)
    page = pilot("status").out
    document = pilot("status", "--json").json

    assert "source github: ok, last looked at 20" in page
    assert "source linear: paused until 2030-03-17T17:46:40.000Z: too much was asked" in page
    assert "source telegram: failing: bad token; put a good one in" in page
    assert "\x1b" not in page
    assert "1 webhooks wait to be dealt with, the oldest since " in page
    assert "go out" not in page
    assert [(s["name"], s["status"], s["reason"]) for s in document["sources"]] == [
        ("github", "ok", None),
        ("linear", "paused", "too much was asked"),
        ("telegram", "failing", "bad token; put a good one in \x1b[2J"),
    ]
    assert set(document["sources"][0]) == {"name", "status", "until", "reason", "last_poll"}
    assert json.dumps(document)
