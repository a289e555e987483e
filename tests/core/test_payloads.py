"""Commands, patches and tests that pilot does itself: real git, real processes, the agents' sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from pilot.backends import build
from pilot.backends.payload import PayloadBackend
from pilot.cli.main import main
from pilot.config.executor import ExecutorSettings
from pilot.domain.agent import OutputKind
from pilot.domain.errors import ConfigError
from pilot.domain.execution import Status
from pilot.domain.outcome import Ending, FailureClass, Usage
from pilot.domain.pointer import MACHINE
from pilot.domain.policy import RULES, Parking, settle
from pilot.runner.content import sha1_of
from pilot.runner.proctree import PROC, marker_of
from tests.core.pointed import alone, does, folder, prompted, runner, script, sha1, step
from tests.core.worksite import STORE, Site, files_of, git, looks, repository, site, until

PATCH = """\
--- a/src/a.py
+++ b/src/a.py
@@ -1 +1 @@
-a = 1
+a = 2
"""
NEW = """\
diff --git a/{0} b/{0}
new file mode 100644
--- /dev/null
+++ b/{0}
@@ -0,0 +1 @@
+planted
"""
LINK = """\
diff --git a/out b/out
new file mode 120000
--- /dev/null
+++ b/out
@@ -0,0 +1 @@
+{}
\\ No newline at end of file
"""


def place(tmp_path: Path, files: dict[str, str] | None = None, **settings: object) -> Site:
    """A project that allows everything, with these files besides."""
    repo = repository(tmp_path / "api", {"README": "hello\n", "src/a.py": "a = 1\n", **(files or {})})
    return site(tmp_path, path=repo, allow_commands=["*"], **settings)


def said(s: Site) -> str:
    return s.notebook.text()


def living(id: int) -> list[int]:
    """The processes of an execution's attempts."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if (marker_of(pid) or "").startswith(f"{STORE}:{id}:")]


async def test_a_command_s_files_are_its_change(tmp_path: Path) -> None:
    s = place(tmp_path, {"make.py": "open('made', 'w').write('x')\nprint('made it')\n"})
    before = looks(s.repo)

    outcome = await does(s, "@cmd:python3 make.py")

    assert (outcome.ending, outcome.branch, outcome.unspent) == (Ending.DONE, "pilot/p-step", True)
    assert files_of(s.repo, "pilot/p-step")["made"] == "x"
    assert looks(s.repo) == before
    assert "made it\n" in s.notebook.text(OutputKind.STDOUT)
    assert "runs python3 make.py" in s.notebook.text(OutputKind.PILOT)
    assert s.notebook.phases == ["workspace", "payload", "commit", "preserve", "finish"]
    assert outcome.usage == Usage()


async def test_its_words_are_its_own_and_no_shell_s(tmp_path: Path) -> None:
    s = place(tmp_path, {"show.py": "import os, sys\nprint(sys.argv[1:], os.getcwd(), sorted(os.environ))\n"})

    outcome = await does(s, "@cmd:python3 show.py '$(touch x)' '*' 'a b' '; rm'")

    assert outcome.ending is Ending.NO_CHANGE
    words = s.notebook.text(OutputKind.STDOUT)
    assert "['$(touch x)', '*', 'a b', '; rm']" in words
    assert f"{s.state}/workspaces/7-p-step/api" in words
    assert "SECRET" not in words
    assert "'HOME', 'LANG'" in words


@pytest.mark.parametrize(
    ("payload", "kind", "failure"),
    [
        ("@cmd:python3 exit.py", "code", FailureClass.AGENT),
        ("@cmd:python3 exit.py", "deploy", FailureClass.AGENT),
        ("@cmd:python3 exit.py", "test", FailureClass.TEST),
        ("@cmd:python3 exit.py", "build", FailureClass.BUILD),
        ("@file:exit.py#test", "code", FailureClass.TEST),
    ],
)
async def test_an_exit_code_is_a_failure_of_its_kind(
    tmp_path: Path, payload: str, kind: str, failure: FailureClass
) -> None:
    top = folder(tmp_path, {"exit.py": "print('AssertionError: 1 != 2'); raise SystemExit(5)\n"})

    outcome, _ = await alone(top, payload, kind=kind)

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, failure)
    assert outcome.detail == "python3 exited with 5"
    assert "AssertionError: 1 != 2" in outcome.excerpt
    assert settle(step(payload, kind=kind), outcome, now=1, jitter=0.0).to is Status.FAILED, "not once more"


