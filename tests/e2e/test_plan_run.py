"""`pilot plan run`: a written plan by several agents at once, with real git; what fails, and how it goes on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.daemon import Home

DIFF = """\
--- a/README.md
+++ b/README.md
@@ -1 +1,2 @@
 # web
+Applied.
"""
FILES = {
    "README.md": "# web\n",
    "Makefile": "ctx:\n\techo context > ctx.txt\ntest:\n\tgrep Applied README.md\n\ttest -f a.txt -a -f b.txt\n",
    "specs/feature.diff": DIFF,
    "tasks/a.md": "do: write a.txt of-a\ndo: tell a-began\ndo: wait go\n",
    "t.sh": "test -f ctx.txt && test -f b.txt\n",
}
PLAN = """\
# Plan: My Feature
policy: no_refactor=true

- [ ] id=ctx lane=1 payload=@cmd:make ctx
- [ ] id=a lane=2 deps=ctx payload=@file:tasks/a.md
- [ ] id=b lane=2 deps=ctx payload="@doc:LLM_TASK Write b.\\ndo: write b.txt of-b\\ndo: tell b-began\\ndo: wait go"
- [ ] id=c lane=2 deps=ctx payload="@doc:LLM_TASK Write c.\\ndo: write c.txt of-c\\ndo: tell c-began\\ndo: wait go"
- [ ] id=d lane=2 deps=ctx payload="@doc:LLM_TASK Write d.\\ndo: write d.txt of-d\\ndo: tell d-began\\ndo: wait go"
- [ ] id=patch lane=3 deps=ctx payload=@file:specs/feature.diff#apply
- [ ] id=issue lane=1 payload=@gh:acme/web#7
- [ ] id=look lane=3 deps=b payload=@file:t.sh#test
- [ ] id=test lane=3 deps=a,b,c,d,patch,issue kind=test payload=@cmd:make test
"""


@pytest.fixture
def web(home: Home) -> Path:
    (home.control / "limit-web").write_text("4")
    path = home.repo("web", FILES, max_running=4, allow_commands=["make *"])
    (home.root / "plan.md").write_text(PLAN)
    return path


def test_four_agents_do_a_plan(home: Home, web: Path) -> None:
    command = home.start("plan", "run", "plan.md", "-p", "web", "--agents", "4")
    for name in "abcd":
        home.until((home.control / f"{name}-began").exists, f"the agent of {name}, beside the others")
    assert sorted(home.statuses().values()).count("running") == 4
    home.go("go")
    assert command.wait() == 0, command.log

    assert set(home.statuses().values()) == {"completed"}
    assert len(home.rows("SELECT id FROM executions")) == 9
    assert not home.diary("OVERLAP")
    assert home.git(web, "show", "pilot/my-feature-patch:README.md") == "# web\nApplied."
    assert home.git(web, "show", "pilot/my-feature-b:ctx.txt") == "context"  # it began with what came before it
    assert home.git(web, "log", "--format=%s", "main..pilot/my-feature-patch").splitlines()[1:] == ["@cmd:make ctx"]
    assert home.rows("SELECT DISTINCT delivery, pr_url FROM executions WHERE head_sha IS NOT NULL") == [
        ("branch", None)
    ]
    assert "✓ test  9 completed" in command.log
    assert "● a     2 running" in command.log
    assert "✓─┴─" in command.out  # the last step, joined to those before it
    home.audit()

    again = home.pilot("plan", "run", "plan.md", "-p", "web", "--json")
    assert [step["execution"] for step in again.json["steps"]] == list(range(1, 10))
    assert "0 new, 9 done already" in again.err
    assert len(home.rows("SELECT id FROM executions")) == 9


def test_a_step_that_fails_cancels_what_waits_for_it_and_a_retry_goes_on(home: Home, web: Path) -> None:
    (home.root / "fix").mkdir()
    command = f"test -f {home.root}/fix/it"
    home.settings["projects"][0]["allow_commands"] = ["make *", f"test -f {home.root}/fix/*"]
    home.configure()
    (home.root / "plan.md").write_text(
        "# Plan: Broken\n"
        "- [ ] id=ctx lane=1 payload=@cmd:make ctx\n"
        f"- [ ] id=check lane=1 deps=ctx kind=test payload=@cmd:{command}\n"
        "- [ ] id=after lane=1 deps=check payload=@cmd:make ctx\n"
        "- [ ] id=last lane=1 deps=after payload=@gh:1\n"
        '- [ ] id=beside lane=1 deps=ctx payload="@doc:LLM_TASK Beside.\\ndo: write x.txt x"\n'
    )

    failed = home.pilot("plan", "run", "plan.md", "-p", "web", code=1)
    assert "error: step check failed: test: test exited with 1" in failed.err
    assert "cancelled with that: after, last" in failed.err
    assert "pilot plan run plan.md -p web --retry" in failed.err
    assert "├─✗ check" in failed.out
    assert "3 cancelled: execution 2, which it waits for, failed" in failed.out
    assert home.statuses()["broken::beside"] == "completed"

    (home.root / "fix" / "it").touch()
    retried = home.pilot("plan", "run", "plan.md", "-p", "web", "--retry")
    assert "3 new, 2 done already" in retried.err
    assert set(home.statuses().values()) == {"completed"}
    assert home.rows("SELECT count(*) FROM executions WHERE task_id = 'broken::ctx'") == [(1,)]
    home.audit()


def test_ctrl_c_lets_what_runs_end_and_leaves_the_rest_queued(home: Home, web: Path) -> None:
    (home.root / "plan.md").write_text(
        "# Plan: Long\n"
        '- [ ] id=a lane=1 payload="@doc:LLM_TASK A.\\ndo: tell began\\ndo: wait go"\n'
        '- [ ] id=b lane=1 deps=a payload="@doc:LLM_TASK B.\\ndo: nothing\\ndo 1: tell b-began\\ndo 1: wait never"\n'
    )
    command = home.start("plan", "run", "plan.md", "-p", "web")
    home.until((home.control / "began").exists, "the first step's agent")
    command.send(signal.SIGINT)
    command.says("waiting for 1 running")
    home.go("go")
    assert command.wait() == 130
    assert home.statuses() == {"long::a": "completed", "long::b": "queued"}
    assert "1 step left in the queue; `pilot plan run plan.md -p web` or `pilot serve` goes on with it" in command.log

    command = home.start("plan", "run", "plan.md", "-p", "web")
    home.until((home.control / "b-began").exists, "the second step's agent")
    command.send(signal.SIGTERM)
    command.says("waiting for 1 running")
    command.send(signal.SIGTERM)
    assert command.wait() == 130
    assert home.rows("SELECT status, failures, losses FROM executions WHERE id = 2") == [("queued", 0, 0)]
    assert home.processes() == {}

    assert home.pilot("plan", "run", "plan.md", "-p", "web").code == 0
    home.audit()


def test_a_daemon_and_a_plan_run_share_the_steps(home: Home, web: Path) -> None:
    lines = [f'- [ ] id=s{n} lane=1 payload="@doc:LLM_TASK S.\\ndo: tell s{n}-began\\ndo: wait go"' for n in range(4)]
    (home.root / "plan.md").write_text("\n".join(["# Plan: Shared", *lines]))
    home.settings["dispatcher"]["max_running"] = 3  # one too few for the daemon alone
    home.configure()
    with home.serve():
        command = home.start("plan", "run", "plan.md", "-p", "web", "--agents", "1")
        for n in range(4):
            home.until((home.control / f"s{n}-began").exists, f"the agent of s{n}")
        assert home.rows("SELECT count(DISTINCT node) FROM executions") == [(2,)]
        home.go("go")
        assert command.wait() == 0, command.log
    assert not home.diary("OVERLAP")
    home.audit()
