"""A password for one git process, and for one host.

It goes through a pipe that a credential helper empties, once, when that host asks for it: it is never an argument, an
environment variable, a file or a setting, so neither `ps`, nor /proc/PID/environ, nor what a killed pilot leaves behind
has it. What it does not do: an agent that runs as the same user and without a sandbox may read pilot's own
configuration, and could race git for the pipe. Against such an agent only the sandbox helps, from which neither
pilot's processes nor its configuration can be seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

_NOWHERE = "/nonexistent"


@dataclass(frozen=True, slots=True)
class Login:
    """What git may tell the server at `url` (scheme and host), and no other. Redirects are not followed."""

    url: str
    password: str = field(repr=False)
    user: str = "x-access-token"

    @contextmanager
    def lent(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """A descriptor for the git process, and its settings. Read once, the password is gone from it."""
        if any(sign in self.user + self.password for sign in "\0\n"):
            raise ValueError("a password can't have line breaks")
        source, sink = os.pipe2(os.O_CLOEXEC)
        try:
            with open(sink, "wb", closefd=True) as writer:  # noqa: PTH123  a descriptor is no path
                writer.write(f"username={self.user}\npassword={self.password}\n".encode())
            helper = f'!f() {{ if test "$1" = get; then cat /dev/fd/{source}; fi; }}; f'
            yield (
                source,
                (
                    "credential.helper=",  # whatever was set before: what it keeps, others could ask for
                    f"credential.{self.url}.helper={helper}",
                    "http.followRedirects=false",
                    "http.extraHeader=",
                    "protocol.ssh.allow=never",
                    "protocol.git.allow=never",
                ),
            )
        finally:
            os.close(source)

    def environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Without a home, where curl would look for passwords (.netrc) and git for settings."""
        return {**environ, "HOME": _NOWHERE, "XDG_CONFIG_HOME": _NOWHERE}
