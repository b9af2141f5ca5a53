"""Reasons of conditions: the one table from which messages, retry paces and documentation are made.

A reason's `message` is a template; `dbtunnel.domain.diagnosis` fills it. What stands in braces:
`{tunnel}` the tunnel's name, `{hop}` the SSH server concerned, `{path}` where it stands in the spec, `{before}` the
jump host before it, `{target}` what the tunnel opens from it, `{seen}` what was observed (bounded and printable),
`{also}` the same as further sentences, or nothing,
`{user}`, `{host}`, `{port}` of the SSH server, `{database}` host:port, `{protocol}`, `{namespace}`, `{admin_port}`,
`{secret}`, `{key}`, `{key_path}` where that key's reference stands, `{passphrase_key}`, `{signatures}` with which the
key signs, `{egress}` the declared egress addresses in brackets or nothing, `{line}` the line for
`authorized_keys`, `{pin}` a patch that pins the observed host keys.
"""

from dbtunnel.api.conditions import LAYERS, Reason
from dbtunnel.api.reason_info import OUTAGE_GRACE, PASSING_SECONDS, SLOW, SUPPLY_GRACE, TURNED_AWAY, ReasonInfo
from dbtunnel.api.reasons_around import AROUND

__all__ = ["OUTAGE_GRACE", "PASSING_SECONDS", "REASONS", "SLOW", "SUPPLY_GRACE", "TURNED_AWAY", "Reason", "ReasonInfo"]

_, _TRANSPORT, _AUTH, _DATABASE = LAYERS

