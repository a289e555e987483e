"""What a finished branch changes, read from git itself and not from what anybody says."""

from __future__ import annotations

from dataclasses import dataclass

from pilot.runner.git import Git

COMMITS = 1000
"""Commits that are read at most."""


@dataclass(frozen=True, slots=True)
class File:
    """One changed file. Lines are None for a binary one; `old` is the name it had."""

    path: str
    added: int | None
    removed: int | None
    old: str | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit by its hash and first line."""

    sha: str
    subject: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """From `base` to `head`, whose tree is `tree`. Commits are newest first."""

    base: str
    head: str
    tree: str
    files: tuple[File, ...] = ()
    commits: tuple[Commit, ...] = ()


async def read(git: Git, base: str, head: str) -> Change:
    """The change from one commit to another. Raises `WorkspaceError`."""
    tree = await git.run("rev-parse", "--verify", "--end-of-options", f"{head}^{{tree}}")
    diff = await git.run("diff-tree", "-r", "-z", "-M", "--numstat", "--no-ext-diff", "--no-textconv", base, head, "--")
    log = await git.run("log", "-z", f"--max-count={COMMITS}", "--format=%H %s", f"{base}..{head}", "--")
    return Change(
        base=base,
        head=head,
        tree=tree.text,
        files=tuple(_files(diff.out)),
        commits=tuple(Commit(*part.partition(" ")[::2]) for part in log.parts),
    )


def _files(out: bytes) -> list[File]:
    found: list[File] = []
    parts = iter(out.decode(errors="replace").split("\0"))
    for part in parts:
        added, removed, path = (*part.split("\t", 2), "", "")[:3]
        if not removed:
            continue  # what follows the last zero byte
        old = None
        if not path:  # a renamed file: both names follow
            old, path = next(parts, ""), next(parts, "")
        found.append(File(path, _number(added), _number(removed), old))
    return found


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
