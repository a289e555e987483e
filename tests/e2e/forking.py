"""Starts of `pilot` that cost a fork: a process that has imported everything once forks for every command.

Three of four processor seconds of a short command are Python's, for the imports; tests start commands by the hundred.
What is forked is a process like any other: it has its own pid, environment, working directory, streams and end, and
takes signals. `Forked` is to its user what `subprocess.Popen` is.

What a start itself promises is tried with real ones: in core/test_cli*.py, in the demo, and where a home is `fresh`.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import IO

_LONGEST = 1 << 20
"""Bytes of a request."""


class Forked:
    """A running `pilot`; its streams are files that the caller has opened."""

    def __init__(
        self, arguments: Sequence[str], cwd: str, env: Mapping[str, str], stdin: int, stdout: int, stderr: int
    ) -> None:
        self.returncode: int | None = None
        self._told, theirs = os.pipe()
        try:
            request = json.dumps({"arguments": list(arguments), "cwd": cwd, "environ": dict(env)}).encode()
            socket.send_fds(_parent(), [request], [stdin, stdout, stderr, theirs])
        except BaseException:
            os.close(self._told)
            raise
        finally:
            os.close(theirs)
        self._tale = os.fdopen(self._told, "rb", buffering=0)
        self.pid = int(self._line())

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            piece = self._tale.read(1)
            assert piece, "the process that forks is gone"
            line += piece
        return line

    def _collect(self, seconds: float | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._tale, selectors.EVENT_READ)
            if selector.select(seconds):
                self.returncode = int(self._line())
                self._tale.close()

    def poll(self) -> int | None:
        """Its exit code; None while it runs, -N when signal N ended it."""
        if self.returncode is None:
            self._collect(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        if self.returncode is None:
            self._collect(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("pilot", timeout or 0.0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Does nothing when it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def like_others(environ: Mapping[str, str]) -> bool:
    """Whether the interpreter that is there is the one that this environment would start."""
    own = {name: value for name, value in environ.items() if name.startswith(("PYTHON", "LC_", "COVERAGE"))}
    return own == {"PYTHONPATH": os.pathsep.join(sys.path)} and environ.get("LANG") == "C.UTF-8"


@functools.cache
def _parent() -> socket.socket:
    """The way to the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LONGEST)
    environ = {"PATH": os.environ["PATH"], "HOME": "/nowhere", "LANG": "C.UTF-8", "TERM": "dumb"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.forking", str(theirs.fileno())],
        env={**environ, "PYTHONPATH": os.pathsep.join(sys.path)}, cwd="/", pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# What runs in the process that forks


def _import_all() -> None:
    import pilot

    for module in pkgutil.walk_packages(pilot.__path__, "pilot."):
        if module.name.startswith(("pilot.testing", "pilot.backends.")) or module.name.endswith("__main__"):
            continue  # an agent's module is loaded by whoever uses it
        with suppress(ImportError):
            importlib.import_module(module.name)


def _serve(channel: socket.socket) -> Callable[[], int] | None:
    """Fork for every request, and tell how each ended. Returns in a child, with what it is to do; in the parent, None
    when nobody can ask any more."""
    running: dict[int, tuple[int, IO[bytes]]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not channel:
                    pid, tell = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with suppress(BrokenPipeError), tell:
                        tell.write(b"%d\n" % code)
                    continue
                data, files, *_ = socket.recv_fds(channel, _LONGEST, 4)
                if not data:
                    return None
                pid = os.fork()
                if pid == 0:
                    return functools.partial(_child, json.loads(data), files[:3])
                for file in files[:3]:
                    os.close(file)
                tell = os.fdopen(files[3], "wb", buffering=0)
                tell.write(b"%d\n" % pid)
                ended = os.pidfd_open(pid)
                running[ended] = (pid, tell)
                selector.register(ended, selectors.EVENT_READ)


def _child(request: Mapping[str, object], files: Sequence[int]) -> int:
    from pilot.cli.main import main

    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 1024)
    os.environ.clear()
    os.environ.update(request["environ"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    time.tzset()
    sys.argv = ["-c", *request["arguments"]]  # type: ignore[misc]
    return main()


def _run() -> int:
    import gc

    _import_all()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        todo = _serve(channel)
    if todo is None:
        return 0
    code = todo()
    # as the interpreter ends, but for the tidying up of all that it has imported
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(_run())
