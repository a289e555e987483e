"""Plans as pictures: rails from each step to those that wait for it, and Mermaid that nobody breaks out of."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pilot.domain.payload import parse_payload
from pilot.domain.plan import Plan, Step, parse_markdown
from pilot.domain.plan_drawing import WIDEST, draw, to_mermaid

TEXT = """\
# Plan: My Feature
- [ ] id=context lane=1 payload=@cmd:make ctx
- [x] id=alone lane=1 payload=@gh:acme/api#3
- [ ] id=a lane=2 deps=context payload=@file:specs/a.diff#apply
- [ ] id=b lane=2 deps=context payload=@file:specs/b.diff#apply
- [ ] id=c lane=2 deps=context payload=@doc:LLM_TASK write the docs
- [ ] id=side lane=2 deps=b payload=@cmd:make side
- [ ] id=test lane=3 deps=a,b,c payload=@cmd:make test
- [ ] id=last lane=3 deps=test,side payload=@cmd:make all
"""


def plan_of(edges: dict[str, str]) -> Plan:
    note = parse_payload("@gh:1")
    steps = [Step(id=id, lane=1, payload=note, deps=tuple(filter(None, deps.split(",")))) for id, deps in edges.items()]
    return Plan(slug="p", title="P", steps=tuple(steps))


def drawn(plan: Plan, statuses: dict[str, str] | None = None) -> list[str]:
    return [f"{line.rail} {line.step.id}" for line in draw(plan, statuses)]


def test_a_plan_is_drawn_with_how_its_steps_stand() -> None:
    statuses = {"context": "completed", "a": "failed", "b": "running", "c": "needs_human", "test": "cancelled"}
    assert drawn(parse_markdown(TEXT), statuses) == [
        "✓       context",
        "│ ✓     alone",
        "├───✗   a",
        "├─● │   b",
        "? │ │   c",
        "│ ├─│─○ side",
        "−─┴─┘ │ test",  # noqa: RUF001
        "○─────┘ last",
    ]


def test_what_does_not_belong_together_does_not_touch() -> None:
    assert drawn(plan_of({"a": "", "b": "", "c": "", "d": "b"})) == ["○   a", "  ○ b", "○ │ c", "  ○ d"]


def test_a_chain_stays_in_one_column() -> None:
    edges = {f"s{number}": f"s{number - 1}" if number else "" for number in range(3000)}
    assert {line.rail for line in draw(plan_of(edges))} == {"○"}


def test_a_plan_too_wide_for_rails_is_drawn_by_levels() -> None:
    wide = {"root": ""} | {f"s{number}": "root" for number in range(WIDEST + 1)}
    wide["join"] = ",".join(wide)
    lines = draw(plan_of(wide))
    assert [line.level for line in lines] == [0] + [1] * (WIDEST + 1) + [2]
    assert [lines[0].rail, lines[1].rail, lines[-1].rail] == ["1 ○", "2 ○", "3 ○"]


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, str]:
    count = draw(st.integers(1, 9))
    return {
        f"s{at}": ",".join(
            sorted(draw(st.sets(st.sampled_from([f"s{n}" for n in range(at)]), max_size=3))) if at else []
        )
        for at in range(count)
    }


LEFT, RIGHT, UP, DOWN = "┤┼┘┴─", "├┼└┴─", "│├┤┼└┘┴", "│├┤┼"


@settings(max_examples=60)
@given(graphs())
def test_the_rails_say_who_waits_for_whom(edges: dict[str, str]) -> None:
    """Read as a person would: from a step's mark along its line, up from where that bends, to the next mark."""
    lines = draw(plan_of(edges))
    grid = [line.rail + " " for line in lines]
    for row, line in enumerate(lines):
        own = line.rail.index("○")
        ends = [own] + [at for at in _along(grid[row], own) if grid[row][at] in UP]
        found = {lines[top].step.id for at in ends if (top := _up(grid, row, at)) is not None}
        assert found == set(line.step.deps), "\n".join(f"{line.rail} {line.step.id}" for line in lines)


def _along(row: str, own: int) -> list[int]:
    """Where a mark's line bends: a rail that it crosses has a straight `│`."""
    found = []
    for step in (-2, 2):
        at = own
        while 0 <= at + step < len(row) and row[at + step // 2] == "─":
            at += step
            if row[at] in "├┤┼└┘┴":
                found.append(at)
    return found


def _up(grid: list[str], row: int, at: int) -> int | None:
    for above in range(row - 1, -1, -1):
        if grid[above][at] == "○":
            return above
        if grid[above][at] not in DOWN:
            return None
    return None


HOSTILE = [
    '"]; click s1 "javascript:alert(1)"',
    "%%{init: {'securityLevel': 'loose'}}%%",
    "`**bold**`",
    "<img src=x onerror=alert(1)>",
    "x --> y; subgraph z",
    "#quot;#34;",
    "\x1b[2J\u202eend",
    "```\n```",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_nothing_breaks_out_of_a_label(words: str) -> None:
    step = Step(
        id="a", lane=1, payload=parse_payload("@doc:LLM_TASK " + "".join(filter(str.isprintable, words))), title=words
    )
    text = to_mermaid(Plan(slug="p", title=words, steps=(step,)), {"a": "running"})
    lines = text.split("\n")
    assert re.fullmatch(r'  s1\["[\w .,:/@=+#;-]*<br/>lane 1 [\w .,:/@=+#;…-]*"\]', lines[1]), lines[1]
    assert lines[0] == "flowchart TD"
    assert lines[2:] == ["  classDef running fill:#1f6feb,color:#fff", "  class s1 running"]
    assert not set(re.sub(r'"[^"]*"', "", text)) & set("`<>%{}()\x1b")


def test_mermaid_has_every_step_and_every_edge() -> None:
    plan = parse_markdown(TEXT)
    text = to_mermaid(plan)
    assert text.count("<br/>") == len(plan.steps)
    edges = re.findall(r"s(\d+) --> s(\d+)", text)
    ids = [step.id for step in plan.steps]
    assert {(ids[int(a) - 1], ids[int(b) - 1]) for a, b in edges} == {(d, s.id) for s in plan.steps for d in s.deps}
