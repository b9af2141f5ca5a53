"""Tunnels under Flux, and under Helm's --wait: both wait by kstatus, whose verdict on every version is looked at."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.cluster import Cluster, ClusterError
from tests.support.health_cases import CASES, judged, outline, record, write_settings
from tests.support.installation import helm
from tests.support.kstatus import ExpressionError, Verdict, verdict
from tests.support.processes import ROOT
from tests.support.tunnels import Manifest, condition, example, patch, wait_for_ready, wait_for_reason
from tests.support.watched import Watch

EXAMPLES = ROOT / "examples" / "flux"
NAME = "kept"

IN_PROGRESS, CURRENT, FAILED, TERMINATING = (
    Verdict.IN_PROGRESS,
    Verdict.CURRENT,
    Verdict.FAILED,
    Verdict.TERMINATING,
)


def documents() -> list[Manifest]:
    """Those of the examples."""
    return [one for path in sorted(EXAMPLES.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]


def expressions() -> Mapping[str, str]:
    """How the example judges tunnels."""
    (found,) = (one for all in documents() for one in all["spec"].get("healthCheckExprs", ()))
    return dict(found)


def by_expressions(version: Manifest) -> Verdict:
    """Flux goes on waiting where an expression does not fit yet."""
    try:
        return verdict(version, expressions())
    except ExpressionError:
        return IN_PROGRESS


def steps(verdicts: list[Verdict]) -> list[Verdict]:
    """Without repetitions."""
    return [one for number, one in enumerate(verdicts) if number == 0 or verdicts[number - 1] != one]


# --- a tunnel's life ------------------------------------------------------------------------------------------------


@pytest.fixture
def chart(tmp_path: Path, shop: str, bastion: Bastion) -> Path:
    """A team's chart that has a tunnel."""
    manifest = example(shop, "orders")
    manifest["metadata"]["name"] = NAME
    pins = {"fingerprints": list(bastion.fingerprints.values())}
    manifest["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    (tmp_path / "chart/templates").mkdir(parents=True)
    (tmp_path / "chart/Chart.yaml").write_text("apiVersion: v2\nname: team\nversion: 0.1.0\n")
    (tmp_path / "chart/templates/tunnel.yaml").write_text(yaml.safe_dump(manifest))
    return tmp_path / "chart"


def test_what_waits_by_kstatus_waits_as_long_as_it_should(
    installed: Cluster, shop: str, bastion: Bastion, chart: Path, tmp_path: Path
) -> None:
    release, resource = (NAME, "--namespace", shop), f"databasetunnel/{NAME}"
    seen: dict[str, list[Manifest]] = {}
    with Watch(installed, shop, NAME, tmp_path / "watch.log") as watch:

        def phase(name: str, act: Callable[[], object]) -> None:
            before = len(watch.versions)
            act()
            seen[name] = watch.versions[before:]

        def fail() -> None:
            bastion.replace_host_keys()
            bastion.kill_sessions()
            wait_for_reason(installed, shop, NAME, "HostKeyMismatch")

        def mend() -> None:
            pins = {"fingerprints": list(bastion.fingerprints.values())}
            patch(installed, shop, resource, {"spec": {"tunnel": {"hostKey": pins}}})
            wait_for_ready(installed, shop, NAME)

        def suspend(value: bool) -> None:
            patch(installed, shop, resource, {"spec": {"suspend": value}})
            (wait_for_reason(installed, shop, NAME, "Suspended") if value else wait_for_ready(installed, shop, NAME))

        phase("created", lambda: helm(installed, "install", *release, str(chart), "--wait", "--timeout", "60s"))
        assert condition(installed, shop, "Ready", NAME)["status"] == "True", "helm has waited for it"
        phase("failed", fail)
        phase("mended", mend)
        phase("suspended", lambda: suspend(True))
        phase("resumed", lambda: suspend(False))
        phase("deleted", lambda: helm(installed, "uninstall", *release, "--cascade", "foreground", "--wait"))

    judged = {name: steps([verdict(one) for one in versions]) for name, versions in seen.items()}
    assert judged["created"] == [IN_PROGRESS, CURRENT]
    assert judged["failed"][-1] is FAILED
    assert judged["mended"][-2:] == [IN_PROGRESS, CURRENT]
    assert judged["suspended"] == [IN_PROGRESS], "kstatus knows no rest: it waits until the timeout"
    assert judged["resumed"] == [IN_PROGRESS, CURRENT]
    assert judged["deleted"][-1] is TERMINATING

    told = {name: steps([by_expressions(one) for one in versions]) for name, versions in seen.items()}
    assert told["suspended"][-1] is CURRENT, "the example's expressions do"
    assert {**told, "suspended": [], "deleted": []} == {**judged, "suspended": [], "deleted": []}
    assert "conditions" not in seen["created"][0]["status"], (
        "the definition's default, before the operator's first write"
    )
    check_health(seen, tmp_path)


def check_health(seen: Mapping[str, list[Manifest]], directory: Path) -> None:
    """What is recorded for Argo CD is what the operator writes, and Argo CD's own command judges that as documented."""
    live = {
        "recorded_new": seen["created"][0],
        "recorded_starting": next(one for one in seen["created"] if "conditions" in one["status"]),
        "recorded_working": seen["created"][-1],
        "recorded_suspending": seen["suspended"][0],
        "recorded_suspended": seen["suspended"][-1],
        "recorded_host_key_mismatch": seen["failed"][-1],
    }
    settings = write_settings(directory / "argocd-cm.yaml")
    for name, version in live.items():
        path = record(version, name)
        assert outline(version) == outline(CASES[name].manifest), f"{path} is what it is now: record that"
        assert judged(path, settings).startswith(f"STATUS: {CASES[name].status}\n"), name


def test_helm_fails_where_a_tunnel_does(installed: Cluster, shop: str, bastion: Bastion, chart: Path) -> None:
    bastion.replace_host_keys()

    with pytest.raises(ClusterError, match=f"DatabaseTunnel/{shop}/{NAME}"):
        helm(installed, "install", "failing", "--namespace", shop, str(chart), "--wait", "--timeout", "5s")

    helm(installed, "uninstall", "failing", "--namespace", shop)