@pytest.mark.parametrize("confined", [False, True])
async def test_what_is_killed_has_run_out_of_memory(tmp_path: Path, confined: bool) -> None:
    s = place(tmp_path, {"die.py": "import os; os.kill(os.getpid(), 9)\n"})
    outcome = await does(s, "@cmd:python3 die.py", confined=confined)
    # in a sandbox that is an exit code, and only the machine's own count tells one from the other
    assert outcome.failure is (FailureClass.AGENT if confined else FailureClass.OOM)


@pytest.mark.parametrize("confined", [False, True])
@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program", "./README"])
async def test_a_program_that_is_not_there_parks_nobody(tmp_path: Path, program: str, confined: bool) -> None:
    s = place(tmp_path)
    s.set(allow_commands=["* *", program])

    outcome = await does(s, f"@cmd:{program}", confined=confined)

    assert (outcome.ending, outcome.failure) == (Ending.FAILED, FailureClass.CONFLICT)
    assert "can't be started" in outcome.detail
    settled = settle(step(f"@cmd:{program}"), outcome, now=1, jitter=0.0)
    assert (settled.to, settled.park) == (Status.NEEDS_HUMAN, None)


def test_no_class_of_a_machine_s_failure_parks() -> None:
    """An outcome of it must never keep another project's command from running."""
    classes = ("CONFLICT", "REFUSAL", "TEST", "BUILD", "AGENT", "OOM", "TIMEOUT", "INFRA")
    assert all(RULES[FailureClass[name]].parks is Parking.NEVER for name in classes)


ARGV_ATTACKS = [
    "env make",
    "env -i sh -c id",
    "sh -c 'make test'",
    "make -f /etc/passwd test",
    "git -c alias.x='!id' x",
    "git --exec-path=. status",
    "find . -exec id '{}' +",
    "./make test",
    "/usr/bin/make test",
    "make",
    "make test extra",
    "MAKE test",
    "xargs make test",
    "nice make test",
]


@pytest.mark.parametrize("line", ARGV_ATTACKS)
async def test_what_is_not_allowed_does_not_run(tmp_path: Path, line: str) -> None:
    """Also when it was accepted once: the settings, as they are now, decide."""
    top = folder(tmp_path, {"Makefile": "test:\n\ttouch ran\n", "make": "#!/bin/sh\ntouch ran\n"})
    before = sha1_of(top)

    outcome, said = await alone(top, f"@cmd:{line}", allow=["make test"])

    assert (outcome.ending, outcome.failure, said) == (Ending.FAILED, FailureClass.REFUSAL, "")
    assert sha1_of(top) == before
    assert settle(step(f"@cmd:{line}"), outcome, now=1, jitter=0.0).to is Status.NEEDS_HUMAN


async def test_nothing_is_allowed_unless_it_is_said(tmp_path: Path) -> None:
    outcome, _ = await alone(tmp_path, "@cmd:true", allow=[])
    assert outcome.failure is FailureClass.REFUSAL
    assert "allow_commands" in outcome.detail


async def test_a_program_of_the_repository_is_in_the_repository(tmp_path: Path) -> None:
    s = place(tmp_path)
    script(s.repo / "tools/go", "#!/bin/sh\necho gone\n")
    (s.repo / "tools/out").symlink_to("/bin/echo")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "tools")

    assert (await does(s, "@cmd:tools/go")).ending is Ending.NO_CHANGE
    outcome = await does(s, "@cmd:tools/out x", id=8)

    assert outcome.failure is FailureClass.CONFLICT
    assert "does not stay inside" in outcome.detail


