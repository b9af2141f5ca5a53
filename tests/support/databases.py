"""Real database servers, each with a small shop in it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import psycopg
import pymysql

from tests.support.certificates import ServerCertificate
from tests.support.debian import ensure_packages
from tests.support.files import let_others_in
from tests.support.processes import Process, free_port, run

USER, PASSWORD, DATABASE = "app", "correct horse", "shop"
"""What clients log in with."""

_START_SECONDS = 30


class _Server:
    """A server process with its own directory, run as its system user where this one is root."""

    system_user: str

    def __init__(self, directory: Path, host: str, port: int | None, survives: bool) -> None:
        self.directory, self.host, self.port = directory, host, port or free_port(host)
        self.log = directory / "server.log"
        self._survives = survives
        self._process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        let_others_in(directory)
        self._own(directory)

    @property
    def pid(self) -> int:
        """The server's process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def stop(self) -> None:
        """Ends it; sessions are cut."""
        if self._process:
            self._process.stop(20)
            self._process = None

    def log_text(self) -> str:
        """What the server wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _as_user(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        return ["setpriv", f"--reuid={self.system_user}", f"--regid={self.system_user}", "--clear-groups"]

    def _own(self, path: Path) -> None:
        """Gives a file to the server's user."""
        if os.geteuid() == 0:
            shutil.chown(path, self.system_user, self.system_user)

    def _copy(self, source: Path, name: str) -> Path:
        target = self.directory / name
        shutil.copy(source, target)
        target.chmod(0o600)
        self._own(target)
        return target


class PostgresServer(_Server):
    """PostgreSQL; it also stands for Redshift and AlloyDB, with their port and TLS rules."""

    system_user = "postgres"

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
        """`settings`: further `name=value` of postgresql.conf."""
        ensure_packages({"postgresql": "the databases"})
        super().__init__(directory, host, port, survives)
        self.settings = tuple(settings)
        self._tls = tls
        self._hba = "hostssl" if tls_required else "host"
        self._initialize()

    def start(self) -> Self:
        """Starts it; returns once it answers queries."""
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
        command = [*self._as_user(), _postgres("postgres"), "-D", str(self.directory / "data"), *arguments]
        self._process = Process(command, self.log, survives=self._survives).start()
        self._process.wait_until(self._answers, "PostgreSQL to answer", _START_SECONDS)
        return self

    def restart(self) -> None:
        """Ends and starts it on the same port."""
        self.stop()
        self.start()

    def connect(self, **options: object) -> "psycopg.Connection[tuple[object, ...]]":
        """A session of the application, directly."""
        target = {"host": self.host, "port": self.port, "connect_timeout": 5}
        return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **{**target, **options})  # type: ignore[arg-type]

    def sessions(self) -> int:
        """How many client sessions there are, this one left out."""
        query = "select count(*) from pg_stat_activity where backend_type='client backend' and pid<>pg_backend_pid()"
        with self.connect() as connection:
            row = connection.execute(query).fetchone()
        assert row is not None
        return int(str(row[0]))

    def _initialize(self) -> None:
        data, password = self.directory / "data", self.directory / "password"
        password.write_text(PASSWORD)
        self._own(password)
        command: list[str | Path] = [
            *self._as_user(),
            _postgres("initdb"),
            "-D",
            data,
            "--no-sync",
            "-U",
            USER,
            "--pwfile",
            password,
        ]
        run([*command, "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"], cwd="/")
        (data / "pg_hba.conf").write_text(f"{self._hba} all all 0.0.0.0/0 scram-sha-256\n")
        script = (
            f"create database {DATABASE};\n\\c {DATABASE}\n"
            "create table orders (id int primary key, item text);\n"
            "insert into orders values (1, 'lamp'), (2, 'chair'), (3, 'desk');\n"
        )
        single = [*self._as_user(), _postgres("postgres"), "--single", "-D", str(data), "postgres"]
        for database, lines in (("postgres", script.splitlines()[:1]), (DATABASE, script.splitlines()[2:])):
            subprocess.run(
                [*single[:-1], database], input="\n".join(lines) + "\n", text=True, check=True, capture_output=True
            )

    def _tls_settings(self) -> list[str]:
        if self._tls is None:
            return ["ssl=off"]
        certificate, key = self._copy(self._tls.certificate, "server.crt"), self._copy(self._tls.key, "server.key")
        return ["ssl=on", f"ssl_cert_file={certificate}", f"ssl_key_file={key}"]

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


