"""What must hold of a forwarder whatever happens to it (docs/architecture.md states it in words)."""

from collections.abc import Sequence
from itertools import groupby, pairwise

from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.metrics import CLIENTS_PARKED, SSH_UP
from dbtunnel.forwarder.pace import FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, RESTART_SECONDS
from tests.support.connection_world import PARKED_AT_MOST, PARKING_SECONDS, VISIT, KnownClient, World
from tests.support.fake_ssh import ANSWER_SECONDS, Attempt, Connection
from tests.support.virtual_time import now

LOOK_SECONDS = 1.0
"""How often the files are looked at, and whether there is a better connection. What is read then is acted upon the
next time."""
DRAIN_LOOK_SECONDS = 0.5
"""How often sessions are looked at while the process drains."""
IDLE_LOOKS = 10
"""How often they are within the idle timeout."""
SOONEST_SECONDS = FIRST_BACKOFF_SECONDS / 2
EAGER_DOUBLINGS = 2
"""Of the pause, while somebody may be parked since the begin of an outage."""

UNHEARD = (Reason.CONNECTION_REFUSED, Reason.CONNECT_TIMEOUT)
"""With which a server that is being started again fails."""
_LATEST = 40
"""Attempts that may go on: more do not begin while a silent server is waited for."""
SOON = 0.01
"""What is lost to the clock's floating point."""
_ENDS = (
    *("client closed", "client reset", "database closed", "SSH connection lost"),
    *("Parking", "ConnectionLimit", "idle", "forwarder ended", "refused"),
)
"""How a client may end: what the log tells, or by a word of its own where it left while it was parked."""


def check(world: World) -> None:
    """All of it, at one moment."""
    current = world.current()
    assert not world.needless, "what stands is not made again"
    _check_connections(world, current)
    _check_replaced(world)
    _check_jump_hosts(world)
    _check_clients(world, current)
    _check_limit(world)
    _check_files(world, current)
    _check_drain(world)


def is_needless(world: World, attempt: Attempt) -> bool:
    """Of an attempt that begins: whether what stands is the best there is, and all there is to be."""
    current = world.current()
    hop = attempt.hop if attempt.hop in world.ends else 0
    if (
        attempt.round_began < attempt.began
        or current is None
        or current.hop > hop
        or len(world.taking()) < world.connections
    ):
        return False
    return attempt.files == world.made[current] and world.is_as_wanted(current)


# --- connections ------------------------------------------------------------------------------------------------------


def _check_connections(world: World, current: Connection | None) -> None:
    taking, connector = world.taking(), world.connector
    assert connector.up.is_set() == (current is not None) == (connector.down_since is None)
    assert (connector.link is None) == (current is None)
    assert current is None or current.stands or current.is_closed
    assert (current in taking) == bool(taking), "where the first is lost another takes its part"
    assert world.metrics.get(SSH_UP) == world.state.status.connections == len(taking) <= world.connections
    assert all(one.link.fingerprints() == taking[0].link.fingerprints() for one in taking), "they are alike"
    outages = sum(loss.was_last for loss in connector.losses)
    if current:
        assert current.hop <= world.best.setdefault(outages, current.hop), "none takes the place of a better one"
        world.best[outages] = current.hop
    active = [number for number, hop in enumerate(world.state.status.hops) if hop.active]
    assert active == ([current.hop, *world.jumps] if current else []), "it is told what clients go through"


def _check_replaced(world: World) -> None:
    """What holds of each, whether or not it takes clients."""
    taking = world.taking()
    for one in world.made:
        is_needed = one in taking or one.link.uses or now() - one.made_at <= LOOK_SECONDS + SOON
        assert is_needed or not one.stands, "what was replaced stands for its users alone"
        assert one.ended_at is None or not one.link.uses, "nobody uses what is gone"
        keys = set(one.link.fingerprints().values())
        was_cut = one.had_users or (one.carrier is not None and one.carrier.had_users)
        assert keys & world.was_revoked or not was_cut, "none is closed while it has users"
        if any(map(world.is_revoked, keys)) and one.stands:
            assert now() - world.changed_at <= 2 * LOOK_SECONDS + SOON, "what a revoked key made is ended"


