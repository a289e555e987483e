"""A work tree as pilot's git sees it: with pilot's own git directory and index, never with the tree's."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pilot.runner.files import remove_tree
from pilot.runner.git import Git

CHECKOUT_TIMEOUT = 1800.0
_MODIFIED, _REMOVED, _OTHER = "C", "R", "?"


@dataclass(frozen=True, slots=True)
class Changes:
    """How a work tree differs from the index: paths to take, and what is not taken with the reason why."""

    modified: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is anything that a commit of the index would not have."""
        return bool(self.modified or self.removed or self.untracked or self.nested or self.unreadable)

    @property
    def tracked(self) -> tuple[str, ...]:
        """Files that are in the index and different on disk."""
        return self.modified + self.removed


@dataclass(frozen=True, slots=True)
class Tree:
    """`git` stands in a git directory of pilot's, with this work tree and an index of pilot's own.

    No command here runs git inside a nested repository, or anything that the work tree configures: there is no
    filter, hook or driver in the git directory that could be named by a `.gitattributes`.
    """

    top: Path
    git: Git
    exclude: Path | None = None
    """A file with more patterns of what is not taken: what set-up made."""
    shared: bool = False
    """Whether the index is the agent's, too: it may hold half a merge, and what was staged in it stays."""

    async def check_out(self, commit: str) -> None:
        """Make index and files that commit; other files that are in the way are overwritten."""
        await self.git.run("read-tree", "--reset", "-u", "--no-recurse-submodules", commit, timeout=CHECKOUT_TIMEOUT)

    async def stand_on(self, commit: str) -> None:
        """Make the index that commit and leave the files. An index that is the agent's stays as it is.

        (That one stands where the agent stands; and made anew it would forget which files are checked out.)
        """
        if self.shared:
            return
        await self.git.run("read-tree", "--reset", commit)

    async def changes(self) -> Changes:
        """What differs from the index, ignored files left out."""
        more = () if self.exclude is None or not self.exclude.exists() else (f"--exclude-from={self.exclude}",)
        done = await self.git.run("ls-files", "-z", "-t", "-m", "-d", "-o", "--exclude-standard", *more)
        parts = done.parts
        if self.shared:
            unmerged = await self.git.run("ls-files", "-z", "-u")
            names = {part.split("\t", 1)[1] for part in unmerged.parts}
            parts = [part for part in parts if part[2:] not in names]
            parts += [f"{_MODIFIED if _is_there(self.top / name) else _REMOVED} {name}" for name in names]
        removed = {
            part[2:]
            for part in parts
            if part[0] == _REMOVED or (part[0] == _MODIFIED and _beyond_link(self.top, part[2:]))
        }
        modified: list[str] = []
        untracked: list[str] = []
        nested: list[str] = []
        unreadable: list[str] = []
        for tag, path in ((part[0], part[2:]) for part in parts):
            if tag == _REMOVED or (tag == _MODIFIED and path in removed):
                continue
            if path.endswith("/") or _is_repository(self.top / path):
                nested.append(path.rstrip("/"))
            elif not _readable(self.top / path):
                unreadable.append(path)
            else:
                (untracked if tag == _OTHER else modified).append(path)
        return Changes(*(tuple(sorted(set(found))) for found in (modified, removed, untracked, nested, unreadable)))

    async def add(self, changes: Changes) -> None:
        """Take the changes into the index."""
        if changes.removed:
            await self.git.run("update-index", "-z", "--force-remove", "--stdin", stdin=_z(changes.removed))
        paths = changes.modified + changes.untracked
        if paths:
            await self.git.run("update-index", "-z", "--add", "--remove", "--replace", "--stdin", stdin=_z(paths))

    async def write(self) -> str:
        """The index as a tree object; its hash."""
        return (await self.git.run("write-tree")).text

    async def put_back(self, changes: Changes, *, untracked: bool) -> tuple[str, ...]:
        """Make the files what the index says; `untracked` files go, too. The paths that were different.

        Without `untracked` a new directory where a file belongs is left, and so is the file.
        """
        for path in changes.untracked if untracked else ():
            (self.top / path).unlink(missing_ok=True)
            _prune(self.top, (self.top / path).parent)
        wanted = [path for path in changes.tracked if untracked or not _is_directory(self.top / path)]
        for path in wanted:
            if _is_directory(self.top / path):
                remove_tree(self.top / path)  # git does not remove one that has content
        if wanted:
            await self.git.run("checkout-index", "-f", "-u", "-z", "--stdin", stdin=_z(wanted))
        return changes.tracked + (changes.untracked if untracked else ())

    async def untracked_names(self) -> list[str]:
        """Files and whole directories that are neither tracked nor ignored; directories end with a slash."""
        done = await self.git.run("ls-files", "-z", "-o", "--directory", "--no-empty-directory", "--exclude-standard")
        return done.parts


def pattern(path: str) -> str:
    """An ignore pattern that matches exactly this path from the top (but for line breaks: no pattern can have them)."""
    special = "\\*?[]!# "
    return "/" + "".join("?" if c in "\r\n" else f"\\{c}" if c in special else c for c in path)


def _z(paths: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(path) + b"\0" for path in paths)


def _is_repository(path: Path) -> bool:
    """A directory that git would take for a repository, where a file or a submodule is expected."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode) and os.path.lexists(path / ".git")
    except OSError:
        return False


def _beyond_link(top: Path, path: str) -> bool:
    """Whether a directory on the way to a path became a symlink: then git says what is behind it."""
    return any((top / folder).is_symlink() for folder in Path(path).parents if folder != Path())


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _readable(path: Path) -> bool:
    try:
        return stat.S_ISLNK(path.lstat().st_mode) or os.access(path, os.R_OK)
    except OSError:
        return False


def _is_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _prune(top: Path, folder: Path) -> None:
    while folder != top and folder.is_relative_to(top):
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
