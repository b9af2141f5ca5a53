"""What the Events about a tunnel tell: one for each change of its status that a person may want to hear of."""

from collections.abc import Iterable, Mapping
from typing import Any

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseTunnelStatus
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.children import Manifest
from dbtunnel.domain.database import leavers
from dbtunnel.domain.diagnosis import NEXT_KEY_FAILS
from dbtunnel.domain.facts import announced_keys
from dbtunnel.domain.failure import is_other
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import Role, hop_name
from dbtunnel.domain.settings import Defaults

News = tuple[str, str, str]
"""Type (Normal or Warning), reason and note of an Event."""


def all_news(manifest: Manifest, after: DatabaseTunnelStatus) -> Iterable[News]:
    """What is new with a status, beside that of the tunnel as it was read."""
    before = DatabaseTunnelStatus.known(manifest.get("status")).document()
    told = [tell(before, after) for tell in (transition, detour, key_news, client_news)]
    return filter(None, [*told, host_key_news({**manifest, "status": before}, after)])


def transition(before: Mapping[str, Any], after: DatabaseTunnelStatus) -> News | None:
    """Type, reason and note of the Event that a change of the status deserves, if any."""
    earlier = {one["type"]: one["status"] for one in before.get("conditions") or ()}
    reasons = {one["type"]: one["reason"] for one in before.get("conditions") or ()}
    ready = _condition(after.conditions or (), ConditionType.READY)
    stalled = _condition(after.conditions or (), ConditionType.STALLED)
    if ready is None or stalled is None:
        return None
    turned_ready = ready.status != earlier.get(ConditionType.READY) and ready.status != "Unknown"
    turned_stalled = stalled.status == "True" != earlier.get(ConditionType.STALLED)
    fails_otherwise = ready.status == "False" and is_other(reasons.get(ConditionType.READY, ""), ready.reason)
    if not (turned_ready or turned_stalled or fails_otherwise):
        return None
    is_normal = ready.status == "True" or ready.reason in (Reason.SUSPENDED, Reason.PROGRESSING)
    reason = ConditionType.READY if ready.status == "True" else ready.reason
    return "Normal" if is_normal else "Warning", reason, ready.message


def detour(before: Mapping[str, Any], after: DatabaseTunnelStatus) -> News | None:
    """Type, reason and note of the Event that another fallback in use deserves, or none in use any more."""
    earlier = _active(before.get("hops") or (), Role.FALLBACK)
    hops = after.document().get("hops") or ()
    now, bastion = _active(hops, Role.FALLBACK), _active(hops, Role.BASTION)
    if now - earlier:
        transport = _condition(after.conditions or (), ConditionType.TRANSPORT_READY)
        return "Warning", "FallbackInUse", (transport.message if transport else "") or " ".join(sorted(now))
    if earlier and bastion and not now:
        return "Normal", "BastionInUse", f"New connections go through the bastion again: {' '.join(bastion)}."
    return None


def _active(hops: Iterable[Mapping[str, Any]], role: Role) -> set[str]:
    return {
        forward_target(one["host"], one["port"]) for one in hops if (one.get("role"), one.get("active")) == (role, True)
    }


def key_news(before: Mapping[str, Any], after: DatabaseTunnelStatus) -> News | None:
    """As `transition`, of the key that is to replace the current one: it fails in another way, or is accepted."""
    known = {one.get("message") for one in before.get("conditions") or ()}
    for one in after.conditions or ():
        if one.message.startswith(NEXT_KEY_FAILS) and one.message not in known:
            return "Warning", "NextKeyFailed", one.message
    earlier = {(one.get("fingerprint"), one.get("accepted")) for one in before.get("publicKeys") or ()}
    for key in after.public_keys or ():
        if key.use == "Next" and key.accepted and (key.fingerprint, True) not in earlier:
            return "Normal", "NextKeyAccepted", f"The next key, {key.fingerprint}, is accepted: new sessions use it."
    return None


def client_news(before: Mapping[str, Any], after: DatabaseTunnelStatus) -> News | None:
    """As `transition`, of clients that leave before their login."""
    reachable = _condition(after.conditions or (), ConditionType.DATABASE_REACHABLE)
    told = leavers(reachable.message) if reachable else ""
    earlier = (one for one in before.get("conditions") or () if one["type"] == ConditionType.DATABASE_REACHABLE)
    is_known = any(leavers(one.get("message", "")) for one in earlier)
    return ("Warning", "ClientsLeave", told) if told and not is_known else None


def host_key_news(manifest: Manifest, after: DatabaseTunnelStatus) -> News | None:
    """As `transition`, of host keys that an SSH server has announced; `manifest` has spec and earlier status."""
    hops = (manifest.get("status") or {}).get("hops") or ()
    earlier = {one for hop in hops for one in hop.get("hostKeyFingerprints") or ()}
    if all(one in earlier for hop in after.hops or () for one in hop.host_key_fingerprints or ()):
        return None
    config = forwarder_config(tunnel := DatabaseTunnel.parse(manifest), Defaults())
    found = {number: announced_keys(config, number, hop) for number, hop in enumerate(after.hops or ())}
    new = {number: keys for number, keys in found.items() if set(keys) - earlier}
    if not new:
        return None
    told = "; ".join(f"{hop_name(config, number)}: {', '.join(keys)}" for number, keys in new.items())
    note = (
        f"Host keys that are not pinned, and that the SSH server has proved to hold: {told}. Before it changes to one:"
    )
    return "Normal", "HostKeysAnnounced", f"{note} kubectl dbtunnel trust {tunnel.metadata.name}"


def _condition(conditions: tuple[Condition, ...], kind: ConditionType) -> Condition | None:
    return next((one for one in conditions if one.type == kind), None)
