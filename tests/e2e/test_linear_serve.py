"""The real daemon and a Linear on loopback: heard within seconds, through kills, stops and lost webhooks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.daemon import Daemon, Home
from tests.e2e.linear_fake import APP, LinearFake
from tests.e2e.linear_world import Row

SECRET = "it is raining webhooks"


@pytest.fixture
def linear() -> Iterator[LinearFake]:
    with LinearFake(webhook_secret=SECRET) as fake:
        yield fake


@pytest.fixture
def there(home: Home, linear: LinearFake) -> Home:
    """A home with a project for the team ENG."""
    home.repo("web", linear={"team": "ENG"})
    home.environment |= {"LINEAR_API_KEY": APP, "LINEAR_WEBHOOK_SECRET": SECRET}
    own = {"api_key": "${LINEAR_API_KEY}", "base_url": linear.url, "webhook_secret": "${LINEAR_WEBHOOK_SECRET}"}
    home.configure(sources={"linear": own}, dispatcher={"lease": "4s", "drain_timeout": "10s"})
    return home


def aim(linear: LinearFake, daemon: Daemon) -> None:
    """From now on webhooks come to this daemon."""
    linear.hooks.url = f"{daemon.url}/webhooks/linear"


def said(session: Row) -> list[tuple[str, str]]:
    """What a session was told: kind and words."""
    contents = [each["content"] for each in list(session["activities"]) if each["user"]["app"]]
    return [(each["type"], str(each.get("body") or each.get("action"))) for each in contents]


def told(home: Home, session: Row, kind: str) -> Any:
    """Wait until it was told something of this kind last; the words."""
    home.until(lambda: said(session)[-1:] and said(session)[-1][0] == kind, f"{kind}, not {said(session)}")
    return said(session)[-1][1]


def test_a_session_from_its_beginning_to_a_branch(there: Home, linear: LinearFake) -> None:
    issue = linear.world.issue("Fix the login", "do: wait go")
    with there.serve() as daemon:
        aim(linear, daemon)
        began = time.monotonic()
        session = linear.delegate(issue)
        there.until(lambda: said(session), "the first word")
        assert time.monotonic() - began < 10
        told(there, session, "action")
        there.until(lambda: issue["state"]["name"] == "In Progress", "the issue's state")
        there.began("ENG-1")
        linear.prompt(session, "And say goodbye.\ndo: nothing")
        there.until(lambda: "take this up" in said(session)[-1][1], "that it was heard")
        there.go("go")
        there.until(lambda: sum(kind == "response" for kind, _ in said(session)) == 2, "both ends")
        first, second = [words for kind, words in said(session) if kind == "response"]
        assert "on branch `pilot/ENG-1`" in first
        assert "nothing had to be changed" in second
        linear.hooks.settle()
        daemon.term()
        assert daemon.wait() == 0
    assert {delivery.status for delivery in linear.hooks.deliveries} <= {200, 202, 0}
    assert APP not in daemon.log
    there.audit(completed=2)


def test_what_was_said_to_a_dead_daemon_is_heard_by_the_next(there: Home, linear: LinearFake) -> None:
    issue, other = linear.world.issue("Fix the login", "do: wait go"), linear.world.issue("Write the docs")
    with there.serve() as daemon:
        aim(linear, daemon)
        session = linear.delegate(issue)
        there.began("ENG-1")
        told(there, session, "action")
        daemon.kill9()
    linear.prompt(session, "halt", stop=True)
    linear.label(other, "pilot")
    with there.serve():  # webhooks go to where nobody is; the first sweep is at the start
        assert "stopped by Ann in Linear" in told(there, session, "response")
        there.until(lambda: [text for text in linear.comments(other) if text.startswith("**Done**")], "the other's end")
        assert len(linear.comments(other)) == 1
        assert other["labels"] == []
    there.audit(completed=1, cancelled=1)


def test_a_daemon_killed_before_it_can_keep_what_it_said_says_it_once(there: Home, linear: LinearFake) -> None:
    issue = linear.world.issue("Fix the login")
    linear.lose_next("commentCreate", after=True, how="cut")
    with there.serve() as daemon:
        aim(linear, daemon)
        linear.label(issue, "pilot")
        linear.wait_for_call("commentCreate")
        daemon.kill9()
    with there.serve():
        there.until(lambda: [text for text in linear.comments(issue) if text.startswith("**Done**")], "the end")
        there.until(lambda: issue["state"]["name"] == "In Progress", "the issue's state")
    assert len(linear.comments(issue)) == 1
    there.audit(completed=1)
