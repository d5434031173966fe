"""A pod sandbox as the container runtime knows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from vpccni.model import Address, SandboxKey

NETWORK: Final = "aws-cni"
NAMESPACE: Final = "sim"
NO_ADDRESS: Final = Address("")


@dataclass(slots=True, eq=False)
class Sandbox:
    """One sandbox. ``address`` is what an ADD was answered with; empty before.

    Attributes:
        is_given_up: The runtime has begun to delete it, or will never do so.
        served_by: Whose plugin gave it its address: ``ours`` or ``original``.
        table: Routing table of its address, when the original gave it; 0 else.
        interfaces: Of the result of its ADD, as the runtime keeps them.
        acked_at: Virtual second of the acknowledgement.
    """

    node: str
    container_id: str
    pod: str
    uid: str
    netns: str
    address: Address = NO_ADDRESS
    is_given_up: bool = False
    served_by: str = "ours"
    table: int = 0
    interfaces: tuple[dict[str, Any], ...] = ()
    acked_at: float = 0.0

    @property
    def key(self) -> SandboxKey:
        """By what the agent knows it."""
        return SandboxKey(NETWORK, self.container_id, "eth0")

    @property
    def told(self) -> str:
        """For messages."""
        return f"{self.node}/{self.container_id}"

    @property
    def result(self) -> dict[str, Any]:
        """What its ADD was answered with, as the runtime gives it to a DEL."""
        return {
            "cniVersion": "1.1.0",
            "interfaces": list(self.interfaces),
            "ips": [{"interface": 1, "address": f"{self.address}/32"}],
        }

    def request(self, verb: str, **config: Any) -> bytes:
        """The body of a request of the CNI executable."""
        return json.dumps(
            {
                "command": verb,
                "containerId": self.container_id,
                "netns": self.netns,
                "ifname": "eth0",
                "args": f"K8S_POD_NAMESPACE={NAMESPACE};K8S_POD_NAME={self.pod};K8S_POD_UID={self.uid}",
                "path": "/opt/cni/bin",
                "config": {"cniVersion": "1.1.0", "name": NETWORK, "type": "aws-cni", **config},
            }
        ).encode()
