"""Copies a store, and is killed again and again: `python -m tests.store.killed_copy SOURCE TARGET STEP`.

One line for each try: where it was killed, and what `open_store` says of the target then.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

from pilot.domain.errors import StoreRefused
from pilot.store import open_store
from pilot.store.copy_tables import Mark
from pilot.store.copying import Copying, Progress, open_end
from tests.store.bed import START

BATCH = 4


def later() -> int:
    """When the lease of the source's node has ended."""
    return START + 3_600_000


class Fuse:
    """Kills this process at a step: with `inside`, in the middle of a transaction that has written rows."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def burn(self) -> None:
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self, _: Progress) -> None:
        self.burn()


def attempt(source: str, target: str, steps: int, *, inside: bool) -> bool:
    """Copy in a process that dies on its way; whether it got through."""
    pid = os.fork()
    if pid == 0:
        fuse = Fuse(steps)
        if inside:
            written = Mark.progress

            def progress(self: Mark) -> str:
                fuse.burn()
                return written(self)

            Mark.progress = progress  # type: ignore[method-assign]
        with open_end(source, later) as origin, open_end(target, later, target=True) as end:
            Copying(origin, end, lambda _: False, lambda p: None if inside else fuse.tell(p), batch=BATCH).run()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    assert os.waitstatus_to_exitcode(status) == 0
    return True


def state(target: str) -> str:
    """What a `serve` would be told."""

    async def go() -> str:
        try:
            async with open_store(target, create=False):
                return "store"
        except StoreRefused as error:
            return "refused" if "not whole" in str(error) else f"odd: {error}"
        except Exception as error:
            return f"nothing: {error}"

    return asyncio.run(go())


def main(source: str, target: str, step: int) -> None:
    n = 0
    while True:
        inside = n % 2 == 1
        steps = 2 + n % 5 if inside else 1 + step * n // 2
        if done := attempt(source, target, steps, inside=inside):
            break
        print(f"{steps}{' inside' if inside else ''}\t{state(target)}", flush=True)
        n += 1
    assert done
    print(f"done\t{state(target)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
