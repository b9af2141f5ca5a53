"""Several SSH connections for one forwarder: clients are spread over them, and the loss of one moves nobody else."""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import psycopg
import pytest

from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]
Session = psycopg.Connection[tuple[Any, ...]]

COUNT = 3
UP, MADE = "dbtunnel_forwarder_ssh_up", "dbtunnel_forwarder_ssh_connects_total"


def connect(forwarder: Forwarder) -> Session:
    target: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 15}
    return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **target)


def answers(session: Session) -> bool:
    try:
        return session.execute("select 1").fetchone() == (1,)
    except psycopg.OperationalError:
        return False


class Stream:
    """A COPY without an end, `out` of the database or `in`to it."""

    def __init__(self, session: Session, way: str) -> None:
        self._session, self._way = session, way
        self.bytes = 0
        self._must_end = False
        self._thread = threading.Thread(target=self._go, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._must_end = True
        self._thread.join(30)
        self._session.close()

    @property
    def goes_on(self) -> bool:
        return self._thread.is_alive()

    def _go(self) -> None:
        with contextlib.suppress(psycopg.Error):
            self._copy_out() if self._way == "out" else self._copy_in()

    def _copy_out(self) -> None:
        # a series in FROM would be made whole before the first row
        rows = "copy (select repeat('x', 8191), generate_series(1, 100000000)) to stdout"
        with self._session.cursor().copy(rows) as copy:
            for piece in copy:
                self.bytes += len(piece)
                if self._must_end:
                    self._session.pgconn.finish()
                    return

    def _copy_in(self) -> None:
        line = b"x" * 65535 + b"\n"
        self._session.execute("create temporary table filled (item text)")
        with self._session.cursor().copy("copy filled from stdin where false") as copy:
            while not self._must_end:
                copy.write(line)
                self.bytes += len(line)


@pytest.fixture
def forwarder(start_forwarder: StartForwarder, postgres: PostgresServer) -> Forwarder:
    """With all its connections."""
    forwarder = start_forwarder(postgres.port, connections=COUNT)
    wait_for(forwarder, COUNT)
    forwarder.wait_for("database", "Succeeded")
    return forwarder


def wait_for(forwarder: Forwarder, count: int) -> None:
    wait_until(lambda: forwarder.metric(UP) == count, f"{count} connections")
    assert forwarder.status().connections == count


def test_the_loss_of_one_ends_its_share_of_the_sessions_and_no_others(forwarder: Forwarder, bastion: Bastion) -> None:
    sessions = [connect(forwarder) for _ in range(5 * COUNT)]
    before = bastion.monitors()
    assert len(before) == COUNT
    for number, monitor in enumerate(before):
        bastion.cut(monitor)
        wait_until(lambda monitor=monitor: monitor not in bastion.monitors(), "its end")  # type: ignore[misc]
        wait_until(lambda number=number: forwarder.metric(MADE) == COUNT + number + 1, "another")  # type: ignore[misc]
        wait_for(forwarder, COUNT)
        left = [session for session in sessions if answers(session)]
        assert len(left) == 5 * (COUNT - 1 - number)
    again = [connect(forwarder) for _ in range(COUNT)]
    assert all(map(answers, again))
    layers = [one for one in forwarder.events() if one["event"] == "layer changed" and one["status"] == "False"]
    assert layers == [], "it worked all the time"
    assert forwarder.metric(MADE) == 2 * COUNT
    for session in (*sessions, *again):
        session.close()


@pytest.mark.parametrize("way", ["out", "in"])
def test_clients_keep_out_of_the_way_of_a_stream(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, way: str
) -> None:
    forwarder = start_forwarder(postgres.port, connections=2)
    wait_for(forwarder, 2)
    with Stream(connect(forwarder), way) as stream:
        wait_until(lambda: stream.bytes > 64 * 2**20, "the stream", 60)
        sessions = [connect(forwarder) for _ in range(4)]
        bastion.cut(bastion.monitors()[0])
        wait_until(lambda: forwarder.metric(MADE) == 3, "another")
        left = [session for session in sessions if answers(session)]
        before = stream.bytes
        assert len(left) in (0, 4), "they are together"
        if left:
            wait_until(lambda: not stream.goes_on, "the end of the stream, alone on the connection that was cut")
        else:
            wait_until(lambda: stream.bytes > before, "the stream to go on, alone on the other connection")


def test_clients_that_come_while_one_is_lost_are_served_by_the_others(forwarder: Forwarder, bastion: Bastion) -> None:
    failures: list[str] = []
    ends = threading.Event()

    def ask() -> None:
        while not ends.is_set():
            try:
                with connect(forwarder) as session:
                    session.execute("select 1")
            except psycopg.Error as error:
                failures.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number, monitor in enumerate(bastion.monitors()[: COUNT - 1], start=1):
        bastion.cut(monitor)
        wait_until(lambda number=number: forwarder.metric(MADE) == COUNT + number, "another")  # type: ignore[misc]
    ends.set()
    for thread in threads:
        thread.join()
    # what was open on a connection that was cut
    assert len(failures) <= 4 * (COUNT - 1), failures
    parked = [
        line for line in forwarder.get("/metrics").splitlines() if line.startswith("dbtunnel_forwarder_clients_parked ")
    ]
    assert parked == ["dbtunnel_forwarder_clients_parked 0"]


def test_a_restarted_bastion_gets_all_of_them_back(forwarder: Forwarder, bastion: Bastion) -> None:
    bastion.restart()
    wait_for(forwarder, COUNT)
    with connect(forwarder) as session:
        assert answers(session)


def test_they_are_made_one_after_the_other(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """A bastion that turns others away while three are being made has nothing to turn away."""
    bastion.set_config("MaxStartups 3:100:3", *bastion.config)
    forwarder = start_forwarder(postgres.port, connections=8)
    wait_for(forwarder, 8)
    bastion.kill_sessions()
    wait_until(lambda: forwarder.metric(MADE) == 16, "all to be made again")
    assert "MaxStartups" not in bastion.log_text()


def test_one_is_enough(start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer) -> None:
    with Relay(bastion.host, bastion.port) as way:
        hop = replace(forwarder_config(bastion, 1).bastion, host=way.host, port=way.port)
        forwarder = start_forwarder(postgres.port, connections=2, bastion=hop)
        wait_for(forwarder, 2)
        with connect(forwarder) as first, connect(forwarder) as second:
            way.refuse()
            bastion.cut(bastion.monitors()[0])
            wait_for(forwarder, 1)
            assert sorted(map(answers, (first, second))) == [False, True]
            assert forwarder.status().transport.status == "True"
            with connect(forwarder) as third:
                assert answers(third)
            wait_until(
                lambda: any(one["event"] == "further connection failed" for one in forwarder.events()), "an attempt"
            )
            assert forwarder.status().transport.status == "True"


def test_all_move_over_to_a_new_key(
    forwarder: Forwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    following = key_pair()
    sessions = [connect(forwarder) for _ in range(2 * COUNT)]
    bastion.authorize(client_key.public, following.public)
    forwarder.write_secret({KEY: following.private})

    def keys() -> dict[str, int]:
        return {one.fingerprint: one.connections for one in forwarder.status().sessions}

    wait_until(lambda: keys() == {client_key.fingerprint: COUNT, following.fingerprint: COUNT}, "all made anew")
    assert forwarder.metric(UP) == COUNT
    assert all(map(answers, sessions))
    for session in sessions:
        session.close()
    wait_until(lambda: keys() == {following.fingerprint: COUNT}, "the earlier ones to end")
    wait_until(lambda: bastion.connections() == COUNT, "sshd's processes of the earlier ones to end")


def test_a_rejected_next_key_is_asked_for_once_and_not_by_each(
    forwarder: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    before = bastion.log_text().count("Accepted publickey for")
    forwarder.write_secret({KEY: client_key.private, f"{KEY}-next": key_pair().private})
    forwarder.wait(lambda status: bool(status.next_key and status.next_key.fact.status == "False"), "the refusal")
    assert forwarder.metric(UP) == COUNT
    assert bastion.log_text().count("Accepted publickey for") == before + 1
