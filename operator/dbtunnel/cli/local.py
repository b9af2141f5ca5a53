"""A tunnel on any machine, with no cluster: its configuration from a manifest, its key from a file."""

import argparse
import getpass
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dbtunnel.api import forwarder as wire
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.manifests import read_tunnel
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import spec_path
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder.connection import Sources
from dbtunnel.forwarder.host_keys import KnownHostsError, trust_of
from dbtunnel.forwarder.keys import KeyFiles, KeyProblemError, MountedFile, file_stamp, parse_key, read_file

_KEY_PROBLEMS = {
    Reason.SECRET_KEY_MISSING: "there is no such file",
    Reason.PRIVATE_KEY_INVALID: "it is no private key to use: {seen}. Give the whole file that ssh-keygen wrote",
    Reason.PUBLIC_KEY_GIVEN: "it is a public key. Give the private one: the file without .pub",
    Reason.PASSPHRASE_REQUIRED: "it is encrypted. Give its passphrase with --passphrase-file FILE",
    Reason.PASSPHRASE_WRONG: "the passphrase does not decrypt it",
}


def local_tunnel(arguments: argparse.Namespace) -> tuple[DatabaseTunnel, wire.ForwarderConfig, list[Sources]]:
    """The manifest's tunnel, its forwarder's configuration, the files of this machine. Raises UnusableInputError."""
    tunnel = read_tunnel(arguments.filename, arguments.namespace)
    if arguments.identity is None:
        raise UnusableInputError("-i KEY is needed with -f: the file of the private key that the bastion accepts")
    config, hosts = _config(tunnel, arguments)
    key = _key_source(f"-i {arguments.identity}", arguments.identity, arguments.passphrase_file)
    sources = [
        Sources(_hop_key(hop, arguments.passphrase_file) or key, _known_hosts_source(config, number, hosts.get(number)))
        for number, hop in enumerate(config.hops)
    ]
    return tunnel, config, sources


def _config(tunnel: DatabaseTunnel, arguments: argparse.Namespace) -> tuple[wire.ForwarderConfig, dict[int, Path]]:
    """As a pod of this tunnel has it, but for what is a matter of the cluster; and the known_hosts files by hop."""
    config = forwarder_config(tunnel, Defaults())
    keys = _by_hop(config, "--hop-identity", arguments.hop_identity or ())
    hosts = _by_hop(config, "--hop-known-hosts", arguments.hop_known_hosts or ())
    if arguments.known_hosts is not None:
        hosts[0] = arguments.known_hosts
    hops = [_hop(config, number, keys.get(number), hosts.get(number)) for number in range(len(config.hops))]
    further = iter(hops[1:])
    here = replace(
        config,
        bastion=hops[0],
        fallbacks=tuple(next(further) for _ in config.fallbacks or ()),
        jump_hosts=tuple(further),
        key=_key_file(config, arguments.identity),
        replicas=1,
        seconds=replace(config.seconds, drain_min=0),  # no endpoints that lag
    )
    return here, hosts


def _by_hop(config: wire.ForwarderConfig, option: str, given: Sequence[str]) -> dict[int, Path]:
    """The files of an option HOST:PORT=FILE, by the number of the jump host or fallback. Raises UnusableInputError."""
    known = {forward_target(hop.host, hop.port): number for number, hop in enumerate(config.hops) if number}
    files = {}
    for text in given:
        target, _, path = text.partition("=")
        if target not in known or not path:
            targets = ", ".join(known) or "none"
            raise UnusableInputError(
                f"{option} {text}: write HOST:PORT=FILE of a jump host or fallback; there is {targets}"
            )
        files[known[target]] = Path(path)
    return files


