"""Names and marks of ownership: host veth names, IFALIAS, MACs."""

from __future__ import annotations

import hashlib
from typing import Final

from vpccni.datapath.numbers import IFALIAS_BYTES_MAX
from vpccni.model import Address, Mac, PodRef, SandboxKey

ALIAS_PREFIX: Final = "vpccni:"
_HASH_DIGITS: Final = 11
_DIGEST: Final = "sha256-"
_HELD: Final = "held-"
"""What stands before a digest, or before an address, where an alias has no container id."""


def host_veth_name(prefix: str, namespace: str, name: str) -> str:
    """Host-side interface name of a pod, as amazon-vpc-cni-k8s and Calico compute it.

    Args:
        prefix: At most 4 characters (``AWS_VPC_K8S_CNI_VETHPREFIX``).
        namespace: Kubernetes namespace; may be empty.
        name: Pod name; may be empty (but see :func:`veth_name_of`).
    """
    digest = hashlib.sha1(f"{namespace}.{name}".encode(), usedforsecurity=False).hexdigest()
    return prefix + digest[:_HASH_DIGITS]


def veth_name_of(prefix: str, key: SandboxKey, pod: PodRef) -> str:
    """Host-side interface name of a sandbox.

    ``eth0`` of a named pod gets the name that other programs compute. Without a pod name (a runtime that
    sends no ``K8S_POD_NAME``) all sandboxes would collide, so the container id takes the name's place; a
    further interface of the same pod has its name appended, as the original appends its index.
    """
    name = pod.name or key.container_id
    if key.ifname != "eth0":
        name = f"{name}.{key.ifname}"
    return host_veth_name(prefix, pod.namespace, name)


def alias_of(key: SandboxKey) -> str:
    """IFALIAS of the sandbox's host veth: tells it from the veth of a re-created pod of the same name.

    ``vpccni:<container id>:<ifname>``; a container id too long for an alias is replaced by its SHA-256.
    """
    alias = f"{ALIAS_PREFIX}{key.container_id}:{key.ifname}"
    if len(alias.encode()) <= IFALIAS_BYTES_MAX:
        return alias
    digest = hashlib.sha256(key.container_id.encode()).hexdigest()
    return f"{ALIAS_PREFIX}{_DIGEST}{digest}:{key.ifname}"


def alias_of_hold(address: Address, ifname: str) -> str:
    """IFALIAS of a host veth whose sandbox nobody can name."""
    return f"{ALIAS_PREFIX}{_HELD}{address}:{ifname}"


def sandbox_of_alias(alias: str) -> tuple[str, str] | None:
    """Container id and interface that an alias of ours holds; ``None`` for a hold's, or one with a digest only."""
    container_id, _, ifname = alias.removeprefix(ALIAS_PREFIX).rpartition(":")
    if not container_id or not ifname or container_id.startswith((_DIGEST, _HELD)):
        return None
    return container_id, ifname


def is_our_alias(alias: str) -> bool:
    """Whether a link with this alias was made by us, for whatever sandbox."""
    return alias.startswith(ALIAS_PREFIX)


def host_mac_of(key: SandboxKey) -> Mac:
    """MAC of the host end, locally administered, from the sandbox's key.

    It is fixed at creation, so udev does not rewrite it, and known beforehand, so nobody has to ask for it;
    and a veth whose alias was not yet set when the agent died can be told as this sandbox's.
    """
    text = f"{key.network}\0{key.container_id}\0{key.ifname}"
    return _local_mac(hashlib.sha256(text.encode()).digest())


def pod_mac_of(key: SandboxKey, address: Address) -> Mac:
    """MAC of the pod's end, locally administered, from the sandbox's key and its address."""
    text = f"{key.network}\0{key.container_id}\0{key.ifname}\0{address}"
    return _local_mac(hashlib.sha256(text.encode()).digest())


def _local_mac(digest: bytes) -> Mac:
    octets = bytes([(digest[0] | 0x02) & 0xFE]) + digest[1:6]
    return Mac(octets.hex(":"))
