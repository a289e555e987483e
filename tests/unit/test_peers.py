"""The parts of `make bench-peers` that judge: what counts as an overlap, as the best peer, as reached."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.peers import chart, report
from benchmarks.peers.__main__ import ENTRANTS
from benchmarks.peers.board import Board
from benchmarks.peers.work import BODY, Handle, NotOffered, Peer, by_hand, claims, enqueue, latency

ROOT = Path(__file__).parents[2]
SERVER = {"version": "18", "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class InMemory(Peer):
    """A queue that is right, to see that the work finds nothing wrong with it."""

    settings, distribution, apart = "none", "in-memory", False

    async def open(self) -> None:
        self.queue: asyncio.Queue[tuple[int, int]] = asyncio.Queue()

    async def close(self) -> None: ...

    async def put(self, key: int, number: int) -> None:
        self.queue.put_nowait((key, number))
        await asyncio.sleep(0)

    async def work(self, handle: Handle) -> None:
        while True:
            await handle(*await self.queue.get())

    async def take(self) -> float:
        self.queue.get_nowait()
        return 1.0


def board(path: Path, worker: int = 0) -> Board:
    return Board(path / "board", keys=3, jobs=10, worker=worker)


def test_what_ran_alone_and_in_order_leaves_no_mark(tmp_path: Path) -> None:
    notes = board(tmp_path)
    for number in range(6):
        by_hand(notes.run(number % 3, number))

    tally = notes.tally()

    assert (tally.handled, tally.overlaps, tally.disorder, tally.twice) == (6, 0, 0, 0)


def test_two_of_one_project_at_once_are_seen_also_in_two_processes(tmp_path: Path) -> None:
    one, other = board(tmp_path), board(tmp_path, worker=1)
    one.start(1, 0)
    other.start(2, 1)
    assert one.tally().overlaps == 0

    other.start(1, 2)

    assert one.tally().overlaps == 1
    assert one.shares() == [1, 2]


def test_a_later_job_before_an_earlier_one_and_one_that_came_twice_are_seen(tmp_path: Path) -> None:
    notes = board(tmp_path)
    for number in (3, 0, 6, 6):
        by_hand(notes.run(0, number))

    tally = notes.tally()

    assert (tally.disorder, tally.twice, tally.distinct) == (1, 1, 3)


async def test_every_number_is_enqueued_once_by_whoever_many_producers() -> None:
    peer = InMemory("", 4)
    await peer.open()

    found = await enqueue(peer, 50, 7, limit=30)

    assert found["done"] == 50
    assert sorted(peer.queue.get_nowait() for _ in range(50)) == sorted((n % 4, n) for n in range(50))


async def test_producers_stop_when_time_is_up() -> None:
    peer = InMemory("", 4)
    await peer.open()

    assert (await enqueue(peer, 50, 7, limit=-1))["done"] == 0


async def test_latency_and_claims_count_what_was_measured() -> None:
    peer = InMemory("", 4)
    await peer.open()

    assert 0 < (await latency(peer, peer, 3))["p50"] < 1000
    assert (await claims(peer, 5, fresh=True))["p50"] == 1.0
    with pytest.raises(NotOffered):
        await peer.put_many([(0, 0)])


def results(**rates: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, rate in rates.items():
        name = name.replace("__", "/")
        found[name] = {
            "about": {"settings": "s", "version": "1.0", "after a kill -9": "c"},
            "drain": {"rate": rate, "rounds": [rate]}, "enqueue": {"rate": rate, "rounds": [rate]},
        }  # fmt: skip
    return found


def test_ratios_are_to_the_best_peer_that_keeps_history() -> None:
    found = results(pilot__sqlite=300.0, litequeue__sqlite=100.0, persist_queue__sqlite=150.0, huey__sqlite=900.0)

    (drain, _) = report.figures(found)

    assert (drain.value, drain.reach, drain.reached) == (2.0, 1.5, True)
    assert "persist_queue" in drain.note


def test_peers_are_compared_within_each_round() -> None:
    """The first round was of a quick minute, the third of a slow one, in which the peer sat out."""
    found = results(pilot__postgres=3000.0, pgqueuer__postgres=3000.0)
    found["pilot/postgres"]["drain"]["rounds"] = [6000.0, 3000.0, 1000.0, 9000.0]
    found["pgqueuer/postgres"]["drain"]["rounds"] = [3000.0, 2000.0, None]

    figures = {figure.name: figure for figure in report.figures(found)}

    assert figures["PostgreSQL: drain 10,000 over 100 projects, serialized, times the best peer"].value == 1.75


def test_a_peer_that_failed_is_no_measure_and_a_missed_figure_is_said() -> None:
    found = results(pilot__postgres=3100.0, pgqueuer__postgres=3000.0, saq__postgres=1.0)
    found["saq/postgres"]["drain"] = {"failed": "no"}

    figures = {figure.name: figure for figure in report.figures(found)}

    assert figures["PostgreSQL: drain 10,000 over 100 projects, serialized"].reached
    assert not figures["PostgreSQL: drain 10,000 over 100 projects, serialized, times the best peer"].reached


def test_four_nodes_are_measured_against_one_of_the_same_sort() -> None:
    found = results(pilot__postgres=3100.0)
    each = {"one": 100.0, "four": 120.0, "one of 25": 80.0, "four of 25": 60.0}
    found["pilot/postgres"]["nodes"] = {name: {"rate": rate, "transactions": 0.1} for name, rate in each.items()}
    looks = {"statements": {4: {"looks": 2, "looks_each": 0.2, "commits": 9}}}

    figures = [f for f in report.figures(found, looks) if "four nodes" in f.name]

    assert [(f.value, f.reached) for f in figures] == [(1.2, True), (0.75, False), (0.2, False)]


def document() -> dict[str, Any]:
    found = results(pilot__postgres=3100.0, pgqueuer__postgres=2000.0, pilot__sqlite=3.0, huey__sqlite=9.0)
    found["pgqueuer/postgres"]["drain"]["overlaps"] = 4
    for name, wait in (("pilot/postgres", 2.0), ("pgqueuer/postgres", 5.5)):
        found[name] |= {"latency": {"p50": wait, "p99": 9.0}, "held": {"p50": wait, "p99": 9.0}}
    load = dict.fromkeys(("transactions", "inserted", "updated", "deleted", "wal_bytes", "bytes"), 1.5)
    paced = [
        {"projects": p, "asked": rate, "rate": rate / (2 if rate > 300 and p == 1 else 1), "p50": 3.0 * p, "p99": 20.0}
        for p in (1, 100)
        for rate in (250, 500)
    ]
    scaling = {
        "cost": {"busy": load, "alone": load}, "statements": {1: {"all": 2.0}, 4: {"all": 2.25}},
        "connections": {"per_store": 5.0},
        "drain": [{"projects": 1, "rate": 900.0}, {"projects": 10, "failed": "x"}], "paced": paced,
    }  # fmt: skip
    machine = {"cores": 2, "python": "3", "sqlite": "3", "postgresql": SERVER}
    figures = [report.vars_of(figure) for figure in report.figures(found)]
    return {"machine": machine, "figures": figures, "peers": found, "scaling": scaling}


def test_the_page_is_renewed_between_its_marks_and_only_there(tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    page.write_text((ROOT / "docs" / "scaling.md").read_text())

    report.renew(document(), page)
    once = page.read_text()
    report.renew(document(), page)

    assert page.read_text() == once
    assert "| pgqueuer 1.0 | 2,000 | 2,000 (4 overlaps) | 5.50 | 5.50 |" in once
    assert "no: 250/s" in once
    assert "| statements, drained by 4 nodes |  | 2.25 |" in once
    assert once.startswith("# How far it goes\n")
    assert "## Beyond it: divide by project\nNothing in pilot joins" in once


def test_a_page_without_a_mark_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "scaling.md"
    page.write_text("<!-- figures -->\n<!-- /figures -->\n")

    with pytest.raises(ValueError, match="<!-- peers -->"):
        report.renew(document(), page)

    assert page.read_text() == "<!-- figures -->\n<!-- /figures -->\n"


def test_pictures_are_whole_and_show_every_peer(tmp_path: Path) -> None:
    chart.write(document(), tmp_path)

    bars, lines = ((tmp_path / name).read_text() for name in ("peers.svg", "peers-scaling.svg"))
    ElementTree.fromstring(bars)
    ElementTree.fromstring(lines)
    assert bars.count("<rect") == 1 + 4 * 2 + 2 * 2
    assert "huey (keeps no history)" in bars
    assert lines.count("<polyline") == 2


def test_every_entrant_has_a_file_and_what_is_said_of_a_crash() -> None:
    for name, engine in ENTRANTS:
        assert (ROOT / "benchmarks" / "peers" / f"{name}.py").exists()
        assert f"{name}/{engine}" in report.CRASH
    assert len(BODY) == 200
