"""A stand-in for a coding agent: reads its task on standard input, works for a moment, changes a file.

It needs no key and no network. `pilot.yaml` of the demo runs it through the `command` backend, as it would any CLI.
"""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path


def main() -> None:
    workspace, task_id, diary = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    prompt = sys.stdin.read()
    what = re.search(r"add the page (\w+)", prompt)
    name = what.group(1) if what else "notes"
    with diary.open("a") as lines:
        lines.write(f"start {task_id} {os.getpid()} {time.time():.3f}\n")
    print(f"reading the repository: {len(list(workspace.glob('*')))} files", flush=True)
    time.sleep(1.2)
    (workspace / f"{name}.html").write_text(f"<h1>{name}</h1>\n")
    print(f"wrote {name}.html", flush=True)
    with diary.open("a") as lines:
        lines.write(f"end {task_id} {os.getpid()} {time.time():.3f}\n")


if __name__ == "__main__":
    main()
