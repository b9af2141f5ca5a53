"""Command lines and configurations of a local cluster's components."""

from collections.abc import Mapping
from typing import Any

from tests.support.cluster.images import BUSYBOX_IMAGE

Layout = Mapping[str, str]

_QUEUE = 100
"""Number of the queue in which packets wait for a verdict on them."""


def commands(layout: Layout, programs: Mapping[str, str]) -> dict[str, list[str]]:
    """Each component's command line, in the order in which they start."""
    directory = layout["directory"]
    pki = f"{directory}/pki"
    leader = "--leader-elect=false"
    return {
        "etcd": [
            programs["etcd"],
            f"--data-dir={directory}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ],
        "containerd": ["containerd", "--config", f"{directory}/containerd.toml"],
        "kube-apiserver": [programs["kube-apiserver"], *_api_server(layout, pki)],
        "kube-controller-manager": [
            programs["kube-controller-manager"],
            f"--kubeconfig={pki}/kube-controller-manager.kubeconfig",
            f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/service-account.key",
            "--use-service-account-credentials",
            "--secure-port=0",
            leader,
        ],
        "kube-scheduler": [
            programs["kube-scheduler"],
            f"--kubeconfig={pki}/kube-scheduler.kubeconfig",
            "--secure-port=0",
            leader,
        ],
        "kubelet": [
            programs["kubelet"],
            f"--kubeconfig={pki}/kubelet.kubeconfig",
            f"--config={directory}/kubelet.yaml",
            f"--root-dir={directory}/kubelet",
            "--hostname-override=node",
            f"--node-ip={layout['node']}",
        ],
        "kube-proxy": [programs["kube-proxy"], f"--config={directory}/kube-proxy.yaml"],
        "netpol": [programs["netpol"], f"--kubeconfig={pki}/netpol.kubeconfig", "--node=node", f"--queue={_QUEUE}"],
        "coredns": [programs["coredns"], "-conf", f"{directory}/Corefile"],
    }


def diversions(layout: Layout) -> list[list[str]]:
    """Rules of iptables' chain mangle/POSTROUTING: which packets need a verdict by the NetworkPolicies.

    There a packet to a Service has the address of its pod already, and its sender's own. A connection that a policy no
    longer admits is cut: every packet to a pod is asked about, but for answers. One that leaves the cluster's pods is
    asked about once. The node's own programs reach every pod, as the kubelet's probes must.
    """
    verdict = ["-j", "NFQUEUE", "--queue-num", str(_QUEUE), "--queue-bypass"]
    pods = layout["pods"]
    return [
        ["-m", "owner", "--uid-owner", "0", "-j", "ACCEPT"],
        ["-d", pods, "-m", "conntrack", "--ctdir", "ORIGINAL", *verdict],
        ["-s", pods, "!", "-d", pods, "-m", "conntrack", "--ctstate", "NEW", *verdict],
    ]


def _api_server(layout: Layout, pki: str) -> list[str]:
    return [
        f"--advertise-address={layout['node']}",
        "--secure-port=6443",
        "--etcd-servers=http://127.0.0.1:2379",
        f"--service-cluster-ip-range={layout['services']}",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={pki}/service-account.key",
        f"--service-account-signing-key-file={pki}/service-account.key",
        f"--kubelet-client-certificate={pki}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={pki}/apiserver-kubelet-client.key",
        "--kubelet-preferred-address-types=InternalIP",
        "--authorization-mode=Node,RBAC",
        "--allow-privileged",
        # as on OpenShift, where an owner that blocks deletion needs a permission of its own
        "--enable-admission-plugins=NodeRestriction,OwnerReferencesPermissionEnforcement",
        f"--audit-policy-file={layout['directory']}/audit-policy.yaml",
        f"--audit-log-path={layout['directory']}/audit.log",
    ]


def kubelet_config(layout: Layout) -> dict[str, Any]:
    """A node that neither evicts nor collects images on a machine that others fill."""
    nothing = dict.fromkeys(("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available"), "0%")
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{layout['directory']}/pki/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [layout["node"]],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout['cgroup']}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "evictionHard": nothing,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": False,
        "maxPods": 200,
        "healthzPort": 0,
        "nodeStatusUpdateFrequency": "2s",
        "serializeImagePulls": False,
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
    }


def proxy_config(layout: Layout) -> dict[str, Any]:
    """Services by iptables; sysctls of connection tracking may be read-only here."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{layout['directory']}/pki/kube-proxy.kubeconfig"},
        "mode": "iptables",
        "clusterCIDR": layout["pods"],
        "hostnameOverride": "node",
        "iptables": {"minSyncPeriod": "0s", "masqueradeBit": 14},
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def cni_config(layout: Layout) -> dict[str, Any]:
    """A routed veth pair for each pod."""
    addresses = {
        "type": "host-local",
        "dataDir": "/run/cni-addresses",
        "ranges": [[{"subnet": layout["pods"]}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "1.0.0",
        "name": "routed",
        "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}],
    }


def containerd_config(layout: Layout) -> str:
    """containerd with everything in the cluster's own directory; no registry is ever asked."""
    directory = layout["directory"]
    return f"""\
version = 2
root = "{directory}/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{BUSYBOX_IMAGE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{directory}/cni"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
"""


def coredns_config(layout: Layout) -> str:
    """Names of the cluster; every other name has no address, at once."""
    return f"""\
cluster.local:53 {{
    bind {layout["node"]}
    errors
    kubernetes cluster.local {{
        kubeconfig {layout["directory"]}/pki/coredns.kubeconfig local
        ttl 0
    }}
}}
.:53 {{
    bind {layout["node"]}
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"""
