"""A program for test_sandbox_process: an agent's sandbox under a pilot that is not root. Prints what it saw."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pilot.domain.agent import Places
from pilot.runner.cpu import cpu_seconds
from pilot.runner.process import end_marked
from tests.core.cell import MARKER, cell
from tests.core.test_sandbox_process import STUBBORN, TRAPPING, crowd, up

USER = 54321


async def main(root: Path) -> None:
    c = await cell(root)
    seen: dict[str, Any] = {"uid": await c.sh("id -u") == str(os.geteuid()) != "0"}
    seen["capabilities"] = (await c.sh("grep CapEff /proc/self/status")).split()[1]
    seen["work"] = await c.sh("echo 1 > new; git add -A; git commit -qm work; ls new; git log -1 --format=%s")
    await c.sh("mkdir -p ~/.cache; echo warm > ~/.cache/x")
    seen["kept"] = await c.sh("cat ~/.cache/x")
    seen["shadow"] = (await c.run("cat", "/etc/shadow"))[0] != 0
    seen["environ"] = (await c.run("cat", f"/proc/{os.getpid()}/environ"))[0] != 0
    await c.refused("unshare -Urm true", "umount /proc/sys", "echo x > /usr/x", f"ls {root}/state/homes")
    seen["escape"] = True
    await c.sh("mkdir ~/.agent; chmod 0 ~/.agent ~")
    c.places = Places(settings=(str(c.home / ".agent/settings.json"),))
    await c.refused("echo x > ~/.agent/settings.json", "mv ~/.agent ~/x")
    seen["settings"] = await c.sh("cat ~/.agent/settings.json")
    async with c.running("/bin/sh", "-c", TRAPPING.format(name="INT", other="TERM"), grace=10.0) as process:
        await up(process)
        await process.end()
        seen["trapped"] = process.returncode
    async with c.running("python3", "-c", "print('up', flush=True)\nwhile True: pass") as process:
        there = await up(process)
        while cpu_seconds(MARKER) < 0.1:
            await asyncio.sleep(0.05)
        seen["cpu"] = True
        seen["found"] = process.pid in await end_marked(f"{MARKER}/")
        seen["left"] = len(crowd(there))
    async with c.running("/bin/sh", "-c", STUBBORN) as process:
        there = await up(process)
        os.kill(process.pid, signal.SIGKILL)
        while crowd(there):
            await asyncio.sleep(0.05)
        seen["bwrap"] = 0
    print(json.dumps(seen))


if __name__ == "__main__":
    ctypes.CDLL(None)  # imported later would be too late: another user may not read where Python is
    folder = Path(sys.argv[1])
    if os.geteuid() == 0:
        asyncio.run(asyncio.to_thread(str))
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
    folder.mkdir()
    asyncio.run(main(folder))
