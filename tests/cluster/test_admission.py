"""The chart's admission policies in a real API server: what passes, what is refused with which words, and the operator
under them.
"""

import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.api.pods import PodSecurity
from dbtunnel.domain.children import build_deployment, build_disruption_budget, build_network_policy, build_service
from dbtunnel.domain.names import REFRESH_ANNOTATION
from dbtunnel.domain.secrets import build_binding, build_key_secret
from dbtunnel.domain.settings import Installation
from tests.support.admission import (
    ALLOWED,
    DATABASES,
    REFUSED,
    SELINUX,
    SSH_SERVERS,
    alias,
    leading_to,
    policies,
    refusals,
)
from tests.support.cluster import Cluster, ClusterError
from tests.support.operator import FORWARDER_IMAGE, Operator
from tests.support.processes import wait_until
from tests.support.tunnels import (
    CHILDREN,
    Manifest,
    apply,
    condition,
    failure,
    find,
    patch,
    pods,
    tunnel_manifest,
    wait_for_children,
)
from tests.support.values import tunnel as parsed


@pytest.fixture(scope="module", autouse=True)
def in_force(operator: Operator) -> Iterator[None]:
    """The policies, while these tests run."""
    cluster, installed = operator.cluster, policies(SSH_SERVERS, DATABASES)
    apply(cluster, *installed)
    bad = tunnel_manifest("default")
    own = [{**deployment(), "metadata": {"name": "bad", "namespace": "default"}}]
    as_operator = f"--as={operator.user}"
    wait_until(lambda: refusals(cluster, [bad]) and refusals(cluster, own, as_operator), "the policies", 30)
    for one in cluster.get("validatingadmissionpolicies")["items"]:
        assert not one.get("status", {}).get("typeChecking", {}).get("expressionWarnings"), one["metadata"]["name"]
    yield
    names = [f"{one['kind'].lower()}/{one['metadata']['name']}" for one in installed]
    cluster.kubectl("delete", *names)


# --- tunnels ----------------------------------------------------------------------------------------------------


def test_tunnels_lead_where_the_values_say(operator: Operator) -> None:
    allowed = [_named(one, f"allowed-{number}") for number, one in enumerate(ALLOWED)]
    refused = [_named(one, f"refused-{number}") for number, (one, _) in enumerate(REFUSED)]

    said = refusals(operator.cluster, [*allowed, *refused])

    assert [name for name in said if name.startswith("allowed")] == [], said
    for one, (manifest, words) in zip(refused, REFUSED, strict=True):
        text = said.get(one["metadata"]["name"], "passed")
        assert words in text, (manifest["spec"], text)
    assert "Use one of them, or ask who runs the cluster to add it to admissionPolicies.tunnels." in said["refused-0"]
    print(f"\ntunnels: {len(allowed)} let pass, {len(refused)} refused")


def _named(manifest: Manifest, name: str) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "name": name}}


def test_a_tunnel_of_before_can_be_switched_off_but_not_led_elsewhere(operator: Operator) -> None:
    """With no entries any server is allowed that is not the pod itself; entries come later."""
    cluster = operator.cluster
    elsewhere = leading_to("10.9.9.9", database={"host": "orders.example.com"})
    apply(cluster, *policies([], []))
    wait_until(lambda: not refusals(cluster, [elsewhere]), "policies without entries", 30)
    said = refusals(cluster, [_named(one, f"refused-{number}") for number, (one, _) in enumerate(REFUSED)])
    assert len(said) == sum("is a l" in words for _, words in REFUSED)
    apply(cluster, elsewhere)
    apply(cluster, *policies(SSH_SERVERS, DATABASES))
    wait_until(lambda: refusals(cluster, [_named(elsewhere, "another")]), "policies with entries", 30)

    cluster.kubectl("label", "databasetunnel", "orders", "-n", "default", "team=data")
    patch(cluster, "default", "databasetunnel/orders", {"spec": {"suspend": True}})
    with pytest.raises(ClusterError, match="is not among the SSH servers"):
        patch(cluster, "default", "databasetunnel/orders", {"spec": {"tunnel": {"user": "other"}}})
    patch(cluster, "default", "databasetunnel/orders", {"spec": {"tunnel": {"host": "203.0.113.1"}, "database": DB}})
    cluster.kubectl("delete", "databasetunnel", "orders", "-n", "default")


DB = {"host": "orders.internal"}

