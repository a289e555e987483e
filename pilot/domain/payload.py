"""Pointer payloads: `@cmd:make test`, `@file:specs/a.diff#apply`, `@doc:LLM_TASK …`. Pure: nothing is opened here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pilot.domain.errors import UsageError
from pilot.domain.text import one_line

MAX_PAYLOAD = 64 << 10
"""Bytes of one payload."""
POINTERS = ("@cmd:", "@file:", "@doc:", "@url:", "@git:", "@gh:")
_FRAGMENTS = ("apply", "test", "sha1=", "dual")
_SHA1 = re.compile(r"[0-9a-fA-F]{40}")
_ASSIGNED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_SPECIAL = re.compile(r"[\\'\"`$;|&<>()]")
_EXPANDED = re.compile(r"\$(?:[A-Za-z_({]|[0-9?#@*!$-])")
_LLM_TASK = re.compile(r"LLM_TASK(?::|(?!\S))")
_ALMOST_LLM_TASK = re.compile(r"llm[ _-]?task(?![A-Za-z0-9])", re.IGNORECASE)


class Work(StrEnum):
    """What has to be done for a payload, and so by whom."""

    COMMAND = "command"  #: a program; its exit code decides
    APPLY = "apply"  #: `git apply` of a patch of the repository
    TEST = "test"  #: a program of the repository, as a test
    PROMPT = "prompt"  #: an agent
    NOTHING = "nothing"  #: a note: completed at once

    @property
    def by_machine(self) -> bool:
        """Whether pilot itself does it, without an agent."""
        return self in (Work.COMMAND, Work.APPLY, Work.TEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """One pointer. `text` is all of it, as it was written.

    `argv`: of a command. `path`: of a file, relative to the repository, not looked at yet. `words`: of a prompt that
    stands in the payload itself. `sha1`: what the file's content has to have, in hex; also its dedupe key. `dual`: its
    result may be a diff and whole files.
    """

    text: str
    work: Work
    argv: tuple[str, ...] = ()
    path: str | None = None
    words: str = ""
    sha1: str | None = None
    dual: bool = False

    @property
    def dedupe(self) -> str | None:
        """What names its result, unless the step says so itself.

        A file's content and what is done with it: that a test was applied as a patch does not mean that it has run.
        """
        return None if self.sha1 is None else f"{self.work}:sha1:{self.sha1}"


def is_pointer(value: Any) -> bool:
    """Whether a task's payload is one of these, and not something that its source wants kept."""
    return isinstance(value, str) and value.lstrip().startswith(POINTERS)


def parse_payload(text: str) -> Payload:
    """Read one. Raises `UsageError` in words, with the remedy."""
    text = text.strip()
    if len(text) > MAX_PAYLOAD or len(text.encode(errors="replace")) > MAX_PAYLOAD:
        raise UsageError("a payload may have 64 KiB at most; put the rest into a file of the repository")
    head, colon, rest = text.partition(":")
    pointer = head + colon
    if pointer not in POINTERS:
        raise UsageError(f"a payload begins with one of {' '.join(POINTERS)}, not {one_line(text, 40)!r}{_near(head)}")
    rest = rest.strip()
    if not rest.isprintable():
        layout = "\n\t" if pointer == "@doc:" else ""
        unseen = next((char for char in rest if not char.isprintable() and char not in layout), None)
        if unseen is not None:
            raise UsageError(f"{pointer} has the unprintable character U+{ord(unseen):04X} in it")
    if not rest:
        raise UsageError(f"{pointer} has nothing behind it")
    match pointer:
        case "@cmd:":
            return Payload(text=text, work=Work.COMMAND, argv=_argv(rest))
        case "@file:":
            return _file(text, rest)
        case "@doc:":
            return _doc(text, rest)
    return Payload(text=text, work=Work.NOTHING)


