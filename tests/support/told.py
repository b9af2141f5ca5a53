"""What a tunnel's status, Events and metrics would tell of a real forwarder's failure."""

from typing import Any

from dbtunnel.api.conditions import CAUSAL_ORDER, LAYERS, ConditionType
from dbtunnel.api.engines import ENGINES
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderHop, ProbeMode
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseTunnelStatus
from dbtunnel.domain.news import transition
from dbtunnel.domain.status import decide
from tests.support import produced
from tests.support.forwarder import Forwarder
from tests.support.values import FIELDS, INSTALLATION, NOW, observed, tunnel


def check_told(forwarder: Forwarder, reason: Reason, *words: str) -> str:
    """The reason is told at its layer, with the hop, `words` and what to do; an Event is posted and it is counted.

    Returns the message.
    """
    status = decided(forwarder)
    conditions = {one.type: one for one in status.conditions or ()}
    ready = conditions[ConditionType.READY]
    failed = next(conditions[kind] for kind in CAUSAL_ORDER if conditions[kind].status == "False")
    assert (ready.status, ready.reason, ready.message) == ("False", reason, failed.message)
    assert failed.type in (REASONS[reason].type, ConditionType.TRANSPORT_READY), "a jump host's policy is the transport"
    assert transition({}, status) == ("Warning", reason, failed.message)
    for word in words:
        assert word in failed.message
    assert failed.message.isprintable()
    assert failed.message.isascii()
    _check_summary(reason, conditions)
    _check_metrics(forwarder, ConditionType(failed.type), reason)
    produced.note(reason, failed.message)
    return failed.message


def check_holds_nothing_back(forwarder: Forwarder, reason: Reason, message: str) -> None:
    """The reason is told at its condition, which is Unknown, and the tunnel is Ready all the same."""
    status = decided(forwarder)
    conditions = {one.type: one for one in status.conditions or ()}
    told, ready = conditions[REASONS[reason].type], conditions[ConditionType.READY]
    assert (told.status, told.reason, told.message) == ("Unknown", reason, message)
    assert (ready.status, transition({}, status)) == ("True", ("Normal", "Ready", ready.message))
    assert forwarder.metric(f'dbtunnel_forwarder_layer_ready{{layer="{FIELDS[REASONS[reason].type]}"}}') == 0
    produced.note(reason, message)


def decided(forwarder: Forwarder) -> DatabaseTunnelStatus:
    """What an operator makes of the forwarder's facts."""
    of = tunnel_of(forwarder.config)
    return decide(of, observed(of, forwarder.status()), INSTALLATION, NOW).status


def tunnel_of(config: ForwarderConfig) -> DatabaseTunnel:
    """A resource that leads to a configuration, as far as messages speak of it."""
    changes: dict[str, Any] = {
        "engine": config.engine.value,
        "database": {"host": config.database_host, "port": config.database_port},
        "tunnel": _way(config.bastion),
        "tunnel.jumpHosts": [_way(hop) for hop in config.jump_hosts or ()],
        "tunnel.fallbacks": [_way(hop) for hop in config.fallbacks or ()],
    }
    return tunnel(changes)


def _way(hop: ForwarderHop) -> dict[str, Any]:
    key = hop.key and {"name": hop.key.secret, "key": hop.key.key, "passphraseKey": hop.key.passphrase_key}
    return {"host": hop.host, "port": hop.port, "user": hop.user, **({"keySecretRef": key} if key else {})}


def _check_summary(reason: Reason, conditions: dict[str, Condition]) -> None:
    """Whether a person must act at once is as the table says."""
    stalled = "True" if REASONS[reason].grace_seconds == 0 else "False"
    assert conditions[ConditionType.STALLED].status == stalled
    assert conditions[ConditionType.RECONCILING].status != stalled


def _check_metrics(forwarder: Forwarder, failed: ConditionType, reason: Reason) -> None:
    position = LAYERS.index(failed)
    for number, layer in enumerate(LAYERS):
        line = f'dbtunnel_forwarder_layer_ready{{layer="{FIELDS[layer]}"}}'
        assert forwarder.metric(line) == (number < position), line
    if failed is not ConditionType.DATABASE_REACHABLE:
        assert forwarder.metric(f'dbtunnel_forwarder_ssh_failures_total{{reason="{reason}"}}') >= 1
        return
    assert forwarder.metric(f'dbtunnel_forwarder_database_failures_total{{reason="{reason}"}}') >= 1
    if ENGINES[forwarder.config.engine].quiet_probe and forwarder.config.probe_mode is ProbeMode.AUTO:
        assert forwarder.metric(f'dbtunnel_forwarder_probes_total{{result="{reason}"}}') >= 1
