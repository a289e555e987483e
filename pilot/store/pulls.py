"""Our pull requests: what became of them, and what that means for the executions whose work they hold."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from pilot.domain.delivery import EffectKind, Pull, PullState
from pilot.domain.errors import NotFound
from pilot.domain.events import EventType
from pilot.domain.execution import Checks, Enqueued
from pilot.domain.task import Task
from pilot.domain.text import clean
from pilot.store.database import Database, Notify, Rows, Statement, Step
from pilot.store.dependents import Dependents
from pilot.store.enqueue import Enqueue, check
from pilot.store.people import Cancel, CancelRequest
from pilot.store.records import LIVE_PULLS, OPEN_STATUSES, OWED, dumps, event, events_statement, ids, ids_of, short

_COLUMNS = {field.name: field.name for field in fields(Pull)} | {"execution": "execution_id"}
PULL_SELECT = ", ".join(f"pulls.{column}" for column in _COLUMNS.values())
PULL_WIDTH = len(_COLUMNS)


def to_pull(row: Sequence[Any]) -> Pull:
    """One row of `PULL_SELECT`."""
    values = dict(zip(_COLUMNS, row, strict=True))
    values |= {
        "draft": bool(values["draft"]),
        "state": PullState(values["state"]),
        "red": tuple(json.loads(values["red"])),
        "seen": json.loads(values["seen"]),
    }
    return Pull(**values)


def repair_keys(pull: int) -> tuple[str, str]:
    """How the idempotency keys of a pull request's repairs begin: after red checks, and after a review."""
    return f"ci:{pull}:", f"review:{pull}:"


@dataclass(frozen=True, slots=True)
class _Opened:
    pull: int
    number: int
    url: str
    head_sha: str


@dataclass(frozen=True, slots=True)
class _Seen:
    pull: int
    state: PullState | None
    checks: str | None
    red: tuple[str, ...]
    seen: Mapping[str, Any] | None
    stuck: str | None
    sha: str | None


@dataclass(frozen=True, slots=True)
class _Repair:
    pull: int
    task: Task
    limit: int


