"""The document of one run: figures against what they have to reach, tables for a terminal and for docs/scaling.md."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, table
from benchmarks.peers.measuring import Results
from benchmarks.peers.server import Server

FORGETFUL = {"huey/sqlite"}
"""Peers that keep no history: a finished task, or a dead worker's, is gone. Shown, but no measure for the others."""
CRASH = {
    "pilot/postgres": "back in the queue when the lease ends, at once on the same host; a late finish is refused",
    "pgqueuer/postgres": "re-picked after `heartbeat_timeout` (30 s); a late finish is taken",
    "procrastinate/postgres": "`doing` until a task of the user's own retries stalled jobs; a late finish is taken",
    "saq/postgres": "swept after its timeout, if it has one; a late finish is taken",
    "dbos/postgres": "recovered when a process with the same executor id starts",
    "pilot/sqlite": "as on PostgreSQL",
    "litequeue/sqlite": "stays locked for ever",
    "persist_queue/sqlite": "back in the queue when the file is opened again",
    "dbos/sqlite": "as on PostgreSQL",
    "huey/sqlite": "lost: taking a task deletes it",
}
"""What becomes of a job whose worker is killed; by documentation and source, not measured here."""
WORKS = {
    "enqueue": ("enqueue, 100 producers /s", "rate"),
    "bulk": ("one producer, 100 at a time /s", "rate"),
    "drain": ("drain, 100 projects /s", "rate"),
    "latency": ("enqueue → start ms", "p50"),
    "idle": ("claim ms", "p50"),
    "held": ("behind a busy project with 50,000", "p50"),
    "deep": ("of 50,000 queued", "p50"),
    "finished": ("with 1,000,000 finished", "p50"),
}


def document(results: Results, scaling: dict[str, Any], server: Server, python: str, *, quick: bool) -> dict[str, Any]:
    """All that the run found. `python`: the peers' environment, asked for their versions."""
    names = {name: str(found["about"].get("distribution")) for name, found in results.items()}
    code = "import importlib.metadata as m, sys; print('\\n'.join(m.version(n) for n in sys.argv[1:]))"
    peers = sorted({name for name in names.values() if name != "pilot-dispatcher"})
    asked = subprocess.run([python, "-c", code, *peers], capture_output=True, text=True, check=True)
    versions = dict(zip(peers, asked.stdout.split(), strict=True))
    for name, found in results.items():
        found["about"]["version"] = versions.get(names[name], "this one")
        found["about"]["after a kill -9"] = CRASH[name]
    machine = {
        "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version, "postgresql": server.settings,
    }  # fmt: skip
    found_figures = [vars_of(figure) for figure in figures(results, scaling)]
    return {"quick": quick, "machine": machine, "figures": found_figures, "peers": results, "scaling": scaling}


def vars_of(figure: Figure) -> dict[str, Any]:
    fields = ("name", "value", "unit", "reach", "more", "note", "reached")
    return {name: getattr(figure, name) for name in fields}


def figures(results: Results, scaling: dict[str, Any] | None = None) -> list[Figure]:
    """What issue and README promise, as far as it was measured."""
    found: list[Figure] = []
    for engine, title in (("postgres", "PostgreSQL"), ("sqlite", "SQLite")):
        for work, words, rate, ratio in (
            ("drain", "drain 10,000 over 100 projects, serialized", 3000, 1.3),
            ("enqueue", "enqueue, 100 producers", 6000, 5),
        ):
            own = _value(results, f"pilot/{engine}", work)
            if own is None:
                continue
            if engine == "postgres":
                found.append(Figure(f"{title}: {words}", own, "/s", rate, more=True))
            best = _best(results, engine, work)
            if best:
                name, times, rate_of_it = best
                reach = ratio if engine == "postgres" else 1.5
                note = f"{name} {rate_of_it:,.0f}/s, round by round"
                found.append(Figure(f"{title}: {words}, times the best peer", times, "x", reach, more=True, note=note))
    if (latency := _value(results, "pilot/postgres", "latency")) is not None:
        found.append(Figure("PostgreSQL: enqueue → start, idle, another node's, p50", latency, "ms", 4))
    for engine, title in (("postgres", "PostgreSQL"), ("sqlite", "SQLite")):
        for work, words in (
            ("held", "behind a busy project with 50,000 queued"),
            ("deep", "of a project with 50,000 queued"),
            ("finished", "with 1,000,000 finished"),
        ):
            pair = results.get(f"pilot/{engine}", {}).get(work) or {}
            if "times" in pair:
                note = f"{pair['empty']:.2f} → {pair['p50']:.2f} ms, in turns"
                found.append(
                    Figure(f"{title}: claim {words}, times an empty store", pair["times"], "x", 1.2, note=note)
                )
    return [*found, *_of_nodes(results.get("pilot/postgres", {}).get("nodes", {}), scaling or {})]