class MariaDBServer(_Server):
    """MariaDB, of the MySQL protocol."""

    system_user = "mysql"

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
        """`settings`: further options of mariadbd, without their dashes."""
        ensure_packages({"mariadb-server": "the databases"})
        super().__init__(directory, host, port, survives)
        self.settings = tuple(settings)
        self._tls = tls
        self._tls_required = tls_required
        self._initialize()

    def start(self) -> Self:
        """Starts it; returns once it answers queries."""
        options = [
            f"--bind-address={self.host}",
            f"--port={self.port}",
            *self._tls_options(),
            *(f"--{setting}" for setting in self.settings),
        ]
        self._process = Process([*self._command(), *options], self.log, survives=self._survives).start()
        self._process.wait_until(self._answers, "MariaDB to answer", _START_SECONDS)
        return self

    def restart(self) -> None:
        """Ends and starts it on the same port."""
        self.stop()
        self.start()

    def connect(self, **options: Any) -> Any:
        """A session of the application, directly."""
        target: dict[str, Any] = {"host": self.host, "port": self.port, "connect_timeout": 5}
        if self._tls:
            target["ssl"] = {"ca": str(self._tls.authority), "check_hostname": False}
        return pymysql.connect(user=USER, password=PASSWORD, database=DATABASE, **{**target, **options})

    def sessions(self) -> int:
        """How many client sessions there are, this one left out."""
        connection = self.connect()
        with connection, connection.cursor() as cursor:
            cursor.execute("select count(*) from information_schema.processlist where user=%s", (USER,))
            row = cursor.fetchone()
        assert row is not None
        return int(row[0]) - 1

    def _command(self) -> list[str]:
        return [
            *self._as_user(),
            "/usr/sbin/mariadbd",
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--socket={self.directory / 's'}",
            f"--pid-file={self.directory / 'pid'}",
            "--innodb-buffer-pool-size=8M",
            "--innodb-log-file-size=4M",
            "--innodb-flush-log-at-trx-commit=0",
        ]

    def _initialize(self) -> None:
        data = self.directory / "data"
        data.mkdir()
        self._own(data)
        user = ["--user=mysql"] if os.geteuid() == 0 else []
        run(
            ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db", "--skip-name-resolve", *user]
        )
        tls = " require ssl" if self._tls_required else ""
        script = (
            f"create database {DATABASE};\n"
            f"create table {DATABASE}.orders (id int primary key, item text);\n"
            f"insert into {DATABASE}.orders values (1, 'lamp'), (2, 'chair'), (3, 'desk');\n"
            "flush privileges;\n"
            f"create user '{USER}'@'%' identified by '{PASSWORD}'{tls};\n"
            f"grant all on *.* to '{USER}'@'%';\n"
        )
        done = subprocess.run(
            [*self._command(), "--bootstrap"], input=script, text=True, capture_output=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])

    def _tls_options(self) -> list[str]:
        if self._tls is None:
            return ["--skip-ssl"]
        certificate, key = self._copy(self._tls.certificate, "server.crt"), self._copy(self._tls.key, "server.key")
        return [f"--ssl-cert={certificate}", f"--ssl-key={key}"]

    def _answers(self) -> bool:
        try:
            self.connect().close()
        except (pymysql.err.OperationalError, OSError):
            return False
        return True


def _postgres(program: str) -> str:
    """A PostgreSQL program; Debian keeps them beside the version."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(found[-1]) if found else program
