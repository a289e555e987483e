"""What a person has to see before it is published: files that run in CI or on others' machines, or steer agents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pilot.domain.outcome import Question
from pilot.domain.text import one_line

PUBLISH = "publish"
"""The answer that lets the change go out as it is."""
LINK, SUBMODULE = "120000", "160000"
_SHOWN = 20
_DEPTH = 40
"""Links on the way to a file, as many as a kernel follows."""

_CI = "runs in CI"
_HOOK = "runs on the machines of those who check it out"
_AGENT = "steers coding agents"
_OWNERS = "says who has to review"
_SUBMODULE = "brings in code of another repository"
_FOLDERS: Mapping[str, str] = {
    ".github/workflows": _CI,
    ".github/actions": _CI,
    ".gitea/workflows": _CI,
    ".forgejo/workflows": _CI,
    ".gitlab/ci": _CI,
    ".circleci": _CI,
    ".woodpecker": _CI,
    ".buildkite": _CI,
    ".azure-pipelines": _CI,
    ".husky": _HOOK,
    ".githooks": _HOOK,
    ".lefthook": _HOOK,
    ".devcontainer": _HOOK,
    ".claude/hooks": _AGENT,
    ".codex": _AGENT,
    ".opencode": _AGENT,
    ".gemini": _AGENT,
    ".cursor": _AGENT,
}
_FILES: tuple[tuple[str, str], ...] = (
    (r"\.gitlab-ci[^/]*\.ya?ml|\.woodpecker[^/]*\.ya?ml|jenkinsfile[^/]*|azure-pipelines[^/]*\.ya?ml", _CI),
    (r"\.travis\.ya?ml|bitbucket-pipelines\.ya?ml|\.drone\.ya?ml|\.cirrus\.ya?ml|\.?appveyor\.ya?ml", _CI),
    (r"\.?lefthook[^/]*\.(?:ya?ml|toml|json)|\.pre-commit-(?:config|hooks)\.ya?ml", _HOOK),
    (r"\.gitmodules", _SUBMODULE),
    (r"\.claude/settings[^/]*\.json|\.mcp\.json|opencode\.jsonc?|pilot\.ya?ml", _AGENT),
    (r"\.vscode/tasks\.json|\.devcontainer\.json|\.envrc", _HOOK),
    (r"codeowners", _OWNERS),
)
_RULES = tuple(
    (re.compile(rf"(?:^|/){pattern}"), why)
    for pattern, why in (
        *((rf"{re.escape(folder)}(?:/|$)", why) for folder, why in _FOLDERS.items()),
        *((rf"(?:{names})$", why) for names, why in _FILES),
    )
)
_ABOVE = frozenset(folder.partition("/")[0] for folder in _FOLDERS) | {".vscode", ".gitlab"}
_FILTERS = re.compile(r"(?:^|\s)(?:filter|diff|merge)=|^\s*\[attr\]")


@dataclass(frozen=True, slots=True)
class Change:
    """One path that a change touches: as git names it, with its modes before and after (000000: not there)."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A path, and why a person has to see it."""

    path: str
    why: str


def findings(changes: Sequence[Change], links: Mapping[str, str]) -> list[Finding]:
    """What of a change a person has to see. `links`: the symlinks of the changed tree, to where they lead.

    By every name that a path has there: what a link of a sensitive name leads to is sensitive, too. Names are
    compared as the most forgiving file system would.
    """
    targets = _exposed(links)
    found = []
    for change in changes:
        why = _of(change) or next((why for why in map(why_sensitive, _other_names(change.path, targets)) if why), None)
        if why is not None:
            found.append(Finding(change.path, why))
    return found


def why_sensitive(path: str) -> str | None:
    """Why a path is sensitive by its name; None when it is not."""
    name = plain(path)
    return next((why for rule, why in _RULES if rule.search(name)), None)


def plain(path: str) -> str:
    """A path as the most forgiving file system sees it: no case, look-alikes, invisible characters, `.` or `//`."""
    text = unicodedata.normalize("NFKC", path)
    text = "".join(c for c in text if unicodedata.category(c) != "Cf").casefold().replace("\\", "/")
    parts: list[str] = []
    for part in text.split("/"):
        if part == "..":
            parts[-1:] = []
        elif part not in ("", "."):
            parts.append(part.partition(":")[0].rstrip(" .") or part)
    return "/".join(parts)


def new_filters(before: str, after: str) -> bool:
    """Whether a `.gitattributes` says of files, anew, that a program is run over them."""
    known = {line.strip() for line in before.splitlines()}
    return any(_FILTERS.search(line) and line.strip() not in known for line in after.splitlines())


def is_attributes(path: str) -> bool:
    """Whether git reads the attributes of files from it."""
    return plain(path).rpartition("/")[2] == ".gitattributes"


FILTERS = "names programs that git runs over files"


def question(found: Sequence[Finding], secrets: Sequence[Finding]) -> Question:
    """What a person is asked; never with the value of a secret. There has to be something to ask."""
    parts = []
    if found:
        parts.append(
            "The change touches files that a person has to look at before they are published:\n" + _listed(found)
        )
    if secrets:
        parts.append(
            "What would be published seems to hold secrets (in its files, or in the commits on the way to them):\n"
            + _listed(secrets)
        )
    parts.append(
        f"Look at the branch, and answer `{PUBLISH}` to publish exactly this. Any other answer goes to the agent."
    )
    return Question("\n\n".join(parts), (PUBLISH,))


def allows(answer: str | None) -> bool:
    """Whether a person's answer lets the change go out."""
    return (answer or "").strip().strip("`'\".! ").casefold() == PUBLISH


def _of(change: Change) -> str | None:
    why = why_sensitive(change.path)
    if why is not None:
        return why
    kinds = {change.before, change.after}
    if SUBMODULE in kinds:
        return _SUBMODULE
    if LINK in kinds and plain(change.path).rpartition("/")[2] in _ABOVE:
        return "is a link where settings of CI, hooks or agents are looked for"
    return None


def _exposed(links: Mapping[str, str]) -> list[tuple[str, str]]:
    """Where links of sensitive names lead, in the tree: (what is there, what it is also called)."""
    known = {plain(path): target for path, target in links.items()}
    found = []
    for path in known:
        if why_sensitive(path) is not None or path.rpartition("/")[2] in _ABOVE:
            real = _real(path, known)
            if real is not None:
                found.append((real, path))
    return found


def _real(path: str, links: Mapping[str, str]) -> str | None:
    """Where a path really is, links followed; None when that is outside, or nowhere."""
    for _ in range(_DEPTH):
        parts = path.split("/")
        for n in range(1, len(parts) + 1):
            head, rest = "/".join(parts[:n]), parts[n:]
            if head in links:
                target = links[head]
                if target.startswith("/"):
                    return None
                path = plain("/".join([*parts[: n - 1], target, *rest]))
                break
        else:
            return path
    return None


def _other_names(path: str, exposed: Sequence[tuple[str, str]]) -> Iterator[str]:
    name = plain(path)
    for real, also in exposed:
        if name == real or not real:
            yield f"{also}/{name}" if not real else also
        elif name.startswith(f"{real}/"):
            yield also + name[len(real) :]


def _listed(found: Sequence[Finding]) -> str:
    lines = [f"- {one_line(one.path, 120)}: {one.why}" for one in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"- and {len(found) - _SHOWN} more")
    return "\n".join(lines)
