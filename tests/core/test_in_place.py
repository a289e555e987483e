"""`in_place`: in the user's own checkout, with nothing of theirs overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from pilot.domain.errors import WorkspaceError
from pilot.domain.outcome import Ending, FailureClass
from tests.core.worksite import again, execution, files_of, git, repository, shell, site


@pytest.mark.parametrize(
    ("mess", "words"),
    [
        ("echo x > 'new file'", "new file"),
        ("echo x > README", "README"),
        ("echo x > README; git add README", "README"),
        ("rm README", "README"),
        ("git -c user.name=a -c user.email=a@b merge -q --no-ff --no-commit side", "in the middle"),
    ],
)
async def test_a_checkout_that_is_not_clean_is_refused(tmp_path: Path, mess: str, words: str) -> None:
    s = site(tmp_path, workspace="in_place")
    shell(s.repo, "git switch -qc side; git commit -q --allow-empty -m side; git switch -q main")
    shell(s.repo, mess)
    before = git(s.repo, "status", "--porcelain"), git(s.repo, "for-each-ref")

    with pytest.raises(WorkspaceError, match=words) as raised:
        await s.workspaces.prepare(s.project, execution())

    assert raised.value.failure is FailureClass.CONFLICT
    assert (git(s.repo, "status", "--porcelain"), git(s.repo, "for-each-ref")) == before
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"


@pytest.mark.parametrize("detached", [False, True])
async def test_afterwards_the_checkout_stands_where_it_stood(tmp_path: Path, detached: bool) -> None:
    s = site(tmp_path, workspace="in_place")
    (s.repo / "x.log").write_text("ignored, and kept")
    if detached:
        git(s.repo, "checkout", "-q", "--detach")
    before = git(s.repo, "rev-parse", "--symbolic-full-name", "HEAD"), git(s.repo, "rev-parse", "HEAD")

    outcome = await s.run("git branch --show-current; echo 1 > one; rm README", execution=execution())

    assert outcome.text.strip() == "pilot/GH-46"
    assert outcome.delivered
    assert (git(s.repo, "rev-parse", "--symbolic-full-name", "HEAD"), git(s.repo, "rev-parse", "HEAD")) == before
    assert git(s.repo, "status", "--porcelain") == ""
    assert (s.repo / "x.log").exists()
    assert not (s.repo / "one").exists()
    assert files_of(s.repo, "pilot/GH-46").keys() == {".gitignore", "one", "src/a.py"}


async def test_a_question_frees_the_checkout_and_the_work_comes_back(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place")
    ask = 'echo half > two; echo b > src/a.py; printf \'```pilot-question\\n{"question": "which?"}\\n```\\n\''

    outcome = await s.run(ask, execution=execution())

    assert outcome.ending is Ending.QUESTION
    assert git(s.repo, "status", "--porcelain") == ""
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(s.repo, "branch", "--list", "pilot/*") == ""
    assert "two" in files_of(s.repo, "refs/pilot/wip/7")

    outcome = await s.run("cat two; echo 3 > three", execution=again(execution(), s.notebook, feedback="this one"))

    assert outcome.delivered
    assert outcome.text == "half\n"
    assert git(s.repo, "log", "--format=%s", "main..pilot/GH-46") == "Add the page"
    assert {"two", "three"} <= files_of(s.repo, "pilot/GH-46").keys()
    assert git(s.repo, "for-each-ref", "refs/pilot") == ""


async def test_what_the_user_did_meanwhile_is_not_touched(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place")
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo 1 > one")
    await s.workspaces.preserve(ws, await s.workspaces.snapshot(ws, "x"))
    shell(ws.path, "echo 'of the user' > README")

    with pytest.raises(WorkspaceError, match="was changed after the attempt"):
        await s.workspaces.release(ws, keep=False)

    assert (s.repo / "README").read_text() == "of the user\n"
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/pilot/GH-46"


async def test_an_attempt_goes_on_in_the_mess_that_a_kill_left(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place")
    ws = await s.workspaces.prepare(s.project, execution())
    shell(ws.path, "echo half > two; touch .git/index.lock")
    ws.close()

    outcome = await s.run("cat two", execution=execution(attempt=2, branch=ws.branch, base_sha=ws.base_sha))

    assert outcome.delivered
    assert outcome.text == "half\n"
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"


async def test_an_agent_that_changes_the_branch_is_followed(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place")

    outcome = await s.run("git switch -qc mine; echo 1 > one; git add one; git commit -qm one", execution=execution())

    assert outcome.delivered
    assert "one" in files_of(s.repo, "pilot/GH-46")
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"


async def test_filters_of_the_user_count_in_their_checkout(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place", path=repository(tmp_path / "api", {"README": "x\n"}))
    git(s.repo, "config", "filter.up.clean", "tr a-z A-Z")
    git(s.repo, "config", "filter.up.smudge", "tr A-Z a-z")
    (s.repo / ".gitattributes").write_text("*.up filter=up\n")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "attributes")

    await s.run("echo quiet > a.up", execution=execution())

    assert files_of(s.repo, "pilot/GH-46")["a.up"] == "QUIET"


async def test_a_bare_repository_has_no_checkout(tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", str(repository(tmp_path / "origin")), str(tmp_path / "api"))
    s = site(tmp_path, workspace="in_place", path=tmp_path / "api")

    with pytest.raises(WorkspaceError, match="no checkout"):
        await s.workspaces.prepare(s.project, execution())


async def test_a_question_after_a_red_gate_frees_the_checkout_too(tmp_path: Path) -> None:
    """The branch has the first attempt's commit; what the second one left is kept aside and comes back."""
    s = site(tmp_path, workspace="in_place", gate_repairs=1, gates=({"name": "t", "run": "test -e good"},))
    ask = 'echo half > two; printf \'```pilot-question\\n{"question": "which?"}\\n```\\n\''

    outcome = await s.run("echo 1 > one", ask, execution=execution())

    assert outcome.ending is Ending.QUESTION
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(s.repo, "status", "--porcelain") == ""
    assert files_of(s.repo, "pilot/GH-46").keys() == {".gitignore", "README", "one", "src/a.py"}

    outcome = await s.run("cat two; > good", execution=again(execution(), s.notebook))
    assert outcome.delivered
    assert outcome.text == "half\n"
    assert {"one", "two", "good"} <= files_of(s.repo, "pilot/GH-46").keys()


