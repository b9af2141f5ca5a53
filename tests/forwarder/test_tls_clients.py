"""docs/tls.md: each client verifies the database's certificate and the name on it, through a forwarder and an sshd."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from dbtunnel.api.engines import Engine
from tests.support.applications.programs import Pod, host_aliases, programs
from tests.support.applications.runtimes import runtimes
from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate, server_certificate
from tests.support.databases import ROWS, MariaDBServer, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.private_network import free_addresses
from tests.support.processes import free_port, run
from tests.support.redshift import start_front

ORDERS, INVENTORY, WAREHOUSE = "orders.internal", "mysql.internal", "warehouse.internal"
"""The databases' names, as their certificates have them."""

SERVICES = {ORDERS: "orders.shop.svc", INVENTORY: "inventory.shop.svc", WAREHOUSE: "warehouse.shop.svc"}

WITH_TWO_NAMES = "reports.shop.svc"
"""A Service whose name the certificate of the database bears, too."""

OPENSSL = ("Hostname mismatch", "unable to get local issuer certificate")
LIBPQ = ("does not match host name", "certificate verify failed")
NODE = ("does not match certificate's altnames", "unable to verify the first certificate")

CLIENTS: Mapping[str, tuple[str, str, str]] = {
    "psql": (ORDERS, *LIBPQ),
    "psycopg": (ORDERS, *LIBPQ),
    "asyncpg": (ORDERS, *OPENSSL),
    "JDBC": (ORDERS, "could not be verified by hostnameverifier OrdersName", "PKIX path"),
    "pg": (ORDERS, *NODE),
    "PyMySQL": (INVENTORY, *OPENSSL),
    "mysql2": (INVENTORY, *NODE),
    "redshift_connector": (WAREHOUSE, *OPENSSL),
    "mysql": (INVENTORY, "TLS/SSL error", "TLS/SSL error"),
}
"""Each client of the page: its database, and how it refuses another name and another authority."""

WITHOUT_SETTING = ("redshift_connector", "mysql")
"""Those that find the Service under the certificate's name by the pod's hosts alone."""


@dataclass(frozen=True)
class Network:
    """What pods see of the tunnels."""

    addresses: Mapping[str, str]
    """Each database's Service, by the database's name."""
    authorities: Mapping[str, Path]
    """Who signed each database's certificate. Nobody else's is signed by the warehouse's."""


@pytest.fixture(scope="module")
def network(
    tmp_path_factory: pytest.TempPathFactory,
    client_key: KeyPair,
    certificate: ServerCertificate,
    open_postgres: PostgresServer,
    postgres_tls: PostgresServer,
    mariadb_tls: MariaDBServer,
) -> Iterator[Network]:
    """A tunnel to each database, at the port of its engine."""
    directory = tmp_path_factory.mktemp("tunnels")
    other = server_certificate(directory / "tls", [WAREHOUSE, WITH_TWO_NAMES], issuer_name="another authority")
    front_port = free_port()
    tunnels = {
        ORDERS: (Engine.POSTGRESQL, 5432, postgres_tls.port),
        INVENTORY: (Engine.MYSQL, 3306, mariadb_tls.port),
        WAREHOUSE: (Engine.REDSHIFT, 5439, front_port),
    }
    addresses = dict(zip(tunnels, free_addresses([port for _, port, _ in tunnels.values()]), strict=True))
    authorities = dict.fromkeys(tunnels, certificate.authority) | {WAREHOUSE: other.authority}
    with contextlib.ExitStack() as stack:
        front = start_front("127.0.0.1", front_port, open_postgres.port, other, directory / "front.log")
        stack.callback(front.stop)
        bastion = Bastion(directory / "bastion", hosts=dict.fromkeys(tunnels, "127.0.0.1"))
        bastion.authorize(client_key.public)
        bastion.start()
        stack.callback(bastion.stop)
        for name, (engine, port, database_port) in tunnels.items():
            config = forwarder_config(bastion, database_port, engine=engine, database_host=name)
            forwarder = Forwarder(directory / name, config, {KEY: client_key.private})
            forwarder.port = port
            forwarder.start(address=addresses[name])
            stack.callback(forwarder.stop)
        yield Network(addresses, authorities)


RunProgram = Callable[..., tuple[int, str]]


