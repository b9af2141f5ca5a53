"""What a team keeps in git for Argo CD: the operator and its tunnels, in each form that docs/argocd.md shows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.support.bastion import Bastion
from tests.support.chart import CHART, template
from tests.support.databases import PostgresServer
from tests.support.installation import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.keys import key_pair
from tests.support.private_network import config_map, secret
from tests.support.processes import ROOT
from tests.support.tunnels import Manifest

SHOP = "shop"

DOCUMENT = ROOT / "docs" / "argocd.md"

WAVE = "argocd.argoproj.io/sync-wave"

HELM_LABELS = {"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "shop-1.0.0"}
HELM_ANNOTATIONS = {"meta.helm.sh/release-name": "shop"}
"""As on what Helm installs."""

FORMS = ("manifests", "chart", "kustomize")
"""The names of the documented Applications."""


def documented(kind: str) -> dict[str, Manifest]:
    """The objects of a kind that the document shows, by name."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    documents = [document for block in blocks for document in yaml.safe_load_all(block)]
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


@dataclass(frozen=True)
class Shop:
    """The tunnels of a team, and what they lead to: one database, through either of two bastions."""

    database: PostgresServer
    bastion: Bastion
    spare: Bastion
    private_key: str

    @classmethod
    def start(cls, directory: Path, host: str) -> "Shop":
        """`host`: the address of this machine that pods reach."""
        pair = key_pair()
        database = PostgresServer(directory / "database").start()
        names = {"orders.internal": database.host}
        bastion, spare = (Bastion(directory / name, host=host, hosts=names) for name in ("bastion", "spare"))
        for one in (bastion, spare):
            one.authorize(authorized_keys_line(pair.public, "shop", ("orders.internal", database.port)))
            one.start()
        return cls(database, bastion, spare, pair.private)

    def stop(self) -> None:
        """Ends the servers."""
        for server in (self.spare, self.bastion, self.database):
            server.stop()

    def tunnel(self, name: str, bastion: Bastion, wave: int, **spec: Any) -> Manifest:
        """A tunnel through a bastion, with the key of the Secret unless `spec` has a `tunnel` of its own."""
        way = {
            "host": bastion.host,
            "port": bastion.port,
            "keySecretRef": {"name": "shop-ssh"},
            "hostKey": {"fingerprints": list(bastion.fingerprints.values())},
        }
        database = {"host": "orders.internal", "port": self.database.port}
        return {
            "apiVersion": "dbtunnel.dev/v1alpha1",
            "kind": "DatabaseTunnel",
            "metadata": {
                "name": name,
                "namespace": SHOP,
                "labels": HELM_LABELS,
                "annotations": {WAVE: str(wave), **HELM_ANNOTATIONS},
            },
            "spec": {"engine": "PostgreSQL", "database": database, "tunnel": {**way, **spec.pop("tunnel", {})}, **spec},
        }

    def secret(self) -> Manifest:
        """The tunnels' key, before all else."""
        return _in_wave(secret(SHOP, "shop-ssh", {"ssh-privatekey": self.private_key}), -1)

    def tunnels(self) -> list[Manifest]:
        """Of the second wave, and the application of the third, for which a settings object stands."""
        return [
            self.tunnel("orders", self.bastion, 1),
            # a bastion that is back is found at once, however long it was away
            self.tunnel("reports", self.spare, 1, parking={"maxSeconds": 300}),
            _in_wave(config_map(SHOP, "application", {"DATABASE_HOST": f"orders.{SHOP}.svc"}), 2),
        ]

    def files(self, form: str, image: str) -> dict[str, str]:
        """The content of the repository in this form."""
        tunnels = [*self.tunnels()]
        if form == "chart":
            chart = {f"charts/dbtunnel-operator/{name}": text for name, text in _texts(CHART).items()}
            return {**chart, "tunnels/tunnels.yaml": _yaml(self.secret(), *tunnels)}
        operator = {f"{form}/operator.yaml": _operator(image)}
        if form == "manifests":
            return {**operator, "manifests/tunnels.yaml": _yaml(self.secret(), *tunnels)}
        return {
            **operator,
            "kustomize/tunnels.yaml": _yaml(*tunnels),
            "kustomize/ssh-privatekey": self.private_key,
            "kustomize/kustomization.yaml": yaml.safe_dump(_KUSTOMIZATION),
            "kustomize/names.yaml": (ROOT / "examples" / "kustomize" / "names.yaml").read_text(),
        }


def application(form: str, url: str, image: str) -> Manifest:
    """The documented Application, with another repository and, where the chart is installed, this image."""
    found = documented("Application")[form]
    for source in found["spec"].get("sources") or [found["spec"]["source"]]:
        source["repoURL"] = url
        if "helm" in source:
            repository, _, tag = image.rpartition(":")
            source["helm"]["valuesObject"] = {"image": {"repository": repository, "tag": tag}}
    return found


_KUSTOMIZATION: Manifest = {
    "apiVersion": "kustomize.config.k8s.io/v1beta1",
    "kind": "Kustomization",
    "resources": ["operator.yaml", "tunnels.yaml"],
    "secretGenerator": [
        {"name": "shop-ssh", "namespace": SHOP, "files": ["ssh-privatekey"], "options": {"annotations": {WAVE: "-1"}}}
    ],
    "configurations": ["names.yaml"],
}


def _operator(image: str) -> str:
    repository, _, tag = image.rpartition(":")
    done = template({"image": {"repository": repository, "tag": tag}}, release="dbtunnel")
    assert done.returncode == 0, done.stderr
    assert OPERATOR_NAMESPACE in done.stdout
    return done.stdout


def _texts(folder: Path) -> Mapping[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def _in_wave(manifest: Manifest, wave: int) -> Manifest:
    manifest["metadata"]["annotations"] = {WAVE: str(wave)}
    return manifest


def _yaml(*manifests: Manifest) -> str:
    return yaml.safe_dump_all(manifests, sort_keys=False)