async def test_a_relative_folder_of_path_is_not_searched(tmp_path: Path) -> None:
    s = place(tmp_path)
    script(s.repo / "bin/mytool", "#!/bin/sh\necho planted\n")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "tool")
    s.executor = ExecutorSettings.model_validate({"environment": {"set": {"PATH": f"bin:.:{os.environ['PATH']}"}}})

    outcome = await does(s, "@cmd:mytool")

    assert outcome.failure is FailureClass.CONFLICT
    assert "planted" not in said(s)


async def test_in_the_sandbox_an_allowed_command_sees_what_agents_see(tmp_path: Path) -> None:
    s = place(tmp_path)
    (tmp_path / "secret").write_text("s3cret")
    (s.state).mkdir(exist_ok=True)
    (s.state / "token").write_text("t0ken")
    reads = " ".join(f"'{path}'" for path in (tmp_path / "secret", s.state / "token", s.repo / "README"))

    outcome = await does(s, f"@cmd:cat {reads}", confined=True)

    assert outcome.failure is FailureClass.AGENT
    assert not any(word in said(s) for word in ("s3cret", "t0ken", "hello"))
    assert s.notebook.facts["sandbox"] == "bubblewrap"
    assert (await does(s, "@cmd:cat README", confined=True, id=8)).ending is Ending.NO_CHANGE


@pytest.mark.parametrize("confined", [False, True])
async def test_a_cancelled_command_leaves_nothing(tmp_path: Path, confined: bool) -> None:
    hidden = "import os, subprocess, sys, time\nsubprocess.Popen(['sleep', '99'], start_new_session=True)\n"
    s = place(tmp_path, {"stay.py": f"{hidden}open('half', 'w')\nprint('started', flush=True)\ntime.sleep(99)\n"})
    id = 71 + confined  # other tests run beside
    task = asyncio.ensure_future(does(s, "@cmd:python3 stay.py", confined=confined, id=id))
    await until(lambda: "started" in said(s) or task.done(), "it starts")
    assert living(id)

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert living(id) == []
    assert "half" in files_of(s.repo, f"refs/pilot/wip/{id}"), "what it had made is kept"


async def test_its_time_is_the_attempt_s(tmp_path: Path) -> None:
    s = place(tmp_path)
    s.executor = ExecutorSettings.model_validate({"stall_timeout": "1s"})
    outcome = await does(s, "@cmd:sleep 60", options={"timeout": 1500}, id=73)
    assert (outcome.failure, outcome.detail) == (FailureClass.TIMEOUT, "not done within 1.5 s")
    assert living(73) == []


@pytest.mark.parametrize("confined", [False, True])
async def test_a_patch_becomes_a_change_that_is_checked(tmp_path: Path, confined: bool) -> None:
    s = place(tmp_path, {"p.diff": PATCH}, gates=({"name": "t", "run": "grep -q 2 src/a.py"},))

    outcome = await does(s, "@file:p.diff#apply", confined=confined)

    assert (outcome.ending, [gate.passed for gate in outcome.gates]) == (Ending.DONE, [True])
    assert files_of(s.repo, "pilot/p-step")["src/a.py"] == "a = 2"


async def test_a_red_gate_is_not_repaired_by_the_same_patch(tmp_path: Path) -> None:
    s = place(tmp_path, {"p.diff": PATCH}, gates=({"name": "t", "run": "grep 3 src/a.py"},), gate_repairs=2)

    outcome = await does(s, "@file:p.diff#apply")

    assert outcome.failure is FailureClass.TEST
    assert s.notebook.phases == ["workspace", "payload", "commit", "preserve", "gates", "finish"]
    assert settle(step("@file:p.diff#apply"), outcome, now=1, jitter=0.0).to is Status.FAILED


