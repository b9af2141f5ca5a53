"""What a client of PostgreSQL says, for thousands of clients and for streams: a library for each would cost more.

The messages are those of PostgreSQL's documentation, section "Message Formats". The server must ask for no password.
"""

import socket
import struct

from tests.support.databases import DATABASE, USER


def startup(version: int = 0x30000) -> bytes:
    """StartupMessage of the application."""
    content = struct.pack(">I", version) + f"user\0{USER}\0database\0{DATABASE}\0\0".encode()
    return struct.pack(">I", 4 + len(content)) + content


def query(text: str) -> bytes:
    """Query."""
    return _message(b"Q", text.encode() + b"\0")


def copy_data(content: bytes) -> bytes:
    """CopyData: part of what goes into a table."""
    return _message(b"d", content)


_IN_TRANSACTION = b"Z\0\0\0\5T"
"""ReadyForQuery."""


def lock_table(client: socket.socket) -> None:
    """Logs in and locks the table `orders`, in a transaction that goes on."""
    client.sendall(startup() + query("begin; lock table orders in access exclusive mode"))
    said = b""
    while not said.endswith(_IN_TRANSACTION):
        said += (more := client.recv(65536))
        assert more, said


COPY_DONE = b"c\0\0\0\4"
"""CopyDone: that was all."""


def _message(kind: bytes, content: bytes) -> bytes:
    return kind + struct.pack(">I", 4 + len(content)) + content
