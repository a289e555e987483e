"""A plan's text, taken apart: its title, its policy, and the words of each step, not judged yet. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from pilot.domain.text import one_line

KEYS = ("id", "lane", "deps", "dedupe", "kind", "title", "payload")
"""What a step's line may say."""
_JSON_KEYS = {"dependsOn": "deps", "depends_on": "deps", "done": "done"} | {key: key for key in KEYS}
_JSON_TOP = ("slug", "title", "policy", "steps")

_TITLE = re.compile(r"#\s+Plan:(.*)")
_HEADING = re.compile(r"#\s+\S")
_POLICY = re.compile(r"policy\s*:(.*)", re.IGNORECASE)
_STEP = re.compile(r"\s*[-*+]\s+\[([ xX])\]\s+(.*)")
_ALMOST = re.compile(r"\s*(?:(?:[-*+]|\d+[.)])\s.*\b(?:id|payload)=|(?:\[.?\])?\s*id\s*=)", re.IGNORECASE)
_BOX = re.compile(r"\s*[-*+]\s*\[(?:\s*|[xX]|[^\w\s])\](?!\()")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)=")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"(?!\S)|`([^`]*)`(?!\S)')
_LIST = re.compile(r"[^\s,]*(?:,\s*(?![A-Za-z_][A-Za-z0-9_-]*=)[^\s,]+)*,?(?!\S)")
_WORD = re.compile(r"\S*")
_BEHIND = re.compile(rf"\s(?=(?:{'|'.join(KEYS)})=)")
_ESCAPE = re.compile(r'\\(["\\nt])')
_ESCAPED = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


@dataclass(slots=True)
class Draft:
    """One step as it was written; `values` by key."""

    line: int
    values: dict[str, Any]
    done: bool = False


@dataclass(slots=True)
class Reading:
    """All that stands in a plan, and (line, words) of what could not be read."""

    title: str | None = None
    slug: Any = None
    policy: dict[str, Any] = field(default_factory=dict)
    policy_line: int = 0
    drafts: list[Draft] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    counts_steps: bool = False
    """Whether its lines are numbers of steps."""


def did_you_mean(word: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The end of a sentence about a word that is not known."""
    near = get_close_matches(word[:60], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def read_markdown(text: str) -> Reading:
    """Its lines; code blocks and HTML comments are not looked at."""
    reading = Reading()
    lines = text.removeprefix("\ufeff").split("\n")
    fence, comment, opened = "", False, 0
    for number, line in enumerate(lines, 1):
        line = line.rstrip("\r")
        if comment:
            comment = "-->" not in line
        elif fence:
            found = _FENCE.match(line)
            if found and found[1].startswith(fence) and not line.strip().strip(fence[0]):
                fence = ""
        elif found := _FENCE.match(line):
            fence, opened = found[1], number
        elif line.lstrip().startswith("<!--"):
            comment, opened = "-->" not in line.lstrip()[4:], number
        else:
            _read_line(reading, number, line)
    if fence or comment:
        what, end = ("code block", fence) if fence else ("comment", "-->")
        reading.problems.append(
            (opened, f"this {what} is never closed, so what follows is not read; end it with {end}")
        )
    if reading.title is None:
        first = next((number for number, line in enumerate(lines, 1) if _HEADING.match(line)), 0)
        reading.problems.append((first, "the plan has no name; it begins with a line `# Plan: NAME`"))
    return reading


def _read_line(reading: Reading, number: int, line: str) -> None:
    if found := _STEP.fullmatch(line):
        values, problems = _values(found[2].rstrip())
        reading.drafts.append(Draft(number, values, done=found[1] != " "))
        reading.problems += [(number, words) for words in problems]
    elif found := _TITLE.fullmatch(line):
        if reading.title is not None:
            reading.problems.append((number, "a second `# Plan:`; a file holds one plan"))
        elif not (title := one_line(found[1])):
            reading.title = ""
            reading.problems.append((number, "the plan has no name; write `# Plan: NAME`"))
        else:
            reading.title = title
    elif found := _POLICY.fullmatch(line):
        reading.policy_line = reading.policy_line or number
        _read_policy(reading, number, found[1])
    elif _ALMOST.match(line) or _BOX.match(line):
        reading.problems.append(
            (number, f"this is no step: a step's line begins with `- [ ] id=…`, not {one_line(line, 30)!r}")
        )


def _read_policy(reading: Reading, number: int, text: str) -> None:
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            reading.problems.append(
                (number, f"a policy is written as KEY=true or KEY=false, not {one_line(part, 60)!r}")
            )
        elif key in reading.policy:
            reading.problems.append((number, f"policy {one_line(key, 60)} is set twice"))
        else:
            reading.policy[key] = value


