"""A stand-in for a coding agent: reads its task on standard input, works for a moment, changes a file.

    agent.py WORKSPACE TASK_ID PROJECT NOTES < prompt

It needs no key and no network; the demo's pilot.yaml runs it as it would any command-line agent. It keeps a diary in
NOTES, and while it works it holds a lock there for its project: two at a time would be written down. It is not done
before there is a file NOTES/go, so that the first ones don't end while the demo still asks for the last.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from pathlib import Path

WORK = 1.2  # seconds


def main() -> None:
    workspace, task_id, project, notes = Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])
    with (notes / f"{project}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            write(notes, f"overlap {task_id}")
        write(notes, f"start {task_id}")
        work(workspace, sys.stdin.read())
        while not (notes / "go").exists() and notes.exists():
            time.sleep(0.05)
        write(notes, f"end {task_id}")


def work(workspace: Path, prompt: str) -> None:
    """The change that was asked for."""
    asked = re.search(r"add the page (\w+)", prompt)
    page = asked[1] if asked else "notes"
    print(f"reading the repository: {len(list(workspace.iterdir()))} files", flush=True)
    time.sleep(WORK)
    (workspace / f"{page}.html").write_text(f"<h1>{page}</h1>\n")
    print(f"wrote {page}.html", flush=True)


def write(notes: Path, line: str) -> None:
    """One line of the diary, whole."""
    diary = os.open(notes / "diary", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(diary, f"{line}\n".encode())
    os.close(diary)


if __name__ == "__main__":
    main()
