"""Work while its pull request is open: repairs in the parent's workspace, new runs on top of the branch."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, Outcome
from tests.core.test_publication import github
from tests.core.worksite import Site, execution, files_of, git

MODES = ("clone", "worktree", "in_place")


async def opened(root: Path, **settings: Any) -> tuple[Site, Execution, Outcome]:
    """A task whose pull request is open."""
    s = github(root, **settings)
    parent = execution()
    outcome = await s.run("echo one > page; git add page; git commit -qm page", execution=parent)
    assert outcome.publication is not None
    s.live = {"pilot/GH-46"}
    return s, replace(parent, session_id=outcome.session_id, workspace=s.notebook.facts["workspace"]), outcome


def repair(of: Execution, id: int = 8, **more: Any) -> Execution:
    """What the watch enqueues after red CI."""
    fields: dict[str, Any] = {
        "source": "failing_ci", "parent": of.id, "session_id": of.session_id, "workspace": of.workspace,
        "feedback": "The check `build` failed:\nboom in page", "fence": of.fence + 1, "origin": None,
    }  # fmt: skip
    return execution(id=id, **(fields | more))


@pytest.mark.parametrize("mode", MODES)
async def test_a_repair_goes_on_where_its_parent_stopped(tmp_path: Path, mode: str) -> None:
    s, parent, first = await opened(tmp_path, workspace=mode)
    outcome = await s.run("git log --oneline | wc -l; pwd; echo two >> page", execution=repair(parent))

    assert outcome.ending is Ending.DONE
    assert outcome.branch == "pilot/GH-46"
    assert outcome.base_sha == first.base_sha
    assert outcome.publication is not None
    assert git(s.repo, "merge-base", "--is-ancestor", str(first.head_sha), str(outcome.head_sha)) == ""
    assert files_of(s.repo, "pilot/GH-46")["page"] == "one\ntwo"
    (request,) = s.requests
    assert request.workspace == parent.workspace
    assert request.session_id == parent.session_id
    assert "boom in page" in request.prompt
    if mode != "in_place":
        assert s.notebook.facts["workspace"] == parent.workspace
        assert [path.name for path in (s.state / "workspaces").iterdir()] == ["7-gh-46"]
    else:
        assert git(s.repo, "symbolic-ref", "--short", "HEAD") == "main"


@pytest.mark.parametrize("mode", ["clone", "worktree"])
async def test_a_repair_of_a_repair_goes_on_too_and_all_is_cleaned_once(tmp_path: Path, mode: str) -> None:
    s, parent, _ = await opened(tmp_path, workspace=mode)
    await s.run("echo two >> page", execution=repair(parent))
    second = repair(parent, id=9, parent=8)
    outcome = await s.run("echo three >> page", execution=second)
    assert files_of(s.repo, "pilot/GH-46")["page"] == "one\ntwo\nthree"
    assert outcome.ending is Ending.DONE

    s.live = set()
    assert [await s.runner().release_workspace(one, keep=False) for one in (parent, second, parent)] == [True] * 3
    assert list((s.state / "workspaces").iterdir()) == []
    assert git(s.repo, "worktree", "list").count("\n") == 0
    assert git(s.repo, "rev-parse", "pilot/GH-46") == outcome.head_sha


@pytest.mark.parametrize("mode", MODES)
async def test_a_repair_that_changes_nothing_says_so(tmp_path: Path, mode: str) -> None:
    s, parent, first = await opened(tmp_path, workspace=mode)
    outcome = await s.run("echo I see nothing wrong", execution=repair(parent))

    assert (outcome.ending, outcome.publication, outcome.branch) == (Ending.NO_CHANGE, None, None)
    assert git(s.repo, "rev-parse", "pilot/GH-46") == first.head_sha
    again = await s.run("echo two >> page", execution=repair(parent, id=9))
    assert again.ending is Ending.DONE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("now", ["same", "other"])
async def test_a_lost_workspace_is_made_anew_on_top_of_the_branch(tmp_path: Path, mode: str, now: str) -> None:
    s, parent, first = await opened(tmp_path, workspace=mode)
    if mode == "worktree":
        git(s.repo, "worktree", "remove", "--force", str(parent.workspace))
    shutil.rmtree(s.state / "workspaces")
    git(s.repo, "commit", "-q", "--allow-empty", "-m", "main goes on")
    if now == "other":
        s.set(workspace="clone" if mode != "clone" else "worktree")
    outcome = await s.run("echo two >> page", execution=repair(parent), resume=False)

    assert outcome.ending is Ending.DONE
    assert outcome.base_sha == first.base_sha  # the diff is still the whole pull request's
    assert files_of(s.repo, "pilot/GH-46")["page"] == "one\ntwo"
    assert git(s.repo, "for-each-ref", "refs/pilot/old") == ""
    (request,) = s.requests
    assert request.session_id is None
    assert "Please add it." in request.prompt
    assert "boom in page" in request.prompt
    assert "earlier work on this task" in request.prompt


@pytest.mark.parametrize("mode", ["clone", "worktree"])
async def test_a_mode_that_was_changed_meanwhile_does_not_lose_the_workspace(tmp_path: Path, mode: str) -> None:
    s, parent, _ = await opened(tmp_path, workspace=mode)
    s.set(workspace="worktree" if mode == "clone" else "clone")
    outcome = await s.run("echo two >> page", execution=repair(parent))

    assert outcome.ending is Ending.DONE
    assert s.requests[0].workspace == parent.workspace


@pytest.mark.parametrize("mode", MODES)
async def test_a_new_run_while_the_pull_request_is_open_goes_on_top(tmp_path: Path, mode: str) -> None:
    s, parent, first = await opened(tmp_path, workspace=mode)
    outcome = await s.run("cat page; echo two >> page", execution=execution(id=8, fence=2))

    assert outcome.ending is Ending.DONE
    assert outcome.base_sha == first.base_sha
    assert files_of(s.repo, "pilot/GH-46")["page"] == "one\ntwo"
    (request,) = s.requests
    assert request.session_id is None
    assert "earlier work on this task" in request.prompt
    if mode != "in_place":
        assert request.workspace == parent.workspace


@pytest.mark.parametrize("mode", ["clone", "worktree"])
async def test_a_new_run_after_the_end_of_the_pull_request_begins_anew(tmp_path: Path, mode: str) -> None:
    s, parent, first = await opened(tmp_path, workspace=mode)
    s.live = set()
    assert await s.runner().release_workspace(parent, keep=False)
    outcome = await s.run("test ! -e page; echo new > other", execution=execution(id=8, fence=2))

    assert outcome.ending is Ending.DONE
    assert "page" not in files_of(s.repo, "pilot/GH-46")
    assert git(s.repo, "rev-parse", f"refs/pilot/old/{first.head_sha}") == first.head_sha


async def test_a_failed_repair_keeps_the_workspace_for_the_next(tmp_path: Path) -> None:
    s, parent, _ = await opened(tmp_path, keep_workspace="never")
    failed = await s.run("echo half >> page; exit 1", execution=repair(parent))
    assert failed.ending is Ending.FAILED
    assert Path(parent.workspace or "").is_dir()

    outcome = await s.run("echo two >> page", execution=repair(parent, id=9))
    assert outcome.ending is Ending.DONE
    assert s.requests[0].workspace == parent.workspace


async def test_a_workspace_of_another_task_is_nobodys_to_take(tmp_path: Path) -> None:
    s, parent, _ = await opened(tmp_path)
    other = repair(parent, task_id="GH-47", feedback=None)
    await s.run("echo x > y", execution=other)

    assert s.requests[0].workspace == f"{s.state}/workspaces/8-gh-47/api"
    for path in (str(s.repo), "/etc/passwd", f"{s.state}/workspaces/../../api/x", "", f"{s.state}/workspaces/7-gh-46"):
        await s.run("echo x > y", execution=repair(parent, id=20, task_id="GH-48", workspace=path))
        assert s.requests[0].workspace == f"{s.state}/workspaces/20-gh-48/api"


async def test_a_branch_that_the_task_named_is_no_different(tmp_path: Path) -> None:
    s = github(tmp_path)
    options = {"branch": "pilot/mine"}
    parent = execution(options=options)
    first = await s.run("echo one > page", execution=parent)
    assert first.publication is not None
    s.live = {"pilot/mine"}
    shutil.rmtree(s.state / "workspaces")
    outcome = await s.run("echo two >> page", execution=repair(parent, options=options))

    assert outcome.ending is Ending.DONE
    assert outcome.publication == first.publication
    assert outcome.base_sha == first.base_sha
    assert files_of(s.repo, "pilot/mine")["page"] == "one\ntwo"


async def test_only_what_pilot_made_is_a_workspace(tmp_path: Path) -> None:
    s, parent, _ = await opened(tmp_path)
    shutil.copytree(s.state / "workspaces/7-gh-46", tmp_path / "elsewhere/7-gh-46")
    shutil.rmtree(s.state / "workspaces")
    await s.run("echo x > y", execution=repair(parent, workspace=str(tmp_path / "elsewhere/7-gh-46/api")))

    assert s.requests[0].workspace == f"{s.state}/workspaces/8-gh-46/api"


async def test_uncommitted_work_outlives_the_pull_request(tmp_path: Path) -> None:
    s, parent, _ = await opened(tmp_path)
    (Path(parent.workspace or "") / "by-hand").write_text("somebody's\n")
    s.live = set()

    assert not await s.runner().release_workspace(parent, keep=False)
    assert (Path(parent.workspace or "") / "by-hand").exists()
    (Path(parent.workspace or "") / "by-hand").unlink()
    assert await s.runner().release_workspace(parent, keep=False)


async def test_what_a_person_pushed_on_top_is_gone_on_from(tmp_path: Path) -> None:
    """The project's clone has fetched a commit that somebody made on the pull request's branch."""
    s, parent, first = await opened(tmp_path)
    shutil.rmtree(s.state / "workspaces")
    git(s.repo, "branch", "-q", "theirs", "pilot/GH-46")
    git(s.repo, "switch", "-q", "theirs")
    git(s.repo, "commit", "-q", "--allow-empty", "-m", "by hand")
    theirs = git(s.repo, "rev-parse", "HEAD")
    git(s.repo, "switch", "-q", "main")
    git(s.repo, "update-ref", "refs/remotes/origin/pilot/GH-46", theirs)
    outcome = await s.run("echo two >> page", execution=repair(parent))

    assert outcome.ending is Ending.DONE
    assert git(s.repo, "merge-base", "--is-ancestor", theirs, str(outcome.head_sha)) == ""
    assert outcome.base_sha == first.base_sha


@pytest.mark.parametrize("phase", ["workspace", "agent", "commit", "preserve", "inspect", "finish"])
async def test_a_killed_repair_goes_on(tmp_path: Path, phase: str) -> None:
    s, parent, first = await opened(tmp_path)
    child = repair(parent)

    def killed(now: str) -> None:
        if now == phase:
            raise KeyboardInterrupt

    s.notebook.on_phase = killed
    with pytest.raises(KeyboardInterrupt):
        await s.run("grep -q two page || echo two >> page", execution=child)
    s.notebook.on_phase = lambda _: None
    outcome = await s.run("grep -q two page || echo two >> page", execution=replace(child, attempt=2, fence=3))

    assert outcome.ending is Ending.DONE
    assert outcome.base_sha == first.base_sha
    assert files_of(s.repo, "pilot/GH-46")["page"] == "one\ntwo"
    assert s.requests[0].workspace == parent.workspace
