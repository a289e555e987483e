"""A workspace is made, read, preserved and given up; the user's checkout is never touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import FailureClass
from tests.core.worksite import Site, again, execution, files_of, git, looks, repository, shell, site

APART = pytest.mark.parametrize("workspace", ["clone", "worktree"])
ALL = pytest.mark.parametrize("workspace", ["clone", "worktree", "in_place"])


async def delivered(s: Site, script: str, **more: Any) -> dict[str, str]:
    """What is on the branch after an agent that ran the script."""
    ws = await s.workspaces.prepare(s.project, execution(**more))
    shell(ws.path, script)
    snapshot = await s.workspaces.snapshot(ws, "Add the page")
    await s.workspaces.preserve(ws, snapshot)
    await s.workspaces.release(ws, keep=False)
    ws.close()
    return files_of(s.repo, ws.branch)


@ALL
async def test_left_over_changes_are_committed_on_the_task_s_branch(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    base = git(s.repo, "rev-parse", "HEAD")

    ws = await s.workspaces.prepare(s.project, execution())
    assert (ws.branch, ws.base_sha, ws.mode, ws.fresh) == ("pilot/GH-46", base, workspace, True)
    assert shell(ws.path, "git status --short --branch") == "## pilot/GH-46\n"
    shell(ws.path, "echo a = 2 > src/a.py; echo new > page.html; rm README; echo noise > x.log")
    snapshot = await s.workspaces.snapshot(ws, "Add the page")
    await s.workspaces.preserve(ws, snapshot)

    assert set(snapshot.files) == {"README", "page.html", "src/a.py"}
    assert (snapshot.changed, snapshot.insertions, snapshot.deletions) == (True, 2, 2)
    assert shell(ws.path, "git status --short; git rev-parse HEAD").strip() == snapshot.head_sha
    assert git(s.repo, "rev-parse", "pilot/GH-46") == snapshot.head_sha
    assert git(s.repo, "log", "-1", "--format=%an <%ae>|%B", "pilot/GH-46").split("|")[0] == "pilot <pilot@localhost>"
    assert git(s.repo, "log", "-1", "--format=%B", "pilot/GH-46").split("\n") == [
        "Add the page", "", "Pilot-Execution: 7", "Pilot-Task: GH-46", "",
    ][:4]  # fmt: skip
    assert files_of(s.repo, "pilot/GH-46") == {".gitignore": "*.log\nbuild/", "page.html": "new", "src/a.py": "a = 2"}


@APART
async def test_the_checkout_of_the_user_stays_as_it_is(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    git(s.repo, "tag", "v1")
    (s.repo / "README").write_text("the user is writing\n")
    (s.repo / "staged").write_text("x")
    git(s.repo, "add", "staged")
    before = looks(s.repo)

    await delivered(s, "echo 2 > src/a.py; git commit -qam two; echo 3 > three")

    assert looks(s.repo) == before
    assert "README" not in git(s.repo, "diff", "--name-only", "main", "pilot/GH-46")


@ALL
async def test_the_agent_s_own_commits_are_kept(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)

    files = await delivered(s, "echo 1 > one; git add one; git -c user.name=Bot commit -qm 'my commit'; echo 2 > two")

    assert {"one", "two"} <= files.keys()
    assert git(s.repo, "log", "--format=%an: %s", "main..pilot/GH-46").splitlines() == [
        "pilot: Add the page",
        "Bot: my commit",
    ]


@ALL
async def test_names_and_kinds_of_files_survive(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    (s.repo / "kind").mkdir()
    (s.repo / "kind/file").write_text("x")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "kinds")
    names = ["with space", "ünïcödé/日本語", "new\nline", "-rf", '"quoted"', ":(glob)*", "a\\b", "tab\tbed", "\udcff"]
    ws = await s.workspaces.prepare(s.project, execution())
    for name in names:
        (ws.path / name).parent.mkdir(exist_ok=True)
        (ws.path / name).write_text("content")
    shell(ws.path, "ln -s ../nowhere link; echo '#!/bin/sh' > run; chmod +x run; rm -r kind; echo file > kind")
    shell(ws.path, "rm README; mkdir README; echo in > README/inside")

    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    files = files_of(s.repo, ws.branch)
    assert {name: files.get(name) for name in names} == dict.fromkeys(names, "content")
    assert files["kind"] == "file"
    assert files["README/inside"] == "in"
    assert "README" not in files
    modes = {line.split("\t")[1]: line.split()[0] for line in git(s.repo, "ls-tree", ws.branch).splitlines()}
    assert (modes["link"], modes["run"]) == ("120000", "100755")


@ALL
async def test_ignored_files_stay_out_unless_the_agent_committed_them(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    (s.repo / ".git/info").mkdir(exist_ok=True)
    (s.repo / ".git/info/exclude").write_text("*.mine\n")

    files = await delivered(
        s,
        "touch a.log b.mine; mkdir build; > build/x; echo z > keep.log; git add -f keep.log; git commit -qm w; > n",
    )

    assert files.keys() - {"README", ".gitignore", "src/a.py"} == {"keep.log", "n"}


@ALL
async def test_nothing_changed_leaves_no_branch(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    before = git(s.repo, "for-each-ref")
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "touch README x.log; git commit -q --allow-empty -m nothing")

    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    assert not snapshot.changed
    assert await s.workspaces.release(ws, keep=False)
    assert git(s.repo, "for-each-ref") == before
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert len(git(s.repo, "worktree", "list").splitlines()) == 1


@ALL
async def test_attempts_share_a_path_and_the_work_in_it(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    first = await s.workspaces.prepare(s.project, execution())
    shell(first.path, "echo 1 > one")
    await s.workspaces.preserve(first, await s.workspaces.snapshot(first, "x"))
    shell(first.path, "echo half > two")
    first.record.set_up = True
    first.save()
    first.close()

    second = await s.workspaces.prepare(s.project, execution(attempt=2, fence=2))

    assert (second.path, second.branch, second.base_sha) == (first.path, first.branch, first.base_sha)
    assert not second.fresh
    assert (second.path / "two").read_text() == "half\n"
    snapshot = await s.workspaces.snapshot(second, "x")
    await s.workspaces.preserve(second, snapshot)
    assert {"one", "two"} <= files_of(s.repo, second.branch).keys()


@APART
async def test_a_vanished_workspace_is_made_from_what_was_preserved(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    first = await s.workspaces.prepare(s.project, execution())
    shell(first.path, "echo 1 > one")
    await s.workspaces.preserve(first, await s.workspaces.snapshot(first, "x"))
    shell(first.home, "rm -rf api index")
    first.close()
    git(s.repo, "commit", "--allow-empty", "-qm", "main goes on")

    second = await s.workspaces.prepare(s.project, execution(attempt=2))

    assert second.path == first.path
    assert (second.path / "one").read_text() == "1\n"
    assert second.base_sha == first.base_sha
    shell(second.path, "echo 2 > two")
    await s.workspaces.preserve(second, await s.workspaces.snapshot(second, "y"))
    assert {"one", "two"} <= files_of(s.repo, "pilot/GH-46").keys()


@APART
async def test_unfinished_work_comes_back_as_it_was_not_committed(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one; git add one; git commit -qm one; echo half > two; echo b > src/a.py")

    wip = await s.workspaces.keep_wip(ws)

    assert wip is not None
    assert git(s.repo, "rev-parse", "refs/pilot/wip/7") == wip
    assert git(s.repo, "branch", "--list", "pilot/*", "--format=%(refname)") == (
        "" if workspace == "clone" else "refs/heads/pilot/GH-46"
    )
    assert shell(ws.path, "git status --short") == " M src/a.py\n?? two\n"
    ws.close()
    shell(ws.home, "rm -rf api index")
    ws = await s.workspaces.prepare(s.project, execution(attempt=2))
    assert shell(ws.path, "git log --format=%s; git status --short | tr -d ' ' | sort").splitlines() == [
        "one", "first", "Atwo", "Msrc/a.py",
    ]  # fmt: skip
    snapshot = await s.workspaces.snapshot(ws, "done")
    await s.workspaces.preserve(ws, snapshot)
    assert git(s.repo, "log", "--format=%s", "main..pilot/GH-46").splitlines() == ["done", "one"]
    assert git(s.repo, "for-each-ref", "refs/pilot") == ""


async def test_kept_work_is_found_without_the_state_directory(tmp_path: Path) -> None:
    s = site(tmp_path)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo half > two")
    await s.workspaces.keep_wip(ws)
    ws.close()
    s.state.rename(tmp_path / "lost")

    ws = await s.workspaces.prepare(s.project, execution(attempt=2, base_sha=ws.base_sha, branch=ws.branch))

    assert (ws.path / "two").exists()


@ALL
async def test_an_end_that_was_not_written_down_is_found_again(tmp_path: Path, workspace: str) -> None:
    """The node died between giving the workspace up and finishing: the next attempt must not begin anew."""
    s = site(tmp_path, workspace=workspace)
    outcome = await s.run("echo 1 > one", execution=execution())
    assert outcome.delivered
    assert not list((s.state / "workspaces").iterdir())

    outcome = await s.run("true", execution=again(execution(), s.notebook))

    assert outcome.delivered
    assert outcome.head_sha == git(s.repo, "rev-parse", "pilot/GH-46")


@ALL
async def test_set_up_files_are_no_work(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "mkdir -p 'ven v/lib' && echo x > 'ven v/lib/[a]' && echo y > '#env!' && echo z > 'a\nwork'")

    made = await s.workspaces.set_up(ws)

    assert set(made) == {"ven v/", "#env!", "a\nwork"}
    shell(ws.path, "echo w > work")
    if workspace == "clone":
        assert shell(ws.path, "git status --short") == "?? work\n"
    snapshot = await s.workspaces.snapshot(ws, "x")
    assert snapshot.files == ("work",)
    await s.workspaces.preserve(ws, snapshot)
    assert (ws.path / "ven v/lib/[a]").exists()


@ALL
async def test_what_a_gate_changed_is_put_back(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo w > work; mkdir build; echo kept > build/cache")
    snapshot = await s.workspaces.snapshot(ws, "x")
    shell(ws.path, "rm README; echo z > src/a.py; mkdir cov; echo c > cov/rage; rm work")
    if workspace != "in_place":
        shell(ws.path, "mkdir README; touch README/x")

    changed = await s.workspaces.restore(ws)

    assert {"README", "src/a.py", "work"} <= set(changed)
    assert (ws.path / "README").read_text() == "hello\n"
    assert (ws.path / "src/a.py").read_text() == "a = 1\n"
    assert (ws.path / "build/cache").exists()
    assert (ws.path / "cov").exists() == (workspace == "in_place"), "a new file in the checkout may be the user's"
    if workspace != "in_place":
        assert await s.workspaces.restore(ws) == ()
        assert (await s.workspaces.snapshot(ws, "x")).tree == snapshot.tree


@APART
@pytest.mark.parametrize(
    "script",
    [
        "echo late > late",
        "git init -q inner; echo x > inner/x",
        "echo 1 > c; git add c; git commit -qm late",
        "rm README",
    ],
)
async def test_a_workspace_with_work_that_is_nowhere_else_stays(tmp_path: Path, workspace: str, script: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo w > work")
    await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
    shell(ws.path, script)

    assert not await s.workspaces.release(ws, keep=False)

    assert ws.path.exists()


@APART
async def test_a_workspace_whose_work_was_not_preserved_stays(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo w > work")
    await s.workspaces.snapshot(ws, "x")

    assert not await s.workspaces.release(ws, keep=False)
    assert ws.path.exists()


@APART
async def test_a_workspace_goes_with_all_that_belongs_to_it(tmp_path: Path, workspace: str) -> None:
    s = site(tmp_path, workspace=workspace)
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo w > work; mkdir -p build/a/b; touch build/a/b/c; chmod -R a-w build")
    await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))

    assert await s.workspaces.release(ws, keep=False)

    assert list((s.state / "workspaces").iterdir()) == []
    assert git(s.repo, "worktree", "list").count("\n") == 0
    assert not (s.repo / ".git/worktrees").exists()
    assert git(s.repo, "rev-parse", "pilot/GH-46")


async def test_another_run_in_the_same_workspace_has_to_wait(tmp_path: Path) -> None:
    s = site(tmp_path)
    first = await s.workspaces.prepare(s.project, execution())

    with pytest.raises(WorkspaceError, match="still at work") as raised:
        await s.workspaces.prepare(s.project, execution(fence=2))
    assert raised.value.failure is FailureClass.INFRA

    with pytest.raises(WorkspaceError, match="still at work"):
        await s.runner().release_workspace(execution(), keep=False)
    first.close()
    (await s.workspaces.prepare(s.project, execution(fence=3))).close()
    assert await s.runner().release_workspace(execution(), keep=False)


async def test_stores_that_share_a_state_directory_don_t_share_workspaces(tmp_path: Path) -> None:
    s = site(tmp_path)
    one = await s.workspaces.prepare(s.project, execution())
    shell(one.path, "echo 1 > one")
    await s.workspaces.snapshot(one, "x")
    other = s.workspaces
    other.store_id = "fedcba987654"

    two = await other.prepare(s.project, execution())

    assert two.path != one.path
    assert not (two.path / "one").exists()


@pytest.mark.parametrize("kind", ["bare", "linked", "sub-folder", "detached", "sha256", "shallow", "packed"])
async def test_repositories_of_every_kind(tmp_path: Path, kind: str) -> None:
    repo = repository(tmp_path / "origin")
    git(repo, "tag", "-a", "-m", "one", "v1")
    place = top = tmp_path / "api"
    match kind:
        case "bare":
            git(tmp_path, "clone", "-q", "--bare", str(repo), str(place))
        case "linked":
            git(repo, "worktree", "add", "-q", "-b", "side", str(place))
            top = repo
        case "sub-folder":
            repo.rename(top)
            place = top / "src"
        case "detached":
            repo.rename(top)
            git(top, "checkout", "-q", "--detach")
        case "sha256":
            place.mkdir()
            git(place, "init", "-q", "-b", "main", "--object-format=sha256")
            (place / "README").write_text("hello\n")
            git(place, "add", "-A")
            git(place, "commit", "-qm", "first")
        case "shallow":
            git(repo, "commit", "-q", "--allow-empty", "-m", "second")
            git(tmp_path, "clone", "-q", "--depth=1", f"file://{repo}", str(place))
        case "packed":
            repo.rename(top)
            git(top, "gc", "-q")
    s = site(tmp_path, path=place)

    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one; git add one; git commit -qm one; echo 2 > two; git log -1; git status")
    snapshot = await s.workspaces.snapshot(ws, "x")
    await s.workspaces.preserve(ws, snapshot)

    assert {"README", "one", "two"} <= files_of(top, "pilot/GH-46").keys()
    assert git(top, "fsck", "--connectivity-only") == ""
    assert await s.workspaces.release(ws, keep=False)


@pytest.mark.parametrize(
    ("prepare", "failure", "words"),
    [
        (lambda place: None, FailureClass.INFRA, "does not exist"),
        (lambda place: place.mkdir(), FailureClass.INFRA, "is no git repository"),
        (lambda place: (place.mkdir(), git(place, "init", "-q")), FailureClass.CONFLICT, "no commit to start from"),
    ],
)
async def test_places_that_can_t_be_worked_in(
    tmp_path: Path, prepare: object, failure: FailureClass, words: str
) -> None:
    place = tmp_path / "api"
    assert callable(prepare)
    prepare(place)
    s = site(tmp_path, path=place)

    with pytest.raises(WorkspaceError, match=words) as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is failure


async def test_a_disk_s_own_errors_are_infra(tmp_path: Path) -> None:
    s = site(tmp_path)
    s.state.write_text("a file where the state directory belongs")

    with pytest.raises(WorkspaceError) as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is FailureClass.INFRA


async def test_a_clone_has_branches_and_tags_to_look_at(tmp_path: Path) -> None:
    s = site(tmp_path)
    git(s.repo, "tag", "-a", "-m", "one", "v1.0")
    git(s.repo, "branch", "other")

    ws = await s.workspaces.prepare(s.project, execution())

    assert shell(ws.path, "git describe; git diff origin/other; git log --oneline main..HEAD; git remote") == "v1.0\n"
    assert shell(ws.path, "git fsck 2>&1; git config user.name") == "pilot\n"
