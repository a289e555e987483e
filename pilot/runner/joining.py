"""Where a step of a plan starts: at what the steps before it have made, brought together in one commit."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.domain.text import one_line
from pilot.domain.work import Made
from pilot.runner.git import Git
from pilot.runner.pristine import Pristine
from pilot.runner.source import Source

_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Head:
    sha: str
    by: str
    """The step whose work it is, for people."""


async def join(source: Source, pristine: Pristine, base: str, made: Sequence[Made]) -> str:
    """The commit that has all of `made` in it: `base` when they have nothing new, one of theirs, or a merge.

    Merges are made in the pristine repository, without a work tree, and brought into the project's. Raises
    `WorkspaceError`, class `conflict`, when two of them contradict each other or one is not to be found here.
    """
    heads = [_Head(one.head_sha, one.task_id) for one in made if one.head_sha is not None]
    if not heads:
        return base
    await _check_there(source, pristine.git, heads, made)
    heads = await _independent(pristine.git, base, heads)
    if not heads:
        return base
    joined = heads[0]
    for number, head in enumerate(heads[1:], 1):
        joined = _Head(await _merged(pristine.git, joined, head, heads[:number]), joined.by)
    if joined.sha != heads[0].sha:
        await pristine.put({"joined": joined.sha})
        await source.take(pristine, "joined", heads[0].sha)
    return joined.sha


async def _check_there(source: Source, git: Git, heads: Sequence[_Head], made: Sequence[Made]) -> None:
    """Each a commit of the project's repository; what a worker reported is asked for as an object, nothing else."""
    asked = "\n".join(head.sha if _SHA.fullmatch(head.sha) else "0" * 40 for head in heads)
    done = await git.run("cat-file", "--batch-check=%(objecttype)", stdin=f"{asked}\n".encode())
    for head, answer in zip(heads, done.text.split("\n"), strict=True):
        if answer != "commit":
            branch = next((one.branch for one in made if one.task_id == head.by and one.branch), "")
            where = f", branch {one_line(branch, 100)}," if branch else ""
            raise _conflict(
                f"step {one_line(head.by)} made commit {one_line(head.sha, 40)}{where} which is not in {source.where}: "
                "it was made on another machine. Fetch it into that repository (git fetch), and answer to go on"
            )


async def _independent(git: Git, base: str, heads: Sequence[_Head]) -> list[_Head]:
    """Those that are in none of the others and not in the base, in the order they came in."""
    done = await git.run("merge-base", "--independent", base, *dict.fromkeys(head.sha for head in heads))
    left = set(done.text.split("\n")) - {base}
    first = {head.sha: head for head in reversed(heads)}
    return [first[sha] for sha in dict.fromkeys(head.sha for head in heads) if sha in left]


async def _merged(git: Git, ours: _Head, theirs: _Head, before: Sequence[_Head]) -> str:
    """One commit of both."""
    tree, files = await _merged_tree(git, ours.sha, theirs.sha)
    if files:
        raise await _contradiction(git, theirs, before, files)
    words = f"Bring together {one_line(ours.by, 100)} and {one_line(theirs.by, 100)}\n".encode(errors="replace")
    done = await git.run("commit-tree", "-p", ours.sha, "-p", theirs.sha, "-F", "-", tree, stdin=words)
    return done.text


async def _merged_tree(git: Git, ours: str, theirs: str) -> tuple[str, list[str]]:
    """The tree of a merge, and the files in which it fails."""
    done = await git.run(
        "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs, ok=(0, 1, 129)
    )
    if done.code == 129:
        raise _conflict(
            "several steps have to be brought together, for which git 2.38 or newer is needed; update git, or let "
            "one of them wait for the other"
        )
    tree, *files = done.parts
    return tree, list(dict.fromkeys(files)) if done.code else []


async def _contradiction(git: Git, theirs: _Head, before: Sequence[_Head], files: Sequence[str]) -> WorkspaceError:
    """Which two steps it is, and where."""
    found = await asyncio.gather(*(_merged_tree(git, one.sha, theirs.sha) for one in before))
    pairs = ((one.by, where) for one, (_, where) in zip(before, found, strict=True) if where)
    other, files = next(pairs, (" and ".join(one.by for one in before), files))
    shown = ", ".join(one_line(name, 80) for name in itertools.islice(files, _SHOWN))
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return _conflict(
        f"steps {one_line(other)} and {one_line(theirs.by)} change the same lines: {shown}{more}. Merge their branches "
        "by hand into one of them, or let one of them wait for the other, and answer to go on"
    )


def _conflict(words: str) -> WorkspaceError:
    return WorkspaceError(FailureClass.CONFLICT, words)
