"""SSH key pairs, made anew for each use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from dbtunnel.forwarder.keys import KeyFiles, MountedFile


@dataclass(frozen=True)
class KeyPair:
    """A private key as its file has it, and its public half."""

    private: str = field(repr=False)
    public: str
    """Type and base64, as in authorized_keys, without a comment."""
    fingerprint: str


def key_pair(
    algorithm: str = "ssh-ed25519", *, passphrase: str | None = None, form: str = "openssh", bits: int = 3072
) -> KeyPair:
    """A new pair. `form`: openssh, pkcs8-pem or pkcs1-pem."""
    key = asyncssh.generate_private_key(algorithm, **({"key_size": bits} if algorithm == "ssh-rsa" else {}))  # type: ignore[arg-type]
    private = key.export_private_key(form, passphrase=passphrase).decode()
    public = " ".join(key.export_public_key().decode().split()[:2])
    return KeyPair(private, public, key.get_fingerprint())


class Secret:
    """A key Secret in memory, with the usual names; what is set in `files` stands there from then on."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = dict(files)

    def stamp(self) -> object:
        return hash(tuple(self.files.items()))

    def read(self) -> KeyFiles:
        key, passphrase = "ssh-privatekey", "passphrase"
        names = [key, passphrase, f"{key}-next", f"{passphrase}-next", f"{key}-revoked"]
        names += [f"{key}-cert.pub", f"{key}-next-cert.pub"]
        found = [MountedFile(self.files[name].encode()) if name in self.files else MountedFile() for name in names]
        return KeyFiles(found[0], found[1], tuple(sorted(self.files)), *found[2:])


def write_key_directory(directory: Path, files: dict[str, str]) -> None:
    """Writes files as the kubelet mounts a Secret: a link for each key, swapped at once."""
    directory.mkdir(parents=True, exist_ok=True)
    generation = 1 + max((int(path.name[6:]) for path in directory.glob("..gen-*")), default=0)
    data = directory / f"..gen-{generation}"
    data.mkdir()
    for name, content in files.items():
        (data / name).write_text(content)
    link = directory / "..new"
    link.symlink_to(data.name)
    link.rename(directory / "..data")
    for path in directory.iterdir():
        if not path.name.startswith("..") and path.name not in files:
            path.unlink()
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