@pytest.fixture
def run_program(tmp_path: Path, network: Network) -> RunProgram:
    """Runs a client's program of the page, where the Services' names resolve. Returns exit code and output.

    `changes`: words of it in whose place there are others. `trusting`: the database whose authority is in the file,
    by default its own. `aliases`: databases whose names the pod's hosts have.
    """
    services = {SERVICES[name]: address for name, address in network.addresses.items()}

    def run_it(
        client: str, changes: Mapping[str, str] | None = None, *, trusting: str = "", aliases: Sequence[str] = ()
    ) -> tuple[int, str]:
        known = services | {name: network.addresses[name] for name in aliases}
        pod = Pod(tmp_path / str(len(list(tmp_path.iterdir()))), known)
        authority = network.authorities[trusting or CLIENTS[client][0]]
        return pod.run(programs()[client].with_changes(changes or {}), authority)

    return run_it


def has_the_rows(printed: str) -> bool:
    return all(re.search(rf"\b{number}\b.*\b{item}\b", printed) for number, item in ROWS)


def not_of(database: str) -> str:
    """A database whose authority is another."""
    return ORDERS if database == WAREHOUSE else WAREHOUSE


def test_every_program_of_the_page_is_run() -> None:
    assert set(programs()) == set(CLIENTS)


@pytest.mark.parametrize("client", CLIENTS)
def test_its_program_verifies_authority_and_name(run_program: RunProgram, client: str) -> None:
    database, other_name, other_authority = CLIENTS[client]
    aliases = host_aliases() if client in WITHOUT_SETTING else []

    code, printed = run_program(client, aliases=aliases)
    assert code == 0, printed
    assert has_the_rows(printed)

    code, printed = run_program(client, {database: SERVICES[database]}, aliases=aliases)
    assert code != 0
    assert other_name in printed
    assert ROWS[0][1] not in printed

    code, printed = run_program(client, aliases=aliases, trusting=not_of(database))
    assert code != 0
    assert other_authority in printed
    assert ROWS[0][1] not in printed


# --- what the page says besides ---------------------------------------------------------------------------------------

_PSQL_ADDRESS = " PGHOSTADDR=$(getent hosts orders.shop.svc | cut -d' ' -f1)"
_USUAL_CONTEXT = {"OrdersContext(ssl.PROTOCOL": "ssl.SSLContext(ssl.PROTOCOL"}
_CHECK = "checkServerIdentity: (host, certificate) => checkServerIdentity('orders.internal', certificate)"
_BY_ADDRESS = {"'orders.shop.svc'": "(await require('node:dns/promises').lookup('orders.shop.svc')).address"}
_NAME_OF_SERVICE = {name: {name: service} for name, service in SERVICES.items()}

ALIASES_ALONE: Mapping[str, Mapping[str, str]] = {
    "psql": {_PSQL_ADDRESS: ""},
    "psycopg": {'    hostaddr=socket.gethostbyname("orders.shop.svc"),\n': ""},
    "asyncpg": {**_USUAL_CONTEXT, "orders.shop.svc": ORDERS},
    "JDBC": {"orders.shop.svc": ORDERS, "&sslhostnameverifier=OrdersName": ""},
    "pg": {f"      {_CHECK},\n": "", "orders.shop.svc": ORDERS},
    "PyMySQL": {'socket.create_connection(("inventory.shop.svc", 3306))': ""},
    "mysql2": {"    stream: () => connect(3306, 'inventory.shop.svc'),\n": ""},
}
"""What a client needs no more where the pod's hosts have the name."""


@pytest.mark.parametrize("client", ALIASES_ALONE)
def test_the_pods_hosts_are_enough_for_every_client(run_program: RunProgram, client: str) -> None:
    code, printed = run_program(client, ALIASES_ALONE[client], aliases=CLIENTS[client][:1])

    assert code == 0, printed
    assert has_the_rows(printed)


NAME_NOT_VERIFIED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "psql: verify-ca": ("psql", {"verify-full": "verify-ca", **_NAME_OF_SERVICE[ORDERS]}),
    "PyMySQL: no ssl_verify_identity": (
        "PyMySQL",
        {"    ssl_verify_identity=True,\n": "", **_NAME_OF_SERVICE[INVENTORY]},
    ),
    "mysql2: no verifyIdentity": ("mysql2", {", verifyIdentity: true": "", **_NAME_OF_SERVICE[INVENTORY]}),
    "mysql: ssl-ca alone": ("mysql", {"--ssl-verify": "--skip-ssl-verify", **_NAME_OF_SERVICE[INVENTORY]}),
    "redshift_connector: no sslmode": (
        "redshift_connector",
        {'    sslmode="verify-full",\n': "", **_NAME_OF_SERVICE[WAREHOUSE]},
    ),
}
"""What the page warns of: the Service's name is taken, which is not on the certificate; the authority is verified."""

