"""The agent with the wiring of pods left out: ``python -m bench.unwired``, with the agent's flags.

Everything else is the real one: socket, log, EC2, ENIs. What is measured with it is how fast leases become durable.
"""

from __future__ import annotations

import sys

import msgspec

from vpccni import app
from vpccni.adapters.kernel import NetlinkKernel
from vpccni.datapath.objects import Applied, Difference, PodWiring, SandboxSeen


class UnwiredKernel(NetlinkKernel):
    """Says of each pod that it is wired, or not any more, and does nothing for it."""

    async def apply(self, difference: Difference) -> Applied:
        """See :class:`vpccni.ports.Kernel`; what concerns pods is left out."""
        rest = msgspec.structs.replace(
            difference, wire=(), routes_delete=(), rules_delete=(), veths_delete=(), probe=()
        )
        applied = Applied() if rest.is_empty else await super().apply(rest)
        removed = tuple(veth.ifindex for veth in difference.veths_delete if veth.ifindex)
        return msgspec.structs.replace(
            applied, sandboxes={pod.lease: _seen(pod) for pod in difference.wire}, removed_veths=removed
        )


def _seen(pod: PodWiring) -> SandboxSeen:
    return SandboxSeen(
        host_ifname=pod.host_ifname,
        host_ifindex=100_000 + int(pod.lease) % 1_000_000,
        host_mac="0a:00:00:00:00:01",
        pod_mac="0a:00:00:00:00:02",
        alias=pod.alias,
        netns_inode=1,
    )


def main() -> int:
    """Run it; see :func:`vpccni.app.main`."""
    vars(app)["NetlinkKernel"] = UnwiredKernel
    return app.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
