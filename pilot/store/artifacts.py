"""Files that came with a result, kept once by what is in them, as long as an execution has them."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from typing import Any

from pilot.domain.errors import NotFound, UsageError
from pilot.domain.ports import Finish
from pilot.domain.text import clean
from pilot.domain.work import Artifact
from pilot.store.database import Database, Dialect, Rows, Statement, Step
from pilot.store.records import Table, dumps, ids_of

MAX_ARTIFACTS = 64
"""With one result."""
MAX_SIZE = 1 << 20
"""Bytes of one."""

_NAMED = Table(id="bigint", artifacts="text")
_USES = Table(sha256="text", execution_id="bigint")
_HASHES = Table(sha256="text")
_LISTED = Table(name="text", sha256="text")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def check_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Raise `UsageError` for more than the store takes."""
    if len(artifacts) > MAX_ARTIFACTS:
        raise UsageError(
            f"a result has {MAX_ARTIFACTS} artifacts at most, not {len(artifacts)}; put several files into an archive"
        )
    for artifact in artifacts:
        if len(artifact.content) > MAX_SIZE:
            raise UsageError(
                f"artifact {clean(artifact.name)[:80]!r} has {len(artifact.content)} bytes, and one has {MAX_SIZE} at "
                "most; keep it elsewhere and give an artifact that says where"
            )


class Artifacts:
    """The parts of operations that keep them, and that forget those which nobody has any more."""

    def __init__(self, dialect: Dialect) -> None:
        self._name = f"""
            UPDATE executions SET artifacts = a.artifacts FROM {_NAMED.of(dialect, "a")} WHERE executions.id = a.id"""
        self._use = f"""
            INSERT INTO artifact_uses (sha256, execution_id)
            SELECT u.sha256, u.execution_id FROM {_USES.of(dialect, "u")} WHERE true ON CONFLICT DO NOTHING"""
        self._used = f"SELECT DISTINCT sha256 FROM artifact_uses WHERE execution_id IN {ids_of(dialect)}"
        self._forget = f"""
            DELETE FROM artifacts WHERE sha256 IN (SELECT h.sha256 FROM {_HASHES.of(dialect, "h")})
              AND NOT EXISTS (SELECT 1 FROM artifact_uses u WHERE u.sha256 = artifacts.sha256)"""

    def keep(self, finishes: Sequence[Finish], now: int) -> Generator[Step, Rows, None]:
        """What came with these results, which stand."""
        brought = [(finish.execution.id, _listed(finish.artifacts)) for finish in finishes if finish.artifacts]
        if not brought:
            return
        contents = {a["sha256"]: a for _, listed in brought for a in listed}
        yield Statement(
            "INSERT INTO artifacts (sha256, size, content, created_at) VALUES (:sha256, :size, :content, :now) "
            "ON CONFLICT DO NOTHING",
            many=[{**a, "now": now} for a in contents.values()],
        )
        uses = _USES.rows((a["sha256"], id) for id, listed in brought for a in listed)
        yield Statement(self._use, {"items": uses})
        shown = ("name", "sha256", "size")
        named = ((id, dumps([{key: a[key] for key in shown} for a in listed])) for id, listed in brought)
        yield Statement(self._name, {"items": _NAMED.rows(named)})

    def used_by(self, executions: str) -> Generator[Step, Rows, Rows]:
        """The hashes of what these (ids, bound) have; for `forget`, once they are gone."""
        return (yield Statement(self._used, {"ids": executions}))

    def forget(self, hashes: Rows) -> Generator[Step, Rows, None]:
        """Remove those of them that nobody has."""
        if hashes:
            yield Statement(self._forget, {"items": _HASHES.rows(hashes)})


def _listed(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    return [
        {"name": clean(a.name), "sha256": a.sha256, "size": len(a.content), "content": a.content} for a in artifacts
    ]


class SqlArtifacts:
    """Reads them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, sha256: str) -> bytes:
        """The content that has this hash (hex). Raises `NotFound`."""
        rows: Rows = []
        if _SHA256.fullmatch(sha256):
            rows = await self._database.read("SELECT content FROM artifacts WHERE sha256 = :hash", {"hash": sha256})
        if not rows:
            raise NotFound(f"no artifact {clean(sha256)[:80]}")
        return bytes(rows[0][0])

    async def of(self, execution: int) -> dict[str, bytes]:
        """The contents of what an execution has, by name; those of a result that it points to, too."""
        found = await self._database.read("SELECT artifacts FROM executions WHERE id = :id", {"id": execution})
        if not found:
            raise NotFound(f"no execution {execution}")
        listed = await self._database.read(
            f"SELECT n.name, a.content FROM {_LISTED.of(self._database.dialect, 'n')} "
            "JOIN artifacts a ON a.sha256 = n.sha256",
            {"items": _LISTED.rows(_files(found[0][0]))},
        )
        return {name: bytes(content) for name, content in listed}


def _files(artifacts: str | None) -> list[tuple[str, str]]:
    return [(file["name"], file["sha256"]) for file in json.loads(artifacts or "[]") if "sha256" in file]
