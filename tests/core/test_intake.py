"""The door for tasks: what payloads, callbacks and dedupe keys become, who does them, and what is turned away."""

from __future__ import annotations

import time
from typing import Any

import pytest

from pilot.backends import known_backends
from pilot.config.executor import ExecutorSettings
from pilot.config.schema import CallbackSettings, ProjectSettings, ServerSettings, Settings
from pilot.dispatch.intake import TICKETS, Intake, TaskRequest
from pilot.dispatch.plans import plan_steps
from pilot.domain.errors import UsageError
from pilot.domain.plan import Plan, PlanError, parse_markdown
from pilot.domain.ports import PlanSteps
from pilot.domain.task import Kind, Project, Task

PROJECT = Project(1, "key", "api", "/src/api")
H = "da39a3ee5e6b4b0d3255bfef95601890afd80709"


class Nowhere:
    async def enqueue(self, task: Task) -> Any:
        raise AssertionError(task)


def settings(**changed: Any) -> Settings:
    executor = ExecutorSettings.model_validate(
        {
            "type": "claude-code",
            "profiles": {"away": {"type": "external"}},
            "routes": [
                {"match": {"kind": "deploy"}, "use": "away"},
                {"match": {"labels": ["docs"]}, "use": "codex", "model": "small", "fallback": ["opencode"]},
            ],
        }
    )
    return Settings(executor=executor, **changed)


def own(*allow: str) -> ProjectSettings:
    return ProjectSettings.model_validate({"name": "api", "url": "https://host.test/api.git", "allow_commands": allow})


def task(prompt: str, *allow: str, config: Settings | None = None, **more: Any) -> Task:
    intake = Intake(config or settings(), Nowhere(), known_backends)
    return intake.task(TaskRequest(prompt=prompt, **more), PROJECT, own(*allow))


def steps(plan: Plan, *allow: str, **more: Any) -> PlanSteps:
    return plan_steps(plan, Intake(settings(), Nowhere(), known_backends), PROJECT, own(*allow), **more)


def plan_of(*lines: str) -> Plan:
    return parse_markdown("# Plan: My Feature\n" + "\n".join(lines))


@pytest.mark.parametrize("text", ["@cmd:make test", "@file:a.diff#apply", "@file:t.sh#test"])
def test_what_needs_no_agent_pilot_does_itself(text: str) -> None:
    made = task(f" {text} ", "make *", labels=("docs",))
    assert (made.backend, made.fallback, made.model, made.external) == ("payload", (), None, False)
    assert (made.payload, made.title, made.body) == (text, text, "")
    assert made.options["route"] == "payload"
    asked: tuple[dict[str, Any], ...] = ({"backend": "codex"}, {"model": "large"})
    for more in asked:
        with pytest.raises(UsageError, match="without an agent"):
            task(text, "make *", **more)


def test_a_payload_goes_where_a_route_leaves_its_work() -> None:
    ways: tuple[dict[str, Any], ...] = ({"kind": Kind.DEPLOY}, {"backend": "away"}, {"backend": "external"})
    for more in ways:
        made = task("@cmd:make test", "make *", **more)
        assert made.external
        assert made.backend == more.get("backend", "away")


def test_a_prompt_goes_to_the_agent_of_its_route() -> None:
    made = task("@file:tasks/one.md", labels=("docs",))
    assert (made.backend, made.fallback, made.model) == ("codex", ("opencode",), "small")
    assert (made.payload, made.title, made.body, made.instant) == ("@file:tasks/one.md",) * 2 + ("", False)
    made = task("@doc:LLM_TASK Write the docs\nof all of it")
    assert (made.title, made.body, made.backend) == ("Write the docs", "Write the docs\nof all of it", "claude-code")
    made = task("Please:", payload="@doc:LLM_TASK Write", title="Docs")
    assert (made.title, made.body) == ("Docs", "Please:\n\nWrite")
    made = task("Docs", payload="@doc:LLM_TASK Write", title="Docs")
    assert (made.title, made.body) == ("Docs", "Write")


@pytest.mark.parametrize("text", ["@url:https://x.test", "@gh:a/b#1", "@git:main", "@doc:notes"])
def test_a_note_is_nobodys_work(text: str) -> None:
    assert task(text).instant
    assert not task(f"see {text}").instant


def test_a_command_has_to_be_allowed_whole() -> None:
    with pytest.raises(UsageError, match=r"does not allow the command 'make test'.*it allows none.*allow_commands"):
        task("@cmd:make test")
    with pytest.raises(UsageError, match=r"it allows 'make'"):
        task("x", "make", payload="@cmd:make test")
    with pytest.raises(UsageError, match="does not allow"):
        task("@cmd:make test", "make", kind=Kind.DEPLOY)  # whoever does it


@pytest.mark.parametrize("source", TICKETS)
def test_what_strangers_write_never_names_a_program(source: str) -> None:
    made = task("@cmd:make test", "make *", source=source)
    assert (made.payload, made.backend, made.title) == (None, "claude-code", "@cmd:make test")
    assert task("@cmd:make test", "make *", source="cron", origin={"url": "x"}).payload is None
    assert not task("@gh:a/b#1", source=source).instant


def test_other_payloads_are_kept_as_they_are() -> None:
    for kept in ({"@cmd:": "x"}, ["@cmd:make"], "words", 3):
        made = task("Do it", payload=kept)
        assert (made.payload, made.backend, made.body) == (kept, "claude-code", "")
    with pytest.raises(UsageError, match="can't have another"):
        task("@gh:a/b#1", payload={"x": 1})
    assert task("@gh:a/b#1", payload="@gh:a/b#1").body == ""
    with pytest.raises(UsageError, match="did you mean #apply"):
        task("Do it", payload="@file:x#aply")


