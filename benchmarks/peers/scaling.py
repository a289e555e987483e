"""What one execution costs a PostgreSQL, and how far one of them goes: over projects, and over projects and rate."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from benchmarks.peers.measuring import guarded, transactions
from benchmarks.peers.runs import ROOT, Entrant, say

PROJECTS = (1, 10, 100, 1000)
RATES = (500, 1000, 2000, 4000)
TABLES = ("executions", "attempts", "events")


def measure(pilot: Entrant, *, quick: bool) -> dict[str, Any]:
    """All of it, for pilot on PostgreSQL."""
    jobs = 500 if quick else 5_000
    found: dict[str, Any] = {"cost": guarded(cost, pilot, jobs)}
    say(f"  cost per execution: {found['cost']}")
    found["statements"] = {workers: guarded(statements, pilot, jobs, workers) for workers in (1, 4)}
    say(f"  statements per execution: {found['statements']}")
    found["connections"] = guarded(connections, pilot)
    found["drain"] = []
    for projects in PROJECTS[:3] if quick else PROJECTS:
        point = guarded(_drain, pilot, projects, min(jobs, 500 * projects)) or {}
        found["drain"].append({"projects": projects} | point)
        say(f"  drain: {found['drain'][-1]}")
    found["paced"] = []
    for projects in (100,) if quick else PROJECTS[1:]:
        for rate in RATES[:2] if quick else RATES:
            paced = guarded(_paced, pilot, projects, rate, 1 if quick else 2) or {}
            point = {"projects": projects, "asked": rate} | paced
            found["paced"].append(point)
            say(f"  paced: {point}")
            if point.get("rate", 0) < 0.8 * rate:
                break
    return found


def cost(pilot: Entrant, jobs: int) -> dict[str, Any]:
    """Per execution, from enqueue to its end: transactions, rows and WAL; bytes that stay. Grouped and one by one."""
    found: dict[str, Any] = {}
    for name, load in (("busy", "enqueue"), ("alone", "claims")):
        count = jobs if name == "busy" else 200
        with pilot.database() as url:
            database = url.rpartition("/")[2]

            def ask(text: str, database: str = database) -> list[int]:
                return [int(cell) for cell in pilot.server.sql(database, text).split("|")]

            pilot.server.sql(database, "CHECKPOINT")
            counters = (
                "SELECT tup_inserted, tup_updated, tup_deleted, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint "
                f"FROM pg_stat_database WHERE datname = '{database}'"
            )
            committed, before, size = transactions(pilot, url), ask(counters), _bytes(ask)
            pilot.call(load, url, count=count, limit=60)
            if name == "busy":
                pilot.drain(url, count, 60)
            else:
                count += 20
            spent = transactions(pilot, url) - committed
            inserted, updated, deleted, wal = (a - b for a, b in zip(ask(counters), before, strict=True))
            found[name] = {
                "transactions": spent / count, "inserted": inserted / count, "updated": updated / count,
                "deleted": deleted / count, "wal_bytes": wal / count, "bytes": (_bytes(ask) - size) / count,
            }  # fmt: skip
    return found


def _bytes(ask: Any) -> int:
    total: int = ask("SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c WHERE relkind = 'r' "
                     "AND relnamespace = 'public'::regnamespace")[0]  # fmt: skip
    return total


def statements(pilot: Entrant, jobs: int, workers: int) -> dict[str, Any]:
    """Of a drain by so many nodes that share 100 slots, per execution; how often they looked and committed."""
    with pilot.database() as url:
        pilot.call("enqueue", url, count=jobs, limit=60)
        pilot.settle(url)
        since = pilot.server.record(url.rpartition("/")[2])
        drained = pilot.drain(url, jobs, 60, workers, slots=100 // workers)
        made = pilot.server.statements(since)
    looks = sum(text.startswith("WITH RECURSIVE walk") for text in made)
    return {
        "all": len(made) / drained["handled"],
        "looks": looks,
        "looks_each": looks / drained["handled"],
        "commits": made.count("COMMIT"),
    }


def connections(pilot: Entrant) -> dict[str, Any]:
    """What one node holds while it works."""
    with pilot.database() as url:
        database = url.rpartition("/")[2]
        process = subprocess.Popen(
            [pilot.python, "-m", "benchmarks.peers.paced", url, "--keys", "10", "--rate", "200", "--seconds", "2"],
            cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        most = 0
        while process.poll() is None:
            text = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> pg_backend_pid()"
            most = max(most, int(pilot.server.sql(database, text)))
            time.sleep(0.1)
    return {"per_store": most / 2}


def _drain(pilot: Entrant, projects: int, jobs: int) -> dict[str, Any]:
    with pilot.database() as url:
        pilot.call("enqueue", url, count=jobs, keys=projects, limit=60)
        pilot.settle(url)
        found = pilot.drain(url, jobs, 30, keys=projects)
    return {"rate": found["rate"]}


def _paced(pilot: Entrant, projects: int, rate: int, seconds: int) -> dict[str, Any]:
    with pilot.database() as url:
        done = subprocess.run(
            [pilot.python, "-m", "benchmarks.peers.paced", url, "--keys", str(projects), "--rate", str(rate),
             "--seconds", str(seconds)],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-1000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
