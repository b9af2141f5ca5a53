"""What people make keys and certificates with: OpenSSH's ssh-keygen and PuTTY's puttygen."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.debian import ensure_packages
from tests.support.keys import KeyPair
from tests.support.processes import run

PACKAGES = {"openssh-client": "ssh-keygen makes keys", "putty-tools": "puttygen makes keys"}

PASSPHRASE = "open sesame"


@dataclass(frozen=True)
class MadeKey:
    """A key's file, and its public half."""

    text: str = field(repr=False)
    public: str
    """Type and base64."""


@contextmanager
def _directory() -> Iterator[Path]:
    ensure_packages(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def openssh_key(kind: str, *options: str, passphrase: str = "") -> MadeKey:
    """A key as ssh-keygen writes it. `kind`: as its -t; `options`: further ones. An encrypted one costs no time."""
    with _directory() as directory:
        file = directory / "key"
        run(["ssh-keygen", "-q", "-t", kind, "-a", "1", "-C", "tests", "-N", passphrase, *options, "-f", file])
        return MadeKey(file.read_text(), _words(directory / "key.pub"))


def putty_key(
    key: MadeKey, *parameters: str, passphrase: str = "", form: str = "private", certificate: str | None = None
) -> MadeKey:
    """A key, not encrypted, as puttygen writes it. `parameters`: of its --ppk-param; `form`: its -O."""
    with _directory() as directory:
        for name, text in (("key", key.text), ("new", passphrase), ("certificate", certificate or "")):
            (directory / name).write_text(text)
        words = ["puttygen", f"{directory}/key", "-O", form, "-o", f"{directory}/made"]
        words += ["--new-passphrase", f"{directory}/new", "-P"]
        words += ["--certificate", f"{directory}/certificate"] if certificate else []
        run([*words, *(["--ppk-param", ",".join(parameters)] if parameters else [])])
        return MadeKey((directory / "made").read_text(), key.public)


def new_putty_key(kind: str) -> MadeKey:
    """A key that puttygen makes, of a kind that ssh-keygen may not know."""
    with _directory() as directory:
        (directory / "new").touch()
        made = directory / "made"
        random = ["--random-device", "/dev/urandom", "--new-passphrase", f"{directory}/new"]
        run(["puttygen", "-q", "-t", kind, *random, "-o", made])
        return MadeKey(made.read_text(), " ".join(run(["puttygen", made, "-L"]).split()[:2]))


def certificate_of(public: str, authority: KeyPair, *options: str) -> str:
    """What ssh-keygen -s writes as KEY-cert.pub. `options`: its further ones, such as -n and -V."""
    with _directory() as directory:
        signer = directory / "authority"
        signer.touch(0o600)
        signer.write_text(authority.private)
        (directory / "key.pub").write_text(f"{public} tests\n")
        run(["ssh-keygen", "-q", "-s", signer, *options, directory / "key.pub"])
        return (directory / "key-cert.pub").read_text()


def _words(file: Path) -> str:
    return " ".join(file.read_text().split()[:2])