async def test_a_patch_that_is_there_already_is_no_failure(tmp_path: Path) -> None:
    s = place(tmp_path, {"p.diff": PATCH.replace("a = 1", "a = 0").replace("a = 2", "a = 1")})
    outcome = await does(s, "@file:p.diff#apply")
    assert (outcome.ending, outcome.text) == (Ending.NO_CHANGE, "p.diff is applied already")


@pytest.mark.parametrize(
    "patch",
    [
        PATCH.replace("a = 1", "a = 9"),
        PATCH.replace("@@ -1 +1 @@", "@@ -1,2 +1,2 @@").replace("-a = 1", " b\n-a = 1"),  # no fuzz
        "no patch at all\n",
        "",
        PATCH.replace("src/a.py", "src/none.py"),
        PATCH + NEW.format("x").replace("new file", "deleted file"),  # half of it would apply
    ],
)
async def test_a_patch_that_does_not_fit_changes_nothing(tmp_path: Path, patch: str) -> None:
    top = folder(tmp_path, {"README": "hello\n", "src/a.py": "a = 1\n", "p.diff": patch})
    before = sha1_of(top)

    outcome, _ = await alone(top, "@file:p.diff#apply")

    assert outcome.failure is FailureClass.CONFLICT
    assert outcome.detail.startswith("p.diff does not apply: ")
    assert sha1_of(top) == before


def beyond(outside: Path) -> dict[str, str]:
    """Patches that write somewhere else."""
    return {
        "up": NEW.format("../planted"),
        "up and down": NEW.format("src/../../planted"),
        "absolute": NEW.format("x").replace("b/x", f"/{outside}/planted"),
        "git": NEW.format(".git/hooks/post-commit"),
        "GIT": NEW.format(".GIT/config"),
        "its own link": LINK.format(outside) + NEW.format("out/planted"),
        "a link that is there": NEW.format("there/planted"),
        "rename out": "diff --git a/README b/../planted\nrename from README\nrename to ../planted\n",
        "copy out": f"diff --git a/README b/x\ncopy from README\ncopy to {outside}/planted\n",
    }


@pytest.mark.parametrize("attack", beyond(Path()))
async def test_a_patch_writes_nowhere_else(tmp_path: Path, attack: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    files = {"README": "hello\n", "src/a.py": "a = 1\n", ".git/config": "", "p.diff": beyond(outside)[attack]}
    top = folder(tmp_path / "work", files)
    (top / "there").symlink_to(outside)

    outcome, _ = await alone(top, "@file:p.diff#apply")

    assert outcome.failure is FailureClass.CONFLICT, outcome
    assert "does not apply" in outcome.detail
    assert [path.name for path in top.parent.rglob("*") if path.name in ("planted", "post-commit", "out")] == []
    assert (top / ".git/config").read_text() == ""


async def test_a_patch_runs_nothing_that_a_repository_configures(tmp_path: Path) -> None:
    """Not even in the user's own checkout, whose filters would count otherwise."""
    s = place(tmp_path, {"p.diff": PATCH, ".gitattributes": "* filter=evil\n"})
    ran = tmp_path / "ran"
    for key in ("filter.evil.smudge", "filter.evil.clean", "core.fsmonitor"):
        git(s.repo, "config", key, f"touch {ran}; cat")

    outcome, _ = await alone(s.repo, "@file:p.diff#apply")

    assert outcome.ending is Ending.DONE
    assert (s.repo / "src/a.py").read_text() == "a = 2\n"
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "text", "mode", "says"),
    [
        ("check", "#!/bin/sh\necho as itself $0\n", 0o755, "as itself"),
        ("check.py", "print('by', 'name')\n", 0o644, "by name"),
        ("check.py", "print('by', 'name')\n", 0o755, "by name"),
        ("check.sh", "echo by name\n", 0o644, "by name"),
        ("check.x", "#!/usr/bin/env python3\nprint('by its', 'line')\n", 0o644, "by its line"),
        ("check.py", "#!/bin/sh\necho the line goes first\n", 0o644, "the line goes first"),
        ("check", "echo as a shell does\n", 0o755, "as a shell does"),
    ],
)
async def test_a_test_runs_as_it_says(tmp_path: Path, name: str, text: str, mode: int, says: str) -> None:
    script(tmp_path / "tests" / name, text, mode)

    outcome, said = await alone(tmp_path, f"@file:tests/{name}#test")

    assert outcome.ending is Ending.DONE, outcome
    assert says in said


