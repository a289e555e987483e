"""What is measured, in which order: peers take turns, so that a slow minute of the machine hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

from benchmarks.peers.runs import Entrant, Failed, Sizes, say

P = ParamSpec("P")

TURNS = 4
"""Rounds of claims from a store with rows and from one without."""

Results = dict[str, dict[str, Any]]
"""Per entrant (`name/engine`), per work."""


def measure(entrants: Sequence[Entrant], sizes: Sizes, works: Sequence[str]) -> Results:
    """Everything wanted; a peer that fails at something has `failed` there, and the others go on."""
    results: Results = {}
    for entrant in entrants:
        entrant.prepare()
        results[key(entrant)] = {"about": entrant.about}
    if "drain" in works:
        _in_turns(entrants, sizes, results)
    if "latency" in works:
        _latencies(entrants, sizes, results)
    each: dict[str, Callable[[Entrant, Sizes], dict[str, Any] | None]] = {
        "bulk": _bulk, "idle": _idle_claim, "held": _held, "deep": _deep, "finished": _finished,
        "nodes": _nodes,
    }  # fmt: skip
    for work, run in each.items():
        for entrant in entrants if work in works else ():
            began = time.monotonic()
            found = guarded(run, entrant, sizes)
            if found is not None:
                results[key(entrant)][work] = found
                say(f"  {entrant.title:<28} {work:<9} {_short(found)}   ({time.monotonic() - began:.0f} s)")
    return results


def key(entrant: Entrant) -> str:
    return f"{entrant.name}/{entrant.engine}"


def _in_turns(entrants: Sequence[Entrant], sizes: Sizes, results: Results) -> None:
    """Enqueue and drain, round by round; who has used its time sits out the next rounds."""
    spent = {key(entrant): 0.0 for entrant in entrants}
    raw: dict[str, list[dict[str, Any]]] = {key(entrant): [] for entrant in entrants}
    for _ in range(sizes.rounds):
        for entrant in entrants:
            if spent[key(entrant)] > sizes.enough:
                continue
            began = time.monotonic()
            found = guarded(_fill_and_drain, entrant, sizes) or {}
            spent[key(entrant)] += time.monotonic() - began
            raw[key(entrant)].append(found)
            filled, drained = found.get("enqueue", found), found.get("drain", {})
            say(f"  {entrant.title:<28} enqueue   {_short(filled)}   drain {_short(drained)}")
    for name, rounds in raw.items():
        good = [found for found in rounds if "failed" not in found]
        if not good:
            results[name] |= {"enqueue": rounds[0], "drain": rounds[0]}
            continue
        for work in ("enqueue", "drain"):
            rates = [found[work]["rate"] for found in good]
            odd = {k: v for found in good for k, v in found[work].items() if k not in ("rate", "done", "of", "shares")}
            each = [None if "failed" in found else found[work]["rate"] for found in rounds]
            results[name][work] = odd | {"rate": statistics.median(rates), "rounds": each}


def _fill_and_drain(entrant: Entrant, sizes: Sizes) -> dict[str, Any]:
    with entrant.database() as url:
        filled = entrant.call("enqueue", url, count=sizes.jobs, limit=sizes.limit / 2)
        entrant.settle(url)
        # Producers stop at the same time, not at the same number: then numbers have holes.
        jobs = filled["done"]
        return {"enqueue": filled, "drain": entrant.drain(url, jobs, sizes.limit, numbers=sizes.jobs)}


def _bulk(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    with entrant.database() as url:
        return _offered(entrant.call("bulk", url, count=sizes.jobs))


def _latencies(entrants: Sequence[Entrant], sizes: Sizes, results: Results) -> None:
    """In turns, too: what such times are made of, disk and wake-ups, is not the same every minute."""
    rounds: dict[str, list[dict[str, Any]]] = {key(entrant): [] for entrant in entrants}
    for _ in range(min(sizes.rounds, 3)):
        for entrant in entrants:
            found = guarded(_latency, entrant, sizes)
            if found is not None:
                rounds[key(entrant)].append(found)
                say(f"  {entrant.title:<28} latency   {_short(found)}")
    for name, of_it in rounds.items():
        good = [one for one in of_it if "failed" not in one]
        if good:
            middle = {word: statistics.median(one[word] for one in good) for word in ("p50", "p99")}
            results[name]["latency"] = middle | {"rounds": [one["p50"] for one in good]}
        elif of_it:
            results[name]["latency"] = of_it[0]


def _latency(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    with entrant.database() as url:
        return _offered(entrant.call("latency", url, count=sizes.latencies))


def _idle_claim(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    return _claims(entrant, sizes, {"held": 0})


def _held(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    """Other projects' claims, while one project runs one and has so many behind it."""
    if not entrant.about["serialized"]:
        return None
    return _claims(entrant, sizes, {"queued": sizes.queued})


