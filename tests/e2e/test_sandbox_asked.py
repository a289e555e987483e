"""A sandbox that is asked for and can't be had is an error, never silently none."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.daemon import Home


def without_bwrap(home: Home) -> None:
    """A PATH on which there is no bubblewrap: the one that is found first does not work."""
    programs = home.root / "bin"
    programs.mkdir()
    (programs / "bwrap").write_text("#!/bin/sh\necho 'No permissions to create a new namespace' >&2\nexit 1\n")
    (programs / "bwrap").chmod(0o755)
    home.environment["PATH"] = f"{programs}:{home.environment['PATH']}"


def test_neither_a_daemon_nor_a_run_goes_without(home: Home) -> None:
    repo = home.repo("web")
    without_bwrap(home)
    home.settings["executor"]["sandbox"] = "bubblewrap"
    home.configure()

    for command in (("serve",), ("run", "Write.", "-p", "web")):
        refused = home.pilot(*command, code=2)
        assert "executor.sandbox" in refused.err
        assert "user name spaces" in refused.err
    assert home.rows("SELECT count(*) FROM executions") == [(0,)]
    assert home.git(repo, "branch", "--list", "pilot/*") == ""
    doctor = home.pilot("doctor", "--json", code=1).json
    assert any(check["name"] == "sandbox" and check["status"] == "failure" for check in doctor["checks"])


def test_a_profile_and_a_project_are_asked_too_also_at_a_reload(home: Home) -> None:
    home.repo("web")
    without_bwrap(home)
    home.configure()
    with home.serve() as daemon:
        home.settings["projects"][0]["executor"] = {"sandbox": "bubblewrap"}
        home.configure()
        daemon.send(1)
        assert "sandbox" in daemon.says("config.refused.*")
    assert "executor.sandbox" in home.pilot("serve", code=2).err


def test_auto_goes_without_and_says_so(home: Home) -> None:
    home.repo("web")
    without_bwrap(home)
    home.settings["executor"]["sandbox"] = "auto"
    home.configure()
    with home.serve():
        id = home.enqueue("web", "write a.txt hi", task_id="T-1")
        home.reach("completed", id)
    assert home.rows("SELECT sandbox FROM attempts") == [("none",)]
    assert "none" in home.pilot("doctor", code=None).out


def test_what_it_ran_in_is_shown(home: Home) -> None:
    home.repo("web")
    home.settings["executor"]["sandbox"] = "bubblewrap"
    home.configure()
    with home.serve():
        id = home.enqueue("web", "write a.txt hi", task_id="T-1")
        home.reach("completed", id)
    assert home.rows("SELECT sandbox FROM attempts") == [("bubblewrap",)]
    assert "bubblewrap" in home.pilot("show", id).out
    assert Path(home.state, "homes").stat().st_mode & 0o077 == 0
