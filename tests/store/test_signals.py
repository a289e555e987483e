"""Signals: at once where they can be, harmless where they can't."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pilot.store import open_store
from pilot.store.enqueue import FEW
from pilot.store.signals import FifoSignals
from tests.store.bed import HOUR, MINUTE, Bed, Clock, done, limited, task

# A process that has nothing but the wake-up: no timer of its own, it would hang without one.
LISTENER = """
import asyncio, sys
from pilot.store import open_store

async def main():
    async with open_store(sys.argv[1]) as store:
        heard = asyncio.Event()
        store.queue.listen(lambda tokens: (print(*sorted(tokens), flush=True), heard.set()))
        print("ready", flush=True)
        while True:
            await heard.wait()
            heard.clear()

asyncio.run(main())
"""


class Peer:
    """Another process, listening."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()


@pytest.fixture
async def peer(store: Bed, url: str) -> AsyncIterator[Peer]:
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", LISTENER, url, stdout=subprocess.PIPE)
    peer = Peer(process)
    assert await peer.line() == "ready"
    if not url.startswith("sqlite:"):
        assert await peer.line() == "* cancel outbox"  # it hears from now on, and may have missed something
    yield peer
    if process.returncode is None:
        await peer.kill()


async def test_another_process_hears_of_every_kind_of_work(store: Bed, peer: Peer) -> None:
    api, web = await store.project("api"), await store.project("web")
    await store.node()

    first = await store.put(api)
    assert (await peer.line()).split() == [f"+{api.id}", str(api.id)]
    child = await store.put(web, after=(first,))  # cannot run: nobody need wake
    execution = await store.take(api)
    await store.queue.cancel(execution.id, "me")
    assert await peer.line() == "cancel"
    await store.queue.finish(done(execution))
    assert (await peer.line()).split() == sorted([str(api.id), str(web.id)])
    await store.queue.finish(limited(await store.take(web), store.clock.now + HOUR))
    assert await peer.line() == f"{web.id} outbox"
    await store.queue.unpark("agent", "me")
    assert await peer.line() == "*"
    await store.queue.pause(web.id, "me", "")
    await store.queue.resume(web.id, "me")
    assert await peer.line() == str(web.id)
    await store.queue.recover(["n1"], "gone")
    assert await store.queue.cancel(child, "me") == "cancelled"
    assert await peer.line() == f"{web.id} outbox"


async def test_what_was_taken_back_from_a_dead_node_is_told(store: Bed, peer: Peer) -> None:
    api = await store.project()
    await store.node("dead")
    await store.put(api)
    assert (await peer.line()).split() == [f"+{api.id}", str(api.id)]
    await store.take(api, "dead")

    await store.queue.recover(["dead"], "gone")

    assert str(api.id) in (await peer.line()).split()


async def test_a_dead_listener_is_forgotten(store: Bed, peer: Peer, tmp_path: Path) -> None:
    api = await store.project()
    assert len(list((tmp_path / "pilot.db.wake").iterdir())) == 1
    await peer.kill()

    await store.put(api)

    assert list((tmp_path / "pilot.db.wake").iterdir()) == []


async def test_listeners_of_one_process_hear_it_too_until_they_leave(store: Bed, engine: str) -> None:
    api = await store.project()
    one: list[str] = []
    two: list[str] = []
    leave_one, leave_two = store.queue.listen(one.extend), store.queue.listen(two.extend)
    if engine == "postgres":  # only then does it hear what others say
        async with asyncio.timeout(20):
            while not (one and two):
                await asyncio.sleep(0.005)
        assert sorted(one) == sorted(two) == ["*", "cancel", "outbox"]
        one.clear()
        two.clear()

    await store.put(api)
    leave_one()
    await store.put(api)
    leave_two()
    await store.put(api)

    new = [f"+{api.id}", str(api.id)]
    assert (sorted(one), sorted(two)) == (new, sorted(new * 2))


@pytest.mark.parametrize("how", [{"instant": True}, {"external": True}, {"available_at": 1 << 50}], ids=str)
async def test_nobody_is_told_to_claim_what_no_node_gets(store: Bed, how: dict[str, Any]) -> None:
    api = await store.project()
    told: list[str] = []
    store.queue.listen(told.extend)

    await store.put(api, **how)

    assert str(api.id) in told
    assert f"+{api.id}" not in told


