"""Entries of libcni's cache, as libcni writes them at the end of an ADD."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

CONTAINER_ID = "5f3c" * 16
NETNS = "/var/run/netns/cni-2f7c1f6e-8a2b-1c0d-9e4f-aa11bb22cc33"

ORIGINAL_RESULT: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "interfaces": [
        {"name": "eni0d7763386da"},
        {"name": "eth0", "mac": "2", "sandbox": NETNS},
        {"name": "dummy0d7763386da", "mac": "0", "sandbox": "1"},
    ],
    "ips": [{"version": "4", "interface": 1, "address": "10.0.97.30/32"}],
    "dns": {},
}
"""The original's, of a pod on the second ENI: the sandbox of its "dummy" is the device number."""

ORIGINAL_CONFLIST: dict[str, Any] = {
    "cniVersion": "0.4.0",
    "name": "aws-cni",
    "disableCheck": True,
    "plugins": [
        {"name": "aws-cni", "type": "aws-cni", "vethPrefix": "eni"},
        {"name": "egress-cni", "type": "egress-cni"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
    ],
}


def cache_entry(
    container_id: str = CONTAINER_ID,
    *,
    network: str = "aws-cni",
    ifname: str = "eth0",
    result: Any = ORIGINAL_RESULT,
    conflist: Any = ORIGINAL_CONFLIST,
    netns: str = "",
    pod: str = "web-0",
    **changes: Any,
) -> dict[str, Any]:
    """One entry. ``netns`` is there since libcni 1.2; a change to ``None`` leaves a key out."""
    said = {
        "kind": "cniCacheV1",
        "containerId": container_id,
        "config": base64.b64encode(json.dumps(conflist).encode()).decode(),
        "ifName": ifname,
        "networkName": network,
        "netns": netns or None,
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", "default"],
            ["K8S_POD_NAME", pod],
            ["K8S_POD_INFRA_CONTAINER_ID", container_id],
            ["K8S_POD_UID", f"uid-{pod}"],
        ],
        "capabilityArgs": {"io.kubernetes.cri.pod-annotations": {"kubernetes.io/config.source": "api"}},
        "result": result,
    } | changes
    return {key: value for key, value in said.items() if value is not None}


def write_entry(results: Path, entry: dict[str, Any], name: str = "") -> Path:
    """Write an entry under libcni's name for it, or another."""
    name = name or f"{entry['networkName']}-{entry['containerId']}-{entry['ifName']}"
    path = results / name
    path.write_text(json.dumps(entry))
    return path
