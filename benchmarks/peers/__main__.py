"""`make bench-peers [QUICK=1] [ONLY=drain,bulk,…] [PEERS=pilot,pgqueuer,…]`.

`PEERS_PYTHON` is the environment of the peers. All of it together writes results.json, the pictures and the tables of
docs/scaling.md; a part of it, or QUICK, only prints.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.peers import chart, report, scaling
from benchmarks.peers.measuring import measure
from benchmarks.peers.runs import QUICK, ROOT, Entrant, Sizes, say
from benchmarks.peers.server import server

ENTRANTS = (
    ("pilot", "postgres"), ("pgqueuer", "postgres"), ("procrastinate", "postgres"), ("saq", "postgres"),
    ("dbos", "postgres"),
    ("pilot", "sqlite"), ("litequeue", "sqlite"), ("persist_queue", "sqlite"), ("dbos", "sqlite"), ("huey", "sqlite"),
)  # fmt: skip
WORKS = ("drain", "bulk", "latency", "idle", "held", "deep", "finished", "nodes", "scaling")


def main() -> None:
    if sys.argv[1:]:  # many minutes are not what `--help` asks for
        sys.exit(__doc__)
    began = time.monotonic()
    # Ended from outside, the server and the folders go all the same.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    quick = os.environ.get("QUICK", "") not in ("", "0")
    works = [work for work in os.environ.get("ONLY", "").split(",") if work] or list(WORKS)
    wanted = [name for name in os.environ.get("PEERS", "").split(",") if name]
    if unknown := (set(works) - set(WORKS)) | (set(wanted) - {name for name, _ in ENTRANTS}):
        sys.exit(f"not known: {', '.join(sorted(unknown))}. Works: {', '.join(WORKS)}")
    others = os.environ.get("PEERS_PYTHON", str(ROOT / ".venv-peers" / "bin" / "python"))
    if not Path(others).exists():
        sys.exit(f"{others} is missing: run `make bench-peers`, which makes it")
    with tempfile.TemporaryDirectory(prefix="pilot-peers-") as folder, server() as running:
        entrants = [
            Entrant(name, engine, sys.executable if name == "pilot" else others, Path(folder), running)
            for name, engine in ENTRANTS
            if not wanted or name in wanted
        ]
        sizes = QUICK if quick else Sizes()
        results = measure(entrants, sizes, works)
        curves = scaling.measure(entrants[0], quick=quick) if "scaling" in works and entrants[0].name == "pilot" else {}
        document = report.document(results, curves, running, others, quick=quick)
    print(report.text(document))
    if not quick and works == list(WORKS) and not wanted:
        report.write(document, ROOT / "benchmarks" / "peers" / "results.json")
        chart.write(document, ROOT / "docs")
        report.renew(document, ROOT / "docs" / "scaling.md")
        say("written: benchmarks/peers/results.json, docs/peers.svg, docs/peers-scaling.svg, docs/scaling.md")
    say(f"all of it took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