# --- the operator -----------------------------------------------------------------------------------------------

FULL = {
    "tunnel.jumpHosts": [
        {"host": "203.0.113.1", "keySecretRef": {"name": "jump"}, "hostKey": {"knownHostsRef": {"name": "hosts"}}}
    ],
    "tunnel.hostKey": {"knownHostsRef": {"kind": "Secret", "name": "hosts"}},
    "tunnel.fallbacks": [{"host": "203.0.113.2", "keySecretRef": {"name": "second"}}],
    "replicas": 16,
    "podTemplate": {
        "labels": {"team": "data"},
        "annotations": {"note": "kept"},
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"operator": "Exists"}],
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
        **alias("203.0.113.9"),
    },
}

INSTALLATION = Installation(forwarder_image=FORWARDER_IMAGE, operator_namespace="default")


def in_default(manifest: Manifest) -> Manifest:
    return {**manifest, "metadata": {**manifest["metadata"], "namespace": "default"}}


def deployment(changes: Mapping[str, Any] | None = None, installation: Installation = INSTALLATION) -> Manifest:
    return in_default(build_deployment(parsed(changes), installation))


KEY = in_default(build_key_secret(parsed(), {"ssh-privatekey": "private", "ssh-publickey": "public"}))
BINDING = in_default(build_binding(parsed({"serviceBinding": "Enabled"})) or {})


def altered(manifest: Manifest, path: str, value: Any) -> Manifest:
    """A copy with another value at a path, in which numbers are places of lists; None takes it away."""
    copy = deepcopy(manifest)
    place: Any = copy
    *above, last = [int(word) if word.isdigit() else word for word in path.split("/")]
    for word in above:
        place = place[word]
    if value is None:
        del place[last]
    elif isinstance(place, list) and last == len(place):
        place.append(value)
    else:
        place[last] = value
    return copy


POD, CONTAINER = "spec/template/spec", "spec/template/spec/containers/0"
APPARMOR = "container.apparmor.security.beta.kubernetes.io/forwarder"
SPY = {"name": "spy", "image": FORWARDER_IMAGE}
SERVICE = in_default(build_service(parsed()))
NETWORK_POLICY = in_default(build_network_policy(parsed(), INSTALLATION))
BUDGET = in_default(build_disruption_budget(parsed()))
FROM_SECRET = {"name": "POD_UID", "valueFrom": {"secretKeyRef": {"name": "other", "key": "token"}}}

