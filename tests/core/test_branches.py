"""On which branch the work ends up, and what happens when somebody else was there."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from pilot.runner.source import is_branch_name
from pilot.runner.workspace import Workspace
from tests.core.worksite import Site, execution, files_of, git, repository, shell, site

APART = pytest.mark.parametrize("workspace", ["clone", "worktree"])


async def ended(s: Site, script: str, **more: Any) -> Workspace:
    """An attempt that is over."""
    ws = await s.workspaces.prepare(s.project, execution(**more))
    try:
        shell(ws.path, script)
        await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
        await s.workspaces.release(ws, keep=False)
    finally:
        ws.close()
    return ws


@APART
async def test_a_branch_that_is_not_pilot_s_is_refused_before_any_work(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    git(s.repo, "branch", "pilot/GH-46")

    with pytest.raises(WorkspaceError, match="not pilot's at all") as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is FailureClass.CONFLICT
    assert list((s.state / "workspaces").iterdir()) == []


@pytest.mark.parametrize("meddling", ["commit --amend -qm theirs", "reset -q --hard HEAD~1"])
async def test_a_branch_that_somebody_moved_is_left_to_them(tmp_path: Path, meddling: str) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one")
    await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
    git(s.repo, "switch", "-q", "pilot/GH-46")
    git(s.repo, *meddling.split())
    git(s.repo, "switch", "-q", "main")
    theirs = git(s.repo, "rev-parse", "pilot/GH-46")
    shell(ws.path, "echo 2 > two")
    snapshot = await s.workspaces.snapshot(ws, "x")

    with pytest.raises(WorkspaceError, match="refs/pilot/7") as raised:
        await s.workspaces.preserve(ws, snapshot)

    assert raised.value.failure is FailureClass.CONFLICT
    assert git(s.repo, "rev-parse", "pilot/GH-46") == theirs
    assert git(s.repo, "rev-parse", "refs/pilot/7") == snapshot.head_sha
    assert not await s.workspaces.release(ws, keep=False)


@APART
async def test_a_person_frees_the_name_and_the_next_attempt_takes_it(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one")
    await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
    ws.close()
    git(s.repo, "branch", "-M", "pilot/GH-46", "theirs")
    if workspace == "worktree":
        shell(ws.path, "git symbolic-ref HEAD refs/heads/pilot/GH-46")

    outcome = await s.run("echo 2 > two", execution=execution(attempt=2, branch=ws.branch, base_sha=ws.base_sha))

    assert outcome.delivered
    assert {"one", "two"} <= files_of(s.repo, "pilot/GH-46").keys()
    assert "two" not in files_of(s.repo, "theirs")


@APART
@pytest.mark.parametrize("theirs", ["main", "pilot/GH-45"])
async def test_no_branch_is_gone_on_with_because_somebody_says_that_it_is_its_own(
    tmp_path: Path, workspace: str, theirs: str
) -> None:
    """What a worker elsewhere told of its branch is a claim of its own: here nobody has left it for this task."""
    s = site(tmp_path, workspace=workspace)
    await s.run("echo 1 > one", execution=execution(id=6, task_id="GH-45"))
    git(s.repo, "switch", "-q", "-c", "elsewhere")
    before = git(s.repo, "rev-parse", theirs)
    base = git(s.repo, "rev-parse", "main")
    told: dict[str, Any] = {"branch": theirs, "head_sha": before, "base_sha": base, "workspace": "/tmp/x/y"}

    outcome = await s.run("echo 2 > two", execution=execution(attempt=2, **told))

    assert outcome.delivered
    assert git(s.repo, "rev-parse", theirs) == before
    assert files_of(s.repo, "pilot/GH-46").keys() == files_of(s.repo, "main").keys() | {"two"}


async def test_a_branch_that_appears_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one")
    git(s.repo, "branch", "pilot/GH-46")

    with pytest.raises(WorkspaceError, match="somebody else"):
        await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))


async def test_a_branch_in_use_is_not_moved_under_its_user(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one")
    await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
    git(s.repo, "worktree", "add", "-q", str(tmp_path / "review"), "pilot/GH-46")
    shell(ws.path, "echo 2 > two")

    with pytest.raises(WorkspaceError, match=f"checked out in {tmp_path}/review"):
        await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
    ws.close()
    with pytest.raises(WorkspaceError, match="checked out in"):
        await s.workspaces.prepare(s.project, execution(id=8))


@APART
async def test_a_new_run_of_a_task_starts_from_the_base_and_loses_nothing(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    await ended(s, "echo 1 > one")
    old = git(s.repo, "rev-parse", "pilot/GH-46")

    await ended(s, "ls; test ! -e one; echo 2 > two", id=8)

    assert "one" not in files_of(s.repo, "pilot/GH-46")
    assert git(s.repo, "rev-parse", f"refs/pilot/old/{old}") == old


@APART
async def test_a_project_that_cleans_up_is_worked_in_as_before(tmp_path: Path, workspace: str) -> None:
    """The branches of old tasks are deleted, and git forgets their commits: nothing of pilot's needs them."""
    s = site(tmp_path, workspace=workspace)
    await ended(s, "echo 1 > one; git add one; git commit -qm one; echo 2 > two")
    git(s.repo, "branch", "-D", "pilot/GH-46")
    shell(s.repo, "git reflog expire --expire=now --all; git gc -q --prune=now")

    await ended(s, "echo 3 > three; git add three; git commit -qm three; echo 4 > four", id=8, task_id="GH-47")
    await ended(s, "echo 5 > five; git add five; git commit -qm five", id=9)

    assert git(s.repo, "log", "--format=%s", "main..pilot/GH-47").splitlines() == ["x", "three"]
    assert git(s.repo, "log", "--format=%s", "main..pilot/GH-46").splitlines() == ["five"]
    assert git(s.repo, "fsck", "--connectivity-only") == ""


