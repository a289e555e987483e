"""Another process at work on a store: `python -m tests.store.writer URL MODE [ARGUMENT…]`.

Every line it prints is true when it is printed: `queued ID` and `done ID` were acknowledged by the store.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import sqlite3
import sys
from collections.abc import Awaitable, Callable

from pilot.domain.delivery import EffectKind
from pilot.domain.errors import StoreError
from pilot.domain.outcome import Publication
from pilot.domain.task import Project
from pilot.store import Store, open_store
from tests.store.bed import HOUR, done, node, task
from tests.store.faults import refuse


def say(*words: object) -> None:
    """One line, in one piece, at once."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def projects(store: Store, count: int) -> list[Project]:
    return await store.queue.register([(f"key {n}", f"p{n}", f"/p{n}", 1) for n in range(count)])


async def work(store: Store) -> None:
    """Enqueue, claim and finish, without an end."""
    places = await projects(store, 3)
    name = f"writer-{os.getpid()}"
    await store.queue.start_node(node(name), HOUR)
    say("ready", name)
    queued = asyncio.Semaphore(200)  # a backlog that stays

    async def produce(number: int) -> None:
        count = 0
        while True:
            await queued.acquire()
            count += 1
            place = places[(number + count) % 3]
            ticket = {"source": "x"} if count % 2 else None
            answer = await store.queue.enqueue(task(place, f"{name}.{number}.{count}", body="x" * 500, origin=ticket))
            say("queued", answer.id)

    async def consume(place: Project) -> None:
        while True:
            found = await store.queue.claim(name, lease=HOUR, projects=(place.id,))
            execution = found[0] if found else None
            while execution is not None:
                following = await store.queue.finish(done(execution, next_lease=HOUR))
                say("done", execution.id)
                queued.release()
                execution = following
            await asyncio.sleep(0.001)

    await asyncio.gather(*(produce(n) for n in range(4)), *(consume(place) for place in places))


async def send(store: Store, name: str) -> None:
    """Deliver what is owed."""
    while True:
        for effect in await store.outbox.take(name, tuple(EffectKind), lease=HOUR):
            pull = await store.pulls.of(effect.execution or 0)
            if effect.kind is EffectKind.PUBLISH and pull is not None:
                await store.pulls.opened(pull.id, number=pull.id, url="u", head_sha=pull.head_sha)
                say("opened", effect.execution)
            assert await store.outbox.delivered(effect, name)
            say("delivered", effect.id)
        await asyncio.sleep(0)


async def deliver(store: Store) -> None:
    """Take webhooks in and deal with them, finish tickets, deliver what is owed: without an end."""
    places = await projects(store, 2)
    name = f"writer-{os.getpid()}"
    await store.queue.start_node(node(name, notifies=True), HOUR)
    say("ready", name)

    async def receive(number: int) -> None:
        count = 0
        while True:
            count += 1
            key = f"{name}.{number}.{count}"
            assert await store.inbox.store("github", key, key, "issues", "labeled", f'{{"key": "{key}"}}')
            say("stored", key)

    async def handle() -> None:
        while True:
            for arrival in await store.inbox.take(name, "github", lease=HOUR):
                key = arrival.payload["key"]
                place = places[arrival.id % 2]
                wanted = task(place, key, origin={"source": "x"}, idempotency_key=key)
                say("queued", (await store.queue.enqueue(wanted)).id)
                await store.inbox.handled(arrival, name)
                say("handled", key)
            await asyncio.sleep(0)

    async def finish(place: Project) -> None:
        publication = Publication(repo="acme/api", base="main")
        while True:
            for execution in await store.queue.claim(name, lease=HOUR, projects=(place.id,)):
                await store.queue.finish(done(execution, publication=publication, head_sha="a" * 40))
                say("done", execution.id)
            await asyncio.sleep(0)

    await asyncio.gather(
        *(receive(n) for n in range(2)), handle(), *(finish(place) for place in places), send(store, name)
    )


async def ask_once(store: Store) -> None:
    """Wait for the start, ask for the one task that all ask for."""
    say("ready")
    await asyncio.to_thread(sys.stdin.read)
    (place,) = await projects(store, 1)
    answer = await store.queue.enqueue(task(place, "the one"))
    say(answer.id, answer.duplicate)


async def bad_disk(store: Store, call: str, error: str, rounds: str) -> None:
    """Lose the disk in the middle, again and again, for the thread that writes."""
    (place,) = await projects(store, 1)

    def lose(_connection: sqlite3.Connection) -> None:
        refuse(call, getattr(errno, error))

    for number in range(int(rounds)):
        for count in range(3 + number):
            say("queued", (await store.queue.enqueue(task(place, f"{number}.{count}", body="x" * 3000))).id)
        await store.database._writer.call(lose)  # type: ignore[attr-defined]
        for count in range(3):
            try:
                answer = await store.queue.enqueue(task(place, f"{number} without a disk.{count}", body="x" * 3000))
            except StoreError as broken:
                say("refused", broken)
                say("reads", (await store.queue.get(1)).task_id)
            else:
                say("queued", answer.id)


async def small_disk(store: Store) -> None:
    """Fill what little room there is, then get more."""
    (place,) = await projects(store, 1)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, most))
    try:
        for count in range(1000):
            say("queued", (await store.queue.enqueue(task(place, f"{count}", body="x" * 3000))).id)
    except StoreError as full:
        say("refused", full)
    say("reads", (await store.queue.get(1)).task_id)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    for count in range(5):
        say("queued", (await store.queue.enqueue(task(place, f"with room {count}"))).id)
    say("room again")


MODES: dict[str, Callable[..., Awaitable[None]]] = {
    "work": work,
    "deliver": deliver,
    "ask-once": ask_once,
    "bad-disk": bad_disk,
    "small-disk": small_disk,
}


async def main(url: str, mode: str, *arguments: str) -> None:
    async with open_store(url) as store:
        await MODES[mode](store, *arguments)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
