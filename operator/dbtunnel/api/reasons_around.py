"""Reasons of what surrounds SSH: the pods and the key; as `dbtunnel.api.reasons`, of which they are a part."""

from dbtunnel.api.conditions import ConditionType, Reason
from dbtunnel.api.reason_info import OUTAGE_GRACE, SUPPLY_GRACE, ReasonInfo

_WORKLOAD, _KEY = ConditionType.WORKLOAD_READY, ConditionType.KEY_READY

AROUND: dict[Reason, ReasonInfo] = {
    Reason.PROGRESSING: ReasonInfo(
        _WORKLOAD,
        None,
        "Nothing is wrong so far: pods are starting, or a layer before this one is not there yet.",
        "{seen}",
        cause="Something was made or changed a moment ago.",
        example="0 of 1 forwarders run and answer.",
    ),
    Reason.SUSPENDED: ReasonInfo(
        _WORKLOAD,
        None,
        "`spec.suspend` is true: the objects stay, no pod runs.",
        "Suspended: no forwarder runs. Set spec.suspend to false to switch the tunnel on.",
        cause="A person set `spec.suspend`.",
    ),
    Reason.UNSCHEDULABLE: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "No node takes the forwarder's pod.",
        "No node takes the forwarder's pod: {seen}. Free capacity, or change spec.podTemplate"
        " (resources, nodeSelector, tolerations, affinity).",
        cause="Nodes are full, or none fits the template's selector, affinity and tolerations.",
        example="0/3 nodes are available: 3 Insufficient cpu.",
    ),
    Reason.IMAGE_PULL_FAILED: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "A node cannot pull the forwarder's image.",
        "The forwarder's image cannot be pulled: {seen}. Check the operator's forwarder image setting"
        " and spec.podTemplate.imagePullSecrets.",
        cause="The registry is not reached, or does not know the image or the pull secret.",
        example='ImagePullBackOff: "Back-off pulling image registry.example/dbtunnel:1"',
    ),
    Reason.CRASH_LOOPING: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "The forwarder's container ends again and again.",
        "The forwarder's container keeps ending: {seen}. Read its log with: kubectl logs -l"
        " dbtunnel.dev/tunnel={tunnel} --previous -n {namespace}. If it was OOMKilled, raise"
        " spec.podTemplate.resources.",
        cause="The memory limit is too low, a policy changes the pod, or a bug.",
        example="CrashLoopBackOff; last ended with OOMKilled (exit code 137)",
    ),
    Reason.QUOTA_EXCEEDED: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "The namespace's ResourceQuota or LimitRange refuses the pods.",
        "The namespace's quota refuses the forwarder's pod: {seen}. Raise the quota, or lower"
        " spec.podTemplate.resources or spec.replicas.",
        cause="The namespace's quota is used up, or the template asks for more than a limit range allows.",
        example="Deployment orders-tunnel: pods is forbidden: exceeded quota: small",
    ),
    Reason.NAME_CONFLICT: ReasonInfo(
        _WORKLOAD,
        0,
        "An object of a name that the tunnel needs exists and is not the tunnel's, or is a headless Service. It is"
        " left alone.",
        "{seen}; it is left as it is. Delete it, and the operator makes its own, or choose another spec.service.name or"
        " tunnel name.",
        retry_seconds=5,
        cause="Somebody made a Service, Deployment or the like of that name before.",
        example="Service orders exists and does not belong to this tunnel (it is handed over by the labels"
        " app.kubernetes.io/managed-by=dbtunnel-operator and dbtunnel.dev/tunnel=orders)",
    ),
    Reason.REJECTED: ReasonInfo(
        _WORKLOAD,
        0,
        "The API server refuses what the tunnel asks for: admission policy, Pod Security, a field of the pod template.",
        "The API server refused what this tunnel asks for: {seen}. Change the spec, or the policy that refuses it.",
        retry_seconds=30,
        cause="A policy of the cluster, or a typing error in a field that is passed through.",
        example="Deployment orders-tunnel: denied by policy require-limits",
    ),
    Reason.FORWARDER_UNREACHABLE: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "The operator cannot read the forwarder's admin port. The tunnel itself may well work.",
        "The operator cannot read the forwarder's status: {seen}. Allow TCP from the operator's namespace to port"
        " {admin_port} of the forwarder's pods (NetworkPolicy, service mesh).",
        cause="A NetworkPolicy, a service mesh or a node's firewall between the operator and the pod.",
        example="no answer in time",
    ),
    Reason.SECRET_NOT_FOUND: ReasonInfo(
        _KEY,
        SUPPLY_GRACE,
        "The Secret that holds the private key does not exist, or has no data.",
        "Secret {secret} is not there or is empty. Create it: kubectl create secret generic {secret}"
        " -n {namespace} --from-file={key}=PATH-TO-PRIVATE-KEY",
        cause="The Secret has not been made yet, has another name, or lies in another namespace.",
    ),
    Reason.SECRET_KEY_MISSING: ReasonInfo(
        _KEY,
        SUPPLY_GRACE,
        "The Secret exists and lacks the named key.",
        "Secret {secret} has no key {key}; it has {seen}. Add the private key under that name, or set {key_path}.key.",
        cause="The key was stored under another name, such as id_ed25519.",
        example="id_ed25519, id_ed25519.pub",
    ),
    Reason.PRIVATE_KEY_INVALID: ReasonInfo(
        _KEY,
        0,
        "What the Secret holds is not a private key, or the certificate beside it is not one of that key.",
        "Secret {secret}, key {key}, is no private key to use: {seen}. Store the whole file that ssh-keygen or puttygen"
        " wrote, from its first line to its last.",
        cause="Half of the file was copied, or another file.",
        example="it has no END line",
    ),
    Reason.PUBLIC_KEY_GIVEN: ReasonInfo(
        _KEY,
        0,
        "The Secret holds the public half of the key.",
        "Secret {secret}, key {key}, holds a public key. Store the private one: the file without .pub.",
        cause="The file with .pub was stored.",
    ),
    Reason.PASSPHRASE_REQUIRED: ReasonInfo(
        _KEY,
        0,
        "The private key is encrypted and no passphrase is given.",
        "Secret {secret}, key {key}, is encrypted. Add its passphrase to the Secret under {passphrase_key}"
        " ({key_path}.passphraseKey), or store an unencrypted key.",
        cause="ssh-keygen was given a passphrase.",
    ),
    Reason.PASSPHRASE_WRONG: ReasonInfo(
        _KEY,
        0,
        "The passphrase does not decrypt the private key.",
        "Secret {secret}, key {key}: the passphrase under {passphrase_key} does not decrypt it."
        " Store the right passphrase (a line end after it is ignored).",
        cause="Another key's passphrase, or a typing error.",
    ),
}
