"""The engines that a tunnel can lead to: one row each, nothing about an engine stands anywhere else."""

from dataclasses import dataclass
from enum import StrEnum


class Engine(StrEnum):
    """The database behind the tunnel; chooses the default port and how the tunnel is probed."""

    POSTGRESQL = "PostgreSQL"
    REDSHIFT = "Redshift"
    ALLOYDB = "AlloyDB"
    MYSQL = "MySQL"


class WireProtocol(StrEnum):
    """What is spoken on the database's port."""

    POSTGRESQL = "PostgreSQL"
    """Frontend/backend protocol 3: the client speaks first; SSLRequest asks for TLS."""
    MYSQL = "MySQL"
    """Client/server protocol 10, of MySQL and MariaDB: the server speaks first."""


class QuietProbe(StrEnum):
    """What shows that a database answers, without a login and without an error in its log."""

    SSL_REQUEST = "SSLRequest"
    """PostgreSQL's question for TLS; where the answer is yes, the TLS handshake and its proper end."""


@dataclass(frozen=True)
class EngineInfo:
    """What differs between engines."""

    protocol: WireProtocol
    default_port: int
    uri_scheme: str
    """Scheme of a connection URI, as the engine's own clients take it."""
    binding_type: str
    """`type` of its service binding, by which libraries choose a driver (servicebinding.io, Well-known Secret Entries).
    """
    quiet_probe: QuietProbe | None
    """What `probe.mode: Auto` asks over connections of its own. None for MySQL: interrupted handshakes count against
    `max_connect_errors` of the bastion's address and can lock out everyone behind it."""
    tls_rule: str
    """What the engine demands of TLS, for the documentation."""


ENGINES: dict[Engine, EngineInfo] = {
    Engine.POSTGRESQL: EngineInfo(
        WireProtocol.POSTGRESQL,
        5432,
        "postgresql",
        binding_type="postgresql",
        quiet_probe=QuietProbe.SSL_REQUEST,
        tls_rule="Optional; pg_hba.conf may demand it (hostssl).",
    ),
    Engine.REDSHIFT: EngineInfo(
        WireProtocol.POSTGRESQL,
        5439,
        "redshift",
        binding_type="redshift",
        quiet_probe=QuietProbe.SSL_REQUEST,
        tls_rule="Optional; the parameter require_ssl demands it.",
    ),
    Engine.ALLOYDB: EngineInfo(
        WireProtocol.POSTGRESQL,
        5432,
        "postgresql",
        binding_type="postgresql",
        quiet_probe=QuietProbe.SSL_REQUEST,
        tls_rule="Demanded unless the instance's ssl-mode is ALLOW_UNENCRYPTED_AND_ENCRYPTED.",
    ),
    Engine.MYSQL: EngineInfo(
        WireProtocol.MYSQL,
        3306,
        "mysql",
        binding_type="mysql",
        quiet_probe=None,
        tls_rule="Optional; require_secure_transport demands it.",
    ),
}
