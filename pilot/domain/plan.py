"""Plans: markdown or JSON, checked whole, as steps that wait for each other. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pilot.domain.errors import UsageError
from pilot.domain.payload import Payload, parse_payload
from pilot.domain.plan_graph import cycles, ordered
from pilot.domain.plan_reading import Draft, Reading, did_you_mean, read_json, read_markdown
from pilot.domain.task import Kind
from pilot.domain.text import one_line, slug

MAX_TEXT = 1 << 20
"""Bytes of a plan's text."""
MAX_STEPS = 10_000
MAX_NAME = 100
"""Characters of a step's id."""
MAX_SLUG = 60
MAX_LANE = 1_000_000
POLICIES = ("accrue_all_ideas", "no_refactor")
ORPHAN = "TODO_ORPHAN:"
"""Marks an idea that no step takes up; under `accrue_all_ideas` a plan has none."""
_SHOWN = 200
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_DEDUPE = re.compile(r"\S+(?: \S+)*")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a plan; `line` counts from 1 (JSON: the step's number), 0: of the whole."""

    line: int
    text: str


class PlanError(UsageError):
    """A plan can't be used; carries all problems, in the order of their lines.

    `steps`: the ids by number, for a plan that has steps rather than lines (JSON).
    """

    def __init__(self, name: str, problems: Sequence[Problem], steps: Mapping[int, str] | None = None) -> None:
        self.problems = tuple(problems)
        self.steps = steps
        lines = [f"{name}{self._at(problem)}: {problem.text}" for problem in problems[:_SHOWN]]
        if more := len(problems) - len(lines):
            lines.append(f"{name}: … and {more} more")
        super().__init__("\n".join(lines))

    def where(self, problem: Problem) -> str:
        """For people: `line 3`, `step 2 (a)`, or nothing."""
        if not problem.line:
            return ""
        return (
            f"line {problem.line}"
            if self.steps is None
            else f"step {problem.line} ({self.steps.get(problem.line, '?')})"
        )

    def _at(self, problem: Problem) -> str:
        if problem.line and self.steps is None:
            return f":{problem.line}"
        return f": {self.where(problem)}" if problem.line else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node. `deps` are ids of other steps. `done`: it is ticked off; nobody does it.

    `kind` and `title`: where they are said; `line` as in `Problem`.
    """

    id: str
    lane: int
    payload: Payload
    deps: tuple[str, ...] = ()
    dedupe: str | None = None
    kind: str | None = None
    title: str | None = None
    done: bool = False
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked plan: ids are unique, every dependency is there, and there is no cycle. `steps` as written."""

    slug: str
    title: str
    steps: tuple[Step, ...]
    policy: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """What it says, in 16 hex digits: spaces, prose and the order of keys don't count.

        Neither does its title beyond the slug; a tick does, for it says that a step is not to be done.
        """
        steps = [
            [one.id, one.lane, one.payload.text, sorted(one.deps), one.dedupe, one.kind, one.title, one.done]
            for one in self.steps
        ]
        said = json.dumps([self.slug, dict(self.policy), steps], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(said.encode()).hexdigest()[:16]

    def task_id(self, step: Step) -> str:
        """The step's task id: `{slug}::{id}`."""
        return f"{self.slug}::{step.id}"

    def told(self, policy: str) -> bool:
        """Whether it has this policy."""
        return self.policy.get(policy) == "true"


def parse_plan(text: str, name: str = "plan") -> Plan:
    """Read and check either form. Raises `PlanError`."""
    return parse_json_text(text, name) if text.lstrip("\ufeff \t\r\n").startswith("{") else parse_markdown(text, name)


def parse_markdown(text: str, name: str = "plan") -> Plan:
    """Read and check. Raises `PlanError` with everything that is wrong."""
    _check_size(text, name)
    reading = read_markdown(text)
    plan, problems = _checked(reading)
    if reading.policy.get("accrue_all_ideas") == "true":
        lines = enumerate(text.split("\n"), 1)
        problems += [Problem(at, _orphan(line)) for at, line in lines if ORPHAN in line]
    if problems or plan is None:
        raise PlanError(name, _by_line(problems))
    return plan


def parse_json_text(text: str, name: str = "plan") -> Plan:
    """As `parse_json`, from what stands in a file."""
    _check_size(text, name)
    try:
        document = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise PlanError(name, [Problem(error.lineno, f"not JSON: {error.msg} (column {error.colno})")]) from None
    except (ValueError, RecursionError) as error:
        raise PlanError(name, [Problem(0, f"not JSON: {one_line(str(error))}")]) from None
    return parse_json(document, name)


def parse_json(document: Any, name: str = "plan") -> Plan:
    """Read and check `{"slug", "title"?, "policy"?, "steps": [{"id", "lane", "payload", "dependsOn"?, …}]}`."""
    reading = read_json(document)
    plan, problems = _checked(reading)
    if reading.policy.get("accrue_all_ideas") == "true":
        steps = document["steps"] if isinstance(document.get("steps"), list) else []
        rest = {key: value for key, value in document.items() if key != "steps"}
        for at, part in enumerate([rest, *steps]):
            problems += [Problem(at, _orphan(text)) for text in _texts(part) if ORPHAN in text]
    if problems or plan is None:
        ids = {draft.line: draft.values.get("id") for draft in reading.drafts}
        raise PlanError(name, _by_line(problems), {line: one_line(id or "?", 60) for line, id in ids.items()})
    return plan


def in_order(plan: Plan) -> list[Step]:
    """Its steps, each behind what it waits for; otherwise as written."""
    order, _ = ordered([(step.id, step.deps) for step in plan.steps])
    return [plan.steps[at] for at in order]


def _check_size(text: str, name: str) -> None:
    if len(text) > MAX_TEXT or len(text.encode(errors="replace")) > MAX_TEXT:
        raise PlanError(name, [Problem(0, "a plan may have 1 MiB at most")])


def _by_line(problems: Iterable[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: problem.line)


def _checked(reading: Reading) -> tuple[Plan | None, list[Problem]]:
    """The plan, unless something is wrong with it, and all that is."""
    problems = [Problem(line, words) for line, words in reading.problems]
    name = _slug(reading, problems)
    _check_policy(reading, problems)
    drafts = reading.drafts
    if len(drafts) > MAX_STEPS:
        problems.append(Problem(0, f"a plan has {MAX_STEPS} steps at most, not {len(drafts)}"))
        return None, problems
    if not drafts and not (problems and reading.counts_steps):
        problems.append(Problem(0, "there is no step in it; one is `- [ ] id=NAME lane=1 payload=@cmd:make test`"))
    steps = [step for draft in drafts if (step := _step(draft, problems)) is not None]
    _check_graph(drafts, problems, "step" if reading.counts_steps else "line")
    if problems:
        return None, problems
    return Plan(slug=name, title=reading.title or name, steps=tuple(steps), policy=dict(reading.policy)), []


def _slug(reading: Reading, problems: list[Problem]) -> str:
    if reading.slug is not None:
        if not isinstance(reading.slug, str) or len(reading.slug) > MAX_SLUG or not _NAME.fullmatch(reading.slug):
            problems.append(Problem(0, f"slug is 1 to {MAX_SLUG} of A-Z a-z 0-9 . _ -, not {_said(reading.slug)}"))
            return ""
        return reading.slug
    title = reading.title
    if not title:
        if reading.counts_steps:  # of markdown it has been said
            problems.append(Problem(0, "the plan has no slug and no title"))
        return ""
    if any(char.isascii() and char.isalnum() for char in title):
        return slug(title, MAX_SLUG)
    # a name in another script: nothing of it would be left, and all such plans would be one
    return f"plan-{hashlib.sha256(title.encode(errors='replace')).hexdigest()[:8]}"


def _check_policy(reading: Reading, problems: list[Problem]) -> None:
    for key, value in reading.policy.items():
        if key not in POLICIES:
            words = f"policy {one_line(key, 60)} is not known{did_you_mean(key, POLICIES)}"
            problems.append(Problem(reading.policy_line, words))
        elif value not in ("true", "false"):
            problems.append(Problem(reading.policy_line, f"policy {key} is true or false, not {_said(value)}"))


def _step(draft: Draft, problems: list[Problem]) -> Step | None:
    """The step, as far as it is sound by itself."""
    values = draft.values
    before = len(problems)

    def wrong(words: str) -> None:
        problems.append(Problem(draft.line, words))

    for key in ("id", "lane", "payload"):
        if key not in values:
            wrong(f"{key} is missing; a step has id, lane and payload")
    id = values.get("id")
    if id is not None and (len(id) > MAX_NAME or not _NAME.fullmatch(id)):
        wrong(f"an id is 1 to {MAX_NAME} of A-Z a-z 0-9 . _ -, not {_said(id)}")
    lane = _lane(values.get("lane"))
    if lane is None and values.get("lane") is not None:
        wrong(f"lane is an integer from 0 to {MAX_LANE}, not {_said(values['lane'])}")
    kind = values.get("kind")
    if kind is not None and kind not in list(Kind):
        wrong(f"kind {_said(kind)} is not known{did_you_mean(kind, tuple(map(str, Kind)))}")
    dedupe = values.get("dedupe")
    if dedupe is not None and not (len(dedupe) <= 200 and dedupe.isprintable() and _DEDUPE.fullmatch(dedupe)):
        wrong(f"dedupe is a name of 1 to 200 printable characters, not {_said(dedupe)}")
    title = values.get("title")
    if title is not None and not (title := one_line(title)):
        wrong("title is empty; leave it out")
    payload: Payload | None = None
    if values.get("payload") is not None:
        try:
            payload = parse_payload(values["payload"])
        except UsageError as error:
            wrong(f"payload: {error}")
    if len(problems) > before or id is None or lane is None or payload is None:
        return None
    deps = tuple(dict.fromkeys(values.get("deps") or ()))
    return Step(
        id=id, lane=lane, payload=payload, deps=deps, dedupe=dedupe, kind=kind, title=title, done=draft.done,
        line=draft.line,
    )  # fmt: skip


def _lane(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        value = int(value)
    return value if isinstance(value, int) and 0 <= value <= MAX_LANE else None


def _check_graph(drafts: Sequence[Draft], problems: list[Problem], word: str) -> None:
    """Names used once, what is waited for is there, and nothing waits for itself."""
    first: dict[str, Draft] = {}
    for draft in drafts:
        id = draft.values.get("id")
        if id is not None and first.setdefault(id, draft) is not draft:
            problems.append(Problem(draft.line, f"id {_said(id)} is taken already: by {word} {first[id].line}"))
    nodes: list[tuple[str, list[str]]] = []
    for id, draft in first.items():
        deps: list[str] = []
        for dep in dict.fromkeys(draft.values.get("deps") or ()):
            if dep == id:
                problems.append(Problem(draft.line, f"{_said(id)} waits for itself"))
            elif dep in first:
                deps.append(dep)
            else:
                problems.append(Problem(draft.line, _missing(dep, first)))
        nodes.append((id, deps))
    _, left = ordered(nodes)
    if left:
        for cycle in cycles({nodes[at][0]: nodes[at][1] for at in left}):
            names = [one_line(id, MAX_NAME) for id in [*cycle, cycle[0]]]
            if len(names) > 52:
                names[50:-1] = [f"({len(names) - 51} more)"]
            words = f"these wait for each other: {' → '.join(names)}"
            problems.append(Problem(first[cycle[0]].line, words))


def _missing(dep: str, known: Mapping[str, Draft]) -> str:
    if not dep:
        return "deps has an empty id in it; write deps=a,b"
    # in a large plan, looking for the nearest of thousands of names takes longer than all the rest
    near = did_you_mean(dep, tuple(known)) if len(known) <= 500 else ""
    return f"deps names {_said(dep)}, and there is no such step{near if 'mean' in near else ''}"


def _orphan(line: str) -> str:
    words = one_line(line.partition(ORPHAN)[2], 60)
    return f"{ORPHAN} {words or '…'}: under accrue_all_ideas every idea is a step; make it one, or take it out"


def _texts(value: Any) -> Iterable[str]:
    """All strings in it, however deep they are."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                yield text
            case dict() as found:
                waiting += [*found, *found.values()]
            case list() as found:
                waiting += found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {one_line(twice, 60)!r} stands twice in one object")
    return found


def _said(value: Any) -> str:
    return repr(one_line(value, 60)) if isinstance(value, str) else one_line(repr(value), 60)
