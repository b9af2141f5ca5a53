"""Which programs the tests use beside Debian's packages, of which version, and where each comes from."""

from collections.abc import Mapping
from dataclasses import dataclass

KUBERNETES, ETCD, HELM, KIND, COREDNS = "1.36.3", "3.7.3", "4.3.1", "0.33.0", "1.14.7"
ARGOCD, KUSTOMIZE, ACTIONLINT = "3.6.1", "5.8.1", "1.7.12"
"""Versions; those of the modules in localcluster/ are the same."""


@dataclass(frozen=True)
class Source:
    """Where a program comes from."""

    module: str
    """Folder of the Go module that builds it."""
    package: str
    url: str = ""
    """Of the file, or of the archive that has it, on the official site; `DBTUNNEL_DOWNLOAD_BASE` replaces the site.
    Empty where there is no release."""
    checksum: str = ""
    """Of the text with its SHA-256: alone, or in lines of `sha256sum`."""
    member: str = ""
    """Name within the archive."""
    files: str = ""
    """Pattern of files in the module `package`: they are put together, nothing is built, and there is no release."""


_KUBERNETES_SITE = f"https://dl.k8s.io/release/v{KUBERNETES}/bin/linux/amd64"
_KIND_SITE = f"https://github.com/kubernetes-sigs/kind/releases/download/v{KIND}"
_ETCD_SITE = f"https://github.com/etcd-io/etcd/releases/download/v{ETCD}"
_ARGOCD_SITE = f"https://github.com/argoproj/argo-cd/releases/download/v{ARGOCD}"
_KUSTOMIZE_SITE = f"https://github.com/kubernetes-sigs/kustomize/releases/download/kustomize%2Fv{KUSTOMIZE}"
_ACTIONLINT_SITE = f"https://github.com/rhysd/actionlint/releases/download/v{ACTIONLINT}"
_COREDNS_SITE = f"https://github.com/coredns/coredns/releases/download/v{COREDNS}"


def _monitoring(files: str) -> Source:
    files = f"example/prometheus-operator-crd/monitoring.coreos.com_{files}"
    return Source("monitoring", "github.com/prometheus-operator/prometheus-operator", files=files)


def _kubernetes(name: str) -> Source:
    site = f"{_KUBERNETES_SITE}/{name}"
    return Source("kubernetes", f"k8s.io/kubernetes/cmd/{name}", site, f"{site}.sha256")


_FLUX = {"helm-controller": "helm-controller", "kustomize-controller": "flux", "source-controller": "flux"}
"""Flux's controllers, and the folder of the Go module that builds each: they need two releases of Helm's libraries."""

SOURCES: Mapping[str, Source] = {
    **{
        name: _kubernetes(name)
        for name in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kubelet",
            "kube-proxy",
            "kubectl",
        )
    },
    "etcd": Source(
        "kubernetes",
        "go.etcd.io/etcd/server/v3",
        f"{_ETCD_SITE}/etcd-v{ETCD}-linux-amd64.tar.gz",
        f"{_ETCD_SITE}/SHA256SUMS",
        f"etcd-v{ETCD}-linux-amd64/etcd",
    ),
    "helm": Source(
        "tools",
        "helm.sh/helm/v4/cmd/helm",
        f"https://get.helm.sh/helm-v{HELM}-linux-amd64.tar.gz",
        f"https://get.helm.sh/helm-v{HELM}-linux-amd64.tar.gz.sha256sum",
        "linux-amd64/helm",
    ),
    "kind": Source(
        "tools",
        "sigs.k8s.io/kind",
        f"{_KIND_SITE}/kind-linux-amd64",
        f"{_KIND_SITE}/kind-linux-amd64.sha256sum",
    ),
    "coredns": Source(
        "tools",
        "github.com/coredns/coredns",
        f"{_COREDNS_SITE}/coredns_{COREDNS}_linux_amd64.tgz",
        f"{_COREDNS_SITE}/coredns_{COREDNS}_linux_amd64.tgz.sha256",
        "coredns",
    ),
    "argocd": Source(
        "argocd",
        "github.com/argoproj/argo-cd/v3/cmd",
        f"{_ARGOCD_SITE}/argocd-linux-amd64",
        f"{_ARGOCD_SITE}/cli_checksums.txt",
    ),
    # those of Application and AppProject: that of ApplicationSet has 1.6 MB, and nobody needs it
    "argocd-crds.yaml": Source("argocd", "github.com/argoproj/argo-cd/v3", files="manifests/crds/app*[!e]?-crd.yaml"),
    "monitor-crds.yaml": _monitoring("*monitors.yaml"),
    "rule-crd.yaml": _monitoring("prometheusrules.yaml"),
    "kustomize": Source(
        "kustomize",
        "sigs.k8s.io/kustomize/kustomize/v5",
        f"{_KUSTOMIZE_SITE}/kustomize_v{KUSTOMIZE}_linux_amd64.tar.gz",
        f"{_KUSTOMIZE_SITE}/checksums.txt",
        "kustomize",
    ),
    "actionlint": Source(
        "actionlint",
        "github.com/rhysd/actionlint/cmd/actionlint",
        f"{_ACTIONLINT_SITE}/actionlint_{ACTIONLINT}_linux_amd64.tar.gz",
        f"{_ACTIONLINT_SITE}/actionlint_{ACTIONLINT}_checksums.txt",
        "actionlint",
    ),
    # the modules have programs of their own
    "kstatus": Source("kstatus", "."),
    "netpol": Source("netpol", "."),
    **{name: Source(module, f"github.com/fluxcd/{name}") for name, module in _FLUX.items()},
    **{
        f"{name}-crds.yaml": Source(module, f"github.com/fluxcd/{name}", files="config/crd/bases/*.yaml")
        for name, module in _FLUX.items()
    },
}
"""Every program that the tests use beside Debian's packages."""
