"""docs/troubleshooting.md by its own commands, words of clients in a pod, and what docs/engines.md says of a driver."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.support.client_words import PAGE, check_words
from tests.support.clients import query
from tests.support.cluster import Cluster
from tests.support.pages import follow
from tests.support.private_network import PrivateNetwork
from tests.support.tunnels import start_tunnel

_COMMANDS = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_OF_LOGS = "sed -n"
"""Stands in blocks that print nothing where nothing has happened."""


def test_every_command_works_for_a_tunnel_that_does(
    installed: Cluster, shop: str, private_network: PrivateNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")  # the plugin's
    start_tunnel(installed, shop, "orders")
    commands = _COMMANDS.findall(PAGE.read_text())
    printed = {text: follow("troubleshooting", installed, shop, tmp_path, text) for text in commands}
    assert [text for text in commands if not printed[text].strip() and _OF_LOGS not in text] == []

    def of(word: str) -> str:
        (found,) = (shown for text, shown in printed.items() if word in text)
        return found

    assert "READY" in of("kubectl describe databasetunnel")
    assert f"orders.{shop}.svc" in of("{.status.endpoint}")
    assert "', 22" in of("getaddrinfo"), "an address of localhost"
    assert '"started"' in of("(started|connected)")
    assert '"started"' in of("the operator ends")
    assert "Ready True Succeeded" in of("range .status.conditions")


_NAMES = """
psql "host=$0 dbname=shop" -c 'select 1'
mysql --host=$0 --execute 'select 1'
python -c 'import sys, pymysql; pymysql.connect(host=sys.argv[1])' $0 2>&1 | tail -1
python -c 'import asyncio, sys, psycopg
asyncio.run(psycopg.AsyncConnection.connect(f"host={sys.argv[1]}"))' $0 2>&1 | tail -1
python -c 'import redshift_connector as r; r.connect(host="127.0.0.1", port=1, user="a", password="b")' 2>&1 | tail -1
"""


def test_the_words_of_clients_for_which_there_is_no_service(installed: Cluster, shop: str) -> None:
    name = f"nowhere.{shop}.svc.cluster.local."
    said = query(installed, shop, ["sh", "-c", f"({_NAMES}) 2>&1; true", name])
    check_words('could not translate host name "..." to address: Name or service not known', said)
    check_words("failed to resolve host '...'", said)
    check_words("Can't connect to MySQL server on '...' ([Errno -2] Name or service not known)", said)
    check_words("Unknown server host '...' (-2)", said)
    check_words("('communication error', ConnectionRefusedError(111, 'Connection refused'))", said)


_IAM = """
import datetime, socket
import redshift_connector
from redshift_connector.iam_helper import IamHelper

class Api:
    def describe_clusters(self, **_):
        return {"Clusters": [{"Endpoint": {"Address": "endpoint.example", "Port": 5555}}]}
    def describe_custom_domain_associations(self, **_):
        raise LookupError("nobody knows it")
    def get_cluster_credentials(self, CustomDomainName=None, **_):
        if CustomDomainName:
            raise LookupError("nobody knows it")
        later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=15)
        return {"DbUser": "IAM:app", "DbPassword": "x", "Expiration": later}

class Asked(Exception): ...

def getaddrinfo(host, port, **_):
    raise Asked(f"{host}:{port}")

IamHelper.get_boto3_redshift_client = staticmethod(lambda *_: Api())
socket.getaddrinfo = getaddrinfo
for where in {"host": "orders.shop.svc", "port": 5439}, {"host": "orders.shop.svc"}, {}:
    try:
        redshift_connector.connect(iam=True, database="shop", db_user="app", cluster_identifier="c", region="eu-west-1",
                                   access_key_id="a", secret_access_key="b", **where)
    except Asked as asked:
        print(asked)
"""


def test_redshifts_driver_with_iam_goes_where_the_api_says_unless_it_is_told_where(
    installed: Cluster, shop: str
) -> None:
    said = query(installed, shop, ["python", "-c", _IAM])
    assert said.split() == ["orders.shop.svc:5439", "orders.shop.svc:5439", "endpoint.example:5555"]
