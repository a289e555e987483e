"""`make bench [ONLY=queue,daemon,ingest,overhead,events,agents,webhooks,http,plans,streams]`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import structlog

from benchmarks import agents, daemon, events, figures, http, ingest, overhead, plans, queue, streams, webhooks
from benchmarks.figures import Figure


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    parts = {
        "queue": lambda: asyncio.run(queue.run()),
        "daemon": daemon.run,
        "ingest": ingest.run,
        "overhead": overhead.run,
        "events": events.run,
        "agents": agents.run,
        "webhooks": webhooks.run,
        "http": http.run,
        "plans": plans.run,
        "streams": streams.run,
    }
    wanted = [name for name in os.environ.get("ONLY", "").split(",") if name] or list(parts)
    found: list[Figure] = []
    for name in wanted:
        print(f"measuring: {name} …", file=sys.stderr, flush=True)
        found += parts[name]()
    print(figures.table(found))
    if wanted == list(parts):
        figures.write(found, Path(__file__).parent / "results.json")


if __name__ == "__main__":
    main()