def _hop(config: wire.ForwarderConfig, number: int, key: Path | None, known_hosts: Path | None) -> wire.ForwarderHop:
    """A hop with files of this machine. Without a key of its own it takes that of -i."""
    hop = config.hops[number]
    rule = hop.host_key
    if known_hosts is None and rule.known_hosts_file is not None:
        raise UnusableInputError(
            f"{spec_path(config, number)}.hostKey.knownHostsRef: there is no cluster to read it from;"
            f" give its content with {_known_hosts_option(config, number)}"
        )
    if known_hosts is not None and (rule.fingerprints or rule.known_hosts is not None):
        option = _known_hosts_option(config, number).split()[0]
        raise UnusableInputError(
            f"{option}: {spec_path(config, number)}.hostKey pins the host key already; leave one of them out"
        )
    if known_hosts is not None:
        rule = replace(rule, known_hosts_file=known_hosts.name)
    return replace(hop, host_key=rule, key=_key_file(config, key) if key else None)


def _known_hosts_option(config: wire.ForwarderConfig, number: int) -> str:
    target = forward_target(config.hops[number].host, config.hops[number].port)
    return f"--hop-known-hosts {target}=FILE" if number else "--known-hosts FILE"


def _key_file(config: wire.ForwarderConfig, path: Path) -> wire.ForwarderKey:
    return replace(config.key, secret=str(path), key=path.name)


class _KeySource:
    """The key's file and that of its certificate, which may change, and its passphrase, which is asked for once."""

    def __init__(self, identity: Path, passphrase: MountedFile) -> None:
        self._identity, self.passphrase = identity, passphrase

    def stamp(self) -> object:
        return file_stamp(self._identity), file_stamp(self._identity.with_name(self._certificate))

    def read(self) -> KeyFiles:
        key, certificate = (read_file(self._identity.parent, name) for name in (self._identity.name, self._certificate))
        return KeyFiles(key, self.passphrase, (self._identity.name,), certificate=certificate)

    @property
    def _certificate(self) -> str:
        """The name of its certificate, which ssh would take as well."""
        return self._identity.name + wire.CERTIFICATE_SUFFIX


def _hop_key(hop: wire.ForwarderHop, passphrase_file: Path | None) -> _KeySource | None:
    if hop.key is None:
        return None
    option = f"--hop-identity {forward_target(hop.host, hop.port)}={hop.key.secret}"
    return _key_source(option, Path(hop.key.secret), passphrase_file)


def _key_source(option: str, identity: Path, passphrase_file: Path | None) -> _KeySource:
    passphrase = MountedFile()
    if passphrase_file is not None:
        passphrase = _given(passphrase_file, f"--passphrase-file {passphrase_file}")
    source = _KeySource(identity, passphrase)
    try:
        try:
            parse_key(source.read())
        except KeyProblemError as problem:
            if problem.reason is not Reason.PASSPHRASE_REQUIRED or not sys.stderr.isatty():
                raise
            source.passphrase = _typed(option, identity)
            parse_key(source.read())
    except KeyProblemError as problem:
        text = _KEY_PROBLEMS[problem.reason].format(seen=problem.seen)
        raise UnusableInputError(f"{option}: {text}") from None
    return source


def _typed(option: str, identity: Path) -> MountedFile:
    try:
        typed = getpass.getpass(f"Passphrase of {identity}: ")
    except (EOFError, KeyboardInterrupt):
        raise UnusableInputError(f"{option}: no passphrase was given") from None
    return MountedFile(typed.encode("utf-8", "surrogateescape"))


def _known_hosts_source(config: wire.ForwarderConfig, number: int, known_hosts: Path | None) -> "partial[MountedFile]":
    hop, option = config.hops[number], _known_hosts_option(config, number).replace("FILE", str(known_hosts))
    if known_hosts is None:
        file, read = MountedFile(), partial(MountedFile)
    else:
        file, read = _given(known_hosts, option), partial(read_file, known_hosts.parent, known_hosts.name)
    try:
        trust_of(hop.host_key, file, hop.host, hop.port)
    except KnownHostsError as error:
        where = option if known_hosts else f"{spec_path(config, number)}.hostKey.knownHosts"
        raise UnusableInputError(f"{where}: {error}. Write lines as `ssh-keyscan HOST` prints them") from None
    return read


def _given(path: Path, option: str) -> MountedFile:
    """A file that must be there. Raises UnusableInputError."""
    file = read_file(path.parent, path.name)
    if file.content is None:
        raise UnusableInputError(f"{option}: {file.problem or 'there is no such file'}")
    return file
