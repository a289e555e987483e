"""Plans: what is read, and everything that is wrong with one, with its line."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pilot.domain.payload import parse_payload
from pilot.domain.plan import (
    MAX_STEPS,
    Plan,
    PlanError,
    Step,
    in_order,
    parse_json,
    parse_json_text,
    parse_markdown,
    parse_plan,
)
from pilot.domain.plan_drawing import to_markdown
from pilot.domain.task import Kind
from pilot.domain.text import for_terminal

SAMPLE = """\
# Plan: My Feature
policy: accrue_all_ideas=true, no_refactor=true

- [ ] id=learn.context lane=1 payload=@cmd:make ctx
- [ ] id=code.feature lane=2 deps=learn.context payload=@file:specs/feature.diff#apply
- [ ] id=test.feature lane=3 deps=code.feature payload=@cmd:make test
"""


def plan_of(*lines: str) -> Plan:
    return parse_markdown("# Plan: P\n" + "\n".join(lines))


def problems_of(text: str) -> list[tuple[int, str]]:
    with pytest.raises(PlanError) as refused:
        parse_markdown(text, "plan.md")
    return [(problem.line, problem.text) for problem in refused.value.problems]


def test_the_sample_is_read_as_it_stands() -> None:
    plan = parse_markdown(SAMPLE)
    assert (plan.slug, plan.title) == ("my-feature", "My Feature")
    assert plan.policy == {"accrue_all_ideas": "true", "no_refactor": "true"}
    assert plan.steps == (
        Step(id="learn.context", lane=1, payload=parse_payload("@cmd:make ctx"), line=4),
        Step(
            id="code.feature", lane=2, payload=parse_payload("@file:specs/feature.diff#apply"),
            deps=("learn.context",), line=5,
        ),
        Step(id="test.feature", lane=3, payload=parse_payload("@cmd:make test"), deps=("code.feature",), line=6),
    )  # fmt: skip
    assert plan.task_id(plan.steps[0]) == "my-feature::learn.context"


@pytest.mark.parametrize(
    ("line", "payload", "rest"),
    [
        ("- [ ] id=a lane=1 payload=@cmd:make ctx  ", "@cmd:make ctx", {}),
        ("* [X] payload=@cmd:make ctx lane=01 id=a", "@cmd:make ctx", {"done": True}),
        ("  + [x] id=a payload=@cmd:make FOO=1 kind=test lane=1", "@cmd:make FOO=1", {"done": True, "kind": "test"}),
        ("- [ ] id=a lane=1 payload=@cmd:make x deps=b,c dedupe=k", "@cmd:make x", {"deps": ("b", "c"), "dedupe": "k"}),
        ("- [ ] id=a lane=1 deps=b, c ,b payload=@cmd:make", "@cmd:make", None),
        ("- [ ] id=a lane=1 deps=b, c payload=@cmd:make", "@cmd:make", {"deps": ("b", "c")}),
        ("- [ ] id=a lane=1 deps=c,b,c payload=@cmd:make", "@cmd:make", {"deps": ("c", "b")}),
        ("- [ ] id=a lane=1 deps= payload=@cmd:make", "@cmd:make", {}),
        ('- [ ] id=a lane=1 payload="@cmd:make deps=x" deps=b', "@cmd:make deps=x", {"deps": ("b",)}),
        (r'- [ ] id=a lane=1 payload="@cmd:echo \"a  b\""', '@cmd:echo "a  b"', {}),
        (r'- [ ] id=a lane=1 payload="@doc:LLM_TASK one\n\\two"', "@doc:LLM_TASK one\n\\two", {}),
        ("- [ ] id=a lane=1 payload=`@cmd:make test`", "@cmd:make test", {}),
        ('- [ ] id=a title="Say it" lane=1 payload=@cmd:make "x  y"', '@cmd:make "x  y"', {"title": "Say it"}),
        ("- [ ] id=a lane=1 payload=@cmd:make payload", "@cmd:make payload", {}),
    ],
)
def test_a_payload_ends_where_our_next_key_begins(line: str, payload: str, rest: dict[str, Any] | None) -> None:
    more = ("- [ ] id=b lane=1 payload=@gh:1", "- [ ] id=c lane=1 payload=@gh:2")
    if rest is None:
        with pytest.raises(PlanError):
            plan_of(line, *more)
        return
    step = plan_of(line, *more).steps[0]
    assert step == Step(id="a", lane=1, payload=parse_payload(payload), line=2, **rest)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("- [ ] lane=1 payload=@gh:1", "id is missing"),
        ("- [ ] id=a payload=@gh:1", "lane is missing"),
        ("- [ ] id=a lane=1", "payload is missing"),
        ("- [ ] id=a lane=x payload=@gh:1", "lane is an integer from 0 to 1000000, not 'x'"),
        ("- [ ] id=a lane=-1 payload=@gh:1", "not '-1'"),
        ("- [ ] id=a lane=1.5 payload=@gh:1", "not '1.5'"),
        ("- [ ] id=a lane=1000001 payload=@gh:1", "lane is an integer"),
        ("- [ ] id=a lane=99999999999999999999999 payload=@gh:1", "lane is an integer"),
        ("- [ ] id=a lane=² payload=@gh:1", "lane is an integer"),
        ("- [ ] id= lane=1 payload=@gh:1", "an id is 1 to 100 of"),
        ("- [ ] id=a/b lane=1 payload=@gh:1", "an id is 1 to 100 of"),
        ("- [ ] id=é lane=1 payload=@gh:1", "an id is 1 to 100 of"),
        ("- [ ] id=" + "x" * 101 + " lane=1 payload=@gh:1", "an id is 1 to 100 of"),
        ("- [ ] id=a lane=1 lane=2 payload=@gh:1", "lane is said twice"),
        ("- [ ] id=a lane=1 payload=@cmd:make lane=2", "lane is said twice; a payload that says so stands in double"),
        ("- [ ] id=a lane=1 dep=b payload=@gh:1", "dep is not known; did you mean deps?"),
        ("- [ ] id=a lane=1 frobnicate=b payload=@gh:1", "there are id, lane, deps"),
        ("- [ ] id=a lane=1 loose payload=@gh:1", "'loose' is no KEY=VALUE"),
        ("- [ ] id=a lane=1 deps=zz payload=@gh:1", "deps names 'zz', and there is no such step"),
        ("- [ ] id=abc lane=1 deps=abd payload=@gh:1", "did you mean abc?"),
        ("- [ ] id=a lane=1 deps=a payload=@gh:1", "'a' waits for itself"),
        ("- [ ] id=a lane=1 deps=,ok payload=@gh:1", "empty id"),
        ("- [ ] id=a lane=1 payload=@cmd:make; rm x", "payload: @cmd: runs without a shell"),
        ("- [ ] id=a lane=1 payload=make", "payload: a payload begins with"),
        ('- [ ] id=a lane=1 payload="@cmd:make', "payload: its double quotes are not closed"),
        ('- [ ] id=a lane=1 payload="@cmd:make"x', "payload: its double quotes are not closed"),
        ("- [ ] id=a lane=1 kind=biuld payload=@gh:1", "did you mean build?"),
        ("- [ ] id=a lane=1 dedupe= payload=@gh:1", "dedupe is a name"),
        ('- [ ] id=a lane=1 title=" " payload=@gh:1', "title is empty"),
        ("-[ ] id=a lane=1 payload=@gh:1", "begins with `- [ ] id=…`"),
        ("- id=a lane=1 payload=@gh:1", "begins with `- [ ] id=…`"),
        ("- [] id=a lane=1 payload=@gh:1", "begins with `- [ ] id=…`"),
        ("- [~] id=a lane=1 payload=@gh:1", "begins with `- [ ] id=…`"),
        ("1. [ ] id=a lane=1 payload=@gh:1", "begins with `- [ ] id=…`"),
        ("id=a lane=1 payload=@gh:1", "begins with `- [ ] id=…`"),
        ("- [ ]", "begins with `- [ ] id=…`"),
        ("policy: no_refactoring=true", "policy no_refactoring is not known; did you mean no_refactor?"),
        ("policy: no_refactor=yes", "policy no_refactor is true or false, not 'yes'"),
        ("policy: no_refactor", "KEY=true or KEY=false"),
        ("policy: no_refactor=true, no_refactor=true", "policy no_refactor is set twice"),
        ("# Plan: Another", "a second `# Plan:`"),
        ("```", "this code block is never closed"),
        ("<!-- - [ ] id=x", "this comment is never closed"),
    ],
)
def test_a_bad_line_says_what_is_wrong_with_it(line: str, words: str) -> None:
    found = problems_of(f"# Plan: P\n- [ ] id=ok lane=1 payload=@gh:1\n\n{line}\n")
    assert [(at, words in said) for at, said in found] == [(4, True)], found


def test_all_that_is_wrong_is_said_at_once_in_order() -> None:
    text = (
        "# Plan: P\n"
        "policy: accrue_all_ideas=true\n"
        "- [ ] id=a lane=1 deps=c payload=@gh:1\n"
        "- [ ] id=b lane=x deps=a payload=@cmd:x|y\n"
        "- [ ] id=c lane=1 deps=b,q payload=@gh:1\n"
        "TODO_ORPHAN: caching\n"
        "- [ ] id=a lane=1 payload=@gh:1\n"
    )
    found = problems_of(text)
    assert [at for at, _ in found] == [3, 4, 4, 5, 6, 7]
    assert found[0][1] == "these wait for each other: a → c → b → a"
    assert found[4][1].startswith("TODO_ORPHAN: caching: under accrue_all_ideas")
    assert found[5][1] == "id 'a' is taken already: by line 3"
    with pytest.raises(PlanError, match=r"^plan\.md:3: these wait .*\nplan\.md:4: lane"):
        parse_markdown(text, "plan.md")


def test_each_tangle_names_its_cycle_once() -> None:
    steps = {"a": "b", "b": "a", "c": "d", "d": "e", "e": "d", "f": "a,c", "g": ""}
    lines = [f"- [ ] id={id} lane=1 deps={deps} payload=@gh:1" for id, deps in steps.items()]
    found = problems_of("# Plan: P\n" + "\n".join(lines))
    assert found == [(2, "these wait for each other: a → b → a"), (5, "these wait for each other: d → e → d")]


@pytest.mark.parametrize("text", ["", "hello", "# Something\n", "\n\n"])
def test_a_text_that_is_no_plan_says_what_one_is(text: str) -> None:
    found = problems_of(text)
    assert any("`# Plan: NAME`" in words for _, words in found)
    assert any("no step in it" in words for _, words in found)


def test_an_orphan_counts_only_where_the_policy_says_so() -> None:
    step = "- [ ] id=a lane=1 payload=@gh:1\n<!-- TODO_ORPHAN: x -->\n"
    for policy in ("", "policy: accrue_all_ideas=false\n"):
        assert len(parse_markdown(f"# Plan: P\n{policy}{step}").steps) == 1
    assert [at for at, _ in problems_of(f"# Plan: P\npolicy: accrue_all_ideas=true\n{step}")] == [4]


def test_what_no_reader_takes_for_a_step_is_none() -> None:
    plan = plan_of(
        "Some prose, with id=words in it.", "- a list", "- [a link](x)", "- [x](y)", "```", "- [ ] id=no lane=1", "```",
        "~~~text", "```", "- [ ] id=no", "~~~", "<!-- - [ ] id=no", "- [ ] id=no -->", "<!-- x -->", "## Steps",
        "- [ ] id=a lane=1 payload=@gh:1\r",
    )  # fmt: skip
    assert [(step.id, step.line) for step in plan.steps] == [("a", 17)]
    assert parse_markdown("\ufeff# Plan: P\r\n- [ ] id=a lane=1 payload=@gh:1\r\n").title == "P"


def test_names_in_other_scripts_are_plans_of_their_own() -> None:
    slugs = {
        parse_markdown(f"# Plan: {title}\n- [ ] id=a lane=1 payload=@gh:1").slug for title in ("計画", "план", "Plan B")
    }
    assert len(slugs) == 3
    assert all(slug.isascii() for slug in slugs)


def test_the_digest_is_of_what_is_said_and_stays() -> None:
    plan = parse_markdown(SAMPLE)
    assert plan.digest == "785cd69543aaed2f"  # kept in stores: it must not change from version to version
    same = SAMPLE.replace("lane=2 deps=learn.context", "deps=learn.context   lane=02").replace("\n\n", "\nProse.\n\n")
    assert parse_markdown(same).digest == plan.digest
    for old, new in (
        ("lane=3", "lane=4"),
        ("make test", "make check"),
        ("- [ ] id=t", "- [x] id=t"),
        ("deps=code.feature", "deps=learn.context"),
        ("My", "Your"),
        ("no_refactor=true", "no_refactor=false"),
    ):
        assert old in SAMPLE
        assert parse_markdown(SAMPLE.replace(old, new)).digest != plan.digest


def test_steps_stay_as_they_are_written_where_nobody_has_to_wait() -> None:
    lines = (
        "- [ ] id=z lane=1 deps=x payload=@gh:1",
        "- [ ] id=x lane=1 payload=@gh:1",
        "- [ ] id=y lane=1 payload=@gh:1",
    )
    assert [step.id for step in in_order(plan_of(*lines))] == ["x", "z", "y"]
    both = (plan_of(*lines, f"- [ ] id=a lane=1 deps={deps} payload=@gh:1") for deps in ("x,y", "y,x"))
    assert len({plan.digest for plan in both}) == 1


def test_json_says_the_same() -> None:
    document = {
        "slug": "my-feature",
        "title": "My Feature",
        "policy": {"accrue_all_ideas": True, "no_refactor": "true"},
        "steps": [
            {"id": "learn.context", "lane": 1, "payload": "@cmd:make ctx"},
            {"id": "code.feature", "lane": 2, "payload": "@file:specs/feature.diff#apply", "deps": ["learn.context"]},
            {"id": "test.feature", "lane": 3, "payload": "@cmd:make test", "dependsOn": ["code.feature"], "kind": None},
        ],
    }
    plan = parse_json(document)
    assert plan.digest == parse_markdown(SAMPLE).digest
    assert plan == parse_plan("\n " + json.dumps(document))
    assert parse_plan(SAMPLE) == parse_markdown(SAMPLE)
    assert parse_json({"title": "My Feature!", "steps": document["steps"]}).slug == "my-feature"


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        ({"steps": "x"}, 0, "steps is a list"),
        ({"steps": []}, 0, "no step in it"),
        ({"slug": "a b"}, 0, "slug is 1 to 60 of"),
        ({"slug": 3}, 0, "slug is 1 to 60 of"),
        ({"slug": None}, 0, "no slug and no title"),
        ({"title": 3}, 0, "title is a string"),
        ({"policy": []}, 0, ""),
        ({"policy": [1]}, 0, "policy is an object"),
        ({"policy": {"no_refactor": 1}}, 0, "policy no_refactor is true or false, not 1"),
        ({"polices": {}}, 0, "did you mean policy?"),
        ({"step": "@"}, 2, "a step is an object"),
        ({"step": {"id": 7}}, 2, "id is a string, not 7"),
        ({"step": {"lane": "1"}}, 2, "lane is an integer, not '1'"),
        ({"step": {"lane": True}}, 2, "lane is an integer, not True"),
        ({"step": {"lane": 1e30}}, 2, "lane is an integer"),
        ({"step": {"lane": -1}}, 2, "lane is an integer from 0"),
        ({"step": {"payload": ["@gh:1"]}}, 2, "payload is a string"),
        ({"step": {"dependsOn": "a"}}, 2, "dependsOn is a list of ids"),
        ({"step": {"dependsOn": ["a"], "deps": ["a"]}}, 2, "says again"),
        ({"step": {"dependOn": ["a"]}}, 2, "did you mean dependsOn?"),
        ({"step": {"done": "yes"}}, 2, "done is true or false"),
        ({"step": {"id": "a"}}, 2, "id 'a' is taken already: by step 1"),
    ],
)
def test_bad_json_names_the_step(change: dict[str, Any], line: int, words: str) -> None:
    second: Any = {"id": "b", "lane": 1, "payload": "@gh:1"}
    if "step" in change:
        second = second | change["step"] if isinstance(change["step"], dict) else change["step"]
    document = {"slug": "s", "steps": [{"id": "a", "lane": 1, "payload": "@gh:1"}, second]}
    document |= {key: value for key, value in change.items() if key != "step"}
    if not words:
        assert parse_json(document).policy == {}
        return
    with pytest.raises(PlanError) as refused:
        parse_json(document, "p.json")
    assert [(p.line, words in p.text) for p in refused.value.problems] == [(line, True)], refused.value.problems
    assert str(refused.value).startswith("p.json: step 2 (" if line else "p.json: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"slug": "s",\n "steps": [}', "p:2: not JSON"),
        ('{"slug": "s", "slug": "t", "steps": []}', "'slug' stands twice"),
        ('{"a":' * 100_000, "p: not JSON"),
        ('{"steps": [{"lane": ' + "9" * 5000 + "}]}", "p: not JSON"),
        ("[]", "an object"),
    ],
)
def test_what_is_no_json_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(PlanError) as refused:
        parse_json_text(text, "p")
    assert words in str(refused.value)


def test_json_is_searched_for_orphans_however_deep() -> None:
    deep: Any = "TODO_ORPHAN: deep"
    for _ in range(5000):
        deep = [deep]
    step = {"id": "a", "lane": 1, "payload": "@doc:x", "title": "TODO_ORPHAN: x"}
    with pytest.raises(PlanError) as refused:
        parse_json({"slug": "s", "policy": {"accrue_all_ideas": True}, "steps": [step], "more": deep})
    assert [problem.line for problem in refused.value.problems] == [0, 0, 1]


def test_a_plan_has_its_limits() -> None:
    step = "- [ ] id=s{} lane=1 payload=@gh:1\n"
    many = "# Plan: P\n" + "".join(step.format(number) for number in range(MAX_STEPS + 1))
    assert "10000 steps at most, not 10001" in problems_of(many)[0][1]
    assert "1 MiB at most" in problems_of("# Plan: P\n" + "é" * (1 << 19))[0][1]
    wrong = "# Plan: P\n" + "- [ ] id=a/ lane=1 payload=@gh:1\n" * 1000
    with pytest.raises(PlanError) as refused:
        parse_markdown(wrong)
    assert len(str(refused.value).splitlines()) == 201
    assert str(refused.value).endswith("more")


def test_five_thousand_steps_take_no_second() -> None:
    """Twenty thousand edges; of processor time, since others work here, too."""
    lines = ["# Plan: Big"]
    for number in range(5000):
        deps = ",".join(f"s{max(0, number - back)}" for back in (1, 2, 17, 400)) if number else ""
        lines.append(f"- [ ] id=s{number} lane={number % 7} deps={deps} payload=@cmd:make -j4 target-{number}")
    begun = time.process_time()
    plan = parse_markdown("\n".join(lines))
    assert plan.digest
    assert len(in_order(plan)) == 5000
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize(
    "line",
    [
        "- [ ] id=a payload=" + " " * 500_000 + "x",
        "- [ ] " + "a=" * 300_000,
        "- [ ] deps=" + "a," * 300_000 + "\\",
        '- [ ] title="' + "\\" * 700_000,
        "- [" * 200_000,
    ],
    ids=["spaces", "keys", "deps", "quotes", "boxes"],
)
def test_no_line_takes_long(line: str) -> None:
    begun = time.process_time()
    problems_of(line)
    assert time.process_time() - begun < 2.0


names = st.text("abcdefghijXYZ019._-", min_size=1, max_size=6)
payloads = st.sampled_from([
    "@cmd:make test", '@cmd:x "a  b" \'c"\'', "@cmd:make deps=x lane=2", "@file:a b.diff#apply", "@file:x#dual",
    "@doc:LLM_TASK say \\n \"this\"\nand\tthat payload=x", "@doc:x `y`", "@gh:a/b#1", "@url:https://x.test/?a=\\t",
])  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    ids = draw(st.lists(names, min_size=1, max_size=12, unique=True))
    order = draw(st.permutations(ids))
    steps = [
        Step(
            id=id,
            lane=draw(st.integers(0, 1_000_000)),
            payload=parse_payload(draw(payloads)),
            deps=tuple(draw(st.lists(st.sampled_from(order[: order.index(id)]), max_size=4, unique=True)))
            if order.index(id)
            else (),
            dedupe=draw(st.none() | st.sampled_from(["k", 'a "b" c', "`x`", "a\\n"])),
            kind=draw(st.none() | st.sampled_from([str(kind) for kind in Kind])),
            title=draw(st.none() | st.sampled_from(["Say it", "one", '"q"', "a=b c=d", "back\\slash"])),
            done=draw(st.booleans()),
        )
        for id in ids
    ]
    policy = draw(st.dictionaries(st.sampled_from(["no_refactor"]), st.sampled_from(["true", "false"])))
    return Plan(slug="a-name", title="A  name".replace("  ", " "), steps=tuple(steps), policy=policy)


@settings(max_examples=40)
@given(plans())
def test_a_plan_that_is_written_down_is_read_as_the_same(plan: Plan) -> None:
    again = parse_markdown(to_markdown(plan))
    assert again.digest == plan.digest
    assert [(s.id, s.deps, s.payload, s.title) for s in again.steps] == [
        (s.id, s.deps, s.payload, s.title) for s in plan.steps
    ]


@settings(max_examples=40)
@given(plans())
def test_any_order_without_a_cycle_is_found(plan: Plan) -> None:
    order = [step.id for step in in_order(plan)]
    assert sorted(order) == sorted(step.id for step in plan.steps)
    for step in plan.steps:
        assert all(order.index(dep) < order.index(step.id) for dep in step.deps)
    if not any(step.deps for step in plan.steps):
        assert order == [step.id for step in plan.steps]


@settings(max_examples=40)
@given(plans(), st.data())
def test_a_planted_cycle_is_named(plan: Plan, data: st.DataObject) -> None:
    """From a step back to one that waits for it: whichever cycle is named then goes through that edge."""
    order = in_order(plan)
    first = data.draw(st.integers(0, len(order) - 1))
    last = data.draw(st.integers(first, len(order) - 1))
    chain = [step.id for step in order[first : last + 1]]
    edges = {step.id: set(step.deps) for step in plan.steps}
    for before, after in pairwise(chain):
        edges[after].add(before)
    edges[chain[0]].add(chain[-1])
    text = "# Plan: P\n" + "".join(
        f"- [ ] id={id} lane=1 deps={','.join(sorted(deps))} payload=@gh:1\n" for id, deps in edges.items()
    )
    found = problems_of(text)
    if len(chain) == 1:
        assert [words for _, words in found] == [f"'{chain[0]}' waits for itself"]
        return
    (words,) = [words for _, words in found]
    cycle = words.removeprefix("these wait for each other: ").split(" → ")
    assert cycle[0] == cycle[-1]
    assert len(cycle) > 2
    assert all(dep in edges[id] for id, dep in pairwise(cycle))
    assert (chain[0], chain[-1]) in pairwise(cycle)


pieces = st.sampled_from([
    "# Plan: ", "P", "\n", "policy:", "- [ ] ", "- [x] ", "id=", "a", "lane=", "1", "deps=", "a,b", "payload=", "@cmd:",
    "@doc:LLM_TASK x", '"', "\\", "`", "```", "<!--", "-->", " ", "\t", "\x00", "\u202e", "\ud800", "{", "}",
    "TODO_ORPHAN:",
])  # fmt: skip


@settings(max_examples=200)
@given(st.text(max_size=80) | st.lists(pieces, max_size=40).map("".join))
@example("# Plan: P\n- [ ] id=a lane=1 payload=")
@example("{")
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = parse_plan(text)
    except PlanError as refused:
        error = str(refused)
    else:
        assert plan.steps
        return
    assert error == for_terminal(error)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
keys = st.sampled_from(["id", "lane", "payload", "deps", "dependsOn", "dedupe", "kind", "title", "done", "x"])


@settings(max_examples=60)
@given(
    values
    | st.fixed_dictionaries(
        {}, optional={"slug": values, "title": values, "policy": values | st.just({"accrue_all_ideas": True}),
                      "steps": values | st.lists(values | st.dictionaries(keys, values | names), max_size=4)}
    )
)  # fmt: skip
def test_any_document_is_a_plan_or_a_plan_error(document: Any) -> None:
    try:
        plan = parse_json(document)
    except PlanError as refused:
        error = str(refused)
    else:
        assert plan.steps
        return
    assert error == for_terminal(error)


def test_the_plans_of_the_documentation_are_plans(repository_root: Path) -> None:
    text = (repository_root / "docs" / "plans.md").read_text()
    blocks = re.findall(r"^```(markdown|json)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    found = [parse_plan(block) for _, block in blocks]
    assert [(plan.slug, len(plan.steps)) for plan in found] == [("my-feature", 4), ("my-feature", 2)]
