"""`pilot serve` calls back: never into its own network unless that is allowed, and a reload counts."""

from __future__ import annotations

import signal

from tests.adapters.hook_server import HookServer
from tests.e2e.daemon import Home


def test_a_task_is_told_of_where_its_settings_let_it_be(home: Home) -> None:
    home.repo("web")
    with HookServer() as hook, home.serve() as daemon:
        first = home.enqueue("web", task_id="T-1", callback_url=hook.url)
        home.reach("completed", first)
        given_up = "SELECT data FROM events WHERE type = 'delivery.failed' AND execution_id = ?"
        home.until(lambda: home.rows(given_up, first), "the refusal")
        ((data,),) = home.rows(given_up, first)
        assert "private network" in data
        assert "hidden" not in data
        assert "hidden" not in daemon.log
        assert hook.posts == []
        assert (home.state / "callbacks.secret").read_text().strip()

        home.configure(server={"port": 0, "callbacks": {"allow_private": True, "secret": "of the operator"}})
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded")
        second = home.enqueue("web", task_id="T-2", callback_url=hook.url)
        home.until(lambda: hook.posts, "the callback")
        (post,) = hook.posts
        assert post.signed_by("of the operator")
        assert (post.document["event"], post.document["execution"]["id"]) == ("execution.completed", second)
    home.audit(completed=2)