def test_a_dedupe_key_is_said_or_comes_from_the_hash() -> None:
    hashed = task(f"@file:x#sha1={H}").dedupe
    assert hashed is not None
    assert H in hashed
    assert task(f"@file:x#sha1={H}", dedupe="mine").dedupe == "mine"
    assert task("Do it", dedupe="mine").dedupe == "mine"
    assert task("Do it").dedupe is None
    for bad in ("", " ", "a\nb", "x" * 201):
        with pytest.raises(UsageError, match="dedupe is 1 to 200"):
            task("Do it", dedupe=bad)


@pytest.mark.parametrize(
    "url",
    ["https://hooks.example/a?b=c", "http://hooks.example:8080", "https://[2001:db8::1]/x", "HTTPS://A.Example./"],
)
def test_an_address_to_be_called_back_at_is_kept(url: str) -> None:
    assert task("Do it", callback_url=url).callback_url == url


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example", "ftp://hooks.example", "file:///etc/passwd", "https://", "https:///x", "//hooks.example",
        "https://user@hooks.example", "https://user:pw@hooks.example", "https://@hooks.example", "javascript:alert(1)",
        "https://hooks.example/a b", "https://hooks.example/\n", "https://h\x00ooks.example", "https://höoks.example",
        "https://hooks.example:0/", "https://hooks.example:99999/", "https://hooks.example:x/", "https://[::1/",
        "https://hooks.example\\@evil.example", "https://hooks.example/" + "x" * 2000,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        task("Do it", callback_url=url)
    if url:
        assert "pw" not in str(refused.value)


def test_a_callback_goes_to_hosts_that_are_allowed() -> None:
    callbacks = CallbackSettings(allow_hosts=("*.example", "one.test"))
    config = settings(server=ServerSettings(callbacks=callbacks))
    for host in ("a.example", "A.B.Example.", "one.test"):
        assert task("Do it", config=config, callback_url=f"https://{host}/").callback_url
    for host in ("example", "a.example.evil.test", "xone.test", "aexample"):
        with pytest.raises(UsageError, match=r"allow_hosts in pilot\.yaml"):
            task("Do it", config=config, callback_url=f"https://{host}/")


def test_a_plan_becomes_tasks_that_wait_for_each_other() -> None:
    plan = plan_of(
        "policy: no_refactor=true",
        "- [ ] id=late lane=3 deps=ctx,docs payload=@file:a.diff#apply dedupe=k",
        "- [ ] id=ctx lane=1 payload=@cmd:make ctx",
        '- [ ] id=docs lane=2 deps=ctx kind=content title="Docs!" payload=@doc:LLM_TASK write',
        "- [x] id=old lane=2 deps=late payload=@cmd:rm x dedupe=q",
        "- [ ] id=new lane=2 deps=old payload=@file:t.sh#test",
    )
    made = steps(plan, "make *")
    assert made.after == {0: (1, 2), 2: (1,), 4: (3,)}  # nobody waits for what has been done
    late, ctx, docs, old, new = made.tasks
    assert [one.task_id for one in made.tasks] == [f"my-feature::{step.id}" for step in plan.steps]
    assert {(one.plan, one.source, one.options["publish"]) for one in made.tasks} == {("my-feature", "plan", "branch")}
    assert late.idempotency_key == f"plan:my-feature:{plan.digest}:late"
    assert (late.lane, late.dedupe, late.kind, late.backend) == (3, "k", Kind.CODE, "payload")
    assert (ctx.title, ctx.payload) == ("@cmd:make ctx", "@cmd:make ctx")
    assert (docs.title, docs.kind, docs.backend) == ("Docs!", Kind.CONTENT, "claude-code")
    assert "step docs of the plan “My Feature”" in docs.body
    assert "no refactoring" in docs.body
    assert "Lose no idea" not in docs.body
    assert docs.body.endswith("\n\nwrite")
    assert (old.instant, old.dedupe) == (True, None)
    assert (new.kind, new.instant) == (Kind.TEST, False)
    assert steps(plan, "make *", key="K").tasks[1].idempotency_key == "plan:my-feature:K:ctx"


def test_all_steps_that_the_project_does_not_take_are_named() -> None:
    plan = plan_of(
        "- [ ] id=a lane=1 payload=@cmd:rm x",
        "- [ ] id=b lane=1 payload=@cmd:make x",
        "- [ ] id=c lane=1 payload=@cmd:rm y",
    )
    with pytest.raises(PlanError) as refused:
        steps(plan, "make *", name="p.md")
    assert [problem.line for problem in refused.value.problems] == [2, 4]
    assert str(refused.value).startswith("p.md:2: a: project api does not allow the command 'rm x'")
    for key in ("", " x", "a\nb", "x" * 101):
        with pytest.raises(UsageError, match="key"):
            steps(plan, "*", key=key)


def test_a_plan_of_thousands_is_taken_in_at_once() -> None:
    """Settings are put together once, not for each step: of processor time, since others work here, too."""
    plan = plan_of(*(f"- [ ] id=s{n} lane=1 payload=@cmd:make t{n}" for n in range(5000)))
    begun = time.process_time()
    assert len(steps(plan, "make *").tasks) == 5000
    assert time.process_time() - begun < 1.0
