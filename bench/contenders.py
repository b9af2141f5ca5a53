"""Who is compared: each forwards a local port to the server behind the bastion, or leads there without one."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.programs import program
from bench.sites import TARGET, Site
from dbtunnel.api.forwarder import Seconds
from tests.support.bastion import USER
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.processes import Process

Start = Callable[[Site, Path, int], Process]
"""Starts the process that listens at a port of 127.0.0.1, its files in a directory."""

OURS, OURS_2 = "dbtunnel", "dbtunnel-2"
SSH, SSH_GCM, ASYNCSSH, RELAY, DIRECT = "ssh", "ssh-gcm", "asyncssh", "relay", "direct"


@dataclass(frozen=True)
class Contender:
    """One that is measured."""

    title: str
    start: Start | None
    """None where clients go to the server itself."""


def start_ours(
    site: Site, directory: Path, port: int, environment: Mapping[str, str] | None = None, connections: int = 1
) -> Process:
    """`dbtunnel forward` with the defaults of the resource, but for the number of SSH connections."""
    config = forwarder_config(
        site.bastion, site.port, keepalive_count_max=3, seconds=Seconds(), connections=connections
    )
    forwarder = Forwarder(directory, config, {KEY: site.key.private})
    forwarder.port = port
    return forwarder.start(*site.near, environment=environment).process


def _ssh(*options: str) -> Start:
    def start(site: Site, directory: Path, port: int) -> Process:
        login = ["-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={site.known_hosts_file}"]
        forward = ["-N", "-L", f"127.0.0.1:{port}:{TARGET}:{site.port}", "-i", site.key_file]
        bastion = ["-p", str(site.bastion.port), f"{USER}@{site.bastion.host}"]
        return _begun(site, directory, "ssh", *login, *options, *forward, *bastion)

    return start


def _asyncssh(site: Site, directory: Path, port: int) -> Process:
    script = Path(__file__).with_name("forward_asyncssh.py")
    bastion = [site.bastion.host, site.bastion.port, USER, site.key_file, site.known_hosts_file]
    return _begun(site, directory, sys.executable, script, port, *bastion, TARGET, site.port)


def _relay(site: Site, directory: Path, port: int) -> Process:
    return _begun(site, directory, program("relay"), "127.0.0.1", port, site.host, site.port)


def _begun(site: Site, directory: Path, *command: object) -> Process:
    return Process([*site.near, *map(str, command)], directory / "output.log").start()


CONTENDERS: Mapping[str, Contender] = {
    OURS: Contender("dbtunnel forward", start_ours),
    OURS_2: Contender("the same, 2 connections", partial(start_ours, connections=2)),
    SSH: Contender("ssh -N -L", _ssh()),
    SSH_GCM: Contender("ssh, aes128-gcm", _ssh("-c", "aes128-gcm@openssh.com")),
    ASYNCSSH: Contender("asyncssh", _asyncssh),
    RELAY: Contender("TCP relay, no SSH", _relay),
    DIRECT: Contender("direct", None),
}
"""In the order in which they are shown."""