async def test_in_a_crowd_nobody_claims_without_a_look(store: Bed) -> None:
    projects = [await store.project(f"p{n}") for n in range(FEW + 1)]
    told: list[str] = []
    store.queue.listen(told.extend)

    await asyncio.gather(*(store.queue.enqueue(task(project, "T")) for project in projects))

    assert {str(project.id) for project in projects} <= set(told)
    assert not [token for token in told if token.startswith("+")]


async def test_a_listener_that_is_closed_leaves_nothing_behind(store: Bed, url: str, tmp_path: Path) -> None:
    async with open_store(url) as opened:
        opened.queue.listen(lambda _tokens: None)
        (pipe,) = (tmp_path / "pilot.db.wake").iterdir()
        assert pipe.stat().st_mode & 0o777 == 0o600
    assert list((tmp_path / "pilot.db.wake").iterdir()) == []


async def test_a_full_pipe_holds_up_nobody_and_stays(tmp_path: Path) -> None:
    folder = tmp_path / "wake"
    folder.mkdir()
    pipe = folder / "deaf.fifo"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        sender = FifoSignals(folder)
        for _ in range(100):
            sender.send(str(n) for n in range(1000))
        assert pipe.exists()
        assert len(os.read(reader, 1 << 20)) > 4000
        sender.send({"7"})
        assert os.read(reader, 1 << 20) == b"7 "
    finally:
        os.close(reader)


async def test_a_message_is_never_torn(tmp_path: Path) -> None:
    folder = tmp_path / "wake"
    receiver, sender = FifoSignals(folder), FifoSignals(folder)
    heard: set[str] = set()
    done_ = asyncio.Event()

    def hear(tokens: object) -> None:
        assert isinstance(tokens, frozenset)
        heard.update(tokens)
        if "end" in tokens:
            done_.set()

    receiver.listen(hear)
    for n in range(2000):
        sender.send({str(1_000_000 + n)})
        if n % 100 == 0:
            await asyncio.sleep(0)
    sender.send(str(2_000_000 + n) for n in range(5000))  # more than a pipe takes in one piece
    sender.send({"end"})
    async with asyncio.timeout(20):
        await done_.wait()
    receiver.close()

    assert heard == {"*", "end"} | {str(1_000_000 + n) for n in range(2000)}


async def test_without_a_folder_there_is_only_the_timer(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    signals = FifoSignals(tmp_path / "file" / "wake")
    heard: list[str] = []

    signals.listen(heard.extend)
    signals.send({"1"})
    signals.close()
    FifoSignals(tmp_path / "none").send({"1"})

    assert heard == ["1"]
    assert not (tmp_path / "none").exists()


async def test_a_sender_out_of_descriptors_does_not_cut_off_the_living(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "wake"
    receiver, sender = FifoSignals(folder), FifoSignals(folder)
    receiver.listen(lambda _tokens: None)
    really = os.open

    def none_left(path: object, *more: object, **named: object) -> int:
        if str(path).endswith(".fifo"):
            raise OSError(errno.EMFILE, "Too many open files")
        return really(path, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", none_left)
    sender.send({"1"})
    monkeypatch.undo()

    assert len(list(folder.iterdir())) == 1
    receiver.close()


async def test_the_timer_finds_what_a_lost_signal_would_have_said(store: Bed, other: Bed) -> None:
    api = await store.project()
    await store.node()
    assert await store.queue.changed() is True  # the first look knows of nothing before
    assert await store.queue.changed() is False

    await other.put(api)
    assert await store.queue.changed() is True
    assert await store.queue.changed() is False
    await store.put(api)  # its own writes, too
    assert await store.queue.changed() is True
    assert await store.queue.ready() == [api.id]
    assert await store.queue.changed() is False


async def test_a_clock_of_its_own_is_all_that_time_needs(url: str) -> None:
    clock = Clock()
    async with open_store(url, clock=clock) as opened:
        bed = Bed(opened, clock)
        api = await bed.project()
        await bed.put(api, available_at=clock.now + MINUTE)
        assert await bed.queue.next_due() == clock.now + MINUTE
