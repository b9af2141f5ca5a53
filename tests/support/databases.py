"""Real database servers, each with a small shop in it."""

import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Self

import psycopg
import pymysql

from tests.support.certificates import ServerCertificate
from tests.support.debian import ensure_packages
from tests.support.mounts import MOUNT_POINT, mounted
from tests.support.processes import Process, free_port, run

USER, PASSWORD, DATABASE = "app", "correct horse", "shop"
"""What clients log in with."""

ROWS = ((1, "lamp"), (2, "chair"), (3, "desk"))
"""What the table `orders` (id, item) has."""

_START_SECONDS = 30
_TABLE = "orders (id int primary key, item text)"
_VALUES = ", ".join(f"({number}, '{item}')" for number, item in ROWS)


class _Server(ABC):
    """A server process with its own directory, run as its system user where this one is root."""

    system_user: str
    packages: ClassVar[dict[str, str]]

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        tls: ServerCertificate | None = None,
        tls_required: bool = False,
        settings: Sequence[str] = (),
        survives: bool = False,
    ) -> None:
        """`settings`: further `name=value` of the server's configuration."""
        ensure_packages(self.packages)
        self.directory, self.host, self.port = directory, host, port or free_port(host)
        self.log = directory / "server.log"
        self.tls = tls
        self.settings = tuple(settings)
        self._survives = survives
        self._process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        self._own(directory)
        if not (directory / "data").exists():
            self._fill(tls_required)

    def start(self) -> Self:
        """Starts it; returns once it answers. Raises ProcessError with the server's log where it does not."""
        self._process = Process(self._command(), self.log, survives=self._survives).start()
        self._process.wait_until(self._answers, f"{type(self).__name__} answered", _START_SECONDS)
        return self

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def pids(self) -> tuple[int, ...]:
        """The ids of all its processes that were started here."""
        return (self.pid,)

    def stop(self) -> None:
        """Ends it; sessions are cut."""
        if self._process:
            self._process.stop(20)
            self._process = None

    def restart(self) -> None:
        """Ends and starts it on the same port."""
        self.stop()
        self.start()

    def log_text(self) -> str:
        """What the server wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _fill(self, tls_required: bool) -> None:
        """Once in a process a server's directory is made by its programs; the next ones are copies."""
        made = _MADE.get((type(self), tls_required))
        if made is None:
            self._initialize(tls_required)
            made = _MADE[type(self), tls_required] = TemporaryDirectory(dir=self.directory.parent, prefix="made-")
            source, target = self.directory, Path(made.name)
        else:
            source, target = Path(made.name), self.directory
        run(["cp", "--archive", f"{source}/.", target])

    @abstractmethod
    def sessions(self) -> int:
        """How many client sessions there are, the one that asks left out."""

    @abstractmethod
    def _initialize(self, tls_required: bool) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    @property
    def _place(self) -> Path:
        """The server's directory as the server sees it."""
        return MOUNT_POINT if os.geteuid() == 0 else self.directory

    def _as_user(self, *argv: str) -> list[str]:
        """The command as the server's user."""
        if os.geteuid() != 0:
            return list(argv)
        # the kernel forgets the signal for the parent's end when the user changes
        death = [] if self._survives else ["--pdeathsig", "keep"]
        ids = [f"--reuid={self.system_user}", f"--regid={self.system_user}", "--clear-groups"]
        return mounted(self.directory, ["setpriv", *ids, *death, *argv])

    def _own(self, path: Path) -> None:
        """Gives a file to the server's user."""
        if os.geteuid() == 0:
            shutil.chown(path, self.system_user, self.system_user)

    def _certificate_files(self, tls: ServerCertificate) -> tuple[Path, Path]:
        """The server's own copies of certificate and key, which nobody else may read, as the server sees them."""
        names = "server.crt", "server.key"
        for source, name in zip((tls.certificate, tls.key), names, strict=True):
            target = self.directory / name
            shutil.copy(source, target)
            target.chmod(0o600)
            self._own(target)
        return self._place / names[0], self._place / names[1]


_MADE: dict[tuple[type[_Server], bool], TemporaryDirectory[str]] = {}