_SSL_CA_ALONE = {"    ssl_verify_cert=True,\n    ssl_verify_identity=True,\n": "", **_NAME_OF_SERVICE[INVENTORY]}


@pytest.mark.parametrize(("client", "changes"), NAME_NOT_VERIFIED.values(), ids=NAME_NOT_VERIFIED)
def test_a_setting_that_verifies_no_name(run_program: RunProgram, client: str, changes: Mapping[str, str]) -> None:
    code, printed = run_program(client, changes)
    assert code == 0, printed
    assert has_the_rows(printed)

    database, _, other_authority = CLIENTS[client]
    code, printed = run_program(client, changes, trusting=not_of(database))
    assert code != 0
    assert other_authority in printed
    assert ROWS[0][1] not in printed


def test_an_authority_alone_makes_pymysql_verify_nothing(run_program: RunProgram) -> None:
    for trusting in (INVENTORY, not_of(INVENTORY)):
        code, printed = run_program("PyMySQL", _SSL_CA_ALONE, trusting=trusting)

        assert code == 0, printed
        assert has_the_rows(printed)


REFUSED: Mapping[str, tuple[str, Mapping[str, str], str]] = {
    "asyncpg: hostaddr": (
        "asyncpg",
        {**_USUAL_CONTEXT, 'host="orders.shop.svc"': f'"postgresql://{ORDERS}?hostaddr=127.0.0.1"'},
        'unrecognized configuration parameter "hostaddr"',
    ),
    "pg: servername of a host that is a name": ("pg", {_CHECK: f"servername: '{ORDERS}'"}, NODE[0]),
    "pg: another servername of an address": (
        "pg",
        {_CHECK: f"servername: '{SERVICES[ORDERS]}'", **_BY_ADDRESS},
        NODE[0],
    ),
    "pg: sslmode in a connection string": (
        "pg",
        {"    user: 'app',": f"    connectionString: 'postgresql://app@{SERVICES[ORDERS]}/shop?sslmode=verify-full',"},
        NODE[1],
    ),
    "mysql2: servername": (
        "mysql2",
        {**_NAME_OF_SERVICE[INVENTORY], "verifyIdentity: true": f"verifyIdentity: true, servername: '{INVENTORY}'"},
        NODE[0],
    ),
}
"""What the page says does not help, and how the client refuses."""


@pytest.mark.parametrize(("client", "changes", "said"), REFUSED.values(), ids=REFUSED)
def test_a_setting_that_does_not_help(
    run_program: RunProgram, client: str, changes: Mapping[str, str], said: str
) -> None:
    code, printed = run_program(client, changes, aliases=[ORDERS])

    assert code != 0
    assert said in printed


def test_pg_verifies_the_servername_of_an_address(run_program: RunProgram) -> None:
    code, printed = run_program("pg", {_CHECK: f"servername: '{ORDERS}'", **_BY_ADDRESS})

    assert code == 0, printed
    assert has_the_rows(printed)


def test_clients_without_a_setting_have_none() -> None:
    of_a_name = re.compile(r"hostaddr|server.?name|verify.?identity|context|sni", re.IGNORECASE)
    program = "import inspect, redshift_connector as r; print(*inspect.signature(r.connect).parameters)"

    parameters = run([runtimes().python, "-c", program]).split()
    options = re.findall(r"^ +(?:-\w, )?--(\S+)", run(["mariadb", "--no-defaults", "--help"]), re.MULTILINE)

    assert {"host", "sslmode"} <= set(parameters)
    assert [word for word in parameters if of_a_name.search(word)] == []
    assert {"host=name", "ssl-verify-server-cert"} <= set(options)
    assert [word for word in options if of_a_name.search(word)] == []


def test_a_certificate_that_bears_the_services_name_too_needs_no_setting(tmp_path: Path, network: Network) -> None:
    pod = Pod(tmp_path / "pod", {WITH_TWO_NAMES: network.addresses[WAREHOUSE]})
    program = programs()["psql"].with_changes({f"{ORDERS}{_PSQL_ADDRESS}": f"{WITH_TWO_NAMES} PGPORT=5439"})

    code, printed = pod.run(program, network.authorities[WAREHOUSE])

    assert code == 0, printed
    assert has_the_rows(printed)
