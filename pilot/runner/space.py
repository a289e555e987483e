"""What a workspace is: its values, its record on disk, and the folder that holds it."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.runner.files import make_spread
from pilot.runner.pristine import Left, Pristine
from pilot.runner.source import Source
from pilot.runner.tree import Tree

RECORD = "workspace.json"


@dataclass(slots=True)
class Record:
    """What pilot knows of a workspace, kept beside it. A crash at any moment leaves the old one or the new one.

    `base`: the commit that changes are counted from. `start`: where the branch began in this workspace. `seen`:
    where pilot last saw the branch in the project's repository (None: there was none). `head`: the last commit
    pilot knows of, `index` the one that its index stands on, `changed` whether it differs from the base.
    `preserved`: the commit that the project's branch got. `wip`: what was kept without a branch, `old_wip` when a
    commit has it by now. `former`: what a checkout stood on before (`in_place`), `leaving` that it is being switched
    back to that. `named`: the task itself named its branch. `refs`: what the agent's clone has besides.

    `joined`: the base is a merge of what other steps have made, so that the branch is worth having without a change.

    `execution` made it, and `owner` works in it now: while a task's pull request is open, whoever goes on with the
    task goes on here. `since`: the commit that the owner began on, when there was work before it. `folder`: the name
    of the agent's directory. `asked`: the tree of which a person was asked whether it may be published, in `words`,
    after the agent's last words `said`; `allowed`: the tree that may be.
    """

    store: str
    execution: int
    mode: str
    common: str
    branch: str
    base_name: str
    base: str
    start: str
    seen: str | None = None
    head: str = ""
    index: str = ""
    preserved: str | None = None
    wip: str | None = None
    old_wip: str | None = None
    former: str | None = None
    leaving: bool = False
    named: bool = False
    changed: bool = False
    ready: bool = False
    set_up: bool = False
    refs: dict[str, str] = field(default_factory=dict)
    task: str = ""
    owner: int = 0
    since: str | None = None
    folder: str = ""
    asked: str | None = None
    words: str = ""
    said: str = ""
    allowed: str | None = None
    joined: bool = False

    @property
    def kept(self) -> str:
        """The commit that has all of the work, on the branch or aside."""
        return self.wip or self.head

    def save(self, home: Path) -> None:
        """Write it down, whole."""
        part = home / f".{RECORD}.{secrets.token_hex(4)}"
        part.write_text(json.dumps(asdict(self)))
        part.replace(home / RECORD)


def load(home: Path) -> Record | None:
    """The record of a workspace's folder; None when there is none that this version can read."""
    try:
        return Record(**json.loads((home / RECORD).read_text()))
    except (OSError, ValueError, TypeError):
        return None


@dataclass(slots=True)
class Workspace:
    """Where an attempt works. `path` is the agent's directory, the same for all attempts of an execution.

    `fresh`: set-up has not been done yet. `home` is the folder around it: record, index, scratch files.
    """

    path: Path
    branch: str
    base_sha: str
    mode: str
    fresh: bool
    execution: int
    task_id: str
    home: Path
    record: Record
    source: Source
    pristine: Pristine
    left: Left
    tree: Tree
    lock: int = -1

    @property
    def scratch(self) -> Path:
        """For files of an attempt that are no part of the work."""
        return self.home / "scratch"

    @property
    def borrows_from(self) -> Sequence[Path]:
        """Directories outside of it that git in it has to read (for a sandbox)."""
        return (self.pristine.objects, self.source.common / "objects")

    def save(self) -> None:
        """Write the record down."""
        self.record.save(self.home)

    def close(self) -> None:
        """Let others work here."""
        if self.lock >= 0:
            os.close(self.lock)
            self.lock = -1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The work as one commit. `files`, counted from the base; `notes` say what was not taken."""

    head_sha: str
    tree: str
    changed: bool
    files: tuple[str, ...] = ()
    insertions: int = 0
    deletions: int = 0
    notes: tuple[str, ...] = ()


async def keep_old(ws: Workspace, new: str, old: str | None) -> None:
    """A branch is about to leave the commit `old` behind: keep that by a ref of its own."""
    if old is None or old == new:
        return
    done = await ws.pristine.git.run("merge-base", "--is-ancestor", old, new, ok=(0, 1))
    if done.code:
        await ws.source.move({f"refs/pilot/old/{old}": (old, None)})


def lock_folder(home: Path) -> int:
    """Take the folder for this process; the descriptor holds it. Raises `WorkspaceError` when it is taken.

    A run that lost its lease may still be at its end here while the next one starts.
    """
    make_spread(home.parent)
    home.mkdir(exist_ok=True, mode=0o700)
    lock = os.open(home / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise WorkspaceError(
            FailureClass.INFRA, f"another run of pilot is still at work in {home}; it is tried again later"
        ) from None
    return lock
