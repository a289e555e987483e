"""Title and text of a pull request, made from what git and the gates say. Pure.

What agents and people wrote is quoted so that it stays text: nobody is mentioned, no issue is closed, no picture
loaded and no markup begun by it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping
from typing import Any

from pilot.domain.delivery import Report
from pilot.domain.execution import Execution
from pilot.domain.markdown import GAP, quoted
from pilot.domain.outcome import GateResult
from pilot.domain.text import for_prompt, one_line
from pilot.publish.change import Change, File

BEGIN = "<!-- pilot:begin -->"
MARKER = "<!-- pilot:execution={} -->"
TITLE = 200
"""Characters of a title."""
LIMIT = 65_536
"""Characters of a text, GitHub's most."""
_SUMMARY, _FILES, _COMMITS, _GATES = 4000, 80, 30, 30
"""How much of each is shown at most."""

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_REFERS = re.compile(r"#(?=\d)|\bGH-(?=\d)|:(?=//)", re.IGNORECASE)
_OURS = re.compile(rf"{BEGIN}.*<!-- pilot:execution=\d+ -->", re.DOTALL)
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_LINEAR = re.compile(r"[A-Za-z][A-Za-z0-9]*-\d+")


def title(execution: Execution, redact: Callable[[str], str]) -> str:
    """One line, from the task's title. It may become a commit's first line, so it must not close anything."""
    line = one_line(for_prompt(redact(execution.title)), TITLE)
    return _REFERS.sub(lambda found: found[0] + GAP, line) or f"Execution {execution.id}"


def body(report: Report, change: Change, repo: str, redact: Callable[[str], str]) -> str:
    """The whole text. `repo`: where the pull request is, owner/name. Of long lists it shows as much as fits."""
    text = ""
    for part in (1, 2, 4, 8, 16):
        text = _written(report, change, repo, redact, part)
        if len(text) <= LIMIT:
            break
    return text


def _written(report: Report, change: Change, repo: str, redact: Callable[[str], str], part: int) -> str:
    parts = [
        BEGIN,
        closing(report.origin, repo),
        _said(redact(report.summary)),
        _files(change, redact, _FILES // part),
        _commits(change, redact, _COMMITS // part),
        _gates(report, change, redact, _GATES // part),
        _receipt(report.execution, redact),
        MARKER.format(report.execution.id),
    ]
    return "\n\n".join(each for each in parts if each)


def renewed(text: str, body: str) -> str | None:
    """A pull request's text with our part of it brought up to date; None when somebody has taken that out."""
    return _OURS.sub(lambda _: body, text, count=1) if _OURS.search(text) else None


def closing(origin: Mapping[str, Any] | None, repo: str) -> str:
    """The line by which the merge closes the ticket that was asked for; empty where there is none."""
    if origin is None:
        return ""
    match origin.get("source"):
        case "github":
            named, _, number = str(origin.get("ref", "")).rpartition("#")
            if number.isdecimal() and _REPO.fullmatch(named):
                return f"Closes #{number}" if named.casefold() == repo.casefold() else f"Closes {named}#{number}"
        case "linear":
            ref = str(origin.get("ref", ""))
            if _LINEAR.fullmatch(ref):
                return f"Fixes {ref}"
    return ""


def code(text: str, limit: int = 200) -> str:
    """Foreign text as one piece of code, for a line or a cell of a table: there, a `|` would end a code span."""
    plain = for_prompt(one_line(text, limit))
    return f"<code>{_PUNCTUATION.sub(lambda sign: f'&#{ord(sign[0])};', plain)}</code>"


def _said(summary: str) -> str:
    quotation = quoted(for_prompt(summary), _SUMMARY)
    return f"### What the agent says it did\n\n{quotation}" if quotation else ""


def _files(change: Change, redact: Callable[[str], str], most: int) -> str:
    if not change.files:
        return "### Changes\n\nNo file differs from the base."
    added, removed = (sum(getattr(file, name) or 0 for file in change.files) for name in ("added", "removed"))
    total = f"{_count(len(change.files), 'file')}, +{added:,} -{removed:,}"
    head = f"### Changes\n\n{total}\n\n| File | + | - |\n|---|--:|--:|"
    rows = [_row(file, redact) for file in change.files[:most]]
    return "\n".join([head, *rows]) + _more(len(change.files) - most, "file")


def _row(file: File, redact: Callable[[str], str]) -> str:
    name = code(redact(file.path)) if file.old is None else f"{code(redact(file.old))} → {code(redact(file.path))}"
    if file.added is None or file.removed is None:
        return f"| {name} | binary | |"
    return f"| {name} | {file.added} | {file.removed} |"


def _commits(change: Change, redact: Callable[[str], str], most: int) -> str:
    if len(change.commits) < 2:
        return ""
    lines = [f"- {commit.sha[:10]} {code(redact(commit.subject), 100)}" for commit in change.commits[:most]]
    return "\n".join(["### Commits", "", *lines]) + _more(len(change.commits) - most, "commit")


def _gates(report: Report, change: Change, redact: Callable[[str], str], most: int) -> str:
    if not report.gates:
        return "### Gates\n\nThe project has none: nothing was checked before this was published."
    rows = [_gate(gate, redact) for gate in report.gates[:most]]
    head = "### Gates\n\n| Gate | Command | Exit code | Duration |\n|---|---|--:|--:|"
    judged = {gate.tree for gate in report.gates}
    if judged == {change.tree}:
        proof = f"Run by pilot, not by the agent, on exactly this tree: `{change.tree}`"
    else:
        trees = ", ".join(f"`{tree}`" for tree in sorted(judged) if tree.isalnum())
        proof = f"⚠️ Run by pilot on tree {trees or 'unknown'}; this branch's tree is `{change.tree}`"
    return "\n".join([head, *rows]) + _more(len(report.gates) - most, "gate") + f"\n\n{proof}"


def _gate(gate: GateResult, redact: Callable[[str], str]) -> str:
    mark = "✅" if gate.passed else "❌" if gate.required else "⚠️"
    end = "timed out" if gate.timed_out else "none" if gate.exit_code is None else str(gate.exit_code)
    note = "" if gate.passed or gate.required else " (not required)"
    cells = (f"{mark} {code(gate.name, 60)}{note}", code(redact(gate.command)), end, _duration(gate.duration))
    return f"| {' | '.join(cells)} |"


def _receipt(execution: Execution, redact: Callable[[str], str]) -> str:
    def known(value: Any, text: str) -> str:
        return "unknown" if value is None else text

    cells = {
        "Execution": f"{execution.id}, {html.escape(execution.source)}",
        "Agent": code(execution.backend, 60) + (f", model {code(execution.model, 80)}" if execution.model else ""),
        "Attempts": str(execution.attempt),
        "Tokens": (
            f"{known(execution.input_tokens, f'{execution.input_tokens or 0:,}')} in, "
            f"{known(execution.output_tokens, f'{execution.output_tokens or 0:,}')} out"
        ),
        "Cost": known(execution.cost_usd, f"{execution.cost_usd or 0:,.2f} USD"),
    }
    if execution.started_at is not None and execution.finished_at is not None:
        cells["Time"] = _duration(execution.finished_at - execution.started_at)
    head = f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}\n"
    return f"### Receipt\n\n{head}| {' | '.join(redact(cell) for cell in cells.values())} |"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _more(left: int, what: str) -> str:
    return f"\n\n… and {_count(left, what)} more" if left > 0 else ""


def _duration(ms: int) -> str:
    if ms < 10_000:
        return f"{ms / 1000:.1f} s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
