"""A network of its own for one node: a namespace with one cable to here, which can be pulled without a word."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tests.faults.proxy import Proxy


@dataclass
class Namespace:
    """`prefix` are the words before a command that is to run in it; `here` is this side's address of the cable."""

    name: str
    cable: str
    here: str
    there: str

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def pull(self) -> None:
        """Every packet is lost, on both ways; nobody is told."""
        _do(f"ip link set {self.cable} down")

    def plug(self) -> None:
        """The cable is in again."""
        _do(f"ip link set {self.cable} up")


def _do(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True, capture_output=True)


def possible() -> bool:
    """Whether this machine lets us have one."""
    name = f"pilot-can-{os.getpid()}"
    try:
        _do(f"ip netns add {name}", f"ip netns exec {name} ip link set lo up")
        _do(f"ip link add {_cable()}a type veth peer name {_cable()}b", f"ip link del {_cable()}a")
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        subprocess.run(("ip", "netns", "del", name), check=False, capture_output=True)
    return True


def _cable() -> str:
    return f"p{os.getpid():x}"


@contextmanager
def namespace() -> Iterator[Namespace]:
    """One that is gone afterwards, its cable with it."""
    name, cable = f"pilot-{os.getpid()}", f"{_cable()}a"
    # a link-local pair for this process: nothing else is reached by it
    number = os.getpid() % 6000
    net = f"169.254.{64 + number // 60}"
    here, there = f"{net}.{4 * (number % 60) + 1}", f"{net}.{4 * (number % 60) + 2}"
    try:
        _do(
            f"ip netns add {name}",
            f"ip link add {cable} type veth peer name {_cable()}b",
            f"ip link set {_cable()}b netns {name}",
            f"ip addr add {here}/30 dev {cable}",
            f"ip link set {cable} up",
            f"ip netns exec {name} ip addr add {there}/30 dev {_cable()}b",
            f"ip netns exec {name} ip link set {_cable()}b up",
            f"ip netns exec {name} ip link set lo up",
        )
        yield Namespace(name, cable, here, there)
    finally:
        for command in (f"ip link del {cable}", f"ip netns del {name}"):
            subprocess.run(command.split(), check=False, capture_output=True)


@dataclass
class Partition:
    """How one node is kept from its server: by its network, or by a proxy that forwards nothing any more."""

    proxy: Proxy
    network: Namespace | None

    @property
    def how(self) -> str:
        return "a network namespace" if self.network else "a proxy that forwards nothing"

    @property
    def prefix(self) -> Sequence[str]:
        return self.network.prefix if self.network else ()

    def begin(self) -> None:
        if self.network:
            self.network.pull()
        else:
            self.proxy.silent = True

    def end(self) -> None:
        if self.network:
            self.network.plug()
        else:
            self.proxy.silent = False


@contextmanager
def partition(target: tuple[str, int] | str, *, by_network: bool) -> Iterator[Partition]:
    """One way to a server that can be lost."""
    if not by_network:
        with Proxy(target) as proxy:
            yield Partition(proxy, None)
        return
    with namespace() as network, Proxy(target, network.here) as proxy:
        yield Partition(proxy, network)