REASONS: dict[Reason, ReasonInfo] = {
    **AROUND,
    Reason.HOST_UNRESOLVABLE: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "The SSH server's name has no address, as seen from the forwarder's pod or the jump host before it.",
        "{hop}: the name does not resolve in the cluster: {seen}. Check {path}.host, or give an address,"
        " or add the name with spec.podTemplate.hostAliases.",
        behind="{hop}: {before} cannot resolve the name: {seen}. Check {path}.host; it is looked up there.",
        cause="A typing error, or a name that only other resolvers know.",
        example="Name or service not known",
    ),
    Reason.NETWORK_UNREACHABLE: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "There is no route to the SSH server.",
        "{hop}: no route from the cluster: {seen}. Check the address, the cluster's egress and its NetworkPolicies.",
        behind="{hop}: {before} has no route to it: {seen}. Check {path}.host, routes and firewalls between the two.",
        cause="An address that is not routed, or a host that is off.",
        example="No route to host",
    ),
    Reason.CONNECTION_REFUSED: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "The host answers and nothing listens on the port.",
        "{hop}: connection refused. Start the SSH server, or set {path}.port to the port on which it listens.",
        behind="{hop}: it refuses the connection of {before}: {seen}. Start the SSH server, or correct {path}.port.",
        cause="sshd is down or listens on another port, or a firewall refuses.",
        example="Connection refused",
    ),
    Reason.CONNECT_TIMEOUT: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "Nothing answers: packets are dropped, or the server hangs.",
        "{hop}: no answer in time ({seen}). Most often a firewall drops the packets: allow TCP to this port from the"
        " cluster's egress addresses{egress}.",
        behind="{hop}: no answer in time through {before} ({seen}). Allow TCP from there to this port (firewall).",
        cause="A firewall or security group drops the packets, or the host hangs.",
        example="no TCP connection after 10 s",
    ),
    Reason.NOT_AN_SSH_SERVER: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "Something answers on the port, and it does not speak SSH.",
        "{hop}: what answers is not an SSH server: {seen}. Set {path}.host and {path}.port to the SSH server's.",
        SLOW,
        cause="The port of a web server, a database or a proxy.",
        example='it says "HTTP/1.1 400 Bad Request"',
    ),
    Reason.BASTION_REFUSING: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "sshd turns connections away before it authenticates: MaxStartups, PerSourcePenalties, a host firewall.",
        "{hop}: the SSH server turns new connections away: {seen}. Raise MaxStartups in its sshd_config, or exempt the"
        " cluster's egress addresses{egress} with PerSourcePenaltyExemptList; where it has too many open files, set"
        " LimitNOFILE=65536 in its systemd unit.",
        TURNED_AWAY,
        behind="{hop}: the SSH server turns new connections of {before} away: {seen}. Raise MaxStartups in its"
        " sshd_config, or exempt that address with PerSourcePenaltyExemptList; where it has too many open files, set"
        " LimitNOFILE=65536 in its systemd unit.",
        cause="Too many connections at once, or failed logins of others behind the same address.",
        example='it says "Not allowed at this time"',
    ),
    Reason.NO_COMMON_ALGORITHM: ReasonInfo(
        _TRANSPORT,
        0,
        "Client and server share no algorithm of one kind.",
        "{hop}: no algorithm in common: {seen}. Update the SSH server, or allow one of the tunnel's in its sshd_config"
        " (the option in brackets), or set {path}.algorithms to Legacy.",
        SLOW,
        cause="A server of before about 2014, or one that was restricted by hand.",
        example='key exchange (KexAlgorithms): the server offers "diffie-hellman-group14-sha1"; the tunnel offers'
        " curve25519-sha256, ecdh-sha2-nistp256",
    ),
    Reason.HOST_KEY_UNKNOWN: ReasonInfo(
        _TRANSPORT,
        SUPPLY_GRACE,
        "No host key is pinned, so nothing was sent to the server. Its keys are shown.",
        "{hop}: no host key is pinned, so nothing was sent. The server shows {seen}. Compare with what its"
        " administrator says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then pin it: {pin}",
        SLOW,
        cause="`hostKey` is empty, or known_hosts has no line for this server.",
        example="ssh-ed25519 SHA256:eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
    ),
    Reason.HOST_KEY_MISMATCH: ReasonInfo(
        _TRANSPORT,
        0,
        "The server shows a host key that is not pinned: it was reinstalled, or somebody is in between.",
        "{hop}: the host key is not the pinned one; the server shows {seen}. Either the server was reinstalled or"
        " somebody intercepts the connection. Ask its administrator; if the key is right, pin it: {pin}",
        SLOW,
        cause="The server was reinstalled, another one has its address, or somebody intercepts.",
        example="ssh-ed25519 SHA256:eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
    ),
    Reason.HOST_KEY_REVOKED: ReasonInfo(
        _TRANSPORT,
        0,
        "The server shows a host key that known_hosts marks @revoked.",
        "{hop}: the server shows a host key that is marked @revoked: {seen}. Have the server's administrator replace"
        " the key, then pin the new one.",
        SLOW,
        cause="The key leaked and was revoked, and the server still has it.",
        example="Host key is revoked: ssh-ed25519 SHA256:eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee",
    ),
    Reason.HOST_CERTIFICATE_INVALID: ReasonInfo(
        _TRANSPORT,
        0,
        "The server's host certificate is expired, for another name, or not signed by a pinned authority.",
        "{hop}: the host certificate is not valid: {seen}. Have it renewed for this name ({path}.hostKey.alias"
        " overrides the name): ssh-keygen -s CA_KEY -h -I {host} -n {host} ssh_host_ed25519_key.pub; or pin the"
        " authority with an @cert-authority line.",
        SLOW,
        cause="It was not renewed, or was made for another name.",
        example="Certificate expired",
    ),
    Reason.KNOWN_HOSTS_INVALID: ReasonInfo(
        _TRANSPORT,
        SUPPLY_GRACE,
        "The known_hosts text has a line that cannot be read, or is not there, so nothing was sent to the server.",
        "{hop}: known_hosts cannot be used, so nothing was sent: {seen}. Write lines as"
        " `ssh-keyscan -p {port} {host}` prints them.",
        SLOW,
        cause="A line was cut or wrapped, or the object of `knownHostsRef` is not there.",
        example="line 2: its key, of type ssh-ed25519, cannot be read",
    ),
    Reason.CONNECTION_LOST: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "The SSH connection broke and is being made again.",
        "{hop}: the SSH connection was lost: {seen}. It is being made again. If this repeats, look at the server's log"
        " and at what closes idle connections in between (spec.tunnel.keepalive).",
        cause="The server or a device in between closed it, or went away.",
        example='"Connection lost"',
    ),
    Reason.KEY_REJECTED: ReasonInfo(
        _AUTH,
        SUPPLY_GRACE,
        "The SSH server does not accept the key for this user.",
        "{hop}: user {user}: the server does not accept the key.{also} Add this line to the user's authorized_keys"
        " there (and allow {signatures} where PubkeyAcceptedAlgorithms is set): {line}",
        SLOW,
        cause="The line is not in authorized_keys, or sshd takes no keys of this kind or from this address.",
    ),
    Reason.SECOND_FACTOR_REQUIRED: ReasonInfo(
        _AUTH,
        0,
        "The server accepted the key and asks for something more.",
        "{hop}: user {user}: the key was accepted and the server asks for more: {seen}. Set AuthenticationMethods"
        " publickey for this user in sshd_config (a Match User block).",
        SLOW,
        cause="sshd's AuthenticationMethods asks for a password or a code as well.",
        example="publickey succeeded and another method is demanded",
    ),
    Reason.TOO_MANY_AUTH_FAILURES: ReasonInfo(
        _AUTH,
        OUTAGE_GRACE,
        "The server closed the connection after too many attempts to authenticate.",
        "{hop}: user {user}: the server counted too many authentication failures: {seen}. Raise MaxAuthTries in"
        " sshd_config, and authorize the key with this line: {line}",
        SLOW,
        cause="MaxAuthTries is low and the key is not accepted.",
        example='"Too many authentication failures"',
    ),
    Reason.METHOD_NOT_OFFERED: ReasonInfo(
        _AUTH,
        0,
        "The server does not offer authentication by public key to this user.",
        "{hop}: user {user}: the server does not offer publickey authentication: {seen}. Set PubkeyAuthentication yes"
        " in sshd_config, and look for a Match block that changes it.",
        SLOW,
        cause="PubkeyAuthentication no, for all or in a Match block.",
        example="its list of methods has no publickey",
    ),
    Reason.FORWARDING_PROHIBITED: ReasonInfo(
        _DATABASE,
        0,
        "The SSH server's policy forbids this forwarding. Of a jump host it is TransportReady that says so.",
        "{hop}: forwarding to {target} is prohibited: {seen}. In sshd_config set AllowTcpForwarding local and"
        " PermitOpen any or {target}; in authorized_keys the key's line needs port-forwarding and this"
        " permitopen: {line}",
        cause="AllowTcpForwarding, PermitOpen or the key's own line permits less.",
        example='"open failed"',
    ),
    Reason.DATABASE_UNRESOLVABLE: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database's name has no address, as seen from the SSH server.",
        "{hop}: it cannot resolve the database's name {database}: {seen}. Check spec.database.host; the name is looked"
        " up on the SSH server, not in the cluster.",
        cause="A typing error, or a name that the SSH server's resolver does not know.",
        example='"Name or service not known"',
    ),
    Reason.DATABASE_UNREACHABLE: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The SSH server has no route to the database.",
        "{hop}: it has no route to the database {database}: {seen}. Check routes and firewalls between the two.",
        cause="The database is in another network, or its host is off.",
        example='"No route to host"',
    ),
    Reason.DATABASE_REFUSED: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database's host answers the SSH server and nothing listens on the port, or the connection ends at once, or"
        " the database starts or ends (PostgreSQL's 57P03), or lets nobody in from the SSH server's address"
        " (pg_hba.conf, MySQL error 1130).",
        "{hop}: the database {database} refused the connection: {seen}. Start the database, or wait where it says that"
        " it starts, or correct spec.database.host and spec.database.port; where the SSH server's address is not let"
        " in, add it to pg_hba.conf, or to MySQL's accounts (CREATE USER ...@'ADDRESS'); where it says no encryption,"
        " have clients use TLS.",
        cause="The database is down, starts, or listens elsewhere.",
        example='"Connection refused"',
    ),
    Reason.DATABASE_TIMEOUT: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database does not answer the SSH server, or answers the connection and then says nothing.",
        "{hop}: no answer from the database {database} in time: {seen}. Allow TCP from the SSH server to the database"
        " (security group, firewall).",
        cause="A firewall or security group drops the packets, or the database hangs.",
        example="the SSH server opens no connection within 10 s",
    ),
    Reason.UNEXPECTED_PROTOCOL: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "What answers does not speak the engine's protocol.",
        "{hop}: {database} does not speak {protocol}: {seen}. Check spec.engine and spec.database.",
        cause="The wrong engine, host or port.",
        example='it says "HTTP/1.1 400 Bad Request"',
    ),
    Reason.HOST_BLOCKED: ReasonInfo(
        _DATABASE,
        0,
        "MySQL blocked the SSH server's address after max_connect_errors interrupted handshakes (error 1129).",
        "{hop}: the database {database} blocks the SSH server's address: {seen}. Run FLUSH HOSTS (MySQL 8:"
        " TRUNCATE performance_schema.host_cache) on the database, and raise max_connect_errors.",
        SLOW,
        cause="Clients, port scans or health checks that connect and leave.",
        example="error 1129: \"Host '10.0.0.5' is blocked because of many connection errors\"",
    ),
    Reason.TOO_MANY_CONNECTIONS: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database has no connection left (MySQL error 1040, PostgreSQL's 53300), or the SSH server opens no more"
        " channels.",
        "{hop}: no connection to the database {database} is left: {seen}. Where the database says so, raise its"
        " max_connections or close idle sessions; where the SSH server opens no more channels, set LimitNOFILE=65536 in"
        " its systemd unit, or raise spec.tunnel.connections.",
        SLOW,
        cause="Pools are too large, or sessions are never closed; or systemd's 1024 open files for each of sshd's"
        " processes.",
        example='error 1040: "Too many connections"',
    ),
    Reason.NOT_PROBED: ReasonInfo(
        _DATABASE,
        None,
        "Nothing has shown yet whether the database answers: this engine is not probed actively and no client has"
        " connected, or spec.probe.mode is Disabled. This does not hold Ready back.",
        "Not probed: {seen}.",
        cause="`spec.probe.mode`, or an engine that a probe could harm.",
        example="no client has connected yet",
    ),
}
"""Every reason that a condition can have when it is not True."""