async def test_a_test_that_nobody_can_run_says_what_is_lacking(tmp_path: Path) -> None:
    outcome, _ = await alone(folder(tmp_path, {"README": "hello\n"}), "@file:README#test")
    assert outcome.failure is FailureClass.CONFLICT
    assert "make it executable" in outcome.detail


@pytest.mark.parametrize(("payload", "kind"), [("@file:t.py#test", "code"), ("@cmd:python3 t.py", "test")])
async def test_what_a_test_leaves_behind_is_no_change(tmp_path: Path, payload: str, kind: str) -> None:
    s = place(tmp_path, {"t.py": "open('report', 'w')\nopen('README', 'w')\n"}, gates=({"name": "g", "run": "false"},))

    outcome = await does(s, payload, kind=kind)

    assert (outcome.ending, outcome.branch) == (Ending.NO_CHANGE, None)
    assert "put back: README, report" in s.notebook.text(OutputKind.PILOT)


@pytest.mark.parametrize("payload", ["@file:p.diff#apply", "@file:p.diff#test", "@file:p.diff"])
async def test_content_has_to_have_the_hash_that_a_step_names(tmp_path: Path, payload: str) -> None:
    s = place(tmp_path, {"p.diff": PATCH})
    wanted, found = "0" * 40, sha1(PATCH.encode())

    outcome = await (does if "#" in payload else prompted)(s, f"{payload}#sha1={wanted}")

    assert outcome.failure is FailureClass.CONFLICT
    assert wanted in outcome.detail
    assert found in outcome.detail
    assert "agent" not in s.notebook.text(OutputKind.STDOUT)


async def test_content_with_that_hash_is_taken(tmp_path: Path) -> None:
    s = place(tmp_path, {"p.diff": PATCH})
    assert (await does(s, f"@file:p.diff#apply#sha1={sha1(PATCH.encode())}")).ending is Ending.DONE


@pytest.mark.parametrize("payload", ["@file:out#apply", "@file:out#test", "@file:out"])
async def test_a_link_that_leads_out_is_no_file_of_the_repository(tmp_path: Path, payload: str) -> None:
    s = place(tmp_path)
    (tmp_path / "secret").write_text("s3cret")
    (s.repo / "out").symlink_to(tmp_path / "secret")
    git(s.repo, "add", "-A")
    git(s.repo, "commit", "-qm", "a link")

    outcome = await (does if "#" in payload else prompted)(s, payload)

    assert outcome.failure is FailureClass.CONFLICT
    assert "does not stay inside the repository" in outcome.detail
    assert "s3cret" not in said(s)


async def test_a_file_is_what_an_agent_is_told(tmp_path: Path) -> None:
    s = place(tmp_path, {"specs/f.md": "Build the feature.\n"})

    outcome = await prompted(s, "@file:specs/f.md", body="no_refactor: change nothing else.")

    assert outcome.text.index("no_refactor") < outcome.text.index("Build the feature.")
    assert "Please add it." not in outcome.text


async def test_words_are_what_an_agent_is_told_once(tmp_path: Path) -> None:
    s = place(tmp_path)
    for body in ("", "Build the thing.", "Policy."):
        outcome = await prompted(s, "@doc:LLM_TASK Build the thing.", body=body, id=len(body) + 1)
        assert outcome.text.count("Build the thing.") == 1
        assert body in outcome.text