class PostgresServer(_Server):
    """PostgreSQL; it also stands for AlloyDB, with its TLS rule."""

    system_user = "postgres"
    authentication = "scram-sha-256"
    packages: ClassVar = {"postgresql": "the databases"}

    def stop(self) -> None:
        """Ends it; sessions are cut."""
        if self._process:
            self._process.signal(signal.SIGINT)  # SIGTERM would wait until the clients have left
        super().stop()

    def connect(self, **options: Any) -> "psycopg.Connection[tuple[Any, ...]]":
        """A session of the application, directly; options as libpq's override the address."""
        target = {"host": self.host, "port": self.port, "connect_timeout": 5}
        return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **{**target, **options})

    def sessions(self) -> int:
        """How many client sessions there are, the one that asks left out."""
        query = "select count(*) from pg_stat_activity where backend_type='client backend' and pid<>pg_backend_pid()"
        with self.connect() as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(row[0])

    def is_locked(self) -> bool:
        """Whether a transaction keeps others out of the table `orders`."""
        with self.connect() as session:
            try:
                session.execute("lock table orders in access exclusive mode nowait")
            except psycopg.errors.LockNotAvailable:
                return True
        return False

    def bench(self, port: int, script: str, *, clients: int, transactions: int) -> None:
        """Runs pgbench against a port of this machine: so many clients, each transaction on a new connection.

        Raises ProcessError where one fails.
        """
        counts = [f"--client={clients}", f"--jobs={clients}", f"--transactions={transactions}"]
        target = ["--host=127.0.0.1", f"--port={port}", f"--username={USER}", DATABASE]
        command = [postgres_program("pgbench"), "--no-vacuum", "--connect", "--file=-", *counts, *target]
        done = run(command, input=script, env={"PGPASSWORD": PASSWORD})
        assert f"{clients * transactions}/{clients * transactions}" in done, done

    def _command(self) -> list[str]:
        options = [
            f"listen_addresses={self.host}",
            f"port={self.port}",
            "unix_socket_directories=",
            "fsync=off",
            "log_connections=on",
            "max_connections=100",
            *self._tls_settings(),
            *self.settings,
        ]
        arguments = [word for option in options for word in ("-c", option)]
        return self._as_user(postgres_program("postgres"), "-D", f"{self._place}/data", *arguments)

    def _initialize(self, tls_required: bool) -> None:
        password = self.directory / "password"
        password.write_text(PASSWORD)
        self._own(password)
        options = ["--no-sync", "--wal-segsize=1", "-A", self.authentication, "-E", "UTF8", "--locale=C"]
        owner = ["-D", f"{self._place}/data", "-U", USER, "--pwfile", f"{self._place}/password"]
        run(self._as_user(postgres_program("initdb"), *owner, *options))
        kind = "hostssl" if tls_required else "host"
        (self.directory / "data/pg_hba.conf").write_text(f"{kind} all all all {self.authentication}\n")
        self._execute("postgres", f"create database {DATABASE}")
        self._execute(DATABASE, f"create table {_TABLE}\ninsert into orders values {_VALUES}")

    def _execute(self, database: str, statements: str) -> None:
        """Runs statements, one a line, with no server."""
        single = [postgres_program("postgres"), "--single", "-F", "-c", "exit_on_error=on", "-D", f"{self._place}/data"]
        run(self._as_user(*single, database), input=statements + "\n")

    def _tls_settings(self) -> list[str]:
        if self.tls is None:
            return ["ssl=off"]
        certificate, key = self._certificate_files(self.tls)
        return ["ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}"]

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


class MariaDBServer(_Server):
    """MariaDB, of the MySQL protocol.

    It never blocks a client at 127.0.0.1 for `max_connect_errors`: to see that, come through a relay with a `source`.
    """

    system_user = "mysql"
    clients = "%"
    """From which hosts the application's user may come."""
    packages: ClassVar = {"mariadb-server": "the databases"}

    def connect(self, **options: Any) -> "pymysql.Connection[Any]":
        """A session of the application, directly; options as PyMySQL's override the address."""
        target: dict[str, Any] = {"host": self.host, "port": self.port, "connect_timeout": 5}
        if self.tls:
            target["ssl"] = {"ca": str(self.tls.authority), "check_hostname": False}
        return pymysql.connect(user=USER, password=PASSWORD, database=DATABASE, **{**target, **options})

    def sessions(self) -> int:
        """How many client sessions there are, the one that asks left out."""
        connection = self.connect()
        with connection, connection.cursor() as cursor:
            cursor.execute("select count(*) from information_schema.processlist where user=%s", (USER,))
            row = cursor.fetchone()
        assert row is not None
        return int(row[0]) - 1

    def _command(self) -> list[str]:
        address = [f"--bind-address={self.host}", f"--port={self.port}"]
        return [*self._base_command(), *address, *self._tls_options(), *(f"--{setting}" for setting in self.settings)]

    def _base_command(self) -> list[str]:
        return self._as_user(
            shutil.which("mariadbd") or "/usr/sbin/mariadbd",
            "--no-defaults",
            f"--datadir={self._place}/data",
            "--socket=../s",  # from the data directory: a socket's path has at most 107 bytes
            f"--pid-file={self._place}/pid",
            f"--tmpdir={self._place}/tmp",  # a server that starts deletes the temporary tables of all in its directory
            "--innodb-buffer-pool-size=8M",
            "--innodb-log-file-size=4M",
            "--innodb-flush-log-at-trx-commit=0",
        )

    def _initialize(self, tls_required: bool) -> None:
        temporary = self.directory / "tmp"
        temporary.mkdir()
        self._own(temporary)
        options = ["--no-defaults", "--skip-test-db", "--skip-name-resolve", f"--tmpdir={self._place}/tmp"]
        run(self._as_user("mariadb-install-db", *options, f"--datadir={self._place}/data"))
        tls = " require ssl" if tls_required else ""
        script = (
            f"create database {DATABASE};\n"
            f"use {DATABASE};\n"
            f"create table {_TABLE};\n"
            f"insert into orders values {_VALUES};\n"
            "flush privileges;\n"
            f"create user '{USER}'@'{self.clients}' identified by '{PASSWORD}'{tls};\n"
            f"grant all on {DATABASE}.* to '{USER}'@'{self.clients}';\n"
            f"grant process, reload on *.* to '{USER}'@'{self.clients}';\n"  # sees other sessions, unblocks hosts
        )
        run([*self._base_command(), "--bootstrap"], input=script)

    def _tls_options(self) -> list[str]:
        if self.tls is None:
            return ["--skip-ssl"]
        certificate, key = self._certificate_files(self.tls)
        return [f"--ssl-cert={certificate}", f"--ssl-key={key}"]

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except (pymysql.err.OperationalError, OSError):
            return False
        return True


def postgres_program(program: str) -> str:
    """A PostgreSQL program; Debian keeps them beside the version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(found[-1]) if found else program
