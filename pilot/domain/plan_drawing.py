"""Plans as people look at them: rails for a terminal, Mermaid, and markdown again. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pilot.domain.plan import Plan, Step, in_order
from pilot.domain.plan_reading import KEYS
from pilot.domain.text import one_line

WIDEST = 24
"""Rails beside each other, at most; of a plan that needs more, each step has the number of its level instead."""
OPEN_MARK = "○"
MARKS = {
    "running": "●",
    "completed": "✓",
    "failed": "✗",
    "cancelled": "−",  # noqa: RUF001  as wide as the others, and in the middle of the line
    "needs_human": "?",
}
"""By status; all others are open."""
_CROSSED = {  # what leaves a rail's cell: up, down, left, right
    (True, True, False, True): "├",
    (True, True, True, False): "┤",
    (True, True, True, True): "┼",
    (True, False, False, True): "└",
    (True, False, True, False): "┘",
    (True, False, True, True): "┴",
}
_PLAIN = re.compile(r"[\w .,:/@=+-]")
_BARE = re.compile(r"[^\s\"`]\S*")
_FILLS = {
    "running": "#1f6feb",
    "completed": "#2da44e",
    "failed": "#cf222e",
    "cancelled": "#8c959f",
    "needs_human": "#bf8700",
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One step's line: its rail (all as wide as the widest), and how many steps at least come before it in a row."""

    rail: str
    step: Step
    level: int


def mark_of(step: Step, statuses: Mapping[str, str]) -> str:
    """How a step stands, as one character."""
    status = statuses.get(step.id, "completed" if step.done else "")
    return MARKS.get(status, OPEN_MARK)


def draw(plan: Plan, statuses: Mapping[str, str] | None = None) -> list[Drawn]:
    """Its steps in an order in which they can be done, joined by rails: from each down to those that wait for it."""
    statuses = statuses or {}
    steps = in_order(plan)
    levels: dict[str, int] = {}
    for step in steps:
        levels[step.id] = max((levels[dep] + 1 for dep in step.deps), default=0)
    rails = _rails(steps, statuses)
    if rails is None:
        places = len(str(max(levels.values()) + 1))
        return [
            Drawn(f"{levels[step.id] + 1:>{places}} {mark_of(step, statuses)}", step, levels[step.id])
            for step in sorted(steps, key=lambda step: levels[step.id])
        ]
    wide = max(map(len, rails), default=0)
    return [Drawn(rail.ljust(wide), step, levels[step.id]) for rail, step in zip(rails, steps, strict=True)]


def _rails(steps: Sequence[Step], statuses: Mapping[str, str]) -> list[str] | None:
    """One line of rails for each; None when there would be too many beside each other.

    A column is a step's, from its own line to that of the last one that waits for it.
    """
    waiting: dict[str, int] = {step.id: 0 for step in steps}
    for step in steps:
        for dep in step.deps:
            waiting[dep] += 1
    columns: list[str | None] = []
    above = -1  # where the line before has its mark: below it nothing begins that does not belong to it
    lines: list[str] = []
    for step in steps:
        before = list(columns)
        joined = [at for at, id in enumerate(before) if id in step.deps]
        for dep in step.deps:
            waiting[dep] -= 1
        ended = [at for at in joined if not waiting[before[at] or ""]]
        for at in ended:
            columns[at] = None
        free = (at for at, id in enumerate(columns) if id is None and at != above)
        own = ended[0] if ended else next(free, len(columns))
        if own >= WIDEST:
            return None
        columns += [None] * (own + 1 - len(columns))
        columns[own] = step.id if waiting[step.id] else None
        lines.append(_line(before, columns, set(joined), own, mark_of(step, statuses)))
        above = own
        while columns and columns[-1] is None and len(columns) - 1 != above:
            columns.pop()
    return lines


def _line(before: list[str | None], after: list[str | None], joined: set[int], own: int, mark: str) -> str:
    low, high = min({*joined, own}), max({*joined, own})
    cells = []
    for at in range(max(len(before), len(after))):
        up = at < len(before) and before[at] is not None
        down = at < len(after) and after[at] is not None
        inside = low <= at <= high
        if at == own:
            cell = mark
        elif at in joined:
            cell = _CROSSED[(True, down, low < at, at < high)]
        elif up:
            cell = "│"  # it may cross another one's way, and has nothing to do with it
        else:
            cell = "─" if inside else " "
        cells.append(cell + ("─" if low <= at < high else " "))
    return "".join(cells).rstrip()


def to_mermaid(plan: Plan, statuses: Mapping[str, str] | None = None) -> str:
    """A flowchart. What people wrote stands in labels only, and nothing of it can end one."""
    statuses = statuses or {}
    numbers = {step.id: number for number, step in enumerate(plan.steps, 1)}
    lines = ["flowchart TD"]
    for step in plan.steps:
        label = f"{_escaped(step.title or step.id, 80)}<br/>lane {step.lane} {_escaped(step.payload.text, 60)}"
        lines.append(f'  s{numbers[step.id]}["{label}"]')
    lines += [f"  s{numbers[dep]} --> s{numbers[step.id]}" for step in plan.steps for dep in step.deps]
    shown: dict[str, list[str]] = {}
    for step in plan.steps:
        status = statuses.get(step.id, "completed" if step.done else "")
        if status in _FILLS:
            shown.setdefault(status, []).append(f"s{numbers[step.id]}")
    for status, names in sorted(shown.items()):
        lines.append(f"  classDef {status} fill:{_FILLS[status]},color:#fff")
        lines.append(f"  class {','.join(names)} {status}")
    return "\n".join(lines)


def _escaped(text: str, limit: int) -> str:
    return "".join(char if _PLAIN.fullmatch(char) else f"#{ord(char)};" for char in one_line(text, limit))


def to_markdown(plan: Plan) -> str:
    """The plan as a file: what is read from it is the same plan, but for the numbers of its lines."""
    lines = [f"# Plan: {plan.title}"]
    if plan.policy:
        lines.append("policy: " + ", ".join(f"{key}={value}" for key, value in sorted(plan.policy.items())))
    lines.append("")
    for step in plan.steps:
        words = [f"- [{'x' if step.done else ' '}] id={step.id} lane={step.lane}"]
        if step.deps:
            words.append(f"deps={','.join(step.deps)}")
        words += [f"{key}={_quoted(value)}" for key in ("dedupe", "kind", "title") if (value := getattr(step, key))]
        words.append(f"payload={_payload(step.payload.text)}")
        lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    if _BARE.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _payload(text: str) -> str:
    plain = "\n" not in text and "\t" not in text and not any(f" {key}=" in text for key in KEYS)
    return text if plain else _quoted(text)