async def test_a_prompt_is_the_same_for_all_attempts(tmp_path: Path) -> None:
    """The first one's agent may have changed the file, and what is hashed is what was planned."""
    s = place(tmp_path, {"f.md": "Build it.\n"}, gate_repairs=0, gates=({"name": "t", "run": "false"},))
    payload = f"@file:f.md#sha1={sha1(b'Build it.' + chr(10).encode())}"
    first = await prompted(s, payload, "echo else > f.md")
    assert first.failure is FailureClass.TEST

    again = await prompted(
        s, payload, "cat $1 f.md", attempt=2, fence=2, branch="pilot/p-step", head_sha=first.head_sha
    )

    assert "Build it." in again.text
    assert "else" in again.text


async def test_a_payload_that_can_t_be_read_is_for_a_person(tmp_path: Path) -> None:
    s = place(tmp_path)
    outcome = await does(s, "@file:../x#apply")
    assert outcome.failure is FailureClass.CONFLICT
    assert "payload" in outcome.detail
    assert s.notebook.phases == []


async def test_what_is_no_pointer_is_nothing_for_the_machine(tmp_path: Path) -> None:
    for payload in (None, {"n": 1}, "@doc:LLM_TASK Build it."):
        s = place(tmp_path / str(type(payload)))
        one = replace(step("@cmd:true"), payload=payload)
        outcome = await runner(s)(one)
        assert outcome.failure is FailureClass.REFUSAL


async def test_a_sandbox_that_is_not_to_be_had_parks_nobody(tmp_path: Path) -> None:
    s = place(tmp_path)
    own = runner(s)

    def confine(*_: object) -> None:
        raise ConfigError(["executor.sandbox: there is no bubblewrap here"])

    own._confine = confine
    assert (await own(step("@cmd:true"))).failure is FailureClass.CONFLICT


async def test_what_a_test_prints_is_no_question(tmp_path: Path) -> None:
    block = '```pilot-question\\n{"question": "Which?"}\\n```\\n'
    s = place(tmp_path, {"t.sh": f"printf '{block}'\n"})
    assert (await does(s, "@file:t.sh#test")).ending is Ending.NO_CHANGE
    assert "pilot-question" in said(s)


def test_nobody_can_choose_the_machine_by_a_name_of_his_own() -> None:
    own = ExecutorSettings.model_validate(
        {"profiles": {MACHINE: {"type": "command", "command": {"argv": ["sh", "-c", "id"]}}}}
    )
    assert isinstance(build(MACHINE, own), PayloadBackend)


def test_a_hash_is_what_other_programs_say(tmp_path: Path) -> None:
    for name, data in {"b": b"b", "a/z": b"1\n", "a.b": b"", "a/é": b"\xff"}.items():
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(data)
    (tmp_path / "d/.git").mkdir()
    (tmp_path / "d/.git/config").write_text("not counted")
    found = "find . -path ./.git -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha1sum | sha1sum"
    done = subprocess.run(["/bin/sh", "-c", found], cwd=tmp_path / "d", capture_output=True, text=True, check=True)

    assert sha1_of(tmp_path / "d") == done.stdout.split()[0]
    assert sha1_of(tmp_path / "d/a/z") == sha1(b"1\n")


def test_a_link_counts_as_the_path_it_holds(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/l").symlink_to("/etc/passwd")
    before = sha1_of(tmp_path / "d")
    (tmp_path / "d/l").unlink()
    (tmp_path / "d/l").symlink_to("/etc/hosts")
    assert sha1_of(tmp_path / "d") != before


def test_pilot_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f").write_text("x\n")
    os.mkfifo(tmp_path / "pipe")
    assert main(["hash", str(tmp_path / "f")]) == 0
    assert capsys.readouterr().out == sha1(b"x\n") + "\n"
    assert main(["hash", str(tmp_path / "f"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": str(tmp_path / "f"), "sha1": sha1(b"x\n")}
    assert main(["hash", str(tmp_path / "none")]) == 4
    assert main(["hash", str(tmp_path / "pipe")]) == 2
    assert main(["hash", str(tmp_path)]) == 2, "there is a pipe in it"