def _check_jump_hosts(world: World) -> None:
    """A connection to a jump host is there for one that goes over it, and while that is made."""
    is_trying = any(attempt.ended in (None, now()) for attempt in world.attempts[-_LATEST:])
    for attempt in world.attempts:
        one = attempt.made
        if one and one.hop in world.jumps and one.stands:
            assert is_trying or any(each.stands for each in one.within), "a jump host's connection leads somewhere"
        if one and one.carrier and one.stands:
            assert one.carrier.stands, "the end of one ends those that go over it"


def _check_files(world: World, current: Connection | None) -> None:
    """Other files are tried at once, unless what there is was made with the key that is wanted."""
    latest = world.attempts[-1]
    is_tried = world.secret.files == world.secret.seen[latest.files - 1]
    if is_tried or not world.wanted() or (current and world.is_as_wanted(current)):
        world.untried_since = None
    if world.untried_since is not None:
        ends = [now() if attempt.ended is None else attempt.ended for attempt in world.attempts[-_LATEST:]]
        idle_since = max(ends)
        assert now() - max(world.untried_since, idle_since) <= 2 * LOOK_SECONDS + SOON, "news is tried at once"


# --- clients ----------------------------------------------------------------------------------------------------------


def _check_clients(world: World, current: Connection | None) -> None:
    present = world.present()
    assert world.listener.clients == len(present), "no client is lost"
    assert world.listener.empty.is_set() == (not present)
    waiting = sum(client.waits for client in present)
    assert 0 <= world.metrics.get(CLIENTS_PARKED) <= min(waiting, PARKED_AT_MOST), "who has left parks no more"
    for client in world.clients:
        assert not client.had_to_wait_longer, "a client gets the connection with the least in its way"
        _check_client(client, current)
        _check_end(world, client)


def _check_client(client: KnownClient, current: Connection | None) -> None:
    has_left = client.left_at is not None
    assert not client.is_gone or client.how in _ENDS or (has_left and not client.how), "nothing else ends a client"
    assert client.how != "SSH connection lost" or (client.link and client.link.is_closing()), "it was lost"
    assert client.how != "database closed" or client.cancels or has_left
    if client.left_at is not None:
        assert client.is_gone or now() - client.left_at <= 3 * ANSWER_SECONDS + SOON, "who has left is forgotten"
    elif client.waits:
        assert now() - client.came_at <= PARKING_SECONDS + ANSWER_SECONDS + SOON, "nobody waits for ever"
        since = max(client.came_at, current.made_at if current and current.stands else now())
        assert now() - since < 2 * ANSWER_SECONDS + SOON, "nobody waits while there is a connection"
    elif client.how == "Parking" and client.refused_at is not None:
        in_time = client.refused_at - client.came_at < PARKING_SECONDS - SOON
        assert client.around.parked == PARKED_AT_MOST or not in_time, "nobody is refused who might wait"


def _check_end(world: World, client: KnownClient) -> None:
    """Whom the forwarder may end, and whom it must."""
    limit = world.config.seconds.idle
    if client.how == "idle" and client.refused_at is not None:
        assert limit
        assert client.refused_at - client.moved_at >= limit - SOON, "it was idle"
    elif limit and client.was_joined and not client.is_gone:
        assert now() - max(client.moved_at, client.joined_at) <= limit * (1 + 2 / IDLE_LOOKS) + SOON, "it is idle"


def _check_limit(world: World) -> None:
    most = world.config.max_clients
    if most is None:
        return
    present = world.present()
    visitors = [client for client in present if client.visitor]
    served = len(present) - len(visitors)
    assert served <= most, "the limit holds"
    assert len(visitors) <= world.reserve, "and so does the reserve"
    assert not visitors or served == most, "where one leaves a visitor takes the place"
    assert all(now() - client.came_at <= VISIT + SOON for client in visitors), "no visit is long"
    for client in world.clients:
        if client.how == "ConnectionLimit" and client.refused_at is not None:
            assert client.around.served >= most, "nobody is refused for whom there is room"
            in_time = client.refused_at - client.came_at < VISIT - SOON
            is_turned_away = client.around.visitors >= world.reserve
            assert is_turned_away or not (client.cancels and in_time), "who wants to cancel is let in"
        elif client.visitor and not client.is_gone:
            assert client.cancels or now() - client.came_at <= SOON, "who logs in is no visitor"


