"""What clusters are configured with, where it can be decided without one."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cluster import ClusterError, cluster_of
from tests.support.cluster.__main__ import main
from tests.support.cluster.base import AUDIT_POLICY, AuditLog
from tests.support.cluster.components import (
    cni_config,
    commands,
    containerd_config,
    coredns_config,
    kubelet_config,
    proxy_config,
)
from tests.support.cluster.layout import Layout, NoFreeNetworkError, free_network
from tests.support.cluster.local import PROGRAMS, LocalCluster
from tests.support.cluster.node import make_cgroup

DIRECTORY = Path("/cache/clusters/dev")


# --- the audit log ----------------------------------------------------------------------------------------------


def test_the_audit_log_has_each_write_once_and_the_reads_of_service_accounts() -> None:
    policy = yaml.safe_load(AUDIT_POLICY)
    reads = {"level": "None", "verbs": ["get", "list", "watch"]}

    assert policy["omitStages"] == ["RequestReceived"]
    assert policy["rules"] == [
        {**reads, "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        reads,
        {"level": "Metadata"},
    ]


def verbs(events: list[dict[str, Any]]) -> list[str]:
    return [one["verb"] for one in events]


def audited(*verbs: str) -> bytes:
    """Lines of an audit log about some object."""
    return b"".join(json.dumps({"verb": verb, "objectRef": {}}).encode() + b"\n" for verb in verbs)


def test_a_line_of_the_audit_log_that_is_being_written_waits_for_its_end() -> None:
    log, (begin, end) = AuditLog(), audited("update").split(b"upd")

    log.feed(audited("create") + begin)
    assert verbs(log.writes) == ["create"]
    log.feed(b"upd" + end)
    assert verbs(log.writes) == ["create", "update"]


def test_reads_are_kept_apart_from_writes() -> None:
    log = AuditLog()

    log.feed(audited("list", "patch", "watch"))
    assert (verbs(log.writes), verbs(log.reads)) == (["patch"], ["list", "watch"])


def test_a_request_about_no_object_is_left_out() -> None:
    log = AuditLog()

    log.feed(b'{"verb": "post", "requestURI": "/"}\n{"verb": "get", "requestURI": "/healthz"}\n')
    assert (log.writes, log.reads) == ([], [])


# --- the local cluster ------------------------------------------------------------------------------------------


def test_two_clusters_share_nothing() -> None:
    """Names, whatever network they then take."""
    one, two = (asdict(Layout.of(DIRECTORY.with_name(name), number)) for name, number in (("dev", 70), ("test", 71)))

    assert not set(one.values()) & set(two.values())


def test_the_same_name_in_two_caches_is_two_clusters() -> None:
    one, two = (Layout.of(Path(cache) / "clusters" / "test", 70) for cache in ("/a", "/b"))

    assert (one.link, one.cgroup) != (two.link, two.cgroup)


def test_a_links_name_is_one_that_linux_takes() -> None:
    assert len(Layout.of(Path("/a/very/long/path/to/a/cache") / ("x" * 60), 70).link) <= 15


@pytest.mark.parametrize("route", ["10.{0}.0.0/16", "10.{0}.7.0/24", "10.{0}.255.1", "10.{0}.0.0/15"])
def test_a_network_that_this_machine_uses_is_not_taken(route: str) -> None:
    first = free_network(DIRECTORY, [])

    chosen = free_network(DIRECTORY, [route.format(first)])

    assert chosen != first
    assert 64 <= chosen <= 127


def test_the_same_network_is_taken_again() -> None:
    assert free_network(DIRECTORY, ["192.168.0.0/16", "172.17.0.0/16"]) == free_network(DIRECTORY, [])


def test_without_a_free_network_it_says_what_to_do() -> None:
    with pytest.raises(NoFreeNetworkError, match="CLUSTER=kind"):
        free_network(DIRECTORY, ["10.0.0.0/8"])


def test_nothing_of_it_is_kept_where_the_machine_keeps_its_own() -> None:
    """Only /run is named beside its directory, which the cluster has to itself."""
    layout = asdict(Layout.of(DIRECTORY, 70))
    programs = {name: f"/bin/{name}" for name in PROGRAMS}
    texts = [
        json.dumps([commands(layout, programs), kubelet_config(layout), proxy_config(layout), cni_config(layout)]),
        containerd_config(layout),
        coredns_config(layout),
    ]

    for text in texts:
        assert "/var/lib" not in text
        assert "/etc/" not in text


def test_every_name_outside_the_cluster_is_unknown_at_once() -> None:
    config = coredns_config(asdict(Layout.of(DIRECTORY, 70)))

    assert "NXDOMAIN" in config
    assert "forward" not in config


def test_a_full_disk_evicts_nothing() -> None:
    config = kubelet_config(asdict(Layout.of(DIRECTORY, 70)))

    assert set(config["evictionHard"].values()) == {"0%"}
    assert config["imageGCHighThresholdPercent"] == 100


def test_a_control_group_of_version_1_is_made_in_each_hierarchy(tmp_path: Path) -> None:
    for name in ("memory", "cpu,cpuacct"):
        (tmp_path / name).mkdir()
    (tmp_path / "cpu").symlink_to("cpu,cpuacct")

    make_cgroup(tmp_path, "dbtunnel-1")

    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("dbtunnel-1")}
    assert made >= {"memory/dbtunnel-1", "cpu,cpuacct/dbtunnel-1"}


def test_a_control_group_of_version_2_has_the_controllers_that_the_kubelet_asks_for(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma misc\n")
    (tmp_path / "system.slice").mkdir()

    make_cgroup(tmp_path, "dbtunnel-1")

    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +cpuset +hugetlb +memory +pids"
    assert [path.parent for path in tmp_path.rglob("dbtunnel-1")] == [tmp_path]


def test_a_process_that_took_over_a_recorded_id_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only the id of this very process is that of the record, its start is not."""
    monkeypatch.setenv("DBTUNNEL_CACHE", str(tmp_path))
    cluster = LocalCluster("old")
    cluster.directory.mkdir(parents=True)
    (cluster.directory / "processes.json").write_text(json.dumps([[os.getpid(), "1"], [os.getpid(), "1"]]))

    assert not cluster.is_running()
    cluster.stop()
    assert not cluster.directory.exists()


# --- the choice -------------------------------------------------------------------------------------------------


def test_cluster_names_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "local")

    assert isinstance(cluster_of("dev"), LocalCluster)


def test_an_unknown_kind_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "minikube")

    with pytest.raises(ClusterError, match=r"minikube.*kind, local, existing"):
        cluster_of("dev")


def test_the_command_says_what_is_wrong_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLUSTER", "minikube")
    monkeypatch.setattr("sys.argv", ["cluster", "up"])

    assert main() == 1
    assert capsys.readouterr().err == "CLUSTER is 'minikube'; write one of kind, local, existing\n"


def test_without_a_docker_engine_it_is_the_local_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CLUSTER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(cluster_of("dev"), LocalCluster)

    (tmp_path / "docker").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "docker").chmod(0o755)
    assert isinstance(cluster_of("dev"), LocalCluster)


def test_an_existing_cluster_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTER", "existing")
    monkeypatch.delenv("HOST_ADDRESS", raising=False)
    cluster = cluster_of("any")

    with pytest.raises(ClusterError, match="HOST_ADDRESS"):
        _ = cluster.host_address
    with pytest.raises(ClusterError, match="IMAGE"):
        cluster.load_image(Path("image.tar"), "example.invalid/image:1")
