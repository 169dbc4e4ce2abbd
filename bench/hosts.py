"""Hosts on one machine: network namespaces on a bridge, each with an address of its own. Needs root and iproute2.

Never here: what runs on them.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Hosts:
    """`prefix`: host -> what to put before a command so that it runs there. `address`: where all reach us. `apart`: for real."""

    prefix: Mapping[str, tuple[str, ...]]
    address: str
    apart: bool


@contextlib.contextmanager
def hosts(names: Sequence[str]) -> Iterator[Hosts]:
    """Namespaces, removed at the end; where they cannot be made, the same names on the machine's own network."""
    tag, net = f"ps{os.getpid() % 100_000}", f"10.213.{os.getpid() % 250}"
    bridge, spaces = f"{tag}b", {name: f"{tag}-{name}" for name in names}
    try:
        if os.geteuid() != 0 or shutil.which("ip") is None or not _made(bridge, net, tag, list(spaces.values())):
            yield Hosts(dict.fromkeys(names, ()), "127.0.0.1", apart=False)
            return
        prefix = {name: ("ip", "netns", "exec", space) for name, space in spaces.items()}
        yield Hosts(prefix, f"{net}.1", apart=True)
    finally:
        for command in (*(f"netns del {space}" for space in spaces.values()), f"link del {bridge}"):
            subprocess.run(["ip", *command.split()], check=False, stderr=subprocess.DEVNULL)


def _made(bridge: str, net: str, tag: str, spaces: Sequence[str]) -> bool:
    """Whether all could be made: a container may be forbidden to."""
    try:
        _ip(f"link add {bridge} type bridge", f"addr add {net}.1/24 dev {bridge}", f"link set {bridge} up")
        for number, space in enumerate(spaces):
            here = f"{tag}v{number}"
            _ip(
                f"netns add {space}",
                f"link add {here} type veth peer name eth0 netns {space}",
                f"link set {here} master {bridge} up",
                f"-n {space} addr add {net}.{number + 2}/24 dev eth0",
                f"-n {space} link set eth0 up",
                f"-n {space} link set lo up",
            )
    except (subprocess.CalledProcessError, OSError):
        return False
    return True


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, stderr=subprocess.DEVNULL)
