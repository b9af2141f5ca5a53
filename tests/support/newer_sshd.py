"""An sshd with PerSourcePenalties, which came with 9.8: the machine's own, else that of a later Debian.

The later one runs in a folder with its own libraries (`chroot`). apt gets the packages and checks their signatures.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tests.support.bastion import PACKAGES, sshd_program
from tests.support.binaries import Store, cache_directory, say
from tests.support.debian import MissingPackageError, ensure_packages
from tests.support.images.debian_base import machine_release
from tests.support.processes import run

RELEASE = "trixie"
"""Debian 13, with OpenSSH 10.0."""

_MIRROR = "DEBIAN_MIRROR"
"""The variable that names a mirror of Debian on a machine that is no Debian."""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

_FIRST_WITH_PENALTIES = (9, 8)

_NEEDED = (
    "openssh-server",
    "libaudit1",
    "libc6",
    "libcap-ng0",
    "libcom-err2",
    "libcrypt1",
    "libgssapi-krb5-2",
    "libk5crypto3",
    "libkeyutils1",
    "libkrb5-3",
    "libkrb5support0",
    "libpam0g",
    "libpcre2-8-0",
    "libselinux1",
    "libsqlite3-0",
    "libssl3t64",
    "libwrap0",
    "libwtmpdb0",
    "libzstd1",
    "zlib1g",
)
"""The server and the libraries of all its programs."""

_PROGRAMS = ("/usr/sbin/sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth")

_NEEDLESS = ("./usr/share", "./usr/lib/x86_64-linux-gnu/gconv", "./usr/lib/x86_64-linux-gnu/perl*")


def root_of_newer_sshd(directory: Path) -> Path | None:
    """A folder with such an sshd, laid out below `directory`; None where the machine's own will do.

    Raises MissingPackageError.
    """
    archive = _archive()
    if archive is None:
        return None
    root = directory / "root"
    root.mkdir()
    run(["tar", "-C", root, "-xf", archive])
    return root


def prepare() -> None:
    """Gets what is missing. Raises MissingPackageError."""
    _archive()


@cache
def _archive() -> Path | None:
    ensure_packages(PACKAGES)
    if _version() >= _FIRST_WITH_PENALTIES:
        return None
    store = Store(cache_directory() / "sshd")
    with store.locked():
        return store.find(f"{RELEASE}.tar") or _make(store)


def _version() -> tuple[int, ...]:
    told = subprocess.run([sshd_program(), "-V"], capture_output=True, text=True, check=False).stderr
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", told)
    return tuple(map(int, found.groups())) if found else (0,)


def _make(store: Store) -> Path:
    if os.geteuid() != 0:
        raise MissingPackageError(
            "an sshd of 9.8 or later is needed, for its penalties, and this machine's is older; run as root, so that "
            f"that of Debian {RELEASE} can be used"
        )
    ensure_packages({"debian-archive-keyring": f"the signatures of Debian {RELEASE}"})
    say(f"getting sshd with its libraries from Debian {RELEASE}, since this machine's has no penalties; some seconds")
    with store.scratch() as scratch:
        root = scratch / "root"
        for package in _download(scratch):
            run(["dpkg-deb", "-x", package, _laid_out(root)])
        for program in _PROGRAMS:  # a later version may need a library more
            run(["chroot", root, "/lib64/ld-linux-x86-64.so.2", "--list", program])
        archive = scratch / "root.tar"
        leave_out = [f"--exclude={pattern}" for pattern in _NEEDLESS]
        run(["tar", "-C", root, *leave_out, "-cf", archive, "."])
        return store.put(f"{RELEASE}.tar", archive)


def _mirror() -> str:
    """This machine's own, where it is a Debian. Raises MissingPackageError."""
    if "ID=debian\n" in Path("/etc/os-release").read_text():
        return machine_release().mirror
    if mirror := os.environ.get(_MIRROR):
        return mirror
    raise MissingPackageError(
        f"an sshd of 9.8 or later is needed, for its penalties, and comes from Debian {RELEASE} here: write the "
        f"address of a mirror of Debian into {_MIRROR}"
    )


def _laid_out(root: Path) -> Path:
    """What Debian's own first packages would make, and what sshd looks for in a system."""
    if root.exists():
        return root
    for name in ("dev", "etc", "mnt", "run/sshd", "usr/bin", "usr/lib", "usr/lib64", "usr/sbin"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64", "sbin"):
        (root / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "shadow", "hosts"):
        (root / "etc" / name).touch()  # the bastion's own are mounted there
    (root / "etc/nsswitch.conf").write_text("hosts: files\n")
    shell = root / "bin/sh"  # never run; sshd lets in nobody without one
    shell.touch()
    shell.chmod(0o755)
    return root


def _download(scratch: Path) -> Sequence[Path]:
    """The packages, by an apt that knows nothing of this machine."""
    for name in ("state/lists/partial", "cache/archives/partial", "packages"):
        (scratch / name).mkdir(parents=True)
    (scratch / "status").touch()
    mirror = _mirror()
    (scratch / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {mirror} {RELEASE} main\n")
    options = {
        "Dir::State": scratch / "state",
        "Dir::State::status": scratch / "status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "APT::Sandbox::User": "root",  # which may read the folder
    }
    apt = ["apt-get", "-q", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    for words in (["update"], ["download", *_NEEDED]):
        done = subprocess.run([*apt, *words], cwd=scratch / "packages", capture_output=True, text=True, check=False)
        if done.returncode:
            raise MissingPackageError(f"apt-get could not get sshd from Debian {RELEASE}: {done.stderr[-2000:]}")
    return sorted((scratch / "packages").glob("*.deb"))
