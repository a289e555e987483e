"""What must be true when a test of the whole is over, whatever was killed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pilot.domain.text import ref_name
from pilot.store import open_store
from tests.store.audit import audit

if TYPE_CHECKING:
    from tests.e2e.daemon import Home


def broken_promises(home: Home, counts: Mapping[str, int]) -> list[str]:
    """Every one in words: of the store, the agents' diary, the repositories, the processes, the disk."""
    url = home.settings.get("store", f"sqlite:///{home.state}/pilot.db")
    return [
        *asyncio.run(_store(url)),
        *_counts(home, counts),
        *_diary(home),
        *_processes(home),
        *_repositories(home),
        *_workspaces(home),
    ]


async def _store(url: str) -> list[str]:
    async with open_store(url, create=False) as store:
        return await audit(store.database)


def _counts(home: Home, counts: Mapping[str, int]) -> Iterator[str]:
    there = dict(home.rows("SELECT status, count(*) FROM executions GROUP BY status"))
    if counts and there != dict(counts):
        yield f"there are {there}, not {dict(counts)}"


def _diary(home: Home) -> Iterator[str]:
    for line in home.diary("OVERLAP"):
        yield f"{line.task_id} ran while another agent was in {line.rest}"
    ends = [line.task_id for line in home.diary("end")]
    known = dict(home.rows("SELECT task_id, attempt FROM executions WHERE status = 'completed'"))
    for task_id in known:
        if task_id not in ends and any(line.task_id == task_id for line in home.diary("start")):
            yield f"{task_id} is completed, but no agent came to its end"


def _processes(home: Home) -> Iterator[str]:
    if not home.rows("SELECT 1 FROM executions WHERE status = 'running'"):
        for pid, line in home.processes().items():
            yield f"process {pid} is left: {line}"


def _repositories(home: Home) -> Iterator[str]:
    for name, path in home.repositories.items():
        if home.checkout(path) != home.untouched[name]:
            yield f"the checkout {name} is not as it was:\n{home.untouched[name]}\n{home.checkout(path)}"
        if locks := sorted(str(lock) for lock in (path / ".git").rglob("*.lock")):
            yield f"git locks are left: {locks}"
        if not home.rows("SELECT 1 FROM executions WHERE status NOT IN ('completed')"):
            trees = home.git(path, "worktree", "list", "--porcelain").count("worktree ")
            if trees != 1:
                yield f"{name} has {trees} work trees"
        home.git(path, "fsck", "--connectivity-only", "--no-dangling")
    done = home.rows(
        "SELECT e.task_id, e.branch, e.head_sha, p.path FROM executions e JOIN projects p ON p.id = e.project_id "
        "WHERE e.status = 'completed' AND e.outcome = 'done' AND e.delivery = 'branch'"
    )
    for task_id, branch, head, path in done:
        yield from _branch(home, Path(path), task_id, branch, head)


def _branch(home: Home, path: Path, task_id: str, branch: str, head: str) -> Iterator[str]:
    if branch != f"pilot/{ref_name(task_id)}":
        yield f"{task_id} is on branch {branch}"
    if head != (there := home.git(path, "rev-parse", "--verify", f"refs/heads/{branch}")):
        yield f"{branch} is at {there}, the execution says {head}"
    if any(line.task_id == task_id for line in home.diary("end")):
        text = home.git(path, "show", f"{branch}:{task_id}.txt")
        if text != task_id:
            yield f"{branch} has {text!r} in {task_id}.txt"
    if home.git(path, "merge-base", "main", branch) != home.git(path, "rev-parse", "main"):
        yield f"{branch} does not start at main"


def _workspaces(home: Home) -> Iterator[str]:
    folder = home.state / "workspaces"
    # a pull request that may still need repairs keeps its own
    live = (
        "SELECT m.execution_id FROM pull_executions m JOIN pulls p ON p.id = m.pull_id "
        "WHERE p.state IN ('owed', 'open')"
    )
    done = {
        str(id) for (id,) in home.rows(f"SELECT id FROM executions WHERE status = 'completed' AND id NOT IN ({live})")
    }
    for entry in sorted(folder.iterdir()) if folder.exists() else ():
        if entry.name.lstrip(".").partition("-")[0] in done:
            yield f"its execution is completed, and this is left: {entry}"
