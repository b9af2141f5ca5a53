"""Jump hosts and fallbacks in manifests: what the API server stores, and what it refuses."""

from collections.abc import Mapping
from typing import Any

FINGERPRINT = "SHA256:" + "B" * 43

WHOLE: dict[str, Any] = {
    "host": "jump.example.com",
    "port": 2222,
    "user": "ops",
    "keySecretRef": {"name": "jump-ssh", "key": "id", "passphraseKey": "words"},
    "hostKey": {"fingerprints": [FINGERPRINT], "alias": "jump"},
    "algorithms": "Legacy",
}
"""One with everything that it may have, but for the other sources of host keys."""


def _servers(count: int) -> list[dict[str, Any]]:
    return [{"host": f"198.51.100.{number}"} for number in range(count)]


def _with(host_key: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"host": "198.51.100.1", "hostKey": host_key}]


GOOD_HOPS: dict[str, Mapping[str, Any]] = {
    "a whole jump host": {"tunnel.jumpHosts": [WHOLE]},
    "a whole fallback": {"tunnel.fallbacks": [WHOLE]},
    "as many as may be": {"tunnel.jumpHosts": _servers(4), "tunnel.fallbacks": _servers(4)},
    "no further servers": {"tunnel.jumpHosts": [], "tunnel.fallbacks": []},
    "two ports of one host": {"tunnel.fallbacks": [{"host": "a"}, {"host": "a", "port": 2222}]},
    "known_hosts of a jump host": {"tunnel.jumpHosts": _with({"knownHosts": "x" * 8192})},
    "known_hosts of a fallback": {"tunnel.fallbacks": _with({"knownHosts": "jump ssh-ed25519 AAAA\n"})},
    "a jump host's known_hosts elsewhere": {
        "tunnel.jumpHosts": _with({"knownHostsRef": {"kind": "Secret", "name": "hosts", "key": "a"}})
    },
    "a fallback's known_hosts elsewhere": {
        "tunnel.fallbacks": _with({"knownHostsRef": {"kind": "ConfigMap", "name": "hosts", "key": "a"}})
    },
}
"""As `GOOD` of the schema's tests."""

BAD_HOPS: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "five jump hosts": ({"tunnel.jumpHosts": _servers(5)}, "spec.tunnel.jumpHosts", "at most 4"),
    "five fallbacks": ({"tunnel.fallbacks": _servers(5)}, "spec.tunnel.fallbacks", "at most 4"),
    "a jump host twice": (
        {"tunnel.jumpHosts": [{"host": "a"}, {"host": "a", "port": 22}]},
        "spec.tunnel.jumpHosts",
        "name each host and port once",
    ),
    "a fallback twice": (
        {"tunnel.fallbacks": _servers(1) * 2},
        "spec.tunnel.fallbacks",
        "name each host and port once",
    ),
    "a jump host without a host": ({"tunnel.jumpHosts": [{"port": 22}]}, "spec.tunnel.jumpHosts[0].host", "Required"),
    "a jump host with a port in its name": (
        {"tunnel.jumpHosts": [{"host": "jump:22"}]},
        "spec.tunnel.jumpHosts[0].host",
        "no port",
    ),
    "a jump host with jump hosts": (
        {"tunnel.fallbacks": [{"host": "a", "jumpHosts": []}]},
        "spec.tunnel.fallbacks[0].jumpHosts",
        "unknown field",
    ),
    "two ways of giving a fallback's host keys": (
        {"tunnel.fallbacks": _with({"fingerprints": [FINGERPRINT], "knownHosts": "x"})},
        "spec.tunnel.fallbacks[0].hostKey",
        "give one of",
    ),
    "a jump host's known_hosts text over 8 KiB": (
        {"tunnel.jumpHosts": _with({"knownHosts": "x" * 8193})},
        "spec.tunnel.jumpHosts[0].hostKey.knownHosts",
        "8192",
    ),
}
"""As `BAD` of the schema's tests."""
