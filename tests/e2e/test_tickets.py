"""From a label to a merged pull request, with a real daemon, a GitHub on loopback and real git."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.forge import Forge, forge


@pytest.fixture
def github(tmp_path: Path) -> Iterator[Forge]:
    gates = [{"name": "test", "run": "test -f GH-1.txt"}]
    with forge(tmp_path, gates=gates) as made:
        yield made


def test_from_a_label_to_a_merged_pull_request(github: Forge) -> None:
    with github.serve() as daemon:
        number = github.ask("Fix the login", "wait go")
        github.home.began("GH-1")
        github.home.until(lambda: github.labels(number) == ["pilot:running"], "the label of what runs")
        (comment,) = github.home.until(lambda: github.ours(number), "the comment")
        assert "<!-- pilot:execution=1 -->" in comment

        github.home.go("go")
        pull = github.pull()
        github.home.until(lambda: github.labels(number) == ["pilot:done"], "the label of what is done")
        assert f"Closes #{number}" in pull.body
        assert pull.draft
        assert pull.author.login == "robot"
        assert github.host.git("-C", str(github.bare), "show", "pilot/GH-1:GH-1.txt") == "GH-1"
        head = github.repo.head("pilot/GH-1")
        assert head is not None
        github.reach(status="completed", delivery="pr_open", head_sha=head)

        github.fake.check_run(github.repo, head, "ci")
        github.reach(checks="pending")
        github.fake.check_run(github.repo, head, "ci", "success")
        github.reach(checks="passed")

        github.fake.merge(github.repo, pull.number)
        github.reach(delivery="merged", status="completed")
        assert not github.repo.items[number].open
        github.home.until(lambda: not list(github.home.state.glob("workspaces/*/*")), "workspaces cleared away")
        assert len(github.ours(number)) == 1
        daemon.term()
        assert daemon.wait() == 0
    assert len(github.pulls()) == 1
    github.home.audit(completed=1)
