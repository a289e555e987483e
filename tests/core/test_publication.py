"""What becomes a pull request, and what a person has to see before: with real git, and agents that try."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pilot.config.executor import ExecutorSettings
from pilot.domain.agent import OutputKind
from pilot.domain.execution import Execution
from pilot.domain.outcome import Ending, Outcome, Publication
from tests.core.worksite import ENVIRON, Site, again, execution, git, site

TOKEN = "ghp_" + "a1B2" * 9
OWN = "own-secret-0123456789"


def github(root: Path, **settings: Any) -> Site:
    """A project whose changes become pull requests."""
    s = site(root, github="acme/api", publish="pull_request", **settings)
    s.github = True
    s.secrets = (OWN,)
    return s


async def answered(s: Site, before: Execution, outcome: Outcome, words: str, *scripts: str) -> Outcome:
    """The attempt after a person's answer."""
    return await s.run(*scripts, execution=answer(s, before, outcome, words))


def answer(s: Site, before: Execution, outcome: Outcome, words: str) -> Execution:
    return again(before, s.notebook, session_id=outcome.session_id or before.session_id, feedback=words)


def workspaces(s: Site) -> list[str]:
    return sorted(path.name for path in (s.state / "workspaces").glob("*"))


async def test_a_change_becomes_a_pull_request_and_its_workspace_stays(tmp_path: Path) -> None:
    s = github(tmp_path, base="main", draft=False)
    outcome = await s.run("echo x > new; echo did it", execution=execution())

    assert outcome.ending is Ending.DONE
    assert outcome.publication == Publication(repo="acme/api", base="main", draft=False)
    assert workspaces(s) == ["7-gh-46"]
    assert "inspect" in s.notebook.phases

    assert await s.runner().release_workspace(execution(), keep=False)
    assert workspaces(s) == []
    assert await s.runner().release_workspace(execution(), keep=False)
    assert git(s.repo, "rev-parse", "pilot/GH-46") == outcome.head_sha


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"publish": "branch"}, {}),
        ({"publish": "none"}, {}),
        ({}, {"publish": "branch"}),
        ({}, {"branch": "feature"}),
        ({}, {"base": "pilot/other"}),
    ],
)
async def test_a_change_that_goes_nowhere_asks_nobody(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    s = github(tmp_path)
    git(s.repo, "branch", "pilot/other")
    s.set(**settings)
    outcome = await s.run("mkdir .husky; echo x > .husky/pre-commit", execution=execution(options=options))

    assert outcome.ending is Ending.DONE
    assert outcome.publication is None
    assert workspaces(s) == []


SENSITIVE = [
    ("mkdir -p .github/workflows; echo x > .github/workflows/a.yml", ".github/workflows/a.yml"),
    ("git rm -q .github/workflows/ci.yml", ".github/workflows/ci.yml"),
    ("chmod +x .github/workflows/ci.yml", ".github/workflows/ci.yml"),
    ("git mv src/a.py .github/workflows/b.yml", ".github/workflows/b.yml"),
    ("git mv .github/workflows/ci.yml gone.yml", ".github/workflows/ci.yml"),
    ("mkdir -p .GitHub/Workflows; echo x > .GitHub/Workflows/a.yml", ".GitHub/Workflows/a.yml"),
    ("echo evil >> flows/real.yml", "flows/real.yml"),
    ("mkdir tools; ln -s tools .claude; echo '{}' > tools/settings.json", "tools/settings.json"),
    ("ln -s /etc .claude", ".claude"),
    ("git rm -rq .github; ln -s src .github", ".github"),
    ("printf '*.py filter=x\\n' > .gitattributes", ".gitattributes"),
    ("mkdir d; printf '[attr]a filter=x\\n' > d/.gitattributes", "d/.gitattributes"),
    ("echo '[submodule \"x\"]' > .gitmodules", ".gitmodules"),
    ("git clone -q . vendored; git add vendored 2>&1; git commit -qm s", "vendored"),
    ("echo '* @me' > CODEOWNERS", "CODEOWNERS"),
    ("mkdir -p a/.husky; echo x > a/.husky/pre-push", "a/.husky/pre-push"),
    (f"echo 'key = \"{TOKEN}\"' > conf.py", "conf.py: a GitHub token"),
    (f"printf '\\000\\001{TOKEN}' > image.bin", "image.bin: a GitHub token"),
    (f"printf %s {OWN} | base64 > b64", "b64: a configured secret"),
    (f"echo {TOKEN} > x; git add x; git commit -qm one; git rm -q x; echo y > y", "x: a GitHub token"),
    (f"echo y > y; git add y; git commit -qm 'with {TOKEN}'", "a GitHub token"),
    (f"echo y > {TOKEN}", "in its name"),
    (f"ln -s {TOKEN} link", "link: a GitHub token"),
]
# how the agent's work is read is the same in a worktree: one file, one text and one history are enough there
IN_A_WORKTREE = (0, 16, 19)


@pytest.mark.parametrize(
    ("mode", "attack", "named"),
    [("clone", *case) for case in SENSITIVE] + [("worktree", *SENSITIVE[number]) for number in IN_A_WORKTREE],
    ids=[*(f"clone-{number}" for number in range(len(SENSITIVE))), *(f"worktree-{n}" for n in IN_A_WORKTREE)],
)
async def test_what_is_sensitive_is_shown_to_a_person(tmp_path: Path, mode: str, attack: str, named: str) -> None:
    s = github(tmp_path, workspace=mode)
    put(s, {".github/workflows/ci.yml": "on: push\n", "flows/real.yml": "on: push\n"})
    (s.repo / ".github/workflows/linked.yml").symlink_to("../../flows/real.yml")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "ci")
    outcome = await s.run(f"set -e; {attack}", execution=execution())

    assert outcome.ending is Ending.QUESTION, outcome.detail
    assert outcome.question is not None
    assert named in outcome.question.text
    assert TOKEN not in str(outcome)
    assert outcome.question.options == ("publish",)
    assert outcome.publication is None
    assert git(s.repo, "rev-parse", "pilot/GH-46") == outcome.head_sha  # preserved first
    assert workspaces(s) == ["7-gh-46"]