def _deep(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    """The claims of that project itself, none of it running."""
    return _claims(entrant, sizes, {"queued": sizes.queued, "held": 0}, fresh=0)


def _finished(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    return _claims(entrant, sizes, {"finished": sizes.finished, "held": 0})


def _claims(entrant: Entrant, sizes: Sizes, rows: dict[str, int], fresh: int = 1) -> dict[str, Any] | None:
    if entrant.name == "pilot" and rows != {"held": 0}:
        return _beside_empty(entrant, sizes, rows, fresh)
    with entrant.database() as url:
        if not _offered(entrant.call("grow", url, **rows) or {"grown": True}):
            return None
        entrant.settle(url)
        return _offered(entrant.call("claims", url, count=sizes.claims, fresh=fresh))


def _beside_empty(entrant: Entrant, sizes: Sizes, rows: dict[str, int], fresh: int) -> dict[str, Any]:
    """The same, in turns with claims from an empty store: `times` is what the rows make of them."""
    with entrant.database() as full, entrant.database() as empty:
        entrant.call("grow", full, **rows)
        entrant.call("grow", empty, held=0)
        pairs = []
        for turn in range(TURNS):
            entrant.settle(full if turn % 2 else empty)
            count = sizes.claims // TURNS
            one = entrant.call("claims", full, count=count, fresh=fresh)
            pairs.append((one, entrant.call("claims", empty, count=count)))
    return {
        "p50": statistics.median(one["p50"] for one, _ in pairs),
        "p99": statistics.median(one["p99"] for one, _ in pairs),
        "empty": statistics.median(other["p50"] for _, other in pairs),
        "times": statistics.median(one["p50"] / other["p50"] for one, other in pairs),
    }


def _nodes(entrant: Entrant, sizes: Sizes) -> dict[str, Any] | None:
    """One node and four of the same sort on one database: with a slot for every project, and with a quarter of that."""
    if (entrant.name, entrant.engine) != ("pilot", "postgres"):
        return None
    found: dict[str, Any] = {}
    for name, workers, slots in (("one", 1, 100), ("four", 4, 100), ("one of 25", 1, 25), ("four of 25", 4, 25)):
        rounds = []
        for _ in range(min(sizes.rounds, 2)):
            with entrant.database() as url:
                entrant.call("enqueue", url, count=sizes.jobs, limit=sizes.limit)
                entrant.settle(url)
                before = transactions(entrant, url)
                drained = entrant.drain(url, sizes.jobs, sizes.limit, workers, slots=slots)
                spent = transactions(entrant, url) - before
                rounds.append(drained | {"transactions": spent / max(1, drained["handled"])})
        found[name] = max(rounds, key=lambda r: float(r["rate"]))
    return found


def transactions(entrant: Entrant, url: str) -> int:
    name = url.rpartition("/")[2]
    text = f"SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = '{name}'"
    time.sleep(1.1)  # a server process hands in its counts at most once a second
    return int(entrant.server.sql("postgres", text))


def _offered(found: dict[str, Any]) -> dict[str, Any] | None:
    return found if found.get("offered", True) else None


def guarded(run: Callable[P, dict[str, Any] | None], *args: P.args, **more: P.kwargs) -> dict[str, Any] | None:
    try:
        return run(*args, **more)
    except (Failed, RuntimeError, TimeoutError, OSError) as error:
        say(f"  {error}")
        return {"failed": str(error).strip().splitlines()[-1][:200]}


def _short(found: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items() if k != "shares")
