"""A tunnel on any machine, with no cluster: its configuration from a manifest, its key from a file."""

import argparse
import getpass
import sys
from functools import partial
from pathlib import Path

from dbtunnel.api import forwarder as wire
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.manifests import read_tunnel
from dbtunnel.domain.forwarding import forwarder_config, service_port
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder.app import Address, Surroundings
from dbtunnel.forwarder.connection import Sources
from dbtunnel.forwarder.host_keys import KnownHostsError, trust_of
from dbtunnel.forwarder.keys import KeyFiles, KeyProblemError, MountedFile, parse_key, read_file

_LOOPBACK = "127.0.0.1"

_KEY_PROBLEMS = {
    Reason.SECRET_KEY_MISSING: "there is no such file",
    Reason.PRIVATE_KEY_INVALID: "it is not a private key: {seen}. Give the whole file that ssh-keygen wrote",
    Reason.PUBLIC_KEY_GIVEN: "it is a public key. Give the private one: the file without .pub",
    Reason.PASSPHRASE_REQUIRED: "it is encrypted. Give its passphrase with --passphrase-file FILE",
    Reason.PASSPHRASE_WRONG: "the passphrase does not decrypt it",
}


def local_tunnel(arguments: argparse.Namespace) -> tuple[wire.ForwarderConfig, Surroundings]:
    """What a forwarder needs, checked as far as it can be here. Raises UnusableInputError."""
    tunnel = read_tunnel(arguments.filename, arguments.namespace)
    if arguments.identity is None:
        raise UnusableInputError("-i KEY is needed with -f: the file of the private key that the bastion accepts")
    config = _config(tunnel, arguments.identity, arguments.known_hosts)
    read_known_hosts = _known_hosts_source(config, arguments.known_hosts)
    return config, Surroundings(
        pod_uid="",
        listen=arguments.listen or Address(_LOOPBACK, service_port(tunnel)),
        admin_listen=arguments.admin_listen or Address(_LOOPBACK, wire.ADMIN_PORT),
        sources=Sources(_key_source(arguments.identity, arguments.passphrase_file), read_known_hosts),
    )


def _config(tunnel: DatabaseTunnel, identity: Path, known_hosts: Path | None) -> wire.ForwarderConfig:
    """As a pod of this tunnel has it, but for what is a matter of the cluster."""
    config = forwarder_config(tunnel, Defaults())
    rule = config.bastion.host_key
    if known_hosts is None and rule.known_hosts_file is not None:
        raise UnusableInputError(
            "spec.tunnel.hostKey.knownHostsRef: there is no cluster to read it from;"
            " give its content with --known-hosts FILE"
        )
    if known_hosts is not None and (rule.fingerprints or rule.known_hosts is not None):
        raise UnusableInputError("--known-hosts: spec.tunnel.hostKey pins the host key already; leave one of them out")
    if known_hosts is not None:
        rule = rule.model_copy(update={"known_hosts_file": known_hosts.name})
    changes = {
        "bastion": config.bastion.model_copy(update={"host_key": rule}),
        "key": config.key.model_copy(update={"secret": str(identity), "key": identity.name}),
        "replicas": 1,
        "seconds": config.seconds.model_copy(update={"drain_min": 0}),  # no endpoints that lag
    }
    return config.model_copy(update=changes)


class _KeySource:
    """The key's file, which may change, and its passphrase, which is asked for once."""

    def __init__(self, identity: Path, passphrase: MountedFile) -> None:
        self._identity, self.passphrase = identity, passphrase

    def __call__(self) -> KeyFiles:
        key = read_file(self._identity.parent, self._identity.name)
        return KeyFiles(key, self.passphrase, (self._identity.name,))


def _key_source(identity: Path, passphrase_file: Path | None) -> _KeySource:
    passphrase = MountedFile()
    if passphrase_file is not None:
        passphrase = _given(passphrase_file, "--passphrase-file")
    source = _KeySource(identity, passphrase)
    try:
        try:
            parse_key(source())
        except KeyProblemError as problem:
            if problem.reason is not Reason.PASSPHRASE_REQUIRED or not sys.stderr.isatty():
                raise
            source.passphrase = _typed(identity)
            parse_key(source())
    except KeyProblemError as problem:
        text = _KEY_PROBLEMS[problem.reason].format(seen=problem.seen)
        raise UnusableInputError(f"-i {identity}: {text}") from None
    return source


def _typed(identity: Path) -> MountedFile:
    try:
        typed = getpass.getpass(f"Passphrase of {identity}: ")
    except (EOFError, KeyboardInterrupt):
        raise UnusableInputError(f"-i {identity}: no passphrase was given") from None
    return MountedFile(typed.encode("utf-8", "surrogateescape"))


def _known_hosts_source(config: wire.ForwarderConfig, known_hosts: Path | None) -> "partial[MountedFile]":
    if known_hosts is None:
        file, read = MountedFile(), partial(MountedFile)
    else:
        file, read = _given(known_hosts, "--known-hosts"), partial(read_file, known_hosts.parent, known_hosts.name)
    bastion = config.bastion
    try:
        trust_of(bastion.host_key, file, bastion.host, bastion.port)
    except KnownHostsError as error:
        where = "spec.tunnel.hostKey.knownHosts" if known_hosts is None else f"--known-hosts {known_hosts}"
        raise UnusableInputError(f"{where}: {error}. Write lines as `ssh-keyscan HOST` prints them") from None
    return read


def _given(path: Path, option: str) -> MountedFile:
    """A file that must be there. Raises UnusableInputError."""
    file = read_file(path.parent, path.name)
    if file.content is None:
        raise UnusableInputError(f"{option} {path}: {file.problem or 'there is no such file'}")
    return file