def put(s: Site, files: dict[str, str]) -> None:
    for name, text in files.items():
        (s.repo / name).parent.mkdir(parents=True, exist_ok=True)
        (s.repo / name).write_text(text)


async def test_a_secret_that_was_there_before_is_no_news(tmp_path: Path) -> None:
    s = github(tmp_path)
    put(s, {"conf.py": f"key = '{TOKEN}'\n"})
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "a fixture")
    outcome = await s.run("echo more >> conf.py; git mv conf.py settings.py", execution=execution())

    assert outcome.ending is Ending.DONE


async def test_red_gates_come_before_questions(tmp_path: Path) -> None:
    s = github(tmp_path, gates=({"name": "test", "run": "false"},), gate_repairs=0)
    outcome = await s.run("mkdir .husky; echo x > .husky/pre-commit", execution=execution())

    assert outcome.ending is Ending.FAILED


async def test_leave_to_publish_runs_no_agent_and_the_gates_again(tmp_path: Path) -> None:
    s = github(tmp_path, gates=({"name": "test", "run": "true"},))
    first = execution()
    asked = await s.run("echo x > .mcp.json; echo added the server", execution=first)
    s.notebook.phases.clear()
    done = await answered(s, first, asked, "Publish", "echo never > ran")

    assert (done.ending, done.head_sha, done.tree) == (Ending.DONE, asked.head_sha, asked.tree)
    assert done.publication is not None
    assert done.text.strip() == "added the server"
    assert s.requests == []
    assert s.notebook.phases == ["workspace", "publish", "commit", "preserve", "gates", "finish"]
    assert [gate.tree for gate in done.gates] == [done.tree]


async def test_leave_is_for_one_tree(tmp_path: Path) -> None:
    """Somebody changes a file while the question is open, or a repair changes it after."""
    s = github(tmp_path)
    first = execution()
    asked = await s.run("echo x > .mcp.json", execution=first)
    (Path(s.notebook.facts["workspace"] or "") / ".mcp.json").write_text("something else\n")
    again_asked = await answered(s, first, asked, "publish", "echo never > ran")
    assert (again_asked.ending, s.requests) == (Ending.QUESTION, [])
    assert again_asked.tree != asked.tree

    s.set(gates=({"name": "test", "run": "test -e more"},))
    third = await answered(s, replace(first, attempt=2), again_asked, "publish", "touch more; echo y >> .mcp.json")
    assert third.ending is Ending.QUESTION  # the gate was red, the agent went on, and what it made nobody has seen
    assert len(s.requests) == 1
    assert s.requests[0].session_id == asked.session_id


async def test_any_other_answer_goes_to_the_agent_in_its_session(tmp_path: Path) -> None:
    s = github(tmp_path)
    first = execution()
    asked = await s.run("echo x > .mcp.json; echo y > page", execution=first)
    done = await answered(s, first, asked, "leave that file out", "rm .mcp.json")

    assert done.ending is Ending.DONE
    assert git(s.repo, "ls-tree", "-r", "--name-only", "pilot/GH-46").split("\n") == [
        ".gitignore",
        "README",
        "page",
        "src/a.py",
    ]
    (request,) = s.requests
    assert request.session_id == asked.session_id
    assert "Pilot asked a person" in request.prompt
    assert ".mcp.json" in request.prompt
    assert "leave that file out" in request.prompt


