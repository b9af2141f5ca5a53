"""What a client's socket is like."""

import socket

from dbtunnel.forwarder.listener import listening_socket


def test_clients_are_asked_whether_they_live_and_nothing_waits_for_more() -> None:
    with listening_socket("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()):
        client, _ = bound.accept()
        with client:
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
