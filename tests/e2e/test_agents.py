"""Who does a task: refused at the door where it can't be, chosen by the routes, and shown."""

from __future__ import annotations

import os
import signal

from tests.e2e.daemon import Home, prompt


def test_what_an_agent_can_not_do_stops_every_command_that_runs_agents(home: Home) -> None:
    web = home.repo("web")
    scripted = home.settings["executor"]["command"]
    routes = [{"match": {"labels": ["big"]}, "use": "scripted", "model": "large"}]
    home.configure(executor={**home.settings["executor"], "routes": routes, "profiles": {"scripted": {
        "type": "command", "command": scripted}}})  # fmt: skip
    words = "executor.routes.0.model: scripted can't be given a model; leave it out"

    for command in (("serve",), ("config", "check")):
        assert words in home.pilot(*command, code=2).err
    found = home.pilot("doctor", "--json", code=1).json["checks"]
    assert [check["detail"] for check in found if check["status"] == "failure"] == [words]
    # a run looks at what it uses itself
    home.pilot("run", prompt("T-1"), "--task-id", "T-1", cwd=web)
    assert (
        "scripted can't be given a model"
        in home.pilot("run", prompt("T-2"), "--backend", "scripted", "--model", "large", cwd=web, code=2).err
    )
    home.audit(completed=1)


def test_a_reload_that_asks_too_much_of_an_agent_is_refused(home: Home) -> None:
    home.repo("web")
    good = home.settings["executor"]
    with home.serve() as daemon:
        home.configure(executor={**good, "routes": [{"use": "command", "model": "large"}]})
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.says(r"config\.refused.*executor\.routes\.0\.model: command can't be given a model")
        home.configure(executor=good)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.says(r"config\.reloaded")
        home.reach("completed", home.enqueue("web", task_id="T-1"))
    home.audit(completed=1)


def test_nothing_is_run_here_for_external(home: Home) -> None:
    web = home.repo("web")
    home.configure(executor={**home.settings["executor"], "profiles": {"deploy": {"type": "external"}}})

    said = home.pilot("run", "x", "--backend", "deploy", cwd=web, code=2).err
    assert "deploy runs nothing here; `pilot enqueue` leaves a task to a worker that claims over HTTP" in said
    assert home.statuses() == {}

    routes = [{"match": {"kind": "deploy"}, "use": "deploy"}]
    home.configure(executor={**home.settings["executor"], "routes": routes})
    home.pilot("enqueue", "ship it", "-p", "web", "--kind", "deploy", "--task-id", "T-1")
    with home.serve():
        home.reach("completed", home.enqueue("web", task_id="T-2"))  # behind it, and not held up
        why = home.pilot("why", 1, "--json").json
    assert [(hold["kind"], hold["detail"]) for hold in why["holds"]] == [
        ("external", "left to a worker that claims over HTTP")
    ]
    page = home.pilot("why", 1).out
    assert "agent deploy, by route 1" in page
    home.audit(completed=1, queued=1)


def test_a_projects_own_profile_is_an_agent_that_it_may_be_asked_for(home: Home) -> None:
    own = {"profiles": {"mine": {"type": "command"}}}
    web = home.repo("web", executor=own)
    api = home.repo("api")

    home.pilot("run", prompt("T-1"), "--backend", "mine", "--task-id", "T-1", cwd=web)
    said = home.pilot("run", prompt("T-2"), "--backend", "mine", "--task-id", "T-2", cwd=api, code=2).err
    assert "no backend 'mine'; there are acp, " in said
    home.audit(completed=1)


def test_show_and_why_say_who_was_chosen_and_why(home: Home) -> None:
    scripted = {"type": "command", "command": home.settings["executor"]["command"]}
    argv = [*scripted["command"]["argv"], "{model}"]
    profiles = {"one": {**scripted, "command": {"argv": argv}}, "two": scripted}
    routes = [{"match": {"title": "^never"}, "use": "two"}, {"match": {"labels": ["docs"]}, "use": "one",
              "model": "large", "fallback": ["two", "command"]}]  # fmt: skip
    web = home.repo("web")
    home.configure(executor={**home.settings["executor"], "profiles": profiles, "routes": routes, "fallback": ["two"]})
    home.pilot("enqueue", "x", "-p", "web", "--label", "docs", "--task-id", "T-1")
    home.pilot("enqueue", "y", "-p", "web", "--task-id", "T-2")
    home.pilot("run", prompt("T-3"), "--backend", "two", "--task-id", "T-3", cwd=web)

    documents = [home.pilot("show", id, "--json").json for id in (1, 2, 3)]
    keys = ("backend", "model", "route", "fallback", "sandbox")
    assert [tuple(one[key] for key in keys) for one in documents] == [
        ("one", "large", "route 2", ["two", "command"], None),
        ("command", None, "executor.type", ["two"], None),
        ("two", None, "asked for", [], "none"),
    ]
    for command in ("show", "why"):
        pages = [" ".join(home.pilot(command, id).out.split()) for id in (1, 2, 3)]
        assert "agent one, model large, by route 2; else two, command" in pages[0]
        assert "agent command, by executor.type; else two" in pages[1]
        assert "agent two, asked for" in pages[2]