def _of_nodes(nodes: dict[str, Any], scaling: dict[str, Any]) -> Iterable[Figure]:
    for one, several, slots in (("one", "four", 100), ("one of 25", "four of 25", 25)):
        if one in nodes and several in nodes:
            per = [f"{nodes[name]['transactions']:.2f}" for name in (one, several)]
            rates = [nodes[name]["rate"] for name in (one, several)]
            note = f"{rates[0]:,.0f} → {rates[1]:,.0f}/s; transactions per job {per[0]} → {per[1]}"
            name = f"PostgreSQL: drain by four nodes of {slots} slots, times one"
            yield Figure(name, rates[1] / rates[0], "x", 1, more=True, note=note)
    four = (scaling.get("statements") or {}).get(4) or {}
    if "looks" in four:
        note = f"{four['looks']} looks, {four['commits']} commits"
        yield Figure("PostgreSQL: looks for work per execution, four nodes", four["looks_each"], "", 0.05, note=note)


def _value(results: Results, name: str, work: str) -> float | None:
    value = results.get(name, {}).get(work, {}).get(WORKS[work][1])
    return None if value is None else float(value)


def _best(results: Results, engine: str, work: str) -> tuple[str, float, float] | None:
    """The peer of which pilot is the least ahead: its name, how much, its rate.

    Compared within each round: a round is of one minute, and the machine is not as quick in every one.
    """
    own = results[f"pilot/{engine}"][work]["rounds"]
    peers = [
        (name.partition("/")[0], times, rate)
        for name in results
        if name.endswith(engine) and not name.startswith("pilot/") and name not in FORGETFUL
        if (rate := _value(results, name, work)) is not None
        and (times := _round_by_round(own, results[name][work]["rounds"])) is not None
    ]
    return min(peers, key=lambda peer: peer[1]) if peers else None


def _round_by_round(own: Sequence[float | None], other: Sequence[float | None]) -> float | None:
    """The median of the ratios, if there is any. None among the rates: that round failed."""
    ratios = [mine / theirs for mine, theirs in zip(own, other, strict=False) if mine and theirs]
    return statistics.median(ratios) if ratios else None


def text(found: dict[str, Any]) -> str:
    """For a terminal."""
    known = [Figure(**{k: v for k, v in figure.items() if k != "reached"}) for figure in found["figures"]]
    parts = [table(known)] if known else []
    return "\n\n".join([*parts, *("\n".join(rows) for rows in _tables(found["peers"]))])


def _tables(results: Results) -> Iterable[list[str]]:
    for engine, title in (("postgres", "PostgreSQL"), ("sqlite", "SQLite")):
        names = [name for name in results if name.endswith(f"/{engine}")]
        works = [work for work in WORKS if any(work in results[name] for name in names)]
        if not works:
            continue
        rows = [[title, *(WORKS[work][0] for work in works)]]
        for name in names:
            about = results[name]["about"]
            label = name.partition("/")[0] + (f" {about['version']}" if about["version"][0].isdigit() else "")
            rows.append([label, *(_cell(results[name].get(work)) for work in works)])
        yield _markdown(rows)


def _cell(found: dict[str, Any] | None) -> str:
    if not found or "failed" in found:
        return "failed" if found else "-"
    if "rate" in found:
        odd = [f"{found[what]} {what}" for what in ("overlaps", "twice") if found.get(what)]
        return f"{found['rate']:,.0f}" + (f" ({', '.join(odd)})" if odd else "")
    return f"{found['p50']:.2f}" if found["p50"] < 10 else f"{found['p50']:.0f}"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|" + " --- |" * len(rows[0]), *body]