@pytest.mark.parametrize("how", ["merge side", "cherry-pick side", "revert --no-edit HEAD~1", "rebase side"])
async def test_half_a_merge_of_the_agent_does_not_stay_in_the_checkout(tmp_path: Path, how: str) -> None:
    s = site(tmp_path, workspace="in_place")
    shell(s.repo, "git switch -qc side; echo side > README; git commit -qam side; git switch -q main")
    shell(s.repo, "echo main > README; git commit -qam main; echo more > README; git commit -qam more")

    outcome = await s.run(f"git {how} >/dev/null 2>&1; git status | grep -c 'both modified'", execution=execution())

    assert outcome.text == "1\n"
    assert outcome.delivered
    assert "<<<<<<<" in files_of(s.repo, "pilot/GH-46")["README"]
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(s.repo, "status", "--porcelain") == ""
    assert (await s.run("echo x > next", execution=execution(id=8, task_id="GH-47"))).delivered


async def test_a_sparse_checkout_stays_sparse(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place")
    shell(s.repo, "git sparse-checkout set --no-cone '/*' '!src'")
    assert not (s.repo / "src").exists()

    outcome = await s.run("echo 1 > one; git add one; git commit -qm one; echo 2 > two", execution=execution())

    assert outcome.delivered
    assert files_of(s.repo, "pilot/GH-46").keys() == {".gitignore", "README", "one", "src/a.py", "two"}
    assert not (s.repo / "src").exists()
    assert git(s.repo, "status", "--porcelain") == ""


async def test_a_set_up_that_fails_gives_the_checkout_back(tmp_path: Path) -> None:
    s = site(tmp_path, workspace="in_place", setup=("echo x > made; exit 1",))

    outcome = await s.run("true", execution=execution())

    assert outcome.failure is FailureClass.INFRA
    assert git(s.repo, "symbolic-ref", "HEAD") == "refs/heads/main"
    assert git(s.repo, "status", "--porcelain") == ""
    assert files_of(s.repo, "refs/pilot/wip/7")["made"] == "x"
