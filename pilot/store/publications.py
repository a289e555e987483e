"""The pull request that a finished change is to become: owed from the moment that the end is stored."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from pilot.domain.delivery import EffectKind
from pilot.domain.execution import Status
from pilot.domain.ports import Finish
from pilot.domain.text import clean
from pilot.store.database import Rows, Statement, Step
from pilot.store.records import dumps

# A live one of the same branch is taken over: its next push holds this work, too.
_PULL = """
    INSERT INTO pulls (project_id, execution_id, task_id, branch, repo, base, draft, head_sha, state, created_at)
    VALUES (:project, :execution, :task, :branch, :repo, :base, :draft, :head, 'owed', :now)
    ON CONFLICT (project_id, branch) WHERE state IN ('owed', 'open') DO UPDATE SET
      execution_id = excluded.execution_id, task_id = excluded.task_id, head_sha = excluded.head_sha, error = NULL,
      repo = CASE WHEN pulls.state = 'owed' THEN excluded.repo ELSE pulls.repo END,
      base = CASE WHEN pulls.state = 'owed' THEN excluded.base ELSE pulls.base END,
      draft = CASE WHEN pulls.state = 'owed' THEN excluded.draft ELSE pulls.draft END,
      used_up = CASE WHEN pulls.head_sha = excluded.head_sha THEN pulls.used_up ELSE 0 END,
      red = CASE WHEN pulls.head_sha = excluded.head_sha THEN pulls.red ELSE '[]' END,
      checks = CASE WHEN pulls.head_sha = excluded.head_sha OR pulls.state = 'owed' THEN pulls.checks
        ELSE 'pending' END
    RETURNING id"""
_JOIN = "INSERT INTO pull_executions (pull_id, execution_id) VALUES (:pull, :execution) ON CONFLICT DO NOTHING"
# Only where the node keeps its work is the branch. A container has another host's name after each start.
_EFFECT = """
    INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, host, payload, available_at, created_at)
    VALUES (:lane, :execution, :project, :kind, :key, :fence,
      (SELECT coalesce(nullif(place, ''), host) FROM nodes WHERE id = :node), :payload, :now, :now)
    ON CONFLICT (key) DO NOTHING"""


def lane_of(project: int, task_id: str) -> str:
    """In which what is owed for a task is delivered, in order."""
    return f"task:{project}:{task_id}"


def owe(finishes: Sequence[Finish], now: int) -> Generator[Step, Rows, bool]:
    """Write down what is to be published of these ends, which count; whether anything is."""
    found = False
    for finish in finishes:
        outcome, execution = finish.outcome, finish.execution
        wanted, branch = outcome.publication, outcome.branch or execution.branch
        head = outcome.head_sha or execution.head_sha
        if finish.settlement.to is not Status.COMPLETED or wanted is None or not branch or not head:
            continue
        found = True
        facts = {
            "repo": clean(wanted.repo), "base": clean(wanted.base), "draft": int(wanted.draft),
            "branch": clean(branch), "head": clean(head),
        }  # fmt: skip
        who = {"project": execution.project_id, "execution": execution.id, "now": now}
        ((pull,),) = yield Statement(_PULL, {**facts, **who, "task": execution.task_id})
        yield Statement(_JOIN, {"pull": pull, "execution": execution.id})
        payload = {
            "pull": pull, "repo": facts["repo"], "base": facts["base"], "draft": wanted.draft,
            "branch": facts["branch"], "head_sha": facts["head"],
        }  # fmt: skip
        yield Statement(
            _EFFECT,
            {
                **who, "lane": lane_of(execution.project_id, execution.task_id), "kind": EffectKind.PUBLISH,
                "key": f"publish:{execution.id}:{execution.fence}", "fence": execution.fence,
                "node": execution.node, "payload": dumps(payload),
            },
        )  # fmt: skip
    return found