def _values(text: str) -> tuple[dict[str, Any], list[str]]:
    """`id=a lane=1 deps=b,c payload=@cmd:make x` by key.

    A payload goes on to the end of the line, or to the next of our keys; in quotes it is just what stands there.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    at = 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        found = _KEY.match(text, at)
        if found is None:
            word = _WORD.match(text, at)
            assert word is not None  # noqa: S101  it matches anything
            problems.append(f"{one_line(word[0], 60)!r} is no KEY=VALUE; words with spaces stand in double quotes")
            at = word.end()
            continue
        key = found[1]
        value, at = _value(key, text, found.end(), problems)
        if key not in KEYS:
            problems.append(f"{one_line(key, 60)} is not known{did_you_mean(key, KEYS)}")
        elif key in values:
            hint = "; a payload that says so stands in double quotes" if "payload" in values else ""
            problems.append(f"{key} is said twice{hint}")
        else:
            values[key] = value
    return values, problems


def _value(key: str, text: str, at: int, problems: list[str]) -> tuple[Any, int]:
    """One value that begins at `at`, and where it ends."""
    if quoted := _QUOTED.match(text, at):
        plain = quoted[2] if quoted[1] is None else _ESCAPE.sub(lambda escape: _ESCAPED[escape[1]], quoted[1])
        return (_ids(plain) if key == "deps" else plain), quoted.end()
    if text[at : at + 1] == '"':
        problems.append(f"{one_line(key, 60)}: its double quotes are not closed, or something follows them at once")
        return None, len(text)
    if key == "payload":
        behind = _BEHIND.search(text, at)
        end = behind.start() if behind else len(text)
        return text[at:end].strip(), end
    if key == "deps" and (found := _LIST.match(text, at)):
        return _ids(found[0]), found.end()
    word = _WORD.match(text, at)
    assert word is not None  # noqa: S101  it matches anything
    return word[0], word.end()


def _ids(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def read_json(document: Any) -> Reading:
    """`{"slug", "title"?, "policy"?, "steps": […]}`; a step's number stands for its line."""
    reading = Reading(counts_steps=True)
    if not isinstance(document, dict):
        reading.problems.append((0, 'a plan is an object: {"slug": …, "steps": […]}'))
        return reading
    _unknown(document, _JSON_TOP, lambda words: reading.problems.append((0, words)))
    reading.slug = document.get("slug")
    title = document.get("title")
    if title is not None and not isinstance(title, str):
        reading.problems.append((0, "title is a string"))
    elif title is not None:
        reading.title = one_line(title)
    policy = document.get("policy") or {}
    if not isinstance(policy, dict):
        reading.problems.append((0, 'policy is an object, such as {"no_refactor": true}'))
    else:
        words = {True: "true", False: "false"}
        reading.policy = {str(key): words[value] if isinstance(value, bool) else value for key, value in policy.items()}
    steps = document.get("steps")
    if not isinstance(steps, list):
        reading.problems.append((0, "steps is a list of objects"))
        return reading
    for number, step in enumerate(steps, 1):
        _read_step(reading, number, step)
    return reading


def _read_step(reading: Reading, number: int, step: Any) -> None:
    def wrong(words: str) -> None:
        reading.problems.append((number, words))

    if not isinstance(step, dict):
        wrong('a step is an object: {"id": …, "lane": …, "payload": …}')
        return
    _unknown(step, tuple(_JSON_KEYS), wrong)
    values: dict[str, Any] = {}
    for key, value in step.items():
        name = _JSON_KEYS.get(key)
        if name is None or value is None:
            continue
        if name in values:
            wrong(f"{key} says again what stands under another key")
        elif name == "deps" and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            wrong(f"{key} is a list of ids")
        elif name == "lane" and (not isinstance(value, int) or isinstance(value, bool)):
            wrong(f"lane is an integer, not {one_line(repr(value), 60)}")
            values[name] = None
        elif name == "done" and not isinstance(value, bool):
            wrong("done is true or false")
        elif name not in ("deps", "lane", "done") and not isinstance(value, str):
            wrong(f"{key} is a string, not {one_line(repr(value), 60)}")
            values[name] = None
        else:
            values[name] = value
    reading.drafts.append(Draft(number, values, done=values.pop("done", False) is True))


def _unknown(found: Mapping[Any, Any], known: tuple[str, ...], wrong: Callable[[str], None]) -> None:
    for key in found:
        if key not in known:
            wrong(f"{one_line(str(key), 60)} is not known{did_you_mean(str(key), known)}")