async def test_many_tasks_leave_no_heap(tmp_path: Path) -> None:
    """What an attempt needed goes with its workspace; the project gets loose objects, not a pack for each task."""
    s = site(tmp_path)
    for n in range(4):
        await ended(s, f"echo {n} > f; git add f; git commit -qm {n}; echo {n} > g", id=n + 1, task_id=f"T-{n}")

    left = [path for path in s.state.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(left) <= 4, "one small file for each branch"
    assert list((s.repo / ".git/objects/pack").iterdir()) == []


@APART
async def test_a_new_run_that_changes_nothing_leaves_the_old_branch(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    await ended(s, "echo 1 > one")
    old = git(s.repo, "rev-parse", "pilot/GH-46")

    await ended(s, "true", id=8)

    kept = git(s.repo, "for-each-ref", "--format=%(objectname)", "refs/heads/pilot", "refs/pilot/old")
    assert old in kept.splitlines()


async def test_tasks_whose_names_become_one_get_branches_of_their_own(tmp_path: Path) -> None:
    s = site(tmp_path)
    one = await ended(s, "echo 1 > one", task_id="a b")
    two = await ended(s, "echo 2 > two", id=8, task_id="a-b")
    three = await ended(s, "echo 3 > three", id=9, task_id="a/b")
    four = await ended(s, "echo 4 > four", id=10, task_id="a")

    assert (one.branch, two.branch, three.branch) == ("pilot/a-b", "pilot/a-b-8", "pilot/a/b")
    assert four.branch == "pilot/a-10"
    assert "four" in files_of(s.repo, four.branch)


async def test_a_branch_called_pilot_is_in_the_way(tmp_path: Path) -> None:
    s = site(tmp_path)
    git(s.repo, "branch", "pilot")

    with pytest.raises(WorkspaceError, match="beside branch pilot") as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is FailureClass.CONFLICT


@APART
async def test_a_branch_that_the_task_names_is_gone_on_with(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    git(s.repo, "switch", "-qc", "feature/x")
    (s.repo / "theirs").write_text("x")
    git(s.repo, "add", "theirs")
    git(s.repo, "commit", "-qm", "theirs")
    git(s.repo, "switch", "-q", "main")

    ws = await ended(s, "test -e theirs; echo 1 > one", options={"branch": "feature/x"})

    assert ws.branch == "feature/x"
    assert {"theirs", "one"} <= files_of(s.repo, "feature/x").keys()
    assert git(s.repo, "log", "--format=%s", "main..feature/x").splitlines() == ["x", "theirs"]

    await ended(s, "true", id=8, options={"branch": "feature/x"})
    assert git(s.repo, "log", "--format=%s", "main..feature/x").splitlines() == ["x", "theirs"]


async def test_a_new_branch_that_the_task_names(tmp_path: Path) -> None:
    s = site(tmp_path)
    git(s.repo, "branch", "v1")
    git(s.repo, "commit", "-q", "--allow-empty", "-m", "second")

    ws = await ended(s, "echo 1 > one", options={"branch": "feature/y", "base": "v1"})

    assert ws.base_sha == git(s.repo, "rev-parse", "v1")
    assert git(s.repo, "log", "--format=%s", "feature/y").splitlines() == ["x", "first"]


@pytest.mark.parametrize(
    "name", ["--upload-pack=evil", "a..b", "x\0y", "refs/", "a b", "", "HEAD", "@{-1}", "a\nb", "a.lock"]
)
@pytest.mark.parametrize("option", ["branch", "base"])
async def test_names_that_are_none_are_refused_in_words(tmp_path: Path, option: str, name: str) -> None:
    s = site(tmp_path)
    if option == "base" and name == "HEAD":
        return  # that one is something to start from

    with pytest.raises(WorkspaceError) as raised:
        await s.workspaces.prepare(s.project, execution(options={option: name}))

    assert raised.value.failure is FailureClass.CONFLICT


@pytest.mark.parametrize(
    "name", ["main", "a/b", "ünï/code", "a.b", "-a", "a/-b", ".a", "a/.b", "a.", "a/", "//", "a//b", "a~1", "a^", "a:b",
             "a?", "a*", "a[", "a\\b", "a..b", "a@{b", "@", "a.lock", "a.lock/b", "HEAD", " a", "a\x7f", "a'b", "a@b"]
)  # fmt: skip
def test_branch_names_are_what_git_says(tmp_path: Path, name: str) -> None:
    git(tmp_path, "init", "-q")
    said = git(tmp_path, "check-ref-format", "--branch", name, check=False)
    valid = said == name and not name.startswith("-")

    assert is_branch_name(name) == (valid and name not in ("HEAD", "@"))


@pytest.mark.parametrize("settings", [{"base": "develop"}, {}])
async def test_the_base_is_the_local_branch_or_where_the_checkout_stands(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    s = site(tmp_path, **settings)
    git(s.repo, "switch", "-qc", "develop")
    git(s.repo, "commit", "-q", "--allow-empty", "-m", "second")
    if settings:
        git(s.repo, "switch", "-q", "main")

    ws = await s.workspaces.prepare(s.project, execution())

    assert ws.base_sha == git(s.repo, "rev-parse", "develop")
    assert ws.record.base_name == "develop"


async def test_a_base_that_is_not_there(tmp_path: Path) -> None:
    s = site(tmp_path, base="nowhere")

    with pytest.raises(WorkspaceError, match="no branch 'nowhere'") as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is FailureClass.CONFLICT


@pytest.mark.parametrize("form", ["path", "file url"])
async def test_a_project_by_address_works_in_a_mirror(tmp_path: Path, form: str) -> None:
    origin = repository(tmp_path / "origin")
    git(origin, "branch", "feature/z")
    s = site(tmp_path, url=str(origin) if form == "path" else f"file://{origin}")
    await ended(s, "echo 1 > one")
    (mirror,) = (s.state / "mirrors").iterdir()
    assert "one" in files_of(mirror, "pilot/GH-46")
    assert "pilot" not in git(origin, "for-each-ref")

    git(origin, "commit", "-q", "--allow-empty", "-m", "second")
    git(origin, "branch", "-D", "feature/z")
    ws = await ended(s, "echo 2 > two", id=8, task_id="GH-47")

    assert ws.base_sha == git(origin, "rev-parse", "main"), "it is fetched for every attempt"
    assert git(mirror, "for-each-ref", "--format=%(refname)").splitlines() == [
        "refs/heads/pilot/GH-46",
        "refs/heads/pilot/GH-47",
        "refs/remotes/origin/HEAD",
        "refs/remotes/origin/main",
    ]


async def test_a_branch_of_the_remote_is_gone_on_with_in_the_mirror(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin")
    git(origin, "switch", "-qc", "fix")
    git(origin, "commit", "-q", "--allow-empty", "-m", "theirs")
    git(origin, "switch", "-q", "main")
    s = site(tmp_path, url=f"file://{origin}", base="main")

    await ended(s, "echo 1 > one", options={"branch": "fix"})

    (mirror,) = (s.state / "mirrors").iterdir()
    assert git(mirror, "log", "--format=%s", "refs/heads/fix").splitlines() == ["x", "theirs", "first"]


async def test_an_old_history_is_no_reason_not_to_work(tmp_path: Path) -> None:
    """Well-known projects have commits that git's own fsck refuses today; everybody clones them all the same."""
    origin = repository(tmp_path / "origin")
    old = f"tree {git(origin, 'rev-parse', 'HEAD^{tree}')}\nauthor a <a@b> 1313584730 +051800\n"
    commit = (old + "committer a <a@b> 1313584730 +051800\n\nold\n").encode()
    write = ["git", "-C", str(origin), "hash-object", "-t", "commit", "-w", "--stdin", "--literally"]
    sha = subprocess.run(write, input=commit, capture_output=True, check=True).stdout.decode().strip()
    git(origin, "reset", "-q", "--hard", sha)
    s = site(tmp_path, url=f"file://{origin}")

    await ended(s, "echo 1 > one")

    (mirror,) = (s.state / "mirrors").iterdir()
    assert git(mirror, "log", "--format=%s", "pilot/GH-46").splitlines() == ["x", "old"]


async def test_an_address_that_leads_nowhere(tmp_path: Path) -> None:
    s = site(tmp_path, url=f"file://{tmp_path}/nowhere")

    with pytest.raises(WorkspaceError) as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is FailureClass.INVALID_CONFIG


async def test_a_mirror_s_branch_and_the_remote_one(tmp_path: Path) -> None:
    origin = repository(tmp_path / "origin")
    git(origin, "branch", "fix")
    s = site(tmp_path, url=f"file://{origin}", base="main")
    await ended(s, "echo 1 > one", options={"branch": "fix"})
    (mirror,) = (s.state / "mirrors").iterdir()
    git(origin, "fetch", "-q", str(mirror), "fix:fix")
    git(origin, "switch", "-q", "fix")
    git(origin, "commit", "-q", "--allow-empty", "-m", "review")

    await ended(s, "echo 2 > two", id=8, options={"branch": "fix"})
    assert git(mirror, "log", "--format=%s", "refs/heads/fix").splitlines() == ["x", "review", "x", "first"]

    git(origin, "commit", "-q", "--allow-empty", "-m", "elsewhere")
    with pytest.raises(WorkspaceError, match="have parted"):
        await s.workspaces.prepare(s.project, execution(id=9, options={"branch": "fix"}))


async def test_another_machine_goes_on_from_what_the_pull_request_shows(tmp_path: Path) -> None:
    """The one that has begun it is lost, and with it its mirror."""
    origin = repository(tmp_path / "origin")
    one = site(tmp_path / "one", url=f"file://{origin}", base="main")
    await ended(one, "echo 1 > one")
    (mirror,) = (one.state / "mirrors").iterdir()
    git(origin, "fetch", "-q", str(mirror), "pilot/GH-46:pilot/GH-46")
    other = site(tmp_path / "other", url=f"file://{origin}", base="main")

    ws = await other.workspaces.prepare(other.project, execution(id=8), live=["pilot/GH-46"])
    try:
        assert (ws.path / "one").read_text() == "1\n"
        assert ws.base_sha == git(origin, "rev-parse", "main")
        shell(ws.path, "echo 2 > two")
        await other.workspaces.preserve(ws, await other.workspaces.snapshot(ws, "y"))
    finally:
        ws.close()
    (mirror,) = (other.state / "mirrors").iterdir()
    assert git(mirror, "log", "--format=%s", "pilot/GH-46").splitlines() == ["y", "x", "first"]