def write(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


def renew(found: dict[str, Any], path: Path) -> None:
    """Put the tables between the marks of a page; raises `ValueError` where a mark is missing."""
    page = path.read_text()
    parts = {
        "figures": _markdown(
            [["figure", "measured", "to reach", ""]]
            + [
                [f["name"], f"{f['value']:,.4g} {f['unit']}",
                 f"{'≥' if f['more'] else '≤'} {f['reach']:,g} {f['unit']}",
                 ("" if f["reached"] else "**missed** ") + f["note"]]
                for f in found["figures"]
            ]
        ),
        "peers": [line for rows in _tables(found["peers"]) for line in [*rows, ""]],
        "settings": _markdown(
            [["", "settings", "after a kill -9 of the worker, a running job is"]]
            + [[name, f["about"]["settings"], f["about"]["after a kill -9"]] for name, f in found["peers"].items()]
        ),
        "machine": [_machine(found["machine"])],
        "cost": _cost(found["scaling"]),
        "curve": _curve(found["scaling"]),
    }  # fmt: skip
    for name, lines in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, mark, rest = page.partition(begin)
        _, last, after = rest.partition(end)
        if not mark or not last:
            raise ValueError(f"{path} lacks {begin} … {end}")
        page = f"{before}{begin}\n" + "\n".join(lines).strip() + f"\n{end}{after}"
    path.write_text(page)


def _machine(machine: dict[str, Any]) -> str:
    server = machine["postgresql"]
    kept = ", ".join(f"{name}={server[name]}" for name in ("fsync", "synchronous_commit", "full_page_writes"))
    return (
        f"{machine['cores']} cores, Python {machine['python']}, SQLite {machine['sqlite']}, "
        f"PostgreSQL {server['version']} ({kept}) on the same machine."
    )


def _cost(scaling: dict[str, Any]) -> list[str]:
    cost = scaling.get("cost") or {}
    if "busy" not in cost:
        return []
    rows = [["per execution, from enqueue to its end", "one at a time", "under load"]]
    for name, words in (
        ("transactions", "transactions"), ("inserted", "rows inserted"), ("updated", "rows updated"),
        ("deleted", "rows deleted"), ("wal_bytes", "bytes of WAL"), ("bytes", "bytes that stay, indexes included"),
    ):  # fmt: skip
        rows.append([words, *(f"{cost[load][name]:,.2f}".replace(".00", "") for load in ("alone", "busy"))])
    for workers, made in (scaling.get("statements") or {}).items():
        if made and "all" in made:
            rows.append(
                [f"statements, drained by {workers} node{'s' if int(workers) > 1 else ''}", "", f"{made['all']:.2f}"]
            )
    held = (scaling.get("connections") or {}).get("per_store")
    return [*_markdown(rows), "", f"Connections of one node: {held:g}." if held else ""]


def _curve(scaling: dict[str, Any]) -> list[str]:
    rows = [["projects", "drained /s"]]
    rows += [[f"{p['projects']:,}", f"{p['rate']:,.0f}"] for p in scaling.get("drain", ()) if "rate" in p]
    points = [p for p in scaling.get("paced", ()) if "rate" in p]
    asked = sorted({p["asked"] for p in points})
    paced = [["enqueued /s → start, p50 / p99 ms", *(f"{rate:,}" for rate in asked)]]
    for projects in sorted({p["projects"] for p in points}):
        row = {p["asked"]: p for p in points if p["projects"] == projects}
        cells = [_pace(row.get(rate)) for rate in asked]
        paced.append([f"{projects:,} project{'s' if projects > 1 else ''}", *cells])
    return [*_markdown(rows), "", *(_markdown(paced) if points else [])]


def _pace(point: dict[str, Any] | None) -> str:
    if point is None:
        return ""
    if point["rate"] < 0.8 * point["asked"]:
        return f"no: {point['rate']:,.0f}/s"
    return f"{point['p50']:.1f} / {point['p99']:.0f}"
