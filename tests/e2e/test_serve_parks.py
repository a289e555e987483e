"""`pilot serve` when an account is used up, or the money of the day: who waits, who goes on, and who tries again."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

from tests.e2e.conversing import conversing, write
from tests.e2e.daemon import Home
from tests.e2e.model_server import Turn, status, text

DONE = text("All done.")


def spent_until(reset: int) -> Turn:
    """What a subscription is told whose allowance is used up."""
    headers = {
        "anthropic-ratelimit-unified-status": "rejected", "anthropic-ratelimit-unified-reset": str(reset),
        "anthropic-ratelimit-unified-representative-claim": "five_hour", "retry-after": "3600",
    }  # fmt: skip
    return status(429, "limit", headers=headers)


def happened(home: Home, *types: str) -> list[tuple[str, int | None, dict[str, Any]]]:
    """(type, execution, data) of these events, in order."""
    rows = home.rows("SELECT type, execution_id, data FROM events ORDER BY id")
    return [(type, id, json.loads(data)) for type, id, data in rows if type in types]


def test_a_used_up_account_stops_its_own_work_and_one_task_tries_it_again(home: Home) -> None:
    reset = int(time.time()) + 30
    scripts: dict[str, list[Turn]] = {
        "A-1": [spent_until(reset), write("a.txt"), DONE],
        "B-1": [{**write("b.txt"), "delay": 3}, DONE],
        "C-1": [{**write("c.txt"), "delay": 3}, DONE],
    }
    with conversing(home, scripts):
        home.environment |= {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-dummy"}
        for name in ("a", "b", "c"):
            home.repo(name)
        home.repo("d", executor={"type": "command"})
        home.repo("e", executor={"fallback": ["command"]})
        with home.serve():
            first = home.enqueue("a", "work", task_id="A-1")
            home.until(lambda: home.rows("SELECT 1 FROM parks"), "the park")
            waiting = [home.enqueue(name, "work", task_id=f"{name.upper()}-1") for name in ("b", "c")]
            other = home.enqueue("d", task_id="D-1")
            instead = home.enqueue("e", task_id="E-1")
            home.reach("completed", other, instead)

            (park,) = home.pilot("status", "--json").json["parked"]
            assert (park["backend"], park["state"], park["tries"]) == ("claude-code", "parked", 1)
            assert park["account"]
            assert park["until"] is not None
            for id in (first, *waiting):
                assert home.value(id, "status") == "queued"
                why = home.pilot("why", id, "--json").json
                assert [hold["kind"] for hold in why["holds"]] == ["parked"]
            assert home.value(instead, "backend") == "command"
            ((_, rerouted, data),) = happened(home, "execution.rerouted")
            assert (rerouted, data["from"], data["to"]) == (instead, "claude-code", "command")
            assert "command" in home.pilot("show", instead).out
            listed = home.pilot("backend", "list", "--json").json["backends"]
            assert [(one["name"], one["state"]) for one in listed if one["parked"]] == [("claude-code", "parked")]
            assert f"parked: claude-code until {park['until']}" in home.pilot("status").out
            assert "parked claude-code" in home.pilot("doctor", code=None).out

            home.reach("completed", first, *waiting, seconds=50)
        told = [type for type, _, _ in happened(home, "backend.parked", "backend.probed", "backend.unparked")]
        assert told == ["backend.parked", "backend.probed", "backend.unparked"]
        started = happened(home, "backend.parked", "execution.started", "backend.unparked")
        claude = [type for type, id, _ in started if id in (first, *waiting, None) or type == "backend.parked"]
        # until it had an answer, one task of the three was tried
        assert claude[: claude.index("backend.unparked")] == [
            "execution.started",
            "backend.parked",
            "execution.started",
        ]
    home.audit(completed=5)


def test_a_direct_run_hands_its_task_on_too_but_waits_for_nobody_when_it_may_not(home: Home) -> None:
    argv = home.settings["executor"]["command"]["argv"]
    scripts = {task_id: [spent_until(int(time.time()) + 3600)] for task_id in ("A-1", "A-2")}
    with conversing(home, scripts):
        home.environment |= {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-dummy"}
        home.repo("a", executor={"fallback": ["command"]})
        done = home.pilot("run", "-p", "a", "--task-id", "A-1", "--no-wait", "--json", "A-1: do it")
        assert (done.json["status"], done.json["backend"], done.json["attempt"]) == ("completed", "command", 2)

        home.pilot("backend", "unpark", "claude-code")
        home.configure(executor={**home.settings["executor"], "command": {"argv": ["no-such-agent", *argv[1:]]}})
        home.pilot("run", "-p", "a", "--backend", "command", "park it", code=1)
        busy = home.pilot("run", "-p", "a", "--task-id", "A-2", "--no-wait", "A-2: do it", code=75)
        assert "a is busy: claude-code takes no work: quota" in busy.err
        assert "command takes no work: invalid_config" in busy.err
    home.audit(completed=1, failed=1, cancelled=1)


def test_a_person_opens_a_backend_and_one_task_finds_out_whether_it_is_mended(home: Home) -> None:
    argv = home.settings["executor"]["command"]["argv"]
    missing = {"type": "command", "sandbox": "none", "command": {"argv": ["no-such-agent", *argv[1:]]}}
    mended = home.settings["executor"]
    home.configure(executor=missing)
    for name in ("a", "b", "c"):
        home.repo(name)
    with home.serve() as daemon:
        first = home.enqueue("a", task_id="A-1")
        home.until(lambda: home.rows("SELECT 1 FROM parks"), "the park")
        others = [home.enqueue(name, "wait go", task_id=f"{name.upper()}-1") for name in ("b", "c")]

        home.pilot("backend", "unpark", "command")
        home.until(lambda: home.rows("SELECT tries FROM parks WHERE until IS NULL") == [(2,)], "the second park")
        assert sum(attempt for (attempt,) in home.rows("SELECT attempt FROM executions")) == 2, "one has tried it"

        home.configure(executor=mended)
        daemon.send(signal.SIGHUP)
        daemon.says("config.reloaded")
        home.pilot("cancel", first)
        home.pilot("backend", "unpark", "command")
        home.until(lambda: "running" in home.statuses().values(), "the probe")
        ((probe,),) = home.rows("SELECT id FROM executions WHERE status = 'running'")
        (waits,) = [id for id in others if id != probe]
        why = home.pilot("why", waits, "--json").json
        assert [(hold["kind"], hold["execution"]) for hold in why["holds"]] == [("parked", probe)]
        assert f"command is being tried by {probe}" in why["holds"][0]["detail"]
        assert f"parked: command is being tried by {probe}" in home.pilot("status").out
        (home.control / "go").touch()
        home.reach("completed", *others)
        assert home.rows("SELECT * FROM parks") == []
    home.audit(completed=2, cancelled=1)


def test_the_money_of_the_day_stops_the_night_and_more_of_it_goes_on(home: Home) -> None:
    home.configure(budget={"per_day_usd": 2})
    for name in ("a", "b", "c"):
        home.repo(name)
    with home.serve() as daemon:
        begun = [home.enqueue(name, task_id=f"{name.upper()}-1") for name in ("a", "b")]
        home.reach("completed", *begun)  # at a cost that nobody told, which is not nothing
        late = home.enqueue("c", task_id="C-1")
        why = home.pilot("why", late, "--json").json
        (hold,) = why["holds"]
        assert hold["kind"] == "budget"
        assert hold["until"].endswith("T00:00:00.000Z")
        assert "$2.00 set aside of this day's $2.00" in hold["detail"]
        money = home.pilot("status", "--json").json["budget"]
        assert (money["spent_usd"], money["reserved_usd"], money["per_day_usd"]) == (0, 2, 2)
        assert "budget: $0.00 spent and $2.00 set aside today of $2.00" in home.pilot("status").out
        assert home.value(late, "status") == "queued"
        busy = home.pilot("run", "-p", "c", "--no-wait", "Do it.", code=75)
        assert "budget.per_day_usd" in busy.err

        home.configure(budget={"per_day_usd": 5})
        daemon.send(signal.SIGHUP)
        home.reach("completed", late)
    home.audit(completed=3, cancelled=1)


def test_what_an_agent_tells_of_its_cost_is_what_is_booked(home: Home) -> None:
    home.repo("a")
    with conversing(home, {"A-1": [write("a.txt"), DONE]}):
        home.configure(budget={"per_execution_usd": 3, "per_day_usd": 3})
        with home.serve():
            id = home.enqueue("a", "work", task_id="A-1")
            home.reach("completed", id)
            cost = home.value(id, "cost_usd")
            assert cost > 0
            money = home.pilot("status", "--json").json["budget"]
            assert money["reserved_usd"] == 0
            assert abs(money["spent_usd"] - cost) < 1e-5
    home.audit(completed=1)


def test_a_task_that_has_cost_what_it_may_ends_with_64_and_goes_on_when_a_person_says_so(home: Home) -> None:
    home.repo("a", gates=[{"name": "red", "run": "test -f mended.txt"}])
    scripts: dict[str, list[Turn]] = {"A-1": [write("a.txt"), DONE, write("mended.txt"), DONE]}
    with conversing(home, scripts):
        home.configure(budget={"per_execution_usd": 0.0001})
        ended = home.pilot("run", "-p", "a", "--task-id", "A-1", "--json", "A-1: do it", code=64)
        assert (ended.json["status"], ended.json["failure_class"]) == ("needs_human", "budget")
        assert ended.json["usage"]["cost_usd"] > 0.0001
        id = ended.json["id"]
        assert "budget" in home.pilot("why", id).out
        home.configure(budget={"per_execution_usd": 5})
        with home.serve():
            home.pilot("answer", id, "go on")
            home.reach("completed", id)
        spent, kept = home.rows("SELECT spent / 1e6, reserved FROM spending")[0]
        assert abs(spent - home.value(id, "cost_usd")) < 1e-5
        assert kept == 0
    home.audit(completed=1)