async def test_leave_that_answers_another_question_is_none(tmp_path: Path) -> None:
    """An agent that is told no asks something to which the answer is the same word."""
    s = github(tmp_path)
    first = execution()
    ask = 'printf \'```pilot-question\\n{"question": "Is it ready?", "options": ["publish", "wait"]}\\n```\\n\''
    asked = await s.run("echo x > .mcp.json", execution=first)
    trick = await answered(s, first, asked, "take that out", ask)
    assert trick.question is not None
    assert trick.question.text == "Is it ready?"

    last = await answered(s, replace(first, attempt=2), trick, "publish", "true")
    assert last.ending is Ending.QUESTION
    assert last.question is not None
    assert ".mcp.json" in last.question.text
    assert len(s.requests) == 1


async def test_leave_survives_an_attempt_that_was_cut_off(tmp_path: Path) -> None:
    s = github(tmp_path, gates=({"name": "test", "run": "true"},))
    first = execution()
    asked = await s.run("echo x > .mcp.json", execution=first)
    second = answer(s, first, asked, "publish")

    def killed(phase: str) -> None:
        if phase == "gates":
            raise KeyboardInterrupt

    s.notebook.on_phase = killed
    with pytest.raises(KeyboardInterrupt):
        await s.run("echo never > ran", execution=second)
    s.notebook.on_phase = lambda _: None
    done = await s.run("echo never > ran", execution=again(second, s.notebook))

    assert done.ending is Ending.DONE
    assert done.head_sha == asked.head_sha
    assert s.requests == []


async def test_leave_outlives_a_failure_that_is_not_the_works(tmp_path: Path) -> None:
    s = github(tmp_path, gates=({"name": "test", "run": "true"},))
    first = execution()
    asked = await s.run("echo x > .mcp.json", execution=first)

    def full(phase: str) -> None:
        if phase == "gates":
            raise OSError("no space left")

    s.notebook.on_phase = full
    second = answer(s, first, asked, "publish")
    failed = await s.run("echo never > ran", execution=second)
    assert failed.failure == "infra"
    s.notebook.on_phase = lambda _: None
    done = await s.run("echo never > ran", execution=again(second, s.notebook, feedback="OSError: no space left"))

    assert (done.ending, done.head_sha, s.requests) == (Ending.DONE, asked.head_sha, [])


async def test_a_red_gate_after_leave_is_the_agents_again(tmp_path: Path) -> None:
    s = github(tmp_path, gate_repairs=0)
    first = execution()
    asked = await s.run("echo x > .mcp.json", execution=first)
    s.set(gates=({"name": "test", "run": "test -e more"},))
    second = answer(s, first, asked, "publish")
    red = await s.run("echo never > ran", execution=second)
    assert (red.failure, s.requests) == ("test", [])

    last = await s.run("touch more", execution=again(second, s.notebook, feedback=red.excerpt or red.detail))
    assert len(s.requests) == 1
    assert last.ending is Ending.QUESTION


async def test_a_lost_workspace_asks_again(tmp_path: Path) -> None:
    s = github(tmp_path)
    first = execution()
    asked = await s.run("echo x > .mcp.json", execution=first)
    shutil.rmtree(s.state / "workspaces")
    second = replace(answer(s, first, asked, "publish"), head_sha=asked.head_sha, branch=asked.branch)
    outcome = await s.run("true", execution=second)

    assert outcome.ending is Ending.QUESTION
    assert outcome.tree == asked.tree


async def test_no_secret_reaches_journal_or_outcome(tmp_path: Path) -> None:
    s = github(tmp_path, gates=({"name": "test", "run": f"echo {OWN}; echo {TOKEN} >&2; false"},), gate_repairs=1)
    half = len(OWN) // 2
    say = f"printf %s {OWN[:half]}; sleep 0.4; echo {OWN[half:]}; echo {TOKEN} >&2; printf %s {TOKEN}"
    outcome = await s.run(f"{say}; echo x > new", f"echo {OWN} > other", execution=execution())

    everything = s.notebook.text() + str(outcome) + s.requests[-1].prompt
    assert outcome.ending is Ending.FAILED
    assert "[redacted]" in outcome.excerpt
    assert "[redacted]" in s.notebook.text(OutputKind.STDOUT)
    assert OWN not in everything
    assert TOKEN not in everything


async def test_no_secret_is_in_why_a_workspace_could_not_be_made(tmp_path: Path) -> None:
    s = github(tmp_path, setup=(f"echo {OWN}; false",))
    outcome = await s.run("true", execution=execution())

    assert outcome.failure == "infra"
    assert "[redacted]" in outcome.excerpt
    assert OWN not in str(outcome) + s.notebook.text()


async def test_a_handed_on_variable_with_a_secrets_name_is_one(tmp_path: Path) -> None:
    s = github(tmp_path)
    s.executor = ExecutorSettings.model_validate({"environment": {"pass": ["PATH", "SECRET"]}})
    await s.run("echo it is $SECRET", execution=execution())

    assert ENVIRON["SECRET"] not in s.notebook.text()
    assert "it is [redacted]" in s.notebook.text()
