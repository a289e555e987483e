"""Gates judge exactly the tree that is delivered; what they say is kept where the reason stands."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.config.schema import GateSettings
from pilot.domain.agent import OutputKind
from pilot.domain.outcome import FailureClass, GateResult
from pilot.runner.gates import Gates, judge
from pilot.runner.record import Recorder
from pilot.runner.shell import TAIL, Tail
from tests.core.cell import cell
from tests.core.worksite import ENVIRON, Notebook, execution, files_of, git, site, until


async def run(where: Path, *gates: dict[str, Any], changed: Sequence[str] = ()) -> tuple[list[GateResult], Notebook]:
    """Run gates in a directory."""
    notebook = Notebook()

    async def restore() -> Sequence[str]:
        return changed

    async with Recorder(notebook, execution()) as recorder:
        wanted = [GateSettings.model_validate({"name": f"g{n}", **gate}) for n, gate in enumerate(gates)]
        env = {"PATH": ENVIRON["PATH"], "ONLY": "this"}
        results = await Gates(wanted, where, env, "m", restore).run("tree0", recorder)
    return list(results), notebook


async def test_all_run_in_order_and_say_how_it_went(tmp_path: Path) -> None:
    results, notebook = await run(
        tmp_path,
        {"run": "echo one; echo two >&2; exit 3", "kind": "lint"},
        {"run": 'test -z "$SECRET" && env | grep -c ONLY=this'},
        {"run": "exit 1", "required": False},
    )

    assert [(r.name, r.exit_code, r.passed, r.tree) for r in results] == [
        ("g0", 3, False, "tree0"), ("g1", 0, True, "tree0"), ("g2", 1, False, "tree0"),
    ]  # fmt: skip
    assert set(results[0].tail.split()) == {"one", "two"}
    said = notebook.text(OutputKind.PILOT)
    assert "gate g0: echo one" in said
    assert "gate g0: red (exit code 3)" in said
    assert "gate g1: green" in said
    assert "one\n" in notebook.text(OutputKind.STDOUT)
    assert "two\n" in notebook.text(OutputKind.STDERR)


async def test_who_misses_something_in_the_sandbox_is_told_of_it(tmp_path: Path) -> None:
    c = await cell(tmp_path)

    async def restore() -> Sequence[str]:
        return ()

    commands = ["cat ~/.npmrc", "no-such-tool", "echo 1 == 2; false", "no-such-tool || true"]
    async with Recorder(notebook := Notebook(), execution()) as recorder:
        wanted = [GateSettings.model_validate({"name": f"g{n}", "run": run}) for n, run in enumerate(commands)]
        results = await Gates(wanted, c.path, c.env, "m", restore, c.sandbox).run("tree0", recorder)
    assert ["executor.sandbox_paths" in result.tail for result in results] == [True, True, False, False]
    assert notebook.text(OutputKind.PILOT).count("executor.sandbox_paths") == 2
    outside, _ = await run(tmp_path, {"run": "no-such-tool"})
    assert "sandbox" not in outside[0].tail


@pytest.mark.parametrize(("kind", "failure"), [("lint", "lint"), ("test", "test"), ("build", "build")])
async def test_a_red_gate_has_the_class_of_its_kind(tmp_path: Path, kind: str, failure: str) -> None:
    results, _ = await run(tmp_path, {"run": "true"}, {"run": "echo why; false", "kind": kind}, {"run": "false"})

    red = judge(results)

    assert red is not None
    assert (red.failure, red.detail, red.excerpt) == (FailureClass(failure), "gate g1 is red (exit code 1)", "why\n")


async def test_an_optional_gate_stands_in_nobody_s_way(tmp_path: Path) -> None:
    results, _ = await run(tmp_path, {"run": "false", "required": False}, {"run": "true"})
    assert judge(results) is None
    assert judge([]) is None


async def test_a_gate_that_takes_too_long_is_red_and_gone(tmp_path: Path) -> None:
    results, _ = await run(tmp_path, {"run": f"echo $$ > {tmp_path}/pid; setsid sleep 60 & sleep 60", "timeout": 0.5})

    assert (results[0].timed_out, results[0].passed, results[0].exit_code) == (True, False, None)
    red = judge(results)
    assert red is not None
    assert "timed out" in red.detail
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_cancelled_nothing_of_a_gate_is_left(tmp_path: Path) -> None:
    task = asyncio.ensure_future(run(tmp_path, {"run": f"echo $$ > {tmp_path}/pid; sleep 60"}))
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_a_gate_that_can_t_be_started_is_red(tmp_path: Path) -> None:
    results, _ = await run(tmp_path / "gone", {"run": "true"})
    assert (results[0].exit_code, results[0].passed) == (None, False)
    assert "could not be started" in results[0].tail


async def test_what_a_gate_changed_is_said(tmp_path: Path) -> None:
    results, notebook = await run(tmp_path, {"run": "seq 10000"}, changed=["a.py", "b\x1b[2J.py"])

    assert results[0].tail.endswith("they were restored: a.py, b.py")
    assert len(results[0].tail) <= TAIL
    assert "restored: a.py" in notebook.text(OutputKind.PILOT)


async def test_the_tree_that_was_judged_is_the_tree_that_is_delivered(tmp_path: Path) -> None:
    """A formatter as a gate, and one that sees what the first one did."""
    gates = (
        {"name": "format", "run": "echo formatted > new; echo formatted > src/a.py; touch report.xml"},
        {"name": "look", "run": "cat new src/a.py; test ! -e report.xml"},
    )
    s = site(tmp_path, gates=gates)

    outcome = await s.run("echo agent > new", execution=execution())

    assert outcome.delivered
    assert outcome.gates[1].tail == "agent\na = 1\n"
    assert "restored: new, src/a.py" in outcome.gates[0].tail
    files = files_of(s.repo, "pilot/GH-46")
    assert (files["new"], files["src/a.py"]) == ("agent", "a = 1")
    assert "report.xml" not in files
    assert {gate.tree for gate in outcome.gates} == {git(s.repo, "rev-parse", "pilot/GH-46^{tree}")}


def test_the_reason_is_kept_with_the_end() -> None:
    tail = Tail()
    tail.feed(b"start\n" + b"noise\n" * 3000 + b"E   AssertionError: it is 7\n")
    tail.feed(b"noise\n" * 60_000 + b"1 failed in 3 s\n")

    text = tail.text()

    assert "AssertionError: it is 7" in text
    assert text.endswith("1 failed in 3 s\n")
    assert "start" not in text
    assert len(text.encode()) <= TAIL


@given(st.lists(st.binary(max_size=3000), max_size=30), st.integers(64, 4000))
def test_a_tail_is_bounded_whatever_comes(pieces: list[bytes], limit: int) -> None:
    tail = Tail(limit)
    for piece in pieces:
        tail.feed(piece)

    text = tail.text()

    assert len(text.encode()) <= limit
    assert "\x1b" not in text
    whole = b"".join(pieces)
    if len(whole) <= limit and whole.isascii() and whole.decode().isprintable():
        assert text == whole.decode()


def test_a_reason_that_comes_in_two_pieces_is_one() -> None:
    tail = Tail(200)
    tail.feed(b"the err")
    tail.feed(b"or is here\n" + b"x" * 10 + b"\n")
    tail.feed(b"noise\n" * 100)
    assert "the error is here" in tail.text()
