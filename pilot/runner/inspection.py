"""A change, looked at before it is published: the paths that it touches, and what its new objects hold."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pilot.domain.outcome import Question
from pilot.domain.redact import Redactor
from pilot.domain.sensitive import (
    FILTERS,
    LINK,
    SUBMODULE,
    Change,
    Finding,
    findings,
    is_attributes,
    new_filters,
    question,
)
from pilot.runner.git import Git
from pilot.runner.space import Snapshot, Workspace

LARGEST = 16 << 20
"""Bytes of one object; a larger one is not looked into, and a person is told."""
_AT_ONCE = 32 << 20
_NO_FILE = ("000000", SUBMODULE)


@dataclass(frozen=True, slots=True)
class _Changed:
    change: Change
    old: str
    new: str

    @property
    def files(self) -> tuple[str | None, str | None]:
        """The objects before and after, where they are files or links."""
        before, after = self.change.before, self.change.after
        return None if before in _NO_FILE else self.old, None if after in _NO_FILE else self.new


async def inspect(ws: Workspace, snapshot: Snapshot, redact: Redactor) -> Question | None:
    """What a person has to be asked before the snapshot is published; None when it may go out.

    Everything is read from git's objects, in pilot's own repository and counted from the base: nothing of it can
    change meanwhile, and no name or content of it is taken for more than data. Raises `WorkspaceError`.
    """
    git, base, head = ws.pristine.git, ws.record.base, snapshot.head_sha
    changed = await _changed(git, base, head)
    found = findings([one.change for one in changed], await _links(git, head))
    found += await _filters(git, changed)
    secrets = await _secrets(git, f"{base}..{head}", changed, redact)
    return question(found, secrets) if found or secrets else None


async def _changed(git: Git, base: str, head: str) -> list[_Changed]:
    """Every path that is different; a renamed one by both of its names."""
    done = await git.run(
        "diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", "--no-ext-diff", "--ignore-submodules=none",
        base, head,
    )  # fmt: skip
    parts = iter(done.parts)
    found = []
    for part in parts:
        before, after, old, new, _ = part.removeprefix(":").split(" ")
        found.append(_Changed(Change(next(parts), before, after), old, new))
    return found


async def _links(git: Git, head: str) -> dict[str, str]:
    """The symlinks of a tree, to where they lead."""
    done = await git.run("ls-tree", "-r", "-z", head)
    links = (part.split("\t", 1) for part in done.parts if part.startswith(LINK))
    objects = {path: facts.split(" ")[2] for facts, path in links}
    contents = await _contents(git, objects.values())
    return {path: os.fsdecode(contents[id]) for path, id in objects.items()}


async def _filters(git: Git, changed: Sequence[_Changed]) -> list[Finding]:
    """The attributes that let git run programs over files from now on."""
    some = [one for one in changed if is_attributes(one.change.path) and one.files[1] is not None]
    contents = await _contents(git, [id for one in some for id in one.files if id is not None])

    def text(id: str | None) -> str:
        return contents.get(id or "", b"").decode(errors="replace")

    return [Finding(one.change.path, FILTERS) for one in some if new_filters(text(one.files[0]), text(one.files[1]))]


async def _secrets(git: Git, commits: str, changed: Sequence[_Changed], redact: Redactor) -> list[Finding]:
    """What a push would send and looks like a secret: in files, also of commits on the way, in messages and names.

    What stood in the changed files before is no news.
    """
    known: set[bytes] = set()
    async for _, data in _read(git, [one.files[0] for one in changed if one.files[0] is not None]):
        known.update(await asyncio.to_thread(redact.found, data or b""))
    done = await git.run("rev-list", "--objects", commits)
    names = dict(line.partition(" ")[::2] for line in done.text.split("\n") if line)
    found: dict[Finding, None] = {}
    async for id, data in _read(git, names):
        place = names[id] or f"commit {id[:12]}"
        if data is None:
            found[Finding(place, "is too large to be looked into")] = None
            continue
        for secret, kind in (await asyncio.to_thread(redact.found, data)).items():
            if secret not in known:
                found[Finding(place, kind)] = None
    for one in changed:
        for kind in redact.found(os.fsencode(one.change.path)).values():
            found[Finding(one.change.path, f"{kind}, in its name")] = None
    return list(found)


async def _contents(git: Git, ids: Iterable[str]) -> dict[str, bytes]:
    return {id: data or b"" async for id, data in _read(git, ids)}


async def _read(git: Git, ids: Iterable[str]) -> AsyncIterator[tuple[str, bytes | None]]:
    """Files and commits of these objects, a bounded number of bytes at a time; None for one that is too large."""
    asked = "\n".join(dict.fromkeys(ids)).encode()
    if not asked:
        return
    done = await git.run("cat-file", "--batch-check", "--buffer", stdin=asked)
    rows = [line.split(" ") for line in done.text.split("\n")]
    sizes = {row[0]: int(row[2]) for row in rows if len(row) == 3 and row[1] in ("blob", "commit")}
    for id, size in sizes.items():
        if size > LARGEST:
            yield id, None
    for some in _groups({id: size for id, size in sizes.items() if size <= LARGEST}):
        done = await git.run("cat-file", "--batch", "--buffer", stdin="\n".join(some).encode())
        at = 0
        for id in some:
            begin = done.out.index(b"\n", at) + 1
            at = begin + sizes[id] + 1
            yield id, done.out[begin : at - 1]


def _groups(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    group: list[str] = []
    total = 0
    for id, size in sizes.items():
        if group and total + size > _AT_ONCE:
            yield group
            group, total = [], 0
        group.append(id)
        total += size
    if group:
        yield group
