"""Whether this machine's bubblewrap works, found out by using it, and what to do when it does not."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pilot.domain.agent import Check
from pilot.domain.errors import ConfigError
from pilot.domain.text import one_line
from pilot.runner import sandbox_system

_ALWAYS = (
    "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent",
    "--cap-drop", "ALL",
)  # fmt: skip
_USERS = ("--unshare-user", "--disable-userns")
"""No further name spaces inside, in which an agent would have all capabilities again."""
_SIGNALS = ("INT", "TERM")
"""What pilot sends to the whole group: bubblewrap outlives them, for with it ends whoever has still to obey them."""
_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Bwrap:
    """Bubblewrap as it works here. `program` and `env` (of coreutils) are absolute."""

    program: str
    env: str
    options: tuple[str, ...]

    @property
    def begin(self) -> list[str]:
        """What a command line in it begins with."""
        ignored = [f"--ignore-signal={name}" for name in _SIGNALS]
        return [self.env, *ignored, self.program, *_ALWAYS, *self.options]

    def started(self, program: str) -> list[str]:
        """What stands for a program inside, where signals have their meaning again."""
        start = [self.env, *(f"--default-signal={name}" for name in _SIGNALS)]
        # env takes a word with "=" for a variable
        return [*start, "/bin/sh", "-c", 'exec "$0" "$@"', program] if "=" in program else [*start, program]


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no sandbox here, and what a person can do about it."""

    why: str
    remedy: str


def probe(environ: Mapping[str, str]) -> Bwrap | Missing:
    """Start a program in it, the way agents are started. Blocking, a fraction of a second; for the caller to keep."""
    path = f"{environ.get('PATH', os.defpath)}{os.pathsep}/usr/local/bin{os.pathsep}/usr/bin"
    program, env = shutil.which("bwrap", path=path), shutil.which("env", path="/usr/bin:/bin")
    if program is None:
        return Missing("bubblewrap (bwrap) is not installed", "install the package bubblewrap")
    if env is None:
        return Missing("there is no env in /usr/bin", "install coreutils")
    why = ""
    for options in (_USERS, _USERS[:1], ()):
        if not options and os.geteuid() != 0:
            break
        bwrap = Bwrap(str(Path(program).absolute()), env, options)
        why = _tried(bwrap) or ""
        if not why:
            return bwrap
    return Missing(f"bubblewrap does not work here: {why}", _remedy(why))


def find_sandbox(wanted: Literal["auto", "bubblewrap", "none"], found: Bwrap | Missing) -> Bwrap | None:
    """What `executor.sandbox` comes to on this machine. Raises `ConfigError`: asked for, and not to be had."""
    if wanted == "none":
        return None
    if isinstance(found, Bwrap):
        return found
    if wanted == "bubblewrap":
        raise ConfigError([f"executor.sandbox: {found.why}; {found.remedy}, or set sandbox: none"])
    return None


def check(wanted: Literal["auto", "bubblewrap", "none"], found: Bwrap | Missing) -> Check:
    """For doctor: which sandbox agents get, and why."""
    asked = f"executor.sandbox: {wanted}"
    if wanted == "none":
        remedy = "remove executor.sandbox: none, or run pilot in a container or a virtual machine"
        return Check("sandbox", None, f"none: agents run with the rights of your user ({asked})", remedy)
    if isinstance(found, Bwrap):
        limits = "" if _USERS[1] in found.options else "; agents can make user name spaces in it"
        return Check("sandbox", True, f"bubblewrap, {found.program}; the network is open{limits} ({asked})")
    detail = f"none: agents run with the rights of your user; {found.why} ({asked})"
    return Check("sandbox", False if wanted == "bubblewrap" else None, detail, found.remedy)


def _tried(bwrap: Bwrap) -> str | None:
    """What was wrong; None when it worked."""
    with tempfile.TemporaryDirectory(prefix="pilot-") as folder:
        blank = Path(folder) / "blank"
        blank.touch()
        argv = [*bwrap.begin, *sandbox_system.base(str(blank)), "--remount-ro", "/", "--", *bwrap.started("/bin/true")]
        try:
            done = subprocess.run(
                argv, cwd="/", env={"LC_ALL": "C"}, capture_output=True, timeout=_TIMEOUT, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            return one_line(str(error))
    if done.returncode == 0:
        return None
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return one_line(lines[-1], 200) if lines else f"exit code {done.returncode}"


def _remedy(why: str) -> str:
    if "ignore-signal" in why or "default-signal" in why:
        return "install coreutils 8.31 or later"
    if "uid map" in why or "namespace" in why or "Operation not permitted" in why or "No space left" in why:
        return (
            "allow user name spaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns, "
            "or the container's seccomp profile)"
        )
    return "run `bwrap --ro-bind / / true` to see more"
