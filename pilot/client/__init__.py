"""Talks to a `pilot serve` over HTTP: `async with Client(url, token) as pilot`. Knows the domain, nothing else."""

from __future__ import annotations

from pilot.client.client import Client

__all__ = ["Client"]
