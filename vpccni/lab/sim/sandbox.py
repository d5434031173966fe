"""A pod sandbox as the container runtime knows it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from vpccni.model import Address, SandboxKey

NETWORK: Final = "aws-cni"
NO_ADDRESS: Final = Address("")


@dataclass(slots=True, eq=False)
class Sandbox:
    """One sandbox. ``address`` is what an ADD was answered with; empty before.

    Attributes:
        is_given_up: The runtime has begun to delete it, or will never do so.
    """

    node: str
    container_id: str
    pod: str
    uid: str
    netns: str
    address: Address = NO_ADDRESS
    is_given_up: bool = False

    @property
    def key(self) -> SandboxKey:
        """By what the agent knows it."""
        return SandboxKey(NETWORK, self.container_id, "eth0")

    @property
    def told(self) -> str:
        """For messages."""
        return f"{self.node}/{self.container_id}"

    def request(self, verb: str, **config: Any) -> bytes:
        """The body of a request of the CNI executable."""
        return json.dumps(
            {
                "command": verb,
                "containerId": self.container_id,
                "netns": self.netns,
                "ifname": "eth0",
                "args": f"K8S_POD_NAMESPACE=sim;K8S_POD_NAME={self.pod};K8S_POD_UID={self.uid}",
                "path": "/opt/cni/bin",
                "config": {"cniVersion": "1.1.0", "name": NETWORK, "type": "aws-cni", **config},
            }
        ).encode()
