"""The address that a task brings along to be called back at: whether it is one. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from pilot.domain.errors import UsageError

MAX_URL = 2000
_PLAIN = re.compile(r"[\x21-\x7e]+")


def check_callback(url: str, allow_hosts: Sequence[str]) -> str:
    """The address as it will be kept. Raises `UsageError`, which names its host at most: the rest may be a secret.

    `allow_hosts` are patterns in which `*` stands for anything. Where the host leads to is looked at when it is called.
    """
    if len(url) > MAX_URL:
        raise UsageError(f"a callback URL may have {MAX_URL} characters, not {len(url)}")
    if not _PLAIN.fullmatch(url) or "\\" in url:
        raise UsageError("a callback URL is plain ASCII without spaces, such as https://host.example/hook")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"the callback URL can't be read: {str(error)[:100]}") from None
    if parts.scheme not in ("http", "https") or not host or port == 0:
        raise UsageError("a callback URL is http or https and names a host, such as https://host.example/hook")
    if "@" in parts.netloc:
        raise UsageError(f"the callback URL for {host} has a name or password in it; put what it needs into its path")
    if not is_allowed(host, allow_hosts):
        raise UsageError(f"{host} is none of the hosts that server.callbacks.allow_hosts in pilot.yaml lets be called")
    return url


def is_allowed(host: str, allow_hosts: Sequence[str]) -> bool:
    """Whether one of the patterns names this host."""
    name = host.rstrip(".").lower()
    return any(_matches(pattern.rstrip(".").lower(), name) for pattern in allow_hosts)


def _matches(pattern: str, name: str) -> bool:
    return re.fullmatch(".*".join(re.escape(part) for part in pattern.split("*")), name) is not None