BAD_DEPLOYMENTS: tuple[tuple[str, Any, str], ...] = (
    *((f"{POD}/{field}", True, "no host namespace") for field in ("hostNetwork", "hostPID", "hostIPC")),
    (f"{POD}/shareProcessNamespace", True, "no host namespace"),
    (f"{POD}/nodeName", "node", "no host namespace"),
    (f"{POD}/runtimeClassName", "kata", "no host namespace"),
    (f"{CONTAINER}/ports/0/hostPort", 15432, "no host port"),
    (f"{POD}/serviceAccountName", "admin", "spec.template.spec.serviceAccountName"),
    (f"{POD}/automountServiceAccountToken", True, "and no token"),
    (f"{POD}/automountServiceAccountToken", None, "and no token"),
    (f"{POD}/containers/1", SPY, "one container"),
    (f"{POD}/initContainers", [SPY], "no init container"),
    (f"{CONTAINER}/image", "example.com/evil:1", "example.com/evil:1 is not the forwarder's image, localhost/none:1"),
    (f"{CONTAINER}/command", ["sh"], "a forwarder's command is the image's"),
    (f"{CONTAINER}/args", ["operator"], "a forwarder's command is the image's"),
    (f"{CONTAINER}/args/1", "--listen=0.0.0.0:1", "a forwarder's command is the image's"),
    (f"{CONTAINER}/lifecycle", {"preStop": {"exec": {"command": ["sh"]}}}, "a forwarder's command is the image's"),
    *(
        (f"{CONTAINER}/{probe}Probe", {"exec": {"command": ["sh"]}}, "a forwarder's probes are httpGet")
        for probe in ("liveness", "readiness", "startup")
    ),
    (f"{CONTAINER}/startupProbe", {"httpGet": {"path": "/livez", "port": "admin"}}, "a forwarder's probes are httpGet"),
    *(
        (f"{CONTAINER}/livenessProbe/httpGet/{field}", value, "a forwarder's probes are httpGet")
        for field, value in (
            ("host", "169.254.169.254"),
            ("path", "/"),
            ("port", 22),
            ("scheme", "HTTPS"),
            ("httpHeaders", [{"name": "a", "value": "b"}]),
        )
    ),
    (f"{CONTAINER}/readinessProbe", {"tcpSocket": {"port": "admin"}}, "a forwarder's probes are httpGet"),
    (f"{CONTAINER}/env/2", {"name": "PYTHONPATH", "value": "/tmp"}, "containers[0].env"),
    (f"{CONTAINER}/env/1", FROM_SECRET, "nothing from a Secret"),
    (f"{CONTAINER}/envFrom", [{"secretRef": {"name": "other"}}], "nothing from a Secret"),
    (f"{POD}/securityContext/runAsNonRoot", False, "is restricted"),
    (f"{POD}/securityContext/runAsUser", 0, "is restricted"),
    (f"{POD}/securityContext/seccompProfile", {"type": "Unconfined"}, "is restricted"),
    (f"{POD}/securityContext/sysctls", [{"name": "net.ipv4.ip_forward", "value": "1"}], "is restricted"),
    (f"{POD}/securityContext", None, "is restricted"),
    (f"{CONTAINER}/securityContext", None, "is restricted"),
    (f"{CONTAINER}/securityContext", {"privileged": True}, "is restricted"),
    (f"{CONTAINER}/securityContext/runAsUser", 0, "is restricted"),
    (f"{CONTAINER}/securityContext/runAsNonRoot", False, "is restricted"),
    (f"{CONTAINER}/securityContext/readOnlyRootFilesystem", False, "is restricted"),
    (f"{CONTAINER}/securityContext/allowPrivilegeEscalation", None, "is restricted"),
    (f"{CONTAINER}/securityContext/seccompProfile", {"type": "Unconfined"}, "is restricted"),
    (f"{CONTAINER}/securityContext/capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]}, "is restricted"),
    (f"{CONTAINER}/securityContext/capabilities", {"drop": ["NET_RAW"]}, "is restricted"),
    *(
        (f"{place}/securityContext/{field}", value, words)
        for place in (POD, CONTAINER)
        for field, value, words in (
            ("appArmorProfile", {"type": "Unconfined"}, "no AppArmor profile"),
            ("windowsOptions", {"runAsUserName": "ContainerAdministrator"}, "no Windows options"),
            ("seLinuxOptions", {"type": "spc_t"}, "no SELinux labels but those of settings.forwarderPodSecurity"),
        )
    ),
    (f"{POD}/securityContext/seLinuxOptions", {"level": "s0:c3"}, "no SELinux labels but"),
    (f"{CONTAINER}/securityContext/seLinuxOptions", SELINUX, "no SELinux labels but"),
    ("spec/template/metadata/annotations", {APPARMOR: "unconfined"}, "no AppArmor profile"),
    *(
        (f"{POD}/volumes/1", {"name": name, **source}, "spec.template.spec.volumes")
        for name, source in (
            ("spy", {"secret": {"secretName": "other"}}),
            ("known-hosts", {"hostPath": {"path": "/"}}),
            ("known-hosts", {"emptyDir": {}}),
            ("known-hosts", {"persistentVolumeClaim": {"claimName": "data"}}),
            ("known-hosts", {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}),
            ("hop-1-key", {"configMap": {"name": "other"}}),
        )
    ),
    (f"{CONTAINER}/volumeMounts/0/mountPath", "/opt/dbtunnel", "below /etc/dbtunnel"),
    (f"{CONTAINER}/volumeMounts/0/readOnly", None, "read-only"),
    ("spec/replicas", 17, "at most 16"),
    ("metadata/labels", {}, "that have its label and a DatabaseTunnel for their controller"),
    ("metadata/ownerReferences", [], "that have its label and a DatabaseTunnel for their controller"),
    ("metadata/ownerReferences/0/controller", False, "a DatabaseTunnel for their controller"),
    ("metadata/ownerReferences/0/kind", "Deployment", "a DatabaseTunnel for their controller"),
)

BAD_OTHERS: tuple[tuple[Manifest, str, Any, str], ...] = (
    (SERVICE, "spec/type", "LoadBalancer", "a tunnel's Service is a ClusterIP"),
    (SERVICE, "spec/type", "NodePort", "a tunnel's Service is a ClusterIP"),
    (SERVICE, "spec/externalIPs", ["203.0.113.1"], "without external addresses"),
    (SERVICE, "spec/selector", {"app": "bank"}, "selects a tunnel's pods"),
    (SERVICE, "metadata/ownerReferences", [], "a DatabaseTunnel for their controller"),
    (NETWORK_POLICY, "metadata/labels", {}, "that have its label"),
    (NETWORK_POLICY, "spec/podSelector", {}, "a tunnel's NetworkPolicy selects a tunnel's pods"),
    (NETWORK_POLICY, "spec/podSelector/matchLabels", {"app": "bank"}, "selects a tunnel's pods"),
    (BUDGET, "spec/selector", {}, "a tunnel's PodDisruptionBudget selects a tunnel's pods"),
    (KEY, "type", "kubernetes.io/ssh-auth", "type: the operator makes Secrets of type Opaque or servicebinding.io/"),
    (KEY, "metadata/annotations", {"kubernetes.io/service-account.name": "default"}, "without annotations"),
    (KEY, "metadata/labels", {}, "that have its label"),
    (KEY, "stringData", {"ssh-privatekey": "x", "config.json": "{}"}, "a tunnel's key"),
    (BINDING, "stringData/password", "x", "or binding"),
)


def test_the_operator_makes_forwarders_and_keys_alone(operator: Operator) -> None:
    with_flags = replace(INSTALLATION, forwarder_log_level="DEBUG", forwarder_packets="asyncssh")
    labelled = replace(INSTALLATION, forwarder_pod_security=PodSecurity.model_validate({"seLinuxOptions": SELINUX}))
    good = [deployment(), deployment(FULL), *(deployment(installation=one) for one in (with_flags, labelled))]
    good += [SERVICE, NETWORK_POLICY, BUDGET, KEY, BINDING]
    token = altered(KEY, "type", "kubernetes.io/service-account-token")
    token["metadata"]["annotations"] = {"kubernetes.io/service-account.name": "default"}
    bad = [(altered(deployment(), path, value), words) for path, value, words in BAD_DEPLOYMENTS]
    bad += [(altered(one, path, value), words) for one, path, value, words in BAD_OTHERS]
    bad += [(deployment({"podTemplate": {"annotations": {APPARMOR: "unconfined"}}}), "no AppArmor profile")]
    bad += [(token, "of type Opaque or"), (_named(KEY, "orders"), "name ending in -ssh")]
    named = [_named(one, f"good-binding-{number}-ssh") for number, one in enumerate(good)]
    for number, (one, words) in enumerate(bad):
        named.append(_named(one, f"bad-{number}" if "ending" in words else f"bad-binding-{number}-ssh"))

    said = refusals(operator.cluster, named, f"--as={operator.user}")

    assert [name for name in said if name.startswith("good")] == [], said
    for manifest, (_, words) in zip(named[len(good) :], bad, strict=True):
        text = said.get(manifest["metadata"]["name"], "passed")
        assert words in text, (manifest, text)
    assert refusals(operator.cluster, named[len(good) :][:3]) == {}, "nobody else is bound"
    print(f"\nthe operator's objects: {len(good)} let pass, {len(bad)} refused")


AS_ITSELF = ("--dry-run=server", "--as-group=system:masters")
"""kubectl reads what it changes, which the operator may not."""


def test_the_operator_touches_nothing_of_others(operator: Operator, namespace: str) -> None:
    cluster, as_operator = operator.cluster, (*AS_ITSELF, f"--as={operator.user}", "-n", namespace)
    cluster.kubectl("create", "service", "clusterip", "bank", "-n", namespace, "--tcp=1234")
    apply(cluster, tunnel_manifest(namespace, tunnel={"host": "203.0.113.1"}))
    pod = wait_until(lambda: pods(cluster, namespace, "orders"), "a pod")[0]
    refreshed = {"metadata": {"annotations": {REFRESH_ANNOTATION: "now"}}}
    stranger = {"metadata": {"annotations": {"example.com/other": "now"}}}
    evil = {"spec": {"containers": [{"name": "forwarder", "image": "example.com/evil:1"}]}}

    def patched(change: Mapping[str, Any]) -> str:
        return cluster.kubectl("patch", "pod", pod, *as_operator, "--type=strategic", "-p", json.dumps(change))

    assert "patched" in patched(refreshed)
    for change in (evil, stranger, {"metadata": {"labels": {"a": "b"}}}, {"metadata": {"finalizers": ["a.b/c"]}}):
        with pytest.raises(ClusterError, match=r"changes the annotation dbtunnel\.dev/mount-refresh alone"):
            patched(change)
    with pytest.raises(ClusterError, match="changes and deletes objects alone that have its label or belong"):
        cluster.kubectl("delete", "service", "bank", *as_operator)
    assert "deleted" in cluster.kubectl("delete", "service", "orders", *as_operator)


def test_the_real_operator_works_under_them(operator: Operator, namespace: str) -> None:
    """Makes, repairs, removes, adopts; the policies refuse nothing of it."""
    cluster, way = operator.cluster, {"host": "203.0.113.1"}
    apply(cluster, tunnel_manifest(namespace, tunnel=way, replicas=2, serviceBinding="Enabled"))
    budget = "poddisruptionbudget/orders-tunnel"
    for child in (*CHILDREN, budget, "secret/orders-ssh"):
        wait_until(lambda child=child: find(cluster, namespace, child), child)  # type: ignore[misc]
    operator.wait_until_quiet(namespace)

    spy = [{"op": "add", "path": f"/{POD}/containers/-", "value": {**SPY, "image": "example.com/spy"}}]
    patch(cluster, namespace, "deployment/orders-tunnel", spy, kind="json")
    patch(cluster, namespace, "service/orders", [{"op": "remove", "path": "/metadata/labels"}], kind="json")
    wait_until(lambda: len(_containers(cluster, namespace)) == 1, "the repaired Deployment")
    wait_until(lambda: (find(cluster, namespace, "service/orders") or {})["metadata"].get("labels"), "the labels")
    apply(cluster, tunnel_manifest(namespace, tunnel=way, replicas=1, access={"policy": "Unrestricted"}))
    for child in (budget, "networkpolicy/orders-tunnel"):
        wait_until(lambda child=child: find(cluster, namespace, child) is None, f"no {child}")  # type: ignore[misc]
    cluster.kubectl("delete", "databasetunnel", "orders", "-n", namespace, "--cascade=orphan")
    apply(cluster, tunnel_manifest(namespace, tunnel=way))
    owned = ("deployment/orders-tunnel", "service/orders")
    for child in owned:
        wait_until(lambda child=child: _owners(cluster, namespace, child), f"the owner of {child}")  # type: ignore[misc]

    operator.wait_until_quiet(namespace)
    assert condition(cluster, namespace, "WorkloadReady")["reason"] in ("ImagePullFailed", "Progressing")
    denied = [line for line in operator.logs() if "ValidatingAdmissionPolicy" in json.dumps(line)]
    assert denied == []


def test_a_tunnel_that_asks_for_what_they_refuse_is_told_so(operator: Operator, namespace: str) -> None:
    """The annotation by which AppArmor was once switched off is a tunnel's to write, and the policies' to refuse."""
    cluster, way = operator.cluster, {"host": "203.0.113.1"}
    annotations = {"note": "kept", APPARMOR: "unconfined"}
    apply(cluster, tunnel_manifest(namespace, tunnel=way, podTemplate={"annotations": annotations}))
    ready = wait_until(lambda: failure(cluster, namespace, "Rejected"), "Rejected")
    assert "a forwarder has no AppArmor profile" in ready["message"]
    assert find(cluster, namespace, "deployment/orders-tunnel") is None

    del annotations[APPARMOR]
    apply(cluster, tunnel_manifest(namespace, tunnel=way, podTemplate={"annotations": annotations}))
    wait_for_children(cluster, namespace)
    wait_until(lambda: not failure(cluster, namespace, "Rejected"), "the status to tell so")


def _containers(cluster: Cluster, namespace: str) -> list[Manifest]:
    found: list[Manifest] = (find(cluster, namespace, "deployment/orders-tunnel") or {})["spec"]["template"]["spec"][
        "containers"
    ]
    return found


def _owners(cluster: Cluster, namespace: str, child: str) -> list[str]:
    tunnel, found = find(cluster, namespace, "databasetunnel/orders"), find(cluster, namespace, child)
    owners = (found or {}).get("metadata", {}).get("ownerReferences", ())
    return [one["uid"] for one in owners if one["uid"] == (tunnel or {})["metadata"]["uid"]]