# --- the drain --------------------------------------------------------------------------------------------------------


def _check_drain(world: World) -> None:
    least, most = world.config.seconds.drain_min, world.config.seconds.drain_max
    begun, is_over = world.drained_from, world.draining is not None and world.draining.done()
    if begun is None or world.draining is None:
        assert world.bound.fileno() >= 0, "clients are taken"
        return
    if is_over:
        assert world.bound.fileno() < 0
        assert not world.present()
        return
    passed = now() - begun
    assert passed <= most + SOON, "a drain has an end"
    assert world.bound.fileno() >= 0 or passed >= least - SOON, "clients are taken until endpoints have changed"
    assert world.bound.fileno() < 0 or passed <= least + SOON
    goes_on = not world.end_now.is_set() and (world.present() or passed < least)
    world.to_end_since = None if goes_on else world.to_end_since or now()
    assert world.to_end_since is None or now() - world.to_end_since <= SOON, (
        "it ends with the last client, or when told"
    )
    for client in world.clients:
        _check_drained(client, begun + least, begun + most)


def _check_drained(client: KnownClient, since: float, end: float) -> None:
    """One that is at rest is ended when it has been quiet for as long as is left; one that is not, at the end."""
    if client.how == "forwarder ended" and client.refused_at is not None:
        left = end - client.refused_at
        assert not client.works, "what runs goes on"
        assert client.refused_at - client.moved_at >= left - SOON, "what is quiet goes first"
    elif client.was_joined and not client.is_gone and not client.works and client.left_at is None:
        quiet = now() - max(client.moved_at, client.joined_at, since)
        assert quiet <= max(end - now(), 0) + 3 * DRAIN_LOOK_SECONDS + SOON, "what is at rest goes"


# --- the pace ---------------------------------------------------------------------------------------------------------


def check_pace(world: World) -> None:
    """No attempt comes sooner than its server's turn, unless the files have changed."""
    for _, same in groupby(world.attempts, lambda attempt: attempt.seen):
        attempts = list(same)
        for number in range(len(world.servers)):
            _check_pace(world, number, [attempt for attempt in attempts if attempt.hop == number])


def _check_pace(world: World, number: int, attempts: Sequence[Attempt]) -> None:
    """Of one server, with the same files. A connection that is lost may be made again soon; where others go on, in the
    turn of those beside the first.
    """
    doublings, began = 0, 0.0
    for before, after in pairwise(attempts):
        is_beside = before.ended is None or before.ended > after.began
        if before.files != before.seen or is_beside:
            doublings = 0  # in the next round it is tried anew, with the other servers
            continue
        between = [loss for loss in world.connector.losses if before.began <= loss.at < after.round_began]
        through = [loss for loss in between if number in (loss.hop, *world.jumps)]
        soonest = [loss.at + SOONEST_SECONDS * (loss.was_last and loss.hop == number) for loss in through]
        if before.failure and before.ended is not None:
            began = began if doublings else before.ended
            # with several one that stands may make them begin anew
            usual = min(SOONEST_SECONDS * (2**doublings if world.connections == 1 else 1), LONGEST_BACKOFF_SECONDS / 2)
            least = REASONS[before.failure.reason].retry_seconds or usual
            soonest.append(before.ended + least)
            is_eager = before.failure.reason in UNHEARD and not world.jumps
            eager = RESTART_SECONDS if is_eager else PARKING_SECONDS
            doublings += doublings < EAGER_DOUBLINGS or before.ended >= began + eager
        assert after.began >= min(soonest, default=0.0) - SOON, "each in its turn"
        doublings = doublings if before.failure and len(soonest) == 1 else 0