def _near(head: str) -> str:
    near = get_close_matches(one_line(head, 20).casefold() + ":", POINTERS, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _argv(line: str) -> tuple[str, ...]:
    """Words as a shell splits them; what only a shell could do is an error rather than an argument."""
    special = _SPECIAL.search(line)
    if special and (shell := _for_a_shell(line)) is not None:
        raise UsageError(
            f"@cmd: runs without a shell, so {shell} would do nothing; quote it when the program is to get it as it "
            "stands, or put the line into a script or a make target"
        )
    try:
        argv = tuple(shlex.split(line) if special else line.split())
    except ValueError as error:
        raise UsageError(f"@cmd: can't be split into words: {str(error).lower()} in {one_line(line, 80)!r}") from None
    if not argv or not argv[0]:
        raise UsageError("@cmd: names no program")
    program = argv[0]
    if _ASSIGNED.match(program):
        raise UsageError(
            f"@cmd: runs without a shell, so {one_line(program, 40)!r} sets nothing; "
            "set variables with executor.environment.set"
        )
    if program.startswith(("-", "~")) or ".." in program.split("/"):
        raise UsageError(f"@cmd: names a program, by name or by a path inside the repository, not {program[:80]!r}")
    return argv


def _for_a_shell(line: str) -> str | None:
    """The first thing, outside of quotes, that a shell would have a meaning for."""
    quote = ""
    at = 0
    while at < len(line):
        char = line[at]
        if char == "\\" and (not quote or (quote == '"' and line[at + 1 : at + 2] in ('"', "\\"))):
            at += 1  # as shlex has it: in double quotes, a backslash is one before these two only
        elif char == quote:
            quote = ""
        elif quote == "'":
            pass
        elif char == "`" or (char == "$" and _EXPANDED.match(line, at)):
            return f"`{char}`" if char != "`" else "a backtick"
        elif not quote and char in "'\"":
            quote = char
        elif not quote and char in ";|&<>()":
            return f"`{char}`"
        at += 1
    return None


def _file(text: str, rest: str) -> Payload:
    path, *fragments = (part.strip() for part in rest.split("#"))
    _check_path(path)
    names = [fragment.partition("=")[0] + ("=" if "=" in fragment else "") for fragment in fragments]
    for name, fragment in zip(names, fragments, strict=True):
        if name not in _FRAGMENTS:
            near = get_close_matches(name, _FRAGMENTS, n=1)
            raise UsageError(
                f"@file: does not know #{one_line(fragment, 40)}; "
                + (f"did you mean #{near[0]}?" if near else "there are #apply, #test, #sha1=HASH and #dual")
            )
        if names.count(name) > 1:
            raise UsageError(f"@file: has #{name} twice")
    if "apply" in names and "test" in names:
        raise UsageError("@file: is a patch (#apply) or a test (#test), not both; make two steps of it")
    sha1 = fragments[names.index("sha1=")].partition("=")[2].strip() if "sha1=" in names else None
    if sha1 is not None and not _SHA1.fullmatch(sha1):
        raise UsageError(f"#sha1= takes 40 hex digits (`pilot hash PATH` prints them), not {one_line(sha1, 50)!r}")
    work = Work.APPLY if "apply" in names else Work.TEST if "test" in names else Work.PROMPT
    return Payload(text=text, work=work, path=path, sha1=sha1 and sha1.lower(), dual="dual" in names)


def _check_path(path: str) -> None:
    """Whoever opens it confines it again: links are not seen here."""
    parts = path.split("/")
    if not path or path.startswith(("/", "~")) or "\\" in path or not {"", ".."}.isdisjoint(parts):
        raise UsageError(f"@file: takes a path inside the repository such as specs/a.diff, not {one_line(path, 80)!r}")
    if ".git" in map(str.casefold, parts):
        raise UsageError(f"@file: can't be in .git: {one_line(path, 80)!r}")
    if len(path.encode()) > 1000:
        raise UsageError("@file: has a path of more than 1000 bytes")


def _doc(text: str, rest: str) -> Payload:
    if found := _LLM_TASK.match(rest):
        if not (words := rest[found.end() :].strip()):
            raise UsageError("@doc:LLM_TASK has no words behind it: say what the agent is to do")
        return Payload(text=text, work=Work.PROMPT, words=words)
    if found := _ALMOST_LLM_TASK.match(rest):  # taken for a note, nobody would do it
        raise UsageError(f"@doc:{one_line(found[0])} is not known; did you mean @doc:LLM_TASK?")
    return Payload(text=text, work=Work.NOTHING)


def allowed(argv: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Whether the whole argv matches one of a project's `allow_commands`, word by word.

    In a pattern's word `*` stands for any characters of that word, in the program's for none that is a `/`, and
    never for `..` in a path. A last word `*` stands for any further words, also none. A pattern that can't be split
    into words allows nothing.
    """
    return bool(argv) and any(_matches(argv, words) for words in map(_words, patterns) if words)


@lru_cache(maxsize=256)
def _words(pattern: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(pattern))
    except ValueError:
        return ()


def _matches(argv: tuple[str, ...], words: tuple[str, ...]) -> bool:
    if words[-1] == "*":
        words = words[:-1]
        if len(argv) < len(words):
            return False
    elif len(argv) != len(words):
        return False
    return all(
        _word_matches(word, pattern, program=not number)
        for number, (pattern, word) in enumerate(zip(words, argv, strict=False))
    )


def _word_matches(word: str, pattern: str, *, program: bool) -> bool:
    """Without regular expressions: no word takes longer than it is long."""
    if "*" not in pattern:
        return word == pattern
    if program and word.count("/") != pattern.count("/"):
        return False
    if pattern != "*" and ".." in word.split("/") and ".." not in pattern.split("/"):
        return False
    first, *middle, last = pattern.split("*")
    if len(word) < len(first) + len(last) or not word.startswith(first) or not word.endswith(last):
        return False
    at, end = len(first), len(word) - len(last)
    for part in middle:
        found = word.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