class SqlPulls:
    """Implements `outside.Pulls`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        dependents = Dependents(database.dialect)
        self._enqueue = Enqueue(database.dialect, dependents)
        self._cancel = Cancel(database.dialect, dependents)
        self._among = ids_of(database.dialect)

    async def live(self, projects: Collection[int]) -> list[Pull]:
        """See `Pulls.live`."""
        sql = f"SELECT {PULL_SELECT} FROM pulls WHERE state IN {LIVE_PULLS} AND project_id IN {self._among} ORDER BY id"
        return [to_pull(row) for row in await self._database.read(sql, {"ids": ids(projects)})]

    async def of(self, execution: int) -> Pull | None:
        """See `Pulls.of`."""
        return await self._one(
            "id = (SELECT max(pull_id) FROM pull_executions WHERE execution_id = :execution)", execution=execution
        )

    async def by_number(self, project_id: int, number: int) -> Pull | None:
        """See `Pulls.by_number`."""
        return await self._one(
            "project_id = :project AND number = :number ORDER BY id DESC LIMIT 1", project=project_id, number=number
        )

    async def _one(self, which: str, **params: int) -> Pull | None:
        rows = await self._database.read(f"SELECT {PULL_SELECT} FROM pulls WHERE {which}", params)
        return to_pull(rows[0]) if rows else None

    async def pushed(self, pull: int, sha: str) -> None:
        """See `Pulls.pushed`."""
        await self._database.write(self._pushed, (pull, clean(sha)))

    async def opened(self, pull: int, *, number: int, url: str, head_sha: str) -> bool:
        """See `Pulls.opened`. False: it has ended, and nothing was written."""
        return await self._database.write(self._opened, _Opened(pull, number, clean(url), clean(head_sha)))

    async def saw(
        self,
        pull: int,
        *,
        state: PullState | None = None,
        checks: str | None = None,
        red: Sequence[str] = (),
        seen: Mapping[str, Any] | None = None,
        stuck: str | None = None,
        sha: str | None = None,
    ) -> bool:
        """See `Pulls.saw`."""
        told = None if checks is None else Checks(checks).value
        names = tuple(clean(name) for name in red)
        return await self._database.write(self._saw, _Seen(pull, state, told, names, seen, stuck, sha))

    async def repair(self, pull: int, task: Task, *, limit: int) -> Enqueued | None:
        """See `Pulls.repair`. None as well for one that has ended."""
        check(task)
        return await self._database.write(self._repair, _Repair(pull, task, limit))

    def _pushed(self, pushes: Sequence[tuple[int, str]]) -> Generator[Step, Rows, list[None]]:
        for pull, sha in pushes:
            yield Statement(
                f"UPDATE pulls SET pushed_sha = :sha WHERE id = :pull AND state IN {LIVE_PULLS}",
                {"pull": pull, "sha": sha},
            )
        return [None] * len(pushes)

    def _opened(self, opened: Sequence[_Opened]) -> Generator[Step, Rows, list[bool]]:
        now = self._database.clock()
        answers = []
        for one in opened:
            rows = yield Statement(
                "UPDATE pulls SET state = 'open', number = :number, url = :url, pushed_sha = :head, error = NULL, "
                f"opened_at = coalesce(opened_at, :now) WHERE id = :pull AND state IN {LIVE_PULLS} "
                "RETURNING project_id, execution_id, head_sha",
                {"pull": one.pull, "number": one.number, "url": one.url, "head": one.head_sha, "now": now},
            )
            answers.append(bool(rows))
            if not rows:
                continue
            ((project, last, head),) = rows
            held = yield Statement(
                # Not the last one's, when an earlier one's push was on its way as that took the pull request over.
                "UPDATE executions SET delivery = 'pr_open', pr_url = :url WHERE id IN "
                "(SELECT execution_id FROM pull_executions WHERE pull_id = :pull) AND "
                "(delivery <> 'pr_open' OR pr_url IS DISTINCT FROM :url) AND NOT (id = :last AND :other = 1 AND EXISTS "
                "(SELECT 1 FROM pull_executions m JOIN executions x ON x.id = m.execution_id "
                " WHERE m.pull_id = :pull AND x.id <> :last AND x.head_sha = :head)) RETURNING id",
                {
                    "pull": one.pull, "url": one.url, "last": last, "head": one.head_sha,
                    "other": int(head != one.head_sha),
                },
            )  # fmt: skip
            facts = {"number": one.number, "url": one.url}
            yield from self._tell(now, project, EventType.PULL_OPENED, sorted(id for (id,) in held), **facts)
        return answers

    def _saw(self, looks: Sequence[_Seen]) -> Generator[Step, Rows, list[bool | Exception]]:
        now = self._database.clock()
        answers: list[bool | Exception] = []
        for look in looks:
            rows = yield Statement(f"SELECT {PULL_SELECT} FROM pulls WHERE id = :pull", {"pull": look.pull})
            if not rows:
                answers.append(NotFound(f"no pull request {look.pull} in this store"))
                continue
            pull, changed = to_pull(rows[0]), False
            if pull.ended_at is None:
                changed = yield from self._look(look, pull, now)
            answers.append(changed)
        return answers

    def _look(self, look: _Seen, pull: Pull, now: int) -> Generator[Step, Rows, bool]:
        changed = False
        if look.seen is not None:
            yield Statement(
                "UPDATE pulls SET seen = :seen WHERE id = :pull", {"pull": pull.id, "seen": dumps(dict(look.seen))}
            )
        of_ours = look.sha is None or look.sha in (pull.head_sha, pull.pushed_sha)
        stands = look.checks == pull.checks and (look.red == pull.red or look.checks != Checks.FAILED)
        if look.checks is not None and of_ours and not stands:
            changed = True
            facts = {"checks": look.checks, "red": list(look.red)}
            yield Statement(
                "UPDATE pulls SET checks = :checks, red = :red WHERE id = :pull",
                {"pull": pull.id, "checks": look.checks, "red": dumps(look.red)},
            )
            yield Statement(
                "UPDATE executions SET checks = :checks WHERE id = :execution",
                {"checks": look.checks, "execution": pull.execution},
            )
            yield from self._tell(now, pull.project_id, EventType.PULL_CHECKS, [pull.execution], **facts)
        if look.state in (PullState.MERGED, PullState.CLOSED):
            changed = True
            yield from self._end(pull, look.state, look.sha, now)
        elif look.stuck is not None:
            changed = (yield from self._give_up(pull, now, why=short(look.stuck))) or changed
        return changed

    def _end(self, pull: Pull, state: PullState, sha: str | None, now: int) -> Generator[Step, Rows, None]:
        yield Statement(
            "UPDATE pulls SET state = :state, ended_at = :now WHERE id = :pull",
            {"pull": pull.id, "state": state, "now": now},
        )
        if sha not in (None, pull.head_sha) and pull.pushed_sha != pull.head_sha:
            yield from self._part(pull, state, sha, now)
        rows = yield Statement(
            "UPDATE executions SET delivery = :state, pr_url = coalesce(pr_url, :url) WHERE id IN "
            "(SELECT execution_id FROM pull_executions WHERE pull_id = :pull) RETURNING id, workspace",
            {"pull": pull.id, "state": state, "url": pull.url},
        )
        type = EventType.PULL_MERGED if state is PullState.MERGED else EventType.PULL_CLOSED
        held = sorted(id for id, _ in rows)
        yield from self._tell(now, pull.project_id, type, held, number=pull.number, url=pull.url)
        if state is PullState.CLOSED:
            yield from self._cancel_repairs(pull, now)
        for id, workspace in sorted(rows):
            if workspace is not None:
                yield Statement(
                    # On the host that has it: where its change was to be pushed from.
                    "INSERT INTO outbox (lane, execution_id, project_id, kind, key, fence, host, payload, "
                    "available_at, created_at) SELECT :key, e.id, e.project_id, :kind, :key, e.fence, "
                    "(SELECT o.host FROM outbox o WHERE o.execution_id = e.id AND o.kind = 'publish' "
                    " ORDER BY o.id DESC LIMIT 1), :payload, :now, :now FROM executions e WHERE e.id = :execution "
                    "ON CONFLICT (key) DO NOTHING",
                    {
                        "key": f"clean:{pull.id}:{id}", "kind": EffectKind.CLEAN, "execution": id, "now": now,
                        "payload": dumps({"pull": pull.id, "workspace": workspace, "state": state}),
                    },
                )  # fmt: skip

    def _cancel_repairs(self, pull: Pull, now: int) -> Generator[Step, Rows, None]:
        """A person said no: nobody wants it repaired, and no pull request to come of that."""
        rows = yield Statement(
            "SELECT id, idempotency_key FROM executions WHERE project_id = :project AND task_id = :task "
            f"AND status IN {OPEN_STATUSES}",
            {"project": pull.project_id, "task": pull.task_id},
        )
        repairs = [id for id, key in rows if (key or "").startswith(repair_keys(pull.id))]
        if repairs:
            why = f"pull request {pull.number}, which it repairs, was closed"
            yield from self._cancel([CancelRequest(id, "github", why) for id in repairs], now)

    def _part(self, pull: Pull, state: PullState, sha: str | None, now: int) -> Generator[Step, Rows, None]:
        """It ended before the last work came to it: that gets one of its own; not, if it repaired what was closed."""
        facts = {"pull": pull.id, "last": pull.execution, "sha": sha, "pushed": pull.pushed_sha}
        rows = yield Statement(
            "SELECT m.execution_id, m.execution_id > coalesce((SELECT max(x.id) FROM pull_executions n "
            "  JOIN executions x ON x.id = n.execution_id AND x.head_sha IN (:sha, :pushed) WHERE n.pull_id = :pull), "
            "  :last - 1), coalesce(e.idempotency_key, '') FROM pull_executions m "
            "JOIN executions e ON e.id = m.execution_id WHERE m.pull_id = :pull",
            facts,
        )
        came = [id for id, late, _ in rows if not late]
        key = next((key for id, late, key in rows if late and id == pull.execution), None)
        if not came or key is None or (state is PullState.CLOSED and key.startswith(repair_keys(pull.id))):
            return
        ((new,),) = yield Statement(
            "INSERT INTO pulls (project_id, execution_id, task_id, branch, repo, base, draft, head_sha, created_at, "
            "error, state, ended_at) SELECT project_id, execution_id, task_id, branch, repo, base, draft, head_sha, "
            ":now, error, CASE WHEN w.waits THEN 'owed' ELSE 'failed' END, CASE WHEN NOT w.waits THEN :now END "
            "FROM pulls CROSS JOIN (SELECT EXISTS (SELECT 1 FROM outbox WHERE execution_id = :last "
            "  AND kind = 'publish' AND delivered_at IS NULL) AS waits) w WHERE id = :pull RETURNING id",
            {"pull": pull.id, "last": pull.execution, "now": now},
        )
        yield Statement(
            f"UPDATE pull_executions SET pull_id = :new WHERE pull_id = :pull AND execution_id NOT IN {self._among}",
            {"new": new, "pull": pull.id, "ids": ids(came)},
        )
        yield Statement(
            "UPDATE pulls SET execution_id = :execution, head_sha = :sha, error = NULL WHERE id = :pull",
            {"execution": max(came), "sha": sha, "pull": pull.id},
        )

    def _repair(self, repairs: Sequence[_Repair]) -> Generator[Step, Rows, list[Enqueued | Exception | None]]:
        answers: list[Enqueued | Exception | None] = []
        for one in repairs:
            answers.append((yield from self._one_repair(one, self._database.clock())))
        return answers

    def _one_repair(self, one: _Repair, now: int) -> Generator[Step, Rows, Enqueued | Exception | None]:
        rows = yield Statement(f"SELECT {PULL_SELECT} FROM pulls WHERE id = :pull", {"pull": one.pull})
        if not rows:
            return NotFound(f"no pull request {one.pull} in this store")
        pull = to_pull(rows[0])
        standing = yield from self._enqueue.standing(one.task)
        if standing is not None:
            return standing
        if pull.ended_at is not None:
            return None
        if pull.repairs >= one.limit:
            yield from self._give_up(pull, now, why=f"{pull.repairs} of {one.limit} repairs did not help")
            return None
        (answer,) = yield from self._enqueue([one.task], now)
        if isinstance(answer, Enqueued) and not answer.duplicate:
            yield Statement("UPDATE pulls SET repairs = repairs + 1, used_up = 0 WHERE id = :pull", {"pull": pull.id})
            facts: dict[str, object] = {
                "number": pull.number,
                "execution": answer.id,
                "why": ", ".join(pull.red) or one.task.title,
            }
            yield from self._tell(now, pull.project_id, EventType.PULL_REPAIRED, [pull.execution], **facts)
        return answer

    def _give_up(self, pull: Pull, now: int, **why: str | None) -> Generator[Step, Rows, bool]:
        rows = yield Statement(
            "UPDATE pulls SET used_up = 1 WHERE id = :pull AND used_up = 0 RETURNING id", {"pull": pull.id}
        )
        if rows:  # told once
            facts = {"number": pull.number, "repairs": pull.repairs, **why}
            yield from self._tell(now, pull.project_id, EventType.PULL_GIVEN_UP, [pull.execution], **facts)
        return bool(rows)

    def _tell(
        self, now: int, project: int, type: EventType, executions: Sequence[int], **facts: object
    ) -> Generator[Step, Rows, None]:
        if executions:
            told = [event(type, id, project, **facts) for id in executions]
            yield events_statement(self._database.dialect, now, told)
        yield OWED
        yield Notify({str(project)})  # what it held up may start
