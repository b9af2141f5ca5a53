"""How many: SSH connections of a pod, clients of a tunnel, seconds of idleness and of a drain, from the resource to the
database.
"""

from datetime import datetime

import pytest

from tests.support.bastion import Bastion
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.processes import wait_until
from tests.support.traffic import Program, target_of
from tests.support.tunnels import find, patch, pods, start_tunnel

_CONNECT = """
import psycopg, select, threading
def connect():
    return psycopg.connect(sys.argv[3], autocommit=True, connect_timeout=10)
def some(count):
    # the first may come before the node knows the Service
    found = []
    while len(found) < count and time.monotonic() < end:
        try:
            found.append(connect())
        except psycopg.OperationalError:
            time.sleep(0.05)
    return found
def answers(session):
    try:
        return session.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False
"""

# --- connections ------------------------------------------------------------------------------------------------------

_HOLD = """
sessions = some(4)
begun()
while not is_over():
    time.sleep(0.05)
print(json.dumps([answers(one) for one in sessions]))
"""


def test_clients_are_spread_over_the_connections_of_a_pod(installed: Cluster, shop: str, bastion: Bastion) -> None:
    """The loss of one of two ends half of the sessions, and it is made again."""
    tunnel = start_tunnel(installed, shop, "spread", bastion, tunnel={"connections": 2})
    wait_until(lambda: bastion.connections() == 2, "two connections of the one pod")
    with Program(installed, shop, _CONNECT + _HOLD, target_of(Endpoint.of(tunnel))) as holder:
        kept, lost = bastion.monitors()
        bastion.cut(lost)
        wait_until(lambda: lost not in bastion.monitors() and bastion.connections() == 2, "another in its place", 30)
        assert kept in bastion.monitors()
    assert sorted(holder.printed) == [False, False, True, True]


# --- clients ----------------------------------------------------------------------------------------------------------

_CROWD = """
room, tries = int(sys.argv[4]), int(sys.argv[5])
held = some(room)
begun()
told, got_in, cancelled = [], 0, 0
for _ in range(tries):
    began = time.monotonic()
    try:
        connect().close()
        got_in += 1
    except psycopg.OperationalError:
        told.append(time.monotonic() - began)
for number in range(tries):
    busy = held[number % room]
    threading.Timer(0.5, busy.cancel if number % 2 else busy.cancel_safe).start()
    try:
        busy.execute("select pg_sleep(20)")
    except psycopg.errors.QueryCanceled:
        cancelled += 1
answering = sum(map(answers, held))
held.pop().close()
again = len(some(1))
print(json.dumps({"told": told, "got_in": got_in, "cancelled": cancelled, "answering": answering, "again": again}))
"""

MOST, TRIES = 2, 6


@pytest.mark.parametrize("replicas", [1, 2])
def test_at_the_limit_others_are_told_at_once_and_a_query_can_be_cancelled(
    installed: Cluster, shop: str, replicas: int
) -> None:
    """The Service leads each connection, a cancel too, to any of the replicas: all of them are full."""
    name = f"full-{replicas}"
    tunnel = start_tunnel(installed, shop, name, replicas=replicas, connectionLimits={"max": MOST})

    def ready() -> bool:
        status = (find(installed, shop, f"databasetunnel/{name}") or {})["status"]
        return bool(status.get("readyReplicas") == replicas)

    wait_until(ready, "all replicas", 30)
    target, room = target_of(Endpoint.of(tunnel)), MOST * replicas
    with Program(installed, shop, _CONNECT + _CROWD, target, room, TRIES) as crowd:
        pass
    seen = crowd.printed
    print(f"{replicas} replicas: {room} sessions held; {TRIES} more told within {max(seen['told'], default=0):.2f} s")
    assert seen["got_in"] == 0
    assert len(seen["told"]) == TRIES
    assert max(seen["told"]) < 3
    assert seen["cancelled"] == TRIES
    assert seen["answering"] == room, "nobody lost anything"
    assert seen["again"] == 1, "there is room again"


# --- idleness ---------------------------------------------------------------------------------------------------------

_IDLE = """
idle, busy = some(2)
began = time.monotonic()
begun()
while not select.select([idle], [], [], 0)[0] and time.monotonic() < began + 20:
    busy.execute("select pg_sleep(0.1)")
ended = time.monotonic() - began
print(json.dumps({"ended": ended, "idle": answers(idle), "busy": answers(busy)}))
"""

IDLE_SECONDS = 2


def test_an_idle_session_is_ended_and_a_busy_one_is_not(installed: Cluster, shop: str) -> None:
    limits = {"idleTimeoutSeconds": IDLE_SECONDS}
    tunnel = start_tunnel(installed, shop, "idle", connectionLimits=limits)
    with Program(installed, shop, _CONNECT + _IDLE, target_of(Endpoint.of(tunnel))) as pair:
        pass
    seen = pair.printed
    assert (seen["idle"], seen["busy"]) == (False, True)
    assert IDLE_SECONDS - 0.5 < seen["ended"] < IDLE_SECONDS + 5


# --- a drain ----------------------------------------------------------------------------------------------------------

_DRAINED = """
resting, holder, running = some(3)
holder.execute("select pg_advisory_lock(1)")
seen = {}
def run():
    try:
        seen["said"] = running.execute("select pg_advisory_lock(1), 'done'").fetchone()[1]
    except psycopg.OperationalError as error:
        seen["said"] = str(error)
    seen["finished"] = time.time()
thread = threading.Thread(target=run)
thread.start()
begun()
select.select([resting], [], [], 100)
seen["closed"] = time.time()
thread.join(20)
print(json.dumps({**seen, "rests": answers(resting)}))
"""

DRAIN = {"minSeconds": 1, "maxSeconds": 13}


def test_a_rollout_lets_a_statement_finish_and_ends_what_rests_at_half_time(installed: Cluster, shop: str) -> None:
    """What rests holds the lock that the statement waits for, which so goes on longer."""
    tunnel = start_tunnel(installed, shop, "drained", drain=DRAIN)
    (old,) = pods(installed, shop, "drained")

    def told_to_end() -> float | None:
        metadata = (find(installed, shop, f"pod/{old}") or {"metadata": {}})["metadata"]
        if "deletionTimestamp" not in metadata:
            return None
        until = datetime.fromisoformat(metadata["deletionTimestamp"]).timestamp()
        return until - float(metadata["deletionGracePeriodSeconds"])

    with Program(installed, shop, _CONNECT + _DRAINED, target_of(Endpoint.of(tunnel))) as sessions:
        patch(installed, shop, "databasetunnel/drained", {"spec": {"podTemplate": {"annotations": {"rolled": "once"}}}})
        began = wait_until(told_to_end, "the old pod to be told to end", 60)
    seen = sessions.printed
    least, most = DRAIN["minSeconds"], DRAIN["maxSeconds"]
    rested, took = seen["closed"] - began, seen["finished"] - began
    print(f"a drain of {least} to {most} s: what rested was ended after {rested:.1f} s, what ran had {took:.1f} s")
    assert (seen["said"], seen["rests"]) == ("done", False)
    half = least + (most - least) / 2
    assert half - 1 <= rested < half + 3, "the API server tells whole seconds"
    assert seen["closed"] < seen["finished"] + 0.5, "the lock is free in the moment in which the client hears of it"
    assert took < most
