"""A container image from one static program, in docker-archive form: the pause container, and a shell for probes."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from tests.support.debian import ensure_packages

BUSYBOX_IMAGE = "localhost/dbtunnel-busybox:1"
"""Reference of the image; nothing is ever pulled under it."""


def busybox_archive(target: Path) -> Path:
    """Writes the image of Debian's static busybox. Without a command it sleeps. Its `wget -T` crashes."""
    ensure_packages({"busybox-static": "the local cluster's pause container, and a shell for probes"})
    layer = _layer(Path("/bin/busybox"))
    digest = hashlib.sha256(layer).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox"], "Cmd": ["sleep", "1000000000"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [BUSYBOX_IMAGE], "Layers": ["layer.tar"]}]
    with tarfile.open(target, "w") as archive:
        _add(archive, "config.json", json.dumps(config).encode())
        _add(archive, "layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    return target


def _layer(program: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        _add(layer, "bin/busybox", program.read_bytes(), mode=0o755)
        for name in ("sh", "sleep", "wget", "nslookup", "nc", "cat", "ls", "id"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))
